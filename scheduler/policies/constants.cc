#include "scheduler/policies/constants.h"

namespace rubato::policies {

Constants Constants::Dilated(uint32_t factor) const {
  Constants dilated = *this;
  for (Nanos Constants::*time :
       {&Constants::margin_ns, &Constants::touch_lead_ns, &Constants::bound_ns,
        &Constants::fallback_bound_ns, &Constants::unknown_op_ns, &Constants::marker_work_ns,
        &Constants::hold_floor_ns, &Constants::hold_limit_ns, &Constants::think_limit_ns,
        &Constants::blind_think_limit_ns, &Constants::think_guard_ns, &Constants::expire_floor_ns,
        &Constants::depth_ns, &Constants::jitter_guard_ns, &Constants::hold_window_ns,
        &Constants::switch_ns, &Constants::queue_behind_ns}) {
    dilated.*time *= factor == 0 ? 1 : factor;
  }
  return dilated;
}

abi::DeviceConstants ToDeviceConstants(const Constants& constants, abi::Mode mode) {
  abi::DeviceConstants out{};
  out.mode = static_cast<uint32_t>(mode);
  out.spin_ns = static_cast<uint64_t>(constants.spin_ns);
  out.sleep_floor_ns = static_cast<uint64_t>(constants.sleep_floor_ns);
  out.unknown_op_ns = static_cast<uint64_t>(constants.unknown_op_ns);
  out.marker_work_ns = static_cast<uint64_t>(constants.marker_work_ns);
  out.marker_ops = constants.marker_ops;
  out.sample_every = constants.sample_every;
  out.depth_ns = static_cast<uint64_t>(constants.depth_ns);
  out.fallback_bound_ns = static_cast<uint64_t>(constants.fallback_bound_ns);
  out.expire_factor = constants.expire_factor;
  out.copy_part_device_bytes = constants.copy_part_device_bytes;
  out.copy_part_host_bytes = constants.copy_part_host_bytes;
  out.expire_floor_ns = static_cast<uint64_t>(constants.expire_floor_ns);
  out.lease_ns = static_cast<uint64_t>(constants.lease_ns);
  return out;
}

}  // namespace rubato::policies
