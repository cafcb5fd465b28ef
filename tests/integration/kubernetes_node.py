"""A Kubernetes node for one test: a stand-in kubelet and API server, and Rubato's own two daemons.

What a container runtime would do with the kubelet's answer is done here by hand: the program is
started with the mounted shim preloaded and the mounted socket directory named, on the host's own
paths.
"""

import json
import os
import subprocess
import urllib.error
import urllib.request

import rig

RESOURCE = "rubato.dev/gpu"
AGENT = os.path.join(rig.BIN, "rubato-agent")
SCHEDULER = os.path.join(rig.BIN, "rubato-scheduler")


class JsonProcess:
    """A stand-in that takes one JSON object a line and answers each with one."""

    def __init__(self, world, argv):
        self.program = world.start(argv)

    def ask(self, **command):
        answer = json.loads(self.program.ask(json.dumps(command)))
        return answer

    def must(self, **command):
        answer = self.ask(**command)
        if not answer.get("ok"):
            raise AssertionError(f"{command}: {answer}")
        return answer


class Node:
    def __init__(self, world, config="", realtime_namespaces=("trusted",), flags=()):
        self.world = world
        self.kubelet_dir = os.path.join(world.dir, "kubelet")
        self.host_root = os.path.join(world.dir, "host")
        self.config_path = os.path.join(world.dir, "agent.yaml")
        os.makedirs(self.kubelet_dir)
        self.kubelet = JsonProcess(world, [os.path.join(rig.BIN, "fake-kubelet"), self.kubelet_dir])
        api_dir = os.path.join(world.dir, "api")
        os.makedirs(api_dir)
        self.api = JsonProcess(world, [os.path.join(rig.BIN, "fake-apiserver"),
                                       "--directory", api_dir, "--token", "secret"])
        self.api_ready = json.loads(self.api.program.line())
        self.config = config
        self.flags = list(flags)
        self.realtime_namespaces = list(realtime_namespaces)
        self.write_config()
        installed = subprocess.run(
            [AGENT, "install-shim", "--config", self.config_path, "--from", rig.LIB],
            env=world.env, text=True, capture_output=True, timeout=rig.DEADLINE_S)
        if installed.returncode != 0:
            raise AssertionError(f"install-shim: {installed.stderr}")
        self.kubelet.must(do="start")
        self.scheduler = None
        self.agent = None

    def write_config(self, more=""):
        with open(self.config_path + ".new", "w", encoding="utf-8") as file:
            file.write(f"""version: v1
hostRoot: {self.host_root}
kubelet: {{rootDirectory: {self.kubelet_dir}}}
scheduler: {{runtimeDirectory: {self.world.runtime}}}
gpu: {{source: software, fakeDevices: 1}}
softwareGpu: {{socketDirectory: {self.world.env['RUBATO_SOFTGPU_DIR']}}}
kubernetes:
  nodeName: node-1
  apiServer: {self.api_ready['url']}
  caFile: {self.api_ready['ca_file']}
  tokenFile: {self.api_ready['token_file']}
metrics: {{address: "127.0.0.1:0"}}
policy: {{realtimeNamespaces: {json.dumps(self.realtime_namespaces)}}}
log: {{level: debug}}
{self.config}
{more}
""")
        os.rename(self.config_path + ".new", self.config_path)

    # -- Daemons -----------------------------------------------------------------------------------

    def start_scheduler(self):
        self.scheduler = self.world.start(
            [SCHEDULER, "--runtime-dir", self.world.runtime,
             "--attach-directory", os.path.join(self.host_root, "alloc"),
             "--metrics-address", "127.0.0.1:0"])

    def start_agent(self):
        self.agent = self.world.start([AGENT, "--config", self.config_path, *self.flags])

        def address():
            for line in self.agent.errors.splitlines():
                _, mark, rest = line.partition("; metrics=")
                if mark:
                    return rest.strip()
            if self.agent.process.poll() is not None:
                raise AssertionError(f"the agent ended: {self.agent.errors}")
            return None

        self.address = rig.wait_until(address, "the agent serves")

    def start(self):
        self.start_scheduler()
        self.start_agent()
        self.wait_ready()
        return self

    def get(self, path):
        """Status and body of a page of the agent's."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}",
                                        timeout=rig.DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait_ready(self):
        rig.wait_until(lambda: self.get("/readyz")[0] == 200, "the agent is ready")

    def metrics(self):
        samples = {}
        for line in self.get("/metrics")[1].splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
        return samples

    def metric(self, name):
        return self.metrics().get(name)

    def wait_metric(self, name, value):
        rig.wait_until(lambda: self.metric(name) == value, f"{name} is {value}")

    # -- Pods --------------------------------------------------------------------------------------

    def put_pod(self, name, slots, namespace="trusted", phase="Pending", containers=None,
                init_containers=None, **annotations):
        def container(entry):
            return {"name": entry[0], "image": "x",
                    "resources": {"limits": {RESOURCE: str(entry[1])}}}

        spec = {"nodeName": "node-1",
                "containers": [container(c) for c in containers or [("main", slots)]]}
        if init_containers:
            spec["initContainers"] = [container(c) for c in init_containers]
        self.api.must(op="put-pod", pod={
            "metadata": {"name": name, "namespace": namespace,
                         "annotations": {f"rubato.dev/{key.replace('_', '-')}": value
                                         for key, value in annotations.items()}},
            "spec": spec, "status": {"phase": phase}})

    def annotate(self, name, namespace="trusted", **annotations):
        self.api.must(op="patch-pod", namespace=namespace, name=name,
                      patch={"metadata": {"annotations": {
                          f"rubato.dev/{key.replace('_', '-')}": value
                          for key, value in annotations.items()}}})

    def admit(self, name, slots, namespace="trusted", container="main"):
        return self.kubelet.must(do="admit", namespace=namespace, pod=name, container=container,
                                 resource=RESOURCE, count=slots)

    def prestart(self, name, namespace="trusted", container="main"):
        return self.kubelet.ask(do="prestart", namespace=namespace, pod=name, container=container)

    def run_pod(self, name, slots, namespace="trusted", **annotations):
        """A pod up to the start of its container; returns the kubelet's answer."""
        self.put_pod(name, slots, namespace, **annotations)
        answer = self.admit(name, slots, namespace)["answer"]
        started = self.prestart(name, namespace)
        if not started.get("ok"):
            raise AssertionError(f"{name} was refused: {started}")
        return answer

    def delete_pod(self, name, namespace="trusted"):
        self.api.must(op="delete-pod", namespace=namespace, name=name)
        self.kubelet.must(do="remove-pod", namespace=namespace, pod=name)

    @staticmethod
    def host_path(answer, container_path):
        for mount in answer["mounts"]:
            if mount["container_path"] == container_path:
                return mount["host_path"]
        raise AssertionError(f"nothing is mounted at {container_path}: {answer['mounts']}")

    def start_in(self, answer, argv):
        """Starts a program as in the container that was given `answer`."""
        socket = os.path.join(self.host_path(answer, "/run/rubato"), "attach.sock")
        shim = self.host_path(answer, "/usr/local/lib/rubato/librubato-cuda.so")
        with open(self.host_path(answer, "/etc/ld.so.preload"), encoding="ascii") as preload:
            assert preload.read() == "/usr/local/lib/rubato/librubato-cuda.so\n"
        env = dict(self.world.env, LD_PRELOAD=shim, RUBATO_SOCKET=socket)
        return self.world.start(argv, env=env)

    def tenant(self, name, container="main"):
        return self.world.tenant(f"{name}/{container}")

    def wait_tenant(self, name, condition=lambda tenant: True, what="", container="main"):
        def look():
            tenant = self.tenant(name, container)
            return tenant if tenant is not None and condition(tenant) else None

        return rig.wait_until(look, f"tenant {name}: {what or 'is there'}")

    def wait_event(self, pod, reason, message=""):
        return self.api.must(op="wait-event", pod=pod, reason=reason, message=message,
                             timeout=rig.DEADLINE_S)["event"]

    def events(self):
        return self.api.must(op="events")["events"]
