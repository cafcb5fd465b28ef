// What a GPU is to the device plugin: a name to make slots of, whether it may be handed out, and
// what a container needs to reach it.
//
// Filled by the agent's inventory, which talks to the vendors' libraries; nothing here does. Plain
// data, copied freely.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rubato::deviceplugin {

enum class Vendor : uint8_t { kNvidia, kAmd, kSoftware };

// Which driver interface programs use on a GPU, and so which of the shims they need.
enum class DriverApi : uint8_t { kCuda, kHip };

struct Gpu {
  // Stable across restarts and reboots, unique on the node; slots are named after it. Letters,
  // digits, '-', '_' and '.', at most kMostUuidCharacters (slot.h). NVIDIA: "GPU-8f3c...".
  std::string uuid;
  Vendor vendor = Vendor::kNvidia;
  std::string name;  // For people.
  uint32_t index = 0;
  uint64_t total_bytes = 0;
  int32_t numa_node = -1;  // -1: unknown.

  // Device nodes on the host that a container with a slot of this GPU may open, those that several
  // GPUs share (/dev/nvidiactl, /dev/kfd) included. Used on AMD, and on NVIDIA where
  // AnswerOptions::pass_device_nodes is set.
  std::vector<std::string> device_nodes;

  // The interface of a software GPU. NVIDIA's is CUDA and AMD's HIP, whatever this says.
  DriverApi software_api = DriverApi::kCuda;

  // An unhealthy GPU stays in the node's capacity: what runs there keeps running, nothing new
  // comes. It may become healthy again.
  bool healthy = true;
  std::string unhealthy_reason;

  // A withheld GPU is not ours to hand out (MIG is on, another plugin has it, the configuration
  // excludes it): it has no slots at all.
  bool withheld = false;
  std::string withheld_reason;
};

inline DriverApi ApiOf(const Gpu& gpu) {
  switch (gpu.vendor) {
    case Vendor::kNvidia:
      return DriverApi::kCuda;
    case Vendor::kAmd:
      return DriverApi::kHip;
    case Vendor::kSoftware:
      break;
  }
  return gpu.software_api;
}

inline const char* VendorName(Vendor vendor) {
  switch (vendor) {
    case Vendor::kNvidia:
      return "nvidia";
    case Vendor::kAmd:
      return "amd";
    case Vendor::kSoftware:
      break;
  }
  return "software";
}

}  // namespace rubato::deviceplugin
