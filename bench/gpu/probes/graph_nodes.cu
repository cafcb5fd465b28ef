// How long a chain of N small kernels takes as one graph, for several N and two kinds of kernel.
//
// Run once without MPS, once as an MPS client and once beside an idle MPS client, the difference of
// the slopes is what MPS costs a graph per node. The work of a kernel is fixed (iterations, bytes),
// not its time, so that a slower kernel shows as well as a longer gap between two.
//
// usage: graph_nodes            measures and prints JSON
//        graph_nodes --idle     makes a context, prints "ready", waits for the end of its stdin

#include <cstring>

#include "probe.h"

namespace {

constexpr int kBlocks = 64;
constexpr int kThreads = 128;
constexpr size_t kWords = 256 << 10;  // 1 MiB read by each "read" kernel, all nodes the same: L2

__global__ void Fma(float* out, int iterations) {
  float x = threadIdx.x * 1e-3f;
  for (int i = 0; i < iterations; ++i) x = fmaf(x, 0.9999f, 1e-4f);
  if (x == 123.0f) out[blockIdx.x] = x;
}

__global__ void Read(float* out, const float* in, int repeats) {
  float sum = 0;
  for (int r = 0; r < repeats; ++r) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < kWords;
         i += gridDim.x * blockDim.x) {
      sum += in[i];
    }
  }
  if (sum == 123.0f) out[blockIdx.x] = sum;
}

struct Kind {
  const char* name;
  bool reads;
  int amount;
};

double GraphUs(cudaStream_t stream, float* out, const float* in, const Kind& kind, int nodes,
               double* mhz) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  PROBE_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < nodes; ++i) {
    if (kind.reads) {
      Read<<<kBlocks, kThreads, 0, stream>>>(out, in, kind.amount);
    } else {
      Fma<<<kBlocks, kThreads, 0, stream>>>(out, kind.amount);
    }
  }
  PROBE_CHECK(cudaStreamEndCapture(stream, &graph));
  PROBE_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  const int warm_up = 10, runs = nodes > 200 ? 40 : 100;
  std::vector<double> us;
  for (int i = 0; i < warm_up + runs; ++i) {
    int64_t begin = probe::NowNs();
    PROBE_CHECK(cudaGraphLaunch(exec, stream));
    PROBE_CHECK(cudaStreamSynchronize(stream));
    if (i >= warm_up) us.push_back((probe::NowNs() - begin) / 1e3);
  }
  static unsigned long long* reading = nullptr;
  if (!reading) PROBE_CHECK(cudaMallocHost(&reading, 16));
  probe::ReadClock<<<1, 1, 0, stream>>>(reading);
  PROBE_CHECK(cudaStreamSynchronize(stream));
  *mhz = 1e3 * reading[0] / reading[1];
  PROBE_CHECK(cudaGraphExecDestroy(exec));
  PROBE_CHECK(cudaGraphDestroy(graph));
  return probe::Percentile(us, 0.5);
}

}  // namespace

int main(int argc, char** argv) {
  PROBE_CHECK(cudaFree(nullptr));
  if (argc > 1 && std::strcmp(argv[1], "--idle") == 0) {
    float* memory;
    PROBE_CHECK(cudaMalloc(&memory, 1 << 20));
    Fma<<<1, 32>>>(memory, 1);
    PROBE_CHECK(cudaDeviceSynchronize());
    std::printf("ready\n");
    std::fflush(stdout);
    while (std::getchar() != EOF) {
    }
    return 0;
  }
  cudaStream_t stream;
  PROBE_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  float *out, *in;
  PROBE_CHECK(cudaMalloc(&out, kBlocks * sizeof(float)));
  PROBE_CHECK(cudaMalloc(&in, kWords * sizeof(float)));
  PROBE_CHECK(cudaMemset(in, 0, kWords * sizeof(float)));
  // About 3 us, 20 us and 20 us on an H200.
  const Kind kinds[] = {{"fma-short", false, 1000}, {"fma-long", false, 9000}, {"read", true, 8}};
  const int counts[] = {1, 2, 5, 10, 20, 50, 100, 200, 500};
  double mhz = 0;
  for (int i = 0; i < 20; ++i) GraphUs(stream, out, in, kinds[1], 100, &mhz);  // wakes the clock
  std::printf("{\"points\": [");
  bool first = true;
  for (const Kind& kind : kinds) {
    for (int nodes : counts) {
      double us = GraphUs(stream, out, in, kind, nodes, &mhz);
      std::printf("%s{\"kernel\": \"%s\", \"nodes\": %d, \"us\": %.3f, \"sm_clock_mhz\": %.0f}",
                  first ? "" : ", ", kind.name, nodes, us, mhz);
      first = false;
    }
  }
  std::printf("]}\n");
  return 0;
}
