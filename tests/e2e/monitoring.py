"""A real Prometheus that scrapes Rubato's pods and loads the chart's rules.

Debian's Prometheus is built without Kubernetes discovery, so the scenario writes the pods' addresses
into the file that Prometheus watches, with the labels that the chart's PodMonitor would give.
"""

import json
import os
import urllib.parse
import urllib.request

import node
from cluster import DIRECTORY, Part, answers

ADDRESS = "127.0.0.1:9090"
RULES = os.path.join(node.ROOT, "charts", "rubato", "rules", "rubato.yaml")
JOBS = {"metrics": "rubato-scheduler", "agent-metrics": "rubato-agent"}


def part():
    config = os.path.join(DIRECTORY, "prometheus.yaml")
    node.write(config, json.dumps({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [RULES],
        "scrape_configs": [{
            # The series' own namespace, pod and container win over the scraped pod's.
            "job_name": "rubato", "honor_labels": True,
            "file_sd_configs": [{"files": [os.path.join(DIRECTORY, "targets.json")]}]}]}))
    return Part("prometheus", [
        "prometheus", f"--config.file={config}", "--storage.tsdb.path=/var/lib/prometheus",
        f"--web.listen-address={ADDRESS}"], lambda: answers(f"http://{ADDRESS}/-/ready"))


def point_at(pods):
    """Every port of the pods that is named for metrics becomes a target."""
    groups = []
    for pod in pods:
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", []):
                if port.get("name") in JOBS:
                    groups.append({
                        "targets": [f"{pod['status']['podIP']}:{port['containerPort']}"],
                        "labels": {"job": JOBS[port["name"]], "node": pod["spec"]["nodeName"]}})
    path = os.path.join(DIRECTORY, "targets.json")
    node.write(path + ".new", json.dumps(groups))
    os.rename(path + ".new", path)


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
