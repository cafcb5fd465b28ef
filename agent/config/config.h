// What an operator can say to rubato-agent, with its defaults. Plain values: where they come from
// is the loader's business (load.h), what each is called the table's (keys.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/time.h"

namespace rubato::agent {

enum class GpuSource : uint8_t { kAuto, kNvml, kAmd, kSoftware };
enum class Placement : uint8_t { kPacked, kSpread };
enum class DeviceInjection : uint8_t { kEnvvar, kCdiAnnotations, kCdi };
enum class ShimInjection : uint8_t { kPreload, kEnv };
enum class OnRefusal : uint8_t { kBestEffort, kRefuse };
enum class SharingMode : uint8_t { kTimeslice, kHybrid, kMps };

struct Config {
  std::string resource_name = "rubato.dev/gpu";
  std::string annotation_prefix = "rubato.dev/";
  uint32_t slots_per_gpu = 10;
  Placement placement = Placement::kPacked;
  bool numa_hints = true;
  DeviceInjection device_injection = DeviceInjection::kEnvvar;
  ShimInjection shim_injection = ShimInjection::kPreload;

  std::string host_root = "/var/lib/rubato";
  std::string kubelet_root = "/var/lib/kubelet";
  std::string scheduler_runtime_dir = "/run/rubato";
  SharingMode mode = SharingMode::kTimeslice;
  std::string mps_pipe_dir;  // Empty: none is mounted into tenants.
  std::string mps_shm_dir;

  GpuSource gpu_source = GpuSource::kAuto;
  std::string driver_root = "/";
  std::vector<std::string> gpu_include;  // UUIDs or indices; empty: all.
  std::vector<std::string> gpu_exclude;
  uint32_t fake_devices = 0;  // Software GPUs; more than none implies their source.
  base::Nanos gpu_poll_interval_ns = base::kSecond;
  base::Nanos gpu_hang_limit_ns = 10 * base::kSecond;
  base::Nanos gpu_recovery_ns = 30 * base::kSecond;
  std::vector<uint32_t> ignored_xids = {13, 31, 43, 45, 68, 109};
  std::string driver_capabilities = "compute,utility";
  bool pass_device_nodes = false;
  std::string cdi_kind = "nvidia.com/gpu";
  std::string cdi_annotation_prefix = "cdi.k8s.io/";
  bool softgpu_hip = false;         // Containers get the shim for HIP instead of CUDA's.
  std::string softgpu_socket_dir;   // Empty: <host_root>/softgpu/run.
  std::string softgpu_library_dir;  // Empty: beside the program.

  std::vector<std::string> realtime_namespaces;  // "*": every one.
  std::vector<std::string> budget_namespaces;
  std::vector<std::string> memory_namespaces;
  bool memory_overcommit = false;
  uint32_t max_overhead_budget_permille = 20;  // Beyond it, budget_namespaces decide.
  OnRefusal on_refusal = OnRefusal::kBestEffort;

  bool events_enabled = true;
  bool host_pid = false;  // The census of processes that are not attached.
  bool node_labels = false;
  std::string node_name;
  std::string api_server;   // Empty: the cluster this runs in; none: no API server.
  std::string api_ca_file;  // With api_server only, as the next.
  std::string api_token_file;
  std::string metrics_address = "127.0.0.1:9413";  // Empty: none.
  std::string health_socket;                       // Empty: none.
  std::string log_level = "info";

  std::string softgpu_socket_directory() const {
    return softgpu_socket_dir.empty() ? host_root + "/softgpu/run" : softgpu_socket_dir;
  }
  std::string records_path() const { return host_root + "/allocations.json"; }
  std::string alloc_directory() const { return host_root + "/alloc"; }
  bool operator==(const Config&) const = default;
};

}  // namespace rubato::agent
