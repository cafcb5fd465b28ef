#include "scheduler/core/device_page.h"

#include <gtest/gtest.h>

#include <memory>

namespace rubato::core {
namespace {

class DevicePageTest : public ::testing::Test {
 protected:
  static abi::DeviceConstants Constants() {
    abi::DeviceConstants constants{};
    constants.spin_ns = 42;
    return constants;
  }
  std::unique_ptr<abi::DeviceRegion> region_ = std::make_unique<abi::DeviceRegion>();
  DevicePage page_{region_.get(), Constants(), 99, 1000};
};

TEST_F(DevicePageTest, HeaderAndConstants) {
  EXPECT_TRUE(abi::RegionAccepted(region_->header, abi::RegionKind::kDevice,
                                  sizeof(abi::DeviceRegion), sizeof(abi::DeviceRegion)));
  EXPECT_EQ(region_->header.epoch, 99u);
  EXPECT_EQ(region_->constants.spin_ns, 42u);
  EXPECT_EQ(region_->state.turn_tenant, abi::kNoPartition);
}

TEST_F(DevicePageTest, ATenantKeepsItsEntry) {
  const auto first = page_.TakeTenant(7);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(page_.TakeTenant(7), first);
  const auto second = page_.TakeTenant(8);
  ASSERT_TRUE(second.has_value());
  EXPECT_NE(*second, *first);
}

TEST_F(DevicePageTest, AFreedEntryHasAnotherGeneration) {
  const uint32_t index = *page_.TakeTenant(7);
  abi::TenantLine line{};
  line.tenant_class = static_cast<uint32_t>(abi::TenantClass::kRealtime);
  page_.WriteTenant(index, line);
  abi::ReleaseLine release{};
  release.flags = abi::kReleaseValid;
  release.period_ns = 5000;
  page_.WriteRelease(index, release);
  const uint32_t generation = region_->tenants[index].tenant.generation;
  page_.FreeTenant(index);
  EXPECT_EQ(region_->tenants[index].release.flags, 0u);
  EXPECT_EQ(region_->tenants[index].tenant.tenant_class,
            static_cast<uint32_t>(abi::TenantClass::kFree));
  EXPECT_EQ(page_.TakeTenant(9), index);
  EXPECT_NE(region_->tenants[index].tenant.generation, generation);
}

TEST_F(DevicePageTest, TenantsRunOut) {
  for (uint64_t id = 1; id <= abi::kMaxTenants; ++id) ASSERT_TRUE(page_.TakeTenant(id));
  EXPECT_FALSE(page_.TakeTenant(1000).has_value());
  page_.FreeTenant(5);
  EXPECT_EQ(page_.TakeTenant(1000), 5u);
}

TEST_F(DevicePageTest, ALineThatSaysTheSameIsLeftAlone) {
  const uint32_t index = *page_.TakeTenant(7);
  abi::TenantLine line{};
  line.bound_ns = 300;
  page_.WriteTenant(index, line);
  const uint32_t sequence = region_->tenants[index].tenant.sequence;
  page_.WriteTenant(index, line);
  EXPECT_EQ(region_->tenants[index].tenant.sequence, sequence);
  line.bound_ns = 301;
  page_.WriteTenant(index, line);
  EXPECT_EQ(region_->tenants[index].tenant.sequence, sequence + 2);
  EXPECT_EQ(region_->tenants[index].tenant.sequence % 2, 0u);
}

TEST_F(DevicePageTest, SessionsComeAndGo) {
  const uint64_t before = page_.generation();
  const uint32_t a = *page_.ReserveSession(std::nullopt);
  EXPECT_EQ(page_.generation(), before) << "a reserved session is nobody's business";
  EXPECT_EQ(region_->sessions[a].generation % 2, 0u);
  page_.EnterSession(a, 3, TenantClass::kRealtime, true);
  EXPECT_EQ(region_->sessions[a].generation % 2, 1u);
  EXPECT_EQ(region_->sessions[a].tenant, 3u);
  EXPECT_EQ(region_->state.realtime_sessions, 1u);
  EXPECT_EQ(region_->state.besteffort_sessions, 0u);
  EXPECT_EQ(region_->state.session_high_water, a + 1);
  EXPECT_GT(page_.generation(), before);

  const uint32_t b = *page_.ReserveSession(std::nullopt);
  page_.EnterSession(b, 4, TenantClass::kBestEffort, false);
  EXPECT_EQ(region_->state.besteffort_sessions, 1u);
  EXPECT_EQ(page_.live_sessions(), 2u);

  const uint32_t lived = region_->sessions[a].generation;
  page_.LeaveSession(a);
  EXPECT_EQ(region_->sessions[a].generation, lived + 1);
  EXPECT_EQ(region_->state.realtime_sessions, 0u);
  EXPECT_EQ(page_.live_sessions(), 1u);
  EXPECT_EQ(*page_.ReserveSession(std::nullopt), a) << "the lowest free one";
}

TEST_F(DevicePageTest, TheRightToHoldIsOnlyGivenByTheScheduler) {
  const uint32_t a = *page_.ReserveSession(std::nullopt);
  page_.EnterSession(a, 0, TenantClass::kRealtime, true);
  page_.SetMayHold(a, false);
  EXPECT_EQ(region_->sessions[a].flags & abi::kSessionMayHold, 0u);
  EXPECT_EQ(region_->state.realtime_sessions, 0u);
  const uint64_t generation = page_.generation();
  page_.SetMayHold(a, false);
  EXPECT_EQ(page_.generation(), generation);
  page_.SetMayHold(a, true);
  EXPECT_EQ(region_->state.realtime_sessions, 1u);
}

TEST_F(DevicePageTest, AWishedEntryIsGivenIfFree) {
  EXPECT_EQ(page_.ReserveSession(17), 17u);
  EXPECT_NE(page_.ReserveSession(17), 17u);
  EXPECT_NE(page_.ReserveSession(abi::kMaxSessions + 5), abi::kMaxSessions + 5);
}

TEST_F(DevicePageTest, SessionsRunOut) {
  for (uint32_t i = 0; i < abi::kMaxSessions; ++i) ASSERT_TRUE(page_.ReserveSession(std::nullopt));
  EXPECT_FALSE(page_.ReserveSession(std::nullopt).has_value());
  EXPECT_FALSE(page_.ReserveSession(4).has_value());
  page_.LeaveSession(100);
  EXPECT_EQ(page_.ReserveSession(std::nullopt), 100u);
}

}  // namespace
}  // namespace rubato::core
