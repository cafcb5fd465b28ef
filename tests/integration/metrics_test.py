"""What the metrics endpoint says is what happened, and docs/metrics.md lists what it says."""

import os
import re

import rig

PERIOD_NS = 100_000_000
JOBS = 40
OPS = 64


class Metrics(rig.RigTest):
    def value(self, samples, name, **labels):
        """The one sample of `name` that has these labels."""
        found = []
        for key, value in samples.items():
            match = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})?", key)
            if match is None or match.group(1) != name:
                continue
            have = dict(re.findall(r'([a-z_]+)="([^"]*)"', match.group(2) or ""))
            if all(have.get(label) == want for label, want in labels.items()):
                found.append(value)
        self.assertEqual(len(found), 1, f"{name} {labels}: {found}")
        return found[0]

    @staticmethod
    def wait_locked(world, name):
        rig.wait_until(lambda: world.tenant_device(name)["release"]["kind"] == "locked",
                       "the releases are predicted")

    def test_counters_equal_what_the_programs_did(self):
        world = self.rig(dilation=10)
        realtime = world.realtime(
            "camera", [rig.TENANT, "periodic", "--period-ns", PERIOD_NS, "--jobs", JOBS,
                       "--stay", 1],
            "--memory", "2GiB", period_ns=PERIOD_NS)
        realtime.expect("ready")
        best_effort = world.best_effort("trainer", [rig.TENANT, "flood", "--ops", OPS])
        # The warm-up's kernel and copies count as well: what it did is asked before it goes on.
        warm = rig.wait_until(lambda: world.tenant_device("camera"), "the session is known")
        self.finish(best_effort)
        realtime.say("go")
        self.wait_locked(world, "camera")
        locked = world.metrics()
        while not realtime.expect("job").startswith(f"job {JOBS - 1} "):
            pass

        def jobs():
            return world.tenant_device("camera")["jobs_total"] - warm["jobs_total"] >= JOBS

        rig.wait_until(jobs, "the scheduler has counted all jobs")
        samples = world.metrics()
        labels = {"tenant": "camera"}
        counted = self.value(samples, "rubato_jobs_total", **labels)
        self.assertGreaterEqual(counted, JOBS)
        # Responses count from the first job that answers a predicted release, and from then on
        # each does.
        responses = "rubato_job_response_seconds_count"
        self.assertEqual(self.value(samples, responses, **labels)
                         - self.value(locked, responses, **labels),
                         counted - self.value(locked, "rubato_jobs_total", **labels))
        self.assertEqual(self.value(samples, "rubato_sessions", **labels), 1)
        self.assertEqual(self.value(samples, "rubato_memory_limit_bytes", **labels), 2 << 30)
        self.assertGreaterEqual(self.value(samples, "rubato_memory_used_bytes", **labels), 256)
        # The other program has ended; its totals have not.
        launches = self.value(samples, "rubato_besteffort_launches_total", tenant="trainer")
        # Its kernels, and the copies before and after them.
        self.assertGreaterEqual(launches, OPS + 1)
        self.assertLessEqual(launches, OPS + 4)
        self.assertEqual(self.value(samples, "rubato_build_info"), 1)
        realtime.say("end")
        realtime.expect("done")
        self.finish(realtime)

    def test_the_page_of_metrics_lists_them_all(self):
        world = self.rig(dilation=10)
        world.up()
        realtime = world.realtime("camera", ["sh", "-c", "echo ready; read line"],
                                  period_ns=PERIOD_NS)
        best_effort = world.best_effort("trainer", ["sh", "-c", "echo ready; read line"])
        for program in (realtime, best_effort):
            program.expect("ready")
        page = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs",
                            "metrics.md")
        with open(page, encoding="utf-8") as text:
            rows = [line.split("|") for line in text if line.startswith("| `rubato_")]
        listed = {name: row[2].strip().split(",")[0]
                  for row in rows for name in re.findall(r"`(rubato_[a-z_]+)`", row[1])}
        served = {name: kind for name, kind in world.metric_types().items()
                  if name.startswith("rubato_")}
        listed.pop("rubato_mps_healthy")  # In the other modes.
        self.assertEqual(listed, served)
        # Both tenants have their series although neither has touched the GPU.
        samples = world.metrics()
        self.assertEqual(self.value(samples, "rubato_jobs_total", tenant="camera"), 0)
        self.assertEqual(self.value(samples, "rubato_deadline_seconds", tenant="camera"), 0.1)
        self.assertEqual(self.value(samples, "rubato_gate_waits_total", tenant="trainer"), 0)
        self.assertEqual(self.value(samples, "rubato_tenant_admission", tenant="camera",
                                    asked="realtime", reason="admitted"), 1)
        for program in (realtime, best_effort):
            program.end_input()
            program.wait()
        self.assertFalse([key for key in world.metrics() if "camera" in key])

    def test_misses_are_counted(self):
        world = self.rig(dilation=10)
        # Jobs of three milliseconds of the device's time, against a deadline of one: more than what
        # may block it, so that it is admitted while nobody knows yet how long its jobs are.
        program = world.realtime(
            "late", [rig.TENANT, "periodic", "--period-ns", PERIOD_NS, "--jobs", JOBS,
                     "--kernels", 1, "--kernel-ns", 3_000_000, "--stay", 1],
            "--deadline", "10ms", period_ns=PERIOD_NS)
        program.expect("ready")
        program.say("go")
        self.wait_locked(world, "late")
        locked = world.metrics()
        while not program.expect("job").startswith(f"job {JOBS - 1} "):
            pass

        def counted():
            return world.tenant_device("late")["jobs_total"] >= JOBS

        rig.wait_until(counted, "the scheduler has counted all jobs")
        samples = world.metrics()

        def since_locked(name):
            return (self.value(samples, name, tenant="late")
                    - self.value(locked, name, tenant="late"))

        self.assertGreater(since_locked("rubato_jobs_total"), 0)
        self.assertEqual(since_locked("rubato_deadline_misses_total"),
                         since_locked("rubato_jobs_total"))
        program.say("end")
        program.expect("done")
        self.finish(program)


if __name__ == "__main__":
    rig.main()
