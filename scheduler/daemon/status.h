// A picture of the scheduler at one moment, as plain values.
//
// Made on the loop's thread, handed to the control service and to the metrics, which turn it into
// their own formats on their own threads.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "proto/abi/slot.h"
#include "scheduler/core/job_ledger.h"
#include "scheduler/core/slot_reader.h"
#include "scheduler/core/tenant.h"
#include "scheduler/policies/bounds.h"

namespace rubato::sched {

using core::Nanos;
using core::TenantId;

// What only grows, of one tenant on one device.
struct TenantTotals {
  core::JobTotals jobs;
  std::array<uint64_t, core::kCounterCount> counters{};  // By abi::Counter.
  uint64_t memory_refused = 0;
  uint64_t holds_revoked = 0;
  uint64_t relocks = 0;
  uint64_t records_rejected = 0;
  uint64_t records_lost = 0;

  uint64_t counter(abi::Counter which) const { return counters[static_cast<size_t>(which)]; }
  void Add(const TenantTotals& other) {
    jobs.Add(other.jobs);
    for (size_t i = 0; i < counters.size(); ++i) counters[i] += other.counters[i];
    memory_refused += other.memory_refused;
    holds_revoked += other.holds_revoked;
    relocks += other.relocks;
    records_rejected += other.records_rejected;
    records_lost += other.records_lost;
  }
};

struct SessionStatus {
  uint32_t device = 0;
  uint32_t index = 0;
  int64_t pid = 0;
  std::string program;
  uint32_t vendor = 0;
  Nanos attached_ns = 0;
  bool reattached = false;
  uint32_t shim_build = 0;
};

struct TenantDeviceStatus {
  uint32_t device = 0;
  std::string device_uuid;
  uint32_t sessions = 0;
  TenantTotals totals;
  uint64_t memory_used_bytes = 0;
  uint64_t memory_peak_bytes = 0;
  // Real-time tenants only.
  Nanos response_p50_ns = 0;
  Nanos response_p99_ns = 0;
  Nanos response_max_ns = 0;
  policies::ReleasePrediction prediction;
  policies::JobKnowledge jobs;
  Nanos margin_ns = 0;
  Nanos bound_ns = 0;
  Nanos max_hold_ns = 0;
  bool hold_revoked = false;
};

struct TenantStatus {
  TenantId id = 0;
  core::TenantSpec spec;
  std::string attach_socket_path;
  Nanos created_ns = 0;
  std::vector<TenantDeviceStatus> devices;
  std::vector<SessionStatus> sessions;
};

struct DeviceStatus {
  uint32_t index = 0;
  std::string uuid;
  std::string name;
  uint32_t sm_count = 0;
  uint64_t total_bytes = 0;
  uint32_t sessions = 0;
  uint32_t realtime_sessions = 0;
  uint32_t profile_entries = 0;
};

// Labels by which tenants are told apart in the metrics. A tenant that is registered anew under the
// same names goes on with the same counters.
struct TenantLabels {
  std::string tenant;
  std::string name_space;
  std::string pod;
  std::string container;
  std::string tenant_class;
  std::string device;
  // clang-tidy 14 takes the comparison with zero that this implies for a null pointer.
  auto operator<=>(const TenantLabels&) const = default;  // NOLINT(modernize-use-nullptr)
};

TenantLabels LabelsOf(const core::TenantSpec& spec, const std::string& device_uuid);

struct MpsHealth {
  bool wanted = false;
  bool healthy = false;
  std::string detail;
};

struct SchedulerStatus {
  Nanos now_ns = 0;
  Nanos started_ns = 0;
  bool draining = false;
  std::vector<DeviceStatus> devices;
  std::vector<TenantStatus> tenants;
  std::map<TenantLabels, TenantTotals> retired;       // Of tenants that are gone.
  std::map<std::string, uint64_t> sessions_detached;  // By reason.
  std::map<std::string, uint64_t> handshakes_refused;
  uint64_t sessions_total = 0;
  MpsHealth mps;
};

}  // namespace rubato::sched
