// What a scheduler does with what earlier runs have learnt, and for a tenant that is to be
// measured.

#include "proto/abi/atomic.h"
#include "tests/unit/scheduler/daemon/scheduler_fixture.h"

namespace rubato::sched {
namespace {

using testing::kStart;

class SchedulerProfileTest : public testing::SchedulerFixture {
 protected:
  TenantId AddProfiled(const char* name) {
    core::TenantSpec spec;
    spec.name = name;
    spec.tenant_class = core::TenantClass::kBestEffort;
    spec.profile = true;
    return *scheduler_.AddTenant(spec, kStart);
  }
  static uint32_t Every(Process* process) { return process->page()->constants.sample_every; }
};

TEST_F(SchedulerProfileTest, ASecondRunKnowsWhatTheFirstHasLearnt) {
  Process first = Open(Add(core::TenantClass::kBestEffort, "one"));
  for (int i = 0; i < 8; ++i) first.Sample(42, 1'000'000);
  scheduler_.Poll(now_ns_ + 1);
  std::vector<ProfileRow> learnt = scheduler_.TakeLearnt(1234);
  ASSERT_EQ(learnt.size(), 1u);
  EXPECT_EQ(learnt[0].model.sm_count, 132u);
  EXPECT_EQ(learnt[0].key, 42u);
  EXPECT_EQ(learnt[0].duration_ns, 1'000'000);
  EXPECT_EQ(learnt[0].max_ns, 1'000'000u);
  EXPECT_EQ(learnt[0].samples, 8u);
  EXPECT_EQ(learnt[0].last_seen_s, 1234);
  EXPECT_TRUE(scheduler_.TakeLearnt(1235).empty());

  Scheduler second(SchedulerOptions{}, kStart);
  std::vector<DeviceModel> asked;
  second.OnDevice([&](const DeviceModel& model, size_t) {
    asked.push_back(model);
    return learnt;
  });
  core::TenantSpec spec;
  spec.name = "two";
  spec.tenant_class = core::TenantClass::kBestEffort;
  const TenantId tenant = *second.AddTenant(spec, kStart);
  abi::OpenDeviceMessage request{};
  request.uuid[0] = 9;  // Another GPU, of the same model.
  request.sm_count = 132;
  OpenedSession opened;
  ASSERT_EQ(second.OpenDevice(tenant, {}, request, std::nullopt, kStart, &opened),
            abi::Status::kOk);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0], learnt[0].model);
  const auto table = *base::Mapping::ReadOnly(opened.profile_fd, sizeof(abi::ProfileRegion));
  const abi::ProfileEntry* entry = abi::FindProfile(*table.as<const abi::ProfileRegion>(), 42);
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->duration_ns, 1'000'000u);
  EXPECT_EQ(entry->max_ns, 1'000'000u);
  EXPECT_EQ(second.Status(kStart).devices[0].profile_restored, 1u);
  EXPECT_TRUE(second.TakeLearnt(1236).empty()) << "nothing was measured yet";
}

TEST_F(SchedulerProfileTest, WhatComesLateFillsTheDevicesThatAreThere) {
  std::vector<ProfileRow> known;
  scheduler_.OnDevice([&](const DeviceModel&, size_t) { return known; });
  Process process = Open(Add(core::TenantClass::kBestEffort, "one"));
  process.Sample(1, 5000);
  scheduler_.Poll(now_ns_ + 1);
  for (const uint64_t key : {1, 2}) {
    ProfileRow& row = known.emplace_back();
    row.key = key;
    row.duration_ns = row.max_ns = 7000;
    row.samples = 1;
  }
  scheduler_.RestoreProfiles();
  EXPECT_EQ(abi::FindProfile(*process.profile(), 1)->duration_ns, 5000u);
  EXPECT_EQ(abi::FindProfile(*process.profile(), 2)->duration_ns, 7000u);
  scheduler_.ForgetProfiles();
  EXPECT_EQ(abi::FindProfile(*process.profile(), 1), nullptr);
  EXPECT_EQ(abi::FindProfile(*process.profile(), 2), nullptr);
}

TEST_F(SchedulerProfileTest, EveryOpIsMeasuredWhileOnlyWhoWantsItIsThere) {
  const uint32_t usual = policies::Constants{}.sample_every;
  const TenantId profiled = AddProfiled("measured");
  Process alone = Open(profiled);
  EXPECT_EQ(Every(&alone), 1u);
  Process child = Open(profiled);
  EXPECT_EQ(Every(&alone), 1u);
  Process other = Open(Add(core::TenantClass::kBestEffort, "other"));
  EXPECT_EQ(Every(&alone), usual);
  Process elsewhere = Open(profiled, 2);
  EXPECT_EQ(Every(&elsewhere), 1u) << "devices are looked at one by one";
  scheduler_.CloseSession(other.opened.id, now_ns_);
  EXPECT_EQ(Every(&alone), 1u);
  scheduler_.CloseSession(alone.opened.id, now_ns_);
  EXPECT_EQ(Every(&child), 1u);
  scheduler_.CloseSession(child.opened.id, now_ns_);
  EXPECT_EQ(Every(&child), usual);
}

TEST_F(SchedulerProfileTest, WhatWasMeasuredOfATenantIsCounted) {
  Process other = Open(Add(core::TenantClass::kBestEffort, "other"));
  other.Sample(1, 5000);
  scheduler_.Poll(now_ns_ + 1);
  Process process = Open(AddProfiled("measured"));
  for (const uint64_t key : {1, 2, 3, 2, 1, 3}) process.Sample(key, 5000);
  scheduler_.Poll(now_ns_ + 2);
  for (const TenantStatus& tenant : scheduler_.Status(now_ns_ + 2).tenants) {
    EXPECT_EQ(tenant.devices.at(0).profiled_ops, tenant.spec.profile ? 3u : 0u);
    EXPECT_EQ(tenant.devices.at(0).profiled_new_ops, tenant.spec.profile ? 2u : 0u);
  }
}

TEST_F(SchedulerProfileTest, ARealtimeTenantIsNotMeasured) {
  core::TenantSpec spec;
  spec.name = "camera";
  spec.tenant_class = core::TenantClass::kRealtime;
  spec.profile = true;
  EXPECT_FALSE(scheduler_.AddTenant(spec, kStart).ok());
}

}  // namespace
}  // namespace rubato::sched
