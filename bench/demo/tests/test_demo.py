"""The demo's own logic, with scripts in the place of the build's programs."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import unittest

DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run")
sys.path.insert(0, os.path.join(os.path.dirname(DEMO), "..", "gpu"))
import records

TENANT_RT = """#!/bin/sh
[ -z "$FAKE_RT_CODE" ] || { echo "no device" >&2; exit "$FAKE_RT_CODE"; }
[ "$RUBATO_SOFTGPU_DILATION" = 20 ] || exit 9
case "$LD_LIBRARY_PATH" in */lib/softgpu*) ;; *) exit 8 ;; esac
echo "starting"
echo '{"latencies_us": [2000, 2010, 2500], "checksum": "'${FAKE_CHECKSUM:-$UNDER}'c"}'
"""
TENANT_BE = """#!/bin/sh
echo '{"ops_per_s": 640.0, "checksum": "x"}'
"""
RUBATO = """#!/bin/sh
echo "$*" >> "$FAKE_LOG"
[ "$1" = run ] || exit 0
while [ "$1" != "--" ]; do shift; done; shift
[ -z "$FAKE_WRONG_OUTPUT" ] || export UNDER=changed
exec "$@"
"""


class DemoTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="rdemo-test-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.log = os.path.join(self.folder, "log")
        self.scratch = os.path.join(self.folder, "tmp")
        os.makedirs(self.scratch)
        self.files = {"bin/tenant-rt": TENANT_RT, "bin/tenant-be": TENANT_BE,
                      "bin/rubato": RUBATO, "lib/softgpu/libcuda.so.1": ""}
        for name, text in self.files.items():
            path = os.path.join(self.folder, "build", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)

    def demo(self, **env):
        self.out = os.path.join(self.folder, "demo.json")
        return subprocess.run(
            [sys.executable, "-B", DEMO, "--gpu", "software", "--out", self.out,
             "--build-dir", os.path.join(self.folder, "build")],
            env={**os.environ, "TMPDIR": self.scratch, "FAKE_LOG": self.log, **env},
            capture_output=True, text=True, timeout=100, check=False)

    def test_table_and_records(self):
        done = self.demo()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for title in ("alone", "unmanaged", "with Rubato", "software GPU"):
            self.assertIn(title, done.stdout)
        with open(self.out, encoding="utf-8") as f:
            found = json.load(f)
        self.assertEqual([record["way"] for record in found],
                         ["alone", "timeslice", "rubato-timeslice"])
        for record in found:
            records.check_record(record)
            self.assertEqual(record["rt"]["p50_ms"], 2.01)
        with open(self.log, encoding="utf-8") as f:
            calls = f.read()
        # What is declared is host time: the model's, slowed down.
        self.assertIn("--period 200ms --deadline 80ms", calls)
        self.assertIn("down", calls.split())
        self.assertEqual(os.listdir(self.scratch), [])

    def test_a_failing_program_fails_the_demo_with_its_reason(self):
        done = self.demo(FAKE_RT_CODE="4")
        self.assertEqual(done.returncode, 1)
        self.assertIn("tenant-rt failed with exit code 4: no device", done.stderr)

    def test_changed_outputs_fail_the_demo(self):
        done = self.demo(FAKE_WRONG_OUTPUT="1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("outputs differ from those alone: with Rubato", done.stderr)

    def test_a_missing_build_is_named(self):
        os.unlink(os.path.join(self.folder, "build", "bin", "tenant-be"))
        done = self.demo()
        self.assertEqual(done.returncode, 1)
        self.assertIn("bin/tenant-be is not built", done.stderr)


if __name__ == "__main__":
    unittest.main()
