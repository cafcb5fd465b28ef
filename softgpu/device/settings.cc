#include "softgpu/device/settings.h"

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace rubato::softgpu {

namespace {

double Number(const char* name, double fallback, double least, double most) {
  const char* text = getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  const double value = strtod(text, &end);
  if (*end != '\0' || !std::isfinite(value) || value < least || value > most) return fallback;
  return value;
}

bool Flag(const char* name) {
  const char* text = getenv(name);
  return text != nullptr && *text != '\0' && strcmp(text, "0") != 0;
}

int64_t Us(const char* name, int64_t fallback_ns) {
  return static_cast<int64_t>(Number(name, static_cast<double>(fallback_ns) / 1e3, 0, 1e12) * 1e3);
}

}  // namespace

Settings ReadSettings() {
  Settings s;
  s.dilation = Number("RUBATO_SOFTGPU_DILATION", 1.0, 0.01, 1e6);
  s.devices = static_cast<uint32_t>(Number("RUBATO_SOFTGPU_DEVICES", 1, 1, 8));
  DeviceSpec& spec = s.spec;
  spec.sm_count = static_cast<uint32_t>(Number("RUBATO_SOFTGPU_SMS", spec.sm_count, 1, 1024));
  spec.memory_bytes = static_cast<uint64_t>(
      Number("RUBATO_SOFTGPU_MEMORY_BYTES", static_cast<double>(spec.memory_bytes), 1 << 20, 1e15));
  spec.time_slice_ns = std::max<int64_t>(1'000, Us("RUBATO_SOFTGPU_SLICE_US", spec.time_slice_ns));
  spec.context_switch_ns = Us("RUBATO_SOFTGPU_SWITCH_US", spec.context_switch_ns);
  spec.launch_latency_ns = Us("RUBATO_SOFTGPU_LAUNCH_US", spec.launch_latency_ns);
  spec.mps_node_tax_ns = Us("RUBATO_SOFTGPU_MPS_NODE_US", spec.mps_node_tax_ns);
  spec.cold_start_ns = Us("RUBATO_SOFTGPU_COLD_US", spec.cold_start_ns);
  spec.power.limit_watts = Number("RUBATO_SOFTGPU_POWER_WATTS", 0, 0, 1e6);
  if (const char* path = getenv("RUBATO_SOFTGPU_LOG")) s.log_path = path;
  const char* late = getenv("RUBATO_SOFTGPU_LATE_WRITES");
  if (late != nullptr && strcmp(late, "1") == 0) {
    s.late_writes_ns = 50'000;
  } else {
    s.late_writes_ns = Us("RUBATO_SOFTGPU_LATE_WRITES", 0);
  }
  s.teardown_ns = Us("RUBATO_SOFTGPU_TEARDOWN_US", s.teardown_ns);
  s.idle_exit_ns = static_cast<int64_t>(Number("RUBATO_SOFTGPU_IDLE_EXIT_MS", 3000, 0, 1e9) * 1e6);
  s.no_memops = Flag("RUBATO_SOFTGPU_NO_MEMOPS");
  s.no_green = Flag("RUBATO_SOFTGPU_NO_GREEN");
  s.fail_register = Flag("RUBATO_SOFTGPU_FAIL_REGISTER");
  s.lazy_lock = Flag("RUBATO_SOFTGPU_LAZY_LOCK");
  return s;
}

std::string DefaultDirectory() {
  if (const char* dir = getenv("RUBATO_SOFTGPU_DIR"); dir != nullptr && *dir != '\0') return dir;
  if (const char* run = getenv("XDG_RUNTIME_DIR"); run != nullptr && *run == '/') {
    return std::string(run) + "/rubato-softgpu";
  }
  return "/tmp/rubato-softgpu-" + std::to_string(getuid());
}

}  // namespace rubato::softgpu
