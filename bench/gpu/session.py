"""Processes of a benchmark: tenants, the MPS daemon, a scheduler, and the certainty that all end.

Everything is started with BENCH_MARK=<scratch folder> in its environment, and `sweep` ends whatever
still carries that mark: also daemons that left their process group. Nothing here needs a GPU.
"""

import collections
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time

import protocol

HERE = os.path.dirname(os.path.abspath(__file__))
MARK = "BENCH_MARK"
INIT_TIMEOUT_S = 60.0
SERVICE_TIMEOUT_S = 30.0
QUIT_TIMEOUT_S = 10.0


class CellError(Exception):
    """Why one cell of the table cannot be measured, in one line; `log` may say more."""

    def __init__(self, message, log=""):
        super().__init__(message)
        self.log = log


def base_environment(scratch):
    """The caller's environment without what would decide how the GPU is shared."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_MPS_")}
    for name in ("LD_PRELOAD", "CUDA_DEVICE_MAX_CONNECTIONS"):
        env.pop(name, None)
    env[MARK] = scratch
    env["PYTHONUNBUFFERED"] = "1"
    return env


def log_tail(path, lines=12):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return "".join(collections.deque(f, lines))
    except OSError:
        return ""


def marked_processes(scratch):
    """Ids of the processes, other than this one, whose environment carries the mark."""
    mark = ("%s=%s" % (MARK, scratch)).encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open("/proc/%s/environ" % entry, "rb") as f:
                if mark in f.read().split(b"\0"):
                    found.append(int(entry))
        except OSError:
            continue
    return found


def sweep(scratch, patience_s=5.0):
    """Ends every marked process: SIGTERM, then SIGKILL. Returns how many were still there."""
    left = marked_processes(scratch)
    count = len(left)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in left:
            try:
                os.kill(pid, number)
            except OSError:
                pass
        deadline = time.monotonic() + patience_s
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = marked_processes(scratch)
        if not left:
            break
    return count


class Tenant:
    """A tenant process and what it said."""

    def __init__(self, name, argv, env, log_path):
        self.name = name
        self._log_path = log_path
        self._messages = queue.Queue()
        self._said = collections.deque(maxlen=50)
        self._log = open(log_path, "w", encoding="utf-8")
        try:
            self._process = subprocess.Popen(
                argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                text=True, bufsize=1, start_new_session=True, errors="replace")
        except OSError as error:
            self._log.close()
            raise CellError("cannot start %s: %s" % (argv[0], error.strerror)) from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            message = protocol.parse(line)
            if message is not None:
                self._messages.put(message)
            else:
                self._log.write(line)
                self._log.flush()
        self._messages.put(None)

    def send(self, **command):
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            pass  # its end is reported by the next expect()

    def expect(self, event, timeout_s):
        """The next message, which must be `event`. Raises CellError with the tenant's reason."""
        try:
            message = self._messages.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise CellError("%s: no '%s' within %.0f s" % (self.name, event, timeout_s),
                            log_tail(self._log_path)) from None
        if message is None:
            code = self._process.wait()
            how = "killed by signal %d" % -code if code < 0 else "exit code %d" % code
            raise CellError("%s ended before '%s' (%s)" % (self.name, event, how),
                            log_tail(self._log_path))
        if message["event"] != event:
            raise CellError("%s: %s" % (self.name, message.get("reason", message["event"])),
                            log_tail(self._log_path))
        return message

    def ask_to_quit(self):
        self.send(cmd="stop")
        self.send(cmd="quit")
        try:
            self._process.stdin.close()
        except OSError:
            pass

    def end(self, patience_s=QUIT_TIMEOUT_S):
        """Waits for the process, kills its group after `patience_s`."""
        try:
            self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except OSError:
            pass
        self._process.wait()
        # A grandchild may hold the pipe; it carries the mark and the sweep ends it.
        self._reader.join(timeout=1.0)
        if not self._reader.is_alive():
            self._process.stdout.close()
            self._log.close()


def _run_tool(argv, env, log_path, timeout_s, text=None):
    """Runs a command to its end with output in a file: a daemon that it leaves holds no pipe."""
    with open(log_path, "a", encoding="utf-8") as log:
        try:
            process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=log,
                                       stderr=log, text=True, start_new_session=True)
        except OSError as error:
            raise CellError("cannot start %s: %s" % (argv[0], error.strerror)) from error
        try:
            process.communicate(text or "", timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise CellError("%s did not return within %.0f s" % (" ".join(argv), timeout_s),
                            log_tail(log_path)) from None
    return process.returncode


class NoService:
    """Tenants share the GPU with nothing of ours or the vendor's between them."""

    STARTS_TENANTS = False  # whether it must be up before a tenant's process starts

    def __init__(self, scratch):
        self._scratch = scratch

    def start(self):
        pass

    def environment(self, env):
        # A folder without a daemon: nobody's MPS on this machine is joined by accident.
        return {**env, "CUDA_MPS_PIPE_DIRECTORY": os.path.join(self._scratch, "no-mps")}

    def wrap(self, argv, rubato_args):
        del rubato_args
        return argv

    def status(self):
        return None

    def stop(self):
        pass


class MpsDaemon(NoService):
    """The vendor's MPS control daemon in folders of its own; no other setting is touched."""

    CONTROL = "nvidia-cuda-mps-control"

    def __init__(self, scratch):
        super().__init__(scratch)
        self._pipe = os.path.join(scratch, "mps-pipe")
        self._logs = os.path.join(scratch, "mps-log")
        self._started = False

    def _env(self):
        return self.environment(base_environment(self._scratch))

    def environment(self, env):
        return {**env, "CUDA_MPS_PIPE_DIRECTORY": self._pipe, "CUDA_MPS_LOG_DIRECTORY": self._logs}

    def start(self):
        if shutil.which(self.CONTROL) is None:
            raise CellError("%s is not on the PATH: it comes with the driver" % self.CONTROL)
        os.makedirs(self._pipe, exist_ok=True)
        os.makedirs(self._logs, exist_ok=True)
        self._started = True
        log = os.path.join(self._scratch, "mps-control.log")
        code = _run_tool([self.CONTROL, "-d"], self._env(), log, SERVICE_TIMEOUT_S)
        if code != 0:
            raise CellError("%s -d failed with exit code %d" % (self.CONTROL, code), log_tail(log))

    def stop(self):
        if not self._started:
            return
        self._started = False
        _run_tool([self.CONTROL], self._env(), os.path.join(self._scratch, "mps-control.log"),
                  SERVICE_TIMEOUT_S, "quit\n")


class RubatoScheduler(NoService):
    """`rubato up` with a private runtime folder, `rubato run` around each tenant, `rubato down`."""

    STARTS_TENANTS = True

    def __init__(self, scratch, build_dir, mode, extra_env=None):
        super().__init__(scratch)
        self._extra_env = extra_env or {}
        self._rubato = os.path.join(os.path.abspath(build_dir), "bin", "rubato")
        self._mode = mode
        self._runtime = os.path.join(scratch, "run")
        self._log = os.path.join(scratch, "rubato.log")
        self._started = False

    def environment(self, env):
        # No metrics port: a scheduler of the machine's own may have it.
        return {**env, "XDG_RUNTIME_DIR": self._runtime, "RUBATO_METRICS_ADDRESS": "none",
                # Each run learns by itself what it knows.
                "RUBATO_PROFILE_STORE": "none",
                **self._extra_env}

    def _env(self):
        return self.environment(base_environment(self._scratch))

    def start(self):
        if not os.access(self._rubato, os.X_OK):
            raise CellError("no bin/rubato under --build-dir: build it first (make build)")
        os.makedirs(self._runtime, mode=0o700, exist_ok=True)
        self._started = True
        code = _run_tool([self._rubato, "up", "--mode", self._mode], self._env(), self._log,
                         SERVICE_TIMEOUT_S)
        if code != 0:
            raise CellError("rubato up --mode %s failed with exit code %d" % (self._mode, code),
                            log_tail(self._log))

    def wrap(self, argv, rubato_args):
        return [self._rubato, "run"] + rubato_args + ["--"] + argv

    def status(self):
        """What `rubato status --output json` says, or None; never an error of the benchmark."""
        try:
            out = subprocess.run([self._rubato, "status", "--output", "json"], env=self._env(),
                                 stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                 timeout=5.0, check=False).stdout
            return json.loads(out)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None

    def stop(self):
        if not self._started:
            return
        self._started = False
        _run_tool([self._rubato, "down"], self._env(), self._log, SERVICE_TIMEOUT_S)


class Session:
    """The tenants of one measurement, from their start to their end.

    start() may come long before open(): importing PyTorch touches no GPU, so the next session's
    imports run while this one's tenants set up.
    """

    def __init__(self, scratch, service, tenants, starts_early):
        """`tenants`: list of (name, role, argv, environment additions, rubato arguments)."""
        self._scratch = scratch
        self._service = service
        self._plan = tenants
        self.starts_early = starts_early
        self._tenants = {}
        self._roles = {name: role for name, role, _, _, _ in tenants}
        self._imported = False
        self._service_up = False
        self._start_error = None

    def _of_role(self, role):
        return [self._tenants[name] for name, r in self._roles.items() if r == role]

    def _open_service(self):
        if not self._service_up:
            self._service_up = True
            self._service.start()

    def start(self):
        """Starts the processes; an error waits for open()."""
        if self._tenants or self._start_error:
            return
        os.makedirs(self._scratch, exist_ok=True)
        try:
            if self._service.STARTS_TENANTS:
                self._open_service()
            for name, _, argv, extra_env, rubato_args in self._plan:
                env = self._service.environment(base_environment(self._scratch))
                env.update(extra_env)
                self._tenants[name] = Tenant(name, self._service.wrap(argv, rubato_args), env,
                                             os.path.join(self._scratch, name + ".log"))
        except CellError as error:
            self._start_error = error

    def wait_imported(self, deadline):
        """Waits until the start disturbs no neighbour any more; errors wait for open()."""
        if self._imported or self._start_error:
            return
        try:
            for tenant in self._tenants.values():
                tenant.expect("imported", deadline - time.monotonic())
            self._imported = True
        except CellError as error:
            self._start_error = error

    def open(self, while_waiting=None):
        """Takes every tenant to `ready`. Returns their messages by name."""
        deadline = time.monotonic() + INIT_TIMEOUT_S
        self.start()
        if not self._start_error:
            self.wait_imported(deadline)
        if self._start_error:
            raise self._start_error
        self._open_service()
        for tenant in self._tenants.values():
            tenant.send(cmd="init")
        if while_waiting:
            while_waiting()
        return {name: tenant.expect("ready", deadline - time.monotonic())
                for name, tenant in self._tenants.items()}

    def calibrate(self):
        """Clock calibration of the real-time tenants, one after another."""
        points = {}
        for tenant in self._of_role("rt"):
            tenant.send(cmd="calibrate")
            points[tenant.name] = tenant.expect("calibrated", 60.0)["points"]
        return points

    def measure(self, seconds, lead_s):
        """All tenants at once; best-effort until the last real-time one is done.

        Returns (rt results, be results, start_ns, status of the service) by tenant name.
        """
        real_time, best_effort = self._of_role("rt"), self._of_role("be")
        start_ns = time.monotonic_ns() + int((lead_s + 0.25) * 1e9)
        command = {"cmd": "measure", "start_ns": start_ns, "seconds": seconds, "lead_s": lead_s}
        for tenant in best_effort + real_time:
            tenant.send(**command)
        window_s = lead_s + 0.25 + seconds
        deadline = time.monotonic() + window_s + 20.0
        rt = {tenant.name: tenant.expect("measured", deadline - time.monotonic())
              for tenant in real_time}
        status = self._service.status() if real_time else None
        end_s = (start_ns - time.monotonic_ns()) / 1e9 + seconds + 0.02
        if end_s > 0:
            time.sleep(end_s)  # not a guess: the window's end is this instant
        for tenant in best_effort:
            tenant.send(cmd="stop")
        be = {tenant.name: tenant.expect("measured", deadline - time.monotonic() + 20.0)
              for tenant in best_effort}
        return rt, be, start_ns, status

    def close(self):
        """Ends tenants, then the service, then whatever is left. Never raises CellError."""
        for tenant in self._tenants.values():
            tenant.ask_to_quit()
        for tenant in self._tenants.values():
            tenant.end()
        try:
            if self._service_up:
                self._service.stop()
        except CellError as error:
            print("# while cleaning up: %s" % error, file=sys.stderr)
        # A daemon told to quit needs a moment; only what outlives it is ended by force.
        deadline = time.monotonic() + QUIT_TIMEOUT_S
        while marked_processes(self._scratch) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = sweep(self._scratch)
        if left:
            print("# ended %d process(es) that were left behind" % left, file=sys.stderr)
