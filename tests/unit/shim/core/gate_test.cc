// The gate: what neighbours allow, when an op goes, what hostile neighbours can do.

#include "shim/core/gate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "shim/core/sys.h"
#include "tests/unit/shim/core/neighbourhood.h"

namespace rubato::shim::testing {
namespace {

using abi::Counter;
using abi::JobState;
using abi::TenantClass;

constexpr uint64_t kMillisecond = 1'000'000;
constexpr Handle kStream = 0x5000;

GateView OpenView() {
  GateView view{};
  view.until_ns = abi::kNever;
  view.bound_ns = abi::kNever;
  return view;
}

TEST(DecideTest, GoesWhenNothingIsPredicted) {
  EXPECT_EQ(Decide(OpenView(), kMillisecond, 50 * kMillisecond, 0), GateAnswer::kGo);
}

TEST(DecideTest, MustFinishInsideTheWindow) {
  GateView view = OpenView();
  view.until_ns = 10 * kMillisecond;
  EXPECT_EQ(Decide(view, kMillisecond, 0, 9 * kMillisecond), GateAnswer::kGo);
  EXPECT_EQ(Decide(view, kMillisecond, 0, 9 * kMillisecond + 1), GateAnswer::kWaitWindow);
  EXPECT_EQ(Decide(view, kMillisecond, 1, 9 * kMillisecond), GateAnswer::kWaitQueue);
  view.others_ns = 1;
  EXPECT_EQ(Decide(view, kMillisecond, 0, 9 * kMillisecond), GateAnswer::kWaitQueue);
}

TEST(DecideTest, WhatIsLeftOfAJobAheadStandsInTheQueue) {
  GateView view = OpenView();
  view.until_ns = 10 * kMillisecond;
  view.ahead_ns = kMillisecond;
  EXPECT_EQ(Decide(view, kMillisecond, 0, 8 * kMillisecond), GateAnswer::kGo);
  EXPECT_EQ(Decide(view, kMillisecond, 1, 8 * kMillisecond), GateAnswer::kWaitQueue);
}

TEST(DecideTest, BoundedLetsOneOpThroughAlone) {
  GateView view = OpenView();
  view.bounded = true;
  view.bound_ns = 300'000;
  EXPECT_EQ(Decide(view, kMillisecond, 0, 0), GateAnswer::kGo);
  EXPECT_EQ(Decide(view, 100'000, 100'000, 0), GateAnswer::kGo);
  EXPECT_EQ(Decide(view, 100'000, 250'000, 0), GateAnswer::kWaitQueue);
}

TEST(DecideTest, ClosedMeansClosed) {
  GateView view = OpenView();
  view.closed = true;
  EXPECT_EQ(Decide(view, 1, 0, 0), GateAnswer::kWaitClosed);
}

class GateTest : public ::testing::Test {
 protected:
  void OpenJob(abi::SlotRegion* slot, uint64_t first_op_ns) {
    slot->job.first_op_ns = first_op_ns;
    abi::StoreRelease(slot->job.state, static_cast<uint32_t>(JobState::kOpen));
  }

  Neighbourhood world{TenantClass::kBestEffort};
};

TEST_F(GateTest, AnOpenJobCloses) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  const uint64_t now_ns = NowNs();
  EXPECT_FALSE(ReadNeighbours(world.session, now_ns).closed);
  OpenJob(peer, now_ns);
  EXPECT_TRUE(ReadNeighbours(world.session, now_ns + 1).closed);
}

TEST_F(GateTest, TheGpusWordOpens) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  const uint64_t now_ns = NowNs();
  peer->work.stream_high_water = 1;
  peer->streams[0].submitted = abi::MakeWord(3, 7);
  peer->gpu_words[0].completed = abi::MakeWord(3, 6);
  OpenJob(peer, now_ns);
  abi::StoreRelease(peer->job.state, static_cast<uint32_t>(JobState::kDraining));
  EXPECT_TRUE(ReadNeighbours(world.session, now_ns + 1).closed);
  peer->gpu_words[0].completed = abi::MakeWord(2, 7);  // Of an earlier stream of this line.
  EXPECT_TRUE(ReadNeighbours(world.session, now_ns + 1).closed);
  peer->gpu_words[0].completed = abi::MakeWord(3, 7);
  EXPECT_FALSE(ReadNeighbours(world.session, now_ns + 1).closed);
}

TEST_F(GateTest, UnpredictedNeighbourBoundsTheQueue) {
  world.AddPeer(1, TenantClass::kRealtime);
  const GateView view = ReadNeighbours(world.session, NowNs());
  EXPECT_TRUE(view.bounded);
  EXPECT_EQ(view.bound_ns, 300'000u);
  EXPECT_EQ(view.until_ns, abi::kNever);
}

TEST_F(GateTest, PredictedReleaseEndsTheWindow) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  const uint64_t now_ns = NowNs();
  abi::ReleaseLine release{};
  release.flags = abi::kReleaseValid;
  release.phase_ns = now_ns;
  release.period_ns = 10 * kMillisecond;
  release.margin_ns = 400'000;
  release.early_ns = 50'000;
  release.late_ns = 500'000;
  release.valid_until_ns = now_ns + 1000 * kMillisecond;
  world.SetRelease(1, release);
  peer->job.first_op_ns = now_ns;  // The release at `now` has been answered.
  peer->job.last_end_ns = now_ns + kMillisecond;
  const GateView view = ReadNeighbours(world.session, now_ns + 2 * kMillisecond);
  EXPECT_FALSE(view.closed);
  EXPECT_FALSE(view.bounded);
  EXPECT_EQ(view.until_ns, now_ns + 10 * kMillisecond - 450'000);
  // From the margin on, the release is awaited, and for `late_ns` after it.
  EXPECT_TRUE(ReadNeighbours(world.session, now_ns + 10 * kMillisecond - 440'000).closed);
  EXPECT_TRUE(ReadNeighbours(world.session, now_ns + 10 * kMillisecond + 400'000).closed);
  EXPECT_FALSE(ReadNeighbours(world.session, now_ns + 10 * kMillisecond + 500'000).closed);
}

TEST_F(GateTest, AJobThatEndsCanBeQueuedBehind) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  const uint64_t begin_ns = NowNs();
  abi::ReleaseLine release{};
  release.flags = abi::kReleaseValid;
  release.phase_ns = begin_ns;
  release.period_ns = 10 * kMillisecond;
  release.margin_ns = 400'000;
  release.valid_until_ns = abi::kNever;
  world.SetRelease(1, release);
  abi::SpaceLine space{};
  space.job_ns = 800'000;
  abi::WriteLine(world.page->tenants[1].space, space);
  world.SetTenant(1, [](abi::TenantLine* line) { line->flags = abi::kTenantQueueBehind; });
  // Its stream has a marker on its way.
  peer->work.stream_high_water = 1;
  peer->streams[0].submitted = abi::MakeWord(0, 1);
  OpenJob(peer, begin_ns);
  EXPECT_TRUE(ReadNeighbours(world.session, begin_ns + 100'000).closed) << "it is not ending yet";
  peer->job.state = static_cast<uint32_t>(JobState::kDraining);
  GateView view = ReadNeighbours(world.session, begin_ns + 100'000);
  EXPECT_FALSE(view.closed);
  EXPECT_EQ(view.ahead_ns, 700'000u);
  EXPECT_EQ(view.until_ns, begin_ns + 10 * kMillisecond - 400'000);
  EXPECT_EQ(ReadNeighbours(world.session, begin_ns + 900'000).ahead_ns, 100'000u) << "overdue";
  // Published work begins after the job.
  Launch(KernelOp(kStream));
  EXPECT_GE(world.session.slot->work.inflight_until_ns, begin_ns + 800'000 + 500'000);
  // Nobody has said that it is safe.
  world.SetTenant(1, [](abi::TenantLine* line) { line->flags = abi::kTenantTouch; });
  EXPECT_TRUE(ReadNeighbours(world.session, begin_ns + 100'000).closed);
}

TEST_F(GateTest, AJobIsAsLongAsPredictedFromItsReleaseOn) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  const uint64_t begin_ns = NowNs();
  abi::ReleaseLine release{};
  release.flags = abi::kReleaseValid;
  release.phase_ns = begin_ns;
  release.period_ns = 10 * kMillisecond;
  release.late_ns = 500'000;
  release.valid_until_ns = abi::kNever;
  world.SetRelease(1, release);
  abi::SpaceLine space{};
  space.job_ns = 850'000;
  abi::WriteLine(world.page->tenants[1].space, space);
  OpenJob(peer, begin_ns);
  EXPECT_EQ(ReadNeighbours(world.session, begin_ns + 100'000).retry_ns, begin_ns + 850'000);
  // A small op after the job, in the same period: it will not take another 850 us.
  OpenJob(peer, begin_ns + 930'000);
  const GateView view = ReadNeighbours(world.session, begin_ns + 950'000);
  EXPECT_TRUE(view.closed);
  EXPECT_LE(view.retry_ns, begin_ns + 950'000 + 50'000);
}

TEST_F(GateTest, WorkOfOthersCountsUntilTheirWordsAreReached) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kBestEffort);
  const uint64_t now_ns = NowNs();
  peer->work.inflight_until_ns = now_ns + 2 * kMillisecond;
  peer->work.stream_high_water = 1;
  peer->streams[0].submitted = abi::MakeWord(0, 1);
  EXPECT_EQ(ReadNeighbours(world.session, now_ns).others_ns, 2 * kMillisecond);
  peer->gpu_words[0].completed = abi::MakeWord(0, 1);
  EXPECT_EQ(ReadNeighbours(world.session, now_ns).others_ns, 0u);
}

TEST_F(GateTest, HostilePeersAreCapped) {
  abi::SlotRegion* liar = world.AddPeer(1, TenantClass::kBestEffort);
  liar->work.inflight_until_ns = ~uint64_t{0};
  liar->work.stream_high_water = ~uint32_t{0};  // Reads must stay inside the slot.
  liar->streams[abi::kMaxStreams - 1].submitted = abi::MakeWord(0, 1);
  abi::SlotRegion* holder = world.AddPeer(2, TenantClass::kRealtime);
  holder->work.stream_high_water = ~uint32_t{0};
  holder->job.state = 77;
  holder->job.first_op_ns = ~uint64_t{0};
  holder->job.last_end_ns = ~uint64_t{0};
  world.page->sessions[3].tenant = 9999;
  world.page->sessions[3].generation = 1;
  world.page->state.session_high_water = ~uint32_t{0};
  const GateView view = ReadNeighbours(world.session, NowNs());
  EXPECT_LE(view.others_ns, 50 * kMillisecond);
  EXPECT_FALSE(view.closed);
  // A job that claims to have begun in the future holds nobody.
  holder->job.state = static_cast<uint32_t>(JobState::kOpen);
  const GateView held = ReadNeighbours(world.session, NowNs());
  EXPECT_FALSE(held.closed);
  EXPECT_EQ(held.holds_ignored, 1u);
}

TEST_F(GateTest, AJobHoldsForItsLimitOnly) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  world.SetTenant(1, [](abi::TenantLine* line) { line->max_hold_ns = 50 * kMillisecond; });
  const uint64_t now_ns = NowNs();
  OpenJob(peer, now_ns);
  EXPECT_TRUE(ReadNeighbours(world.session, now_ns + 49 * kMillisecond).closed);
  EXPECT_FALSE(ReadNeighbours(world.session, now_ns + 50 * kMillisecond).closed);
}

TEST_F(GateTest, OnlyTheSchedulersBitHolds) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  OpenJob(peer, NowNs());
  world.page->sessions[1].flags = 0;
  EXPECT_FALSE(ReadNeighbours(world.session, NowNs()).closed);
}

TEST_F(GateTest, ADepartedPeerIsForgotten) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  OpenJob(peer, NowNs());
  world.page->sessions[1].generation = 2;  // Gone.
  EXPECT_FALSE(ReadNeighbours(world.session, NowNs()).closed);
  // Somebody else: the mapping is of the one before, so nothing is known but that it is there.
  world.page->sessions[1].generation = 3;
  const GateView view = ReadNeighbours(world.session, NowNs());
  EXPECT_FALSE(view.closed);
  EXPECT_TRUE(view.bounded);
  EXPECT_EQ(view.bound_ns, 300'000u);
}

TEST_F(GateTest, PoliciesAreReadAnewWhenTheyChange) {
  world.AddPeer(1, TenantClass::kRealtime);
  EXPECT_EQ(ReadNeighbours(world.session, NowNs()).bound_ns, 300'000u);
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = 700'000; });
  EXPECT_EQ(ReadNeighbours(world.session, NowNs()).bound_ns, 700'000u);
}

TEST_F(GateTest, ALostSchedulerLeavesAFixedBound) {
  world.AddPeer(1, TenantClass::kRealtime);
  g_state.lost = 1;
  const GateView view = ReadNeighbours(world.session, NowNs());
  g_state.lost = 0;
  EXPECT_TRUE(view.bounded);
  EXPECT_EQ(view.bound_ns, 2 * kMillisecond);
}

TEST_F(GateTest, AWriterThatDiedInTheMiddleLeavesABound) {
  world.AddPeer(1, TenantClass::kRealtime);
  world.page->tenants[1].release.sequence |= 1u;
  const GateView view = ReadNeighbours(world.session, NowNs());
  EXPECT_TRUE(view.bounded);
  EXPECT_EQ(view.bound_ns, 2 * kMillisecond);
}

TEST_F(GateTest, TheEarlierViewHoldsUntilItsLeaseEnds) {
  // The new scheduler's page knows no real-time tenant yet; the old one's does.
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  const uint64_t now_ns = NowNs();
  OpenJob(peer, now_ns);
  DeviceView* old_view = world.view;
  old_view->until_ns = now_ns + 2000 * kMillisecond;
  DeviceView* new_view = MapRegion<DeviceView>();
  new_view->page = MapRegion<abi::DeviceRegion>();
  new_view->profile = world.profile;
  world.session.previous = old_view;
  world.session.view = new_view;
  EXPECT_TRUE(ReadNeighbours(world.session, now_ns + 1).closed);
  EXPECT_FALSE(ReadNeighbours(world.session, now_ns + 2000 * kMillisecond).closed);
  world.session.view = old_view;
  world.session.previous = nullptr;
}

TEST_F(GateTest, AnOpWaitsForTheEndOfTheJob) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  OpenJob(peer, NowNs());
  std::atomic<bool> launched{false};
  std::thread program([&] {
    Launch(KernelOp(kStream));
    launched = true;
  });
  // The program's thread says in its slot that it waits.
  while (abi::LoadAcquire(world.session.slot->work.waiting) == 0) std::this_thread::yield();
  EXPECT_FALSE(launched);
  abi::StoreRelaxed(peer->job.last_end_ns, NowNs());
  abi::StoreRelease(peer->job.state, static_cast<uint32_t>(JobState::kIdle));
  program.join();
  EXPECT_EQ(world.Counted(Counter::kGateWaits), 1u);
  EXPECT_GT(world.Counted(Counter::kGateWaitNs), 0u);
  EXPECT_EQ(world.session.slot->work.waiting, 0u);
}

TEST_F(GateTest, AnOpThatNeverFitsGoesAfterItsTime) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  world.page->constants.expire_floor_ns = 2 * kMillisecond;
  const uint64_t now_ns = NowNs();
  abi::ReleaseLine release{};
  release.flags = abi::kReleaseValid;
  release.phase_ns = now_ns;
  release.period_ns = 20'000'000'000;  // The window is open for the whole test,
  release.valid_until_ns = abi::kNever;
  world.SetRelease(1, release);
  peer->job.first_op_ns = now_ns;
  world.page->constants.unknown_op_ns = 30'000'000'000;  // and the op is longer than it.
  world.page->constants.expire_factor = 0;
  Launch(KernelOp(kStream));
  EXPECT_EQ(world.Counted(Counter::kGateExpired), 1u);
}

TEST_F(GateTest, PublishesWhatIsInFlightBeforeTheCall) {
  world.AddPeer(1, TenantClass::kRealtime);
  OpToken token;
  const uint64_t before_ns = NowNs();
  BeforeOp(KernelOp(kStream), &token);
  EXPECT_GE(world.session.slot->work.inflight_until_ns, before_ns + 500'000);
  EXPECT_EQ(token.expected_ns, 500'000u);
  AfterOp(KernelOp(kStream), &token, true);
  EXPECT_EQ(world.Counted(Counter::kGateBusyNs), 500'000u);
}

TEST_F(GateTest, ARefusedOpIsTakenBack) {
  world.AddPeer(1, TenantClass::kRealtime);
  Launch(KernelOp(kStream), /*ok=*/false);
  EXPECT_EQ(OwnInflightNs(FakeDriver(), &world.session, NowNs()), 0u);
  EXPECT_EQ(world.Counted(Counter::kGateBusyNs), 0u);
}

TEST_F(GateTest, MarkersShrinkTheQueue) {
  world.AddPeer(1, TenantClass::kRealtime);
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = abi::kNever; });
  for (int i = 0; i < 4; ++i) Launch(KernelOp(kStream));
  // 500 us of unknown op each is more than marker_work_ns, and the queue is short: a marker behind
  // every op.
  ASSERT_EQ(FakeGpu::Get().PendingCount(), 4u);
  const uint64_t now_ns = NowNs();
  EXPECT_GT(OwnInflightNs(FakeDriver(), &world.session, now_ns), 1'500'000u);
  {
    FakeGpu& gpu = FakeGpu::Get();
    std::lock_guard lock(gpu.mutex);
    FakeGpu::Write(gpu.pending[2]);
  }
  EXPECT_EQ(OwnInflightNs(FakeDriver(), &world.session, now_ns), 500'000u);
  FakeGpu::Get().CompleteAll();
  EXPECT_EQ(OwnInflightNs(FakeDriver(), &world.session, now_ns), 0u);
}

TEST_F(GateTest, WorkBehindAnAwaitedMarkerIsOutstandingHoweverLateItIs) {
  world.AddPeer(1, TenantClass::kRealtime);
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = abi::kNever; });
  for (int i = 0; i < 4; ++i) Launch(KernelOp(kStream));
  ASSERT_EQ(FakeGpu::Get().PendingCount(), 4u);
  // By prediction next to nothing is left; but the first marker, 500 us into the queue, was not
  // reached, so the three ops behind it were not either.
  const uint64_t late_ns = world.session.slot->work.inflight_until_ns - 1000;
  EXPECT_EQ(OwnInflightNs(FakeDriver(), &world.session, late_ns), 1'500'000u);
  {
    FakeGpu& gpu = FakeGpu::Get();
    std::lock_guard lock(gpu.mutex);
    FakeGpu::Write(gpu.pending[1]);
  }
  EXPECT_EQ(OwnInflightNs(FakeDriver(), &world.session, late_ns), 500'000u);
  FakeGpu::Get().CompleteAll();
  EXPECT_EQ(OwnInflightNs(FakeDriver(), &world.session, late_ns), 0u);
}

TEST_F(GateTest, MarkersAreCloseTogetherNearTheEndOfAWindow) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  world.page->constants.unknown_op_ns = 1'000'000'000;  // So long that no time passes meanwhile.
  abi::ReleaseLine release{};
  release.flags = abi::kReleaseValid;
  release.period_ns = 100'000'000'000;
  // The window ends in the middle of op 64.
  release.phase_ns = NowNs() + 63'500'000'000;
  release.valid_until_ns = abi::kNever;
  world.SetRelease(1, release);
  peer->job.first_op_ns = NowNs() - 1'000'000'000;
  peer->job.last_end_ns = NowNs();
  std::vector<int> marked;
  for (int i = 0; i < 63; ++i) {
    const size_t before = FakeGpu::Get().PendingCount();
    Launch(KernelOp(kStream));
    if (FakeGpu::Get().PendingCount() != before) marked.push_back(i);
  }
  const auto within = [&](int first, int last) {
    return std::count_if(marked.begin(), marked.end(),
                         [&](int at) { return at >= first && at <= last; });
  };
  EXPECT_LE(within(0, 31), 8);
  EXPECT_EQ(within(56, 62), 7) << "each op counts there";
}

TEST_F(GateTest, ALongQueueHasFewMarkers) {
  world.AddPeer(1, TenantClass::kRealtime);
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = abi::kNever; });
  world.page->constants.unknown_op_ns = 1'000'000'000;  // So long that no time passes meanwhile.
  for (int i = 0; i < 64; ++i) Launch(KernelOp(kStream));
  const size_t markers = FakeGpu::Get().PendingCount();
  EXPECT_GE(markers, 8u);
  EXPECT_LE(markers, 32u);
}

TEST_F(GateTest, AThreadThatWaitsMarksItsOwnWorkFirst) {
  // The first op stays under both thresholds for a marker; the bound then stops the second.
  world.AddPeer(1, TenantClass::kRealtime);
  world.page->constants.marker_ops = 1000;
  world.page->constants.marker_work_ns = abi::kNever;
  world.page->constants.unknown_op_ns = 1'000'000'000'000;
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = 1'000'000'000'000; });
  Launch(KernelOp(kStream));
  ASSERT_EQ(FakeGpu::Get().PendingCount(), 0u);
  std::thread program([] { Launch(KernelOp(kStream)); });
  while (FakeGpu::Get().PendingCount() == 0) std::this_thread::yield();
  FakeGpu::Get().CompleteAll();
  program.join();
  EXPECT_EQ(world.Counted(Counter::kGateExpired), 0u);
  EXPECT_EQ(world.Counted(Counter::kGateWaits), 1u);
}

TEST_F(GateTest, AThreadThatWaitsForAJobAddsNoWorkOfItsOwnContext) {
  abi::SlotRegion* peer = world.AddPeer(1, TenantClass::kRealtime);
  world.page->constants.marker_ops = 1000;
  world.page->constants.marker_work_ns = abi::kNever;
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = abi::kNever; });
  Launch(KernelOp(kStream));
  OpenJob(peer, NowNs());
  std::thread program([] { Launch(KernelOp(kStream)); });
  while (abi::LoadAcquire(world.session.slot->work.waiting) == 0) std::this_thread::yield();
  abi::StoreRelease(peer->job.state, static_cast<uint32_t>(JobState::kIdle));
  program.join();
  EXPECT_EQ(world.Counted(Counter::kGateWaits), 1u);
  EXPECT_EQ(FakeGpu::Get().PendingCount(), 0u);
}

TEST_F(GateTest, OverdueWorkIsNotForgotten) {
  world.AddPeer(1, TenantClass::kRealtime);
  Launch(KernelOp(kStream));
  const uint64_t late_ns = world.session.slot->work.inflight_until_ns + kMillisecond;
  EXPECT_GT(OwnInflightNs(FakeDriver(), &world.session, late_ns), 0u);
}

TEST_F(GateTest, DurationsComeFromTheProfileTable) {
  world.AddPeer(1, TenantClass::kRealtime);
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = abi::kNever; });
  const Op op = KernelOp(kStream);
  const uint64_t base = abi::KernelKey(abi::HashName("gemm"), 1, 1, 1, 128, 1, 1, 0);
  abi::ProfileEntry& entry = world.profile->entries[abi::ProfileHome(base)];
  entry.duration_ns = 123'000;
  entry.max_ns = 150'000;
  entry.key = base;
  OpToken token;
  BeforeOp(op, &token);
  EXPECT_EQ(token.expected_ns, 123'000u);
  AfterOp(op, &token, true);
  EXPECT_EQ(world.Counted(Counter::kUnknownOps), 0u);
  BeforeOp(KernelOp(kStream, 0xf2), &token);
  EXPECT_EQ(token.expected_ns, 500'000u);
  AfterOp(op, &token, true);
  EXPECT_EQ(world.Counted(Counter::kUnknownOps), 1u);
}

TEST_F(GateTest, UnknownOpsAreMeasuredAndReported) {
  world.AddPeer(1, TenantClass::kRealtime);
  FakeGpu::Get().event_us = 42;
  Launch(KernelOp(kStream));
  AfterSync(SyncScope::kStream, kStream, false, true);
  abi::SlotRegion& slot = *world.session.slot;
  ASSERT_EQ(slot.heads.sample_head, 1u);
  EXPECT_EQ(slot.samples[0].duration_ns, 42'000u);
  EXPECT_EQ(slot.samples[0].base_key, abi::KernelKey(abi::HashName("gemm"), 1, 1, 1, 128, 1, 1, 0));
  EXPECT_EQ(slot.samples[0].flags & abi::kSampleDisturbed, 0u);
  ASSERT_EQ(slot.heads.name_head, 1u);
  EXPECT_STREQ(slot.names[0].name, "gemm");
}

TEST_F(GateTest, EveryOpOfALoopIsMeasuredInTime) {
  // A loop of two ops, whose number divides the sampling interval: each must come up.
  world.AddPeer(1, TenantClass::kRealtime);
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = abi::kNever; });
  FakeGpu::Get().at_once = true;
  world.page->constants.sample_every = 64;
  const uint64_t gemm = abi::KernelKey(abi::HashName("gemm"), 1, 1, 1, 128, 1, 1, 0);
  uint64_t measured[2] = {0, 0};
  uint64_t taken = 0;
  for (int i = 0; i < 8000; ++i) {
    Launch(KernelOp(kStream, i % 2 == 0 ? 0xf1 : 0xf2));
    CollectSamples(FakeDriver(), &world.session, kSamplePairs);
    for (; taken < world.session.slot->heads.sample_head; ++taken) {
      const abi::SampleRecord& record = world.session.slot->samples[taken % abi::kSampleRing];
      // What the scheduler makes of it.
      abi::ProfileEntry& entry = world.profile->entries[abi::ProfileHome(record.key)];
      entry.duration_ns = entry.max_ns = 1000;
      entry.sample_count++;
      entry.key = record.key;
      if (entry.sample_count > 5) measured[record.base_key == gemm ? 0 : 1]++;
    }
  }
  EXPECT_GE(measured[0], 10u);
  EXPECT_GE(measured[1], 10u);
  EXPECT_LE(measured[0] + measured[1], 400u) << "a sample, not everything";
}

TEST_F(GateTest, LongOpsAreMeasuredMoreOften) {
  StreamState stream{};
  world.page->constants.sample_every = 64;
  int long_ones = 0;
  int short_ones = 0;
  for (int i = 0; i < 6400; ++i) long_ones += SampleDue(&world.session, &stream, 1'600'000);
  for (int i = 0; i < 6400; ++i) short_ones += SampleDue(&world.session, &stream, 2'000);
  EXPECT_GT(short_ones, 50);
  EXPECT_LT(short_ones, 200);
  EXPECT_GT(long_ones, 5 * short_ones);
}

TEST_F(GateTest, AMeasurementBesideANeighbourIsFlagged) {
  world.AddPeer(1, TenantClass::kRealtime);
  abi::SlotRegion* other = world.AddPeer(2, TenantClass::kBestEffort);
  other->work.inflight_until_ns = NowNs() + 3'600'000'000'000;
  other->work.stream_high_water = 1;
  other->streams[0].submitted = abi::MakeWord(0, 1);
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = abi::kNever; });
  Launch(KernelOp(kStream));
  AfterSync(SyncScope::kStream, kStream, false, true);
  ASSERT_EQ(world.session.slot->heads.sample_head, 1u);
  EXPECT_NE(world.session.slot->samples[0].flags & abi::kSampleDisturbed, 0u);
}

TEST_F(GateTest, ManyThreadsOnTheirOwnStreams) {
  world.AddPeer(1, TenantClass::kRealtime);
  world.SetTenant(1, [](abi::TenantLine* line) { line->bound_ns = abi::kNever; });
  FakeGpu::Get().at_once = true;
  constexpr int kThreads = 8;
  constexpr int kOps = 500;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([t] {
      const Handle stream = 0x8000u + 0x100u * static_cast<unsigned>(t % 4);
      for (int i = 0; i < kOps; ++i) {
        Launch(KernelOp(stream));
        if (i % 50 == 49) {
          BeforeSync(SyncScope::kStream, stream, false);
          AfterSync(SyncScope::kStream, stream, false, true);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  BeforeSync(SyncScope::kContext, 0, false);
  AfterSync(SyncScope::kContext, 0, false, true);
  EXPECT_TRUE(AllWordsReached(*world.session.slot));
  EXPECT_EQ(OwnInflightNs(FakeDriver(), &world.session, NowNs()), 0u);
}

// ---- Without a scheduler
// --------------------------------------------------------------------------

TEST(AdriftTest, AnOpWaitsForWhatIsInItsStream) {
  FakeGpu::Get().Reset();
  SetDriver(&FakeDriver());
  g_state.devices[0] = nullptr;
  g_state.active_captures = 0;
  g_state.lost = 1;
  g_state.adrift = 1;
  g_state.next_contact_ns = abi::kNever;
  abi::StoreRelease(g_state.phase, static_cast<uint32_t>(Phase::kAttached));
  FakeGpu::Get().event_state = kNotReady;
  std::atomic<bool> gone{false};
  std::thread program([&] {
    Launch(KernelOp(kStream));
    gone = true;
  });
  while (FakeGpu::Get().events_recorded == 0) std::this_thread::yield();
  EXPECT_FALSE(gone);
  FakeGpu::Get().event_state = 0;
  program.join();
  EXPECT_EQ(FakeGpu::Get().events_recorded, 1);
  abi::StoreRelease(g_state.phase, static_cast<uint32_t>(Phase::kFresh));
  g_state.lost = 0;
  g_state.adrift = 0;
}

}  // namespace
}  // namespace rubato::shim::testing
