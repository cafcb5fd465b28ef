#include "scheduler/policies/think_time.h"

#include <gtest/gtest.h>

#include "tests/unit/scheduler/policies/arrivals.h"

namespace rubato::policies {
namespace {

using testing::Dice;

constexpr Nanos kPeriod = 20 * kMillisecond;

TEST(ThinkTimeTest, ZeroUntilSomethingIsKnown) {
  ThinkTime think;
  EXPECT_EQ(think.ValueNs(kPeriod, Constants{}), 0);
  EXPECT_EQ(think.ValueNs(0, Constants{}), 0);
}

TEST(ThinkTimeTest, GapsInsideJobsAreCovered) {
  ThinkTime think;
  Dice dice(1);
  for (int job = 0; job < 20; ++job) {
    think.OnGap(50 * kMicrosecond + dice.Below(30 * kMicrosecond), GapPlace::kInside);
    think.OnGap(18 * kMillisecond, GapPlace::kBetween);
  }
  EXPECT_GE(think.ValueNs(kPeriod, Constants{}), 80 * kMicrosecond);
  EXPECT_LE(think.ValueNs(kPeriod, Constants{}), 110 * kMicrosecond);
}

TEST(ThinkTimeTest, JobsWithoutGapsNeedNone) {
  ThinkTime think;
  for (int job = 0; job < 100; ++job) think.OnGap(100 * kMicrosecond, GapPlace::kBetween);
  EXPECT_EQ(think.ValueNs(kPeriod, Constants{}), 0) << "short, but each is the end of a job";
}

TEST(ThinkTimeTest, RareSplitsAreNotWorthIt) {
  ThinkTime think;
  for (int job = 0; job < 60; ++job) think.OnGap(18 * kMillisecond, GapPlace::kBetween);
  think.OnGap(50 * kMicrosecond, GapPlace::kInside);
  EXPECT_EQ(think.ValueNs(kPeriod, Constants{}), 0);
}

TEST(ThinkTimeTest, OneLongGapAmongManyIsNotCovered) {
  ThinkTime think;
  for (int job = 0; job < 30; ++job) {
    think.OnGap(job == 12 ? 900 * kMicrosecond : 20 * kMicrosecond, GapPlace::kInside);
    think.OnGap(18 * kMillisecond, GapPlace::kBetween);
  }
  EXPECT_LE(think.ValueNs(kPeriod, Constants{}), 30 * kMicrosecond);
}

TEST(ThinkTimeTest, WhatWasLongAgoIsForgotten) {
  ThinkTime think;
  for (int i = 0; i < 200; ++i) think.OnGap(700 * kMicrosecond, GapPlace::kInside);
  for (int job = 0; job < 32; ++job) {
    think.OnGap(15 * kMicrosecond, GapPlace::kInside);
    think.OnGap(18 * kMillisecond, GapPlace::kBetween);
  }
  EXPECT_EQ(think.ValueNs(kPeriod, Constants{}), 25 * kMicrosecond);
}

TEST(ThinkTimeTest, NeverLongerThanItsLimits) {
  ThinkTime think;
  for (int job = 0; job < 50; ++job) think.OnGap(950 * kMicrosecond, GapPlace::kInside);
  EXPECT_EQ(think.ValueNs(8 * kMillisecond, Constants{}), kMillisecond);
  EXPECT_EQ(think.ValueNs(4 * kMillisecond, Constants{}), 0) << "what cannot be covered is not";
}

TEST(ThinkTimeTest, BlindAClosedLoopHasNone) {
  ThinkTime think;
  Dice dice(2);
  for (int job = 0; job < 100; ++job)
    think.OnGap(20 * kMicrosecond + dice.Below(60 * kMicrosecond), GapPlace::kUnknown);
  EXPECT_EQ(think.ValueNs(0, Constants{}), 0);
}

TEST(ThinkTimeTest, BlindTwoKindsOfGapsAreToldApart) {
  ThinkTime think;
  for (int job = 0; job < 100; ++job) {
    think.OnGap(30 * kMicrosecond, GapPlace::kUnknown);
    think.OnGap(5 * kMillisecond, GapPlace::kUnknown);
  }
  EXPECT_EQ(think.ValueNs(0, Constants{}), 40 * kMicrosecond);
}

TEST(ThinkTimeTest, BlindPoissonGapsCostLittle) {
  ThinkTime think;
  Dice dice(3);
  for (int job = 0; job < 1000; ++job) {
    Nanos gap_ns = 100 * kMicrosecond;
    while (dice.Below(10) != 0) gap_ns += kMillisecond / 2;
    think.OnGap(gap_ns, GapPlace::kUnknown);
    EXPECT_LE(think.ValueNs(0, Constants{}), Constants{}.blind_think_limit_ns);
  }
}

}  // namespace
}  // namespace rubato::policies
