"""The runner end to end, with tenants that make their numbers up and scripts in the place of the
MPS control command and of `rubato`: order of calls, environments, failures, and that nothing is
left behind.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import unittest

GPU_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, GPU_DIR)
import records
import session

# Logs its call; -d leaves a daemon behind in a session of its own, `quit` ends it.
MPS_CONTROL = """#!/bin/sh
echo "mps $* pipe=$CUDA_MPS_PIPE_DIRECTORY" >> "$FAKE_LOG"
if [ "$1" = "-d" ]; then
  setsid tail -f /dev/null >/dev/null 2>&1 </dev/null &
  echo $! > "$CUDA_MPS_PIPE_DIRECTORY/pid"
else
  read command
  echo "mps command=$command" >> "$FAKE_LOG"
  [ -n "$FAKE_MPS_DEAF" ] || kill "$(cat "$CUDA_MPS_PIPE_DIRECTORY/pid")"
fi
"""

RUBATO = """#!/bin/sh
echo "rubato $* called-with-mps=${CUDA_MPS_PIPE_DIRECTORY:-none}" >> "$FAKE_LOG"
case "$1" in
  up) [ -d "$XDG_RUNTIME_DIR" ] || exit 1; exit ${FAKE_UP_CODE:-0} ;;
  status) echo '{"tenants": []}' ;;
  run) shift; while [ "$1" != "--" ]; do shift; done; shift; exec "$@" ;;
esac
"""


class RunnerTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="rbench-test-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.scratch = os.path.join(self.folder, "tmp")
        self.log = os.path.join(self.folder, "calls.log")
        self.out = os.path.join(self.folder, "out.json")
        for path, text in (("bin/nvidia-cuda-mps-control", MPS_CONTROL),
                           ("build/bin/rubato", RUBATO)):
            path = os.path.join(self.folder, path)
            os.makedirs(os.path.dirname(path))
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
        os.makedirs(self.scratch)
        open(self.log, "w", encoding="utf-8").close()

    def run_bench(self, *args, **env):
        environment = {**os.environ, "TMPDIR": self.scratch, "FAKE_LOG": self.log,
                       "PYTHONDONTWRITEBYTECODE": "1",
                       "PATH": os.path.join(self.folder, "bin") + ":" + os.environ["PATH"], **env}
        return subprocess.run(
            [sys.executable, os.path.join(GPU_DIR, "run"), "--dry-run", "--seconds", "0.1",
             "--lead", "0", "--out", self.out, "--build-dir",
             os.path.join(self.folder, "build"), *args],
            env=environment, capture_output=True, text=True, timeout=110, check=False)

    def results(self):
        with open(self.out, encoding="utf-8") as f:
            return json.load(f)

    def calls(self):
        with open(self.log, encoding="utf-8") as f:
            return f.read().splitlines()

    def assert_nothing_left(self):
        self.assertEqual(os.listdir(self.scratch), [])
        mark = (session.MARK + "=" + self.scratch).encode()
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open("/proc/%s/environ" % entry, "rb") as f:
                    self.assertNotIn(mark, f.read(), "process %s is left" % entry)
            except OSError:
                pass

    def test_every_way_gives_a_record_in_the_schema(self):
        done = self.run_bench("--loads", "resnet50-gemm8192")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        results = self.results()
        self.assertEqual([record["way"] for record in results],
                         ["alone", "timeslice", "mps", "mps-priority", "rubato-timeslice",
                          "rubato-hybrid", "rubato-mps"])
        for record in results:
            records.check_record(record)
            self.assertIsNotNone(record["rt"]["p99_x_equal_clock"])
            self.assertNotIn(self.folder, json.dumps(record))
            self.assertTrue(record["checksum_equal"])
        calls = self.calls()
        self.assertEqual(sum("command=quit" in call for call in calls), 2)
        for mode in ("timeslice", "hybrid", "mps"):
            self.assertTrue(any(call.startswith("rubato up --mode %s " % mode) for call in calls))
        self.assertEqual(sum(call.startswith("rubato down") for call in calls), 3)
        declared = [call for call in calls if call.startswith("rubato run")]
        self.assertEqual(len(declared), 6)
        realtime = "--class realtime --name rt-resnet50 --period 10ms --deadline 10ms"
        self.assertEqual(sum(realtime in call for call in declared), 3)
        # Which processes use MPS is Rubato's decision: none is preset.
        self.assertTrue(all("called-with-mps=none" in call for call in calls
                            if call.startswith("rubato")))
        self.assert_nothing_left()

    def test_a_real_time_set_is_measured_alone_once(self):
        done = self.run_bench("--loads", "resnet50-gemm8192,resnet50-copy", "--ways", "alone")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual([record["rt_measured_with"] for record in self.results()],
                         ["resnet50-gemm8192", "resnet50-gemm8192"])

    def test_early_start_gives_the_same_rows_in_every_setting(self):
        for early in ("none", "plain", "all"):
            with self.subTest(early=early):
                done = self.run_bench("--loads", "resnet50-copy", "--early", early, "--ways",
                                      "alone,mps,rubato-hybrid,rubato-mps")
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertEqual(len(self.results()), 4)
                self.assert_nothing_left()

    def test_append_compares_with_the_alone_rows_of_the_file(self):
        self.run_bench("--loads", "resnet50-copy", "--ways", "alone")
        done = self.run_bench("--loads", "resnet50-copy", "--ways", "timeslice", "--append")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        results = self.results()
        self.assertEqual([record["way"] for record in results], ["alone", "timeslice"])
        self.assertIsNotNone(results[1]["rt"]["p99_x"])

    def test_a_failed_cell_is_told_and_the_run_goes_on(self):
        for stage, said in (("import", "no such module"), ("init", "out of memory"),
                            ("measure", "a kernel faulted"), ("die", "exit code 9")):
            with self.subTest(stage=stage):
                done = self.run_bench("--loads", "resnet50-copy", "--ways", "alone,timeslice",
                                      BENCH_FAKE_FAIL="be:" + stage)
                self.assertEqual(done.returncode, 1)
                self.assertEqual(done.stdout.count("FAILED"), 2, done.stdout)
                self.assertIn(said, done.stdout)
                self.assertEqual(self.results(), [])
                with open(os.path.join(self.folder, "out.failed.json"), encoding="utf-8") as f:
                    self.assertEqual(len(json.load(f)), 2)
                self.assert_nothing_left()

    def test_finished_rows_survive_a_later_failure(self):
        done = self.run_bench("--loads", "resnet50-copy",
                              "--ways", "alone,timeslice,rubato-timeslice", FAKE_UP_CODE="3")
        self.assertEqual(done.returncode, 1)
        self.assertIn("rubato up --mode timeslice failed with exit code 3", done.stdout)
        self.assertEqual(len(self.results()), 2)
        self.assert_nothing_left()

    def test_no_cell_begins_after_the_time_limit(self):
        done = self.run_bench("--loads", "resnet50-copy", "--ways", "alone,timeslice",
                              "--time-limit", "1e-9")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout.count("not begun"), 3, done.stdout)
        self.assertEqual(self.results(), [])
        self.assert_nothing_left()

    def test_an_unknown_load_is_one_clear_line(self):
        done = self.run_bench("--loads", "resnet51")
        self.assertEqual(done.returncode, 2)
        self.assertIn("unknown load resnet51", done.stderr)

    def test_made_up_numbers_are_refused_in_the_results(self):
        target = os.path.join(GPU_DIR, "..", "results", "made-up.json")
        done = self.run_bench("--out", target)
        self.assertEqual(done.returncode, 2)
        self.assertFalse(os.path.exists(target))


class SessionTest(unittest.TestCase):

    def test_a_daemon_deaf_to_quit_is_ended_by_its_mark(self):
        with tempfile.TemporaryDirectory() as folder:
            # Blocked in `read`, so it ends with this test whatever happens here.
            process = subprocess.Popen(["sh", "-c", "trap '' TERM; echo deaf; read line"],
                                       env=session.base_environment(folder),
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       start_new_session=True)
            with process:
                self.addCleanup(process.kill)
                # It says so once it is deaf; before its exec is over it shows no environment.
                self.assertEqual(process.stdout.readline(), "deaf\n")
                self.assertEqual(session.marked_processes(folder), [process.pid])
                # Reaped in the background, as init would.
                reaper = threading.Thread(target=process.wait)
                reaper.start()
                self.assertEqual(session.sweep(folder, patience_s=0.1), 1)
                reaper.join()
                self.assertEqual(process.returncode, -signal.SIGKILL)
                self.assertEqual(session.marked_processes(folder), [])

    def test_a_silent_tenant_times_out_with_its_name(self):
        with tempfile.TemporaryDirectory() as folder:
            tenant = session.Tenant("be-x", ["cat"], session.base_environment(folder),
                                    os.path.join(folder, "log"))
            with self.assertRaisesRegex(session.CellError, "be-x: no 'ready'"):
                tenant.expect("ready", 0.1)
            tenant.ask_to_quit()
            tenant.end()

    def test_environment_has_no_mps_setting_of_the_caller(self):
        os.environ["CUDA_MPS_PIPE_DIRECTORY"] = "/somebody/elses"
        self.addCleanup(os.environ.pop, "CUDA_MPS_PIPE_DIRECTORY")
        self.assertNotIn("CUDA_MPS_PIPE_DIRECTORY", session.base_environment("/x"))


if __name__ == "__main__":
    unittest.main()
