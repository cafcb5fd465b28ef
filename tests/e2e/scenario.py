"""The scenario: what a user does with Rubato on a cluster, step by step, and what must be seen.

Each step asserts and is timed. A failed step ends the scenario: what follows would only repeat it.
"""

import json
import os
import subprocess
import threading
import time
import traceback

import images
import node
from cluster import ADMIN, Cluster, StepFailed, wait_until


def say(text):
    print(f"e2e: {text}", flush=True)


class Memory(threading.Thread):
    """Samples what the node's processes hold, page cache apart."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._end = threading.Event()

    def run(self):
        while not self._end.wait(0.5):
            stat = dict(line.split() for line in
                        node.read("/sys/fs/cgroup/memory/memory.stat").splitlines())
            used = int(stat["total_rss"]) + int(stat.get("total_shmem", 0))
            self.peak_bytes = max(self.peak_bytes, used)

    def end(self):
        self._end.set()
        self.join()


class Scenario:
    def __init__(self, options):
        self.options = options
        self.cluster = Cluster()
        self.steps = []

    # -- Steps -----------------------------------------------------------------------------------

    def step(self, name, function):
        say(f"== {name}")
        begun = time.monotonic()
        facts = function() or {}
        seconds = time.monotonic() - begun
        self.steps.append({"name": name, "seconds": round(seconds, 1), **facts})
        for key, value in facts.items():
            say(f"   {key}: {value}")
        say(f"   ok in {seconds:.1f} s")

    def start_cluster(self):
        self.cluster.start([images.PAUSE, images.BUSYBOX], lambda text: say("   " + text))
        version = json.loads(self.cluster.kubectl("version", "--output=json"))
        return {"kubernetes": version["serverVersion"]["gitVersion"],
                "runtime": self.cluster.object("node", node.NODE_NAME)
                           ["status"]["nodeInfo"]["containerRuntimeVersion"]}

    def trivial_pod(self):
        """A pod of our own image runs, its output is read, it reaches the API server, it ends."""
        self.cluster.apply({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "trivial", "namespace": "default"},
            "spec": {"restartPolicy": "Never", "containers": [{
                "name": "main", "image": images.BUSYBOX, "imagePullPolicy": "Never",
                "command": ["sh", "-c",
                            "nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null "
                            "&& echo reached the API server"]}]}})

        def ended():
            pod = self.cluster.object("pod", "trivial", "default")
            phase = pod["status"].get("phase")
            if phase == "Failed":
                raise StepFailed("the trivial pod failed: "
                                 + self.cluster.kubectl("logs", "trivial", check=False))
            return phase == "Succeeded"

        wait_until(ended, "the trivial pod ends")
        log = self.cluster.kubectl("logs", "trivial")
        if "reached the API server" not in log:
            raise StepFailed(f"the trivial pod said: {log}")
        self.cluster.kubectl("delete", "pod", "trivial", "--now")
        return {}

    def all(self):
        yield "cluster", self.start_cluster
        yield "trivial pod", self.trivial_pod
        if self.options.cluster_only:
            return

    def run(self):
        for name, function in self.all():
            self.step(name, function)
            if name == self.options.until:
                break

    # -- The end ---------------------------------------------------------------------------------

    def explain(self):
        """Writes what the cluster knows about a failure beside the logs."""
        for name, arguments in {
                "describe-pods": ("describe", "pods", "--all-namespaces"),
                "describe-nodes": ("describe", "nodes"),
                "events": ("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"),
                "pods": ("get", "pods", "--all-namespaces", "--output=wide")}.items():
            try:
                text = self.cluster.kubectl(*arguments, check=False, timeout_s=30)
            except subprocess.TimeoutExpired:
                continue
            node.write(os.path.join(node.LOGS, f"kubectl-{name}.txt"), text)
            if name == "pods" and text:
                say(f"pods:\n{text}")

    def table(self, peak_bytes):
        say("-" * 72)
        for step in self.steps:
            say(f"{step['name']:<50} {step['seconds']:>8.1f} s")
        say("-" * 72)
        say(f"{'all steps':<50} {sum(s['seconds'] for s in self.steps):>8.1f} s")
        say(f"{'memory of the processes at most':<50} {peak_bytes >> 20:>8} MiB")


def run(options):
    os.environ["PATH"] = f"{node.BIN}:{node.ROOT}/build/tools:{os.environ['PATH']}"
    os.environ["KUBECONFIG"] = ADMIN
    os.environ["HOME"] = "/run/home"
    os.makedirs("/run/home")
    scenario = Scenario(options)
    memory = Memory()
    memory.start()
    failure = None
    try:
        scenario.run()
    except Exception as error:  # A failed step must leave the logs and the table behind.
        failure = str(error) if isinstance(error, StepFailed) else traceback.format_exc()
        say(f"FAILED: {failure}")
        scenario.explain()
    try:
        if options.keep:
            say("the cluster is kept until Ctrl-C; look into it with tests/e2e/enter")
            while True:
                time.sleep(3600)
    finally:
        memory.end()
        scenario.table(memory.peak_bytes)
        node.write(os.path.join(node.E2E, "result.json"), json.dumps({
            "failure": failure, "memory_peak_bytes": memory.peak_bytes,
            "steps": scenario.steps}, indent=1) + "\n")
        scenario.cluster.stop()
    return 1 if failure else 0
