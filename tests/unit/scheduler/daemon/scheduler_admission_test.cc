// Which class tenants are granted beside each other, what changes it, and what it changes.

#include <gtest/gtest.h>

#include "proto/abi/window.h"
#include "scheduler/daemon/scheduler.h"
#include "tests/unit/scheduler/daemon/scheduler_fixture.h"

namespace rubato::sched {
namespace {

using core::TenantClass;
using testing::kPeriod;
using testing::kStart;

class SchedulerAdmissionTest : public testing::SchedulerFixture {
 protected:
  static core::TenantSpec Slots(const char* name, uint32_t permille, uint8_t device = 1) {
    core::TenantSpec spec;
    spec.name = name;
    spec.name_space = "shop";
    spec.pod = name;
    spec.tenant_class = TenantClass::kRealtime;
    spec.period_ns = kPeriod;
    spec.share_permille = permille;
    spec.device_uuids = {Uuid(device)};
    return spec;
  }
  TenantId AddSpec(const core::TenantSpec& spec) { return *scheduler_.AddTenant(spec, now_ns_); }
  TenantClass Granted(TenantId id) { return scheduler_.AdmissionOf(id)->granted; }
  std::string Reason(TenantId id) { return scheduler_.AdmissionOf(id)->reason; }
  ProcessInfo NewProcess(TenantId id) {
    ProcessInfo info;
    info.tenant_class = scheduler_.ClassForNewProcess(id, now_ns_);
    return info;
  }
  static TenantClass ClassOnPage(Process* process) {
    return static_cast<TenantClass>(
        process->page()->sessions[process->opened.session].tenant_class);
  }
  const TenantStatus& Row(TenantId id) {
    status_ = scheduler_.Status(now_ns_);
    for (const TenantStatus& tenant : status_.tenants) {
      if (tenant.id == id) return tenant;
    }
    ADD_FAILURE() << "no tenant " << id;
    return status_.tenants.front();
  }

  SchedulerStatus status_;
};

TEST_F(SchedulerAdmissionTest, WhoDoesNotFitIsBestEffortAndTheNumbersSayWhy) {
  const TenantId first = AddSpec(Slots("first", 600));
  const TenantId second = AddSpec(Slots("second", 400));
  EXPECT_EQ(Granted(first), TenantClass::kRealtime);
  const AdmissionDecision& refused = *scheduler_.AdmissionOf(second);
  EXPECT_EQ(refused.asked, TenantClass::kRealtime);
  EXPECT_EQ(refused.granted, TenantClass::kBestEffort);
  EXPECT_EQ(refused.reason, "demand");
  EXPECT_EQ(refused.demand_permille, 1000u);
  EXPECT_EQ(refused.capacity_permille, 900u);
  EXPECT_EQ(refused.device_uuid, Uuid());
  EXPECT_NE(refused.detail.find("100 %"), std::string::npos) << refused.detail;
  // What it holds no right to counts against nobody.
  EXPECT_EQ(Granted(AddSpec(Slots("third", 300))), TenantClass::kRealtime);
  EXPECT_EQ(Granted(AddSpec(Slots("elsewhere", 400, 2))), TenantClass::kRealtime);
  const SchedulerStatus status = scheduler_.Status(now_ns_);
  ASSERT_EQ(status.demands.size(), 2u);
  EXPECT_EQ(status.demands[0].demand_permille, 900u);
  EXPECT_EQ(status.demands[0].tenants, 2u);
  EXPECT_EQ(status.demands[1].demand_permille, 400u);
  EXPECT_EQ(status.demands[1].capacity_permille, 1000u);
  EXPECT_EQ(status.admissions.at({TenantClass::kRealtime, TenantClass::kBestEffort, "demand"}), 1u);
  EXPECT_EQ(status.admissions.at({TenantClass::kRealtime, TenantClass::kRealtime, "admitted"}), 3u);
}

TEST_F(SchedulerAdmissionTest, TheClassGrantedIsTheOneProcessesGet) {
  AddSpec(Slots("first", 600));
  const TenantId second = AddSpec(Slots("second", 400));
  Process process = Open(second, 1, NewProcess(second));
  EXPECT_EQ(ClassOnPage(&process), TenantClass::kBestEffort);
  EXPECT_EQ(process.page()->state.realtime_sessions, 0u);
  EXPECT_EQ(process.page()->tenants[process.opened.tenant].tenant.tenant_class,
            static_cast<uint32_t>(TenantClass::kBestEffort));
  EXPECT_EQ(Row(second).devices.at(0).tenant_class, TenantClass::kBestEffort);
}

TEST_F(SchedulerAdmissionTest, WhatWasLearntOfATenantCounts) {
  const TenantId camera = Add(TenantClass::kRealtime, "camera");
  EXPECT_EQ(scheduler_.AdmissionOf(camera)->unknown_tenants, 1u);
  Process process = Open(camera);
  RunJobs(&process, 20, 6 * base::kMillisecond);
  const TenantId refused = AddSpec(Slots("second", 400));
  EXPECT_EQ(Reason(refused), "demand");
  EXPECT_EQ(scheduler_.AdmissionOf(refused)->demand_permille, 1000u);
  core::TenantSpec tight = Slots("third", 100);
  tight.deadline_ns = 5 * base::kMillisecond;
  const TenantId late = AddSpec(tight);
  EXPECT_EQ(Reason(late), "response-time");
  EXPECT_EQ(scheduler_.AdmissionOf(late)->interference_ns, 6 * base::kMillisecond);
  EXPECT_EQ(scheduler_.AdmissionOf(late)->deadline_ns, 5 * base::kMillisecond);
}

TEST_F(SchedulerAdmissionTest, AnAperiodicTenantLooksAtTheOpsOfOthers) {
  Process training = Open(Add(TenantClass::kBestEffort, "training"));
  training.Sample(0x1234, 30'000'000);
  scheduler_.Poll(now_ns_ += base::kMillisecond);
  core::TenantSpec spec = Slots("camera", 100);
  spec.period_ns = 0;
  spec.deadline_ns = 20 * base::kMillisecond;
  auto decision = scheduler_.CheckAdmission(spec, 0, now_ns_);
  ASSERT_TRUE(decision.ok());
  EXPECT_EQ(decision->reason, "response-time");
  EXPECT_GE(decision->blocking_ns, 30 * base::kMillisecond);
  decision = scheduler_.CheckAdmission(spec, 0, now_ns_ + 100 * base::kSecond);
  EXPECT_EQ(decision->reason, "admitted") << "nobody runs such an op any more";
}

TEST_F(SchedulerAdmissionTest, AskingChangesNothing) {
  const TenantId first = AddSpec(Slots("first", 500));
  auto decision = scheduler_.CheckAdmission(Slots("second", 500), 0, now_ns_);
  ASSERT_TRUE(decision.ok());
  EXPECT_EQ(decision->granted, TenantClass::kBestEffort);
  decision = scheduler_.CheckAdmission(Slots("first", 1000), first, now_ns_);
  EXPECT_EQ(decision->granted, TenantClass::kRealtime) << "it would take its own place";
  EXPECT_EQ(scheduler_.Status(now_ns_).tenants.size(), 1u);
  EXPECT_EQ(scheduler_.Status(now_ns_).admissions.size(), 1u);
  EXPECT_EQ(scheduler_.CheckAdmission(Slots("", 1), 0, now_ns_).error().code,
            base::ErrorCode::kInvalid);
  EXPECT_EQ(scheduler_.CheckAdmission(Slots("x", 1), 77, now_ns_).error().code,
            base::ErrorCode::kNotFound);
}

TEST_F(SchedulerAdmissionTest, WhoWasAdmittedKeepsItsPlace) {
  const TenantId first = Add(TenantClass::kRealtime, "first");
  Process process = Open(first);
  const TenantId second = AddSpec(Slots("second", 600));
  EXPECT_EQ(Granted(second), TenantClass::kRealtime);
  RunJobs(&process, 20, 7 * base::kMillisecond);  // More than fits beside the second.
  const core::TenantSpec spec = *scheduler_.FindTenant(first);
  ASSERT_TRUE(scheduler_.UpdateTenant(first, spec, now_ns_).ok());
  EXPECT_EQ(Granted(first), TenantClass::kRealtime);
  EXPECT_EQ(Reason(first), "admitted");
  EXPECT_EQ(scheduler_.AdmissionOf(first)->demand_permille, 1300u) << "the numbers are today's";
  core::TenantSpec less = spec;
  less.period_ns = 2 * kPeriod;
  ASSERT_TRUE(scheduler_.UpdateTenant(first, less, now_ns_).ok());
  EXPECT_EQ(Granted(first), TenantClass::kRealtime);
  // Who asks for more is tested.
  core::TenantSpec more = Slots("second", 700);
  ASSERT_TRUE(scheduler_.UpdateTenant(second, more, now_ns_).ok());
  EXPECT_EQ(Granted(second), TenantClass::kBestEffort);
  EXPECT_EQ(Reason(second), "demand");
}

TEST_F(SchedulerAdmissionTest, ThePlaceOfOneThatIsGoneIsForTheNextProcess) {
  const TenantId first = AddSpec(Slots("first", 600));
  const TenantId second = AddSpec(Slots("second", 400));
  Process running = Open(second, 1, NewProcess(second));
  scheduler_.RemoveTenant(first, now_ns_);
  EXPECT_EQ(Granted(second), TenantClass::kBestEffort) << "its process runs as it started";
  Process next = Open(second, 1, NewProcess(second));
  EXPECT_EQ(Granted(second), TenantClass::kRealtime);
  EXPECT_EQ(ClassOnPage(&running), TenantClass::kBestEffort);
  EXPECT_EQ(ClassOnPage(&next), TenantClass::kRealtime);
  EXPECT_EQ(next.page()->state.realtime_sessions, 1u);
  EXPECT_EQ(next.page()->state.besteffort_sessions, 1u);
}

TEST_F(SchedulerAdmissionTest, WhoeverRegistersMayRefuseAndItIsSaidHere) {
  core::TenantSpec spec = Slots("camera", 300);
  spec.refusal_reason = "not-allowed";
  spec.refusal_detail = "namespace shop may not ask for real-time";
  const TenantId tenant = AddSpec(spec);
  EXPECT_EQ(Granted(tenant), TenantClass::kBestEffort);
  EXPECT_EQ(Reason(tenant), "not-allowed");
  EXPECT_EQ(scheduler_.AdmissionOf(tenant)->asked, TenantClass::kRealtime);
  EXPECT_EQ(scheduler_.AdmissionOf(tenant)->detail, spec.refusal_detail);
  EXPECT_EQ(scheduler_.ClassForNewProcess(tenant, now_ns_), TenantClass::kBestEffort)
      << "nor is it tested again";
  spec.refusal_reason.clear();
  spec.refusal_detail.clear();
  ASSERT_TRUE(scheduler_.UpdateTenant(tenant, spec, now_ns_).ok());
  EXPECT_EQ(Granted(tenant), TenantClass::kRealtime);
}

TEST_F(SchedulerAdmissionTest, ReasonsFromOutsideAreBounded) {
  for (int i = 0; i < 200; ++i) {
    core::TenantSpec spec = Slots("camera", 1);
    spec.refusal_reason = "reason-" + std::to_string(i);
    AddSpec(spec);
  }
  const SchedulerStatus status = scheduler_.Status(now_ns_);
  EXPECT_LE(status.admissions.size(), 65u);
  uint64_t decisions = 0;
  for (const auto& [kind, count] : status.admissions) decisions += count;
  EXPECT_EQ(decisions, 200u);
}

TEST_F(SchedulerAdmissionTest, RunningProcessesKeepTheirClass) {
  const TenantId tenant = Add(TenantClass::kRealtime, "camera");
  Process old = Open(tenant, 1, NewProcess(tenant));
  RunJobs(&old, 20);
  old.slot()->memory.used_bytes = 600;
  core::TenantSpec spec = *scheduler_.FindTenant(tenant);
  spec.tenant_class = TenantClass::kBestEffort;
  spec.period_ns = 0;
  spec.limit_bytes = 777;
  ASSERT_TRUE(scheduler_.UpdateTenant(tenant, spec, now_ns_).ok());
  EXPECT_EQ(Granted(tenant), TenantClass::kBestEffort);
  Process next = Open(tenant, 1, NewProcess(tenant));
  next.slot()->memory.used_bytes = 100;
  RunJobs(&old, 5);
  EXPECT_EQ(ClassOnPage(&old), TenantClass::kRealtime);
  EXPECT_EQ(ClassOnPage(&next), TenantClass::kBestEffort);
  EXPECT_NE(old.page()->sessions[old.opened.session].flags & abi::kSessionMayHold, 0u);
  EXPECT_EQ(old.page()->sessions[next.opened.session].flags & abi::kSessionMayHold, 0u);
  EXPECT_EQ(old.opened.tenant, next.opened.tenant) << "one account for memory";
  const abi::TenantEntry& entry = old.page()->tenants[old.opened.tenant];
  EXPECT_TRUE(abi::ReleaseUsable(entry.release, static_cast<uint64_t>(now_ns_)))
      << "what the old process does is still predicted";
  EXPECT_EQ(entry.tenant.limit_bytes, 777u);

  const TenantStatus& row = Row(tenant);
  ASSERT_EQ(row.devices.size(), 2u);
  EXPECT_EQ(row.devices[0].tenant_class, TenantClass::kRealtime);
  EXPECT_EQ(row.devices[0].totals.jobs.jobs, 25u);
  EXPECT_EQ(row.devices[0].memory_used_bytes, 600u);
  EXPECT_EQ(row.devices[1].tenant_class, TenantClass::kBestEffort);
  EXPECT_EQ(row.devices[1].totals.jobs.jobs, 0u);
  EXPECT_EQ(row.devices[1].memory_used_bytes, 100u);
  ASSERT_EQ(row.sessions.size(), 2u);
  EXPECT_NE(row.sessions[0].tenant_class, row.sessions[1].tenant_class);

  scheduler_.CloseSession(old.opened.id, now_ns_);
  EXPECT_EQ(entry.release.flags, 0u) << "nobody waits for a process that has ended";
  EXPECT_EQ(entry.tenant.tenant_class, static_cast<uint32_t>(TenantClass::kBestEffort));
  EXPECT_EQ(entry.tenant.limit_bytes, 777u);
  scheduler_.RemoveTenant(tenant, now_ns_);
  EXPECT_EQ(scheduler_.Status(now_ns_).retired.size(), 2u);
}

TEST_F(SchedulerAdmissionTest, ABestEffortTenantBecomesRealtimeForItsNextProcess) {
  const TenantId tenant = Add(TenantClass::kBestEffort, "camera");
  Process old = Open(tenant, 1, NewProcess(tenant));
  core::TenantSpec spec = *scheduler_.FindTenant(tenant);
  spec.tenant_class = TenantClass::kRealtime;
  spec.period_ns = kPeriod;
  ASSERT_TRUE(scheduler_.UpdateTenant(tenant, spec, now_ns_).ok());
  EXPECT_EQ(ClassOnPage(&old), TenantClass::kBestEffort);
  EXPECT_EQ(old.page()->state.realtime_sessions, 0u);
  Process next = Open(tenant, 1, NewProcess(tenant));
  EXPECT_EQ(ClassOnPage(&next), TenantClass::kRealtime);
  RunJobs(&next, 20);
  EXPECT_TRUE(abi::ReleaseUsable(next.page()->tenants[next.opened.tenant].release,
                                 static_cast<uint64_t>(now_ns_)));
}

TEST_F(SchedulerAdmissionTest, APromiseThatIsNotGrantedLeavesTheOldOne) {
  core::TenantSpec spec = Slots("camera", 500);
  spec.deadline_ns = 9 * base::kMillisecond;
  const TenantId tenant = AddSpec(spec);
  AddSpec(Slots("second", 400));
  Process process = Open(tenant, 1, NewProcess(tenant));
  const abi::TenantLine& line = process.page()->tenants[process.opened.tenant].tenant;
  core::TenantSpec more = spec;
  more.share_permille = 600;
  more.deadline_ns = 8 * base::kMillisecond;
  ASSERT_TRUE(scheduler_.UpdateTenant(tenant, more, now_ns_).ok());
  EXPECT_EQ(Granted(tenant), TenantClass::kBestEffort);
  EXPECT_EQ(ClassOnPage(&process), TenantClass::kRealtime);
  EXPECT_EQ(line.deadline_ns, 9'000'000u);
  EXPECT_EQ(scheduler_.Status(now_ns_).demands.at(0).demand_permille, 900u)
      << "its process still asks for what it was promised";
  ASSERT_TRUE(scheduler_.UpdateTenant(tenant, spec, now_ns_).ok());
  EXPECT_EQ(Granted(tenant), TenantClass::kRealtime);
  // One that is granted is effective at once.
  spec.deadline_ns = 7 * base::kMillisecond;
  ASSERT_TRUE(scheduler_.UpdateTenant(tenant, spec, now_ns_).ok());
  EXPECT_EQ(line.deadline_ns, 7'000'000u);
}

TEST_F(SchedulerAdmissionTest, AnOldProcessIsBelievedWhereItCostsNobody) {
  const TenantId realtime = Add(TenantClass::kRealtime, "camera");
  const TenantId besteffort = Add(TenantClass::kBestEffort, "training");
  EXPECT_EQ(scheduler_.ClassForOldProcess(realtime, TenantClass::kRealtime),
            TenantClass::kRealtime);
  EXPECT_EQ(scheduler_.ClassForOldProcess(realtime, TenantClass::kBestEffort),
            TenantClass::kBestEffort);
  EXPECT_EQ(scheduler_.ClassForOldProcess(besteffort, TenantClass::kRealtime),
            TenantClass::kBestEffort);
  EXPECT_EQ(scheduler_.ClassForOldProcess(realtime, TenantClass::kFree), TenantClass::kRealtime)
      << "a shim that does not say";
}

TEST_F(SchedulerAdmissionTest, ATenantGetsItsNamesOnce) {
  core::TenantSpec spec;
  spec.name = "unknown-00112233";
  spec.tenant_class = TenantClass::kBestEffort;
  const TenantId tenant = AddSpec(spec);
  core::TenantSpec named = Slots("camera", 300);
  ASSERT_TRUE(scheduler_.UpdateTenant(tenant, named, now_ns_).ok());
  EXPECT_EQ(scheduler_.FindTenant(tenant)->pod, "camera");
  named.pod_uid = "1234";
  EXPECT_TRUE(scheduler_.UpdateTenant(tenant, named, now_ns_).ok());
  named.pod = "other";
  EXPECT_EQ(scheduler_.UpdateTenant(tenant, named, now_ns_).error().code,
            base::ErrorCode::kInvalid);
}

}  // namespace
}  // namespace rubato::sched
