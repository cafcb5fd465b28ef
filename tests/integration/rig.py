"""What every integration test stands on: a GPU, a runtime directory and programs of its own.

A Rig is one test's world in a folder under /tmp: the software GPU's device process with its log, a
runtime directory for the scheduler, and whatever is started in them. Nothing is shared between
tests, so they run side by side. close() ends every process that carries the rig's folder in its
environment, also those that got away from us (a daemonised scheduler, the child of a killed
wrapper), so that a failing test leaves nothing behind.

Tests assert order, residency and values. They wait for conditions with a deadline that only a hang
reaches, and take no times. Time is dilated: one microsecond of the device's is DILATION of the
host's, so that what this machine does to us (a late wake-up, a busy neighbour) stays small beside
the margins that the scheduler keeps.
"""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

BUILD = os.environ.get("RUBATO_BUILD_DIR") or os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "..", "..", "build", "dev")
BIN = os.path.join(BUILD, "bin")
LIB = os.path.join(BUILD, "lib")
RUBATO = os.path.join(BIN, "rubato")
TENANT = os.path.join(BIN, "tests", "rubato-test-tenant")

# Only a hang reaches it.
DEADLINE_S = 90


def wait_until(condition, what):
    """Returns the first true value of `condition()`; fails after the deadline."""
    end = time.monotonic() + DEADLINE_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"did not happen in {DEADLINE_S} s: {what}")
        time.sleep(0.01)


def now_ns():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def ops_after(program, instant_ns):
    """How many kernels a flood has done, from the first line that it said after the instant."""
    while True:
        _, ops, said_ns = program.expect("ops").split()
        if int(said_ns) > instant_ns:
            return int(ops)


def has_ended(pid):
    """True if the process is gone, or a zombie that nobody has waited for yet."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Program:
    """A started program whose output lines can be waited for."""

    def __init__(self, argv, env, cwd):
        self.argv = argv
        self.lines = []
        self._queue = queue.Queue()
        self.process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.pid = self.process.pid
        self._errors = []
        self._readers = [
            threading.Thread(target=self._read_out, daemon=True),
            threading.Thread(target=self._read_err, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_out(self):
        for line in self.process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def _read_err(self):
        for line in self.process.stderr:
            self._errors.append(line)

    @property
    def errors(self):
        return "".join(self._errors)

    def line(self):
        """The next line of output; None at its end."""
        try:
            line = self._queue.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"{self.argv} says nothing; before: {self.lines[-5:]}; "
                                 f"stderr: {self.errors}") from None
        if line is not None:
            self.lines.append(line)
        return line

    def expect(self, start):
        """Reads lines until one begins with `start`, and returns that one."""
        while True:
            line = self.line()
            if line is None:
                raise AssertionError(f"{self.argv} ended without '{start}'; "
                                     f"output: {self.lines[-5:]}; stderr: {self.errors}")
            if line.startswith(start):
                return line

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line):
        self.say(line)
        return self.line()

    def end_input(self):
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self):
        """The exit code (negative: the signal), once all output has been read."""
        code = self.process.wait(timeout=DEADLINE_S)
        for reader in self._readers:
            reader.join(timeout=DEADLINE_S)
        while True:
            try:
                line = self._queue.get_nowait()
            except queue.Empty:
                return code
            if line is not None:
                self.lines.append(line)


class Rig:
    def __init__(self, dilation=20, gpu=True, **settings):
        self.dir = tempfile.mkdtemp(prefix="rbt-", dir="/tmp")
        self.runtime = os.path.join(self.dir, "run", "rubato")
        os.mkdir(os.path.join(self.dir, "run"), 0o700)
        self.dilation = dilation
        self.log_path = os.path.join(self.dir, "gpu.jsonl")
        self.programs = []
        self.gpu = None
        self.env = {
            key: value for key, value in os.environ.items()
            if not key.startswith(("RUBATO_", "CUDA_", "LD_", "XDG_"))
        }
        self.env.update({
            "XDG_RUNTIME_DIR": os.path.join(self.dir, "run"),
            "XDG_STATE_HOME": os.path.join(self.dir, "state"),
            "RUBATO_METRICS_ADDRESS": "127.0.0.1:0",
            "RUBATO_TIME_DILATION": str(dilation),
            "RUBATO_SOFTGPU_DIR": os.path.join(self.dir, "gpu"),
            "RUBATO_SOFTGPU_DILATION": str(dilation),
            "RUBATO_SOFTGPU_LOG": self.log_path,
            "LD_LIBRARY_PATH": os.path.join(LIB, "softgpu"),
        })
        self.env.update({f"RUBATO_SOFTGPU_{key}": str(value) for key, value in settings.items()})
        if gpu:
            try:
                self.start_gpu()
            except BaseException:
                self.close()
                raise

    # -- The GPU ---------------------------------------------------------------------------------

    def start_gpu(self):
        """Starts the device process and waits until programs can connect."""
        self.gpu = subprocess.Popen([os.path.join(BIN, "rubato-softgpu"), "--with-parent"],
                                    env=self.env, stdin=subprocess.DEVNULL)
        path = os.path.join(self.env["RUBATO_SOFTGPU_DIR"], "device.sock")

        def answers():
            if self.gpu.poll() is not None:
                raise AssertionError(f"rubato-softgpu ended with {self.gpu.returncode}")
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                try:
                    probe.connect(path)
                except OSError:
                    return False
                return True

        wait_until(answers, "the software GPU listens")

    def stop_gpu(self):
        """Ends the device process and returns what it logged."""
        self.gpu.terminate()
        self.gpu.wait(timeout=DEADLINE_S)
        self.gpu = None
        with open(self.log_path, encoding="utf-8") as log:
            return [json.loads(line) for line in log]

    # -- Rubato ----------------------------------------------------------------------------------

    def rubato(self, *arguments, env=None):
        """Runs the command to its end."""
        return subprocess.run([RUBATO, *arguments], env=env or self.env, cwd=self.dir, text=True,
                              capture_output=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL)

    def up(self, *arguments):
        result = self.rubato("up", *arguments)
        if result.returncode != 0:
            raise AssertionError(f"rubato up: {result.stderr}{self.scheduler_log()}")
        return self.scheduler()

    def status(self):
        result = self.rubato("status", "--output", "json")
        if result.returncode != 0:
            raise AssertionError(f"rubato status: {result.stderr}")
        return json.loads(result.stdout)

    def scheduler(self):
        return self.status()["scheduler"]

    def tenant(self, name):
        """What the scheduler knows of a tenant; None if it knows none of this name."""
        for tenant in self.status()["tenants"]:
            if tenant["name"] == name:
                return tenant
        return None

    def tenant_device(self, name):
        tenant = self.tenant(name)
        return tenant["devices"][0] if tenant and tenant["devices"] else None

    def scheduler_log(self):
        try:
            with open(os.path.join(self.runtime, "scheduler.log"), encoding="utf-8") as log:
                return log.read()
        except FileNotFoundError:
            return ""

    def scrape(self):
        address = self.scheduler()["metrics_address"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE_S) as answer:
            return answer.read().decode()

    def metric_types(self):
        return dict(line.split()[2:4] for line in self.scrape().splitlines()
                    if line.startswith("# TYPE "))

    def metrics(self):
        """Metric samples by name with labels, as Prometheus writes them."""
        samples = {}
        for line in self.scrape().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
        return samples

    # -- Programs --------------------------------------------------------------------------------

    def start(self, argv, env=None):
        program = Program([str(word) for word in argv], env or self.env, self.dir)
        self.programs.append(program)
        return program

    def run(self, options, argv, env=None):
        """A program under `rubato run`."""
        return self.start([RUBATO, "run", *options, "--", *argv], env)

    def realtime(self, name, argv, *options, period_ns=None):
        period = [] if period_ns is None else ["--period", f"{period_ns}ns"]
        return self.run(["--class", "realtime", "--name", name, *period, *options], argv)

    def best_effort(self, name, argv, *options):
        return self.run(["--class", "best-effort", "--name", name, *options], argv)

    def child_of(self, program):
        """The PID of the program that a `rubato run` wraps."""

        def find():
            path = f"/proc/{program.pid}/task/{program.pid}/children"
            try:
                with open(path, encoding="ascii") as children:
                    words = children.read().split()
            except FileNotFoundError:
                return None
            return int(words[0]) if words else None

        return wait_until(find, "the wrapped program runs")

    # -- The end ---------------------------------------------------------------------------------

    def processes(self):
        """Every process that carries this rig's folder in its environment."""
        marks = (f"RUBATO_SOFTGPU_DIR={self.dir}/gpu".encode(),
                 f"XDG_RUNTIME_DIR={self.dir}/run".encode())
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                with open(f"/proc/{entry}/environ", "rb") as environ:
                    variables = environ.read().split(b"\0")
            except OSError:
                continue
            if any(mark in variables for mark in marks):
                found.append(int(entry))
        return found

    def close(self):
        for _ in range(5):
            left = self.processes()
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for program in self.programs:
                program.process.poll()
            if not left:
                break
        for program in self.programs:
            program.process.kill()
            program.process.wait()
            for stream in (program.process.stdin, program.process.stdout, program.process.stderr):
                try:
                    stream.close()
                except (BrokenPipeError, ValueError):
                    pass
        if self.gpu is not None:
            self.gpu.kill()
            self.gpu.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class RigTest(unittest.TestCase):
    """A test with rigs that end with it."""

    def rig(self, **settings):
        rig = Rig(**settings)
        self.addCleanup(rig.close)
        return rig

    def finish(self, program, code=0):
        """Waits for the program's end and asserts its exit code."""
        got = program.wait()
        self.assertEqual(got, code, f"{program.argv}: {program.errors} {program.lines[-5:]}")
        return program.lines


def main():
    unittest.main(verbosity=2)
