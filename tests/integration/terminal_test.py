"""The command on a terminal: keys become signals once, jobs stop and go on, top leaves no mess."""

import os
import pty
import select
import signal
import sys

import rig

COUNT_INTERRUPTS = """
import signal, sys
waited = [signal.SIGINT, signal.SIGTERM]
signal.pthread_sigmask(signal.SIG_BLOCK, waited)
print("ready", flush=True)
count = 0
while True:
    got = signal.sigwait(waited)
    if got == signal.SIGTERM:
        sys.exit(10 + count)
    count += 1
    print("interrupts:", count, flush=True)
"""


class Terminal:
    """A program that leads a session on a pseudo-terminal of its own."""

    def __init__(self, argv, env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.execvpe(argv[0], argv, env)
            finally:
                os._exit(99)
        self.text = ""

    def expect(self, part):
        """Reads until `part` has been shown; returns what was shown before it, and forgets both."""
        end = rig.time.monotonic() + rig.DEADLINE_S
        while part not in self.text:
            ready, _, _ = select.select([self.fd], [], [], end - rig.time.monotonic())
            if not ready:
                raise AssertionError(f"'{part}' was not shown; but: {self.text!r}")
            try:
                self.text += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without '{part}'; but: {self.text!r}") from None
        before, _, self.text = self.text.partition(part)
        return before

    def rest_of_line(self):
        """What is shown up to the end of the line."""
        return self.expect("\r\n")

    def type(self, keys):
        os.write(self.fd, keys)

    def exit_code(self):
        # What is left to be shown must be read, or the program waits for us.
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        return os.waitstatus_to_exitcode(status)

    def close(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


class TerminalTest(rig.RigTest):
    def terminal(self, world, *argv):
        terminal = Terminal(list(argv), world.env)
        self.addCleanup(terminal.close)
        return terminal

    def test_control_c_reaches_the_program_once(self):
        world = self.rig()
        terminal = self.terminal(world, rig.RUBATO, "run", "--", sys.executable, "-c",
                                 COUNT_INTERRUPTS)
        terminal.expect("ready")
        terminal.type(b"\x03")
        terminal.expect("interrupts: 1")
        os.kill(terminal.pid, signal.SIGTERM)
        self.assertEqual(terminal.exit_code(), 10 + 1)

    def test_control_z_stops_both_and_the_shell_continues_both(self):
        world = self.rig()
        world.env["PS1"] = "PROMPT>"
        terminal = self.terminal(world, "sh", "-i")
        terminal.expect("PROMPT>")
        terminal.type(f"{rig.RUBATO} run -- sh -c 'echo be''gun; read word; echo go''t $word'\n"
                      .encode())
        terminal.expect("begun")
        terminal.type(b"\x1a")
        terminal.expect("PROMPT>")
        terminal.type(b"fg\n")
        terminal.expect("rubato run")
        terminal.type(b"through\n")
        terminal.expect("got through")
        terminal.expect("PROMPT>")
        terminal.type(b"exit\n")
        self.assertEqual(terminal.exit_code(), 0)

    def check_top(self, key):
        world = self.rig()
        world.up()
        terminal = self.terminal(
            world, "sh", "-c",
            f"trap '' INT; echo S $(stty -g); {rig.RUBATO} top --interval 100ms; echo E $(stty -g)")
        terminal.expect("S ")
        before = terminal.rest_of_line()
        terminal.expect("\x1b[?1049h")
        for _ in range(3):
            terminal.expect("\x1b[H")
            terminal.expect("no tenants")
        terminal.type(key)
        terminal.expect("\x1b[?1049l")
        terminal.expect("E ")
        self.assertEqual(terminal.rest_of_line(), before)
        self.assertEqual(terminal.exit_code(), 0)

    def test_top_ends_by_q_and_restores_the_terminal(self):
        self.check_top(b"q")

    def test_top_ends_by_control_c_and_restores_the_terminal(self):
        self.check_top(b"\x03")


if __name__ == "__main__":
    rig.main()
