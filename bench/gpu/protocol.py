"""How the runner and a tenant talk: JSON lines on the tenant's stdin and stdout.

A line of the tenant starts with MARK, since libraries print to stdout as well. The tenant says
`imported` (nothing of the GPU touched yet), waits for `init`, says `ready`, and then answers the
commands `calibrate`, `measure` and `quit`; `stop` ends a running `measure`. Times are
CLOCK_MONOTONIC nanoseconds, one clock for all processes of the machine.
"""

import json
import queue
import sys
import threading

MARK = "@bench "


def emit(event, **fields):
    sys.stdout.write(MARK + json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def parse(line):
    """The message in a line of a tenant's stdout, or None for a line that is none."""
    if not line.startswith(MARK):
        return None
    try:
        message = json.loads(line[len(MARK):])
    except ValueError:
        return None
    return message if isinstance(message, dict) and "event" in message else None


class Commands:
    """The tenant's end of stdin. A thread reads it, so that `stop` is seen during a measurement.

    The end of the input (the runner is gone) stops and quits.
    """

    def __init__(self, stream=None):
        self._stream = stream or sys.stdin
        self._queue = queue.Queue()
        self.stopped = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._stream:
            line = line.strip()
            if not line:
                continue
            command = json.loads(line)
            if command["cmd"] == "stop":
                self.stopped.set()
            else:
                self._queue.put(command)
        self.stopped.set()
        self._queue.put({"cmd": "quit"})

    def next(self):
        command = self._queue.get()
        if command["cmd"] == "measure":
            self.stopped.clear()
        return command
