// What the test sets in the library that stands in for NVML and ROCm SMI: the library exports one
// such struct under the name `fake_vendor`. One thread at a time.
#pragma once

#include <cstdint>

struct FakeVendor {
  static constexpr unsigned kMostGpus = 4;
  static constexpr unsigned kMostProcesses = 200;
  struct Gpu {
    unsigned mig;
    int status;  // What calls about it answer.
    unsigned processes;
    uint64_t unique_id;  // ROCm SMI; 0: not supported.
  };
  int init_status;
  unsigned count;
  Gpu gpus[kMostGpus];
  unsigned xids;  // How many wait.
  struct {
    int gpu;  // -1: of none that is known.
    uint64_t xid;
  } xid[8];
  int inits;
  int shutdowns;
};
