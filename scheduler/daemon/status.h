// A picture of the scheduler at one moment, as plain values.
//
// Made on the loop's thread, handed to the control service and to the metrics, which turn it into
// their own formats on their own threads.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "proto/abi/slot.h"
#include "scheduler/core/job_ledger.h"
#include "scheduler/core/slot_reader.h"
#include "scheduler/core/tenant.h"
#include "scheduler/daemon/profile_store.h"
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

// Which class a tenant asked for, which one processes get that start from now on, and why. The
// numbers are of the device on which it fits worst.
struct AdmissionDecision {
  core::TenantClass asked = core::TenantClass::kFree;
  core::TenantClass granted = core::TenantClass::kFree;
  std::string reason;  // A stable word.
  std::string detail;  // One line for people.
  std::string device_uuid;
  uint32_t demand_permille = 0;
  uint32_t capacity_permille = 0;
  uint32_t unknown_tenants = 0;
  Nanos blocking_ns = 0;
  Nanos interference_ns = 0;
  Nanos job_ns = 0;
  Nanos response_ns = 0;
  Nanos deadline_ns = 0;
  Nanos decided_ns = 0;
};

struct SessionStatus {
  core::TenantClass tenant_class = core::TenantClass::kFree;  // That the process started with.
  uint32_t device = 0;
  uint32_t index = 0;
  int64_t pid = 0;
  std::string program;
  uint32_t vendor = 0;
  Nanos attached_ns = 0;
  bool reattached = false;
  uint32_t shim_build = 0;
};

// Of a tenant's processes of one class on one device.
struct TenantDeviceStatus {
  core::TenantClass tenant_class = core::TenantClass::kFree;
  uint32_t device = 0;
  std::string device_uuid;
  uint32_t sessions = 0;
  TenantTotals totals;
  uint64_t memory_used_bytes = 0;
  uint64_t memory_peak_bytes = 0;
  // Of a tenant that runs to be measured: ops it ran, and those of them nobody knew before.
  uint32_t profiled_ops = 0;
  uint32_t profiled_new_ops = 0;
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
  AdmissionDecision admission;
  std::string attach_socket_path;
  std::string attach_token;
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
  uint32_t profile_restored = 0;  // Of what was in the store when it came.
};

// What real-time tenants ask of one device; also of one that nobody has opened yet, if slots of it
// are held.
struct DeviceDemand {
  std::string uuid;
  uint32_t tenants = 0;
  uint32_t demand_permille = 0;
  uint32_t capacity_permille = 0;
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

TenantLabels LabelsOf(const core::TenantSpec& spec, core::TenantClass tenant_class,
                      const std::string& device_uuid);

struct AdmissionKind {
  core::TenantClass asked;
  core::TenantClass granted;
  std::string reason;
  bool operator<(const AdmissionKind& other) const {
    return std::tie(asked, granted, reason) < std::tie(other.asked, other.granted, other.reason);
  }
};

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
  std::vector<DeviceDemand> demands;                  // By UUID.
  std::map<AdmissionKind, uint64_t> admissions;       // Decisions since the start.
  std::map<TenantLabels, TenantTotals> retired;       // Of tenants that are gone since lately.
  std::map<std::string, uint64_t> sessions_detached;  // By reason.
  std::map<std::string, uint64_t> handshakes_refused;
  uint64_t sessions_total = 0;
  MpsHealth mps;
  ProfileStoreStatus profiles;
};

}  // namespace rubato::sched
