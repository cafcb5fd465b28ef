#include "agent/tenants/reconciler.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace rubato::agent {
namespace {

using base::Nanos;

constexpr Nanos kFirstRetry = 200 * base::kMillisecond;
constexpr Nanos kLastRetry = 10 * base::kSecond;
constexpr const char kUnknownName[] = "unknown-";

bool Same(const control::TenantSpec& a, const control::TenantSpec& b) {
  return a.SerializeAsString() == b.SerializeAsString();
}

bool SamePod(const control::TenantSpec& a, const control::TenantSpec& b) {
  return a.name() == b.name() && a.namespace_() == b.namespace_() && a.pod() == b.pod() &&
         a.container() == b.container();
}

// Not one of `rubato run`.
bool IsOurs(const control::TenantSpec& spec) {
  return !spec.namespace_().empty() || (spec.any_user() && spec.name().starts_with(kUnknownName));
}

const char* ClassWord(control::TenantClass tenant_class) {
  return tenant_class == control::TENANT_CLASS_REALTIME ? "realtime" : "best-effort";
}

std::string Percent(uint32_t permille) {
  std::string out = std::to_string(permille / 10);
  if (permille % 10 != 0) out += "." + std::to_string(permille % 10);
  return out + " %";
}

// What the owner was told: told again when one of these changes, not with every number.
std::string DecisionKey(const control::TenantSpec& spec,
                        const control::AdmissionDecision& decision) {
  return std::string(ClassWord(spec.tenant_class())) + "/" + ClassWord(decision.granted()) + "/" +
         decision.reason() + "/" + std::to_string(spec.share_permille()) + "/" +
         std::to_string(spec.period_ns()) + "/" + std::to_string(spec.deadline_ns());
}

}  // namespace

Reconciler::Reconciler(SchedulerLink* link, Callbacks callbacks)
    : link_(link), callbacks_(std::move(callbacks)) {}

const AllocationPlan* Reconciler::PlanOf(const std::string& token) const {
  const auto found = plan_.find(token);
  return found == plan_.end() ? nullptr : &found->second;
}

void Reconciler::SetPlan(Plan plan, Nanos now_ns) {
  plan_ = std::move(plan);
  planned_ = true;
  for (const auto& [token, entry] : plan_) {
    if (entry.state != AllocationState::kLive) continue;
    Tenant& tenant = tenants_[token];
    if (tenant.adopted && entry.complete) {
      // An agent before this one has told the owner what has not changed since.
      tenant.adopted = false;
      if (Same(tenant.sent, entry.spec))
        tenant.told.insert(entry.notices.begin(), entry.notices.end());
    }
    TellNotices(token);
  }
  Pump(now_ns);
}

void Reconciler::TellNotices(const std::string& token) {
  const AllocationPlan* plan = PlanOf(token);
  if (plan == nullptr || !plan->complete) return;
  Tenant& tenant = tenants_[token];
  const std::set<Notice> now(plan->notices.begin(), plan->notices.end());
  for (const Notice& notice : now) {
    if (!tenant.told.contains(notice)) callbacks_.tell(plan->pod, notice);
  }
  tenant.told = now;
}

void Reconciler::OnLost(const std::string& why, Nanos now_ns) {
  if (connected_) base::LogWarning("the scheduler is gone: {}", base::Printable(why));
  connected_ = false;
  registering_ = false;
  ++generation_;
  trouble_ = "the scheduler does not answer: " + base::Printable(why);
  for (auto& [token, tenant] : tenants_) {
    tenant.busy = false;
    tenant.retry_ns = 0;
    tenant.failures = 0;
    tenant.touched_ns = now_ns;
  }
  callbacks_.changed();
}

void Reconciler::OnStatus(const control::GetStatusResponse& status, Nanos now_ns) {
  const bool first = !connected_;
  if (first) {
    ++generation_;
    connected_ = true;
    trouble_.clear();
    scheduler_version_ = status.scheduler().version();
    if (status.scheduler().epoch() != epoch_) {
      epoch_ = status.scheduler().epoch();
      ++counts_.schedulers_total;
      base::LogInfo("met scheduler {} pid={} with {} tenants", scheduler_version_,
                    status.scheduler().pid(), status.tenants_size());
    }
    // Whatever was known of tenants is what this scheduler says.
    for (auto& [token, tenant] : tenants_) {
      tenant.id = 0;
      tenant.busy = false;
      tenant.sessions = 0;
      tenant.touched_ns = 0;
      tenant.retry_ns = 0;
    }
  }
  Adopt(status);
  status_ = status;
  if (first) callbacks_.changed();
  Pump(now_ns);
}

void Reconciler::Adopt(const control::GetStatusResponse& status) {
  std::set<std::string> present;
  for (const control::TenantStatus& entry : status.tenants()) {
    const AllocationPlan* plan = PlanOf(entry.attach_token());
    const auto known = tenants_.find(entry.attach_token());
    if (plan == nullptr && known == tenants_.end() && !IsOurs(entry.spec())) continue;
    present.insert(entry.attach_token());
    Tenant& tenant = known == tenants_.end() ? tenants_[entry.attach_token()] : known->second;
    if (tenant.busy || status.now_ns() <= static_cast<uint64_t>(tenant.touched_ns)) continue;
    if (tenant.id == 0) {
      // Another agent, or this one before the line broke, has registered it.
      tenant.id = entry.tenant_id();
      tenant.sent = entry.spec();
      tenant.refused = false;
      tenant.adopted = tenant.told_decision.empty();
      tenant.told_decision = DecisionKey(entry.spec(), entry.admission());
      tenant.decision = entry.admission();
      for (const control::TenantDeviceStatus& device : entry.devices())
        tenant.memory_refused += device.memory_refused_total();
    }
    Follow(entry, &tenant, plan);
  }
  for (auto& [token, tenant] : tenants_) {
    if (present.contains(token) || tenant.id == 0 || tenant.busy) continue;
    if (status.now_ns() <= static_cast<uint64_t>(tenant.touched_ns)) continue;
    tenant.id = 0;  // Somebody else has taken it away.
    tenant.sessions = 0;
  }
}

// What the scheduler has learnt of a tenant since.
void Reconciler::Follow(const control::TenantStatus& status, Tenant* tenant,
                        const AllocationPlan* plan) {
  tenant->sessions = status.sessions();
  uint64_t refused = 0;
  for (const control::TenantDeviceStatus& device : status.devices())
    refused += device.memory_refused_total();
  const bool hit = refused > tenant->memory_refused;
  tenant->memory_refused = refused;
  if (plan == nullptr || plan->pod.pod.empty()) return;
  if (hit) {
    callbacks_.tell(
        plan->pod,
        Notice{true, "MemoryLimitReached",
               "container " + plan->pod.container + ": device memory beyond its limit of " +
                   std::to_string(tenant->sent.limit_bytes() >> 20) +
                   "Mi was asked for and refused; annotate more, or ask for more "
                   "slots"});
  }
  Decided(status.attach_token(), status.admission());
}

void Reconciler::Decided(const std::string& token, const control::AdmissionDecision& decision) {
  Tenant& tenant = tenants_[token];
  tenant.decision = decision;
  const AllocationPlan* plan = PlanOf(token);
  if (plan == nullptr || !plan->complete) return;
  const std::string key = DecisionKey(tenant.sent, decision);
  if (key == tenant.told_decision) return;
  tenant.told_decision = key;
  const std::string who = "container " + plan->pod.container + ": ";
  const bool asked_realtime = tenant.sent.tenant_class() == control::TENANT_CLASS_REALTIME;
  Notice notice;
  if (asked_realtime && decision.granted() == control::TENANT_CLASS_REALTIME) {
    notice = {false, "RealtimeAdmitted", who + "real-time on " + Where(tenant.sent)};
    if (tenant.sent.period_ns() != 0) {
      notice.message +=
          ", period " + base::FormatDuration(static_cast<Nanos>(tenant.sent.period_ns()));
    }
    if (tenant.sent.deadline_ns() != 0) {
      notice.message +=
          ", deadline " + base::FormatDuration(static_cast<Nanos>(tenant.sent.deadline_ns()));
    }
    if (decision.capacity_permille() != 0) {
      notice.message += "; real-time tenants ask for " + Percent(decision.demand_permille()) +
                        " of it, " + Percent(decision.capacity_permille()) + " can be promised";
    }
    if (decision.job_ns() != 0 && decision.response_ns() != 0) {
      notice.message +=
          "; longest response " + base::FormatDuration(static_cast<Nanos>(decision.response_ns()));
    }
  } else if (asked_realtime) {
    notice = {true, "RealtimeRefused",
              who + "best-effort instead of real-time on " + Where(tenant.sent) + " (" +
                  decision.reason() + "): " + decision.detail()};
  } else {
    notice = {false, "BestEffort", who + "best-effort on " + Where(tenant.sent)};
  }
  callbacks_.tell(plan->pod, notice);
}

std::string Reconciler::Where(const control::TenantSpec& spec) const {
  std::string out;
  for (const std::string& uuid : spec.device_uuids())
    out += (out.empty() ? "GPU " : ", ") + callbacks_.device_name(uuid);
  return out + " (" + Percent(spec.share_permille()) + ")";
}

void Reconciler::Answer(Tenant* tenant, const EnsureOutcome& outcome) {
  tenant->forced = false;
  tenant->require_class = false;
  const std::vector<Outcome> waiters = std::exchange(tenant->waiters, {});
  for (const Outcome& waiter : waiters) waiter(outcome);
}

// Whoever waits is answered once the tenant is there and there is nothing more to ask about it.
void Reconciler::AnswerIfSettled(const std::string& token) {
  Tenant& tenant = tenants_[token];
  if (tenant.waiters.empty() || tenant.busy || tenant.id == 0 || tenant.ask_again) return;
  const AllocationPlan* plan = PlanOf(token);
  if (plan != nullptr && plan->complete && !Same(tenant.sent, plan->spec)) return;
  EnsureOutcome outcome{true, false, ""};
  const bool asked_realtime = tenant.sent.tenant_class() == control::TENANT_CLASS_REALTIME;
  if (tenant.require_class && asked_realtime && tenant.sent.refusal_reason().empty() &&
      tenant.decision.has_value() && tenant.decision->granted() != control::TENANT_CLASS_REALTIME) {
    outcome.class_refused = true;
    outcome.detail = tenant.decision->detail();
  }
  Answer(&tenant, outcome);
}

void Reconciler::Ensure(const std::string& token, bool refuse, Nanos now_ns, Outcome outcome) {
  Tenant& tenant = tenants_[token];
  tenant.waiters.push_back(std::move(outcome));
  tenant.forced = true;
  tenant.require_class = tenant.require_class || refuse;
  tenant.retry_ns = 0;
  tenant.refused = false;
  // A tenant that is there and was not granted what it asks for may fit by now.
  if (refuse && tenant.id != 0 && tenant.decision.has_value() &&
      tenant.decision->granted() != tenant.sent.tenant_class())
    tenant.ask_again = true;
  Pump(now_ns);
}

void Reconciler::Abandon(const std::string& token) {
  const auto found = tenants_.find(token);
  if (found == tenants_.end()) return;
  found->second.waiters.clear();
  found->second.require_class = false;
}

void Reconciler::Pump(Nanos now_ns) {
  if (!connected_ || !planned_) return;
  std::string next;  // To be registered: the oldest allocation.
  uint64_t next_serial = 0;
  Nanos wake_ns = 0;
  std::vector<std::string> settled;
  std::vector<std::string> forget;
  for (auto& [token, tenant] : tenants_) {
    if (tenant.busy) continue;
    const AllocationPlan* plan = PlanOf(token);
    const bool live =
        plan != nullptr &&
        (plan->state == AllocationState::kLive ||
         (plan->state == AllocationState::kWaiting && (tenant.forced || tenant.id != 0)));
    if (!live) {
      if (tenant.id != 0) {
        if (now_ns >= tenant.retry_ns) {
          StartUnregister(token);
        } else {
          wake_ns = wake_ns == 0 ? tenant.retry_ns : std::min(wake_ns, tenant.retry_ns);
        }
      } else if (plan == nullptr && tenant.waiters.empty()) {
        forget.push_back(token);
      }
      continue;
    }
    // Its container does not start without its class: nothing to do until it is tried again.
    if (tenant.refused && tenant.id == 0 && tenant.waiters.empty()) continue;
    if (tenant.retry_ns > now_ns) {
      wake_ns = wake_ns == 0 ? tenant.retry_ns : std::min(wake_ns, tenant.retry_ns);
      continue;
    }
    if (tenant.id == 0) {
      if (next.empty() || plan->serial < next_serial) {
        next = token;
        next_serial = plan->serial;
      }
      continue;
    }
    if (tenant.ask_again || (plan->complete && !Same(tenant.sent, plan->spec))) {
      if (plan->complete && !SamePod(tenant.sent, plan->spec) &&
          !tenant.sent.namespace_().empty()) {
        StartUnregister(token);  // It was somebody else's; registered again afterwards.
      } else {
        StartUpdate(token);
      }
      continue;
    }
    settled.push_back(token);
  }
  for (const std::string& token : forget) tenants_.erase(token);
  if (!next.empty() && !registering_) StartRegister(next, now_ns);
  for (const std::string& token : settled) AnswerIfSettled(token);
  if (wake_ns != 0) callbacks_.wake(wake_ns);
}

void Reconciler::Failed(const char* operation, Tenant* tenant, const base::Error& error,
                        Nanos now_ns) {
  ++counts_.failed_total[operation];
  tenant->failures = std::min(tenant->failures + 1, 16u);
  tenant->retry_ns =
      now_ns + std::min(kLastRetry, kFirstRetry << std::min(tenant->failures - 1, 8u));
  base::LogWarning("tenant={} cannot {}: {}", tenant->sent.name(), operation,
                   base::Printable(error.message));
}

void Reconciler::StartRegister(const std::string& token, Nanos) {
  Tenant& tenant = tenants_[token];
  const AllocationPlan& plan = *PlanOf(token);
  tenant.busy = true;
  tenant.adopted = false;
  registering_ = true;
  const bool require = tenant.require_class && !tenant.waiters.empty() &&
                       plan.spec.tenant_class() == control::TENANT_CLASS_REALTIME &&
                       plan.spec.refusal_reason().empty();
  const control::TenantSpec spec = plan.spec;
  link_->Register(
      token, spec, require,
      [this, token, spec, generation = generation_](base::Result<RegisterAnswer> answer) {
        if (generation != generation_) return;
        registering_ = false;
        const Nanos now_ns = base::MonotonicNow();
        Tenant& asked = tenants_[token];
        asked.busy = false;
        asked.touched_ns = now_ns;
        if (!answer) {
          asked.sent.set_name(spec.name());
          // Somebody has the token: the next status says who.
          Failed("register", &asked, answer.error(), now_ns);
          if (answer.error().code == base::ErrorCode::kExists) asked.touched_ns = 0;
        } else if (answer->class_refused) {
          asked.sent = spec;
          asked.failures = 0;
          asked.refused = true;
          control::AdmissionDecision decision = answer->decision;
          decision.set_granted(control::TENANT_CLASS_BEST_EFFORT);
          Decided(token, decision);
          Answer(&asked, EnsureOutcome{false, true, decision.detail()});
        } else {
          ++counts_.registered_total;
          asked.id = answer->tenant_id;
          asked.sent = spec;
          asked.failures = 0;
          asked.memory_refused = 0;
          asked.ask_again = false;
          Decided(token, answer->decision);
        }
        callbacks_.changed();
        Pump(now_ns);
      });
}

void Reconciler::StartUpdate(const std::string& token) {
  Tenant& tenant = tenants_[token];
  const AllocationPlan& plan = *PlanOf(token);
  tenant.busy = true;
  const control::TenantSpec spec = plan.complete ? plan.spec : tenant.sent;
  const bool class_changes = spec.tenant_class() != tenant.sent.tenant_class();
  link_->Update(tenant.id, spec,
                [this, token, spec, class_changes,
                 generation = generation_](base::Result<control::AdmissionDecision> decision) {
                  if (generation != generation_) return;
                  const Nanos now_ns = base::MonotonicNow();
                  Tenant& asked = tenants_[token];
                  asked.busy = false;
                  asked.touched_ns = now_ns;
                  if (!decision) {
                    Failed("update", &asked, decision.error(), now_ns);
                    if (decision.error().code == base::ErrorCode::kNotFound) asked.id = 0;
                  } else {
                    ++counts_.updated_total;
                    asked.failures = 0;
                    asked.ask_again = false;
                    asked.sent = spec;
                    const AllocationPlan* now_plan = PlanOf(token);
                    if (class_changes && asked.sessions > 0 && now_plan != nullptr) {
                      callbacks_.tell(
                          now_plan->pod,
                          Notice{false, "ClassAtNextStart",
                                 "container " + now_plan->pod.container + ": class " +
                                     ClassWord(spec.tenant_class()) +
                                     " holds for processes that start from now on; those that "
                                     "run keep theirs"});
                    }
                    Decided(token, *decision);
                  }
                  callbacks_.changed();
                  Pump(now_ns);
                });
}

void Reconciler::StartUnregister(const std::string& token) {
  Tenant& tenant = tenants_[token];
  tenant.busy = true;
  link_->Unregister(tenant.id,
                    [this, token, generation = generation_](const base::Result<void>& done) {
                      if (generation != generation_) return;
                      const Nanos now_ns = base::MonotonicNow();
                      Tenant& asked = tenants_[token];
                      asked.busy = false;
                      asked.touched_ns = now_ns;
                      if (!done && done.error().code != base::ErrorCode::kNotFound) {
                        Failed("unregister", &asked, done.error(), now_ns);
                      } else {
                        ++counts_.unregistered_total;
                        asked.id = 0;
                        asked.failures = 0;
                        asked.sessions = 0;
                        asked.decision.reset();
                      }
                      callbacks_.changed();
                      Pump(now_ns);
                    });
}

std::vector<Reconciler::View> Reconciler::Views() const {
  std::vector<View> out;
  for (const auto& [token, plan] : plan_) {
    if (plan.state != AllocationState::kLive || plan.pod.pod.empty()) continue;
    View view;
    view.pod = plan.pod;
    view.asked = ClassWord(plan.spec.tenant_class());
    const auto found = tenants_.find(token);
    if (found != tenants_.end()) {
      view.registered = connected_ && found->second.id != 0;
      view.sessions = found->second.sessions;
      if (found->second.decision.has_value()) {
        view.granted = ClassWord(found->second.decision->granted());
        view.reason = found->second.decision->reason();
      }
    }
    out.push_back(std::move(view));
  }
  return out;
}

}  // namespace rubato::agent
