"""A live installation without a cluster, for the tests of what watches one: the software GPU, a
scheduler with a real-time and two best-effort programs, an agent beside it, and a Prometheus that
scrapes both as a cluster's would (labels job and node), with the chart's rules and console pages.
"""

import json
import os
import pathlib
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import rig_path  # noqa: F401: finds the integration tests' rig.
import rig

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / "charts" / "rubato"

NODE = "node-1"
PERIOD_NS = 100_000_000


def get(url):
    with urllib.request.urlopen(url, timeout=rig.DEADLINE_S) as answer:
        return answer.read().decode()


class Installation:
    def __init__(self, dilation=10):
        self.rig = rig.Rig(dilation=dilation)
        self.prometheus_url = None
        self.agent_url = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self):
        world = self.rig
        self.camera = world.realtime(
            "camera", [rig.TENANT, "periodic", "--period-ns", PERIOD_NS, "--jobs", 1_000_000,
                       "--kernels", 4, "--kernel-ns", 300_000],
            "--memory", "2GiB", "--deadline", "60ms", period_ns=PERIOD_NS)
        self.camera.expect("ready")
        self.trainers = [
            world.best_effort("trainer", [rig.TENANT, "flood", "--kernel-ns", 400_000,
                                          "--depth", 8], "--memory", "8GiB"),
            world.best_effort("batch", [rig.TENANT, "flood", "--kernel-ns", 150_000]),
        ]
        for trainer in self.trainers:
            trainer.expect("ready")
        self.camera.say("go")
        self.camera.expect("job")
        self.scheduler_url = f"http://{world.scheduler()['metrics_address']}/metrics"
        self._start_agent()

    def _start_agent(self):
        """An agent without a cluster: it exports what it exports on a node."""
        agent = os.path.join(rig.BIN, "rubato-agent")
        if not os.path.exists(agent):
            return
        world = self.rig
        for folder in ("host", "kubelet/device-plugins", "kubelet/pod-resources"):
            os.makedirs(os.path.join(world.dir, folder))
        settings = {
            "hostRoot": os.path.join(world.dir, "host"),
            "kubelet.rootDirectory": os.path.join(world.dir, "kubelet"),
            "scheduler.runtimeDirectory": world.runtime,
            "gpu.source": "software",
            "gpu.fakeDevices": "1",
            "softwareGpu.socketDirectory": world.env["RUBATO_SOFTGPU_DIR"],
            "softwareGpu.libraryDirectory": os.path.join(rig.LIB, "softgpu"),
            "kubernetes.apiServer": "none",
            "kubernetes.nodeName": NODE,
        }
        config = os.path.join(world.dir, "agent.yaml")
        with open(config, "w", encoding="utf-8") as file:
            file.write("version: v1\nmetrics: {address: \"127.0.0.1:0\"}\n")
        words = [f"--set={key}={value}" for key, value in settings.items()]
        log_path = os.path.join(world.dir, "agent.log")
        with open(log_path, "w", encoding="utf-8") as log:
            self.agent = subprocess.Popen([agent, "--config", config, *words], env=world.env,
                                          cwd=world.dir, stdin=subprocess.DEVNULL, stdout=log,
                                          stderr=log)

        def address():
            with open(log_path, encoding="utf-8") as log:
                text = log.read()
            if self.agent.poll() is not None:
                raise AssertionError(f"rubato-agent ended with {self.agent.returncode}: {text}")
            found = re.search(r"127\.0\.0\.1:([1-9][0-9]*)", text)
            return found and found.group(0)

        self.agent_url = f"http://{rig.wait_until(address, 'the agent serves metrics')}/metrics"

    def start_prometheus(self, scrape_interval="1s"):
        folder = os.path.join(self.rig.dir, "prometheus")
        os.makedirs(folder)
        jobs = [("rubato-scheduler", self.scheduler_url)]
        if self.agent_url:
            jobs.append(("rubato-agent", self.agent_url))
        config = {
            "global": {"scrape_interval": scrape_interval, "evaluation_interval": scrape_interval},
            "rule_files": [str(CHART / "rules" / "rubato.yaml")],
            "scrape_configs": [{
                "job_name": job,
                "honor_labels": True,
                "static_configs": [{"targets": [urllib.parse.urlparse(url).netloc],
                                    "labels": {"node": NODE}}],
            } for job, url in jobs],
        }
        # JSON is YAML.
        path = os.path.join(folder, "prometheus.yml")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        log_path = os.path.join(folder, "log")
        with open(log_path, "w", encoding="utf-8") as log:
            self.prometheus = subprocess.Popen(
                ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder}/data",
                 "--web.listen-address=127.0.0.1:0",
                 f"--web.console.templates={CHART / 'consoles'}",
                 f"--web.console.libraries={CHART / 'consoles'}"],
                env=self.rig.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def address():
            with open(log_path, encoding="utf-8") as log:
                text = log.read()
            if self.prometheus.poll() is not None:
                raise AssertionError(f"prometheus ended: {text[-2000:]}")
            found = re.search(r'msg="Listening on" address=(127\.0\.0\.1:[0-9]+)', text)
            return found and found.group(1)

        self.prometheus_url = f"http://{rig.wait_until(address, 'Prometheus listens')}"

        def ready():
            try:
                return get(f"{self.prometheus_url}/-/ready")
            except urllib.error.HTTPError:
                return None

        rig.wait_until(ready, "Prometheus is ready")

    def ask(self, expression):
        """The result of an instant query: a list of (labels, value)."""
        query = urllib.parse.urlencode({"query": expression})
        answer = json.loads(get(f"{self.prometheus_url}/api/v1/query?{query}"))
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def console(self, page, **params):
        """Status and text of a console page."""
        url = f"{self.prometheus_url}/consoles/{page}?{urllib.parse.urlencode(params)}"
        try:
            return 200, get(url)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def close(self):
        for name in ("prometheus", "agent"):
            process = getattr(self, name, None)
            if process is not None:
                process.kill()
                process.wait()
        self.rig.close()
