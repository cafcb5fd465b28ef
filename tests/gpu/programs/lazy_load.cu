// Kernels are loaded at their first launch, under a lock of the context. Two things must hold as
// they do without Rubato: threads that launch many kernels for the first time at once all get
// through while long work runs, and a kernel that waits for another one, not loaded yet, is served
// if it is served without Rubato (`peer_seen`).

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"

namespace {

constexpr int kKernels = 64;
constexpr int kThreads = 8;

template <int N>
__global__ void First(unsigned* out) {
  out[N] = N * 2654435761u + 1;
}

__global__ void WaitForFlag(volatile unsigned* flag, unsigned* seen, unsigned long long limit_ns) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (*flag == 0 && now < start + limit_ns);
  *seen = *flag;
}

__global__ void SetFlag(volatile unsigned* flag) {
  *flag = 1;
}

__global__ void Busy(unsigned long long ns) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now < start + ns);
}

using Launch = void (*)(cudaStream_t, unsigned*);

template <int N>
void LaunchOne(cudaStream_t stream, unsigned* out) {
  First<N><<<1, 1, 0, stream>>>(out);
}

template <int... N>
std::vector<Launch> Table(std::integer_sequence<int, N...>) {
  return {&LaunchOne<N>...};
}

}  // namespace

int main() {
  MUST(cudaFree(nullptr));
  unsigned *flag, *seen, *out;
  MUST(cudaMalloc(&flag, 4));
  MUST(cudaMalloc(&seen, 4));
  MUST(cudaMalloc(&out, kKernels * 4));
  MUST(cudaMemset(flag, 0, 4));
  MUST(cudaMemset(seen, 0, 4));
  MUST(cudaMemset(out, 0, kKernels * 4));
  MUST(cudaDeviceSynchronize());

  cudaStream_t waiting, other;
  MUST(cudaStreamCreateWithFlags(&waiting, cudaStreamNonBlocking));
  MUST(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  WaitForFlag<<<1, 1, 0, waiting>>>(flag, seen, 2'000'000'000ull);
  SetFlag<<<1, 1, 0, other>>>(flag);
  MUST(cudaDeviceSynchronize());
  unsigned peer_seen = 0;
  MUST(cudaMemcpy(&peer_seen, seen, 4, cudaMemcpyDeviceToHost));

  const std::vector<Launch> table = Table(std::make_integer_sequence<int, kKernels>());
  std::atomic<bool> done{false};
  std::thread background([&] {
    while (!done) {
      Busy<<<1, 1, 0, waiting>>>(500'000);
      MUST(cudaStreamSynchronize(waiting));
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      cudaStream_t stream;
      MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      for (int i = t; i < kKernels; i += kThreads) table[i](stream, out);
      MUST(cudaStreamSynchronize(stream));
    });
  }
  for (std::thread& thread : threads) thread.join();
  done = true;
  background.join();
  unsigned host[kKernels];
  MUST(cudaMemcpy(host, out, sizeof(host), cudaMemcpyDeviceToHost));
  int right = 0;
  for (unsigned i = 0; i < kKernels; ++i) right += host[i] == i * 2654435761u + 1;
  std::printf("{\"peer_seen\": %u, \"kernels\": %d, \"right\": %d}", peer_seen, kKernels, right);
  check::HandOver();
  return 0;
}
