"""Records of bench/gpu and the demo: how one is made from what tenants report, checked and printed.

A record is one load in one way. `x` fields compare with the way `alone` of the same run and repeat
(or of the same file, with --append); they are null where that is missing. Pure, no PyTorch.
"""

import json
import math
import os
import statistics
import tempfile

import stats

RT_FIELDS = ("n", "mean_ms", "p50_ms", "p99_ms", "max_ms", "misses", "mean_x", "p99_x",
             "mean_x_equal_clock", "p99_x_equal_clock")
BE_FIELDS = ("per_s", "share")
FIELDS = ("load", "way", "rt", "be", "sm_clock_mhz", "device", "driver", "command")


class Baseline:
    """What a load does alone: the denominators of every other way."""

    def __init__(self, rt=None, curves=None, ratios=None, be_per_s=None, checksums=None):
        self.rt = rt or {}  # mean_ms, p99_ms
        self.curves = curves or {}  # tenant name -> stats.ClockCurve
        self.ratios = ratios or {}  # mean, p99 of the alone jobs' own equal-clock ratios
        self.be_per_s = be_per_s
        self.checksums = checksums or {}  # tenant name -> checksum of its output

    def to_json(self):
        return {"rt": self.rt, "curves": {k: v.to_json() for k, v in self.curves.items()},
                "ratios": self.ratios, "be_per_s": self.be_per_s, "checksums": self.checksums}

    @staticmethod
    def from_json(fields):
        curves = {k: stats.ClockCurve.from_json(v) for k, v in fields["curves"].items()}
        return Baseline(fields["rt"], curves, fields["ratios"], fields["be_per_s"],
                        fields["checksums"])


def pool_jobs(rt_results):
    """All jobs of a real-time set as (tenant, release_ns, latency_ms, clock_mhz or None)."""
    jobs = []
    for name, result in rt_results.items():
        releases = [job[0] for job in result["jobs"]]
        clocks = stats.fill_clocks(releases, [job[2] for job in result["jobs"]])
        for (release_ns, latency_us, _), clock in zip(result["jobs"], clocks):
            jobs.append((name, release_ns, latency_us / 1e3, clock))
    return jobs


def pooled_ratios(jobs, curves):
    """Equal-clock ratios of all jobs, and the part of them whose clock was not calibrated."""
    ratios, outside = [], 0
    for name, _, latency_ms, clock in jobs:
        curve = curves.get(name)
        if curve is None or not clock:
            continue
        ratios.append(latency_ms / curve.alone_ms(clock))
        outside += 0 if curve.covers(clock) else 1
    return ratios, (outside / len(ratios) if ratios else None)


def make_baseline(rt_results, calibrations, be_results):
    """The Baseline from the way `alone`: `calibrations` maps tenant -> [(clock_mhz, job_ms)]."""
    curves = {}
    for name, points in calibrations.items():
        if len(points) >= 3:
            curves[name] = stats.fit_clock_curve(points)
    jobs = pool_jobs(rt_results)
    latencies = [job[2] for job in jobs]
    ratios, _ = pooled_ratios(jobs, curves)
    checksums = {name: result.get("checksum")
                 for name, result in list(rt_results.items()) + list(be_results.items())}
    return Baseline(
        {"mean_ms": statistics.fmean(latencies), "p99_ms": stats.percentile(latencies, 0.99)},
        curves,
        {"mean": statistics.fmean(ratios), "p99": stats.percentile(ratios, 0.99)} if ratios else {},
        sum(result["per_s"] for result in be_results.values()) if be_results else None,
        checksums)


def compare_checksums(results, checksums):
    """Whether all repeatable outputs are as alone; None if there is nothing to compare."""
    verdicts = []
    for name, result in results.items():
        seen, alone = result.get("checksum"), checksums.get(name)
        if seen is None or alone is None or result.get("repeatable") is False:
            continue
        verdicts.append(seen == alone)
    return all(verdicts) if verdicts else None


def make_record(load, way, deadline_ms, rt_results, be_results, baseline, machine, command,
                extra=None):
    """One record in the committed schema, extra keys after it.

    `machine` holds device and driver. `baseline` may be None: then nothing is compared.
    """
    jobs = pool_jobs(rt_results)
    latencies = [job[2] for job in jobs]
    rt = stats.summarise_latencies(latencies, deadline_ms)
    unserved = sum(result.get("unserved", 0) for result in rt_results.values())
    rt.update({"mean_x": None, "p99_x": None, "mean_x_equal_clock": None,
               "p99_x_equal_clock": None})
    outside = None
    be = None
    if be_results:
        be = {"per_s": sum(result["per_s"] for result in be_results.values()), "share": None}
    equal = None
    if baseline is not None:
        rt["mean_x"] = rt["mean_ms"] / baseline.rt["mean_ms"]
        rt["p99_x"] = rt["p99_ms"] / baseline.rt["p99_ms"]
        ratios, outside = pooled_ratios(jobs, baseline.curves)
        if ratios and baseline.ratios:
            rt["mean_x_equal_clock"] = statistics.fmean(ratios) / baseline.ratios["mean"]
            rt["p99_x_equal_clock"] = stats.percentile(ratios, 0.99) / baseline.ratios["p99"]
        if be and baseline.be_per_s:
            be["share"] = be["per_s"] / baseline.be_per_s
        equal = compare_checksums({**rt_results, **be_results}, baseline.checksums)
    clocks = [clock for _, _, _, clock in jobs if clock]
    record = {
        "load": load,
        "way": way,
        "rt": rt,
        "be": be,
        "sm_clock_mhz": statistics.fmean(clocks) if clocks else None,
        "device": machine["device"],
        "driver": machine["driver"],
        "command": command,
        "deadline_ms": deadline_ms,
        "unserved": unserved,
        "clock_outside_calibration": outside,
        "checksum_equal": equal,
        "be_tenants": {name: result["per_s"] for name, result in be_results.items()},
    }
    record.update(extra or {})
    return _rounded(record)


def compact_status(status):
    """What of `rubato status --output json` explains a row; no paths of the machine."""
    try:
        tenants = [{"name": tenant["name"], "class": tenant["class"],
                    "sessions": tenant["sessions"],
                    "devices": [{k: v for k, v in device.items() if v not in (0, False, None)}
                                for device in tenant["devices"]]}
                   for tenant in status["tenants"]]
        return {"tenants": tenants, "sessions_detached": status.get("sessions_detached")}
    except (KeyError, TypeError, AttributeError):
        return None


def _rounded(value):
    """Six significant digits: more would be noise in a committed file."""
    if isinstance(value, float):
        return float("%.6g" % value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value


def check_record(record):
    """Raises ValueError naming the first thing that is not as the schema says."""
    for field in FIELDS:
        if field not in record:
            raise ValueError("record lacks '%s'" % field)
    for field in RT_FIELDS:
        if field not in record["rt"]:
            raise ValueError("record %s/%s lacks rt.%s" % (record["load"], record["way"], field))
    for field in ("n", "misses"):
        if not isinstance(record["rt"][field], int):
            raise ValueError("rt.%s is not a whole number" % field)
    for field in ("mean_ms", "p50_ms", "p99_ms", "max_ms"):
        if not record["rt"][field] > 0:
            raise ValueError("rt.%s is not positive" % field)
    if record["be"] is not None:
        for field in BE_FIELDS:
            if field not in record["be"]:
                raise ValueError("record %s/%s lacks be.%s" %
                                 (record["load"], record["way"], field))


class ResultFile:
    """A JSON array on disk that is whole after every row: a crash loses no finished row."""

    def __init__(self, path, append=False):
        self._path = path
        self.records = []
        if append and os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                self.records = json.load(f)
            if not isinstance(self.records, list):
                raise ValueError("%s is not a JSON array of records: give another --out" % path)
        self._write()

    def add(self, record):
        self.records.append(record)
        self._write()

    def baselines(self):
        """(load, repeat) -> Baseline of the `alone` rows in the file."""
        found = {}
        for record in self.records:
            if record.get("way") == "alone" and record.get("baseline"):
                key = (record["load"], record.get("repeat", 0))
                found[key] = Baseline.from_json(record["baseline"])
        return found

    def _write(self):
        folder = os.path.dirname(os.path.abspath(self._path))
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".results-")
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            json.dump(self.records, f, indent=1)
            f.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, self._path)


COLUMNS = (("load", 18), ("way", 17), ("jobs", 5), ("mean", 8), ("p50", 8), ("p99", 9), ("max", 9),
           ("miss", 5), ("mean x", 7), ("p99 x", 8), ("eq mean", 7), ("eq p99", 7),
           ("BE/s", 9), ("share", 6), ("MHz", 5), ("same", 5))


def table_header():
    cells = [name.ljust(width) if index < 2 else name.rjust(width)
             for index, (name, width) in enumerate(COLUMNS)]
    line = " ".join(cells).rstrip()
    return line + "\n" + "-" * len(line)


def _number(value, digits):
    return "-" if value is None else "%.*f" % (digits, value)


def table_row(record):
    rt, be = record["rt"], record["be"] or {"per_s": None, "share": None}
    same = {True: "yes", False: "NO", None: "-"}[record.get("checksum_equal")]
    cells = [record["load"], record["way"], str(rt["n"]), _number(rt["mean_ms"], 3),
             _number(rt["p50_ms"], 3), _number(rt["p99_ms"], 3), _number(rt["max_ms"], 3),
             str(rt["misses"]), _number(rt["mean_x"], 3), _number(rt["p99_x"], 3),
             _number(rt["mean_x_equal_clock"], 3), _number(rt["p99_x_equal_clock"], 3),
             _number(be["per_s"], 1), _number(be["share"], 3), _number(record["sm_clock_mhz"], 0),
             same]
    return " ".join(
        cell.ljust(width) if index < 2 else cell.rjust(width)
        for index, (cell, (_, width)) in enumerate(zip(cells, COLUMNS))).rstrip()
