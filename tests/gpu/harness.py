"""Programs of a check, with and without Rubato, and what a check can say: pass, fail, skip.

The handling of processes and schedulers is that of bench/gpu: one way to start a scheduler of one's
own and to be sure that nothing of it is left.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "bench", "gpu"))

import session

PROGRAMS = os.path.join(HERE, "programs")
RESULT_TIMEOUT_S = 150.0


class Failed(Exception):
    """What was seen and what was expected, in one line."""


class Skipped(Exception):
    """What this machine lacks."""


def expect(condition, message):
    if not condition:
        raise Failed(message)


def poll(question, what, timeout_s=30.0):
    """The first true answer of question(), asked until it comes; Failed after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Failed("not within %.0f s: %s" % (timeout_s, what))
        time.sleep(0.05)


class Program:
    """A child whose stdout is read line by line and whose stdin stays open until finish()."""

    def __init__(self, argv, env, log_path):
        self.name = os.path.basename(argv[-1] if len(argv) < 3 else " ".join(argv)[-60:])
        self._log_path = log_path
        self._log = open(log_path, "w", encoding="utf-8")
        self._process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._log, text=True,
                                         start_new_session=True)
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self):
        return self._process.pid

    def _read(self):
        for line in self._process.stdout:
            if line.strip():
                self._lines.put(line.strip())
        self._lines.put(None)

    def _why(self):
        tail = session.log_tail(self._log_path, 3).strip().splitlines()
        return "; it said: %s" % tail[-1] if tail else ""

    def line(self, timeout_s=RESULT_TIMEOUT_S):
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise Failed("%s said nothing for %.0f s" % (self.name, timeout_s)) from None
        if line is None:
            raise Failed("%s ended with exit code %d%s" %
                         (self.name, self._process.wait(), self._why()))
        return line

    def result(self):
        """The JSON object it prints; a program may say that it cannot be run here."""
        while True:
            line = self.line()
            if line.startswith("{"):
                found = json.loads(line)
                if "skip" in found:
                    raise Skipped(found["skip"])
                return found

    def drain(self):
        """The last line printed so far, or None."""
        last = None
        while not self._lines.empty():
            line = self._lines.get()
            if line is None:
                self._lines.put(None)
                break
            last = line
        return last

    def finish(self):
        """Ends its stdin; Failed unless it then exits with 0."""
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            code = self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            raise Failed("%s does not exit" % self.name) from None
        if code != 0:
            raise Failed("%s ended with exit code %d%s" % (self.name, code, self._why()))

    def alive(self):
        return self._process.poll() is None

    def end(self):
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except OSError:
            pass
        self._process.wait()
        self._log.close()


class Bench:
    """What one check works with: a scratch folder, programs, at most one scheduler."""

    _alone = {}  # of all checks: arguments -> result

    def __init__(self, scratch, build_dir, binaries):
        self.scratch = scratch
        self.build_dir = build_dir
        self._binaries = binaries
        self._service = session.NoService(scratch)
        self._programs = []
        self._count = 0
        os.makedirs(scratch)

    def binary(self, name):
        found = self._binaries[name]
        if isinstance(found, Exception):
            raise found
        return found

    def python(self, name, *args):
        return [sys.executable, os.path.join(PROGRAMS, name), *args]

    def scheduler(self, mode="timeslice"):
        self._service = session.RubatoScheduler(self.scratch, self.build_dir, mode)
        self._service.start()

    def start(self, argv, *rubato_args, bare=False):
        """Starts a program, under Rubato with `rubato_args` if a scheduler is up and not `bare`."""
        self._count += 1
        service = session.NoService(self.scratch) if bare else self._service
        env = service.environment(session.base_environment(self.scratch))
        program = Program(service.wrap(argv, list(rubato_args)), env,
                          os.path.join(self.scratch, "program%d.log" % self._count))
        self._programs.append(program)
        return program

    def alone(self, argv):
        """The result of a program without Rubato; asked once per run of all checks."""
        key = tuple(argv)
        if key not in self._alone:
            program = self.start(argv, bare=True)
            self._alone[key] = program.result()
            program.finish()
        return self._alone[key]

    def both(self, argv, *rubato_args):
        """The result of a program alone and under Rubato, the latter proven to have been attached.

        Returns (alone, with Rubato, the tenant's status).
        """
        first = self.alone(argv)
        self.scheduler()
        program = self.start(argv, *rubato_args)
        second = program.result()
        tenant = self.only_tenant()
        expect(tenant["sessions"] >= 1, "the program ran without being attached")
        program.finish()
        return first, second, tenant

    def status(self):
        found = self._service.status()
        expect(found is not None, "rubato status gives no JSON")
        return found

    def tenants(self):
        return self.status()["tenants"]

    def only_tenant(self):
        tenants = self.tenants()
        expect(len(tenants) == 1, "%d tenants instead of 1" % len(tenants))
        return tenants[0]

    def close(self):
        for program in self._programs:
            program.end()
        try:
            self._service.stop()
        except session.CellError as error:
            print("# while cleaning up: %s" % error, file=sys.stderr)
        deadline = time.monotonic() + 10
        while session.marked_processes(self.scratch) and time.monotonic() < deadline:
            time.sleep(0.05)
        session.sweep(self.scratch)
