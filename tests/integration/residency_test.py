"""The promise itself: no block of a best-effort program is on the GPU when a job is released.

Read from the device's own log of what was resident when, and from the real-time program's list of
its releases; both are CLOCK_MONOTONIC of this host. The same two programs without Rubato are the
counter-proof: if they showed no such block either, the test could not see one.
"""

import rig

# One microsecond of the device is 100 us here. Best-effort work is planned to end 340 us before a
# release, which is 34 ms of this host: a thread that loses its core between the gate and the launch
# comes late by less.
DILATION = 100
PERIOD_NS = 5_000_000 * DILATION
KERNEL_NS = 200_000  # Of the device's time, as the next.
FLOOD_KERNEL_NS = 600_000


def parse_job(line):
    """(job, release, first op, end) of a line that the periodic program says."""
    return tuple(int(word) for word in line.split()[1:5])


def job_after(program, instant_ns):
    """The first job released after the instant; what the program said of earlier ones is passed."""
    while True:
        job = parse_job(program.expect("job"))
        if job[1] > instant_ns:
            return job


def periodic(jobs, *more):
    return [rig.TENANT, "periodic", "--period-ns", PERIOD_NS, "--jobs", jobs, "--kernels", 3,
            "--kernel-ns", KERNEL_NS, *more]


def flood(*more):
    return [rig.TENANT, "flood", "--kernel-ns", FLOOD_KERNEL_NS, "--depth", 8, *more]


def blocks_of(log, pid):
    return [entry for entry in log if entry["kind"] == "blocks" and entry["pid"] == pid]


def resident_at(blocks, instant_ns):
    return [block for block in blocks
            if block["host_from_ns"] <= instant_ns < block["host_to_ns"]]


def violations(releases, blocks):
    return [(release, resident_at(blocks, release)) for release in releases
            if resident_at(blocks, release)]


class Residency(rig.RigTest):
    def run_pair(self, world, realtime, best_effort, jobs, from_job, pid_of):
        """Runs both; the second starts once the first has done `from_job` jobs. Returns the
        releases that came while both ran, and both programs' blocks."""
        realtime.expect("ready")
        realtime.say("go")
        job = -1
        while job < from_job:
            job = parse_job(realtime.expect("job"))[0]
        started = best_effort()
        started.expect("ops")
        job, release, _, _ = job_after(realtime, rig.now_ns())
        releases = [release]
        while job < jobs - 1:
            job, release, _, _ = parse_job(realtime.expect("job"))
            releases.append(release)
        realtime_pid, pid = pid_of(realtime), pid_of(started)
        started.end_input()
        self.finish(started)
        realtime.expect("done")
        self.finish(realtime)
        log = world.stop_gpu()
        return releases, blocks_of(log, pid), blocks_of(log, realtime_pid)

    def test_without_rubato_blocks_are_resident_at_releases(self):
        world = self.rig(dilation=DILATION)
        realtime = world.start(periodic(12))
        releases, blocks, _ = self.run_pair(world, realtime, lambda: world.start(flood()), 12, 1,
                                            lambda program: program.pid)
        self.assertGreaterEqual(len(releases), 5)
        self.assertGreater(len(violations(releases, blocks)), 0)

    def check_mode(self, *up, declared=True):
        world = self.rig(dilation=DILATION)
        world.up(*up)
        realtime = world.realtime("camera", periodic(40),
                                  period_ns=PERIOD_NS if declared else None)
        pids = {}

        def start_flood():
            rig.wait_until(
                lambda: world.tenant_device("camera")["release"]["kind"] == "locked",
                "the releases are predicted")
            program = world.best_effort("trainer", flood())
            program.expect("ready")
            pids[program] = world.child_of(program)
            pids[realtime] = world.child_of(realtime)
            return program

        releases, blocks, own = self.run_pair(world, realtime, start_flood, 40, 8, pids.get)
        self.assertGreaterEqual(len(releases), 15)
        self.assertEqual(violations(releases, blocks), [])
        # Nor beside a job: none begins between a release and the job's last block.
        for release in releases:
            job = [block["host_to_ns"] for block in own
                   if release <= block["host_from_ns"] < release + PERIOD_NS // 2]
            self.assertTrue(job)
            inside = [block for block in blocks if release <= block["host_from_ns"] < max(job)]
            self.assertEqual(inside, [])
        # And it is no empty promise: the other program did run, between the jobs.
        served = [release for release in releases[:-1]
                  if any(release < block["host_from_ns"] < release + PERIOD_NS
                         for block in blocks)]
        self.assertGreaterEqual(len(served), len(releases) // 2)

    def test_under_rubato_none_is(self):
        self.check_mode()

    def test_under_rubato_none_is_with_a_learnt_period(self):
        self.check_mode(declared=False)

    def test_under_rubato_hybrid_none_is(self):
        self.check_mode("--mode", "hybrid")


class SideBySide(rig.RigTest):
    """Which programs may be on the GPU together, by mode."""

    def overlaps(self, first, second):
        return [(a, b) for a in first for b in second
                if a["host_from_ns"] < b["host_to_ns"] and b["host_from_ns"] < a["host_to_ns"]]

    def run_three(self, *up):
        """Blocks of a real-time and two best-effort programs that ran at the same time."""
        world = self.rig(dilation=10)
        world.up(*up)
        realtime = world.realtime("camera", [rig.TENANT, "flood"])
        floods = [world.best_effort(name, [rig.TENANT, "flood"]) for name in ("one", "two")]
        for program in (realtime, *floods):
            program.expect("ops")
        pids = [world.child_of(program) for program in (realtime, *floods)]
        for program in floods:
            until = rig.ops_after(program, rig.now_ns()) + 20
            while rig.ops_after(program, rig.now_ns()) < until:
                pass
        for program in (realtime, *floods):
            program.end_input()
            self.finish(program)
        log = world.stop_gpu()
        return [blocks_of(log, pid) for pid in pids]

    def test_timeslice_runs_one_at_a_time(self):
        realtime, one, two = self.run_three()
        self.assertEqual(self.overlaps(realtime, one + two), [])
        self.assertEqual(self.overlaps(one, two), [])

    def test_hybrid_runs_best_effort_programs_together(self):
        realtime, one, two = self.run_three("--mode", "hybrid")
        self.assertEqual(self.overlaps(realtime, one + two), [])
        self.assertNotEqual(self.overlaps(one, two), [])


if __name__ == "__main__":
    rig.main()
