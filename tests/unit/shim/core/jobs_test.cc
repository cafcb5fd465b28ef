// Real-time jobs and stream words: when a job opens, drains and ends, and what neighbours see.

#include "shim/core/jobs.h"

#include <gtest/gtest.h>

#include "tests/unit/shim/core/neighbourhood.h"

namespace rubato::shim::testing {
namespace {

using abi::Counter;
using abi::JobState;

constexpr Handle kStream = 0x5000;
constexpr Handle kOther = 0x6000;

class JobsTest : public ::testing::Test {
 protected:
  JobsTest() { world.AddPeer(1, abi::TenantClass::kBestEffort); }

  JobState State() const { return static_cast<JobState>(world.session.slot->job.state); }
  abi::SlotRegion& Slot() { return *world.session.slot; }
  void Synchronise(Handle stream) {
    BeforeSync(SyncScope::kStream, stream, false);
    FakeGpu::Get().CompleteAll();
    AfterSync(SyncScope::kStream, stream, false, true);
  }

  Neighbourhood world{abi::TenantClass::kRealtime};
};

TEST_F(JobsTest, FirstOpOpensOneJob) {
  EXPECT_EQ(State(), JobState::kIdle);
  Launch(KernelOp(kStream));
  EXPECT_EQ(State(), JobState::kOpen);
  const uint64_t first_op_ns = Slot().job.first_op_ns;
  EXPECT_NE(first_op_ns, 0u);
  Launch(KernelOp(kStream));
  Launch(KernelOp(kOther));
  EXPECT_EQ(Slot().job.first_op_ns, first_op_ns);
  EXPECT_EQ(world.Counted(Counter::kJobs), 1u);
  EXPECT_EQ(world.Counted(Counter::kKernels), 3u);
}

TEST_F(JobsTest, HostToDeviceCopyIsASign) {
  Op copy{};
  copy.kind = abi::OpKind::kCopyHostToDevice;
  copy.stream = kStream;
  copy.bytes = 4096;
  Launch(copy);
  EXPECT_EQ(State(), JobState::kOpen);
  EXPECT_EQ(world.Counted(Counter::kCopies), 1u);
}

TEST_F(JobsTest, WaitingMarksTheStreamAndDrains) {
  Launch(KernelOp(kStream));
  EXPECT_FALSE(AllWordsReached(Slot()));
  BeforeSync(SyncScope::kStream, kStream, false);
  EXPECT_EQ(State(), JobState::kDraining);
  EXPECT_EQ(FakeGpu::Get().PendingCount(), 1u);
  EXPECT_FALSE(AllWordsReached(Slot())) << "the GPU has not come so far";
  FakeGpu::Get().CompleteAll();
  EXPECT_TRUE(AllWordsReached(Slot())) << "neighbours see the end before the host returns";
  AfterSync(SyncScope::kStream, kStream, false, true);
  EXPECT_EQ(State(), JobState::kIdle);
  ASSERT_EQ(Slot().heads.job_head, 1u);
  const abi::JobRecord& record = Slot().jobs[0];
  EXPECT_EQ(record.first_op_ns, Slot().job.first_op_ns);
  EXPECT_GE(record.end_ns, record.first_op_ns);
  EXPECT_EQ(record.end_ns, Slot().job.last_end_ns);
  EXPECT_EQ(record.flags & abi::kJobContinued, 0u);
}

TEST_F(JobsTest, WaitingForOneStreamMarksTheOthersToo) {
  Launch(KernelOp(kStream));
  Launch(KernelOp(kOther));
  BeforeSync(SyncScope::kStream, kStream, false);
  EXPECT_EQ(FakeGpu::Get().PendingCount(), 2u);
  AfterSync(SyncScope::kStream, kStream, false, true);
  // The host has returned with work outstanding elsewhere, all of it marked: the neighbours wait
  // for the GPU's words.
  EXPECT_FALSE(AllWordsReached(Slot()));
  FakeGpu::Get().CompleteAll();
  EXPECT_TRUE(AllWordsReached(Slot()));
}

TEST_F(JobsTest, AnOpWhileDrainingGoesOnWithTheJob) {
  Launch(KernelOp(kStream));
  BeforeSync(SyncScope::kStream, kStream, false);
  Launch(KernelOp(kOther));
  EXPECT_EQ(State(), JobState::kOpen);
  FakeGpu::Get().CompleteAll();
  AfterSync(SyncScope::kStream, kStream, false, true);
  EXPECT_EQ(State(), JobState::kOpen) << "the other stream has an op that no marker covers";
  EXPECT_EQ(Slot().heads.job_head, 0u);
  Synchronise(kOther);
  EXPECT_EQ(State(), JobState::kIdle);
  EXPECT_EQ(Slot().heads.job_head, 1u);
  EXPECT_EQ(world.Counted(Counter::kJobs), 1u);
}

TEST_F(JobsTest, AFailedWaitEndsNothing) {
  Launch(KernelOp(kStream));
  BeforeSync(SyncScope::kStream, kStream, false);
  AfterSync(SyncScope::kStream, kStream, false, false);
  EXPECT_NE(State(), JobState::kIdle);
}

TEST_F(JobsTest, NobodyWatchesNoMarker) {
  world.page->state.besteffort_sessions = 0;
  Launch(KernelOp(kStream));
  BeforeSync(SyncScope::kStream, kStream, false);
  EXPECT_EQ(FakeGpu::Get().PendingCount(), 0u);
  AfterSync(SyncScope::kStream, kStream, false, true);
  EXPECT_EQ(State(), JobState::kIdle);
  EXPECT_TRUE(AllWordsReached(Slot())) << "the host wrote the word itself";
}

TEST_F(JobsTest, PollingMarksOnceAndEndsTheJob) {
  Launch(KernelOp(kStream));
  for (int i = 0; i < 5; ++i) {
    BeforeQuery(SyncScope::kStream, kStream, false);
    AfterQuery(SyncScope::kStream, kStream, false, false);
  }
  EXPECT_EQ(FakeGpu::Get().PendingCount(), 1u);
  FakeGpu::Get().CompleteAll();
  AfterQuery(SyncScope::kStream, kStream, false, true);
  EXPECT_EQ(State(), JobState::kIdle);
}

TEST_F(JobsTest, WaitingForTheContextEndsEverything) {
  Launch(KernelOp(kStream));
  Launch(KernelOp(0));
  BeforeSync(SyncScope::kContext, 0, false);
  AfterSync(SyncScope::kContext, 0, false, true);
  EXPECT_EQ(State(), JobState::kIdle);
  EXPECT_TRUE(AllWordsReached(Slot()));
}

TEST_F(JobsTest, SynchronousCopyIsAWait) {
  Launch(KernelOp(0));
  Op copy{};
  copy.kind = abi::OpKind::kCopyDeviceToHost;
  copy.synchronous = true;
  Launch(copy);
  EXPECT_EQ(State(), JobState::kIdle);
  EXPECT_EQ(Slot().heads.job_head, 1u);
}

TEST_F(JobsTest, ThinkTimeJoinsRecords) {
  world.SetTenant(0, [](abi::TenantLine* line) { line->think_ns = 3'600'000'000'000; });
  Launch(KernelOp(kStream));
  Synchronise(kStream);
  Launch(KernelOp(kStream));
  Synchronise(kStream);
  ASSERT_EQ(Slot().heads.job_head, 2u);
  EXPECT_EQ(Slot().jobs[0].flags & abi::kJobContinued, 0u);
  EXPECT_NE(Slot().jobs[1].flags & abi::kJobContinued, 0u);
}

TEST_F(JobsTest, NothingIsAddedToACapture) {
  OnCaptureBegun();
  Launch(KernelOp(kStream));
  EXPECT_EQ(State(), JobState::kIdle);
  EXPECT_EQ(world.Counted(Counter::kCaptureOps), 1u);
  OnCaptureEnded();
  OnCaptureEnded();  // An end without a beginning changes nothing.
  Launch(KernelOp(kStream));
  EXPECT_EQ(State(), JobState::kOpen);
}

TEST_F(JobsTest, WithoutStreamMemoryOperationsTheHostTells) {
  FakeGpu::Get().words_fail = true;
  Launch(KernelOp(kStream));
  BeforeSync(SyncScope::kStream, kStream, false);
  EXPECT_GE(world.Counted(Counter::kMarkerFailures), 1u);
  EXPECT_FALSE(AllWordsReached(Slot()));
  AfterSync(SyncScope::kStream, kStream, false, true);
  EXPECT_TRUE(AllWordsReached(Slot()));
  EXPECT_EQ(State(), JobState::kIdle);
}

TEST_F(JobsTest, FailedRegistrationIsTriedOnce) {
  FakeGpu::Get().register_fails = true;
  for (int i = 0; i < 3; ++i) {
    Launch(KernelOp(kStream));
    Synchronise(kStream);
  }
  EXPECT_EQ(world.session.words_failed, 1u);
  EXPECT_EQ(Slot().heads.job_head, 3u);
}

TEST_F(JobsTest, RecycledHandleGetsANewGeneration) {
  Launch(KernelOp(kStream));
  const uint32_t line = FindStream(&world.session, kStream)->line;
  const uint32_t old_word = Slot().streams[line].submitted;
  OnStreamDestroyed(kStream);
  ASSERT_EQ(FakeGpu::Get().PendingCount(), 1u) << "a last marker covers the destroyed stream";
  EXPECT_FALSE(AllWordsReached(Slot()));
  // While its work runs, the line is not given to another stream.
  Launch(KernelOp(kStream));
  EXPECT_NE(FindStream(&world.session, kStream)->line, line);
  FakeGpu::Get().CompleteAll();
  Launch(KernelOp(kOther));
  ASSERT_EQ(FindStream(&world.session, kOther)->line, line);
  EXPECT_NE(abi::WordGeneration(Slot().streams[line].submitted), abi::WordGeneration(old_word));
  EXPECT_FALSE(AllWordsReached(Slot())) << "the word of the earlier stream says nothing now";
}

TEST_F(JobsTest, StreamsBeyondTheLinesKeepTheSessionBusyUntilAContextWait) {
  for (uint32_t i = 0; i < abi::kMaxStreams + 3; ++i) Launch(KernelOp(0x10000 + 0x100 * i));
  EXPECT_EQ(Slot().work.stream_high_water, abi::kMaxStreams);
  EXPECT_GE(world.Counted(Counter::kUnlinedOps), 3u);
  BeforeSync(SyncScope::kEvent, 0x77, false);
  FakeGpu::Get().CompleteAll();
  AfterSync(SyncScope::kEvent, 0x77, false, true);
  EXPECT_EQ(State(), JobState::kOpen);
  EXPECT_FALSE(AllWordsReached(Slot()));
  BeforeSync(SyncScope::kContext, 0, false);
  AfterSync(SyncScope::kContext, 0, false, true);
  EXPECT_TRUE(AllWordsReached(Slot()));
  EXPECT_EQ(State(), JobState::kIdle);
}

TEST_F(JobsTest, ContextDestructionForgetsRegistrationAndStreams) {
  Launch(KernelOp(kStream));
  BeforeSync(SyncScope::kStream, kStream, false);
  EXPECT_NE(world.session.words_address, 0u);
  OnContextDestroying(FakeGpu::Get().context);
  EXPECT_EQ(world.session.words_address, 0u);
  EXPECT_EQ(FindStream(&world.session, kStream), nullptr);
  FakeGpu::Get().pending.clear();  // The GPU work died with the context.
  Launch(KernelOp(kStream));
  Synchronise(kStream);
  EXPECT_EQ(FakeGpu::Get().registrations, 2);
}

TEST_F(JobsTest, AnUnattachedProcessTouchesNothing) {
  g_state.phase = static_cast<uint32_t>(Phase::kDetached);
  Launch(KernelOp(kStream));
  BeforeSync(SyncScope::kContext, 0, false);
  AfterSync(SyncScope::kContext, 0, false, true);
  EXPECT_EQ(world.Counted(Counter::kOps), 0u);
  EXPECT_EQ(State(), JobState::kIdle);
}

}  // namespace
}  // namespace rubato::shim::testing
