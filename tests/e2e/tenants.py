"""The pods that share the GPU, and what their logs say of their jobs.

The programs are those of the integration tests: `periodic` is released by the clock and says of
each job when it was released, begun and done (CLOCK_MONOTONIC, which all containers share);
`flood` keeps kernels queued. Neither knows of Rubato.
"""

import os

import images
import node

REALTIME_NAMESPACE = "team-realtime"
BEST_EFFORT_NAMESPACE = "team-batch"

# Host time. The software GPU runs DILATION times slower than a real one.
DILATION = 20
PERIOD_NS = 200_000_000
# A job takes 18 ms. A best-effort program's time slice takes 40 ms, so a job that nothing protects is
# late.
DEADLINE_NS = 45_000_000


def pod(name, namespace, slots, annotations, words, says=(), cpu="50m", restart="Never"):
    """A pod of one container that asks for slots. A container's input is empty, and the programs end
    with theirs, so theirs is a pipe that stays open, with the lines in `says`."""
    say = "".join(f"echo {line}; " for line in says)
    line = " ".join(words)
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name},
                     "annotations": {f"rubato.dev/{key}": value
                                     for key, value in annotations.items()}},
        "spec": {
            "restartPolicy": restart, "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": images.TENANT, "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c",
                            f"mkfifo /tmp/input; {{ {say}exec sleep 1000000; }} >/tmp/input & "
                            f"exec {line} </tmp/input"],
                "resources": {"limits": {"rubato.dev/gpu": slots},
                              "requests": {"cpu": cpu}}}]}}


def realtime(name="realtime", slots=3, period_ns=PERIOD_NS, deadline_ns=DEADLINE_NS,
             kernel_ns=300_000, namespace=REALTIME_NAMESPACE):
    return pod(name, namespace, slots,
               {"class": "realtime", "period": f"{period_ns // 1_000_000}ms",
                "deadline": f"{deadline_ns // 1_000_000}ms"},
               ["rubato-test-tenant", "periodic", "--period-ns", str(period_ns), "--jobs",
                "1000000", "--kernels", "3", "--kernel-ns", str(kernel_ns)],
               says=["go"],
               # Who wants to be in time on the GPU wants to be in time on the cores.
               cpu="300m")


def hoarder(name, memory, *allocations_bytes):
    """Asks for memory, piece by piece, and says of each whether it got it."""
    return pod(name, BEST_EFFORT_NAMESPACE, 1, {"memory": memory}, ["rubato-test-tenant", "memory"],
               says=[f"alloc device {size}" for size in allocations_bytes])


def best_effort(name, slots, annotations=None, user=0):
    made = pod(name, BEST_EFFORT_NAMESPACE, slots, annotations or {},
               ["rubato-test-tenant", "flood", "--kernel-ns", "200000", "--depth", "4"])
    made["spec"]["securityContext"] = {"runAsUser": user, "runAsGroup": user}
    return made


class Job:
    def __init__(self, words):
        self.number, self.release_ns, self.first_ns, self.end_ns = (int(word) for word in words)

    @property
    def response_ns(self):
        return self.end_ns - self.release_ns


def log_lines(pod_object):
    """What the pod's first container said, all of its runs, oldest first; read on the node, since the
    API server gives only the last run's."""
    meta = pod_object["metadata"]
    folder = f"/var/log/pods/{meta['namespace']}_{meta['name']}_{meta['uid']}/main"
    lines = []
    for name in sorted(os.listdir(folder), key=lambda name: int(name.split(".")[0])):
        for line in node.read(os.path.join(folder, name)).splitlines():
            # TIME STREAM TAG TEXT
            words = line.split(" ", 3)
            if len(words) == 4:
                lines.append(words[3])
    return lines


def jobs(pod_object, from_ns=0, to_ns=1 << 62):
    """The real-time jobs that were released in the span."""
    found = []
    for line in log_lines(pod_object):
        if line.startswith("job "):
            job = Job(line.split()[1:5])
            if from_ns <= job.release_ns < to_ns:
                found.append(job)
    return found


def ops(pod_object, from_ns=0, to_ns=1 << 62):
    """How many kernels a flood finished in the span."""
    seen = [line.split()[1:3] for line in log_lines(pod_object) if line.startswith("ops ")]
    counts = [int(count) for count, said_ns in seen if from_ns <= int(said_ns) < to_ns]
    return counts[-1] - counts[0] if len(counts) > 1 else 0
