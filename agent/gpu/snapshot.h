// What a vendor's library said about the node's GPUs at one instant: plain values, in the units of
// the metrics. An absent number is one that the library does not know.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/time.h"

namespace rubato::agent {

enum class GpuVendor : uint8_t { kNvidia, kAmd, kSoftware };
const char* GpuVendorName(GpuVendor vendor);  // "nvidia", "amd", "software"

struct GpuProcess {
  int64_t pid = 0;          // In the namespace of the driver: the host's.
  uint64_t used_bytes = 0;  // 0: not known.
};

struct GpuReading {
  std::string uuid;  // "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", as the shim's driver tells it.
  GpuVendor vendor = GpuVendor::kNvidia;
  uint32_t index = 0;
  std::string name;
  std::string pci_bus_id;                 // "0000:3b:00.0", lower case; empty: not known.
  std::vector<std::string> device_nodes;  // On the host: /dev/nvidia0, /dev/dri/renderD128.
  int numa_node = -1;
  bool mig_enabled = false;
  std::string lost;  // Not empty: the library cannot reach this GPU, in its words.

  uint64_t total_bytes = 0;
  uint64_t used_bytes = 0;
  std::optional<double> sm_clock_hz;
  std::optional<double> memory_clock_hz;
  std::optional<double> power_watts;
  std::optional<double> utilization_ratio;  // 0 to 1.
  std::optional<double> temperature_celsius;
  bool processes_known = false;
  std::vector<GpuProcess> processes;
};

// An error that the driver reported; `uuid` is empty where it could not say of which GPU.
struct XidEvent {
  std::string uuid;
  uint64_t xid = 0;
};

struct GpuSnapshot {
  base::Nanos taken_ns = 0;
  std::string library;  // "NVML 13.580.159.03"
  std::string driver_version;
  std::vector<GpuReading> gpus;  // By index.
  std::vector<XidEvent> xids;    // Since the snapshot before.
};

}  // namespace rubato::agent
