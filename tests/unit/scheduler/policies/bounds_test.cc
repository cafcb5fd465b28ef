#include "scheduler/policies/bounds.h"

#include <gtest/gtest.h>

#include "proto/abi/window.h"

namespace rubato::policies {
namespace {

core::TenantSpec RealtimeSpec() {
  core::TenantSpec spec;
  spec.name = "camera";
  spec.tenant_class = core::TenantClass::kRealtime;
  spec.period_ns = 10 * kMillisecond;
  return spec;
}

ReleasePrediction Locked(Nanos period_ns) {
  ReleasePrediction prediction;
  prediction.kind = ReleaseKind::kLocked;
  prediction.period_ns = period_ns;
  prediction.phase_ns = 1000 * kSecond;
  prediction.early_ns = 30 * kMicrosecond;
  prediction.late_ns = 700 * kMicrosecond;
  prediction.valid_until_ns = 1002 * kSecond;
  return prediction;
}

TEST(BoundsTest, OnlyTenantsWithAContextOfTheirOwnTouch) {
  EXPECT_TRUE(PreTouches(RealtimeSpec(), core::Mode::kTimeslice));
  EXPECT_TRUE(PreTouches(RealtimeSpec(), core::Mode::kHybrid));
  EXPECT_FALSE(PreTouches(RealtimeSpec(), core::Mode::kMps));
  core::TenantSpec besteffort;
  besteffort.tenant_class = core::TenantClass::kBestEffort;
  EXPECT_FALSE(PreTouches(besteffort, core::Mode::kTimeslice));
}

TEST(BoundsTest, WorkMayBeQueuedBehindShortJobsThatNothingFollows) {
  const Constants constants;
  core::TenantSpec spec;
  spec.tenant_class = core::TenantClass::kRealtime;
  const auto behind = [&](const JobKnowledge& jobs, core::Mode mode) {
    const abi::TenantLine line = TenantLineFor(spec, mode, jobs, 10 * kMillisecond, constants);
    return (line.flags & abi::kTenantQueueBehind) != 0;
  };
  JobKnowledge jobs;
  EXPECT_FALSE(behind(jobs, core::Mode::kTimeslice)) << "of unknown length";
  jobs.mret_ns = kMillisecond;
  EXPECT_TRUE(behind(jobs, core::Mode::kTimeslice));
  EXPECT_TRUE(behind(jobs, core::Mode::kHybrid));
  EXPECT_FALSE(behind(jobs, core::Mode::kMps)) << "there it would run beside the job";
  jobs.think_ns = 20 * kMicrosecond;
  EXPECT_FALSE(behind(jobs, core::Mode::kTimeslice)) << "the job may go on";
  jobs = {};
  jobs.mret_ns = 2 * kMillisecond;
  EXPECT_FALSE(behind(jobs, core::Mode::kTimeslice)) << "longer than its turn";
}

TEST(BoundsTest, HoldsAreLimited) {
  const Constants constants;
  EXPECT_EQ(MaxHoldNs({}, 0, constants), constants.hold_floor_ns);
  EXPECT_EQ(MaxHoldNs({}, 200 * kMillisecond, constants), 200 * kMillisecond);
  JobKnowledge jobs;
  jobs.mret_ns = 30 * kMillisecond;
  EXPECT_EQ(MaxHoldNs(jobs, 10 * kMillisecond, constants), 120 * kMillisecond);
  jobs.mret_ns = 30 * kSecond;
  EXPECT_EQ(MaxHoldNs(jobs, 10 * kMillisecond, constants), constants.hold_limit_ns);
}

TEST(BoundsTest, ATouchIsSubmittedIntoAnEmptyGpu) {
  const Constants constants;
  const abi::ReleaseLine line = ReleaseLineFor(Locked(10 * kMillisecond), true, constants);
  EXPECT_EQ(line.margin_ns, static_cast<uint64_t>(constants.margin_ns + constants.touch_lead_ns));
  EXPECT_EQ(line.touch_lead_ns, static_cast<uint64_t>(constants.touch_lead_ns + 30'000));
  // Work ends early + margin before the predicted release; the touch comes after that.
  EXPECT_LT(line.touch_lead_ns, line.early_ns + line.margin_ns);
  const abi::ReleaseLine without = ReleaseLineFor(Locked(10 * kMillisecond), false, constants);
  EXPECT_EQ(without.margin_ns, static_cast<uint64_t>(constants.margin_ns));
  EXPECT_EQ(without.touch_lead_ns, 0u);
}

TEST(BoundsTest, NothingIsSaidWithoutALock) {
  ReleasePrediction prediction = Locked(10 * kMillisecond);
  prediction.kind = ReleaseKind::kLearning;
  const abi::ReleaseLine line = ReleaseLineFor(prediction, true, Constants{});
  EXPECT_EQ(line.flags, 0u);
  EXPECT_FALSE(abi::ReleaseUsable(line, 1001 * kSecond));
}

TEST(BoundsTest, LinesAreUsableForAnyPeriodAndDilation) {
  for (const Nanos period_ns : {core::kShortestPeriodNs, kMillisecond, 10 * kMillisecond, kSecond,
                                core::kLongestPeriodNs}) {
    for (const uint32_t dilation : {1u, 20u, 1000u}) {
      ReleasePrediction prediction = Locked(period_ns);
      prediction.early_ns = period_ns / 4;
      prediction.late_ns = period_ns / 2;
      const abi::ReleaseLine line = ReleaseLineFor(prediction, true, Constants{}.Dilated(dilation));
      EXPECT_TRUE(abi::ReleaseUsable(line, 1001 * kSecond)) << period_ns << " x" << dilation;
      EXPECT_LT(line.touch_lead_ns, line.period_ns);
      // Somebody else has a part of the period.
      EXPECT_LT(line.margin_ns + line.early_ns, line.period_ns);
    }
  }
}

TEST(BoundsTest, BestEffortTenantsHaveNoBoundsOfTheirOwn) {
  core::TenantSpec spec;
  spec.tenant_class = core::TenantClass::kBestEffort;
  spec.limit_bytes = 20;
  spec.weight = 3;
  const abi::TenantLine line = TenantLineFor(spec, core::Mode::kHybrid, {}, 0, Constants{});
  EXPECT_EQ(line.tenant_class, static_cast<uint32_t>(abi::TenantClass::kBestEffort));
  EXPECT_EQ(line.limit_bytes, 20u);
  EXPECT_EQ(line.weight, 3u);
  EXPECT_EQ(line.max_hold_ns, 0u);
  EXPECT_EQ(line.flags, 0u);
}

TEST(BoundsTest, DilationScalesTheGpuAndNotTheHost) {
  const Constants plain;
  const Constants slow = plain.Dilated(20);
  EXPECT_EQ(slow.margin_ns, 20 * plain.margin_ns);
  EXPECT_EQ(slow.bound_ns, 20 * plain.bound_ns);
  EXPECT_EQ(slow.expire_floor_ns, 20 * plain.expire_floor_ns);
  EXPECT_EQ(slow.spin_ns, plain.spin_ns);
  EXPECT_EQ(slow.sleep_floor_ns, plain.sleep_floor_ns);
  EXPECT_EQ(slow.lease_ns, plain.lease_ns);
}

}  // namespace
}  // namespace rubato::policies
