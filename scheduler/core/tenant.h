// What a tenant is told to be: its names and its promise, checked once, at the border.
//
// A tenant is the processes of one container, or of one `rubato run`. The text is data from the
// control API: it is validated here before anything else sees it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "proto/abi/device.h"

namespace rubato::core {

using base::Nanos;
using TenantClass = abi::TenantClass;
using Mode = abi::Mode;
using TenantId = uint64_t;  // Unique within one run of the scheduler; 0 is none.

struct TenantSpec {
  std::string name;
  std::string name_space;  // Kubernetes namespace; the four below are empty outside Kubernetes.
  std::string pod;
  std::string container;
  std::string pod_uid;
  TenantClass tenant_class = TenantClass::kFree;  // As asked for.
  Nanos period_ns = 0;                            // Real-time; 0: not declared.
  Nanos deadline_ns = 0;                          // Real-time; 0: the period, or none.
  uint64_t limit_bytes = 0;                       // 0: none.
  uint32_t weight = 0;  // Among best-effort tenants; no part of a real-time promise.
  uint32_t priority = 0;
  uint32_t overhead_budget_permille = 0;
  bool any_user = false;
  uint32_t share_permille = 0;            // Slots held, of each device; 0: outside Kubernetes.
  std::vector<std::string> device_uuids;  // That the slots are of; empty: any.
  // Who registers the tenant refuses real-time itself, for this reason; empty: it does not.
  std::string refusal_reason;
  std::string refusal_detail;
  bool profile = false;  // Best-effort: it runs to have all of its ops measured.
};

inline constexpr Nanos kShortestPeriodNs = 100 * base::kMicrosecond;
inline constexpr Nanos kLongestPeriodNs = 60 * base::kSecond;
inline constexpr size_t kMostDeviceUuids = 16;
inline constexpr uint32_t kDefaultBudgetPermille = 20;  // Of overhead, where none is named.

// An error names the field and what it may be.
base::Result<void> ValidateSpec(const TenantSpec& spec);

// The deadline that counts: the declared one, else the declared period, else 0 (none).
inline Nanos EffectiveDeadline(const TenantSpec& spec) {
  return spec.deadline_ns != 0 ? spec.deadline_ns : spec.period_ns;
}

// "realtime" or "best-effort", as on the command line and in labels.
const char* ClassName(TenantClass tenant_class);
// "timeslice", "hybrid" or "mps".
const char* ModeName(Mode mode);

}  // namespace rubato::core
