// Nanoseconds per hooked call, seen by a program that knows nothing of the shim.
//
// The program finds its driver as any other does (dlopen, dlsym); what stands in between is decided
// by who runs it: nothing, the shim alone, or the shim attached to a scheduler (bench/micro/run).
// The driver is bare_cuda.cc, so the difference between two runs is the shim. Each thread has a
// stream of its own.
#include <benchmark/benchmark.h>
#include <cuda.h>
#include <dlfcn.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Calls {
  decltype(&::cuInit) init;
  decltype(&::cuStreamCreate) stream_create;
  decltype(&::cuStreamDestroy) stream_destroy;
  decltype(&::cuStreamSynchronize) stream_synchronize;
  decltype(&::cuModuleGetFunction) get_function;
  decltype(&::cuLaunchKernel) launch;
  decltype(&::cuMemcpyHtoDAsync) copy;
  decltype(&::cuMemAlloc) allocate;
  decltype(&::cuMemFree) release;
};
Calls g_calls;
CUfunction g_kernel;

template <typename Function>
void Load(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) {
    std::fprintf(stderr, "bench_micro_launch: the driver has no %s\n", name);
    std::exit(1);
  }
}

void LoadDriver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "bench_micro_launch: %s; start it with bench/micro/run\n", dlerror());
    std::exit(1);
  }
  Load(library, "cuInit", &g_calls.init);
  Load(library, "cuStreamCreate", &g_calls.stream_create);
  Load(library, "cuStreamDestroy_v2", &g_calls.stream_destroy);
  Load(library, "cuStreamSynchronize", &g_calls.stream_synchronize);
  Load(library, "cuModuleGetFunction", &g_calls.get_function);
  Load(library, "cuLaunchKernel", &g_calls.launch);
  Load(library, "cuMemcpyHtoDAsync_v2", &g_calls.copy);
  Load(library, "cuMemAlloc_v2", &g_calls.allocate);
  Load(library, "cuMemFree_v2", &g_calls.release);
}

int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

// A stream whose first op is behind it: the shim has seen it, and the kernel.
class Stream {
 public:
  Stream() {
    g_calls.stream_create(&stream_, CU_STREAM_NON_BLOCKING);
    for (int i = 0; i < 100; ++i) Launch();
  }
  ~Stream() {
    g_calls.stream_synchronize(stream_);
    g_calls.stream_destroy(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void Launch() { g_calls.launch(g_kernel, 128, 1, 1, 256, 1, 1, 0, stream_, nullptr, nullptr); }
  CUstream get() const { return stream_; }

 private:
  CUstream stream_ = nullptr;
};

void Launch(benchmark::State& state) {
  Stream stream;
  for ([[maybe_unused]] auto _ : state) stream.Launch();
}
BENCHMARK(Launch)->ThreadRange(1, 16);

void LaunchDefaultStream(benchmark::State& state) {
  g_calls.launch(g_kernel, 128, 1, 1, 256, 1, 1, 0, nullptr, nullptr, nullptr);
  for ([[maybe_unused]] auto _ : state) {
    g_calls.launch(g_kernel, 128, 1, 1, 256, 1, 1, 0, nullptr, nullptr, nullptr);
  }
}
BENCHMARK(LaunchDefaultStream);

void CopyHostToDevice(benchmark::State& state) {
  Stream stream;
  char from[64] = {};
  for ([[maybe_unused]] auto _ : state) g_calls.copy(0x100000, from, sizeof(from), stream.get());
}
BENCHMARK(CopyHostToDevice);

// A job: one launch and the wait for it.
void LaunchAndSynchronize(benchmark::State& state) {
  Stream stream;
  for ([[maybe_unused]] auto _ : state) {
    stream.Launch();
    g_calls.stream_synchronize(stream.get());
  }
}
BENCHMARK(LaunchAndSynchronize);

void AllocateAndFree(benchmark::State& state) {
  Stream stream;
  for ([[maybe_unused]] auto _ : state) {
    CUdeviceptr memory;
    g_calls.allocate(&memory, 4096);
    g_calls.release(memory);
  }
}
BENCHMARK(AllocateAndFree);

// From the first driver call of a fresh process to its first launch: connecting, the first device,
// its neighbours.
void Attach(benchmark::State& state) {
  for ([[maybe_unused]] auto _ : state) {
    int fds[2];
    if (pipe(fds) != 0) {
      state.SkipWithError("no pipe");
      return;
    }
    const pid_t child = fork();
    if (child == 0) {
      const int64_t begin_ns = NowNs();
      g_calls.init(0);
      g_calls.launch(g_kernel, 128, 1, 1, 256, 1, 1, 0, nullptr, nullptr, nullptr);
      const int64_t taken_ns = NowNs() - begin_ns;
      _exit(write(fds[1], &taken_ns, sizeof(taken_ns)) == sizeof(taken_ns) ? 0 : 1);
    }
    int64_t taken_ns = 0;
    const bool told = read(fds[0], &taken_ns, sizeof(taken_ns)) == sizeof(taken_ns);
    close(fds[0]);
    close(fds[1]);
    waitpid(child, nullptr, 0);
    if (!told) {
      state.SkipWithError("the child did not tell its time");
      return;
    }
    state.SetIterationTime(static_cast<double>(taken_ns) * 1e-9);
  }
}
BENCHMARK(Attach)->UseManualTime()->Iterations(100);

// A tenant that has done one job, and then nothing until it is told to end.
int BeQuietNeighbour() {
  LoadDriver();
  g_calls.init(0);
  g_calls.get_function(&g_kernel, nullptr, "bare_kernel");
  Stream stream;
  g_calls.stream_synchronize(stream.get());
  std::puts("ready");
  std::fflush(stdout);
  for (;;) pause();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--quiet-neighbour") == 0) return BeQuietNeighbour();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  LoadDriver();
  g_calls.get_function(&g_kernel, nullptr, "bare_kernel");
  // Children of Attach call cuInit themselves; a fork starts them afresh in any case.
  g_calls.init(0);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
