#include "agent/tenants/reconciler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>

#include "base/clock.h"

namespace rubato::agent {
namespace {

using base::Nanos;

// A scheduler whose answers wait until the test lets them go.
class FakeLink final : public SchedulerLink {
 public:
  struct Call {
    std::string kind;  // "register", "update", "unregister"
    std::string token;
    uint64_t tenant_id = 0;
    control::TenantSpec spec;
    bool require_class = false;
    Registered registered;
    Updated updated;
    Done done;
  };

  void Start(Callbacks) override {}
  void Register(const std::string& token, const control::TenantSpec& spec, bool require_class,
                Registered registered) override {
    calls.push_back({"register", token, 0, spec, require_class, std::move(registered), {}, {}});
  }
  void Update(uint64_t tenant_id, const control::TenantSpec& spec, Updated updated) override {
    calls.push_back({"update", "", tenant_id, spec, false, {}, std::move(updated), {}});
  }
  void Unregister(uint64_t tenant_id, Done done) override {
    calls.push_back({"unregister", "", tenant_id, {}, false, {}, {}, std::move(done)});
  }

  Call Take() {
    EXPECT_FALSE(calls.empty());
    Call call = calls.front();
    calls.pop_front();
    return call;
  }

  std::deque<Call> calls;
};

class ReconcilerTest : public ::testing::Test {
 protected:
  ReconcilerTest()
      : reconciler_(&link_, {[this](const PodRef& pod, const Notice& notice) {
                               told_.push_back({pod, notice});
                             },
                             [] {}, [](const std::string&) { return std::string("0"); },
                             [this](Nanos at_ns) { wake_ns_ = at_ns; }}) {}

  static std::string Token(char letter) { return std::string(32, letter); }

  AllocationPlan& Want(char letter, bool realtime = false) {
    AllocationPlan& plan = plan_[Token(letter)];
    plan.state = AllocationState::kLive;
    plan.serial = static_cast<uint64_t>(letter);
    plan.complete = true;
    plan.pod = {"ns", std::string(1, letter), "uid", "main"};
    plan.spec.set_name(plan.pod.pod + "/main");
    plan.spec.set_namespace_("ns");
    plan.spec.set_pod(plan.pod.pod);
    plan.spec.set_container("main");
    plan.spec.set_share_permille(300);
    plan.spec.add_device_uuids("GPU-a");
    plan.spec.set_tenant_class(realtime ? control::TENANT_CLASS_REALTIME
                                        : control::TENANT_CLASS_BEST_EFFORT);
    return plan;
  }
  void SetPlan() { reconciler_.SetPlan(plan_, base::MonotonicNow()); }

  // The scheduler's next status; a tenant's sessions and refusals may be given.
  control::GetStatusResponse Status(uint64_t epoch = 1) {
    control::GetStatusResponse status;
    status.set_now_ns(static_cast<uint64_t>(base::MonotonicNow()));
    status.mutable_scheduler()->set_epoch(epoch);
    return status;
  }
  static control::TenantStatus& AddTenant(control::GetStatusResponse* status, char letter,
                                          uint64_t id, const control::TenantSpec& spec) {
    control::TenantStatus& tenant = *status->add_tenants();
    tenant.set_tenant_id(id);
    tenant.set_attach_token(Token(letter));
    *tenant.mutable_spec() = spec;
    tenant.mutable_admission()->set_asked(spec.tenant_class());
    tenant.mutable_admission()->set_granted(spec.tenant_class());
    tenant.mutable_admission()->set_reason("admitted");
    return tenant;
  }
  void Deliver(const control::GetStatusResponse& status) {
    reconciler_.OnStatus(status, base::MonotonicNow());
  }
  void Connect(uint64_t epoch = 1) { Deliver(Status(epoch)); }

  static RegisterAnswer Granted(uint64_t id, control::TenantClass granted,
                                const std::string& reason = "admitted") {
    RegisterAnswer answer;
    answer.tenant_id = id;
    answer.decision.set_granted(granted);
    answer.decision.set_reason(reason);
    answer.decision.set_detail("demand 300 of 900");
    return answer;
  }
  void Register(char letter, uint64_t id,
                control::TenantClass granted = control::TENANT_CLASS_BEST_EFFORT) {
    auto call = link_.Take();
    ASSERT_EQ(call.kind, "register");
    ASSERT_EQ(call.token, Token(letter));
    call.registered(Granted(id, granted));
  }
  std::vector<std::string> Reasons() const {
    std::vector<std::string> out;
    for (const auto& [pod, notice] : told_) out.push_back(notice.reason);
    return out;
  }

  FakeLink link_;
  std::vector<std::pair<PodRef, Notice>> told_;
  Nanos wake_ns_ = 0;
  Plan plan_;
  Reconciler reconciler_;
};

TEST_F(ReconcilerTest, NothingHappensWithoutAScheduler) {
  Want('a');
  SetPlan();
  EXPECT_TRUE(link_.calls.empty());
  EXPECT_FALSE(reconciler_.connected());
}

TEST_F(ReconcilerTest, RegistersOneAfterAnotherInTheOrderOfAllocation) {
  Want('c');
  Want('a');
  Want('b');
  SetPlan();
  Connect();
  ASSERT_EQ(link_.calls.size(), 1u);
  Register('a', 1);
  ASSERT_EQ(link_.calls.size(), 1u);
  Register('b', 2);
  Register('c', 3);
  EXPECT_TRUE(link_.calls.empty());
  EXPECT_EQ(Reasons(), (std::vector<std::string>{"BestEffort", "BestEffort", "BestEffort"}));
}

TEST_F(ReconcilerTest, ToldOnceHoweverOftenTheStatusComes) {
  Want('a', true);
  SetPlan();
  Connect();
  Register('a', 1, control::TENANT_CLASS_REALTIME);
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0].second.reason, "RealtimeAdmitted");
  EXPECT_NE(told_[0].second.message.find("real-time on GPU 0 (30 %)"), std::string::npos);
  auto status = Status();
  AddTenant(&status, 'a', 1, plan_[Token('a')].spec)
      .mutable_admission()
      ->set_detail("other numbers");
  Deliver(status);
  Deliver(status);
  EXPECT_EQ(told_.size(), 1u);
}

TEST_F(ReconcilerTest, ARefusalIsToldWithItsNumbers) {
  Want('a', true);
  SetPlan();
  Connect();
  auto call = link_.Take();
  EXPECT_FALSE(call.require_class);
  call.registered(Granted(1, control::TENANT_CLASS_BEST_EFFORT, "demand"));
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0].second.reason, "RealtimeRefused");
  EXPECT_TRUE(told_[0].second.warning);
  EXPECT_NE(told_[0].second.message.find("best-effort"), std::string::npos);
  EXPECT_NE(told_[0].second.message.find("demand 300 of 900"), std::string::npos);
  // Room was made, and the scheduler found so by itself.
  auto status = Status();
  AddTenant(&status, 'a', 1, plan_[Token('a')].spec);
  Deliver(status);
  ASSERT_EQ(told_.size(), 2u);
  EXPECT_EQ(told_[1].second.reason, "RealtimeAdmitted");
}

TEST_F(ReconcilerTest, ANewSchedulerGetsEverythingAgain) {
  Want('a');
  Want('b');
  SetPlan();
  Connect(1);
  Register('a', 1);
  Register('b', 2);
  told_.clear();
  reconciler_.OnLost("gone", base::MonotonicNow());
  EXPECT_FALSE(reconciler_.connected());
  Connect(2);
  Register('a', 11);
  Register('b', 12);
  EXPECT_TRUE(link_.calls.empty());
  EXPECT_TRUE(told_.empty()) << "nothing has changed for the pods";
  EXPECT_EQ(reconciler_.counts().schedulers_total, 2u);
}

TEST_F(ReconcilerTest, ALateAnswerOfTheOldSchedulerIsNoTenantOfTheNew) {
  Want('a');
  SetPlan();
  Connect(1);
  auto late = link_.Take();
  reconciler_.OnLost("gone", base::MonotonicNow());
  Connect(2);
  late.registered(Granted(7, control::TENANT_CLASS_BEST_EFFORT));
  Register('a', 1);
  plan_[Token('a')].spec.set_limit_bytes(5);
  SetPlan();
  EXPECT_EQ(link_.Take().tenant_id, 1u);
}

TEST_F(ReconcilerTest, ANewAgentWithoutAPlanYetTouchesNothing) {
  const control::TenantSpec spec = Want('a').spec;
  plan_[Token('a')].notices = {{true, "BadAnnotation", "x"}};
  auto status = Status();
  AddTenant(&status, 'a', 1, spec);
  Deliver(status);
  EXPECT_TRUE(link_.calls.empty());
  SetPlan();
  EXPECT_TRUE(link_.calls.empty());
  EXPECT_TRUE(told_.empty());
}

TEST_F(ReconcilerTest, ANewAgentWithItsPlanFindsWhatIsThereAndTellsNobody) {
  const control::TenantSpec spec = Want('a').spec;
  SetPlan();
  auto status = Status();
  AddTenant(&status, 'a', 1, spec);
  Deliver(status);
  SetPlan();
  EXPECT_TRUE(link_.calls.empty());
  EXPECT_TRUE(told_.empty());
}

TEST_F(ReconcilerTest, WhatDiffersIsUpdated) {
  const control::TenantSpec before = Want('a').spec;
  SetPlan();
  Connect();
  Register('a', 1);
  plan_[Token('a')].spec.set_limit_bytes(1 << 30);
  SetPlan();
  auto call = link_.Take();
  EXPECT_EQ(call.kind, "update");
  EXPECT_EQ(call.tenant_id, 1u);
  EXPECT_EQ(call.spec.limit_bytes(), 1u << 30);
  SetPlan();
  EXPECT_TRUE(link_.calls.empty()) << "one call at a time";
  call.updated(control::AdmissionDecision());
  EXPECT_TRUE(link_.calls.empty());
}

TEST_F(ReconcilerTest, AClassChangeIsToldWhereProcessesRun) {
  Want('a');
  SetPlan();
  Connect();
  Register('a', 1);
  auto status = Status();
  AddTenant(&status, 'a', 1, plan_[Token('a')].spec).set_sessions(2);
  Deliver(status);
  plan_[Token('a')].spec.set_tenant_class(control::TENANT_CLASS_REALTIME);
  SetPlan();
  control::AdmissionDecision decision;
  decision.set_granted(control::TENANT_CLASS_REALTIME);
  link_.Take().updated(decision);
  EXPECT_EQ(Reasons(),
            (std::vector<std::string>{"BestEffort", "ClassAtNextStart", "RealtimeAdmitted"}));
}

TEST_F(ReconcilerTest, AnEndedAllocationIsTakenAway) {
  Want('a');
  SetPlan();
  Connect();
  Register('a', 1);
  plan_[Token('a')].state = AllocationState::kEnded;
  SetPlan();
  auto call = link_.Take();
  EXPECT_EQ(call.kind, "unregister");
  EXPECT_EQ(call.tenant_id, 1u);
  call.done({});
  EXPECT_TRUE(link_.calls.empty());
}

TEST_F(ReconcilerTest, AnIncompletePlanMakesATenantButChangesNone) {
  Want('a').complete = false;
  SetPlan();
  Connect();
  Register('a', 1);
  plan_[Token('a')].spec.set_limit_bytes(77);
  SetPlan();
  EXPECT_TRUE(link_.calls.empty());
  EXPECT_TRUE(told_.empty()) << "what it will be is not known yet";
  plan_[Token('a')].complete = true;
  SetPlan();
  EXPECT_EQ(link_.Take().kind, "update");
}

TEST_F(ReconcilerTest, TenantsOfOthersAreLeftAlone) {
  control::TenantSpec mine;
  mine.set_name("rubato-run");
  auto status = Status();
  AddTenant(&status, 'z', 9, mine);
  SetPlan();
  Deliver(status);
  EXPECT_TRUE(link_.calls.empty());
}

TEST_F(ReconcilerTest, OrphansOfPodsAreTakenAway) {
  control::TenantSpec orphan;
  orphan.set_name("gone/main");
  orphan.set_namespace_("ns");
  auto status = Status();
  AddTenant(&status, 'z', 9, orphan);
  SetPlan();
  Deliver(status);
  auto call = link_.Take();
  EXPECT_EQ(call.kind, "unregister");
  EXPECT_EQ(call.tenant_id, 9u);
}

TEST_F(ReconcilerTest, AFailureIsTriedAgainLater) {
  Want('a');
  SetPlan();
  Connect();
  link_.Take().registered(base::Error{base::ErrorCode::kFull, "too many tenants"});
  EXPECT_TRUE(link_.calls.empty());
  ASSERT_GT(wake_ns_, base::MonotonicNow());
  reconciler_.Pump(wake_ns_);
  Register('a', 1);
  EXPECT_EQ(reconciler_.counts().failed_total.at("register"), 1u);
}

TEST_F(ReconcilerTest, ATenantThatSomebodyRemovedComesBack) {
  Want('a');
  SetPlan();
  Connect();
  Register('a', 1);
  Deliver(Status());
  Register('a', 2);
}

TEST_F(ReconcilerTest, AnOldStatusTakesNothingBack) {
  Want('a');
  SetPlan();
  Connect();
  const auto before = Status();  // Made before the answer below.
  Register('a', 1);
  Deliver(before);
  EXPECT_TRUE(link_.calls.empty());
}

TEST_F(ReconcilerTest, EnsureAnswersOnceTheTenantIsThere) {
  Want('a');
  SetPlan();
  std::vector<EnsureOutcome> outcomes;
  const auto note = [&](const EnsureOutcome& outcome) { outcomes.push_back(outcome); };
  reconciler_.Ensure(Token('a'), false, base::MonotonicNow(), note);
  EXPECT_TRUE(outcomes.empty()) << "there is no scheduler";
  Connect();
  EXPECT_TRUE(outcomes.empty());
  Register('a', 1);
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_TRUE(outcomes[0].registered);
  reconciler_.Ensure(Token('a'), false, base::MonotonicNow(), note);
  EXPECT_EQ(outcomes.size(), 2u) << "nothing to do";
}

TEST_F(ReconcilerTest, EnsureRegistersWhatIsNotKnownYet) {
  Want('a').state = AllocationState::kWaiting;
  plan_[Token('a')].complete = false;
  plan_[Token('a')].spec = {};
  plan_[Token('a')].spec.set_name("unknown-aaaaaaaa");
  SetPlan();
  Connect();
  EXPECT_TRUE(link_.calls.empty());
  reconciler_.Ensure(Token('a'), true, base::MonotonicNow(), [](const EnsureOutcome&) {});
  auto call = link_.Take();
  EXPECT_EQ(call.kind, "register");
  EXPECT_FALSE(call.require_class);
  call.registered(Granted(1, control::TENANT_CLASS_BEST_EFFORT));
  // Then it turns out whose it is: the names are filled in without ending its sessions.
  Want('a');
  SetPlan();
  call = link_.Take();
  EXPECT_EQ(call.kind, "update");
  EXPECT_EQ(call.spec.namespace_(), "ns");
}

TEST_F(ReconcilerTest, EnsureRefusesAClassThatDoesNotFit) {
  Want('a', true);
  SetPlan();
  std::optional<EnsureOutcome> outcome;
  reconciler_.Ensure(Token('a'), true, base::MonotonicNow(),
                     [&](const EnsureOutcome& got) { outcome = got; });
  Connect();
  auto call = link_.Take();
  EXPECT_TRUE(call.require_class);
  RegisterAnswer answer;
  answer.class_refused = true;
  answer.decision.set_detail("demand 1100 of 900");
  call.registered(answer);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_TRUE(outcome->class_refused);
  EXPECT_EQ(outcome->detail, "demand 1100 of 900");
  EXPECT_EQ(Reasons(), std::vector<std::string>{"RealtimeRefused"});
  // Its container does not start, so there is no tenant of less.
  SetPlan();
  EXPECT_TRUE(link_.calls.empty());
  // Until the kubelet tries again.
  outcome.reset();
  reconciler_.Ensure(Token('a'), true, base::MonotonicNow(),
                     [&](const EnsureOutcome& got) { outcome = got; });
  Register('a', 1, control::TENANT_CLASS_REALTIME);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_FALSE(outcome->class_refused);
}

TEST_F(ReconcilerTest, EnsureAsksAgainForATenantThatWasGrantedLess) {
  Want('a', true);
  SetPlan();
  Connect();
  link_.Take().registered(Granted(1, control::TENANT_CLASS_BEST_EFFORT, "demand"));
  std::optional<EnsureOutcome> outcome;
  reconciler_.Ensure(Token('a'), true, base::MonotonicNow(),
                     [&](const EnsureOutcome& got) { outcome = got; });
  auto call = link_.Take();
  EXPECT_EQ(call.kind, "update");
  EXPECT_FALSE(outcome.has_value());
  control::AdmissionDecision decision;
  decision.set_granted(control::TENANT_CLASS_BEST_EFFORT);
  decision.set_reason("demand");
  decision.set_detail("still too much");
  call.updated(decision);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_TRUE(outcome->class_refused);
  EXPECT_EQ(outcome->detail, "still too much");
}

TEST_F(ReconcilerTest, ANamespaceWithoutRightIsNeverRefusedToStart) {
  Want('a', true).spec.set_refusal_reason("not-allowed");
  SetPlan();
  std::optional<EnsureOutcome> outcome;
  reconciler_.Ensure(Token('a'), true, base::MonotonicNow(),
                     [&](const EnsureOutcome& got) { outcome = got; });
  Connect();
  auto call = link_.Take();
  EXPECT_FALSE(call.require_class);
  call.registered(Granted(1, control::TENANT_CLASS_BEST_EFFORT, "not-allowed"));
  ASSERT_TRUE(outcome.has_value());
  EXPECT_FALSE(outcome->class_refused);
}

TEST_F(ReconcilerTest, AHitMemoryLimitIsTold) {
  Want('a').spec.set_limit_bytes(uint64_t{8} << 30);
  SetPlan();
  Connect();
  Register('a', 1);
  told_.clear();
  auto status = Status();
  auto& tenant = AddTenant(&status, 'a', 1, plan_[Token('a')].spec);
  tenant.add_devices()->set_memory_refused_total(3);
  Deliver(status);
  ASSERT_EQ(Reasons(), std::vector<std::string>{"MemoryLimitReached"});
  EXPECT_NE(told_[0].second.message.find("8192Mi"), std::string::npos);
  Deliver(status);
  EXPECT_EQ(told_.size(), 1u);
}

TEST_F(ReconcilerTest, NoticesAreToldOnceAndAgainWhenTheyComeBack) {
  Want('a').notices = {{true, "BadAnnotation", "x"}};
  SetPlan();
  SetPlan();
  EXPECT_EQ(Reasons(), std::vector<std::string>{"BadAnnotation"});
  plan_[Token('a')].notices.clear();
  SetPlan();
  plan_[Token('a')].notices = {{true, "BadAnnotation", "x"}};
  SetPlan();
  EXPECT_EQ(told_.size(), 2u);
}

TEST_F(ReconcilerTest, ViewsSayWhatIsAskedAndGranted) {
  Want('a', true);
  SetPlan();
  Connect();
  link_.Take().registered(Granted(1, control::TENANT_CLASS_BEST_EFFORT, "demand"));
  const auto views = reconciler_.Views();
  ASSERT_EQ(views.size(), 1u);
  EXPECT_EQ(views[0].asked, "realtime");
  EXPECT_EQ(views[0].granted, "best-effort");
  EXPECT_EQ(views[0].reason, "demand");
  EXPECT_TRUE(views[0].registered);
}

}  // namespace
}  // namespace rubato::agent
