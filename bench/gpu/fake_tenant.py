#!/usr/bin/env python3
"""A tenant without a GPU: speaks the protocol of tenant.py and makes its numbers up.

For the runner's own tests and for `run --dry-run`. The numbers follow from the arguments alone.
BENCH_FAKE_FAIL="<role>:<stage>" makes tenants of that role fail at import, init, measure, hang at
init, or die without a word in measure.
"""

import os
import random
import sys
import time

import protocol
import stats
import tenant


def fail_at(args, stage):
    role, _, wanted = os.environ.get("BENCH_FAKE_FAIL", "").partition(":")
    return role == args.role and wanted == stage


def main(argv):
    args = tenant.parse_args(argv)
    commands = protocol.Commands()
    if fail_at(args, "import"):
        protocol.emit("failed", reason="no such module")
        return 1
    protocol.emit("imported")
    if commands.next()["cmd"] != "init":
        return 0
    if fail_at(args, "hang"):
        commands.stopped.wait()  # until the runner is gone or kills this process
        return 1
    if fail_at(args, "init"):
        print("a traceback of many lines", file=sys.stderr)
        protocol.emit("failed", reason="out of memory")
        return 1
    protocol.emit("ready", device="made-up numbers, no GPU", torch="none", probe_error=None)
    rng = random.Random(args.seed)
    while True:
        command = commands.next()
        if command["cmd"] == "quit":
            return 0
        if command["cmd"] == "calibrate":
            points = [[f, 0.2 + 1400.0 / f] for f in range(1400, 1990, 10)]
            protocol.emit("calibrated", points=points if args.role == "rt" else [])
            continue
        if fail_at(args, "measure"):
            protocol.emit("failed", reason="a kernel faulted")
            return 1
        if fail_at(args, "die"):
            os._exit(9)
        start_ns = command["start_ns"]
        end_ns = start_ns + int(command["seconds"] * 1e9)
        if args.role == "rt":
            jobs = []
            for release in tenant.releases_ns(args, start_ns, end_ns):
                mhz = rng.uniform(1500, 1980)
                jobs.append([release, 1e3 * (0.2 + 1400.0 / mhz) * rng.uniform(1, 1.02), mhz])
            commands.stopped.wait(max(0, (end_ns - time.monotonic_ns()) / 1e9))
            protocol.emit("measured", jobs=jobs, unserved=0, checksum="rt", repeatable=True)
        else:
            commands.stopped.wait()
            ends = list(range(start_ns - 10**8, time.monotonic_ns(), 5_000_000))
            done = stats.units_in_window(ends, start_ns - 10**8, start_ns, end_ns)
            protocol.emit("measured", completed=done, per_s=done / command["seconds"],
                          units=len(ends), ran_past_window=True, checksum="be", repeatable=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
