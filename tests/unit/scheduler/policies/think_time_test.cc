#include "scheduler/policies/think_time.h"

#include <gtest/gtest.h>

#include "tests/unit/scheduler/policies/arrivals.h"

namespace rubato::policies {
namespace {

using testing::Dice;

constexpr Nanos kPeriod = 20 * kMillisecond;

TEST(ThinkTimeTest, ZeroUntilSomethingIsKnown) {
  ThinkTime think(kPeriod);
  EXPECT_EQ(think.ValueNs(Constants{}), 0);
}

TEST(ThinkTimeTest, GapsInsideJobsAreCovered) {
  ThinkTime think(kPeriod);
  Dice dice(1);
  for (int job = 0; job < 20; ++job) {
    think.OnGap({50 * kMicrosecond + dice.Below(30 * kMicrosecond), kMillisecond});
    think.OnGap({18 * kMillisecond, 19 * kMillisecond});
  }
  EXPECT_GE(think.ValueNs(Constants{}), 80 * kMicrosecond);
  EXPECT_LE(think.ValueNs(Constants{}), 200 * kMicrosecond);
}

TEST(ThinkTimeTest, JobsWithoutGapsNeedNone) {
  ThinkTime think(kPeriod);
  for (int job = 0; job < 100; ++job) think.OnGap({15 * kMillisecond, kPeriod});
  EXPECT_EQ(think.ValueNs(Constants{}), 0);
}

TEST(ThinkTimeTest, ABusyTenantsShortPausesAreNotInsideJobs) {
  // 19.9 ms of 20: the pauses are short, but each is the end of a job.
  ThinkTime think(kPeriod);
  for (int job = 0; job < 100; ++job) think.OnGap({100 * kMicrosecond, kPeriod});
  EXPECT_EQ(think.ValueNs(Constants{}), 0);
}

TEST(ThinkTimeTest, AClosedLoopWithoutAPeriodHasNone) {
  ThinkTime think(0);
  Dice dice(2);
  for (int job = 0; job < 100; ++job)
    think.OnGap({20 * kMicrosecond + dice.Below(60 * kMicrosecond), 5 * kMillisecond});
  EXPECT_EQ(think.ValueNs(Constants{}), 0);
}

TEST(ThinkTimeTest, PoissonGapsHaveNone) {
  ThinkTime think(0);
  Dice dice(3);
  for (int job = 0; job < 1000; ++job) {
    Nanos gap_ns = 100 * kMicrosecond;
    while (dice.Below(10) != 0) gap_ns += kMillisecond / 2;
    think.OnGap({gap_ns, gap_ns + kMillisecond});
    EXPECT_LE(think.ValueNs(Constants{}), 150 * kMicrosecond);
  }
}

TEST(ThinkTimeTest, NeverLongerThanItsLimits) {
  ThinkTime think(8 * kMillisecond);
  for (int job = 0; job < 50; ++job) {
    think.OnGap({900 * kMicrosecond, 2 * kMillisecond});
    think.OnGap({7 * kMillisecond, 8 * kMillisecond});
  }
  EXPECT_EQ(think.ValueNs(Constants{}), kMillisecond);
}

TEST(ThinkTimeTest, OneOddGapIsNoHabit) {
  ThinkTime think(kPeriod);
  for (int job = 0; job < 60; ++job) think.OnGap({18 * kMillisecond, kPeriod});
  think.OnGap({50 * kMicrosecond, kMillisecond});
  EXPECT_EQ(think.ValueNs(Constants{}), 0);
}

}  // namespace
}  // namespace rubato::policies
