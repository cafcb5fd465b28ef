#!/usr/bin/env python3
"""Rules, dashboards and console pages speak of metrics that exist, and the console pages are rendered
by a real Prometheus that scrapes live programs on the software GPU.
"""

import json
import re
import shutil
import subprocess
import sys
import unittest

import live
import rig

METRIC = re.compile(r"\brubato_[a-z0-9_]+\b")
RECORDED = re.compile(r"\brubato:[a-z0-9_:]+\b")
# Words of that form that are no metrics: names of templates, files and labels.
NO_METRICS = re.compile(
    r"^rubato_(head|header|tail|chart|seconds|ratio|number|bytes|misses|yes)$")
# Exported only in some situations that this test does not make.
SITUATIONAL = {
    "rubato_mps_healthy",            # Modes hybrid and mps.
    "rubato_bypass_suspected",       # With the host's processes in sight.
    "rubato_gpu_unhealthy",          # While a GPU is.
    "rubato_gpu_withheld",           # While a GPU is.
}


def sources():
    for pattern in ("rules/*.yaml", "dashboards/*.json", "consoles/*"):
        for file in sorted(live.CHART.glob(pattern)):
            text = file.read_text("utf-8")
            if file.suffix == ".yaml":
                # Comments may say what they like.
                text = "\n".join(line.partition(" #")[0] for line in text.splitlines()
                                 if not line.lstrip().startswith("#"))
            yield file, text


def used(pattern):
    """Names, and the files that use them."""
    names = {}
    for file, text in sources():
        for name in pattern.findall(text):
            if not NO_METRICS.match(name):
                names.setdefault(name, set()).add(file.name)
    return names


def families(page):
    return set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))


def without_suffix(name, known):
    for suffix in ("_bucket", "_sum", "_count"):
        if name.endswith(suffix) and name[:-len(suffix)] in known:
            return name[:-len(suffix)]
    return name


class Watching(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.installation = live.Installation()
        cls.addClassCleanup(cls.installation.close)
        cls.installation.start_prometheus()

    def test_every_metric_exists(self):
        known = families(live.get(self.installation.scheduler_url))
        self.assertIn("rubato_jobs_total", known)
        if self.installation.agent_url:
            known |= families(live.get(self.installation.agent_url))
        names = used(METRIC)
        self.assertGreater(len(names), 30)
        unknown = {name: sorted(files) for name, files in names.items()
                   if without_suffix(name, known) not in known | SITUATIONAL}
        self.assertEqual(unknown, {})

    def test_every_recorded_series_has_its_rule(self):
        rules = (live.CHART / "rules" / "rubato.yaml").read_text("utf-8")
        recorded = set(re.findall(r"- record: (\S+)", rules))
        self.assertEqual(set(used(RECORDED)) - recorded, set())

    def test_every_label_exists(self):
        """Selectors and groupings name labels that the series have."""
        have = {"node", "job", "instance", "le", "what", "resource"}
        for url in (self.installation.scheduler_url, self.installation.agent_url):
            if url:
                have |= set(re.findall(r'[{,]([a-z_]+)="', live.get(url)))
        for file, text in sources():
            for labels in re.findall(r"\bby \(([^)]*)\)", text):
                for label in re.split(r",\s*", labels):
                    self.assertIn(label, have, f"{file.name}: by ({labels})")

    def test_the_rules_are_evaluated_on_live_data(self):
        def recorded():
            return self.installation.ask("rubato:tenant_jobs:rate5m > 0")

        ((labels, _),) = rig.wait_until(recorded, "the recording rules have results")
        self.assertEqual(labels["tenant"], "camera")
        self.assertEqual(labels["node"], live.NODE)
        answer = json.loads(live.get(f"{self.installation.prometheus_url}/api/v1/rules"))
        rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
        self.assertGreater(len(rules), 20)
        for rule in rules:
            self.assertNotEqual(rule["health"], "err", f"{rule['name']}: {rule.get('lastError')}")

    def test_the_console_pages_are_rendered(self):
        rig.wait_until(lambda: self.installation.ask("rate(rubato_jobs_total[1m]) > 0"),
                       "Prometheus has scraped twice")
        who = {"node": live.NODE, "tenant": "camera"}
        for page, params, words in (
                ("rubato.html", {}, ["camera", "trainer", "batch", live.NODE, "60ms"]),
                ("rubato-node.html", {"node": live.NODE}, [live.NODE, "GPU-"]),
                ("rubato-tenant.html", who, ["Runs as <b>realtime</b>", "60ms", "2GiB"]),
                ("rubato-tenant.html", {"node": live.NODE, "tenant": "trainer"},
                 ["Runs as <b>best-effort</b>", "8GiB"]),
                # Nobody of this name, and one that tries to leave its quotes.
                ("rubato-tenant.html", {"tenant": "\"} or vector(1) #<script>"},
                 ["does not know this tenant"]),
                ("rubato-node.html", {"node": "nowhere"}, ["No GPU is known"])):
            with self.subTest(page=page, **params):
                status, text = self.installation.console(page, **params)
                self.assertEqual(status, 200, text[-500:])
                self.assertNotIn("error executing template", text)
                self.assertNotIn("#<script>", text)
                for word in words:
                    self.assertIn(word, text)

    def test_every_chart_and_panel_has_a_valid_expression(self):
        expressions = []
        for page, params in (("rubato.html", {}), ("rubato-node.html", {"node": live.NODE}),
                             ("rubato-tenant.html", {"node": live.NODE, "tenant": "camera"})):
            status, text = self.installation.console(page, **params)
            self.assertEqual(status, 200, text[-500:])
            found = re.findall(r'data-expr="([^"]*)"', text)
            self.assertGreaterEqual(len(found), 4, page)
            expressions += [(page, unescape(expression)) for expression in found]
        for file in sorted((live.CHART / "dashboards").glob("*.json")):
            expressions += [(file.name, expression) for expression in panel_expressions(file)]
        for where, expression in expressions:
            with self.subTest(where=where, expression=expression):
                try:
                    self.installation.ask(expression)
                except OSError as error:
                    self.fail(f"{error}: {expression}")


def unescape(text):
    for entity, char in (("&#34;", '"'), ("&#39;", "'"), ("&lt;", "<"), ("&gt;", ">"),
                         ("&#43;", "+"), ("&amp;", "&")):
        text = text.replace(entity, char)
    return text


def panel_expressions(file):
    dashboard = json.loads(file.read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "1m")
            yield re.sub(r"\$\{?[a-z]+\}?", ".*", expression)


class Dashboards(unittest.TestCase):
    def test_they_are_whole(self):
        uids = set()
        for file in sorted((live.CHART / "dashboards").glob("*.json")):
            with self.subTest(file=file.name):
                dashboard = json.loads(file.read_text("utf-8"))
                uids.add(dashboard["uid"])
                variables = {v["name"] for v in dashboard["templating"]["list"]}
                ids = [panel["id"] for panel in dashboard["panels"]]
                self.assertEqual(len(ids), len(set(ids)))
                boxes = [panel["gridPos"] for panel in dashboard["panels"]]
                for i, a in enumerate(boxes):
                    self.assertLessEqual(a["x"] + a["w"], 24)
                    for b in boxes[:i]:
                        apart = (a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
                                 or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"])
                        self.assertTrue(apart, f"{a} and {b} overlap")
                for panel in dashboard["panels"]:
                    if panel["type"] == "row":
                        continue
                    self.assertEqual(panel["datasource"]["uid"], "${datasource}")
                    self.assertTrue(panel["targets"], panel["title"])
                    self.assertIn("unit", panel["fieldConfig"]["defaults"], panel["title"])
                    for target in panel["targets"]:
                        for variable in re.findall(r"\$\{?([a-z]+)\}?", target["expr"]):
                            self.assertIn(variable, variables, target["expr"])
        self.assertEqual(uids, {"rubato-fleet", "rubato-node", "rubato-tenant"})


class Rules(unittest.TestCase):
    def run_promtool(self, *arguments):
        done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_they_are_rules(self):
        self.run_promtool("check", "rules", "--lint=all", "--lint-fatal",
                          live.CHART / "rules" / "rubato.yaml")

    def test_each_alert_fires_when_it_should_and_not_otherwise(self):
        self.run_promtool("test", "rules", live.HERE / "rules_test.yaml")

    def test_each_alert_has_a_test(self):
        rules = (live.CHART / "rules" / "rubato.yaml").read_text("utf-8")
        tests = (live.HERE / "rules_test.yaml").read_text("utf-8")
        alerts = set(re.findall(r"- alert: (\S+)", rules))
        tested = set(re.findall(r"alertname: (\S+)", tests))
        self.assertEqual(alerts, tested)


if __name__ == "__main__":
    if shutil.which("promtool") is None or shutil.which("prometheus") is None:
        print("Prometheus is missing; run tools/bootstrap", file=sys.stderr)
        sys.exit(1)
    unittest.main(verbosity=2)
