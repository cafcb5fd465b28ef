// What the scheduler learns from slots and writes into its pages.

#include "scheduler/daemon/scheduler.h"

#include <gtest/gtest.h>

#include <cstring>

#include "proto/abi/window.h"
#include "tests/unit/scheduler/daemon/scheduler_fixture.h"

namespace rubato::sched {
namespace {

using testing::kPeriod;
using testing::kStart;
using SchedulerTest = testing::SchedulerFixture;

TEST_F(SchedulerTest, APeriodicTenantsReleasesAreOnThePage) {
  Process process = Open(Add(core::TenantClass::kRealtime, "camera"));
  RunJobs(&process, 20);
  const abi::TenantEntry& entry = process.page()->tenants[process.opened.tenant];
  abi::ReleaseLine release;
  ASSERT_TRUE(abi::ReadLine(entry.release, &release));
  EXPECT_TRUE(abi::ReleaseUsable(release, static_cast<uint64_t>(now_ns_)));
  EXPECT_EQ(release.period_ns, static_cast<uint64_t>(kPeriod));
  EXPECT_EQ(abi::ReleaseAtOrBefore(release, static_cast<uint64_t>(now_ns_ + kPeriod / 2)),
            static_cast<uint64_t>(now_ns_));
  EXPECT_EQ(entry.space.job_ns, static_cast<uint64_t>(base::kMillisecond));
  EXPECT_EQ(entry.tenant.limit_bytes, uint64_t{1} << 20);
}

TEST_F(SchedulerTest, DurationsAreOnThePage) {
  Process process = Open(Add(core::TenantClass::kBestEffort, "training"));
  process.Sample(0x1234, 1'650'000);
  scheduler_.Poll(now_ns_ + 1);
  const abi::ProfileEntry* entry = abi::FindProfile(*process.profile(), 0x1234);
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->duration_ns, 1'650'000u);
}

TEST_F(SchedulerTest, PollingStopsAtRest) {
  EXPECT_EQ(scheduler_.PollIntervalNs(), 0);
  const TenantId tenant = Add(core::TenantClass::kBestEffort, "training");
  EXPECT_EQ(scheduler_.PollIntervalNs(), 0) << "a tenant without processes needs none";
  Process process = Open(tenant);
  scheduler_.Poll(now_ns_);
  const Nanos busy_ns = scheduler_.PollIntervalNs();
  EXPECT_GT(busy_ns, 0);
  scheduler_.Poll(now_ns_ + 10 * base::kSecond);
  EXPECT_GT(scheduler_.PollIntervalNs(), busy_ns) << "nothing happens: look less often";
  scheduler_.CloseSession(process.opened.id, now_ns_ + 11 * base::kSecond);
  EXPECT_EQ(scheduler_.PollIntervalNs(), 0);
}

TEST_F(SchedulerTest, ATenantThatIsOpenAllTheTimeHoldsNobody) {
  const TenantId tenant = Add(core::TenantClass::kRealtime, "liar");
  Process process = Open(tenant);
  EXPECT_EQ(process.page()->state.realtime_sessions, 1u);
  process.slot()->job.state = static_cast<uint32_t>(abi::JobState::kOpen);
  process.slot()->job.first_op_ns = static_cast<uint64_t>(now_ns_);
  for (int i = 0; i < 250; ++i) scheduler_.Poll(now_ns_ += 20 * base::kMillisecond);
  EXPECT_EQ(process.page()->state.realtime_sessions, 0u);
  EXPECT_EQ(process.page()->sessions[process.opened.session].flags & abi::kSessionMayHold, 0u);
  const SchedulerStatus status = scheduler_.Status(now_ns_);
  EXPECT_TRUE(status.tenants.at(0).devices.at(0).hold_revoked);
  EXPECT_EQ(status.tenants.at(0).devices.at(0).totals.holds_revoked, 1u);
  // A process that it starts meanwhile holds nobody either.
  Process second = Open(tenant);
  EXPECT_EQ(second.page()->state.realtime_sessions, 0u);
  // And it has the right back after a window of ordinary use.
  process.slot()->job.state = static_cast<uint32_t>(abi::JobState::kIdle);
  for (int i = 0; i < 250; ++i) scheduler_.Poll(now_ns_ += 20 * base::kMillisecond);
  EXPECT_EQ(process.page()->state.realtime_sessions, 2u);
}

TEST_F(SchedulerTest, ASessionThatDetachesLeavesTheDirectory) {
  const TenantId tenant = Add(core::TenantClass::kRealtime, "camera");
  Process process = Open(tenant);
  process.slot()->session.detached = static_cast<uint32_t>(abi::DetachReason::kSurprise);
  scheduler_.Poll(now_ns_ += base::kMillisecond);
  EXPECT_EQ(process.page()->state.realtime_sessions, 0u);
  EXPECT_EQ(scheduler_.SessionCount(tenant), 0u);
  EXPECT_EQ(scheduler_.Status(now_ns_).sessions_detached.at("surprise"), 1u);
  scheduler_.CloseSession(process.opened.id, now_ns_);  // As its connection ends later.
}

TEST_F(SchedulerTest, ATenantsProcessesShareItsMemoryAccount) {
  const TenantId tenant = Add(core::TenantClass::kBestEffort, "training");
  Process one = Open(tenant);
  Process two = Open(tenant);
  EXPECT_EQ(one.opened.tenant, two.opened.tenant);
  one.slot()->memory.used_bytes = 1000;
  two.slot()->memory.used_bytes = 500;
  scheduler_.Poll(now_ns_ += base::kMillisecond);
  EXPECT_EQ(scheduler_.Status(now_ns_).tenants.at(0).devices.at(0).memory_used_bytes, 1500u);
  scheduler_.CloseSession(one.opened.id, now_ns_);
  const SchedulerStatus status = scheduler_.Status(now_ns_);
  EXPECT_EQ(status.tenants.at(0).devices.at(0).memory_used_bytes, 500u);
  EXPECT_EQ(status.tenants.at(0).devices.at(0).memory_peak_bytes, 1500u);
}

TEST_F(SchedulerTest, TotalsOfFinishedTenantsRemain) {
  const TenantId tenant = Add(core::TenantClass::kRealtime, "camera");
  Process process = Open(tenant);
  RunJobs(&process, 10);
  // The last words of a process are heard although nobody polled in between.
  now_ns_ += kPeriod;
  process.Job(static_cast<uint64_t>(now_ns_), static_cast<uint64_t>(now_ns_ + 1000));
  scheduler_.CloseSession(process.opened.id, now_ns_ + kPeriod);
  scheduler_.RemoveTenant(tenant, now_ns_ + kPeriod);
  const SchedulerStatus status = scheduler_.Status(now_ns_ + kPeriod);
  EXPECT_TRUE(status.tenants.empty());
  ASSERT_EQ(status.retired.size(), 1u);
  EXPECT_EQ(status.retired.begin()->first.tenant, "camera");
  EXPECT_EQ(status.retired.begin()->second.jobs.jobs, 11u);
  EXPECT_EQ(scheduler_.Status(now_ns_ + 500 * base::kSecond).retired.size(), 1u);
  EXPECT_TRUE(scheduler_.Status(now_ns_ + 700 * base::kSecond).retired.empty())
      << "but not for ever: names come and go";
}

TEST_F(SchedulerTest, WhatWasLearntSurvivesTheProcess) {
  const TenantId tenant = Add(core::TenantClass::kRealtime, "camera");
  {
    Process process = Open(tenant);
    RunJobs(&process, 20);
    scheduler_.CloseSession(process.opened.id, now_ns_ + 2 * base::kMillisecond);
    EXPECT_EQ(process.page()->tenants[process.opened.tenant].release.flags, 0u)
        << "nobody waits for a tenant without processes";
  }
  Process again = Open(tenant);
  EXPECT_EQ(again.page()->tenants[again.opened.tenant].space.job_ns,
            static_cast<uint64_t>(base::kMillisecond));
}

TEST_F(SchedulerTest, DevicesAreLimited) {
  const TenantId tenant = Add(core::TenantClass::kBestEffort, "greedy");
  std::vector<Process> processes;
  for (uint8_t device = 1; device <= 16; ++device) processes.push_back(Open(tenant, device));
  abi::OpenDeviceMessage request{};
  request.uuid[0] = 200;
  OpenedSession opened;
  EXPECT_EQ(scheduler_.OpenDevice(tenant, ProcessInfo{}, request, std::nullopt, now_ns_, &opened),
            abi::Status::kUnknownDevice);
  EXPECT_EQ(scheduler_.Status(now_ns_).devices.size(), 16u);
}

TEST_F(SchedulerTest, UpdatesReachThePage) {
  const TenantId tenant = Add(core::TenantClass::kBestEffort, "training");
  Process process = Open(tenant);
  core::TenantSpec spec = *scheduler_.FindTenant(tenant);
  spec.limit_bytes = 777;
  spec.weight = 5;
  ASSERT_TRUE(scheduler_.UpdateTenant(tenant, spec, now_ns_).ok());
  EXPECT_EQ(process.page()->tenants[process.opened.tenant].tenant.limit_bytes, 777u);
  EXPECT_EQ(process.page()->tenants[process.opened.tenant].tenant.weight, 5u);
  spec.name = "other";
  EXPECT_EQ(scheduler_.UpdateTenant(tenant, spec, now_ns_).error().code, base::ErrorCode::kInvalid);
  EXPECT_EQ(scheduler_.UpdateTenant(999, spec, now_ns_).error().code, base::ErrorCode::kNotFound);
}

TEST_F(SchedulerTest, BadSpecsAndTooManyTenantsAreRefused) {
  core::TenantSpec spec;
  EXPECT_EQ(scheduler_.AddTenant(spec, kStart).error().code, base::ErrorCode::kInvalid);
  spec.name = "x";
  spec.tenant_class = core::TenantClass::kBestEffort;
  base::Result<TenantId> last = scheduler_.AddTenant(spec, kStart);
  for (int i = 0; i < 1000 && last.ok(); ++i) last = scheduler_.AddTenant(spec, kStart);
  ASSERT_FALSE(last.ok());
  EXPECT_EQ(last.error().code, base::ErrorCode::kFull);
}

TEST_F(SchedulerTest, ASlotFullOfNoiseHarmsItsOwnerAlone) {
  Process honest = Open(Add(core::TenantClass::kRealtime, "camera"));
  Process hostile = Open(Add(core::TenantClass::kRealtime, "hostile"));
  RunJobs(&honest, 20);
  uint64_t state = 1;
  for (int round = 0; round < 50; ++round) {
    auto* bytes = reinterpret_cast<uint64_t*>(hostile.slot());
    for (size_t i = 0; i < sizeof(abi::SlotRegion) / sizeof(uint64_t); ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      bytes[i] = (state >> 33) % 3 == 0 ? state : (state >> 60);
    }
    hostile.slot()->session.detached = 0;
    RunJobs(&honest, 1);
  }
  const abi::TenantEntry& entry = honest.page()->tenants[honest.opened.tenant];
  EXPECT_TRUE(abi::ReleaseUsable(entry.release, static_cast<uint64_t>(now_ns_)));
  EXPECT_EQ(abi::ReleaseAtOrBefore(entry.release, static_cast<uint64_t>(now_ns_ + kPeriod / 2)),
            static_cast<uint64_t>(now_ns_));
}

}  // namespace
}  // namespace rubato::sched
