// Does a pre-touch still pay the context switch when the best-effort neighbour moves data and draws
// power? Two processes without MPS: the parent is real-time, its child best-effort behind a gate.
//
// The parent replays a graph of small kernels that read 100 MB of weights once per period and, in
// some runs, runs one tiny kernel a lead time before the release. The child launches only what ends
// before the gate closes (release - lead - guard), two in flight. For each job the latency from its
// release and the SM clock right after it are printed; the calibration of latency against clock is
// taken first, with the child idle. Statistics are done in Python.
//
// usage: pretouch JOBS PERIOD_US

#include <cublas_v2.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>

#include "probe.h"

namespace {

constexpr int kNodes = 100;
constexpr size_t kNodeWords = 256 << 10;     // 1 MiB of weights per node
constexpr size_t kCopyBytes = 256ull << 20;  // about 0.13 ms on an H200
constexpr int kGemm = 4096;                  // about 0.2 ms, near the power limit
constexpr int64_t kSpinNs = 200'000;
constexpr int64_t kGuardNs = 150'000;

enum Load { kIdle = 0, kSpin = 1, kGemmLoad = 2, kCopy = 3, kQuit = 4 };
const char* const kLoadNames[] = {"idle", "spin", "gemm", "copy"};

// Written by the parent except `ready`, `units` and `unit_ns`, which are the child's.
struct Page {
  std::atomic<int64_t> close_ns;  // nothing may finish later than this while it is not 0
  std::atomic<int> busy;          // the real-time job (or its pre-touch) is on the GPU
  std::atomic<int> load;
  std::atomic<int> ready;
  std::atomic<uint64_t> units;
  std::atomic<int64_t> unit_ns;
};

#define CUBLAS_CHECK(call)                                         \
  do {                                                             \
    int code_ = (call);                                            \
    if (code_ != 0) probe::Fail(#call, code_, "cublas", __LINE__); \
  } while (0)

__global__ void Layer(float* out, const float4* weights) {
  float sum = 0;
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < kNodeWords / 4;
       i += gridDim.x * blockDim.x) {
    float4 w = weights[i];
    sum += w.x + w.y + w.z + w.w;
  }
  for (int i = 0; i < 600; ++i) sum = fmaf(sum, 0.999f, 1e-4f);
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

__global__ void Spin(unsigned long long ns) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    __nanosleep(200);
  } while (now < start + ns);
}

__global__ void Touch() {}

__global__ void Fill(unsigned short* out, size_t count) {
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    // bf16 values of magnitude about 1 with random sign and mantissa: data decides the power drawn.
    unsigned h = static_cast<unsigned>(i) * 2654435761u;
    out[i] = static_cast<unsigned short>((h & 0x80000000u) >> 16 | 0x3f00u | (h >> 8 & 0xff));
  }
}

class Gemm {
 public:
  explicit Gemm(cudaStream_t stream, int n) : n_(n) {
    size_t count = static_cast<size_t>(n) * n;
    for (unsigned short** p : {&a_, &b_, &c_}) PROBE_CHECK(cudaMalloc(p, count * 2));
    Fill<<<1024, 256, 0, stream>>>(a_, count);
    Fill<<<1024, 256, 0, stream>>>(b_, count);
    PROBE_CHECK(cudaGetLastError());
    CUBLAS_CHECK(cublasCreate(&handle_));
    CUBLAS_CHECK(cublasSetStream(handle_, stream));
    PROBE_CHECK(cudaMalloc(&workspace_, 64 << 20));
    CUBLAS_CHECK(cublasSetWorkspace(handle_, workspace_, 64 << 20));
  }
  void Launch() {
    const float one = 1, zero = 0;
    CUBLAS_CHECK(cublasGemmEx(handle_, CUBLAS_OP_N, CUBLAS_OP_N, n_, n_, n_, &one, a_, CUDA_R_16BF,
                              n_, b_, CUDA_R_16BF, n_, &zero, c_, CUDA_R_16BF, n_,
                              CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }

 private:
  int n_;
  unsigned short *a_ = nullptr, *b_ = nullptr, *c_ = nullptr;
  void* workspace_ = nullptr;
  cublasHandle_t handle_ = nullptr;
};

void BestEffort(Page* page) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  cudaStream_t stream;
  PROBE_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Gemm gemm(stream, kGemm);
  char *source, *target;
  PROBE_CHECK(cudaMalloc(&source, kCopyBytes));
  PROBE_CHECK(cudaMalloc(&target, kCopyBytes));
  PROBE_CHECK(cudaMemset(source, 1, kCopyBytes));
  auto launch = [&](int load) {
    if (load == kSpin) Spin<<<132, 256, 0, stream>>>(kSpinNs);
    if (load == kGemmLoad) gemm.Launch();
    if (load == kCopy) {
      PROBE_CHECK(cudaMemcpyAsync(target, source, kCopyBytes, cudaMemcpyDeviceToDevice, stream));
    }
  };
  cudaEvent_t done[2];
  for (cudaEvent_t& event : done) {
    PROBE_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
  for (int load : {kSpin, kGemmLoad, kCopy}) {
    for (int i = 0; i < 10; ++i) launch(load);
    PROBE_CHECK(cudaStreamSynchronize(stream));
  }
  page->ready = 1;
  int now_running = kIdle;
  double duration_ns = 0;
  uint64_t issued = 0, seen = 0;
  int64_t last_end = 0;
  while (true) {
    int load = page->load.load();
    if (load == kQuit) break;
    if (load != now_running) {
      PROBE_CHECK(cudaStreamSynchronize(stream));
      seen = issued;
      last_end = 0;
      if (load != kIdle) {
        for (int i = 0; i < 5; ++i) launch(load);
        PROBE_CHECK(cudaStreamSynchronize(stream));
        int64_t begin = probe::NowNs();
        for (int i = 0; i < 200; ++i) launch(load);
        PROBE_CHECK(cudaStreamSynchronize(stream));
        duration_ns = (probe::NowNs() - begin) / 200.0;
        page->unit_ns = static_cast<int64_t>(duration_ns);
      }
      now_running = load;
      page->ready = 1;
    }
    if (load == kIdle) {
      usleep(200);
      continue;
    }
    while (seen < issued && cudaEventQuery(done[seen % 2]) == cudaSuccess) {
      int64_t now = probe::NowNs();
      ++seen;
      page->units.fetch_add(1);
      // The time between two ends of a never empty queue is one duration; it rises fast, falls
      // slowly.
      if (last_end) {
        double took = static_cast<double>(now - last_end);
        if (took < 4 * duration_ns) {
          duration_ns += (took > duration_ns ? 0.3 : 0.05) * (took - duration_ns);
        }
      }
      last_end = seen < issued ? now : 0;
    }
    if (issued - seen >= 2 || page->busy.load()) continue;
    int64_t close_ns = page->close_ns.load();
    double end = probe::NowNs() + (issued - seen + 1) * duration_ns;
    if (close_ns && end + kGuardNs > close_ns) continue;
    launch(load);
    PROBE_CHECK(cudaEventRecord(done[issued % 2], stream));
    ++issued;
  }
  PROBE_CHECK(cudaDeviceSynchronize());
}

class RealTime {
 public:
  explicit RealTime(Page* page) : page_(page) {
    PROBE_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    PROBE_CHECK(cudaMalloc(&weights_, kNodes * kNodeWords * 4));
    PROBE_CHECK(cudaMemset(weights_, 0, kNodes * kNodeWords * 4));
    PROBE_CHECK(cudaMalloc(&out_, 132 * 128 * 4));
    PROBE_CHECK(cudaMallocHost(&reading_, 16));
    cudaGraph_t graph;
    PROBE_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < kNodes; ++i) {
      Layer<<<132, 128, 0, stream_>>>(out_,
                                      reinterpret_cast<const float4*>(weights_ + i * kNodeWords));
    }
    PROBE_CHECK(cudaStreamEndCapture(stream_, &graph));
    PROBE_CHECK(cudaGraphInstantiate(&exec_, graph, 0));
    for (int i = 0; i < 20; ++i) Job();
  }

  void Job() {
    PROBE_CHECK(cudaGraphLaunch(exec_, stream_));
    PROBE_CHECK(cudaStreamSynchronize(stream_));
  }

  double Mhz() {
    probe::ReadClock<<<1, 1, 0, stream_>>>(reading_);
    PROBE_CHECK(cudaStreamSynchronize(stream_));
    return reading_[1] && reading_[1] < 72000 ? 1e3 * reading_[0] / reading_[1] : 0;
  }

  // (clock, time) pairs with the neighbour idle: rested, and right after power-heavy bursts.
  void PrintCalibration() {
    Gemm gemm(stream_, 8192);
    std::printf("\"calibration\": [");
    bool first = true;
    for (int burst = 0; burst < 20; ++burst) {
      for (int i = 0; burst >= 4 && i < 24 + 12 * (burst % 5); ++i) gemm.Launch();
      PROBE_CHECK(cudaStreamSynchronize(stream_));
      for (int64_t gap_ns : {200'000, 500'000, 1'000'000, 3'000'000}) {
        Job();
        probe::SpinUntil(probe::NowNs() + gap_ns);
        int64_t begin = probe::NowNs();
        Job();
        double ms = (probe::NowNs() - begin) / 1e6;
        double mhz = Mhz();
        if (mhz > 0) std::printf("%s[%.1f, %.5f]", first ? "" : ", ", mhz, ms);
        first = first && mhz <= 0;
      }
    }
    std::printf("]");
  }

  void Measure(int load, int lead_us, int jobs, int64_t period_ns, bool comma) {
    page_->close_ns = 0;
    page_->busy = 0;
    SetLoad(load);
    std::vector<double> latency_us, mhz;
    const int warm_up = 50;
    int64_t lead_ns = lead_us * 1000LL;
    int64_t release = probe::NowNs() + 2 * period_ns;
    int64_t begin = 0;
    uint64_t units = 0;
    for (int i = -warm_up; i < jobs; ++i, release += period_ns) {
      if (i == 0) {
        begin = probe::NowNs();
        units = page_->units.load();
      }
      page_->close_ns = release - lead_ns;
      page_->busy = 0;
      if (lead_ns) {
        probe::SpinUntil(release - lead_ns);
        page_->busy = 1;
        Touch<<<1, 1, 0, stream_>>>();
      }
      probe::SpinUntil(release);
      page_->busy = 1;
      Job();
      double us = (probe::NowNs() - release) / 1e3;
      double clock = Mhz();
      if (i >= 0) {
        latency_us.push_back(us);
        mhz.push_back(clock);
      }
    }
    double seconds = (probe::NowNs() - begin) / 1e9;
    double per_s = (page_->units.load() - units) / seconds;
    page_->busy = 0;
    page_->close_ns = 0;
    std::printf(
        "{\"load\": \"%s\", \"lead_us\": %d, \"be_per_s\": %.1f, \"be_unit_us\": %.1f, "
        "\"jobs\": [",
        kLoadNames[load], lead_us, per_s, load == kIdle ? 0.0 : page_->unit_ns.load() / 1e3);
    for (size_t i = 0; i < latency_us.size(); ++i) {
      std::printf("%s[%.2f, %.1f]", i ? ", " : "", latency_us[i], mhz[i]);
    }
    std::printf("]}%s", comma ? ", " : "");
  }

  void SetLoad(int load) {
    if (page_->load.load() == load) return;
    page_->ready = 0;
    page_->load = load;
    while (!page_->ready.load()) {
      if (waitpid(-1, nullptr, WNOHANG) > 0) {
        std::fprintf(stderr, "the best-effort process ended\n");
        std::exit(1);
      }
      usleep(100);
    }
  }

 private:
  Page* page_;
  cudaStream_t stream_ = nullptr;
  float *weights_ = nullptr, *out_ = nullptr;
  unsigned long long* reading_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
  int jobs = argc > 1 ? std::atoi(argv[1]) : 200;
  int64_t period_ns = (argc > 2 ? std::atoll(argv[2]) : 10000) * 1000;
  if (jobs < 10 || period_ns < 2'000'000) {
    std::fprintf(stderr, "usage: pretouch JOBS>=10 PERIOD_US>=2000\n");
    return 2;
  }
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  Page* page = new (memory) Page{};
  pid_t child = fork();  // before the first CUDA call: a context does not survive a fork
  if (child == 0) {
    BestEffort(page);
    _exit(0);
  }
  RealTime real_time(page);
  while (!page->ready.load()) {
    if (waitpid(child, nullptr, WNOHANG) > 0) {
      std::fprintf(stderr, "the best-effort process ended\n");
      return 1;
    }
    usleep(1000);
  }
  std::printf("{");
  real_time.PrintCalibration();
  std::printf(", \"runs\": [");
  real_time.Measure(kIdle, 0, jobs, period_ns, true);
  for (int load : {kSpin, kGemmLoad, kCopy}) {
    for (int lead_us : {0, 100, 200, 400}) {
      real_time.Measure(load, lead_us, jobs, period_ns, load != kCopy || lead_us != 400);
    }
  }
  std::printf("]}\n");
  page->load = kQuit;
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
