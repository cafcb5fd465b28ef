#include "scheduler/policies/hold_limit.h"

#include <gtest/gtest.h>

namespace rubato::policies {
namespace {

constexpr Nanos kPoll = 20 * kMillisecond;

// Advances by `for_ns` with jobs open for `permille` of the time.
void Use(HoldLimit* limit, Nanos for_ns, Nanos permille, Nanos* now_ns, Nanos* open_ns) {
  const Nanos end_ns = *now_ns + for_ns;
  while (*now_ns < end_ns) {
    *now_ns += kPoll;
    *open_ns += kPoll * permille / 1000;
    limit->Update(*open_ns, *now_ns);
  }
}

TEST(HoldLimitTest, OrdinaryUseKeepsTheRight) {
  HoldLimit limit(10 * kMillisecond, Constants{});
  Nanos now_ns = 1000 * kSecond;
  Nanos open_ns = 0;
  Use(&limit, 60 * kSecond, 900, &now_ns, &open_ns);
  EXPECT_TRUE(limit.may_hold());
  EXPECT_EQ(limit.revocations(), 0u);
}

TEST(HoldLimitTest, BeingOpenAllTheTimeLosesIt) {
  HoldLimit limit(10 * kMillisecond, Constants{});
  Nanos now_ns = 1000 * kSecond;
  Nanos open_ns = 0;
  Use(&limit, 3 * kSecond, 1000, &now_ns, &open_ns);
  EXPECT_FALSE(limit.may_hold());
  Use(&limit, 60 * kSecond, 1000, &now_ns, &open_ns);
  EXPECT_FALSE(limit.may_hold());
  EXPECT_EQ(limit.revocations(), 1u);
}

TEST(HoldLimitTest, AQuietWindowGivesItBack) {
  HoldLimit limit(10 * kMillisecond, Constants{});
  Nanos now_ns = 1000 * kSecond;
  Nanos open_ns = 0;
  Use(&limit, 3 * kSecond, 1000, &now_ns, &open_ns);
  ASSERT_FALSE(limit.may_hold());
  Use(&limit, 6 * kSecond, 900, &now_ns, &open_ns);
  EXPECT_FALSE(limit.may_hold()) << "nine tenths is not quiet";
  Use(&limit, 6 * kSecond, 300, &now_ns, &open_ns);
  EXPECT_TRUE(limit.may_hold());
  EXPECT_EQ(limit.revocations(), 1u);
}

TEST(HoldLimitTest, WithoutADeclarationThereIsNothingToExceed) {
  HoldLimit limit(0, Constants{});
  Nanos now_ns = 1000 * kSecond;
  Nanos open_ns = 0;
  Use(&limit, 60 * kSecond, 1000, &now_ns, &open_ns);
  EXPECT_TRUE(limit.may_hold());
}

TEST(HoldLimitTest, OneLongJobOfASlowTenantIsNoHabit) {
  HoldLimit limit(kSecond, Constants{});
  Nanos now_ns = 1000 * kSecond;
  Nanos open_ns = 0;
  Use(&limit, kSecond, 0, &now_ns, &open_ns);
  Use(&limit, 3 * kSecond, 1000, &now_ns, &open_ns);
  Use(&limit, 10 * kSecond, 500, &now_ns, &open_ns);
  EXPECT_TRUE(limit.may_hold());
}

}  // namespace
}  // namespace rubato::policies
