#include "scheduler/core/tenant.h"

#include <string_view>

namespace rubato::core {
namespace {

base::Error Bad(std::string message) {
  return base::Error{base::ErrorCode::kInvalid, std::move(message)};
}

bool IsLabelText(std::string_view text, size_t limit) {
  if (text.size() > limit) return false;
  for (const char c : text) {
    if (c < 0x20 || c >= 0x7f) return false;
  }
  return true;
}

// A stable word for machines, which becomes a label.
bool IsReason(std::string_view text) {
  if (text.size() > 64) return false;
  for (const char c : text) {
    if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '-') return false;
  }
  return true;
}

}  // namespace

base::Result<void> ValidateSpec(const TenantSpec& spec) {
  if (spec.name.empty() || !IsLabelText(spec.name, 128))
    return Bad("name must be 1 to 128 printable ASCII characters");
  if (!IsLabelText(spec.name_space, 253) || !IsLabelText(spec.pod, 253) ||
      !IsLabelText(spec.container, 253) || !IsLabelText(spec.pod_uid, 253))
    return Bad(
        "namespace, pod, container and pod_uid must be printable ASCII of at most 253 "
        "characters");
  const bool realtime = spec.tenant_class == TenantClass::kRealtime;
  if (!realtime && spec.tenant_class != TenantClass::kBestEffort)
    return Bad("tenant_class must be realtime or best-effort");
  if (spec.period_ns != 0) {
    if (!realtime) return Bad("period_ns is for real-time tenants only; leave it out");
    if (spec.period_ns < kShortestPeriodNs || spec.period_ns > kLongestPeriodNs)
      return Bad("period_ns must be between 100us and 60s, not " +
                 base::FormatDuration(spec.period_ns));
  }
  if (spec.deadline_ns != 0) {
    if (!realtime) return Bad("deadline_ns is for real-time tenants only; leave it out");
    if (spec.deadline_ns < 0 || spec.deadline_ns > kLongestPeriodNs)
      return Bad("deadline_ns must be between 1ns and 60s, not " +
                 base::FormatDuration(spec.deadline_ns));
  }
  if (spec.limit_bytes > (uint64_t{1} << 50)) return Bad("limit_bytes must be at most 1 PiB");
  if (spec.weight > 1000) return Bad("weight must be at most 1000");
  if (spec.priority > 1000) return Bad("priority must be at most 1000");
  if (spec.priority != 0 && !realtime)
    return Bad("priority is for real-time tenants only; leave it out");
  if (spec.overhead_budget_permille > 1000)
    return Bad("overhead_budget_permille must be at most 1000");
  if (spec.share_permille > 1000) return Bad("share_permille must be at most 1000");
  if (spec.device_uuids.size() > kMostDeviceUuids)
    return Bad("device_uuids must be at most " + std::to_string(kMostDeviceUuids));
  for (const std::string& uuid : spec.device_uuids) {
    if (uuid.empty() || !IsLabelText(uuid, 128))
      return Bad("device_uuids must be 1 to 128 printable ASCII characters each");
  }
  if (spec.profile && realtime) return Bad("profile is for best-effort tenants only; leave it out");
  if (!IsReason(spec.refusal_reason))
    return Bad("refusal_reason must be at most 64 lower-case letters, digits and hyphens");
  if (!spec.refusal_reason.empty() && !realtime)
    return Bad("refusal_reason is for tenants that ask for real-time; leave it out");
  if (!IsLabelText(spec.refusal_detail, 512) ||
      (spec.refusal_reason.empty() && !spec.refusal_detail.empty()))
    return Bad(
        "refusal_detail must be printable ASCII of at most 512 characters, and goes with a "
        "refusal_reason");
  return {};
}

const char* ClassName(TenantClass tenant_class) {
  switch (tenant_class) {
    case TenantClass::kRealtime:
      return "realtime";
    case TenantClass::kBestEffort:
      return "best-effort";
    case TenantClass::kFree:
      break;
  }
  return "none";
}

const char* ModeName(Mode mode) {
  switch (mode) {
    case Mode::kTimeslice:
      return "timeslice";
    case Mode::kHybrid:
      return "hybrid";
    case Mode::kMps:
      return "mps";
  }
  return "unknown";
}

}  // namespace rubato::core
