// tenant-be: a best-effort program in a closed loop. Each of its threads keeps a number of kernels
// in flight on each of its streams, for a time or for a number of kernels. Prints one JSON line:
// kernels completed, their rate in the device's time, and a checksum that depends on their order
// (comparable between runs with --ops).
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <deque>
#include <thread>
#include <vector>

#include "softgpu/tenants/gpu_program.h"

using namespace rubato::softgpu;  // NOLINT: a program of one file.

namespace {

constexpr char kUsage[] =
    "usage: tenant-be [--kernel-us N] [--blocks N] [--threads-per-block N] [--depth N] [--threads "
    "N] [--streams N]\n"
    "                 [--words N] [--seconds N | --ops N]\n"
    "Times are the device's. --streams are per thread, --ops per stream. SIGTERM ends a run as its "
    "time would.\n";

std::atomic<bool> stop{false};
void OnTerm(int) {
  stop.store(true);
}

}  // namespace

int main(int argc, char** argv) {
  const Flags flags(argc, argv,
                    {"kernel-us", "blocks", "threads-per-block", "depth", "threads", "streams",
                     "words", "seconds", "ops"},
                    kUsage);
  const auto kernel_ns = static_cast<uint64_t>(flags.Number("kernel-us", 1'650) * 1e3);
  const auto blocks = static_cast<uint32_t>(std::max(1.0, flags.Number("blocks", 132)));
  const auto block_threads =
      static_cast<uint32_t>(std::max(1.0, flags.Number("threads-per-block", 1024)));
  const auto depth = static_cast<size_t>(std::max(1.0, flags.Number("depth", 8)));
  const auto threads = static_cast<uint32_t>(std::max(1.0, flags.Number("threads", 1)));
  const auto streams = static_cast<uint32_t>(std::max(1.0, flags.Number("streams", 1)));
  const auto words = static_cast<uint32_t>(std::max(1.0, flags.Number("words", 256)));
  const auto limit = static_cast<uint64_t>(flags.Number("ops", 0));
  const double seconds = flags.Number("seconds", limit > 0 ? 1e9 : 5);
  const double dilation = Dilation();
  signal(SIGTERM, OnTerm);

  GpuProgram gpu(threads * streams, words, false);
  const GpuCalls& cu = gpu.calls();
  // What is in flight when the time is over counts for nobody: it ends after it.
  std::atomic<uint64_t> completed{0};
  const int64_t start_ns = NowNs();
  const int64_t end_ns = start_ns + static_cast<int64_t>(std::min(seconds * dilation, 1e9) * 1e9);
  const auto work = [&](uint32_t thread) {
    Require(cu.CtxSetCurrent(gpu.context()), "cuCtxSetCurrent");
    struct Loop {
      std::deque<CUevent> busy;
      std::vector<CUevent> idle;
      uint64_t launched = 0;
    };
    std::vector<Loop> loops(streams);
    for (Loop& loop : loops) {
      loop.idle.resize(depth);
      for (CUevent& event : loop.idle)
        Require(cu.EventCreate(&event, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    }
    for (bool going = true; going;) {
      going = false;
      for (uint32_t s = 0; s < streams; ++s) {
        Loop& loop = loops[s];
        const uint32_t index = thread * streams + s;
        if (loop.idle.empty()) {
          CUevent oldest = loop.busy.front();
          loop.busy.pop_front();
          Require(cu.EventSynchronize(oldest), "cuEventSynchronize");
          if (NowNs() <= end_ns) completed.fetch_add(1);
          loop.idle.push_back(oldest);
        }
        if ((limit > 0 && loop.launched == limit) || NowNs() >= end_ns || stop.load()) continue;
        going = true;
        gpu.Launch(index, blocks, block_threads, static_cast<uint32_t>(loop.launched), kernel_ns);
        ++loop.launched;
        CUevent event = loop.idle.back();
        loop.idle.pop_back();
        Require(cu.EventRecord(event, gpu.stream(index)), "cuEventRecord");
        loop.busy.push_back(event);
      }
    }
    for (Loop& loop : loops) {
      for (CUevent event : loop.busy) {
        Require(cu.EventSynchronize(event), "cuEventSynchronize");
        if (NowNs() <= end_ns) completed.fetch_add(1);
      }
    }
  };
  std::vector<std::thread> others;
  for (uint32_t t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();
  const double elapsed_s =
      static_cast<double>(std::min(NowNs(), end_ns) - start_ns) / 1e9 / dilation;
  printf(
      "{\"tenant\":\"be\",\"ops\":%llu,\"seconds\":%.6f,\"ops_per_s\":%.3f,\"checksum\":\"%s\"}\n",
      static_cast<unsigned long long>(completed.load()), elapsed_s,
      static_cast<double>(completed.load()) / std::max(elapsed_s, 1e-9), gpu.Checksum().c_str());
  return 0;
}
