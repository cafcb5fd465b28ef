// The few declarations of NVIDIA's management library that are hooked or called; its header is not
// in every toolkit. Layouts are NVML's ABI.
#pragma once

#include <cstddef>

extern "C" {

using NvmlDevice = struct RubatoNvmlDevice*;

struct NvmlMemory {
  unsigned long long total;
  unsigned long long free;
  unsigned long long used;
};
static_assert(sizeof(NvmlMemory) == 24);

struct NvmlMemoryV2 {
  unsigned version;
  unsigned long long total;
  unsigned long long reserved;  // By the driver; free + used + reserved = total.
  unsigned long long free;
  unsigned long long used;
};
static_assert(sizeof(NvmlMemoryV2) == 40 && offsetof(NvmlMemoryV2, total) == 8);

// nvmlReturn_t; 0 is success.
using NvmlStatus = int;

NvmlStatus nvmlDeviceGetMemoryInfo(NvmlDevice device, NvmlMemory* memory);
NvmlStatus nvmlDeviceGetMemoryInfo_v2(NvmlDevice device, NvmlMemoryV2* memory);
}

inline constexpr NvmlStatus kNvmlSuccess = 0;
inline constexpr NvmlStatus kNvmlLibraryNotFound = 12;
