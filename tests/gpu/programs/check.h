// What the programs of tests/gpu share: checked calls, the clock, and how a result is handed over.
//
// A program prints one line of JSON and then waits for the end of its stdin, so that the check can
// look at the scheduler's view of a tenant that is still there.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>
#include <time.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace check {

inline int64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

[[noreturn]] inline void Fail(const char* call, int code, const char* name, int line) {
  std::fprintf(stderr, "%s: error %d (%s), line %d\n", call, code, name ? name : "?", line);
  std::_Exit(1);
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

#define MUST(call) ::check::Check((call), #call, __LINE__)

inline void HandOver() {
  std::printf("\n");
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
}

}  // namespace check
