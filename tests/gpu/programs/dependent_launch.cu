// Programmatic dependent launch: a kernel may start before its predecessor ends and waits for it
// inside. What the shim puts between two launches (a marker, a wait at the gate) must not break the
// wait: each kernel of a chain must find its predecessor's value, eager and captured into a graph.

#include "check.h"

namespace {

constexpr int kChain = 400;
constexpr int kRounds = 20;

__global__ void Link(unsigned* word, unsigned expected, unsigned* errors) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  unsigned seen = *reinterpret_cast<volatile unsigned*>(word);
  if (seen != expected) atomicAdd(errors, 1);
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now < start + 3000);
  *reinterpret_cast<volatile unsigned*>(word) = expected + 1;
}

void LaunchChain(cudaStream_t stream, unsigned* word, unsigned* errors) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(1);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  MUST(cudaMemsetAsync(word, 0, 4, stream));
  for (unsigned i = 0; i < kChain; ++i) {
    MUST(cudaLaunchKernelEx(&config, Link, word, i, errors));
  }
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  MUST(cudaGetDeviceProperties(&properties, 0));
  if (properties.major < 9) {
    std::printf("{\"skip\": \"needs compute capability 9.0\"}");
    check::HandOver();
    return 0;
  }
  cudaStream_t stream;
  MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  unsigned *word, *errors;
  MUST(cudaMalloc(&word, 4));
  MUST(cudaMalloc(&errors, 8));
  MUST(cudaMemset(errors, 0, 8));
  MUST(cudaDeviceSynchronize());
  for (int round = 0; round < kRounds; ++round) LaunchChain(stream, word, errors);
  MUST(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  LaunchChain(stream, word, errors + 1);
  MUST(cudaStreamEndCapture(stream, &graph));
  MUST(cudaGraphInstantiate(&exec, graph, 0));
  for (int round = 0; round < kRounds; ++round) MUST(cudaGraphLaunch(exec, stream));
  MUST(cudaStreamSynchronize(stream));
  unsigned found[2], last;
  MUST(cudaMemcpy(found, errors, 8, cudaMemcpyDeviceToHost));
  MUST(cudaMemcpy(&last, word, 4, cudaMemcpyDeviceToHost));
  std::printf("{\"eager_errors\": %u, \"graph_errors\": %u, \"last\": %u, \"chain\": %d}", found[0],
              found[1], last, kChain);
  check::HandOver();
  return 0;
}
