// What one GPU of the model is made of and what things cost on it.
//
// Plain data, filled by whoever builds a model: the device process from its environment, the
// simulator from its task set, a test by hand. The defaults describe an H200 as it was measured
// (see softgpu/README.md). All times are model nanoseconds; the model itself knows no clock.
#ifndef SOFTGPU_MODEL_DEVICE_SPEC_H_
#define SOFTGPU_MODEL_DEVICE_SPEC_H_

#include <cstdint>
#include <string>

namespace rubato::softgpu {

// The resources of one streaming multiprocessor; a block is placed where all four of its demands
// fit.
struct SmSpec {
  uint32_t threads = 2048;
  uint32_t registers = 65536;
  uint32_t shared_bytes = 228 * 1024;
  uint32_t blocks = 32;
};

// The SM clock falls when the running blocks draw more than the limit. Off unless `limit_watts` >
// 0.
struct PowerSpec {
  double limit_watts = 0;
  double idle_watts = 120;
  double floor = 0.72;  // The clock never falls below this share of its maximum.
};

struct DeviceSpec {
  std::string name = "Rubato Software GPU";
  uint32_t sm_count = 132;
  SmSpec sm;
  uint64_t memory_bytes = 141ull << 30;

  double device_bytes_per_ns = 2000;  // Copies inside the device, each byte read and written.
  double host_bytes_per_ns = 50;      // Each direction over the bus; one copy engine a direction.
  int64_t copy_latency_ns = 2'000;    // Before the first byte of a bus copy.

  int64_t time_slice_ns = 2'000'000;  // A context keeps the SMs this long while another one waits.
  int64_t context_switch_ns = 140'000;  // Saving one context's blocks and restoring another's.
  int64_t launch_latency_ns = 3'000;    // From submission to the earliest start.
  int64_t kernel_gap_ns = 1'000;        // Between dependent operations of one stream.
  int64_t graph_node_gap_ns = 700;      // Between dependent nodes of one graph.
  int64_t marker_ns = 1'500;            // One write or wait of a stream word.
  int64_t mps_node_tax_ns = 2'000;      // Added to each graph kernel node under a shared server.
  int64_t cold_start_ns = 0;  // Added to the first kernel after a context switch (caches).
  PowerSpec power;
};

}  // namespace rubato::softgpu

#endif  // SOFTGPU_MODEL_DEVICE_SPEC_H_
