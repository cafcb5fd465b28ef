#!/usr/bin/env python3
"""One tenant of bench/gpu: an ordinary PyTorch program that knows nothing of how it shares its GPU.

Real-time: one inference per release, as a CUDA graph, released every --period-ms or as a Poisson
stream; latency counts from the release, also when the job before it was late. Best-effort: units of
work in a closed loop, --depth of them queued between two waits. The runner starts it, tells it when
to measure and reads what it saw (protocol.py).
"""

import argparse
import gc
import hashlib
import random
import sys
import time
import traceback

import protocol
import stats

# A real-time program sleeps until this long before a release and then spins on the clock.
SPIN_NS = 1_000_000
# A real-time tenant that has fallen behind gives up this long after the window; what is left counts
# as unserved, with the latency that it has by then.
OVERRUN_NS = 1_000_000_000
# The training step whose parameters are the tenant's output.
TRAIN_CHECKSUM_STEP = 24


def digest(tensor):
    import torch
    flat = tensor.detach().contiguous().view(torch.uint8)
    return hashlib.blake2b(flat.cpu().numpy().tobytes(), digest_size=8).hexdigest()


class GraphWork:
    """Inference of one model, captured once and replayed."""

    repeatable = True

    def __init__(self, torch, args, stream):
        import models
        model = models.build(args.model)
        torch.manual_seed(2)
        self._input = torch.randn(args.batch, 3, 224, 224, device="cuda")
        with torch.inference_mode():
            for _ in range(4):
                self._output = model(self._input)
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._output = model(self._input)
        self._model = model
        for _ in range(5):
            self.unit()
        stream.synchronize()

    def unit(self):
        self._graph.replay()

    def checksum(self):
        return digest(self._output)


class TrainWork:
    """Steps of SGD on a fixed batch, fp32 as PyTorch does it by default."""

    def __init__(self, torch, args, stream):
        import models
        self._torch = torch
        # Repeatable sums in the convolutions' gradients; the checksum means nothing without.
        torch.backends.cudnn.deterministic = True
        self._model = models.build(args.model).train()
        torch.manual_seed(2)
        self._input = torch.randn(args.batch, 3, 224, 224, device="cuda")
        self._target = torch.randint(0, 1000, (args.batch,), device="cuda")
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-3)
        self._loss = torch.nn.CrossEntropyLoss()
        self._snapshot = None
        self._steps = 0
        start = {k: v.clone() for k, v in self._model.state_dict().items()}
        seen = []
        for _ in range(2):
            self._model.load_state_dict(start)
            for _ in range(3):
                self.unit()
            stream.synchronize()
            seen.append(self._parameters_digest())
        self.repeatable = seen[0] == seen[1]
        self._model.load_state_dict(start)
        self._steps = 0

    def _parameters_digest(self):
        with self._torch.no_grad():
            return digest(self._torch.cat([p.flatten() for p in self._model.parameters()]))

    def unit(self):
        self._optimizer.zero_grad(set_to_none=True)
        self._loss(self._model(self._input), self._target).backward()
        self._optimizer.step()
        self._steps += 1
        if self._steps == TRAIN_CHECKSUM_STEP:
            with self._torch.no_grad():
                self._snapshot = self._torch.cat([p.flatten() for p in self._model.parameters()])

    def checksum(self):
        return None if self._snapshot is None else digest(self._snapshot)


class GemmWork:
    """One square bf16 matrix product per unit."""

    repeatable = True

    def __init__(self, torch, args, stream):
        torch.manual_seed(2)
        shape = (args.size, args.size)
        self._a = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        self._b = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        self._out = torch.empty(shape, device="cuda", dtype=torch.bfloat16)
        self._torch = torch
        for _ in range(8):
            self.unit()
        stream.synchronize()

    def unit(self):
        self._torch.mm(self._a, self._b, out=self._out)

    def checksum(self):
        return digest(self._out)


class CopyWork:
    """One copy within device memory per unit."""

    repeatable = True

    def __init__(self, torch, args, stream):
        torch.manual_seed(2)
        self._source = torch.randint(-(1 << 62), 1 << 62, (args.bytes // 8,), device="cuda")
        self._target = torch.empty_like(self._source)
        for _ in range(4):
            self.unit()
        stream.synchronize()
        self._target.zero_()
        self._torch = torch

    def unit(self):
        self._target.copy_(self._source)

    def checksum(self):
        same = bool(self._torch.equal(self._source, self._target))
        return "%s-%d" % ("same" if same else "differs", int(self._target.sum().item()))


WORKS = {"graph": GraphWork, "train": TrainWork, "gemm": GemmWork, "copy": CopyWork}


def releases_ns(args, first_ns, end_ns):
    """The releases of a real-time tenant in [first_ns, end_ns)."""
    releases = []
    if args.period_ms:
        period_ns = int(args.period_ms * 1e6)
        releases = list(range(first_ns, end_ns, period_ns))
    else:
        rng = random.Random(args.seed)
        t = first_ns + rng.expovariate(args.poisson_per_s) * 1e9
        while t < end_ns:
            releases.append(int(t))
            t += rng.expovariate(args.poisson_per_s) * 1e9
    return releases


def serve(releases, start_ns, end_ns, stopped, run_job, probe_job, probe_every,
          clock=time.perf_counter_ns, sleep=time.sleep):
    """Runs one job per release. Returns ([release_ns, latency_us, probe index or None], unserved).

    Releases before `start_ns` are warm-up and not reported. `run_job` returns when the job is done,
    `probe_job` takes the clock beside it and returns the probe's index.
    """
    jobs, unserved = [], 0
    give_up_ns = end_ns + OVERRUN_NS
    for position, release in enumerate(releases):
        now = clock()
        if now > give_up_ns or stopped.is_set():
            for late in releases[position:]:
                if late >= start_ns:
                    jobs.append([late, max(0, clock() - late) / 1e3, None])
                    unserved += 1
            break
        if release - now > SPIN_NS:
            sleep((release - now - SPIN_NS) / 1e9)
        while clock() < release:
            pass
        run_job()
        latency_ns = clock() - release
        probe = probe_job() if position % probe_every == 0 else None
        if release >= start_ns:
            jobs.append([release, latency_ns / 1e3, probe])
    return jobs, unserved


class RealTime:

    def __init__(self, torch, args, work, stream):
        import clock_probe
        self._args, self._work, self._stream, self._torch = args, work, stream, torch
        self._probe = clock_probe.ClockProbe(torch, capacity=20000)
        self.probe_error = self._probe.error

    def _run_job(self):
        self._work.unit()
        self._stream.synchronize()

    def _probe_job(self):
        index = self._probe.launch(self._stream)
        if index is not None:
            self._stream.synchronize()
        return index

    def measure(self, command, commands):
        start_ns = command["start_ns"]
        end_ns = start_ns + int(command["seconds"] * 1e9)
        releases = releases_ns(self._args, start_ns - int(command["lead_s"] * 1e9), end_ns)
        self._probe.read_mhz()
        gc.collect()
        gc.freeze()
        gc.disable()
        jobs, unserved = serve(releases, start_ns, end_ns, commands.stopped, self._run_job,
                               self._probe_job, self._args.probe_every)
        gc.enable()
        clocks = self._probe.read_mhz()
        for job in jobs:
            mhz = clocks[job[2]] if job[2] is not None else None
            job[1] = round(job[1], 2)
            job[2] = round(mhz, 1) if mhz else None
        return {"jobs": jobs, "unserved": unserved, "checksum": self._work.checksum(),
                "repeatable": self._work.repeatable, "probe_error": self.probe_error}

    def calibrate(self):
        """(clock, time) pairs of this job alone, from a rested GPU and right after its own bursts.

        A burst of matrix products drives the GPU to its power limit, which lowers the clock. After
        it one job runs unmeasured, so that the caches hold what they hold in steady state; then,
        after a gap as between two releases, one is measured and the clock taken beside it.
        """
        if self._probe.error:
            return []
        torch, pairs = self._torch, []
        self._probe.read_mhz()

        def timed_job(gap_ns):
            self._run_job()
            until = time.perf_counter_ns() + gap_ns
            while time.perf_counter_ns() < until:
                pass
            begin = time.perf_counter_ns()
            self._run_job()
            took_ms = (time.perf_counter_ns() - begin) / 1e6
            if self._probe_job() is not None:
                pairs.append(took_ms)

        for _ in range(20):
            time.sleep(0.005)
            timed_job(3_000_000)
        shape = (8192, 8192)
        a = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        out = torch.empty(shape, device="cuda", dtype=torch.bfloat16)
        for burst in range(18):
            # Bursts of different length reach different clocks.
            for _ in range(24 + 12 * (burst % 5)):
                torch.mm(a, b, out=out)
            self._stream.synchronize()
            for gap_ns in (200_000, 500_000, 1_000_000, 3_000_000):
                timed_job(gap_ns)
        del a, b, out
        torch.cuda.empty_cache()
        clocks = self._probe.read_mhz()
        return [[round(mhz, 1), round(ms, 5)] for mhz, ms in zip(clocks, pairs) if mhz]


class BestEffort:

    def __init__(self, torch, args, work, stream):
        self._args, self._work, self._stream, self._torch = args, work, stream, torch
        self.probe_error = None

    def measure(self, command, commands):
        """Runs until told to stop; counts what was completed between start_ns and the window's end.

        Completion times are the GPU's own, from an event behind each unit. They are read while the
        next batch runs, so that reading them leaves no hole in the queue.
        """
        torch = self._torch
        base = torch.cuda.Event(enable_timing=True)
        base.record(self._stream)
        base.synchronize()
        base_ns = time.perf_counter_ns()
        spare, behind, ends_ns = [], [], []

        def collect(events):
            for event in events:
                ends_ns.append(base_ns + int(base.elapsed_time(event) * 1e6))
            spare.extend(events)

        while not commands.stopped.is_set():
            batch = []
            for _ in range(self._args.depth):
                self._work.unit()
                event = spare.pop() if spare else torch.cuda.Event(enable_timing=True)
                event.record(self._stream)
                batch.append(event)
            collect(behind)
            self._stream.synchronize()
            behind = batch
        collect(behind)
        window_end_ns = command["start_ns"] + int(command["seconds"] * 1e9)
        done = stats.units_in_window(ends_ns, base_ns, command["start_ns"], window_end_ns)
        return {"completed": done, "per_s": done / command["seconds"], "units": len(ends_ns),
                "ran_past_window": bool(ends_ns) and ends_ns[-1] >= window_end_ns,
                "checksum": self._work.checksum(), "repeatable": self._work.repeatable}

    def calibrate(self):
        return []


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--role", choices=("rt", "be"), required=True)
    parser.add_argument("--work", choices=tuple(WORKS), required=True)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=8192, help="gemm: rows and columns")
    parser.add_argument("--bytes", type=int, default=2 << 30, help="copy: bytes per unit")
    parser.add_argument("--depth", type=int, default=1, help="units queued between two waits")
    parser.add_argument("--period-ms", type=float, default=0.0)
    parser.add_argument("--poisson-per-s", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stream-priority", type=int, default=0, help="lower is more urgent")
    parser.add_argument("--probe-every", type=int, default=32,
                        help="take the SM clock after every n-th job")
    args = parser.parse_args(argv)
    if args.role == "rt" and (args.period_ms > 0) == (args.poisson_per_s > 0):
        parser.error("a real-time tenant needs either --period-ms or --poisson-per-s")
    if args.depth < 1 or args.probe_every < 1:
        parser.error("--depth and --probe-every are at least 1")
    return args


def run(args):
    import torch
    commands = protocol.Commands()
    protocol.emit("imported")
    if commands.next()["cmd"] != "init":
        return
    if not torch.cuda.is_available():
        protocol.emit("failed", reason="PyTorch sees no GPU: check nvidia-smi and the driver")
        return
    stream = torch.cuda.Stream(priority=args.stream_priority)
    with torch.cuda.stream(stream):
        work = WORKS[args.work](torch, args, stream)
        role = {"rt": RealTime, "be": BestEffort}[args.role](torch, args, work, stream)
        stream.synchronize()
        protocol.emit("ready", device=torch.cuda.get_device_name(), torch=torch.__version__,
                      probe_error=role.probe_error)
        while True:
            command = commands.next()
            if command["cmd"] == "calibrate":
                protocol.emit("calibrated", points=role.calibrate())
            elif command["cmd"] == "measure":
                protocol.emit("measured", **role.measure(command, commands))
            elif command["cmd"] == "quit":
                break
        torch.cuda.synchronize()


def main(argv):
    args = parse_args(argv)
    try:
        run(args)
    except Exception as error:  # the runner needs a reason in one line; the rest goes to the log
        traceback.print_exc()
        protocol.emit("failed", reason="%s: %s" % (type(error).__name__,
                                                   (str(error).splitlines() or [""])[0]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
