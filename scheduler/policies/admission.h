// Does a real-time tenant fit on a device beside those that are there?
//
// Two tests. Demand: the shares of all real-time tenants together stay below what the device can
// promise (DARIS, section "Admission": utilisation as the sum of MRET / period; a share that
// Kubernetes has handed out stands in its place). Response time: the longest time from a release to
// the end of its job stays within the deadline, of the tenant and of each that is there already
// (Joseph and Pandya 1986, "Finding response times in a real-time system", with a blocking term).
// Lengths are measured, never guessed: what nobody has seen yet counts as nothing, and is said.
//
// Pure: no clock, no state. Who is asked for, and what follows, is the daemon's business.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/core/tenant.h"
#include "scheduler/policies/constants.h"

namespace rubato::policies {

// One real-time tenant on one device, as far as is known.
struct RealtimeClaim {
  core::TenantId id = 0;
  std::string name;             // For people.
  uint32_t share_permille = 0;  // Slots held; 0: none, what is measured counts.
  Nanos period_ns = 0;          // Declared, or learnt; 0: unknown.
  Nanos deadline_ns = 0;        // 0: none.
  Nanos job_ns = 0;             // Longest of the last jobs; 0: unknown.
  uint32_t priority = 0;        // Smaller is more urgent.
};

// Which real-time jobs go first when several are released.
enum class RealtimeOrder : uint8_t {
  kNone,     // Nobody orders them: each may have to wait for all others.
  kUrgency,  // By priority, then the shorter deadline, then the earlier tenant; not interrupted.
};

struct DeviceLoad {
  std::string uuid;  // For people; empty: no device is known yet.
  std::vector<RealtimeClaim> realtime;
  Nanos longest_op_ns = 0;  // Of best-effort tenants, lately; 0: none seen.
};

struct AdmissionRules {
  core::Mode mode = core::Mode::kTimeslice;
  RealtimeOrder order = RealtimeOrder::kNone;
  Constants constants;  // Dilated.
};

enum class AdmissionVerdict : uint8_t { kAdmitted, kDemand, kResponseTime };

struct AdmissionTest {
  AdmissionVerdict verdict = AdmissionVerdict::kAdmitted;
  uint32_t own_permille = 0;
  uint32_t demand_permille = 0;  // Of all, this one included.
  uint32_t capacity_permille = 0;
  uint32_t others = 0;           // Real-time tenants that are there.
  uint32_t unknown_tenants = 0;  // Of all, of whom no demand is known.
  Nanos job_ns = 0;
  Nanos blocking_ns = 0;
  Nanos interference_ns = 0;
  Nanos response_ns = 0;  // By what is known; a lower bound where job lengths are missing.
  Nanos deadline_ns = 0;
  // kResponseTime because of another: whose deadline would be missed, and by what response.
  std::string late_name;
  Nanos late_response_ns = 0;
  Nanos late_deadline_ns = 0;
};

// In thousandths of the device; 0: unknown.
uint32_t DemandPermille(const RealtimeClaim& claim);

// What `tenants` real-time tenants may ask for together.
uint32_t CapacityPermille(size_t tenants, const Constants& constants);

// `load.realtime` does not hold the claim itself.
AdmissionTest TestAdmission(const RealtimeClaim& claim, const DeviceLoad& load,
                            const AdmissionRules& rules);

// "admitted", "demand" or "response-time": stable words.
const char* ReasonOf(AdmissionVerdict verdict);

// One line for people, with the numbers.
std::string DescribeAdmission(const AdmissionTest& test, const DeviceLoad& load);

}  // namespace rubato::policies
