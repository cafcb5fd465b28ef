"""kill -9 at the worst moments: whoever dies, the others go on, and keep the promise."""

import os
import signal

import rig
from residency_test import (DILATION, PERIOD_NS, blocks_of, flood, job_after, parse_job, periodic,
                            violations)


class Crash(rig.RigTest):
    def start_pair(self, jobs, *more):
        world = self.rig(dilation=DILATION)
        world.up()
        realtime = world.realtime("camera", periodic(jobs, *more), period_ns=PERIOD_NS)
        realtime.expect("ready")
        realtime.say("go")
        while parse_job(realtime.expect("job"))[0] < 8:
            pass
        rig.wait_until(lambda: world.tenant_device("camera")["release"]["kind"] == "locked",
                       "the releases are predicted")
        best_effort = world.best_effort("trainer", flood())
        best_effort.expect("ops")
        return world, realtime, best_effort

    def assert_goes_on(self, program, more=24):
        """The program does so many more kernels from now on."""
        before = rig.ops_after(program, rig.now_ns())
        while rig.ops_after(program, rig.now_ns()) < before + more:
            pass

    def test_the_scheduler_dies_while_the_gate_is_closed(self):
        self.lose_scheduler_at_a_release(signal.SIGKILL)

    def test_the_scheduler_ends_while_the_gate_is_closed(self):
        self.lose_scheduler_at_a_release(signal.SIGTERM)

    def lose_scheduler_at_a_release(self, number):
        world, realtime, best_effort = self.start_pair(40)
        pids = {name: world.child_of(program)
                for name, program in (("camera", realtime), ("trainer", best_effort))}
        scheduler = world.scheduler()["pid"]
        # At a release: the job is open and the gate closed.
        _, release, _, _ = job_after(realtime, rig.now_ns())
        rig.wait_until(lambda: rig.now_ns() >= release + PERIOD_NS, "the next release")
        os.kill(scheduler, number)
        # Everybody goes by the model as it was, for as long as it is valid.
        releases = [job_after(realtime, rig.now_ns())[1]]
        releases += [parse_job(realtime.expect("job"))[1] for _ in range(6)]
        self.assert_goes_on(best_effort)
        best_effort.end_input()
        self.finish(best_effort)
        realtime.expect("done")
        self.finish(realtime)
        log = world.stop_gpu()
        self.assertEqual(violations(releases, blocks_of(log, pids["trainer"])), [])

    def test_the_realtime_program_dies_while_its_job_is_open(self):
        world, realtime, best_effort = self.start_pair(40, "--stall-job", 12)
        realtime.expect("stalled")
        pid = world.child_of(realtime)
        os.kill(pid, signal.SIGKILL)
        self.finish(realtime, 128 + signal.SIGKILL)
        self.assert_goes_on(best_effort)
        self.assertIsNone(world.tenant("camera"))
        self.assertEqual(world.status()["devices"][0]["realtime_sessions"], 0)
        best_effort.end_input()
        self.finish(best_effort)

    def test_a_stuck_realtime_job_does_not_hold_for_ever(self):
        world, realtime, best_effort = self.start_pair(40, "--stall-job", 12)
        realtime.expect("stalled")
        # Alive, its job open: the limit on holding lets the others go on.
        self.assert_goes_on(best_effort, 8)
        self.assertIsNone(realtime.process.poll())
        best_effort.end_input()
        self.finish(best_effort)

    def test_the_best_effort_program_dies_with_work_in_flight(self):
        world, realtime, best_effort = self.start_pair(24)
        pid = world.child_of(best_effort)
        os.kill(pid, signal.SIGKILL)
        self.finish(best_effort, 128 + signal.SIGKILL)
        rig.wait_until(lambda: world.tenant("trainer") is None, "the tenant is gone")
        self.assertEqual(world.status()["devices"][0]["sessions"], 1)
        checksum = realtime.expect("done")
        self.finish(realtime)
        # The same jobs without anybody else have the same result.
        alone = world.start(periodic(24))
        alone.expect("ready")
        alone.say("go")
        self.assertEqual(alone.expect("done"), checksum)
        self.finish(alone)

    def test_in_hybrid_the_other_best_effort_program_goes_on(self):
        world = self.rig(dilation=10)
        world.up("--mode", "hybrid")
        first = world.best_effort("first", flood())
        second = world.best_effort("second", flood())
        for program in (first, second):
            program.expect("ops")
        os.kill(world.child_of(first), signal.SIGKILL)
        self.finish(first, 128 + signal.SIGKILL)
        self.assert_goes_on(second)
        self.assertIsNone(world.tenant("first"))
        second.end_input()
        self.finish(second)

    def test_a_restarted_scheduler_gets_its_sessions_back(self):
        world, realtime, best_effort = self.start_pair(60)
        before = world.status()
        os.kill(before["scheduler"]["pid"], signal.SIGKILL)
        rig.wait_until(lambda: rig.has_ended(before["scheduler"]["pid"]), "the scheduler is dead")
        after = world.up()
        self.assertNotEqual(after["epoch"], before["scheduler"]["epoch"])

        def sessions(status):
            return sorted((tenant["name"], session["pid"], session["index"])
                          for tenant in status["tenants"] for session in tenant["session_list"])

        old = {entry[:2] for entry in sessions(before)}
        self.assertEqual(len(old), 2)
        rig.wait_until(lambda: {entry[:2] for entry in sessions(world.status())} == old,
                       "both sessions are back")
        for tenant in world.status()["tenants"]:
            for session in tenant["session_list"]:
                self.assertTrue(session["reattached"], session)
        # The slots were handed back: what they said before is known again, and the work goes on.
        rig.wait_until(
            lambda: world.tenant_device("camera")["release"]["kind"] == "locked",
            "the releases are predicted again")
        self.assert_goes_on(best_effort)
        pid = world.child_of(best_effort)
        releases = [job_after(realtime, rig.now_ns())[1]]
        releases += [parse_job(realtime.expect("job"))[1] for _ in range(5)]
        best_effort.end_input()
        self.finish(best_effort)
        realtime.expect("done")
        self.finish(realtime)
        self.assertEqual(violations(releases, blocks_of(world.stop_gpu(), pid)), [])


class NoScheduler(rig.RigTest):
    """Programs that start, run and end while there is no scheduler, or another one each time."""

    def test_a_program_that_starts_without_one(self):
        world = self.rig(dilation=1)
        argv = [rig.TENANT, "workload", "--rounds", "8"]
        bare = self.finish(world.start(argv))
        for options in (["--class", "realtime"], ["--class", "best-effort"]):
            with self.subTest(options=options):
                program = world.run(options, ["sh", "-c", 'echo begun; read x; exec "$@"', "sh",
                                              *argv])
                program.expect("begun")
                os.kill(world.scheduler()["pid"], signal.SIGKILL)
                program.say("")
                self.assertEqual(self.finish(program), ["begun", *bare])

    def test_one_that_dies_again_and_again(self):
        world = self.rig(dilation=1)
        programs = {
            "camera": world.realtime("camera", [rig.TENANT, "flood", "--kernel-ns", 50_000]),
            "one": world.best_effort("one", [rig.TENANT, "flood", "--kernel-ns", 50_000]),
            "two": world.best_effort("two", [rig.TENANT, "flood", "--kernel-ns", 50_000]),
        }
        for program in programs.values():
            program.expect("ops")
        pids = {name: world.child_of(program) for name, program in programs.items()}

        def attached():
            return {tenant["name"]: session["pid"] for tenant in world.status()["tenants"]
                    for session in tenant["session_list"]}

        for _ in range(4):
            os.kill(world.up()["pid"], signal.SIGKILL)
            for program in programs.values():
                rig.ops_after(program, rig.now_ns())
            world.up()
            rig.wait_until(lambda: attached() == pids, "all sessions are back")
        for program in programs.values():
            rig.ops_after(program, rig.now_ns())
            program.end_input()
            self.finish(program)
        rig.wait_until(lambda: world.status()["tenants"] == [], "all tenants are gone")
        self.assertEqual(world.status()["devices"][0]["sessions"], 0)


if __name__ == "__main__":
    rig.main()
