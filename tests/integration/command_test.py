"""The rubato command as users meet it: exit codes, signals, errors, the scheduler's life."""

import json
import os
import shutil
import signal
import stat

import rig


class ExitCodes(rig.RigTest):
    def test_the_programs_own_code_passes_through(self):
        world = self.rig()
        for code in (0, 1, 42, 125):
            with self.subTest(code=code):
                program = world.run([], ["sh", "-c", f"exit {code}"])
                self.finish(program, code)

    def test_death_by_signal_is_128_plus(self):
        world = self.rig()
        self.finish(world.run([], ["sh", "-c", "kill -KILL $$"]), 128 + signal.SIGKILL)
        self.finish(world.run([], ["sh", "-c", "kill -SEGV $$"]), 128 + signal.SIGSEGV)

    def test_programs_that_cannot_be_run(self):
        world = self.rig()
        missing = world.run([], ["rubato-no-such-program"])
        self.finish(missing, 127)
        self.assert_one_line(missing.errors, "rubato run: ", "rubato-no-such-program")
        path = os.path.join(world.dir, "plain")
        with open(path, "w", encoding="ascii") as plain:
            plain.write("text")
        refused = world.run([], [path])
        self.finish(refused, 126)
        self.assert_one_line(refused.errors, "rubato run: ", path)

    def assert_one_line(self, text, start, *parts):
        self.assertEqual(text.count("\n"), 1, text)
        self.assertTrue(text.startswith(start), text)
        self.assertIn("; ", text, "says nothing to do")
        for part in parts:
            self.assertIn(part, text)

    def test_a_machine_without_a_gpu(self):
        world = self.rig(gpu=False)
        del world.env["LD_LIBRARY_PATH"]
        if self.driver_is_installed():
            self.skipTest("this machine has a GPU's driver")
        result = world.rubato("run", "--", "true")
        self.assertEqual(result.returncode, 125)
        self.assert_one_line(result.stderr, "rubato run: ", "no GPU driver", "--no-gpu-check")
        # No scheduler was started for nothing.
        self.assertEqual(world.rubato("status").returncode, 1)
        result = world.rubato("run", "--no-gpu-check", "--", "true")
        self.assertEqual(result.returncode, 0, result.stderr)

    @staticmethod
    def driver_is_installed():
        result = rig.subprocess.run(["ldconfig", "-p"], capture_output=True, text=True,
                                    env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}, check=False)
        return "libcuda.so.1" in result.stdout or os.path.exists("/dev/kfd")

    def test_an_installation_without_its_parts(self):
        world = self.rig()
        alone = os.path.join(world.dir, "bin")
        os.mkdir(alone)
        command = shutil.copy(rig.RUBATO, alone)
        result = rig.subprocess.run([command, "run", "--", "true"], env=world.env, text=True,
                                    capture_output=True, timeout=rig.DEADLINE_S, check=False)
        self.assertEqual(result.returncode, 125)
        self.assert_one_line(result.stderr, "rubato run: ", "librubato-cuda.so", "install")
        result = rig.subprocess.run([command, "up"], env=world.env, text=True,
                                    capture_output=True, timeout=rig.DEADLINE_S, check=False)
        self.assertEqual(result.returncode, 1)
        self.assert_one_line(result.stderr, "rubato up: ", "rubato-scheduler", "install")

    def test_what_the_scheduler_refuses_is_125(self):
        world = self.rig()
        program = world.run(["--class", "realtime", "--period", "1ns"], ["true"])
        self.finish(program, 125)
        self.assertEqual(program.errors.count("\n"), 1, program.errors)
        self.assertRegex(program.errors, "^rubato run: period_ns .*100us")

    def test_who_does_not_fit_runs_as_best_effort_or_not_at_all(self):
        world = self.rig()
        tight = ["--class", "realtime", "--name", "tight", "--period", "100ms", "--deadline", "1us"]
        program = world.run(tight, ["sh", "-c", "echo ready; read line"])
        program.expect("ready")
        tenant = world.tenant("tight")
        self.assertEqual((tenant["asked_class"], tenant["class"]), ("realtime", "best-effort"))
        admission = tenant["admission"]
        self.assertEqual((admission["granted"], admission["reason"]),
                         ("best-effort", "response-time"))
        self.assertEqual(admission["deadline_ns"], 1000)
        self.assertGreater(admission["response_ns"], 1000)
        table = world.rubato("status").stdout
        self.assertRegex(table, r"tight +realtime +best-effort +- +- +response-time +a job could")
        program.end_input()
        program.wait()
        self.assert_one_line(program.errors, "rubato run: the program runs as best-effort",
                             "deadline is 1us")
        refused = world.run(["--require-class", *tight], ["sh", "-c", "echo ready"])
        self.finish(refused, 125)
        self.assertEqual(refused.lines, [])
        self.assert_one_line(refused.errors, "rubato run: ", "deadline is 1us")
        fits = world.run(["--require-class", "--class", "realtime", "--name", "fits", "--period",
                          "1s"], ["sh", "-c", "exit 7"])
        self.finish(fits, 7)
        self.assertEqual(fits.errors, "")

    def test_probes_need_no_port(self):
        world = self.rig()
        scheduler = os.path.join(rig.BIN, "rubato-scheduler")

        def probe(flag):
            return rig.subprocess.run([scheduler, flag, "--runtime-dir", world.runtime],
                                      capture_output=True, text=True, timeout=rig.DEADLINE_S,
                                      check=False)
        nobody = probe("--alive")
        self.assertEqual(nobody.returncode, 1)
        self.assert_one_line(nobody.stderr, "rubato-scheduler: no scheduler serves at ")
        world.up()
        for flag in ("--health", "--alive"):
            self.assertEqual(probe(flag).returncode, 0)


class Signals(rig.RigTest):
    def test_signals_reach_the_program(self):
        world = self.rig()
        script = ("import signal, sys\n"
                  "waited = [int(word) for word in sys.argv[1:]]\n"
                  "signal.pthread_sigmask(signal.SIG_BLOCK, waited)\n"
                  "print('ready', flush=True)\n"
                  "total = 0\n"
                  "for _ in waited:\n"
                  "    got = signal.sigwait(waited)\n"
                  "    total += got\n"
                  "    print('got', int(got), flush=True)\n"
                  "sys.exit(total % 100)\n")
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        program = world.run([], ["python3", "-c", script, *(str(int(n)) for n in numbers)])
        program.expect("ready")
        for number in numbers:
            program.signal(number)
            self.assertEqual(program.expect("got"), f"got {int(number)}")
        self.finish(program, sum(numbers) % 100)

    def test_a_program_that_listens_to_none_ends_by_them(self):
        world = self.rig()
        program = world.run([], ["sh", "-c", "echo ready; read line"])
        program.expect("ready")
        program.signal(signal.SIGTERM)
        self.finish(program, 128 + signal.SIGTERM)


class Environment(rig.RigTest):
    def test_libraries_come_before_what_was_preloaded(self):
        world = self.rig()
        env = dict(world.env, LD_PRELOAD="/lib/does-not-matter.so")
        program = world.run([], ["sh", "-c", "echo P $LD_PRELOAD; echo S $RUBATO_SOCKET"], env)
        preload = program.expect("P ").split()[1].split(":")
        self.assertEqual([os.path.basename(path) for path in preload],
                         ["librubato-cuda.so", "librubato-hip.so", "does-not-matter.so"])
        self.assertTrue(program.expect("S ").split()[1].startswith(world.runtime + "/attach/"))
        self.finish(program)

    def test_a_program_that_never_touches_a_gpu_makes_no_connection(self):
        world = self.rig()
        program = world.run(["--name", "quiet"], ["python3", "-c",
                                                  "print('ready', flush=True); input()"])
        program.expect("ready")
        pid = world.child_of(program)
        with open(f"/proc/{pid}/maps", encoding="ascii") as maps:
            self.assertIn("librubato-cuda.so", maps.read())
        fds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        self.assertFalse([fd for fd in fds if fd.startswith("socket:") or "memfd" in fd], fds)
        self.assertEqual(len(os.listdir(f"/proc/{pid}/task")), 1)
        self.assertEqual(world.tenant("quiet")["sessions"], 0)
        program.say("")
        self.finish(program)
        self.assertIsNone(world.tenant("quiet"))


class SchedulerLife(rig.RigTest):
    def test_up_twice_and_down_twice(self):
        world = self.rig()
        first = world.up()
        self.assertEqual(first["mode"], "timeslice")
        again = world.rubato("up")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertIn("runs already", again.stdout)
        self.assertEqual(world.scheduler()["pid"], first["pid"])
        other = world.rubato("up", "--mode", "hybrid")
        self.assertEqual(other.returncode, 1)
        self.assertIn("rubato down", other.stderr)
        down = world.rubato("down")
        self.assertEqual(down.returncode, 0, down.stderr)
        self.assertTrue(rig.has_ended(first["pid"]))
        self.assertEqual(world.rubato("down").returncode, 0)
        self.assertEqual(world.rubato("status").returncode, 1)
        result = world.rubato("status", "--output", "json")
        self.assertIsNone(json.loads(result.stdout)["scheduler"])

    def test_many_first_runs_start_one_scheduler(self):
        world = self.rig()
        programs = [world.run(["--name", f"p{i}"], ["sh", "-c", "echo ready; read line"])
                    for i in range(6)]
        for program in programs:
            program.expect("ready")
        names = sorted(tenant["name"] for tenant in world.status()["tenants"])
        self.assertEqual(names, [f"p{i}" for i in range(6)])
        for program in programs:
            program.say("")
            self.finish(program)
        self.assertEqual(world.status()["tenants"], [])

    def test_down_leaves_programs_running(self):
        world = self.rig()
        world.up()
        program = world.best_effort("flood", [rig.TENANT, "flood"])
        program.expect("ops")
        down = world.rubato("down")
        self.assertEqual(down.returncode, 0, down.stderr)
        self.assertIn("1 session runs on", down.stdout)
        before = rig.ops_after(program, rig.now_ns())
        while rig.ops_after(program, rig.now_ns()) < before + 20:
            pass
        program.end_input()
        self.finish(program)

    def test_a_killed_wrapper_takes_its_tenant_along(self):
        world = self.rig()
        program = world.run(["--name", "orphan"], ["sh", "-c", "echo ready; read line"])
        program.expect("ready")
        self.assertIsNotNone(world.tenant("orphan"))
        program.signal(signal.SIGKILL)
        rig.wait_until(lambda: world.tenant("orphan") is None, "the tenant is gone")

    def test_the_runtime_directory_is_ours_alone(self):
        world = self.rig()
        world.up()
        self.assertEqual(stat.S_IMODE(os.stat(world.runtime).st_mode), 0o700)
        world.rubato("down")
        os.chmod(world.runtime, 0o755)
        result = world.rubato("up")
        self.assertEqual(result.returncode, 1)
        self.assertIn("chmod", result.stderr)

    def test_a_taken_metrics_port_is_named(self):
        world = self.rig()
        with rig.socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            result = world.rubato("up", "--metrics-address", address)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertIn(address, result.stderr)

    def test_foreground_ends_by_signal(self):
        world = self.rig()
        program = world.start([rig.RUBATO, "up", "--foreground"])
        rig.wait_until(lambda: world.rubato("status").returncode == 0, "the scheduler answers")
        program.signal(signal.SIGTERM)
        self.finish(program)
        self.assertEqual(world.rubato("status").returncode, 1)


class Views(rig.RigTest):
    def test_top_once(self):
        world = self.rig()
        program = world.best_effort("trainer", [rig.TENANT, "flood"])
        program.expect("ops")
        result = world.rubato("top", "--once", "--interval", "200ms")
        self.assertEqual(result.returncode, 0, result.stderr)
        header, row = [line.split() for line in result.stdout.splitlines()[1:3]]
        self.assertEqual(header[:3], ["TENANT", "CLASS", "JOBS/S"])
        self.assertEqual(row[:3], ["trainer", "best-effort", "-"])
        self.assertNotIn("\x1b", result.stdout)
        program.end_input()
        self.finish(program)

    def test_status_names_tenants_and_devices(self):
        world = self.rig()
        program = world.best_effort("trainer", [rig.TENANT, "flood"], "--memory", "1GiB")
        program.expect("ops")
        result = world.rubato("status")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("trainer", result.stdout)
        self.assertIn("1 GiB", result.stdout)
        status = world.status()
        self.assertEqual(len(status["devices"]), 1)
        self.assertEqual(status["devices"][0]["sessions"], 1)
        self.assertEqual(status["tenants"][0]["limit_bytes"], 1 << 30)
        session = status["tenants"][0]["session_list"][0]
        self.assertEqual(session["vendor"], "cuda")
        self.assertEqual(session["pid"], world.child_of(program))
        program.end_input()
        self.finish(program)


class Doctor(rig.RigTest):
    def checks(self, world, *arguments):
        result = world.rubato("doctor", "--output", "json", *arguments)
        document = json.loads(result.stdout)
        self.assertEqual(result.returncode, 0 if document["ok"] else 1)
        return document["ok"], {check["check"]: check for check in document["checks"]}

    def test_all_is_well(self):
        world = self.rig()
        healthy, checks = self.checks(world, "--mode", "hybrid")
        self.assertTrue(healthy, checks)
        self.assertIn("softgpu", checks["cuda-driver"]["detail"])
        self.assertEqual(checks["preloading"]["verdict"], "ok")
        self.assertEqual(checks["gpus"]["verdict"], "ok", checks["gpus"])
        world.up()
        healthy, checks = self.checks(world)
        self.assertTrue(healthy, checks)
        self.assertIn("timeslice", checks["scheduler"]["detail"])

    def test_each_missing_thing_is_named_with_its_cure(self):
        world = self.rig(gpu=False)
        del world.env["LD_LIBRARY_PATH"]
        if ExitCodes.driver_is_installed():
            self.skipTest("this machine has a GPU's driver")
        alone = os.path.join(world.dir, "bin")
        os.mkdir(alone)
        command = shutil.copy(rig.RUBATO, alone)
        os.mkdir(world.runtime, 0o777)
        os.chmod(world.runtime, 0o777)
        result = rig.subprocess.run([command, "doctor", "-o", "json", "--mode", "mps"],
                                    env=world.env, text=True, capture_output=True,
                                    timeout=rig.DEADLINE_S, check=False)
        self.assertEqual(result.returncode, 1, result.stdout)
        missing = {check["check"]: check for check in json.loads(result.stdout)["checks"]
                   if check["verdict"] == "missing"}
        for name in ("preloaded-libraries", "scheduler-program", "cuda-driver",
                     "runtime-directory", "mps"):
            self.assertIn(name, missing)
            self.assertTrue(missing[name]["cure"], name)


class Modes(rig.RigTest):
    def test_hybrid_starts_and_stops_mps(self):
        world = self.rig()
        scheduler = world.up("--mode", "hybrid")
        self.assertEqual(scheduler["mode"], "hybrid")
        self.assertTrue(scheduler["mps_directory"])
        rig.wait_until(lambda: world.status()["mps"]["healthy"], "MPS answers the scheduler")
        down = world.rubato("down")
        self.assertEqual(down.returncode, 0, down.stderr)
        self.assertIn("stopped the MPS control daemon", down.stdout)
        left = [pid for pid in world.processes() if pid != world.gpu.pid]
        self.assertEqual(left, [])

    def test_down_leaves_mps_to_those_who_use_it(self):
        world = self.rig()
        world.up("--mode", "hybrid")
        program = world.best_effort("trainer", [rig.TENANT, "flood"])
        program.expect("ops")
        down = world.rubato("down")
        self.assertEqual(down.returncode, 0, down.stderr)
        self.assertIn("MPS goes on", down.stdout)
        rig.ops_after(program, rig.now_ns())
        # The next scheduler finds the daemon running and the program comes back to it.
        world.up("--mode", "hybrid")
        rig.wait_until(lambda: (world.tenant("trainer") or {}).get("sessions") == 1,
                       "the program is back")
        program.end_input()
        self.finish(program)
        down = world.rubato("down")
        self.assertIn("stopped the MPS control daemon", down.stdout)

    def test_a_missing_mps_program_is_named(self):
        world = self.rig()
        world.env["RUBATO_MPS_CONTROL"] = "/no/such/mps-control"
        result = world.rubato("up", "--mode", "mps")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertIn("/no/such/mps-control was not found", result.stderr)
        self.assertEqual(world.rubato("status").returncode, 1)


if __name__ == "__main__":
    rig.main()
