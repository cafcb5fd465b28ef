"""The three probes behind decisions of the design, run by `bench/gpu/run --probes`.

graph-nodes: what MPS costs a graph per node. partition-move: what moving a chain between two green
contexts costs, with return codes checked and order proven. pretouch: whether a pre-touch still pays
the context switch beside best-effort work that moves data and draws power.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys

import session
import stats

HERE = os.path.dirname(os.path.abspath(__file__))
TIMEOUT_S = 150.0


class ProbeError(Exception):
    """Why a probe gave no result, in one line."""


def build(name, folder, libraries=()):
    """Compiles one probe for the GPU of this machine; returns the program's path."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not os.access(nvcc, os.X_OK):
        raise ProbeError("no nvcc: the probes need the CUDA toolkit (PATH or /usr/local/cuda)")
    program = os.path.join(folder, name)
    done = subprocess.run(
        [nvcc, "-std=c++17", "-O2", "-arch=native", "-o", program,
         os.path.join(HERE, name + ".cu"), "-lcuda", *("-l" + lib for lib in libraries)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise ProbeError("nvcc %s.cu failed: %s" %
                         (name, (done.stderr.strip().splitlines() or ["?"])[0]))
    return program


def run_program(argv, env):
    """Runs a probe and parses the JSON it prints."""
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=TIMEOUT_S,
                              check=False)
    except subprocess.TimeoutExpired:
        raise ProbeError("%s did not end within %.0f s" %
                         (os.path.basename(argv[0]), TIMEOUT_S)) from None
    if done.returncode != 0:
        raise ProbeError("%s failed with exit code %d: %s" %
                         (os.path.basename(argv[0]), done.returncode,
                          (done.stderr.strip().splitlines() or ["?"])[-1]))
    return json.loads(done.stdout)


def slope_us_per_node(points):
    """Theil-Sen slope of time over nodes, and the median remainder (the cost of a launch)."""
    slopes = [(b["us"] - a["us"]) / (b["nodes"] - a["nodes"])
              for i, a in enumerate(points) for b in points[i + 1:] if b["nodes"] != a["nodes"]]
    slope = statistics.median(slopes)
    return slope, statistics.median(p["us"] - slope * p["nodes"] for p in points)


def by_kernel(points):
    table = {}
    for point in points:
        table.setdefault(point["kernel"], []).append(point)
    return table


def graph_nodes(folder):
    program = build("graph_nodes", folder)
    plain = session.NoService(folder)
    result = {"without_mps": run_program(
        [program], plain.environment(session.base_environment(folder)))["points"]}
    daemon = session.MpsDaemon(folder)
    idle = None
    try:
        daemon.start()
        env = daemon.environment(session.base_environment(folder))
        result["mps"] = run_program([program], env)["points"]
        idle = subprocess.Popen([program, "--idle"], env=env, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True)
        if idle.stdout.readline().strip() != "ready":
            raise ProbeError("the idle MPS client did not start")
        result["mps_idle_neighbour"] = run_program([program], env)["points"]
    finally:
        if idle is not None:
            idle.stdin.close()
            try:
                idle.wait(timeout=10)
            except subprocess.TimeoutExpired:
                idle.kill()
                idle.wait()
        daemon.stop()
    summary = []
    base = by_kernel(result["without_mps"])
    for setting, points in result.items():
        for kernel, rows in by_kernel(points).items():
            slope, launch = slope_us_per_node(rows)
            base_slope, _ = slope_us_per_node(base[kernel])
            summary.append({
                "setting": setting, "kernel": kernel, "us_per_node": round(slope, 3),
                "launch_us": round(launch, 2),
                "added_us_per_node": round(slope - base_slope, 3),
                "added_part": round(slope / base_slope - 1, 4),
                "sm_clock_mhz": statistics.median(row["sm_clock_mhz"] for row in rows)})
    print("%-20s %-10s %12s %10s %15s %8s" %
          ("setting", "kernel", "us per node", "launch us", "added us/node", "added"))
    for row in summary:
        print("%-20s %-10s %12.3f %10.2f %15.3f %7.1f%%" %
              (row["setting"], row["kernel"], row["us_per_node"], row["launch_us"],
               row["added_us_per_node"], 100 * row["added_part"]))
    return {"summary": summary, "points": result}


def partition_move(folder):
    program = build("partition_move", folder)
    env = session.NoService(folder).environment(session.base_environment(folder))
    result = run_program([program], env)
    control = [way for way in result["ways"] if way["way"] == "two streams, unordered"]
    result["order_test_can_fail"] = bool(control) and control[0]["order_errors"] > 0
    print("%-48s %9s %9s %13s  %s" % ("way", "us/step", "issue us", "order errors", "refused"))
    for way in result["ways"]:
        if way["refused"]:
            print("%-48s %9s %9s %13s  %s" % (way["way"], "-", "-", "-", way["refused"]))
        else:
            print("%-48s %9.3f %9.3f %13d" %
                  (way["way"], way["step_us"], way["issue_us"], way["order_errors"]))
    return result


def summarise_pretouch(raw):
    """Latency and equal-clock ratios of each run against the job alone in the same process."""
    curve = stats.fit_clock_curve([tuple(pair) for pair in raw["calibration"]])
    alone = None
    summary = []
    for run in raw["runs"]:
        latencies_ms = [job[0] / 1e3 for job in run["jobs"]]
        clocks = stats.fill_clocks(list(range(len(run["jobs"]))), [job[1] for job in run["jobs"]])
        ratios = stats.equal_clock_ratios(latencies_ms, clocks, curve)
        row = {"load": run["load"], "lead_us": run["lead_us"],
               **stats.summarise_latencies(latencies_ms, float("inf")),
               "be_per_s": run["be_per_s"], "be_unit_us": run["be_unit_us"],
               "sm_clock_mhz": statistics.fmean(c for c in clocks if c)}
        del row["misses"]
        mean, p99 = statistics.fmean(ratios), stats.percentile(ratios, 0.99)
        if alone is None:
            alone = {"mean": mean, "p99": p99, "mean_ms": row["mean_ms"], "p99_ms": row["p99_ms"]}
        row.update(mean_x=row["mean_ms"] / alone["mean_ms"], p99_x=row["p99_ms"] / alone["p99_ms"],
                   mean_x_equal_clock=mean / alone["mean"], p99_x_equal_clock=p99 / alone["p99"],
                   be_busy=run["be_per_s"] * run["be_unit_us"] / 1e6)
        summary.append({k: float("%.6g" % v) if isinstance(v, float) else v
                        for k, v in row.items()})
    return {"curve": curve.to_json(), "summary": summary}


def pretouch(folder):
    program = build("pretouch", folder, libraries=("cublas",))
    env = session.NoService(folder).environment(session.base_environment(folder))
    result = summarise_pretouch(run_program([program, "150", "10000"], env))
    print("%-6s %7s %8s %8s %8s %8s %8s %7s %9s %7s %5s" %
          ("load", "lead us", "mean ms", "p99 ms", "mean x", "p99 x", "eq mean", "eq p99", "BE/s",
           "BE busy", "MHz"))
    for row in result["summary"]:
        print("%-6s %7d %8.3f %8.3f %8.3f %8.3f %8.3f %7.3f %9.1f %7.3f %5.0f" %
              (row["load"], row["lead_us"], row["mean_ms"], row["p99_ms"], row["mean_x"],
               row["p99_x"], row["mean_x_equal_clock"], row["p99_x_equal_clock"],
               row["be_per_s"], row["be_busy"], row["sm_clock_mhz"]))
    return result


PROBES = {"graph-nodes": graph_nodes, "partition-move": partition_move, "pretouch": pretouch}


def main(args, machine, scratch):
    results = {"device": machine["device"], "driver": machine["driver"],
               "command": args.command, "probes": {}}
    failed = False
    for name, probe in PROBES.items():
        print("## %s" % name, flush=True)
        folder = os.path.join(scratch, name)
        os.makedirs(folder)
        try:
            results["probes"][name] = probe(folder)
        except (ProbeError, session.CellError, ValueError, subprocess.SubprocessError) as error:
            failed = True
            results["probes"][name] = {"error": str(error)}
            print("FAILED: %s" % error, flush=True)
        finally:
            session.sweep(folder)
        sys.stdout.flush()
        os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
        with open(args.out, "w", encoding="utf-8") as f:
            json.dump(results, f, indent=1)
            f.write("\n")
    return 1 if failed else 0
