// A real-time program: a job at every release, released by the clock and not by the job before.
//
//   periodic --period-ns N --jobs N [--kernels N] [--kernel-ns N] [--stall-job N]
//            [--stay 1]
//
// Says "ready" once it is warm and starts when a line comes on stdin. Says "job K RELEASE FIRST
// END" (CLOCK_MONOTONIC) after each job and "done CHECKSUM" at the end. With --stall-job it
// launches the first kernel of that job, says "stalled" and never comes back to the GPU.
#include <time.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>

#include "tests/integration/tenants/gpu.h"

namespace rubato::test_tenant {
namespace {

constexpr size_t kWords = 64;

void SleepUntil(int64_t at_ns) {
  timespec at = {};
  at.tv_sec = at_ns / 1'000'000'000;
  at.tv_nsec = at_ns % 1'000'000'000;
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr) != 0) {
  }
}

}  // namespace

int Periodic(int argc, char** argv) {
  const int64_t period_ns = Option(argc, argv, "--period-ns", 100'000'000);
  const int64_t jobs = Option(argc, argv, "--jobs", 10);
  const int64_t kernels = Option(argc, argv, "--kernels", 3);
  const int64_t kernel_ns = Option(argc, argv, "--kernel-ns", 100'000);
  const int64_t stall_job = Option(argc, argv, "--stall-job", -1);
  const Gpu& gpu = Gpu::Open();
  const CUdeviceptr data = gpu.Words(kWords);
  CUstream stream = nullptr;
  Check(gpu.call().StreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  gpu.Hash(stream, data, kWords, 0, 1'000);
  Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
  std::puts("ready");
  char line[16];
  if (std::fgets(line, sizeof(line), stdin) == nullptr) return 0;

  int64_t release_ns = NowNs() + period_ns;
  for (int64_t job = 0; job < jobs; ++job, release_ns += period_ns) {
    SleepUntil(release_ns);
    const int64_t first_ns = NowNs();
    for (int64_t kernel = 0; kernel < kernels; ++kernel) {
      gpu.Hash(stream, data, kWords, static_cast<uint64_t>(job * kernels + kernel + 1),
               static_cast<uint64_t>(kernel_ns));
      if (job == stall_job) {
        std::puts("stalled");
        for (;;) pause();
      }
    }
    Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
    std::printf("job %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n", job, release_ns, first_ns,
                NowNs());
  }
  if (Option(argc, argv, "--stay", 0) != 0 && std::fgets(line, sizeof(line), stdin) == nullptr) {
    return 0;
  }
  std::printf("done %016" PRIx64 "\n", Checksum(gpu.Read(data, kWords)));
  return 0;
}

}  // namespace rubato::test_tenant
