// A best-effort program: as many kernels as it may, so many of them queued at a time.
//
//   flood [--kernel-ns N] [--depth N] [--blocks N] [--ops N]
//
// Says "ready" once it is warm, "ops N TIME" whenever a batch of `depth` kernels is done, and after
// --ops kernels, or once stdin says "stop" or ends, "done N CHECKSUM".
#include <poll.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>

#include "tests/integration/tenants/gpu.h"

namespace rubato::test_tenant {
namespace {

constexpr size_t kWords = 64;

bool ToldToStop() {
  pollfd waiting = {STDIN_FILENO, POLLIN, 0};
  return poll(&waiting, 1, 0) > 0;
}

}  // namespace

int Flood(int argc, char** argv) {
  const int64_t kernel_ns = Option(argc, argv, "--kernel-ns", 200'000);
  const int64_t depth = Option(argc, argv, "--depth", 4);
  const int64_t blocks = Option(argc, argv, "--blocks", 1);
  const int64_t most_ops = Option(argc, argv, "--ops", 0);
  const Gpu& gpu = Gpu::Open();
  const CUdeviceptr data = gpu.Words(kWords);
  CUstream stream = nullptr;
  Check(gpu.call().StreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  // As long as those to come: a kernel is known by its name and shape, and how long it takes is
  // learnt from the first ones.
  gpu.Hash(stream, data, kWords, 0, static_cast<uint64_t>(kernel_ns),
           static_cast<unsigned>(blocks));
  Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
  std::puts("ready");
  int64_t ops = 0;
  const auto more = [&] { return most_ops != 0 ? ops < most_ops : !ToldToStop(); };
  while (more()) {
    for (int64_t i = 0; i < depth && (most_ops == 0 || ops < most_ops); ++i) {
      ++ops;
      gpu.Hash(stream, data, kWords, static_cast<uint64_t>(ops), static_cast<uint64_t>(kernel_ns),
               static_cast<unsigned>(blocks));
    }
    Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
    std::printf("ops %" PRId64 " %" PRId64 "\n", ops, NowNs());
  }
  std::printf("done %" PRId64 " %016" PRIx64 "\n", ops, Checksum(gpu.Read(data, kWords)));
  return 0;
}

}  // namespace rubato::test_tenant
