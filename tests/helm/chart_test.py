#!/usr/bin/env python3
"""The chart as text: Helm finds no fault, each case renders to its golden, wrong values are refused
in words that say what is wrong, and the plain manifests are those of the chart.

What the rendered objects mean is tested in Go, against Kubernetes' own types (apicheck/).

    chart_test.py --update      writes the goldens anew: look at the difference before a commit
"""

import difflib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / "charts" / "rubato"
SKIPPED = 77


def helm_path():
    """Where Helm is, or None with the reason said loudly."""
    done = subprocess.run([ROOT / "tools" / "get_helm"], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    print(f"THE CHART IS NOT TESTED: Helm cannot be built here: {done.stderr.strip()}",
          file=sys.stderr)
    return None


HELM = None


def helm(*arguments):
    environment = {**os.environ, "HELM_CACHE_HOME": "/nonexistent", "HELM_NO_PLUGINS": "1"}
    return subprocess.run([HELM, *map(str, arguments)], capture_output=True, text=True,
                          env=environment, stdin=subprocess.DEVNULL, check=False)


def render(*arguments, namespace="rubato-system"):
    return helm("template", "rubato", CHART, "--namespace", namespace, *arguments)


def cases():
    for file in sorted((HERE / "cases").glob("*.yaml")):
        first = file.read_text("utf-8").splitlines()[0]
        yield file, first.removeprefix("# helm:").split()


def rendered(file, options):
    done = render("--values", file, *options)
    if done.returncode != 0:
        raise AssertionError(f"{file.name}: {done.stderr}")
    return done.stdout


class Chart(unittest.TestCase):
    def test_helm_finds_no_fault(self):
        for file, options in cases():
            with self.subTest(case=file.stem):
                version = [word for word in options if word[0] == "1" or word == "--kube-version"]
                done = helm("lint", CHART, "--strict", "--namespace", "rubato-system", "--values",
                            file, *version)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_cases_render_to_their_goldens(self):
        names = []
        for file, options in cases():
            names.append(file.name)
            with self.subTest(case=file.stem):
                golden = HERE / "golden" / file.name
                want = golden.read_text("utf-8") if golden.exists() else ""
                got = rendered(file, options)
                difference = "".join(difflib.unified_diff(
                    want.splitlines(True), got.splitlines(True), "golden", "rendered", n=2))
                self.assertEqual(difference, "", "run tests/helm/chart_test.py --update")
        self.assertEqual(sorted(names), sorted(g.name for g in (HERE / "golden").glob("*.yaml")))

    def test_no_line_ends_in_blanks(self):
        for file, options in cases():
            for number, line in enumerate(rendered(file, options).splitlines(), 1):
                self.assertEqual(line, line.rstrip(), f"{file.stem}, line {number}")

    def test_wrong_values_are_refused_in_words(self):
        refusals = [
            # Well-formed one by one, wrong together: templates/validation.yaml.
            (["--namespace", "default"], "no place for a node agent"),
            (["--set", "image.repository="], "build the image"),
            (["--set", "softwareGpu.enabled=true,gpu.source=nvml"], "set gpu.source=auto"),
            (["--set", "gpu.source=software"], "set softwareGpu.enabled=true"),
            (["--set", "gpu.source=amd,mode=hybrid"], "use mode=timeslice"),
            (["--set", "gpu.include={GPU-1},gpu.exclude={GPU-1}"], "take it out of one"),
            (["--set", "deviceInjection=cdi", "--kube-version", "1.28.9"], "needs Kubernetes 1.29"),
            (["--set", "resourceName=kubernetes.io/gpu"], "the kubelet refuses resource names"),
            (["--set", "resourceName=nvidia.com/gpu"], "belongs to the vendor's device plugin"),
            (["--set", "policy.by=label,admissionPolicy.action=Warn"], "admissionPolicy.action=Deny"),
            (["--set", "policy.by=label", "--kube-version", "1.29.0"], "use policy.by=list"),
            (["--set", "policy.by=label,policy.realtimeNamespaces={a}"], "exclude each other"),
            (["--set", "hostRoot=/" + "x" * 56], "too long for the sockets"),
            (["--set", "hostRoot=/var/lib"], "a folder of Rubato's own"),
            (["--set", "hostRoot=/var/lib/kubelet/rubato"], "must lie neither in"),
            (["--set", "agent.metricsPort=9412"], "are the same"),
            (["--set", "monitoring.podMonitor.enabled=true"], "install the Prometheus Operator"),
            (["--set", "monitoring.prometheusRule.enabled=true"], "install the Prometheus Operator"),
            (["--set", "monitoring.serviceMonitor.enabled=true,metricsService.enabled=false",
              "--api-versions", "monitoring.coreos.com/v1"], "needs metricsService.enabled=true"),
            (["--set", "cleanup.enabled=true,nodeLabels.enabled=true"], "set nodeLabels.enabled=false"),
            (["--kube-version", "1.25.16"], "requires kubeVersion: >=1.26.0-0"),
            # Not well-formed: values.schema.json.
            (["--set", "slotPerGpu=5"], "slotPerGpu"),
            (["--set", "policy.realtimeNamespace={a}"], "realtimeNamespace"),
            (["--set", "monitoring.podMonitor.intervall=5s"], "intervall"),
            (["--set", "mode=time-slice"], "mode"),
            (["--set", "slotsPerGpu=0"], "slotsPerGpu"),
            (["--set-string", "slotsPerGpu=10"], "slotsPerGpu"),
            (["--set", "slotsPerGpu=101"], "slotsPerGpu"),
            (["--set", "resourceName=gpu"], "resourceName"),
            (["--set", "resourceName=Rubato.dev/gpu"], "resourceName"),
            (["--set", "policy.maxOverheadBudget=2"], "maxOverheadBudget"),
            (["--set", "policy.realtimeNamespaces={Team_A}"], "realtimeNamespaces"),
            (["--set", "hostRoot=var/lib/rubato"], "hostRoot"),
            (["--set", "mps.shmDirectory=/tmp/shm"], "shmDirectory"),
            (["--set", "image.digest=sha256:12"], "digest"),
            (["--set", "softwareGpu.devices=9"], "devices"),
            (["--set", "hostPID=true"], "hostPID"),
        ]
        for arguments, words in refusals:
            with self.subTest(arguments=" ".join(arguments)):
                namespace = "rubato-system"
                if arguments[0] == "--namespace":
                    namespace, arguments = arguments[1], arguments[2:]
                done = render(*arguments, namespace=namespace)
                self.assertNotEqual(done.returncode, 0, "it was accepted")
                self.assertIn(words, done.stderr)

    def test_every_value_is_in_the_schema_and_strict(self):
        schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
        loose = {"global", "config", "affinity", "tolerations", "claims", "valueFrom",
                 "ingressFrom"}

        def walk(node, path):
            if node.get("type") == "object" and path.rpartition(".")[2] not in loose:
                self.assertIn("additionalProperties", node, path)
                self.assertIsNot(node["additionalProperties"], True, path)
            for name, child in node.get("properties", {}).items():
                walk(child, f"{path}.{name}")

        walk(schema, "")

    def test_dashboards_and_consoles_arrive_whole(self):
        done = render("--set", "monitoring.consoles.enabled=true")
        self.assertEqual(done.returncode, 0, done.stderr)
        for folder, key in (("dashboards", "rubato-{}: |-"), ("consoles", "{}: |-")):
            files = sorted((CHART / folder).iterdir())
            self.assertTrue(files, folder)
            for file in files:
                begin = done.stdout.index("  " + key.format(file.name) + "\n")
                block = done.stdout[begin:].split("\n", 1)[1]
                lines = []
                for line in block.splitlines():
                    if line and not line.startswith("    "):
                        break
                    lines.append(line[4:])
                self.assertEqual("\n".join(lines).rstrip(),
                                 file.read_text("utf-8").rstrip(), file.name)

    def test_plain_manifests_are_those_of_the_chart(self):
        done = subprocess.run([ROOT / "tools" / "render_manifests", "--check"],
                              capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_notes_say_how_to_check(self):
        # `helm template` leaves the notes out: a copy of the chart has them in an object as well.
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        chart = pathlib.Path(folder) / "rubato"
        shutil.copytree(CHART, chart)
        shutil.copy(chart / "templates" / "NOTES.txt", chart / "notes.tpl")
        (chart / "templates" / "notes.yaml").write_text(
            'notes: |\n  {{- tpl (.Files.Get "notes.tpl") . | nindent 2 }}\n', "utf-8")
        for values, words in (([], "NO NAMESPACE MAY ASK FOR REALTIME YET"),
                              (["--set", "policy.realtimeNamespaces={team-a}"],
                               "Who may ask for realtime: team-a."),
                              (["--set", "policy.by=label"], "rubato.dev/allow-realtime=true"),
                              (["--set", "softwareGpu.enabled=true"], "SOFTWARE GPUs, 1 a node"),
                              (["--kube-version", "1.29.1"], "older than 1.30"),
                              (["--set", "cleanup.enabled=true"], "Rubato 0.1.0 is leaving")):
            with self.subTest(values=values):
                done = helm("template", "rubato", chart, "--namespace", "rubato-system",
                            "--show-only", "templates/notes.yaml", *values)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn(words, done.stdout)
                self.assertNotIn("<no value>", done.stdout)
                if "cleanup.enabled=true" not in values:
                    self.assertIn("helm test rubato -n rubato-system", done.stdout)
                    self.assertIn(r".status.allocatable.rubato\.dev/gpu", done.stdout)

    def test_versions_agree(self):
        project = re.search(r"project\(rubato VERSION ([0-9.]+)",
                            (ROOT / "CMakeLists.txt").read_text("utf-8")).group(1)
        chart = (CHART / "Chart.yaml").read_text("utf-8")
        self.assertIn(f'appVersion: "{project}"', chart)


def update():
    (HERE / "golden").mkdir(exist_ok=True)
    for file, options in cases():
        (HERE / "golden" / file.name).write_text(rendered(file, options), "utf-8")
        print(f"golden/{file.name}")


if __name__ == "__main__":
    HELM = helm_path()
    if HELM is None:
        sys.exit(SKIPPED)
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home
        if "--update" in sys.argv:
            update()
        else:
            unittest.main(verbosity=2)
