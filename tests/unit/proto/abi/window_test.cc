#include "proto/abi/window.h"

#include <gtest/gtest.h>

namespace rubato::abi {
namespace {

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kPhase = 1'000'000 * kMs;
constexpr uint64_t kPeriod = 10 * kMs;

// A tenant whose last job answered the release at kPhase and took 1 ms.
RealtimeView View() {
  RealtimeView view{};
  view.tenant.max_hold_ns = 50 * kMs;
  view.tenant.bound_ns = 300'000;
  view.release.flags = kReleaseValid;
  view.release.phase_ns = kPhase;
  view.release.period_ns = kPeriod;
  view.release.early_ns = 100'000;
  view.release.late_ns = 500'000;
  view.release.margin_ns = 400'000;
  view.release.valid_until_ns = kPhase + 1000 * kPeriod;
  view.job.state = static_cast<uint32_t>(JobState::kIdle);
  view.job.first_op_ns = kPhase;
  view.job.last_end_ns = kPhase + kMs;
  view.words_reached = true;
  return view;
}

TEST(WindowTest, OpenAfterTheJobUntilTheMarginBeforeTheNext) {
  const Window window = WindowOf(View(), kPhase + 2 * kMs);
  EXPECT_EQ(window.state, WindowState::kOpen);
  EXPECT_FALSE(window.bounded);
  EXPECT_EQ(window.until_ns, kPhase + kPeriod - 500'000);
  EXPECT_EQ(window.from_ns, kPhase + kMs);
}

TEST(WindowTest, ClosedWhileAJobIsOpen) {
  RealtimeView view = View();
  view.job.state = static_cast<uint32_t>(JobState::kOpen);
  const Window window = WindowOf(view, kPhase + kMs / 2);
  EXPECT_EQ(window.state, WindowState::kJob);
  EXPECT_EQ(window.retry_ns, kPhase + 50 * kMs);
}

TEST(WindowTest, ADrainingJobEndsWithItsWords) {
  RealtimeView view = View();
  view.job.state = static_cast<uint32_t>(JobState::kDraining);
  view.words_reached = false;
  EXPECT_EQ(WindowOf(view, kPhase + kMs / 2).state, WindowState::kJob);
  view.words_reached = true;
  EXPECT_EQ(WindowOf(view, kPhase + kMs / 2).state, WindowState::kOpen);
  view.tenant.think_ns = 1000;
  EXPECT_EQ(WindowOf(view, kPhase + kMs / 2).state, WindowState::kJob)
      << "where jobs have pauses the host has the last word";
}

TEST(WindowTest, ADrainingJobThatMayBeQueuedBehindIsOpen) {
  RealtimeView view = View();
  view.job.state = static_cast<uint32_t>(JobState::kDraining);
  view.words_reached = false;
  view.tenant.flags = kTenantQueueBehind;
  const Window window = WindowOf(view, kPhase + kMs / 2);
  EXPECT_EQ(window.state, WindowState::kEnding);
  EXPECT_EQ(window.until_ns, WindowOf(View(), kPhase + 2 * kMs).until_ns);
  view.job.state = static_cast<uint32_t>(JobState::kOpen);
  EXPECT_EQ(WindowOf(view, kPhase + kMs / 2).state, WindowState::kJob);
  // Nothing says when the next job comes, so nothing may be queued that it might meet.
  view.job.state = static_cast<uint32_t>(JobState::kDraining);
  view.release.flags = 0;
  EXPECT_EQ(WindowOf(view, kPhase + kMs / 2).state, WindowState::kJob);
}

TEST(WindowTest, AnIdleJobWhoseWordsAreNotReachedStillRuns) {
  RealtimeView view = View();
  view.words_reached = false;
  EXPECT_EQ(WindowOf(view, kPhase + 2 * kMs).state, WindowState::kJob);
}

TEST(WindowTest, TheThinkTimeKeepsAJobOpen) {
  RealtimeView view = View();
  view.tenant.think_ns = 200'000;
  EXPECT_EQ(WindowOf(view, kPhase + kMs + 199'999).state, WindowState::kJob);
  EXPECT_EQ(WindowOf(view, kPhase + kMs + 200'000).state, WindowState::kOpen);
}

TEST(WindowTest, AReleaseThatIsDueClosesUntilItIsAnsweredOrTooLate) {
  RealtimeView view = View();
  const uint64_t next = kPhase + kPeriod;
  EXPECT_EQ(WindowOf(view, next - 500'001).state, WindowState::kOpen);
  const Window due = WindowOf(view, next - 500'000);
  EXPECT_EQ(due.state, WindowState::kRelease);
  EXPECT_EQ(due.retry_ns, next + 500'000);
  EXPECT_EQ(WindowOf(view, next + 499'999).state, WindowState::kRelease);
  EXPECT_EQ(WindowOf(view, next + 500'000).state, WindowState::kOpen) << "missed";
  // Answered, a little early, and over already.
  view.job.first_op_ns = next - 50'000;
  view.job.last_end_ns = next + 100'000;
  const Window after = WindowOf(view, next + 200'000);
  EXPECT_EQ(after.state, WindowState::kOpen);
  EXPECT_EQ(after.until_ns, next + kPeriod - 500'000);
}

TEST(WindowTest, ASiblingAnswersForTheTenant) {
  RealtimeView view = View();
  const uint64_t next = kPhase + kPeriod;
  EXPECT_EQ(WindowOf(view, next + 200'000).state, WindowState::kRelease);
  view.siblings_first_op_ns = next + 10'000;
  EXPECT_EQ(WindowOf(view, next + 200'000).state, WindowState::kOpen);
  view.siblings_first_op_ns = ~uint64_t{0};
  EXPECT_EQ(WindowOf(view, next + 200'000).state, WindowState::kRelease) << "it cannot be true";
}

TEST(WindowTest, WithoutAModelTheBoundHolds) {
  RealtimeView view = View();
  view.release.flags = 0;
  Window window = WindowOf(view, kPhase + 2 * kMs);
  EXPECT_EQ(window.state, WindowState::kOpen);
  EXPECT_TRUE(window.bounded);
  EXPECT_EQ(window.until_ns, kNever);
  view = View();
  window = WindowOf(view, view.release.valid_until_ns);
  EXPECT_TRUE(window.bounded) << "out of date";
}

TEST(WindowTest, AJobHoldsOnlySoLong) {
  RealtimeView view = View();
  view.job.state = static_cast<uint32_t>(JobState::kOpen);
  EXPECT_EQ(WindowOf(view, kPhase + 50 * kMs - 1).state, WindowState::kJob);
  const Window window = WindowOf(view, kPhase + 50 * kMs);
  EXPECT_EQ(window.state, WindowState::kHoldIgnored);
  EXPECT_GT(window.until_ns, kPhase + 50 * kMs);
}

TEST(WindowTest, TimesThatCannotBeTrueHoldNobody) {
  RealtimeView view = View();
  view.job.state = static_cast<uint32_t>(JobState::kOpen);
  view.job.first_op_ns = ~uint64_t{0};
  EXPECT_EQ(WindowOf(view, kPhase + 2 * kMs).state, WindowState::kHoldIgnored);
  view = View();
  view.job.last_end_ns = ~uint64_t{0};
  view.tenant.think_ns = kMs;
  EXPECT_EQ(WindowOf(view, kPhase + 2 * kMs).state, WindowState::kOpen);
  view = View();
  view.tenant.max_hold_ns = 0;
  view.job.state = static_cast<uint32_t>(JobState::kOpen);
  EXPECT_NE(WindowOf(view, kPhase + 2 * kMs).state, WindowState::kJob) << "it never holds";
}

TEST(WindowTest, AJobThatBeganAfterTheReaderLookedAtItsClockHolds) {
  // The reader lost its core between its clock and the slot.
  RealtimeView view = View();
  const uint64_t now_ns = kPhase + 2 * kMs;
  view.job.state = static_cast<uint32_t>(JobState::kOpen);
  view.job.first_op_ns = now_ns + 3 * kMs;
  EXPECT_EQ(WindowOf(view, now_ns).state, WindowState::kJob);
  view.job.first_op_ns = now_ns + view.tenant.max_hold_ns + 1;
  EXPECT_EQ(WindowOf(view, now_ns).state, WindowState::kHoldIgnored);
  // The same of one that ended.
  view = View();
  view.tenant.think_ns = kMs;
  view.job.last_end_ns = now_ns + 3 * kMs;
  EXPECT_EQ(WindowOf(view, now_ns).state, WindowState::kJob);
}

TEST(WindowTest, ModelsThatCannotBeTrueAreNotUsed) {
  const auto usable = [](auto spoil) {
    ReleaseLine line = View().release;
    spoil(&line);
    return ReleaseUsable(line, kPhase);
  };
  EXPECT_TRUE(usable([](ReleaseLine*) {}));
  EXPECT_FALSE(usable([](ReleaseLine* l) { l->period_ns = 0; }));
  EXPECT_FALSE(usable([](ReleaseLine* l) { l->period_ns = ~uint64_t{0}; }));
  EXPECT_FALSE(usable([](ReleaseLine* l) { l->phase_ns = ~uint64_t{0}; }));
  EXPECT_FALSE(usable([](ReleaseLine* l) { l->early_ns = l->period_ns; }));
  EXPECT_FALSE(usable([](ReleaseLine* l) { l->late_ns = l->period_ns; }));
  EXPECT_FALSE(usable([](ReleaseLine* l) { l->margin_ns = l->period_ns; }));
}

TEST(WindowTest, ReleasesExtendInBothDirections) {
  const ReleaseLine line = View().release;
  EXPECT_EQ(ReleaseAtOrBefore(line, kPhase), kPhase);
  EXPECT_EQ(ReleaseAtOrBefore(line, kPhase + kPeriod - 1), kPhase);
  EXPECT_EQ(ReleaseAtOrBefore(line, kPhase + 7 * kPeriod), kPhase + 7 * kPeriod);
  EXPECT_EQ(ReleaseAtOrBefore(line, kPhase - 1), kPhase - kPeriod);
  EXPECT_EQ(ReleaseAtOrBefore(line, kPhase - kPeriod), kPhase - kPeriod);
  EXPECT_EQ(ReleaseAtOrBefore(line, 0), 0u);
}

TEST(WindowTest, AnyBytesGiveAnAnswer) {
  uint64_t state = 88172645463325252ull;
  for (int i = 0; i < 200'000; ++i) {
    RealtimeView view;
    auto* bytes = reinterpret_cast<unsigned char*>(&view);
    for (size_t at = 0; at < offsetof(RealtimeView, words_reached); ++at) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      bytes[at] = static_cast<unsigned char>(state);
    }
    view.words_reached = (state & 1) != 0;
    view.siblings_first_op_ns = state;
    const Window window = WindowOf(view, kPhase);
    ASSERT_LE(static_cast<unsigned>(window.state), 3u);
  }
}

}  // namespace
}  // namespace rubato::abi
