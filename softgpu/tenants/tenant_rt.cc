// tenant-rt: a periodic real-time program. Every period it runs a chain of kernels, as launches or
// as one graph, and waits for its end. Prints one JSON line: each job's latency from its release,
// in the device's time, and a checksum that depends on the order of all its kernels.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "softgpu/tenants/gpu_program.h"

using namespace rubato::softgpu;  // NOLINT: a program of one file.

namespace {

constexpr char kUsage[] =
    "usage: tenant-rt [--period-us N] [--kernels N] [--kernel-us N] [--blocks N] [--threads N] "
    "[--jobs N]\n"
    "                 [--streams N] [--words N] [--warm-up N] [--deadline-us N] [--graph] [--copy] "
    "[--high-priority]\n"
    "Times are the device's. --copy starts each job with a copy to the device; --warm-up jobs are "
    "not reported.\n";

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
  return values[std::min(values.size() - 1, rank > 0 ? rank - 1 : 0)];
}

}  // namespace

int main(int argc, char** argv) {
  const Flags flags(argc, argv,
                    {"period-us", "kernels", "kernel-us", "blocks", "threads", "jobs", "streams",
                     "words", "warm-up", "deadline-us", "graph", "copy", "high-priority"},
                    kUsage);
  const double period_us = flags.Number("period-us", 10'000);
  const auto kernels = static_cast<uint32_t>(flags.Number("kernels", 40));
  const auto kernel_ns = static_cast<uint64_t>(flags.Number("kernel-us", 20) * 1e3);
  const auto blocks = static_cast<uint32_t>(std::max(1.0, flags.Number("blocks", 100)));
  const auto threads = static_cast<uint32_t>(std::max(1.0, flags.Number("threads", 128)));
  const auto jobs = static_cast<uint32_t>(flags.Number("jobs", 100));
  const auto warm_up = static_cast<uint32_t>(flags.Number("warm-up", 3));
  const auto streams = static_cast<uint32_t>(std::max(1.0, flags.Number("streams", 1)));
  const auto words = static_cast<uint32_t>(std::max(1.0, flags.Number("words", 256)));
  const double deadline_us = flags.Number("deadline-us", period_us);
  const double dilation = Dilation();

  GpuProgram gpu(streams, words, flags.Has("high-priority"));
  const GpuCalls& cu = gpu.calls();
  CUevent fork;
  std::vector<CUevent> joins(streams);
  Require(cu.EventCreate(&fork, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
  for (CUevent& join : joins)
    Require(cu.EventCreate(&join, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
  void* staging = nullptr;
  CUdeviceptr input = 0;
  constexpr size_t kInputBytes = 64 << 10;
  if (flags.Has("copy")) {
    Require(cu.MemHostAlloc(&staging, kInputBytes, 0), "cuMemHostAlloc");
    Require(cu.MemAlloc(&input, kInputBytes), "cuMemAlloc");
  }

  // Stream 0 leads: the others start behind it and it ends behind them, so its end is the job's.
  const auto enqueue = [&] {
    if (streams > 1) Require(cu.EventRecord(fork, gpu.stream(0)), "cuEventRecord");
    for (uint32_t s = 1; s < streams; ++s)
      Require(cu.StreamWaitEvent(gpu.stream(s), fork, 0), "cuStreamWaitEvent");
    for (uint32_t k = 0; k < kernels; ++k) gpu.Launch(k % streams, blocks, threads, k, kernel_ns);
    for (uint32_t s = 1; s < streams; ++s) {
      Require(cu.EventRecord(joins[s], gpu.stream(s)), "cuEventRecord");
      Require(cu.StreamWaitEvent(gpu.stream(0), joins[s], 0), "cuStreamWaitEvent");
    }
  };
  CUgraphExec graph = nullptr;
  if (flags.Has("graph")) {
    CUgraph captured;
    Require(cu.StreamBeginCapture(gpu.stream(0), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
            "cuStreamBeginCapture");
    enqueue();
    Require(cu.StreamEndCapture(gpu.stream(0), &captured), "cuStreamEndCapture");
    Require(cu.GraphInstantiateWithFlags(&graph, captured, 0), "cuGraphInstantiate");
  }

  std::vector<double> latencies_us;
  const auto period_ns = static_cast<int64_t>(period_us * 1e3 * dilation);
  const int64_t first_ns = NowNs() + period_ns;
  for (uint32_t job = 0; job < warm_up + jobs; ++job) {
    const int64_t release_ns = first_ns + static_cast<int64_t>(job) * period_ns;
    WaitUntilNs(release_ns);
    if (staging != nullptr) {
      Require(cu.MemcpyHtoDAsync(input, staging, kInputBytes, gpu.stream(0)), "cuMemcpyHtoDAsync");
    }
    if (graph != nullptr) {
      Require(cu.GraphLaunch(graph, gpu.stream(0)), "cuGraphLaunch");
    } else {
      enqueue();
    }
    Require(cu.StreamSynchronize(gpu.stream(0)), "cuStreamSynchronize");
    if (job < warm_up) continue;
    latencies_us.push_back(static_cast<double>(NowNs() - release_ns) / 1e3 / dilation);
  }

  double sum = 0;
  uint32_t misses = 0;
  std::string list;
  for (double latency : latencies_us) {
    sum += latency;
    misses += latency > deadline_us ? 1 : 0;
    char text[32];
    snprintf(text, sizeof text, "%s%.2f", list.empty() ? "" : ",", latency);
    list += text;
  }
  const double n = std::max(1.0, static_cast<double>(latencies_us.size()));
  printf(
      "{\"tenant\":\"rt\",\"jobs\":%zu,\"mean_us\":%.2f,\"p50_us\":%.2f,\"p99_us\":%.2f,\"max_us\":"
      "%.2f,"
      "\"misses\":%u,\"checksum\":\"%s\",\"latencies_us\":[%s]}\n",
      latencies_us.size(), sum / n, Percentile(latencies_us, 0.5), Percentile(latencies_us, 0.99),
      Percentile(latencies_us, 1.0), misses, gpu.Checksum().c_str(), list.c_str());
  return 0;
}
