// A program in the way of a data loader: it uses the GPU, then forks workers that must not touch
// it, and one that starts the program anew, which may.
//
//   forker [--workers N]
//
// Workers compute on the CPU, ask the driver one question that a forked child gets no answer to,
// and end. Says "done CHECKSUM" when all workers and its own GPU work agree with what is expected.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <vector>

#include "tests/integration/tenants/gpu.h"

namespace rubato::test_tenant {
namespace {

constexpr size_t kWords = 64;

// In the child: no GPU, and no harm from asking for one.
int Worker(const Gpu& gpu, int index) {
  uint64_t sum = static_cast<uint64_t>(index);
  for (int i = 0; i < 100'000; ++i) sum = sum * 6364136223846793005ull + 1442695040888963407ull;
  CUdeviceptr pointer = 0;
  // Any answer but success is right; to crash or to hang is not.
  if (gpu.call().MemAlloc(&pointer, 4096) == CUDA_SUCCESS) return 9;
  return sum == 0 ? 8 : 40 + index;
}

}  // namespace

int Forker(int argc, char** argv) {
  const int workers = static_cast<int>(Option(argc, argv, "--workers", 4));
  const Gpu& gpu = Gpu::Open();
  const CUdeviceptr data = gpu.Words(kWords);
  std::vector<pid_t> pids;
  for (int i = 0; i < workers; ++i) {
    // Work in flight while the process forks.
    gpu.Hash(nullptr, data, kWords, static_cast<uint64_t>(i), 50'000);
    const pid_t pid = fork();
    if (pid == 0) _exit(Worker(gpu, i));
    pids.push_back(pid);
  }
  const pid_t fresh = fork();
  if (fresh == 0) {
    // Its lines are not ours.
    const int null = open("/dev/null", O_RDWR);
    if (null >= 0) dup2(null, STDOUT_FILENO);
    const char* self = "/proc/self/exe";
    execl(self, self, "flood", "--ops", "4", static_cast<char*>(nullptr));
    _exit(127);
  }
  bool good = true;
  for (int i = 0; i < workers; ++i) {
    int status = 0;
    if (waitpid(pids[static_cast<size_t>(i)], &status, 0) < 0 || !WIFEXITED(status) ||
        WEXITSTATUS(status) != 40 + i) {
      std::fprintf(stderr, "test tenant: worker %d ended with status %d\n", i, status);
      good = false;
    }
    gpu.Hash(nullptr, data, kWords, static_cast<uint64_t>(100 + i), 50'000);
  }
  int status = 0;
  if (waitpid(fresh, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    std::fprintf(stderr, "test tenant: the fresh program ended with status %d\n", status);
    good = false;
  }
  Check(gpu.call().CtxSynchronize(), "cuCtxSynchronize");
  if (!good) return 4;
  std::printf("done %016" PRIx64 "\n", Checksum(gpu.Read(data, kWords)));
  return 0;
}

}  // namespace rubato::test_tenant
