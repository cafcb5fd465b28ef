// What the probes share: checked calls, the clock, a kernel that reads the SM clock.
//
// Programs of one process (or one fork) each, built by run_probes.py with nvcc. They print one JSON
// object on stdout; statistics are done in Python.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace probe {

inline int64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

inline void SpinUntil(int64_t until_ns) {
  while (NowNs() < until_ns) {
  }
}

[[noreturn]] inline void Fail(const char* call, int code, const char* name, int line) {
  std::fprintf(stderr, "%s: error %d (%s), line %d\n", call, code, name ? name : "?", line);
  std::exit(1);
}

inline void Check(cudaError_t code, const char* call, int line) {
  if (code != cudaSuccess) Fail(call, code, cudaGetErrorName(code), line);
}

inline void Check(CUresult code, const char* call, int line) {
  if (code == CUDA_SUCCESS) return;
  const char* name = nullptr;
  cuGetErrorName(code, &name);
  Fail(call, code, name, line);
}

#define PROBE_CHECK(call) ::probe::Check((call), #call, __LINE__)

inline double Percentile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  size_t rank = static_cast<size_t>(q * static_cast<double>(values.size()));
  return values[std::min(rank, values.size() - 1)];
}

// Cycles and nanoseconds between two ticks of %globaltimer, about 24 us apart.
__global__ void ReadClock(unsigned long long* out) {
  unsigned long long first, start, end, c0, c1;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(first));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  } while (start == first);
  asm volatile("mov.u64 %0, %clock64;" : "=l"(c0));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(end));
  } while (end < start + 24000);
  asm volatile("mov.u64 %0, %clock64;" : "=l"(c1));
  out[0] = c1 - c0;
  out[1] = end - start;
}

}  // namespace probe
