"""What of a tenant needs no GPU: its releases, the loop that serves them, the protocol."""

import io
import os
import sys
import threading
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import clock_probe
import protocol
import tenant

MS = 1_000_000


class FakeClock:
    """Time moves by `step_ns` per look and by what is slept."""

    def __init__(self, step_ns=1000):
        self.now = 0
        self._step = step_ns
        self.slept = []

    def __call__(self):
        self.now += self._step
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += int(seconds * 1e9)


class ReleasesTest(unittest.TestCase):

    def args(self, *more):
        return tenant.parse_args(["--role", "rt", "--work", "graph", *more])

    def test_periodic(self):
        releases = tenant.releases_ns(self.args("--period-ms", "10"), 5 * MS, 40 * MS)
        self.assertEqual(releases, [5 * MS, 15 * MS, 25 * MS, 35 * MS])

    def test_poisson_is_seeded_and_has_its_rate(self):
        args = self.args("--poisson-per-s", "20", "--seed", "7")
        first = tenant.releases_ns(args, 0, 100 * 1000 * MS)
        self.assertEqual(first, tenant.releases_ns(args, 0, 100 * 1000 * MS))
        self.assertEqual(first, sorted(first))
        self.assertAlmostEqual(len(first) / 100, 20, delta=2)
        other = self.args("--poisson-per-s", "20", "--seed", "8")
        self.assertNotEqual(first, tenant.releases_ns(other, 0, 100 * 1000 * MS))

    def test_exactly_one_kind_of_release(self):
        for more in ((), ("--period-ms", "10", "--poisson-per-s", "20")):
            with self.assertRaises(SystemExit):
                stderr, sys.stderr = sys.stderr, io.StringIO()
                try:
                    self.args(*more)
                finally:
                    sys.stderr = stderr


class ServeTest(unittest.TestCase):

    def serve(self, clock, releases, start, end, job_ns, probe_every=2, stopped=None):
        probes = []

        def job():
            clock.now += job_ns

        def probe():
            probes.append(clock.now)
            return len(probes) - 1

        return tenant.serve(releases, start, end, stopped or threading.Event(), job, probe,
                            probe_every, clock=clock, sleep=clock.sleep)

    def test_latency_counts_from_the_release(self):
        clock = FakeClock()
        jobs, unserved = self.serve(clock, [10 * MS, 20 * MS, 30 * MS], 0, 40 * MS, 1 * MS)
        self.assertEqual([job[0] for job in jobs], [10 * MS, 20 * MS, 30 * MS])
        for _, latency_us, _ in jobs:
            self.assertAlmostEqual(latency_us, 1000, delta=5)
        self.assertEqual(unserved, 0)
        self.assertEqual([job[2] for job in jobs], [0, None, 1])
        # Sleeps end one spin before the release.
        self.assertTrue(all(seconds < 0.0095 for seconds in clock.slept))

    def test_a_late_job_delays_the_next_which_counts_it(self):
        jobs, _ = self.serve(FakeClock(), [10 * MS, 20 * MS], 0, 40 * MS, 15 * MS)
        self.assertAlmostEqual(jobs[1][1], 20_000, delta=10)

    def test_warm_up_is_not_reported(self):
        jobs, _ = self.serve(FakeClock(), [10 * MS, 20 * MS, 30 * MS], 20 * MS, 40 * MS, MS)
        self.assertEqual([job[0] for job in jobs], [20 * MS, 30 * MS])

    def test_what_is_never_served_counts_with_its_latency_so_far(self):
        releases = [10 * MS * k for k in range(1, 11)]
        jobs, unserved = self.serve(FakeClock(), releases, 0, 110 * MS, 800 * MS)
        self.assertEqual(len(jobs), 10)
        self.assertGreater(unserved, 0)
        self.assertGreater(jobs[-1][1], tenant.OVERRUN_NS / 1e3)

    def test_stop_ends_it(self):
        stopped = threading.Event()
        stopped.set()
        jobs, unserved = self.serve(FakeClock(), [10 * MS], 0, 20 * MS, MS, stopped=stopped)
        self.assertEqual((len(jobs), unserved), (1, 1))


class ProtocolTest(unittest.TestCase):

    def test_lines_of_libraries_are_no_messages(self):
        self.assertIsNone(protocol.parse("UserWarning: something\n"))
        self.assertIsNone(protocol.parse(protocol.MARK + "{half"))
        self.assertIsNone(protocol.parse(protocol.MARK + "[1]"))
        self.assertEqual(protocol.parse(protocol.MARK + '{"event": "ready"}\n')["event"], "ready")

    def test_stop_overtakes_and_the_end_of_input_quits(self):
        commands = protocol.Commands(io.StringIO('{"cmd": "init"}\n{"cmd": "stop"}\n'))
        self.assertEqual(commands.next()["cmd"], "init")
        self.assertTrue(commands.stopped.wait(10))
        self.assertEqual(commands.next()["cmd"], "quit")


class ClockReadingTest(unittest.TestCase):

    def test_megahertz(self):
        self.assertAlmostEqual(clock_probe.clock_mhz(47520, 24000), 1980.0)

    def test_impossible_readings_are_dropped(self):
        self.assertIsNone(clock_probe.clock_mhz(0, 0))
        self.assertIsNone(clock_probe.clock_mhz(50000, 2_000_000))
        self.assertIsNone(clock_probe.clock_mhz(10**9, 24000))


if __name__ == "__main__":
    unittest.main()
