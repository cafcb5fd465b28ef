#!/usr/bin/env python3
"""systemd understands the units of deploy/systemd, and the programs the flags in them."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

import rig_path  # noqa: F401: finds the integration tests' rig.
import rig

UNITS = pathlib.Path(__file__).resolve().parent.parent.parent / "deploy" / "systemd"
PROGRAMS = {"/usr/local/bin/rubato-scheduler": os.path.join(rig.BIN, "rubato-scheduler"),
            "/usr/bin/nvidia-cuda-mps-control":
                os.path.join(rig.LIB, "softgpu", "bin", "nvidia-cuda-mps-control")}


class Units(unittest.TestCase):
    def test_systemd_understands_them(self):
        units = sorted(UNITS.glob("*.service"))
        self.assertEqual(len(units), 3)
        for unit in units:
            text = unit.read_text("utf-8")
            with self.subTest(unit=unit.name), tempfile.TemporaryDirectory() as folder:
                # The programs are where this build has them, the user is one that exists.
                for place, program in PROGRAMS.items():
                    text = text.replace(place, program)
                name = unit.name.replace("@", "@daemon")
                file = pathlib.Path(folder) / name
                file.write_text(text, "utf-8")
                scope = "--system" if "@" in name else "--user"
                done = subprocess.run(
                    ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", scope, file],
                    capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
                    env={**os.environ, "XDG_RUNTIME_DIR": folder})
                complaints = [line for line in done.stderr.splitlines() if name in line]
                self.assertEqual((done.returncode, complaints), (0, []), done.stderr)

    def test_a_fault_would_be_found(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "faulty.service"
            file.write_text("[Service]\nTyp=notify\nExecStart=/bin/true\n", "utf-8")
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
                                   file], capture_output=True, text=True,
                                  stdin=subprocess.DEVNULL, check=False)
            self.assertIn("Typ", done.stderr)

    def test_the_scheduler_starts_with_the_flags_of_its_units(self):
        for unit in ("rubato-scheduler.service", "rubato-scheduler@.service"):
            with self.subTest(unit=unit), tempfile.TemporaryDirectory() as folder:
                line = re.search(r"^ExecStart=(.*)$", (UNITS / unit).read_text("utf-8"),
                                 re.MULTILINE).group(1)
                words = line.replace("$RUBATO_SCHEDULER_OPTIONS", "--metrics-address=none").split()
                words = [PROGRAMS.get(word, word) for word in words]
                words = [re.sub(r"^--runtime-dir=.*/", f"--runtime-dir={folder}/", word)
                         for word in words]
                words = [re.sub(r"^--profile-store=.*/", f"--profile-store={folder}/", word)
                         for word in words]
                # As systemd listens for the readiness of a unit of Type=notify.
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
                    listener.bind(os.path.join(folder, "notify"))
                    listener.settimeout(rig.DEADLINE_S)
                    process = subprocess.Popen(
                        words, stdin=subprocess.DEVNULL,
                        env={**os.environ, "NOTIFY_SOCKET": os.path.join(folder, "notify"),
                             "XDG_STATE_HOME": folder})
                    try:
                        self.assertIn(b"READY=1", listener.recv(4096))
                        process.terminate()
                        self.assertEqual(process.wait(timeout=rig.DEADLINE_S), 0)
                    finally:
                        process.kill()
                        process.wait()


if __name__ == "__main__":
    if shutil.which("systemd-analyze") is None:
        print("systemd-analyze is not here", file=sys.stderr)
        sys.exit(77)
    unittest.main(verbosity=2)
