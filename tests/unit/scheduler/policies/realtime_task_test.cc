#include "scheduler/policies/realtime_task.h"

#include <gtest/gtest.h>

#include "proto/abi/window.h"
#include "tests/unit/scheduler/policies/arrivals.h"

namespace rubato::policies {
namespace {

using testing::kStart;

constexpr Nanos kPeriod = 10 * kMillisecond;

core::TenantSpec Spec(Nanos period_ns, Nanos deadline_ns = 0) {
  core::TenantSpec spec;
  spec.name = "camera";
  spec.tenant_class = core::TenantClass::kRealtime;
  spec.period_ns = period_ns;
  spec.deadline_ns = deadline_ns;
  return spec;
}

// One poll with these jobs of one session.
void Poll(RealtimeTask* task, uint64_t session, std::vector<core::JobPiece> pieces, Nanos now_ns,
          Nanos open_since_ns = 0) {
  core::SlotReading reading;
  reading.jobs = std::move(pieces);
  reading.job_open = open_since_ns != 0;
  reading.job_first_op_ns = open_since_ns;
  task->OnReading(session, reading, now_ns);
  task->Update(now_ns);
}

TEST(RealtimeTaskTest, JobsBecomeAPromise) {
  RealtimeTask task(Spec(kPeriod), core::Mode::kTimeslice, Constants{});
  Nanos now_ns = kStart;
  for (int i = 0; i < 20; ++i) {
    now_ns += kPeriod;
    Poll(&task, 1, {{now_ns, now_ns + kMillisecond, 9, false}}, now_ns + 2 * kMillisecond);
  }
  const abi::TenantLine tenant = task.tenant_line();
  EXPECT_EQ(tenant.tenant_class, static_cast<uint32_t>(abi::TenantClass::kRealtime));
  EXPECT_EQ(tenant.deadline_ns, static_cast<uint64_t>(kPeriod));
  EXPECT_EQ(tenant.flags, abi::kTenantTouch | abi::kTenantQueueBehind);
  EXPECT_EQ(tenant.think_ns, 0u);
  EXPECT_EQ(task.space_line().job_ns, static_cast<uint64_t>(kMillisecond));
  EXPECT_EQ(task.ledger().totals().jobs, 20u);
  EXPECT_EQ(task.ledger().totals().deadline_misses, 0u);

  // What a best-effort session makes of it: open after the job, until the margin before the next.
  abi::RealtimeView view{tenant, task.release_line(), {}, true, 0};
  view.job.first_op_ns = static_cast<uint64_t>(now_ns);
  view.job.last_end_ns = static_cast<uint64_t>(now_ns + kMillisecond);
  const abi::Window window = abi::WindowOf(view, static_cast<uint64_t>(now_ns + 2 * kMillisecond));
  EXPECT_EQ(window.state, abi::WindowState::kOpen);
  EXPECT_FALSE(window.bounded);
  EXPECT_EQ(window.until_ns, static_cast<uint64_t>(now_ns + kPeriod) - view.release.early_ns -
                                 view.release.margin_ns);
}

TEST(RealtimeTaskTest, PiecesOfAJobAreOneJobOnceTheThinkTimeIsKnown) {
  RealtimeTask task(Spec(kPeriod), core::Mode::kTimeslice, Constants{});
  Nanos now_ns = kStart;
  uint64_t jobs_before = 0;
  for (int i = 0; i < 100; ++i) {
    now_ns += kPeriod;
    const Nanos middle_ns = now_ns + kMillisecond;
    const Nanos think_ns = static_cast<Nanos>(task.tenant_line().think_ns);
    const Nanos gap_ns = 60 * kMicrosecond;
    Poll(&task, 1,
         {{now_ns, middle_ns, 5, false},
          {middle_ns + gap_ns, middle_ns + gap_ns + kMillisecond, 5, gap_ns < think_ns}},
         now_ns + 5 * kMillisecond);
    if (i == 49) jobs_before = task.ledger().totals().jobs;
  }
  EXPECT_GE(task.tenant_line().think_ns, 60'000u);
  EXPECT_LE(task.tenant_line().think_ns, 80'000u);
  EXPECT_EQ(task.ledger().totals().jobs - jobs_before, 50u);
  EXPECT_EQ(task.space_line().job_ns, static_cast<uint64_t>(2 * kMillisecond + 60'000));
  EXPECT_EQ(task.prediction().kind, ReleaseKind::kLocked);
}

TEST(RealtimeTaskTest, AWarmUpLeavesNoTrace) {
  RealtimeTask task(Spec(kPeriod), core::Mode::kTimeslice, Constants{});
  testing::Dice dice(6);
  Nanos now_ns = kStart;
  // Eager inferences and captures: 200 pieces with gaps of 0.2 to 3 ms, some of them very long.
  for (int i = 0; i < 200; ++i) {
    now_ns += 200 * kMicrosecond + dice.Below(2'800 * kMicrosecond);
    const Nanos end_ns = now_ns + kMillisecond + (i % 50 == 0 ? 460 * kMillisecond : 0);
    Poll(&task, 1, {{now_ns, end_ns, 5, false}}, end_ns);
    now_ns = end_ns;
  }
  const uint64_t jobs_before = task.ledger().totals().jobs;
  const uint64_t misses_before = task.ledger().totals().deadline_misses;
  // Then a job every 10 ms, and after every second one a short kernel 15 us later.
  for (int i = 0; i < 100; ++i) {
    now_ns += kPeriod;
    const Nanos end_ns = now_ns + 830 * kMicrosecond;
    std::vector<core::JobPiece> pieces = {{now_ns, end_ns, 5, false}};
    if (i % 2 == 0)
      pieces.push_back({end_ns + 15 * kMicrosecond, end_ns + 50 * kMicrosecond, 1,
                        static_cast<Nanos>(task.tenant_line().think_ns) > 15 * kMicrosecond});
    Poll(&task, 1, pieces, now_ns + 5 * kMillisecond);
  }
  EXPECT_GE(task.tenant_line().think_ns, 15'000u);
  EXPECT_LE(task.tenant_line().think_ns, 60'000u);
  EXPECT_EQ(task.prediction().kind, ReleaseKind::kLocked);
  EXPECT_LE(task.ledger().totals().deadline_misses, misses_before);
  EXPECT_LE(task.ledger().ResponseQuantile(1000), kMillisecond);
  EXPECT_NEAR(static_cast<double>(task.ledger().totals().jobs - jobs_before), 100.0, 5.0);
}

TEST(RealtimeTaskTest, ManyPiecesPerJobAreLearntFromNothing) {
  RealtimeTask task(Spec(kPeriod), core::Mode::kTimeslice, Constants{});
  Nanos now_ns = kStart;
  uint64_t jobs_before = 0;
  for (int i = 0; i < 120; ++i) {
    now_ns += kPeriod;
    std::vector<core::JobPiece> pieces;
    Nanos at_ns = now_ns;
    for (int piece = 0; piece < 6; ++piece) {
      const bool continued =
          piece > 0 && static_cast<Nanos>(task.tenant_line().think_ns) > 40 * kMicrosecond;
      pieces.push_back({at_ns, at_ns + 200 * kMicrosecond, 3, continued});
      at_ns += 240 * kMicrosecond;
    }
    Poll(&task, 1, pieces, now_ns + 5 * kMillisecond);
    if (i == 59) jobs_before = task.ledger().totals().jobs;
  }
  EXPECT_EQ(task.prediction().kind, ReleaseKind::kLocked);
  EXPECT_GE(task.tenant_line().think_ns, 40'000u);
  EXPECT_LE(task.tenant_line().think_ns, 60'000u);
  EXPECT_EQ(task.ledger().totals().jobs - jobs_before, 60u);
  EXPECT_EQ(task.relocks(), 0u);
}

TEST(RealtimeTaskTest, ATenantThatNeverKeepsItsPeriodIsJudgedAsAperiodic) {
  RealtimeTask task(Spec(kPeriod), core::Mode::kTimeslice, Constants{});
  testing::Dice dice(8);
  Nanos now_ns = kStart;
  for (int i = 0; i < 300; ++i) {
    now_ns += 3 * kMillisecond + dice.Below(50 * kMillisecond);
    Poll(&task, 1, {{now_ns, now_ns + 2 * kMillisecond, 5, false}}, now_ns + 3 * kMillisecond);
  }
  // Chance may look like a grid for a few jobs.
  EXPECT_GE(task.ledger().totals().jobs, 290u);
  EXPECT_GT(task.ledger().totals().responses, 100u);
}

TEST(RealtimeTaskTest, MissesCountFromTheRelease) {
  RealtimeTask task(Spec(kPeriod, 3 * kMillisecond), core::Mode::kTimeslice, Constants{});
  Nanos release_ns = kStart;
  for (int i = 0; i < 30; ++i) {
    release_ns += kPeriod;
    Poll(&task, 1, {{release_ns, release_ns + kMillisecond, 1, false}},
         release_ns + 2 * kMillisecond);
  }
  ASSERT_EQ(task.ledger().totals().deadline_misses, 0u);
  // Begins 2.5 ms late and takes 1 ms: 3.5 ms after its release.
  release_ns += kPeriod;
  const Nanos late_ns = release_ns + 2'500 * kMicrosecond;
  Poll(&task, 1, {{late_ns, late_ns + kMillisecond, 1, false}}, late_ns + 2 * kMillisecond);
  EXPECT_EQ(task.ledger().totals().deadline_misses, 1u);
  EXPECT_NEAR(static_cast<double>(task.ledger().ResponseQuantile(1000)), 3.5e6, 1e5);
}

TEST(RealtimeTaskTest, ABacklogIsLateForItsOwnReleases) {
  RealtimeTask task(Spec(kPeriod), core::Mode::kTimeslice, Constants{});
  Nanos release_ns = kStart;
  for (int i = 0; i < 30; ++i) {
    release_ns += kPeriod;
    Poll(&task, 1, {{release_ns, release_ns + kMillisecond, 1, false}},
         release_ns + 2 * kMillisecond);
  }
  // One job takes 25 ms; the two that were released meanwhile follow at once, 1 ms each.
  release_ns += kPeriod;
  const Nanos end_ns = release_ns + 25 * kMillisecond;
  Poll(&task, 1,
       {{release_ns, end_ns, 1, false},
        {end_ns + 20'000, end_ns + kMillisecond, 1, false},
        {end_ns + kMillisecond + 20'000, end_ns + 2 * kMillisecond, 1, false}},
       end_ns + 3 * kMillisecond);
  // 25 ms, 26 - 10 = 16 ms, 27 - 20 = 7 ms.
  EXPECT_EQ(task.ledger().totals().deadline_misses, 2u);
  EXPECT_NEAR(static_cast<double>(task.ledger().ResponseQuantile(1000)), 25e6, 2e5);
}

TEST(RealtimeTaskTest, AnAperiodicTenantIsBoundedAndItsResponsesCountFromTheFirstOp) {
  RealtimeTask task(Spec(0), core::Mode::kHybrid, Constants{});
  Nanos now_ns = kStart;
  testing::Dice dice(4);
  for (int i = 0; i < 100; ++i) {
    now_ns += kMillisecond + dice.Below(30 * kMillisecond);
    Poll(&task, 1, {{now_ns, now_ns + kMillisecond, 1, false}}, now_ns + kMillisecond);
  }
  EXPECT_EQ(task.release_line().flags, 0u);
  EXPECT_EQ(task.tenant_line().bound_ns, static_cast<uint64_t>(Constants{}.bound_ns));
  EXPECT_EQ(task.ledger().ResponseQuantile(1000), kMillisecond);
}

TEST(RealtimeTaskTest, TheModelFollowsOneProcessOfSeveral) {
  RealtimeTask task(Spec(kPeriod), core::Mode::kTimeslice, Constants{});
  Nanos now_ns = kStart;
  for (int i = 0; i < 50; ++i) {
    now_ns += kPeriod;
    Poll(&task, 1, {{now_ns, now_ns + kMillisecond, 1, false}}, now_ns + 2 * kMillisecond);
    const Nanos other_ns = now_ns + 4 * kMillisecond + (i % 7) * 300 * kMicrosecond;
    Poll(&task, 2, {{other_ns, other_ns + 200 * kMicrosecond, 1, false}}, now_ns + kPeriod - 1);
  }
  ASSERT_EQ(task.prediction().kind, ReleaseKind::kLocked);
  EXPECT_TRUE(testing::Covers(task.prediction(), now_ns + kPeriod));
  EXPECT_EQ(task.relocks(), 0u);
  EXPECT_EQ(task.ledger().totals().jobs, 100u);
  // The leader ends; the other takes over.
  task.OnSessionEnd(1);
  for (int i = 0; i < 20; ++i) {
    now_ns += kPeriod;
    const Nanos other_ns = now_ns + 4 * kMillisecond;
    Poll(&task, 2, {{other_ns, other_ns + 200 * kMicrosecond, 1, false}}, now_ns + kPeriod - 1);
  }
  ASSERT_EQ(task.prediction().kind, ReleaseKind::kLocked);
  EXPECT_TRUE(testing::Covers(task.prediction(), now_ns + kPeriod + 4 * kMillisecond));
}

TEST(RealtimeTaskTest, AJobWithoutEndLosesTheRightToHold) {
  RealtimeTask task(Spec(kPeriod), core::Mode::kTimeslice, Constants{});
  for (Nanos now_ns = kStart; now_ns < kStart + 5 * kSecond; now_ns += 20 * kMillisecond)
    Poll(&task, 1, {}, now_ns, kStart);
  EXPECT_FALSE(task.may_hold());
  EXPECT_EQ(task.hold_revocations(), 1u);
}

TEST(RealtimeTaskTest, ANewPeriodStartsTheModelAnew) {
  RealtimeTask task(Spec(kPeriod), core::Mode::kTimeslice, Constants{});
  Nanos now_ns = kStart;
  for (int i = 0; i < 10; ++i) {
    now_ns += kPeriod;
    Poll(&task, 1, {{now_ns, now_ns + kMillisecond, 1, false}}, now_ns + 2 * kMillisecond);
  }
  ASSERT_EQ(task.prediction().kind, ReleaseKind::kLocked);
  task.Respecify(Spec(20 * kMillisecond));
  EXPECT_EQ(task.prediction().kind, ReleaseKind::kLearning);
  EXPECT_EQ(task.ledger().totals().jobs, 10u) << "what was counted stays";
}

}  // namespace
}  // namespace rubato::policies
