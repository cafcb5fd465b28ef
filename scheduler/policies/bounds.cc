#include "scheduler/policies/bounds.h"

#include <algorithm>

namespace rubato::policies {

bool PreTouches(const core::TenantSpec& spec, core::Mode mode) {
  return spec.tenant_class == core::TenantClass::kRealtime && mode != core::Mode::kMps;
}

Nanos MaxHoldNs(const JobKnowledge& jobs, Nanos period_ns, const Constants& constants) {
  const Nanos by_length_ns =
      std::min(jobs.mret_ns, constants.hold_limit_ns) * constants.hold_mret_factor;
  return std::min(std::max({by_length_ns, period_ns, constants.hold_floor_ns}),
                  constants.hold_limit_ns);
}

abi::TenantLine TenantLineFor(const core::TenantSpec& spec, core::Mode mode,
                              const JobKnowledge& jobs, Nanos period_ns,
                              const Constants& constants) {
  abi::TenantLine line{};
  line.tenant_class = static_cast<uint32_t>(spec.tenant_class);
  line.weight = spec.weight;
  line.limit_bytes = spec.limit_bytes;
  if (spec.tenant_class != core::TenantClass::kRealtime) return line;
  line.bound_ns = static_cast<uint64_t>(constants.bound_ns);
  line.think_ns = static_cast<uint64_t>(jobs.think_ns);
  line.max_hold_ns = static_cast<uint64_t>(MaxHoldNs(jobs, period_ns, constants));
  line.deadline_ns = static_cast<uint64_t>(core::EffectiveDeadline(spec));
  if (PreTouches(spec, mode)) {
    line.flags |= abi::kTenantTouch;
    // In a context of its own, too: elsewhere what is queued behind a job would run beside it.
    const bool whole = jobs.think_ns == 0;  // Nothing follows the wait that ends a job.
    if (whole && jobs.mret_ns != 0 && jobs.mret_ns <= constants.queue_behind_ns) {
      line.flags |= abi::kTenantQueueBehind;
    }
  }
  line.priority = spec.priority;
  return line;
}

abi::ReleaseLine ReleaseLineFor(const ReleasePrediction& prediction, bool touches,
                                const Constants& constants) {
  abi::ReleaseLine line{};
  if (prediction.kind != ReleaseKind::kLocked) return line;
  const Nanos period_ns = prediction.period_ns;
  line.flags = abi::kReleaseValid;
  line.phase_ns = static_cast<uint64_t>(prediction.phase_ns);
  line.period_ns = static_cast<uint64_t>(period_ns);
  line.early_ns = static_cast<uint64_t>(prediction.early_ns);
  line.late_ns = static_cast<uint64_t>(prediction.late_ns);
  // The touch is submitted before the earliest release, into a GPU that is already empty. With a
  // period that has no room for it, at least half of the period stays with the others.
  const Nanos lead_ns = touches ? constants.touch_lead_ns : 0;
  line.margin_ns = static_cast<uint64_t>(std::min(constants.margin_ns + lead_ns, period_ns / 2));
  line.touch_lead_ns =
      touches ? static_cast<uint64_t>(std::min(lead_ns, period_ns / 4) + prediction.early_ns) : 0;
  line.valid_until_ns = static_cast<uint64_t>(prediction.valid_until_ns);
  return line;
}

abi::SpaceLine SpaceLineFor(const JobKnowledge& jobs) {
  abi::SpaceLine line{};
  line.partition_index = abi::kNoPartition;
  line.job_ns = static_cast<uint64_t>(std::max<Nanos>(0, jobs.typical_ns));
  return line;
}

}  // namespace rubato::policies
