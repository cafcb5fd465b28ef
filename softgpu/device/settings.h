// How the software GPU is configured: RUBATO_SOFTGPU_* variables, read once by the device process
// (and those about missing features by the stand-ins too). softgpu/README.md lists them for users.
#ifndef SOFTGPU_DEVICE_SETTINGS_H_
#define SOFTGPU_DEVICE_SETTINGS_H_

#include <cstdint>
#include <string>

#include "softgpu/model/device_spec.h"

namespace rubato::softgpu {

struct Settings {
  double dilation = 1.0;  // Real nanoseconds per model nanosecond.
  uint32_t devices = 1;
  DeviceSpec spec;
  std::string log_path;           // JSON lines of what ran when; empty: none.
  int64_t late_writes_ns = 0;     // Stream word writes land up to this much later, model time.
  int64_t teardown_ns = 500'000;  // What a dead program had queued goes on for so long, model time.
  int64_t idle_exit_ns = 3'000'000'000;  // Real time without clients; 0: never.
  bool no_memops = false;
  bool no_green = false;
  bool fail_register = false;
  bool lazy_lock = false;
};

// From the environment; a value that is not a number in range keeps the default.
Settings ReadSettings();

// The directory of the socket: $RUBATO_SOFTGPU_DIR, $XDG_RUNTIME_DIR/rubato-softgpu or
// /tmp/rubato-softgpu-<uid>.
std::string DefaultDirectory();

}  // namespace rubato::softgpu

#endif  // SOFTGPU_DEVICE_SETTINGS_H_
