// GPUs for the tests of this folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "deviceplugin/gpu.h"
#include "deviceplugin/slot.h"

namespace rubato::deviceplugin {

inline Gpu MakeGpu(uint32_t index, int32_t numa_node = -1) {
  Gpu gpu;
  gpu.uuid = "GPU-" + std::to_string(index);
  gpu.name = "Test";
  gpu.index = index;
  gpu.total_bytes = uint64_t{16} << 30;
  gpu.numa_node = numa_node;
  gpu.device_nodes = {"/dev/nvidia" + std::to_string(index), "/dev/nvidiactl"};
  return gpu;
}

inline std::vector<Gpu> MakeGpus(uint32_t count) {
  std::vector<Gpu> gpus;
  for (uint32_t i = 0; i < count; ++i) gpus.push_back(MakeGpu(i));
  return gpus;
}

// Slots `first` to `last` of a GPU.
inline std::vector<std::string> Slots(uint32_t gpu, uint32_t first, uint32_t last) {
  std::vector<std::string> slots;
  for (uint32_t n = first; n <= last; ++n)
    slots.push_back(FormatSlotId("GPU-" + std::to_string(gpu), n));
  return slots;
}

inline std::vector<std::string> operator+(std::vector<std::string> a,
                                          const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace rubato::deviceplugin
