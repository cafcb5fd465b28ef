// Host nanoseconds of a launch: rounds of empty kernels in one stream, few enough that the queue
// never fills, a wait between rounds that is not counted. Also how long cuInit takes, in which a
// process attaches.

#include <algorithm>
#include <vector>

#include "check.h"

namespace {

__global__ void Empty() {}

}  // namespace

int main() {
  int64_t begin = check::NowNs();
  MUST(cuInit(0));
  double init_ms = (check::NowNs() - begin) / 1e6;
  MUST(cudaFree(nullptr));
  cudaStream_t stream;
  MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaFunction_t symbol;
  MUST(cudaGetFuncBySymbol(&symbol, reinterpret_cast<const void*>(Empty)));
  CUfunction function = reinterpret_cast<CUfunction>(symbol);
  const int kRounds = 400, kLaunches = 200;
  std::vector<double> ns;
  for (int round = 0; round < kRounds; ++round) {
    begin = check::NowNs();
    for (int i = 0; i < kLaunches; ++i) {
      MUST(cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, nullptr, nullptr));
    }
    double took = static_cast<double>(check::NowNs() - begin) / kLaunches;
    MUST(cuStreamSynchronize(stream));
    if (round >= kRounds / 4) ns.push_back(took);
  }
  std::sort(ns.begin(), ns.end());
  double sum = 0;
  for (double value : ns) sum += value;
  std::printf("{\"launch_ns_median\": %.1f, \"launch_ns_mean\": %.1f, \"init_ms\": %.3f}",
              ns[ns.size() / 2], sum / ns.size(), init_ms);
  check::HandOver();
  return 0;
}
