"""A real Prometheus that finds Rubato's pods by itself and loads the chart's rules."""

import json
import os
import urllib.parse
import urllib.request

import node
from cluster import ADMIN, DIRECTORY, Part, answers

ADDRESS = "127.0.0.1:9090"
RULES = os.path.join(node.ROOT, "charts", "rubato", "rules", "rubato.yaml")


def part():
    config = os.path.join(DIRECTORY, "prometheus.yaml")
    node.write(config, json.dumps({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [RULES],
        "scrape_configs": [{
            # As the chart's monitors ask: every port of Rubato's pods that is named for metrics, and
            # the series' own labels win.
            "job_name": "rubato", "honor_labels": True,
            "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": ADMIN}],
            "relabel_configs": [
                {"source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_name",
                                   "__meta_kubernetes_pod_container_port_name"],
                 "regex": "rubato;(agent-)?metrics", "action": "keep"},
                {"source_labels": ["__meta_kubernetes_pod_container_port_name"],
                 "regex": "metrics", "target_label": "job", "replacement": "rubato-scheduler"},
                {"source_labels": ["__meta_kubernetes_pod_container_port_name"],
                 "regex": "agent-metrics", "target_label": "job", "replacement": "rubato-agent"},
                {"source_labels": ["__meta_kubernetes_pod_node_name"], "target_label": "node"}]}]}))
    return Part("prometheus", [
        "prometheus", f"--config.file={config}", "--storage.tsdb.path=/var/lib/prometheus",
        f"--web.listen-address={ADDRESS}"], lambda: answers(f"http://{ADDRESS}/-/ready"))


def _get(path):
    with urllib.request.urlopen(f"http://{ADDRESS}{path}", timeout=10) as answer:
        return json.load(answer)["data"]


def query(expression):
    """The result's series: a list of (labels, value)."""
    data = _get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    return [(series["metric"], float(series["value"][1])) for series in data["result"]]


def targets():
    return _get("/api/v1/targets?state=active")["activeTargets"]


def rules():
    return [rule for group in _get("/api/v1/rules")["groups"] for rule in group["rules"]]
