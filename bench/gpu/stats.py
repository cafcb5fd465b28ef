"""Numbers of a run: percentiles, work per window, and latency at equal clock.

Pure and free of PyTorch, so that it is tested where there is no GPU. Times are nanoseconds of
CLOCK_MONOTONIC, latencies milliseconds, clocks megahertz.
"""

import bisect
import dataclasses
import math
import statistics

# Two clocks closer than this (relative) cannot tell a slope from noise.
_MIN_CLOCK_SPREAD = 0.03
# A job whose clock lies further than this outside the calibrated range counts as extrapolated.
_CLOCK_TOLERANCE = 0.02


def percentile(values, q):
    """Nearest-rank percentile: the smallest value with at least q of all values at or below it."""
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    rank = max(1, math.ceil(q * len(ordered)))
    return ordered[min(rank, len(ordered)) - 1]


def summarise_latencies(latencies_ms, deadline_ms):
    """The fields of `rt` that need no baseline."""
    return {
        "n": len(latencies_ms),
        "mean_ms": statistics.fmean(latencies_ms),
        "p50_ms": percentile(latencies_ms, 0.50),
        "p99_ms": percentile(latencies_ms, 0.99),
        "max_ms": max(latencies_ms),
        "misses": sum(1 for latency in latencies_ms if latency > deadline_ms),
    }


def units_in_window(ends_ns, first_start_ns, window_start_ns, window_end_ns):
    """Units of work done inside a window, a unit that crosses an edge counting by its part inside.

    `ends_ns` are the completion times in order; a unit lasts from its predecessor's end to its own
    (units of one stream run back to back). The parts make the result exact to the event's
    resolution, where whole units would round by up to one of several milliseconds.
    """
    done = 0.0
    start = first_start_ns
    for end in ends_ns:
        if end < start:
            raise ValueError("completion times are not in order")
        inside = min(end, window_end_ns) - max(start, window_start_ns)
        if inside > 0:
            done += inside / (end - start)
        elif end == start and window_start_ns <= end < window_end_ns:
            done += 1.0
        start = end
    return done


@dataclasses.dataclass(frozen=True)
class ClockCurve:
    """What one job takes alone at SM clock f: a_ms + b_ms_mhz / f.

    The part `b` scales with the SM clock; the part `a` (memory, launch) does not.
    """

    a_ms: float
    b_ms_mhz: float
    low_mhz: float
    high_mhz: float
    points: int
    kind: str  # "line", "constant" (the clock hardly moved) or "inverse" (no constant part)

    def alone_ms(self, clock_mhz):
        return self.a_ms + self.b_ms_mhz / clock_mhz

    def covers(self, clock_mhz):
        return (self.low_mhz * (1 - _CLOCK_TOLERANCE) <= clock_mhz
                <= self.high_mhz * (1 + _CLOCK_TOLERANCE))

    def to_json(self):
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(fields):
        return ClockCurve(**fields)


def fit_clock_curve(points):
    """Fits a ClockCurve to (clock_mhz, job_ms) pairs, robustly and with neither part negative.

    Theil-Sen over x = 1/f (the median slope of all pairs that lie far enough apart in x): single
    disturbed jobs, which only ever add time, do not move it.
    """
    points = [(clock, ms) for clock, ms in points if clock > 0 and ms > 0]
    if len(points) < 3:
        raise ValueError("a clock curve needs at least 3 points, got %d" % len(points))
    clocks = [clock for clock, _ in points]
    low, high = min(clocks), max(clocks)
    median_ms = statistics.median(ms for _, ms in points)
    if (high - low) / high < _MIN_CLOCK_SPREAD:
        return ClockCurve(median_ms, 0.0, low, high, len(points), "constant")
    # At most 400 points are paired, spread evenly over the clocks.
    ordered = sorted(points)
    step = max(1, len(ordered) // 400)
    ordered = ordered[::step]
    xs = [1.0 / clock for clock, _ in ordered]
    least = 0.25 * (max(xs) - min(xs))
    slopes = []
    for i, (_, ms_i) in enumerate(ordered):
        for j in range(i + 1, len(ordered)):
            dx = xs[i] - xs[j]
            if dx >= least:
                slopes.append((ms_i - ordered[j][1]) / dx)
    b = statistics.median(slopes)
    if b <= 0:
        return ClockCurve(median_ms, 0.0, low, high, len(points), "constant")
    a = statistics.median(ms - b / clock for clock, ms in points)
    if a < 0:
        b = statistics.median(ms * clock for clock, ms in points)
        return ClockCurve(0.0, b, low, high, len(points), "inverse")
    return ClockCurve(a, b, low, high, len(points), "line")


def fill_clocks(times_ns, clocks_mhz):
    """Gives every job the clock of the probe nearest in time; None where there was no probe."""
    seen = [(t, clock) for t, clock in zip(times_ns, clocks_mhz) if clock]
    if not seen:
        return [None] * len(times_ns)
    seen_times = [t for t, _ in seen]
    filled = []
    for t in times_ns:
        right = bisect.bisect_left(seen_times, t)
        candidates = seen[max(0, right - 1):right + 1]
        filled.append(min(candidates, key=lambda entry: abs(entry[0] - t))[1])
    return filled


def equal_clock_ratios(latencies_ms, clocks_mhz, curve):
    """Each job against what it takes alone at the clock seen beside it."""
    return [latency / curve.alone_ms(clock)
            for latency, clock in zip(latencies_ms, clocks_mhz) if clock]
