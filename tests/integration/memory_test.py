"""Memory limits: one ledger for all processes of a tenant, clean errors, honest answers."""

import os
import signal

import rig

MIB = 1 << 20
OUT_OF_MEMORY = "error 2"


class Memory(rig.RigTest):
    def tenant_environment(self, world, *options):
        """Registers a tenant that lives as long as the returned program, and gives the environment
        with which any process becomes part of it."""
        keeper = world.best_effort("shared", ["sh", "-c",
                                              "echo P $LD_PRELOAD; echo S $RUBATO_SOCKET; read x"],
                                   *options)
        preload = keeper.expect("P ").split()[1]
        socket = keeper.expect("S ").split()[1]
        return dict(world.env, LD_PRELOAD=preload, RUBATO_SOCKET=socket)

    def member(self, world, env):
        program = world.start([rig.TENANT, "memory"], env)
        program.expect("ready")
        return program

    def info(self, program):
        return tuple(int(word) for word in program.ask("info").split()[1:3])

    def test_two_processes_share_one_limit(self):
        world = self.rig()
        env = self.tenant_environment(world, "--memory", "1GiB")
        first, second = self.member(world, env), self.member(world, env)
        self.assertEqual(self.info(first)[1], 1024 * MIB)
        self.assertEqual(first.ask(f"alloc device {600 * MIB}"), "ok 0")
        self.assertEqual(second.ask(f"alloc device {600 * MIB}"), OUT_OF_MEMORY)
        free, total = self.info(second)
        self.assertEqual(total, 1024 * MIB)
        self.assertLessEqual(free, 424 * MIB)
        # What was refused did no harm: a smaller one fits and works.
        self.assertEqual(second.ask(f"alloc device {300 * MIB}"), "ok 0")
        self.assertEqual(second.ask("copy 0"), "ok 0")
        self.assertEqual(first.ask("free 0"), "ok 0")
        self.assertEqual(second.ask(f"alloc device {600 * MIB}"), "ok 1")
        device = world.tenant_device("shared")
        self.assertGreaterEqual(device["memory_used_bytes"], 900 * MIB)
        self.assertEqual(device["memory_refused_total"], 1)
        for program in (first, second):
            program.end_input()
            self.finish(program)

    def test_a_killed_process_gives_its_memory_back(self):
        world = self.rig()
        env = self.tenant_environment(world, "--memory", "1GiB")
        first, second = self.member(world, env), self.member(world, env)
        self.assertEqual(first.ask(f"alloc device {700 * MIB}"), "ok 0")
        self.assertEqual(second.ask(f"alloc device {700 * MIB}"), OUT_OF_MEMORY)
        first.signal(signal.SIGKILL)
        self.finish(first, -signal.SIGKILL)
        rig.wait_until(lambda: second.ask(f"alloc device {700 * MIB}").startswith("ok"),
                       "the ledger is rebuilt")
        self.assertEqual(second.ask("copy 0"), "ok 0")

    def test_every_kind_of_allocation_counts(self):
        for kind in ("device", "async", "managed", "pitch", "physical"):
            with self.subTest(kind=kind):
                world = self.rig()
                env = self.tenant_environment(world, "--memory", "512MiB")
                program = self.member(world, env)
                self.assertEqual(program.ask(f"alloc {kind} {384 * MIB}"), "ok 0")
                self.assertEqual(program.ask(f"alloc {kind} {256 * MIB}"), OUT_OF_MEMORY)
                self.assertEqual(program.ask("free 0"), "ok 0")
                self.assertEqual(program.ask(f"alloc {kind} {256 * MIB}"), "ok 1")
                program.end_input()
                self.finish(program)

    def test_without_a_limit_the_device_is_the_limit(self):
        world = self.rig(MEMORY_BYTES=2048 * MIB)
        program = world.best_effort("free", [rig.TENANT, "memory"])
        program.expect("ready")
        self.assertEqual(self.info(program)[1], 2048 * MIB)
        self.assertEqual(program.ask(f"alloc device {1024 * MIB}"), "ok 0")
        self.assertEqual(program.ask(f"alloc device {1536 * MIB}"), OUT_OF_MEMORY)
        program.end_input()
        self.finish(program)

    def test_the_limit_outlives_the_scheduler(self):
        world = self.rig()
        env = self.tenant_environment(world, "--memory", "1GiB")
        program = self.member(world, env)
        self.assertEqual(program.ask(f"alloc device {600 * MIB}"), "ok 0")
        os.kill(world.scheduler()["pid"], signal.SIGKILL)
        self.assertEqual(program.ask(f"alloc device {600 * MIB}"), OUT_OF_MEMORY)
        self.assertEqual(program.ask("free 0"), "ok 0")
        self.assertEqual(program.ask(f"alloc device {600 * MIB}"), "ok 1")

    def test_nvml_shows_the_limit(self):
        world = self.rig()
        script = (
            "import ctypes\n"
            "cuda = ctypes.CDLL('libcuda.so.1')\n"
            "assert cuda.cuInit(0) == 0\n"
            "context = ctypes.c_void_p()\n"
            "assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0\n"
            "assert cuda.cuCtxSetCurrent(context) == 0\n"
            "pointer = ctypes.c_ulonglong()\n"
            "assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(100 << 20)) == 0\n"
            "nvml = ctypes.CDLL('libnvidia-ml.so.1')\n"
            "assert nvml.nvmlInit_v2() == 0\n"
            "device = ctypes.c_void_p()\n"
            "assert nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0\n"
            "class Memory(ctypes.Structure):\n"
            "    _fields_ = [('total', ctypes.c_ulonglong), ('free', ctypes.c_ulonglong),\n"
            "                ('used', ctypes.c_ulonglong)]\n"
            "memory = Memory()\n"
            "assert nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0\n"
            "print('nvml', memory.total >> 20, memory.free >> 20, memory.used >> 20)\n")
        program = world.best_effort("limited", ["python3", "-c", script], "--memory", "1GiB")
        total, free, used = (int(word) for word in program.expect("nvml").split()[1:])
        self.assertEqual(total, 1024)
        self.assertLessEqual(free, 924)
        self.assertGreaterEqual(used, 100)
        self.finish(program)

    def test_hip_programs_have_limits_too(self):
        world = self.rig()
        script = (
            "import ctypes\n"
            "hip = ctypes.CDLL('libamdhip64.so')\n"
            "assert hip.hipInit(0) == 0\n"
            "first, second = ctypes.c_void_p(), ctypes.c_void_p()\n"
            "print('first', hip.hipMalloc(ctypes.byref(first), ctypes.c_size_t(600 << 20)))\n"
            "print('second', hip.hipMalloc(ctypes.byref(second), ctypes.c_size_t(600 << 20)))\n"
            "free, total = ctypes.c_size_t(), ctypes.c_size_t()\n"
            "assert hip.hipMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0\n"
            "print('info', free.value >> 20, total.value >> 20)\n"
            "print('free', hip.hipFree(first))\n"
            "print('third', hip.hipMalloc(ctypes.byref(second), ctypes.c_size_t(600 << 20)))\n")
        program = world.best_effort("limited", ["python3", "-c", script], "--memory", "1GiB")
        lines = self.finish(program)
        self.assertEqual(lines[0], "first 0")
        self.assertEqual(lines[1], "second 2")  # hipErrorOutOfMemory
        free, total = (int(word) for word in lines[2].split()[1:])
        self.assertEqual(total, 1024)
        self.assertLessEqual(free, 424)
        self.assertEqual(lines[3:], ["free 0", "third 0"])


if __name__ == "__main__":
    rig.main()
