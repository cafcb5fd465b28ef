"""The scenario: what a user does with Rubato on a cluster, step by step, and what must be seen.

Each step asserts and is timed. A failed step ends the scenario: what follows would only repeat it.
"""

import glob
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import traceback

import images
import monitoring
import node
import tenants
from cluster import ADMIN, Cluster, StepFailed, wait_until

CHART = os.path.join(node.ROOT, "charts", "rubato")
SYSTEM = "rubato-system"
RESOURCE = "rubato.dev/gpu"
SLOTS = 10
# Later than this after its release, a job's program was kept from the cores.
WAKE_NS = tenants.PERIOD_NS // 20
BATCH_PODS = ("batch-a", "batch-b")
ALL_PODS = (("realtime", tenants.REALTIME_NAMESPACE),
            *((name, tenants.BEST_EFFORT_NAMESPACE) for name in BATCH_PODS))


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
        self.failures = []
        self.prometheus = None
        self.undisturbed = None

    # -- The cluster -----------------------------------------------------------------------------------

    def step(self, name, function):
        say(f"== {name}")
        begun = time.monotonic()
        try:
            try:
                facts = function() or {}
            finally:
                self.keep_pod_logs()
        except Exception as error:
            if not self.options.go_on:
                raise
            text = str(error) if isinstance(error, StepFailed) else traceback.format_exc()
            say(f"   FAILED, going on: {text}")
            self.failures.append(f"{name}: {text}")
            return
        seconds = time.monotonic() - begun
        self.steps.append({"name": name, "seconds": round(seconds, 1), **facts})
        for key, value in facts.items():
            say(f"   {key}: {value}")
        say(f"   ok in {seconds:.1f} s")

    @staticmethod
    def keep_pod_logs():
        """Copies what the pods have said: the kubelet deletes a pod's log with the pod."""
        for path in glob.glob("/var/log/pods/*/*/*.log"):
            target = os.path.join(node.LOGS, "pods", os.path.relpath(path, "/var/log/pods"))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                shutil.copy(path, target)
            except FileNotFoundError:
                pass

    def start_cluster(self):
        self.cluster.start([images.PAUSE, images.BUSYBOX], lambda text: say("   " + text))
        version = json.loads(self.cluster.kubectl("version", "--output=json"))
        runtime = self.cluster.object("node", node.NODE_NAME)["status"]["nodeInfo"][
            "containerRuntimeVersion"]
        facts = {"kubernetes": version["serverVersion"]["gitVersion"], "runtime": runtime}
        numbers = [int(word) for word in re.findall(r"\d+", runtime)[:3]]
        if numbers < [1, 7, 2]:
            facts["not tested"] = ("CDI: it needs containerd 1.7.2 or later, and the software GPU "
                                   "needs no device injection")
        return facts

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

    # -- Rubato: what it says ----------------------------------------------------------------------

    def helm(self, *arguments):
        return node.run(os.path.join(node.ROOT, "build", "tools", "helm"), *arguments)

    def helm_settings(self, image=images.RUBATO):
        repository, _, tag = image.rpartition(":")
        return [f"--set={setting}" for setting in (
            f"image.repository={repository}", f"image.tag={tag}", "image.pullPolicy=Never",
            "softwareGpu.enabled=true", f"softwareGpu.timeDilation={tenants.DILATION}",
            # The simulated GPU's own speed: the noise of the cores is no part of what is tried.
            "softwareGpu.resources.requests.cpu=500m",
            f"policy.realtimeNamespaces={{{tenants.REALTIME_NAMESPACE}}}")]

    def status(self):
        """`rubato status` as an administrator calls it on the node; None without a scheduler."""
        result = subprocess.run(
            [os.path.join(images.FOLDERS, "rubato", "usr", "bin", "rubato"), "status",
             "--output", "json"], text=True, capture_output=True, check=False,
            env={**os.environ, "RUBATO_RUNTIME_DIR": "/run/rubato"})
        try:
            document = json.loads(result.stdout)
        except ValueError:
            return None
        return document if document.get("scheduler") else None

    def tenant(self, pod):
        """What the scheduler knows of the pod; None if it knows nothing."""
        document = self.status()
        for tenant in document["tenants"] if document else []:
            if tenant["pod"] == pod:
                return tenant
        return None

    def agent_pod(self):
        pods = [pod for pod in self.cluster.objects(
                    "pods", SYSTEM, "app.kubernetes.io/component=agent")
                if "deletionTimestamp" not in pod["metadata"]]
        return pods[0] if len(pods) == 1 else None

    def slots_of_node(self, kind="allocatable"):
        return int(self.cluster.object("node", node.NODE_NAME)["status"][kind].get(RESOURCE, "0"))

    def restarts(self, container):
        for status in self.agent_pod()["status"].get("containerStatuses", []):
            if status["name"] == container:
                return status["restartCount"]
        return 0

    def agent_ready(self):
        pod = self.agent_pod()
        conditions = pod["status"].get("conditions", []) if pod else []
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def events(self, pod, namespace):
        """What Rubato's agent said of the pod, as `kubectl describe` shows it."""
        return [f"{event['reason']}: {event['message']}"
                for event in self.cluster.objects("events", namespace)
                if event["involvedObject"].get("name") == pod
                and event.get("source", {}).get("component", "").startswith("rubato")]

    def wait_event(self, pod, namespace, *words):
        """Waits for an event of Rubato that holds all the words, in the output of describe."""
        def find():
            for event in self.events(pod, namespace):
                if all(word in event for word in words):
                    return event
            return None

        event = wait_until(find, f"an event of {pod} says {words}")
        described = self.cluster.kubectl("describe", "pod", pod, "--namespace", namespace)
        if event.split(": ", 1)[1][:40] not in described:
            raise StepFailed(f"kubectl describe does not show: {event}")
        return event

    def pod_running(self, pod, namespace):
        found = self.cluster.object("pod", pod, namespace)
        phase = found["status"].get("phase") if found else None
        if phase in ("Failed", "Succeeded"):
            raise StepFailed(f"{pod} ended: " + self.cluster.kubectl(
                "logs", pod, "--namespace", namespace, "--tail=20", check=False))
        return phase == "Running"

    def pod(self, name, namespace):
        return self.cluster.object("pod", name, namespace)

    def delete_pod(self, name, namespace):
        self.cluster.kubectl("delete", "pod", name, "--namespace", namespace)

    # -- Rubato: the spans in which jobs are counted -----------------------------------------------

    def span(self, function, least_s=0.0):
        """Runs the function while the tenants work; what the real-time pod's jobs were meanwhile."""
        from_ns = time.monotonic_ns()
        begun = {name: tenants.ops(self.pod(name, tenants.BEST_EFFORT_NAMESPACE))
                 for name in BATCH_PODS}
        facts = function() or {}
        time.sleep(max(0.0, least_s - (time.monotonic_ns() - from_ns) / 1e9))
        to_ns = time.monotonic_ns()
        pod = self.pod("realtime", tenants.REALTIME_NAMESPACE)

        # The last job of the span must have been done, and said so.
        wait_until(lambda: tenants.jobs(pod, to_ns), "the real-time pod does jobs")
        jobs = tenants.jobs(pod, from_ns, to_ns)
        expected = (to_ns - from_ns) // tenants.PERIOD_NS
        if len(jobs) < expected - 1:
            raise StepFailed(f"{len(jobs)} real-time jobs in a span of {expected} periods")
        for name in BATCH_PODS:
            if tenants.ops(self.pod(name, tenants.BEST_EFFORT_NAMESPACE)) <= begun[name]:
                raise StepFailed(f"{name} made no progress")
        # A job whose program was woken late is the cores' doing, which also simulate the GPU: counted,
        # and not judged.
        judged = [job for job in jobs if job.first_ns - job.release_ns < WAKE_NS]
        if len(judged) < len(jobs) / 2:
            raise StepFailed(f"{len(jobs) - len(judged)} of {len(jobs)} jobs were woken late: this "
                             "machine is too busy to tell anything")
        responses = sorted(job.response_ns for job in judged)
        usual = self.undisturbed["response_ms_max"] * 1e6 if self.undisturbed else responses[-1]
        return {**facts, "jobs": len(jobs), "woken_late": len(jobs) - len(judged),
                "late": sum(response > tenants.DEADLINE_NS for response in responses),
                "slower_than_undisturbed": sum(response > usual for response in responses),
                "response_ms_median": round(responses[len(responses) // 2] / 1e6, 1),
                "response_ms_max": round(responses[-1] / 1e6, 1),
                "response_ms_slowest": [round(response / 1e6, 1) for response in responses[-5:]]}

    def not_later(self, facts):
        """Not more jobs may be late than in the undisturbed span, but for one in fifty: what this
        machine does to a simulated GPU, with a cluster beside it, is no promise of Rubato's."""
        allowed = (self.undisturbed["late"] / self.undisturbed["jobs"] + 0.02) * facts["jobs"]
        if facts["late"] > allowed:
            raise StepFailed(f"{facts['late']} of {facts['jobs']} jobs were late: {facts}; "
                             f"undisturbed: {self.undisturbed}")
        return facts

    # -- Rubato: steps -----------------------------------------------------------------------------

    def install(self):
        for image in (images.RUBATO, images.RUBATO_NEXT, images.TENANT):
            images.load(image)
        self.helm("install", "rubato", CHART, "--namespace", SYSTEM, "--create-namespace",
                  "--wait", "--timeout=3m", *self.helm_settings())
        wait_until(lambda: self.slots_of_node() == SLOTS, f"the node offers {SLOTS} slots")
        wait_until(self.agent_ready, "the agent is ready")
        for namespace in (tenants.REALTIME_NAMESPACE, tenants.BEST_EFFORT_NAMESPACE):
            self.cluster.kubectl("create", "namespace", namespace)
        status = wait_until(self.status, "rubato status answers on the node")
        return {"slots": self.slots_of_node(), "gpus": len(status["devices"]),
                "scheduler": status["scheduler"]["version"]}

    def helm_test(self):
        self.helm("test", "rubato", "--namespace", SYSTEM, "--timeout=2m")
        self.cluster.kubectl("delete", "pod", "--namespace", SYSTEM, "--selector",
                             "app.kubernetes.io/component=test", "--wait=true")

    def share(self):
        """A real-time and two best-effort pods share one GPU, each in its class, with its slots."""
        self.cluster.apply(tenants.realtime(slots=3),
                           tenants.best_effort("batch-a", 3),
                           tenants.best_effort("batch-b", 2, {"memory": "2Gi"}, user=1000))
        for name, namespace in ALL_PODS:
            wait_until(lambda: self.pod_running(name, namespace), f"{name} runs")

        def attached():
            found = [self.tenant(name) for name, _ in ALL_PODS]
            return all(tenant and tenant["sessions"] for tenant in found)

        wait_until(attached, "the three programs are attached")
        facts = {}
        for (name, namespace), granted, slots in zip(
                ALL_PODS, ("realtime", "best-effort", "best-effort"), (3, 3, 2)):
            tenant = self.tenant(name)
            if (tenant["namespace"], tenant["container"], tenant["class"]) != \
                    (namespace, "main", granted):
                raise StepFailed(f"{name} is known as {tenant}")
            if tenant["share_permille"] != slots * 1000 // SLOTS:
                raise StepFailed(f"{name} holds {tenant['share_permille']} permille, "
                                 f"not {slots} of {SLOTS} slots")
            facts[name] = f"{granted}, {slots} slots, limit {tenant['limit_bytes'] >> 20} MiB"
        if self.tenant("batch-b")["limit_bytes"] != 2 << 30:
            raise StepFailed("batch-b's annotated memory limit is not its limit")
        realtime = self.tenant("realtime")
        if (realtime["period_ns"], realtime["deadline_ns"]) != \
                (tenants.PERIOD_NS, tenants.DEADLINE_NS):
            raise StepFailed(f"period and deadline are not those annotated: {realtime}")
        facts["event"] = self.wait_event("realtime", tenants.REALTIME_NAMESPACE, "real-time")
        wait_until(lambda: tenants.jobs(self.pod("realtime", tenants.REALTIME_NAMESPACE)),
                   "the real-time pod does jobs")
        return facts

    def refused(self):
        """What does not fit: by right, by the kube-scheduler's slots, by the admission test."""
        facts = {}
        # A namespace without the right: the API server says it.
        stranger = tenants.realtime("stranger", slots=1, namespace=tenants.BEST_EFFORT_NAMESPACE)
        try:
            self.cluster.apply(stranger)
        except StepFailed as error:
            facts["forbidden"] = str(error).splitlines()[-1][-200:]
            if "may not ask for" not in str(error):
                raise
        else:
            raise StepFailed("a real-time pod of a namespace without the right was taken")
        # More slots than are left.
        self.cluster.apply(tenants.best_effort("too-big", 3))

        def unschedulable():
            conditions = self.pod("too-big", tenants.BEST_EFFORT_NAMESPACE)["status"].get(
                "conditions", [])
            return next((c["message"] for c in conditions
                         if c.get("reason") == "Unschedulable"), None)

        facts["no slots"] = wait_until(unschedulable, "too-big is unschedulable")
        self.delete_pod("too-big", tenants.BEST_EFFORT_NAMESPACE)
        # Slots, but its promise cannot be kept beside the admitted one: a deadline that is shorter
        # than what stands in its way.
        self.cluster.apply(tenants.realtime("hopeless", slots=2, period_ns=2_000_000,
                                            deadline_ns=1_000_000))
        facts["does not fit"] = self.wait_event("hopeless", tenants.REALTIME_NAMESPACE,
                                                "best-effort")
        wait_until(lambda: self.pod_running("hopeless", tenants.REALTIME_NAMESPACE),
                   "hopeless runs as best-effort")
        tenant = wait_until(lambda: self.tenant("hopeless"), "the scheduler knows hopeless")
        if tenant["class"] != "best-effort":
            raise StepFailed(f"hopeless is {tenant['class']}")
        self.delete_pod("hopeless", tenants.REALTIME_NAMESPACE)
        wait_until(lambda: not self.tenant("hopeless"), "hopeless is forgotten")
        return facts

    def limited(self):
        """A pod gets the device memory that it was promised and not more, and is told."""
        self.cluster.apply(tenants.hoarder("hoarder", "1Gi", 512 << 20, 1 << 30))

        def answers():
            lines = tenants.log_lines(self.pod("hoarder", tenants.BEST_EFFORT_NAMESPACE))
            return lines[1:] if lines[:1] == ["ready"] and len(lines) >= 3 else None

        wait_until(lambda: self.pod_running("hoarder", tenants.BEST_EFFORT_NAMESPACE),
                   "hoarder runs")
        said = wait_until(answers, "hoarder says what it got")
        out_of_memory = "error 2"
        if not said[0].startswith("ok") or said[1] != out_of_memory:
            raise StepFailed(f"asked for 0.5 and 1 GiB of 1 GiB: {said}")
        event = self.wait_event("hoarder", tenants.BEST_EFFORT_NAMESPACE, "MemoryLimitReached")
        self.delete_pod("hoarder", tenants.BEST_EFFORT_NAMESPACE)
        wait_until(lambda: not self.tenant("hoarder"), "hoarder is forgotten")
        return {"event": event}

    def watched(self):
        """Prometheus finds the pods, and the series carry the tenants' labels."""
        monitoring.point_at([self.agent_pod()])
        self.prometheus = monitoring.part()
        self.prometheus.start()
        labels = f'namespace="{tenants.REALTIME_NAMESPACE}",pod="realtime",container="main"'

        def jobs():
            found = monitoring.query(f"rubato_jobs_total{{{labels}}}")
            return found if found and found[0][1] > 0 else None

        found = wait_until(jobs, "rubato_jobs_total has the real-time pod's labels and counts")
        wait_until(lambda: {target["labels"]["job"] for target in monitoring.targets()
                            if target["health"] == "up"} == {"rubato-agent", "rubato-scheduler"},
                   "agent and scheduler are scraped")
        granted = {series["pod"]: series["class"]
                   for series, _ in monitoring.query("rubato_tenant_admission")}
        if granted != {"realtime": "realtime", "batch-a": "best-effort", "batch-b": "best-effort"}:
            raise StepFailed(f"rubato_tenant_admission: {granted}")
        registered = monitoring.query(f'rubato_kubelet_registered{{resource="{RESOURCE}"}}')
        if [value for _, value in registered] != [1.0]:
            raise StepFailed(f"rubato_kubelet_registered: {registered}")
        # A rule is "unknown" until it was evaluated for the first time.
        rules = wait_until(lambda: [rule for rule in monitoring.rules()
                                    if rule["health"] != "unknown"], "rules are evaluated")
        bad = [rule["name"] for rule in rules if rule["health"] != "ok"]
        if bad:
            raise StepFailed(f"rules that fail: {bad}")
        firing = sorted({rule["name"] for rule in rules if rule.get("state") == "firing"})
        return {"series": found[0][0], "rules": len(rules), "alerts firing": firing}

    def annotated(self):
        """A changed annotation takes effect on the running program, within a second."""
        def change(words, done):
            begun = time.monotonic()
            self.cluster.kubectl("annotate", "pod", "realtime", "--overwrite", "--namespace",
                                 tenants.REALTIME_NAMESPACE, *words)
            written = time.monotonic()
            wait_until(done, f"{words} takes effect", deadline_s=30, poll_s=0.02)
            return round(time.monotonic() - written, 2), round(time.monotonic() - begun, 2)

        longer_ns = tenants.DEADLINE_NS + 20_000_000
        after, _ = change([f"rubato.dev/deadline={longer_ns // 1_000_000}ms"],
                          lambda: self.tenant("realtime")["deadline_ns"] == longer_ns)
        change([f"rubato.dev/deadline={tenants.DEADLINE_NS // 1_000_000}ms"],
               lambda: self.tenant("realtime")["deadline_ns"] == tenants.DEADLINE_NS)
        if after > 1.0:
            raise StepFailed(f"the annotation took effect only after {after} s")
        return {"seconds to effect": after}

    @staticmethod
    def cost(program):
        """Processor seconds so far, and resident MiB, of one of Rubato's programs."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if not node.read(f"/proc/{pid}/cmdline").split("\0")[0].endswith("/" + program):
                    continue
                fields = node.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
                pages = int(node.read(f"/proc/{pid}/statm").split()[1])
            except OSError:
                continue
            ticks = int(fields[11]) + int(fields[12])
            return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") >> 20
        raise StepFailed(f"no process of {program} is there")

    def undisturbed_span(self):
        programs = ("rubato-agent", "rubato-scheduler")
        begun = time.monotonic()
        before = {program: self.cost(program)[0] for program in programs}
        facts = self.span(lambda: None, least_s=30)
        seconds = time.monotonic() - begun
        for program in programs:
            used, resident = self.cost(program)
            facts[program] = (f"{100 * (used - before[program]) / seconds:.1f} % of a core, "
                              f"{resident} MiB")
        self.undisturbed = facts
        return facts

    def kubelet_restart(self):
        def restart():
            kubelet = self.cluster.parts["kubelet"]
            kubelet.stop()
            registrations = self.registrations()
            kubelet.start()
            healthy = time.monotonic()
            wait_until(lambda: self.registrations() > registrations,
                       "the plugin is registered again", poll_s=0.02)
            registered = round(time.monotonic() - healthy, 2)
            self.cluster.wait_node_ready()
            wait_until(lambda: self.slots_of_node() == SLOTS, "the slots are back")
            return {"seconds from healthy to registered": registered}

        facts = self.not_later(self.span(restart, least_s=10))
        for name, namespace in ALL_PODS:
            if any(status["restartCount"] for status in
                   self.pod(name, namespace)["status"]["containerStatuses"]):
                raise StepFailed(f"{name} was restarted")
        return facts

    def registrations(self):
        """How often the kubelet's log says that our plugin registered."""
        log = node.read(self.cluster.parts["kubelet"].log_path)
        return sum("Got registration request from device plugin" in line and RESOURCE in line
                   for line in log.splitlines())

    def sessions(self):
        """Each attached program and when it attached: what must not change if nothing noticed."""
        document = self.status()
        if document is None:
            return None
        return sorted((tenant["pod"], session["attached_ns"])
                      for tenant in document["tenants"] for session in tenant["session_list"])

    def _attached_again(self, old_epoch):
        """Waits for another scheduler with all three programs; seconds from its start to the last."""
        def complete():
            document = self.status()
            if document is None or document["scheduler"]["epoch"] == old_epoch:
                return None
            if all(self.known(document, name) for name, _ in ALL_PODS):
                return document
            return None

        document = wait_until(complete, "the programs are attached to the new scheduler", poll_s=0.05)
        last_ns = max(session["attached_ns"] for tenant in document["tenants"]
                      for session in tenant["session_list"])
        seconds = (last_ns - document["scheduler"]["started_ns"]) / 1e9
        classes = {tenant["pod"]: tenant["class"] for tenant in document["tenants"]}
        if classes != {"realtime": "realtime", "batch-a": "best-effort", "batch-b": "best-effort"}:
            raise StepFailed(f"classes after the replacement: {classes}")
        if seconds > 2:
            raise StepFailed(f"the programs were attached again only after {seconds:.2f} s")
        return round(seconds, 2)

    @staticmethod
    def known(document, pod):
        return any(tenant["pod"] == pod and tenant["session_list"]
                   for tenant in document["tenants"])

    def _kill(self, program):
        """Kills the container's process, as a crash would end it."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = node.read(f"/proc/{pid}/cmdline").split("\0")
            except OSError:
                continue
            if words[0].endswith("/" + program):
                os.kill(int(pid), signal.SIGKILL)
                return
        raise StepFailed(f"no process of {program} is there to be killed")

    def agent_killed(self):
        before = self.sessions()
        restarts = self.restarts("agent")

        def kill():
            self._kill("rubato-agent")
            begun = time.monotonic()
            wait_until(lambda: self.restarts("agent") > restarts and self.agent_ready(),
                       "the agent is back and ready")
            return {"seconds to ready": round(time.monotonic() - begun, 1)}

        facts = self.not_later(self.span(kill, least_s=10))
        if self.sessions() != before:
            raise StepFailed(f"the tenants noticed: {before}, now {self.sessions()}")
        wait_until(lambda: self.slots_of_node() == SLOTS, "the slots are back")
        return facts

    def scheduler_killed(self):
        epoch = self.status()["scheduler"]["epoch"]

        def kill():
            begun = time.monotonic()
            self._kill("rubato-scheduler")
            attached = self._attached_again(epoch)
            return {"seconds without a scheduler": round(time.monotonic() - begun - attached, 1),
                    "seconds to attach again": attached}

        return self.not_later(self.span(kill, least_s=15))

    def shim_of(self, name, namespace):
        """The host's folder of the shim that is mounted into the pod; the hash of its content."""
        uid = self.pod(name, namespace)["metadata"]["uid"]
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if uid not in node.read(f"/proc/{pid}/cgroup"):
                    continue
                mounts = node.read(f"/proc/{pid}/mountinfo")
            except OSError:
                continue
            for line in mounts.splitlines():
                fields = line.split()
                if fields[4].startswith("/usr/local/lib/rubato/librubato-"):
                    return os.path.basename(os.path.dirname(fields[3]))
        raise StepFailed(f"no process of {name} has our shim mounted")

    def upgraded(self):
        """A new version takes the place of agent and scheduler while everything runs."""
        epoch = self.status()["scheduler"]["epoch"]
        old = self.agent_pod()["metadata"]["name"]

        def upgrade():
            self.helm("upgrade", "rubato", CHART, "--namespace", SYSTEM,
                      *self.helm_settings(images.RUBATO_NEXT))
            attached = self._attached_again(epoch)
            self.cluster.kubectl("rollout", "status", "daemonset/rubato", "--namespace", SYSTEM,
                                 "--timeout=2m")
            return {"seconds to attach again": attached}

        facts = self.not_later(self.span(upgrade, least_s=20))
        if self.agent_pod()["metadata"]["name"] == old:
            raise StepFailed("the pod was not replaced")
        monitoring.point_at([self.agent_pod()])
        wait_until(lambda: self.slots_of_node() == SLOTS, "the slots are back")
        # Those that run keep their shim, those that come get the new one.
        before = self.shim_of("realtime", tenants.REALTIME_NAMESPACE)
        self.cluster.apply(tenants.best_effort("late", 2))
        wait_until(lambda: (self.tenant("late") or {}).get("sessions"),
                   "a new pod is attached to the new version")
        after = self.shim_of("late", tenants.BEST_EFFORT_NAMESPACE)
        if before == after or not os.path.isdir(f"/var/lib/rubato/shim/{before}"):
            raise StepFailed(f"the running pod's shim is {before}, the new one's {after}")
        self.delete_pod("late", tenants.BEST_EFFORT_NAMESPACE)
        wait_until(lambda: len(self.allocations()) == len(ALL_PODS), "its allocation is gone")
        return {**facts, "shims": f"{before} of running pods, {after} of new ones"}

    def crash_loop(self):
        """A pod that crashes again and again keeps its slots and its one allocation; then frees it."""
        tokens = self.allocations()
        if len(tokens) != len(ALL_PODS):
            raise StepFailed(f"{len(ALL_PODS)} pods have the allocations {tokens}")
        pod = tenants.pod("crashing", tenants.BEST_EFFORT_NAMESPACE, 2, {}, ["false"],
                          restart="Always")
        self.cluster.apply(pod)

        def crashed():
            statuses = self.pod("crashing", tenants.BEST_EFFORT_NAMESPACE)["status"].get(
                "containerStatuses", [])
            return statuses and statuses[0]["restartCount"] >= 2

        facts = self.span(lambda: wait_until(crashed, "the pod has crashed twice") and None)
        new = self.allocations() - tokens
        if len(new) != 1:
            raise StepFailed(f"allocations of the crashing pod: {new}")
        self.delete_pod("crashing", tenants.BEST_EFFORT_NAMESPACE)
        wait_until(lambda: self.allocations() == tokens, "its allocation is gone")
        if any(self.tenant(name) is None for name, _ in ALL_PODS):
            raise StepFailed("a running pod's tenant is gone as well")
        return self.not_later(facts)

    @staticmethod
    def allocations():
        """The tokens that have a folder on the node."""
        return {name for name in os.listdir("/var/lib/rubato/alloc") if len(name) == 32}

    def drain(self):
        """The node is drained: the tenants end, and nothing of them is left."""
        self.cluster.kubectl("drain", node.NODE_NAME, "--ignore-daemonsets", "--force",
                             "--delete-emptydir-data", "--timeout=2m")
        wait_until(lambda: not self.status()["tenants"], "the scheduler has no tenants")
        wait_until(lambda: not self.allocations(), "the allocations are gone")
        if not self.agent_ready():
            raise StepFailed("the drain took the agent along")
        self.cluster.kubectl("uncordon", node.NODE_NAME)
        self.cluster.apply(tenants.best_effort("after-drain", SLOTS))
        wait_until(lambda: (self.tenant("after-drain") or {}).get("sessions"),
                   "a pod gets the whole GPU after the drain")

    def uninstall(self):
        """Leaving in two steps, with a pod that still runs; what is left is listed."""
        self.helm("upgrade", "rubato", CHART, "--namespace", SYSTEM,
                  *self.helm_settings(images.RUBATO_NEXT), "--set=cleanup.enabled=true")
        name = "daemonset/rubato-cleanup"
        wait_until(lambda: self.slots_of_node() == 0, "the node offers no slots any more")
        cleaning = lambda: self.cluster.object("daemonset", "rubato-cleanup", SYSTEM)["status"]
        wait_until(lambda: cleaning().get("currentNumberScheduled") == 1, f"{name} is there")
        if not self.pod_running("after-drain", tenants.BEST_EFFORT_NAMESPACE):
            raise StepFailed("the running pod did not survive")
        before = tenants.ops(self.pod("after-drain", tenants.BEST_EFFORT_NAMESPACE))
        wait_until(lambda: tenants.ops(self.pod("after-drain", tenants.BEST_EFFORT_NAMESPACE))
                   > before, "the running pod works on without Rubato's daemons")
        if cleaning().get("numberReady"):
            raise StepFailed("the node is called clean while a pod runs with our files")
        self.delete_pod("after-drain", tenants.BEST_EFFORT_NAMESPACE)
        wait_until(lambda: cleaning().get("numberReady") == 1, "the node is clean")
        self.helm("uninstall", "rubato", "--namespace", SYSTEM, "--wait")
        wait_until(lambda: not self.cluster.objects("pods", SYSTEM), "Rubato's pods are gone")
        left = [os.path.join(folder, name) for place in ("/var/lib/rubato", "/run/rubato")
                for folder, folders, files in os.walk(place) for name in folders + files]
        left += [f"{item['kind']}/{item['metadata']['name']}" for kind in (
                     "all", "configmaps", "serviceaccounts", "roles", "rolebindings")
                 for item in self.cluster.objects(kind, SYSTEM)
                 if item["metadata"]["name"] not in ("default", "kube-root-ca.crt")]
        left += [f"{item['kind']}/{item['metadata']['name']}" for kind in (
                     "clusterroles", "clusterrolebindings", "validatingadmissionpolicies",
                     "validatingadmissionpolicybindings")
                 for item in self.cluster.objects(kind)
                 if "rubato" in item["metadata"]["name"]]
        if left:
            raise StepFailed(f"left after the uninstall: {left}")
        return {"left": left}

    def all(self):
        yield "cluster", self.start_cluster
        yield "trivial pod", self.trivial_pod
        if self.options.cluster_only:
            return
        yield "install", self.install
        yield "helm test", self.helm_test
        yield "share", self.share
        yield "refused", self.refused
        yield "limited", self.limited
        yield "watched", self.watched
        yield "annotated", self.annotated
        yield "undisturbed", self.undisturbed_span
        yield "kubelet restart", self.kubelet_restart
        yield "agent killed", self.agent_killed
        yield "scheduler killed", self.scheduler_killed
        yield "upgraded", self.upgraded
        yield "crash loop", self.crash_loop
        yield "drain", self.drain
        yield "uninstall", self.uninstall

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
        try:
            scenario.run()
        except Exception as error:  # A failed step must leave the logs and the table behind.
            failure = str(error) if isinstance(error, StepFailed) else traceback.format_exc()
            say(f"FAILED: {failure}")
            scenario.explain()
        if options.keep:
            say("the cluster is kept until Ctrl-C; look into it with tests/e2e/enter")
            while True:
                time.sleep(3600)
    except node.Ended as ended:
        failure = failure or (None if options.keep else f"ended by {ended}")
    finally:
        memory.end()
        scenario.table(memory.peak_bytes)
        node.write(os.path.join(node.E2E, "result.json"), json.dumps({
            "failure": failure, "failures_gone_over": scenario.failures, "memory_peak_bytes": memory.peak_bytes,
            "steps": scenario.steps}, indent=1) + "\n")
        if scenario.prometheus:
            scenario.prometheus.stop()
        scenario.cluster.stop()
    return 1 if failure or scenario.failures else 0
