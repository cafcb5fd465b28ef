#include "deviceplugin/allocation.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/unit/deviceplugin/gpus.h"

namespace rubato::deviceplugin {
namespace {

using Ids = std::vector<std::string>;

Rejection Refused(const Ids& ids, const std::vector<Gpu>& gpus) {
  const auto judged = JudgeAllocation(ids, gpus, 10);
  EXPECT_TRUE(std::holds_alternative<Rejection>(judged));
  if (!std::holds_alternative<Rejection>(judged)) return {RejectReason::kEnding, "granted"};
  const Rejection& rejection = std::get<Rejection>(judged);
  EXPECT_FALSE(rejection.message.empty());
  EXPECT_LT(rejection.message.size(), 400u);
  EXPECT_EQ(rejection.message.find('\n'), std::string::npos);
  return rejection;
}

TEST(AllocationTest, GrantsSlotsOfOneGpu) {
  const auto judged = JudgeAllocation({"GPU-1::7", "GPU-1::2", "GPU-1::3"}, MakeGpus(2), 10);
  ASSERT_TRUE(std::holds_alternative<Grant>(judged));
  const Grant& grant = std::get<Grant>(judged);
  EXPECT_EQ(grant.slots, (Ids{"GPU-1::2", "GPU-1::3", "GPU-1::7"}));
  ASSERT_EQ(grant.gpus.size(), 1u);
  EXPECT_EQ(grant.gpus[0].uuid, "GPU-1");
}

TEST(AllocationTest, GrantsWholeGpusByIndex) {
  const auto judged = JudgeAllocation(Slots(2, 0, 9) + Slots(0, 0, 9), MakeGpus(3), 10);
  ASSERT_TRUE(std::holds_alternative<Grant>(judged));
  const Grant& grant = std::get<Grant>(judged);
  EXPECT_EQ(grant.slots, Slots(0, 0, 9) + Slots(2, 0, 9));
  ASSERT_EQ(grant.gpus.size(), 2u);
  EXPECT_EQ(grant.gpus[0].uuid, "GPU-0");
  EXPECT_EQ(grant.gpus[1].uuid, "GPU-2");
}

TEST(AllocationTest, SlotsByNumberNotByText) {
  const auto judged = JudgeAllocation({"GPU-0::10", "GPU-0::9"}, MakeGpus(1), 20);
  ASSERT_TRUE(std::holds_alternative<Grant>(judged));
  EXPECT_EQ(std::get<Grant>(judged).slots, (Ids{"GPU-0::9", "GPU-0::10"}));
}

TEST(AllocationTest, RefusesAcrossGpusThatAreNotWhole) {
  const auto gpus = MakeGpus(3);
  EXPECT_EQ(Refused({"GPU-0::1", "GPU-1::1"}, gpus).reason, RejectReason::kAcrossGpus);
  EXPECT_EQ(Refused(Slots(0, 0, 9) + Slots(1, 0, 8), gpus).reason, RejectReason::kAcrossGpus);
  EXPECT_EQ(Refused(Slots(0, 0, 9) + Slots(1, 0, 0), gpus).reason, RejectReason::kAcrossGpus);
  // The message says what to do.
  EXPECT_NE(Refused({"GPU-0::1", "GPU-1::1"}, gpus).message.find("at most 10"), std::string::npos);
}

TEST(AllocationTest, RefusesOddRequests) {
  const auto gpus = MakeGpus(2);
  EXPECT_EQ(Refused({}, gpus).reason, RejectReason::kEmptyRequest);
  EXPECT_EQ(Refused({"GPU-0::1", "GPU-0::1"}, gpus).reason, RejectReason::kDuplicateSlot);
  EXPECT_EQ(Refused({"GPU-0"}, gpus).reason, RejectReason::kMalformedSlot);
  EXPECT_EQ(Refused({""}, gpus).reason, RejectReason::kMalformedSlot);
  EXPECT_EQ(Refused({std::string("\x1b[31m\n\0x", 8)}, gpus).reason, RejectReason::kMalformedSlot);
  EXPECT_EQ(Refused({std::string(1'000'000, 'x')}, gpus).reason, RejectReason::kMalformedSlot);
  EXPECT_EQ(Refused({"GPU-9::1"}, gpus).reason, RejectReason::kUnknownGpu);
  EXPECT_EQ(Refused({"GPU-0::10"}, gpus).reason, RejectReason::kUnknownSlot);
  EXPECT_EQ(Refused(Ids(kMostSlotsPerRequest + 1, "GPU-0::1"), gpus).reason,
            RejectReason::kTooManySlots);
}

TEST(AllocationTest, RefusesGpusThatMayNotBeHandedOut) {
  auto gpus = MakeGpus(3);
  gpus[0].healthy = false;
  gpus[0].unhealthy_reason = "xid 79";
  gpus[1].withheld = true;
  gpus[1].withheld_reason = "MIG is on";
  EXPECT_EQ(Refused({"GPU-0::1"}, gpus).reason, RejectReason::kUnhealthyGpu);
  EXPECT_NE(Refused({"GPU-0::1"}, gpus).message.find("xid 79"), std::string::npos);
  EXPECT_EQ(Refused({"GPU-1::1"}, gpus).reason, RejectReason::kWithheldGpu);
  EXPECT_NE(Refused({"GPU-1::1"}, gpus).message.find("MIG is on"), std::string::npos);
  EXPECT_EQ(Refused(Slots(2, 0, 9) + Slots(0, 0, 9), gpus).reason, RejectReason::kUnhealthyGpu);
}

TEST(AllocationTest, RefusesSeveralVendors) {
  auto gpus = MakeGpus(3);
  gpus[1].vendor = Vendor::kAmd;
  gpus[2].vendor = Vendor::kSoftware;
  EXPECT_EQ(Refused(Slots(0, 0, 9) + Slots(1, 0, 9), gpus).reason, RejectReason::kMixedVendors);
  EXPECT_EQ(Refused(Slots(0, 0, 9) + Slots(2, 0, 9), gpus).reason, RejectReason::kMixedVendors);
}

TEST(AllocationTest, ReasonsHaveWordsOfTheirOwn) {
  std::set<std::string> names;
  for (const RejectReason reason : kAllRejectReasons) names.insert(RejectReasonName(reason));
  EXPECT_EQ(names.size(), std::size(kAllRejectReasons));
  EXPECT_FALSE(names.contains("unknown"));
}

}  // namespace
}  // namespace rubato::deviceplugin
