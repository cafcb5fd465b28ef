#include "scheduler/policies/release_model.h"

#include <gtest/gtest.h>

#include "tests/unit/scheduler/policies/arrivals.h"

namespace rubato::policies {
namespace {

using testing::Covers;
using testing::Dice;
using testing::ErrorAt;
using testing::kStart;
using testing::Loop;

constexpr Nanos kPeriod = 10 * kMillisecond;

TEST(ReleaseModelTest, NothingIsPredictedBeforeFourJobs) {
  ReleaseModel model(kPeriod, Constants{});
  EXPECT_EQ(model.prediction().kind, ReleaseKind::kLearning);
  Loop loop(&model, kPeriod, 0, kMillisecond);
  loop.Run(3);
  EXPECT_EQ(model.prediction().kind, ReleaseKind::kLearning);
  loop.Run(1);
  EXPECT_EQ(model.prediction().kind, ReleaseKind::kLocked);
  EXPECT_TRUE(model.prediction().period_declared);
}

TEST(ReleaseModelTest, AnExactTimerIsPredictedExactly) {
  ReleaseModel model(kPeriod, Constants{});
  Loop loop(&model, kPeriod, 0, kMillisecond);
  loop.Run(100);
  EXPECT_EQ(model.prediction().period_ns, kPeriod);
  EXPECT_EQ(ErrorAt(model.prediction(), loop.release_ns() + kPeriod), 0);
  EXPECT_EQ(model.prediction().early_ns, Constants{}.jitter_guard_ns);
}

TEST(ReleaseModelTest, JitterIsCoveredByTheSpread) {
  for (const Nanos jitter_ns : {50 * kMicrosecond, 300 * kMicrosecond, kMillisecond}) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      ReleaseModel model(kPeriod, Constants{});
      Loop loop(&model, kPeriod, jitter_ns, kMillisecond, seed);
      loop.Run(30);
      int outside = 0;
      for (int i = 0; i < 500; ++i) {
        const ReleasePrediction before = model.prediction();
        ASSERT_EQ(before.kind, ReleaseKind::kLocked);
        loop.Run(1);
        if (!Covers(before, loop.last_first_op_ns())) ++outside;
      }
      EXPECT_LE(outside, 5) << "jitter " << jitter_ns << " seed " << seed;
      // The spread is of the jitter's size, or it would cost windows for nothing.
      EXPECT_LE(model.prediction().early_ns, jitter_ns + 2 * Constants{}.jitter_guard_ns);
      EXPECT_EQ(model.relocks(), 0u);
    }
  }
}

TEST(ReleaseModelTest, DriftIsFollowed) {
  // A loop that sleeps for its period after its work: 60 us too slow each time.
  const Nanos actual_ns = kPeriod + 60 * kMicrosecond;
  ReleaseModel model(kPeriod, Constants{});
  Loop loop(&model, actual_ns, 20 * kMicrosecond, kMillisecond);
  loop.Run(20);
  for (int i = 0; i < 500; ++i) {
    const ReleasePrediction before = model.prediction();
    ASSERT_EQ(before.kind, ReleaseKind::kLocked) << i;
    loop.Run(1);
    ASSERT_TRUE(Covers(before, loop.last_first_op_ns())) << i;
  }
  EXPECT_NEAR(static_cast<double>(model.prediction().period_ns), static_cast<double>(actual_ns),
              3000.0);
}

TEST(ReleaseModelTest, APeriodThatIsALittleWrongIsCorrected) {
  ReleaseModel model(kPeriod, Constants{});
  Loop loop(&model, kPeriod + 900 * kMicrosecond, 30 * kMicrosecond, kMillisecond);
  loop.Run(60);
  ASSERT_EQ(model.prediction().kind, ReleaseKind::kLocked);
  EXPECT_NEAR(static_cast<double>(model.prediction().period_ns),
              static_cast<double>(kPeriod + 900 * kMicrosecond), 5000.0);
}

TEST(ReleaseModelTest, APeriodThatIsQuiteWrongIsLearnt) {
  ReleaseModel model(kPeriod, Constants{});
  const Nanos actual_ns = 16'600 * kMicrosecond;
  Loop loop(&model, actual_ns, 30 * kMicrosecond, kMillisecond);
  loop.Run(60);
  ASSERT_EQ(model.prediction().kind, ReleaseKind::kLocked);
  EXPECT_FALSE(model.prediction().period_declared);
  EXPECT_NEAR(static_cast<double>(model.prediction().period_ns), static_cast<double>(actual_ns),
              5000.0);
  const ReleasePrediction before = model.prediction();
  loop.Run(1);
  EXPECT_TRUE(Covers(before, loop.last_first_op_ns()));
}

TEST(ReleaseModelTest, MissedReleasesLeaveTheGridAlone) {
  ReleaseModel model(kPeriod, Constants{});
  Loop loop(&model, kPeriod, 50 * kMicrosecond, kMillisecond);
  Dice dice(7);
  loop.Run(20);
  for (int i = 0; i < 300; ++i) {
    loop.Skip(static_cast<int>(dice.Below(4)));
    const ReleasePrediction before = model.prediction();
    ASSERT_EQ(before.kind, ReleaseKind::kLocked);
    loop.Run(1);
    ASSERT_TRUE(Covers(before, loop.last_first_op_ns())) << i;
  }
  EXPECT_EQ(model.relocks(), 0u);
}

TEST(ReleaseModelTest, ALateJobMovesNothing) {
  ReleaseModel model(kPeriod, Constants{});
  Loop loop(&model, kPeriod, 20 * kMicrosecond, kMillisecond);
  loop.Run(48);
  const ReleasePrediction before = model.prediction();
  const Nanos late_ns = loop.release_ns() + kPeriod + 2 * kMillisecond;
  model.OnJob(late_ns, late_ns + kMillisecond);
  model.Update(late_ns + kMillisecond);
  loop.Skip(1);
  loop.Run(5);
  EXPECT_LE(std::abs(ErrorAt(model.prediction(), loop.release_ns() + kPeriod)), 30 * kMicrosecond);
  EXPECT_LE(model.prediction().early_ns, before.early_ns + 20 * kMicrosecond);
  EXPECT_EQ(model.relocks(), 0u);
}

TEST(ReleaseModelTest, AJumpOfThePhaseIsFoundWithinThreeJobs) {
  for (const Nanos shift_ns : {300 * kMicrosecond, kMillisecond, 3 * kMillisecond, 5 * kMillisecond,
                               7 * kMillisecond, -kMillisecond}) {
    ReleaseModel model(kPeriod, Constants{});
    Loop loop(&model, kPeriod, 40 * kMicrosecond, kMillisecond);
    loop.Run(100);
    loop.Skip(1);
    loop.Shift(shift_ns);
    loop.Run(3);
    for (int i = 0; i < 50; ++i) {
      const ReleasePrediction before = model.prediction();
      ASSERT_EQ(before.kind, ReleaseKind::kLocked) << shift_ns;
      loop.Run(1);
      ASSERT_TRUE(Covers(before, loop.last_first_op_ns())) << shift_ns << " after " << i;
    }
    EXPECT_LE(model.relocks(), 1u) << shift_ns;
  }
}

TEST(ReleaseModelTest, AChangeOfThePeriodIsFollowed) {
  ReleaseModel model(0, Constants{});
  Loop loop(&model, kPeriod, 40 * kMicrosecond, kMillisecond);
  loop.Run(50);
  ASSERT_EQ(model.prediction().kind, ReleaseKind::kLocked);
  loop.SetPeriod(33 * kMillisecond);
  loop.Run(60);
  ASSERT_EQ(model.prediction().kind, ReleaseKind::kLocked);
  EXPECT_NEAR(static_cast<double>(model.prediction().period_ns), 33e6, 5000.0);
}

TEST(ReleaseModelTest, ARegularTenantIsLearntWithoutADeclaration) {
  ReleaseModel model(0, Constants{});
  EXPECT_EQ(model.prediction().kind, ReleaseKind::kAperiodic);
  Loop loop(&model, kPeriod, 60 * kMicrosecond, kMillisecond);
  loop.Run(16);
  EXPECT_EQ(model.prediction().kind, ReleaseKind::kAperiodic);
  loop.Run(4);
  ASSERT_EQ(model.prediction().kind, ReleaseKind::kLocked);
  EXPECT_FALSE(model.prediction().period_declared);
  EXPECT_NEAR(static_cast<double>(model.prediction().period_ns), static_cast<double>(kPeriod),
              10'000.0);
}

TEST(ReleaseModelTest, PoissonRequestsStayAperiodic) {
  ReleaseModel model(0, Constants{});
  Dice dice(3);
  Nanos at_ns = kStart;
  for (int i = 0; i < 2000; ++i) {
    // Geometric gaps of 1 ms steps: memoryless, with a mean of 20 ms.
    do {
      at_ns += kMillisecond;
    } while (dice.Below(20) != 0);
    model.OnJob(at_ns, at_ns + kMillisecond / 2);
    model.Update(at_ns + kMillisecond);
    ASSERT_EQ(model.prediction().kind, ReleaseKind::kAperiodic) << i;
  }
}

TEST(ReleaseModelTest, AClosedLoopIsNotPeriodic) {
  ReleaseModel model(0, Constants{});
  Nanos at_ns = kStart;
  for (int i = 0; i < 200; ++i) {
    model.OnJob(at_ns, at_ns + 5 * kMillisecond);
    at_ns += 5 * kMillisecond + 30 * kMicrosecond;
    model.Update(at_ns);
    ASSERT_EQ(model.prediction().kind, ReleaseKind::kAperiodic) << i;
  }
}

TEST(ReleaseModelTest, ATenantThatRestsIsNotWaitedFor) {
  ReleaseModel model(kPeriod, Constants{});
  Loop loop(&model, kPeriod, 20 * kMicrosecond, kMillisecond);
  loop.Run(50);
  ASSERT_EQ(model.prediction().kind, ReleaseKind::kLocked);
  loop.Rest(kSecond);
  EXPECT_EQ(model.prediction().kind, ReleaseKind::kLearning);
  // On the same timer, one job is enough.
  loop.Run(1);
  EXPECT_EQ(model.prediction().kind, ReleaseKind::kLocked);
  EXPECT_TRUE(Covers(model.prediction(), loop.release_ns() + kPeriod));
  // On another, three.
  loop.Rest(kSecond);
  loop.Shift(4 * kMillisecond);
  loop.Run(3);
  EXPECT_EQ(model.prediction().kind, ReleaseKind::kLocked);
  EXPECT_TRUE(Covers(model.prediction(), loop.release_ns() + kPeriod));
}

TEST(ReleaseModelTest, ValidityIsRenewedByJobsAndEndsWithoutThem) {
  ReleaseModel model(kPeriod, Constants{});
  Loop loop(&model, kPeriod, 0, kMillisecond);
  loop.Run(10);
  const Nanos first_ns = model.prediction().valid_until_ns;
  EXPECT_GE(first_ns, loop.release_ns() + Constants{}.validity_floor_ns);
  loop.Run(10);
  EXPECT_EQ(model.prediction().valid_until_ns, first_ns + 10 * kPeriod);
}

TEST(ReleaseModelTest, ReleaseOfIsNeverLaterThanTheJob) {
  ReleaseModel model(kPeriod, Constants{});
  Loop loop(&model, kPeriod, 200 * kMicrosecond, kMillisecond);
  EXPECT_EQ(model.ReleaseOf(kStart), kStart);
  loop.Run(50);
  Dice dice(9);
  for (int i = 0; i < 1000; ++i) {
    const Nanos at_ns = loop.release_ns() + dice.Below(kSecond);
    const Nanos release_ns = model.ReleaseOf(at_ns);
    EXPECT_LE(release_ns, at_ns);
    EXPECT_GT(release_ns, at_ns - kPeriod - model.prediction().early_ns);
  }
}

TEST(ReleaseModelTest, NonsenseDoesNoHarm) {
  // Times that go back, repeat, and jump by years.
  for (const Nanos declared_ns : {Nanos{0}, kPeriod, 100 * kMicrosecond, 60 * kSecond}) {
    ReleaseModel model(declared_ns, Constants{});
    Dice dice(11);
    Nanos now_ns = kStart;
    for (int i = 0; i < 3000; ++i) {
      Nanos at_ns = now_ns - dice.Below(kSecond);
      if (dice.Below(10) == 0) at_ns = 1 + dice.Below(now_ns);
      model.OnJob(at_ns, at_ns + dice.Below(now_ns - at_ns + 1));
      now_ns += dice.Below(3) == 0 ? dice.Below(kSecond) : dice.Below(100 * kMicrosecond);
      if (dice.Below(500) == 0) now_ns += 1000 * 3600 * kSecond;
      model.Update(now_ns);
      const ReleasePrediction& prediction = model.prediction();
      if (prediction.kind != ReleaseKind::kLocked) continue;
      ASSERT_GT(prediction.period_ns, 0);
      ASSERT_GE(prediction.early_ns, 0);
      ASSERT_LT(prediction.early_ns, prediction.period_ns);
      ASSERT_GE(prediction.late_ns, 0);
      ASSERT_LT(prediction.late_ns, prediction.period_ns);
      ASSERT_LE(model.ReleaseOf(now_ns), now_ns);
    }
  }
}

TEST(ReleaseModelTest, TheSameJobsGiveTheSameModel) {
  ReleaseModel one(0, Constants{});
  ReleaseModel two(0, Constants{});
  Loop loop_one(&one, kPeriod, kMillisecond, kMillisecond, 5);
  Loop loop_two(&two, kPeriod, kMillisecond, kMillisecond, 5);
  for (int i = 0; i < 200; ++i) {
    loop_one.Run(1);
    loop_two.Run(1);
    ASSERT_EQ(one.prediction().phase_ns, two.prediction().phase_ns);
    ASSERT_EQ(one.prediction().period_ns, two.prediction().period_ns);
    ASSERT_EQ(one.prediction().early_ns, two.prediction().early_ns);
  }
}

}  // namespace
}  // namespace rubato::policies
