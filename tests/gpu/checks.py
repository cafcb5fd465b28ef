"""What only a GPU proves, one function per promise. run says how they are started.

Each takes a harness.Bench and returns a line of detail, or raises Failed or Skipped.
"""

import os
import signal
import statistics

from harness import Failed, Skipped, expect, poll

CHECKS = {}
GIB = 1 << 30
# A real-time neighbour that uses a fifth of the GPU, and what it declares.
REALTIME_PERIOD_US = "10000"
REALTIME = ("--class", "realtime", "--period", "10ms")


def check(about):
    def register(function):
        CHECKS[function.__name__.replace("_", "-")] = (function, about)
        return function
    return register


def device_counter(tenant, name):
    return sum(device.get(name, 0) for device in tenant["devices"])


@check("a page of a memfd: GPU words in order, sealed, readable after the owner's SIGKILL")
def stream_words(bench):
    program = bench.start([bench.binary("stream_words")])
    found = program.result()
    program.finish()
    expect(found["set_up"], "registering or writing the page failed: see stream_words.cu's exit")
    expect(found["owner_killed"], "the owner ended before it was killed")
    expect(found["value_at_ready"] >= found["first"], "a word is missing after a synchronise")
    expect(found["steps_seen"] >= 1, "no queued word arrived while the owner lived")
    expect(found["disorder"] == 0, "%d words out of order" % found["disorder"])
    expect(found["sealed"], "the sealed page could be mapped for writing again")
    return "final %d of %d, moved %d times after the kill" % (
        found["final"], found["last_possible"], found["moved_after_death"])


@check("first launches (lazy loading) from 8 threads, and a kernel that waits for one not loaded")
def lazy_load(bench):
    alone, under, _ = bench.both([bench.binary("lazy_load")], "--class", "best-effort")
    expect(under["right"] == under["kernels"],
           "%d of %d kernels wrote their value" % (under["right"], under["kernels"]))
    expect(under["peer_seen"] >= alone["peer_seen"],
           "a kernel that waits for a peer is served alone, and not under Rubato")
    return "peer served: alone %d, under Rubato %d" % (alone["peer_seen"], under["peer_seen"])


@check("programmatic dependent launch keeps its order, eager and in a graph")
def dependent_launch(bench):
    alone, under, tenant = bench.both([bench.binary("dependent_launch")], "--class", "best-effort")
    expect(alone["eager_errors"] == 0 and alone["graph_errors"] == 0,
           "wrong without Rubato: the check itself is not sound here")
    expect(under["eager_errors"] == 0, "%d launches overtook, eager" % under["eager_errors"])
    expect(under["graph_errors"] == 0, "%d launches overtook, graph" % under["graph_errors"])
    expect(under["last"] == under["chain"], "the chain did not finish")
    return "%d launches seen by the shim" % device_counter(tenant, "ops_total")


def _outputs(bench, *rubato_args):
    alone, under, tenant = bench.both(bench.python("torch_outputs.py"), *rubato_args)
    different = [name for name in alone if alone[name] != under.get(name)]
    expect(not different, "outputs differ: %s" % ", ".join(different))
    expect(device_counter(tenant, "ops_total") > 0, "the shim saw no launch")
    return "%s equal, %d launches" % (", ".join(alone), device_counter(tenant, "ops_total"))


@check("outputs of a best-effort PyTorch program are bit-identical")
def outputs_best_effort(bench):
    return _outputs(bench, "--class", "best-effort")


@check("outputs of a real-time PyTorch program are bit-identical")
def outputs_realtime(bench):
    return _outputs(bench, "--class", "realtime")


@check("outputs stay bit-identical beside a real-time neighbour")
def outputs_beside_realtime(bench):
    alone = bench.alone(bench.python("torch_outputs.py"))
    bench.scheduler()
    neighbour = bench.start([bench.binary("worker"), REALTIME_PERIOD_US], *REALTIME)
    neighbour.line()
    program = bench.start(bench.python("torch_outputs.py"), "--class", "best-effort")
    under = program.result()
    waits = sum(device_counter(tenant, "gate_waits_total") for tenant in bench.tenants())
    program.finish()
    neighbour.finish()
    expect(alone == under, "outputs differ: %s" %
           ", ".join(name for name in alone if alone[name] != under.get(name)))
    expect(waits > 0, "the gate never closed, so nothing was proven")
    return "%d waits at the gate" % waits


@check("captures: three modes, side streams, allocations, beside a launching thread")
def graphs(bench):
    alone, under, _ = bench.both(bench.python("torch_graphs.py"), "--class", "best-effort")
    broken = [name for name, same in alone.items() if not same]
    expect(not broken, "wrong without Rubato already: %s" % ", ".join(broken))
    wrong = [name for name, same in under.items() if not same]
    expect(not wrong, "wrong under Rubato: %s" % ", ".join(wrong))
    return "%d kinds" % len(under)


@check("DataLoader workers forked from a program under Rubato")
def data_loader(bench):
    alone, under, _ = bench.both(bench.python("torch_loader.py"), "--class", "best-effort")
    expect(alone == under, "%s instead of %s" % (under, alone))
    return "%d samples" % under["seen"]


@check("a memory limit is a clean OutOfMemoryError, shown by the driver and NVML, one per tenant")
def memory_limit(bench):
    limit = 8 * GIB
    bench.scheduler()
    program = bench.start(bench.python("torch_memory.py", str(limit)), "--class", "best-effort",
                          "--memory", "8GiB")
    found = program.result()
    tenant = bench.only_tenant()
    program.finish()
    expect(found["mem_get_info"]["total"] <= limit,
           "cuMemGetInfo shows %d bytes" % found["mem_get_info"]["total"])
    expect(found["mem_get_info"]["free"] <= limit, "cuMemGetInfo shows more free than the limit")
    if "error" not in found["nvml"]:
        expect(found["nvml"]["total"] <= limit, "NVML shows %d bytes" % found["nvml"]["total"])
    expect(found["half"] == "ok", "half of the limit: %s" % found["half"])
    expect(found["over"] == "OutOfMemoryError", "over the limit: %s" % found["over"])
    expect(found["after"] == "ok" and found.get("usable_after"), "after it: %s" % found["after"])
    expect(found["child"] == "OutOfMemoryError", "in a second process: %s" % found["child"])
    expect(found["freed"] == "ok", "after freeing: %s" % found["freed"])
    expect(device_counter(tenant, "memory_refused_total") >= 1, "no refusal was counted")
    return "NVML %s" % ("not asked: " + found["nvml"]["error"] if "error" in found["nvml"]
                        else "%d MiB" % (found["nvml"]["total"] >> 20))


@check("every cu* symbol that a PyTorch program asks for is known to the shim")
def known_symbols(bench):
    bench.scheduler()
    program = bench.start(bench.python("torch_outputs.py"), "--class", "best-effort")
    program.result()
    tenant = bench.only_tenant()
    program.finish()
    expect(tenant["devices"] and "unknown_symbols_total" in tenant["devices"][0],
           "rubato status does not count unknown symbols")
    unknown = device_counter(tenant, "unknown_symbols_total")
    expect(unknown == 0, "%d symbols passed unknown" % unknown)
    return "0 unknown, %d launches" % device_counter(tenant, "ops_total")


@check("host cost of a launch: real-time not measurable, best-effort at most 300 ns, attach 5 ms")
def launch_cost(bench):
    bench.scheduler()
    rows = {"bare": [], "realtime": [], "best-effort": []}
    init = {"bare": [], "realtime": [], "best-effort": []}
    program_path = bench.binary("launch_cost")
    for _ in range(5):  # in turn, so that a drift of the machine meets all three
        for way in rows:
            if way == "bare":
                program = bench.start([program_path], bare=True)
            else:
                program = bench.start([program_path], "--class", way)
            found = program.result()
            if way != "bare":
                expect(bench.only_tenant()["sessions"] >= 1, "not attached")
            program.finish()
            if way != "bare":
                poll(lambda: not bench.tenants(), "the tenant is gone after its program")
            rows[way].append(found["launch_ns_median"])
            init[way].append(found["init_ms"])
    bare = statistics.median(rows["bare"])
    spread = max(rows["bare"]) - min(rows["bare"])
    added = {way: statistics.median(rows[way]) - bare for way in ("realtime", "best-effort")}
    attach = statistics.median(init["best-effort"]) - statistics.median(init["bare"])
    detail = ("bare %.0f ns (spread %.0f), real-time %+.0f, best-effort %+.0f; cuInit %+.2f ms" %
              (bare, spread, added["realtime"], added["best-effort"], attach))
    expect(added["best-effort"] <= 300, "too dear: " + detail)
    expect(added["realtime"] <= max(100, spread), "measurable for real-time: " + detail)
    return detail


@check("hybrid: SIGKILL of a best-effort MPS client leaves its neighbours and the real-time one")
def mps_sigkill(bench):
    import shutil
    if shutil.which("nvidia-cuda-mps-control") is None:
        raise Skipped("no nvidia-cuda-mps-control on the PATH")
    bench.scheduler("hybrid")
    worker = [bench.binary("worker")]
    real_time = bench.start(worker + [REALTIME_PERIOD_US], *REALTIME, "--name", "rt")
    victim = bench.start(worker, "--class", "best-effort", "--name", "victim")
    survivor = bench.start(worker, "--class", "best-effort", "--name", "survivor")
    for program in (real_time, victim, survivor):
        program.line()

    def sessions(name):
        return [entry for tenant in bench.tenants() if tenant["name"] == name
                for entry in tenant["session_list"]]
    entries = poll(lambda: sessions("victim"), "the victim is attached")
    pid = entries[0]["pid"]
    expect(pid > 0, "the scheduler does not know the victim's pid")
    os.kill(pid, signal.SIGKILL)
    poll(lambda: not victim.alive(), "the victim's wrapper ends")
    poll(lambda: not sessions("victim"), "the victim's session is gone")
    for program in (real_time, survivor):
        program.drain()
        before = program.line()
        after = poll(program.drain, "a neighbour goes on after the kill")
        if before == after:
            raise Failed("a neighbour stands still")
    real_time.finish()
    survivor.finish()
    return "two neighbours went on"


@check("SIGKILL of the scheduler: programs go on and end with the right values")
def scheduler_sigkill(bench):
    bench.scheduler()
    worker = [bench.binary("worker")]
    programs = [bench.start(worker + [REALTIME_PERIOD_US], *REALTIME, "--name", "rt"),
                bench.start(worker, "--class", "best-effort", "--name", "be")]
    for program in programs:
        program.line()
    pid = bench.status()["scheduler"]["pid"]
    os.kill(pid, signal.SIGKILL)
    for program in programs:
        program.drain()
        program.line()
        program.line()
        program.finish()
    return "both went on"
