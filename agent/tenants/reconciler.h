// Makes the scheduler's tenants what the plan says, and tells the pods' owners what came of it.
//
// The scheduler may die and come back empty at any time, and so may the agent: what is there is
// read from the scheduler's status, what is missing is registered in the order of allocation
// (admission depends on it), what differs is updated, and what nobody holds any more is taken away.
// Tenants of `rubato run` are not its business. On the loop's thread; time is an argument.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "agent/tenants/plan.h"
#include "agent/tenants/scheduler_link.h"
#include "base/time.h"

namespace rubato::agent {

// The answer to whoever wants a tenant to be there before a container starts.
struct EnsureOutcome {
  bool registered = false;
  bool class_refused = false;  // Asked for real-time, does not fit, and that was not to be hidden.
  std::string detail;          // Why not, one line.
};

class Reconciler {
 public:
  struct Callbacks {
    std::function<void(const PodRef&, const Notice&)> tell;
    // Something that readiness or metrics show has changed.
    std::function<void()> changed;
    // The number that people know a device by; its UUID where it has none.
    std::function<std::string(const std::string& uuid)> device_name;
    // After a failure, when to come back: calls Pump() then.
    std::function<void(base::Nanos at_ns)> wake;
  };

  struct Counts {
    uint64_t registered_total = 0;
    uint64_t updated_total = 0;
    uint64_t unregistered_total = 0;
    std::map<std::string, uint64_t> failed_total;  // By operation.
    uint64_t schedulers_total = 0;                 // Runs of the scheduler that were met.
  };

  // What is known of one tenant, for metrics.
  struct View {
    PodRef pod;
    std::string asked;    // "realtime", "best-effort"
    std::string granted;  // Empty: no decision yet.
    std::string reason;
    bool registered = false;
    uint32_t sessions = 0;
  };

  // `link` outlives the reconciler.
  Reconciler(SchedulerLink* link, Callbacks callbacks);
  Reconciler(const Reconciler&) = delete;
  Reconciler& operator=(const Reconciler&) = delete;

  void SetPlan(Plan plan, base::Nanos now_ns);
  void OnStatus(const control::GetStatusResponse& status, base::Nanos now_ns);
  void OnLost(const std::string& why, base::Nanos now_ns);
  void Pump(base::Nanos now_ns);

  // Registers the allocation, whatever is known of it, and reports. `refuse`: a real-time class
  // that does not fit is an answer, not a tenant of less. Not answered while there is no scheduler.
  void Ensure(const std::string& token, bool refuse, base::Nanos now_ns,
              std::function<void(const EnsureOutcome&)> outcome);
  // Forgets waiting callers of Ensure().
  void Abandon(const std::string& token);

  bool connected() const { return connected_; }
  const std::string& trouble() const { return trouble_; }
  const std::string& scheduler_version() const { return scheduler_version_; }
  const Counts& counts() const { return counts_; }
  std::vector<View> Views() const;
  // The last status of the scheduler; nullptr: none since it was lost.
  const control::GetStatusResponse* status() const { return connected_ ? &status_ : nullptr; }

 private:
  using Outcome = std::function<void(const EnsureOutcome&)>;
  struct Tenant {
    uint64_t id = 0;           // 0: not registered.
    control::TenantSpec sent;  // What the scheduler has of it.
    std::optional<control::AdmissionDecision> decision;
    uint32_t sessions = 0;
    bool busy = false;       // A call about it is under way.
    bool refused = false;    // Not registered, because the class was required.
    bool adopted = false;    // Found at a scheduler by this agent, whose owner has been told.
    bool ask_again = false;  // The decision is to be made anew.
    bool forced = false;     // A container is about to start: register though not complete.
    bool require_class = false;
    base::Nanos touched_ns = 0;  // Last answer of a call: older statuses do not count.
    base::Nanos retry_ns = 0;
    uint32_t failures = 0;
    uint64_t memory_refused = 0;
    std::string told_decision;
    std::set<Notice> told;
    std::vector<Outcome> waiters;
  };

  void Adopt(const control::GetStatusResponse& status);
  void Follow(const control::TenantStatus& status, Tenant* tenant, const AllocationPlan* plan);
  void StartRegister(const std::string& token, base::Nanos now_ns);
  void StartUpdate(const std::string& token);
  void StartUnregister(const std::string& token);
  void Failed(const char* operation, Tenant* tenant, const base::Error& error, base::Nanos now_ns);
  void Decided(const std::string& token, const control::AdmissionDecision& decision);
  void TellNotices(const std::string& token);
  void Answer(Tenant* tenant, const EnsureOutcome& outcome);
  void AnswerIfSettled(const std::string& token);
  const AllocationPlan* PlanOf(const std::string& token) const;
  std::string Where(const control::TenantSpec& spec) const;

  SchedulerLink* const link_;
  const Callbacks callbacks_;
  Plan plan_;
  bool planned_ = false;  // Before the first plan, everything there is nobody's and yet stays.
  std::map<std::string, Tenant> tenants_;  // By token.
  bool connected_ = false;
  bool registering_ = false;  // One at a time, so that their order is ours.
  uint64_t epoch_ = 0;
  uint64_t generation_ = 0;  // Of the connection: answers of an earlier one do not count.
  std::string trouble_ = "no scheduler has answered yet";
  std::string scheduler_version_;
  control::GetStatusResponse status_;
  Counts counts_;
};

}  // namespace rubato::agent
