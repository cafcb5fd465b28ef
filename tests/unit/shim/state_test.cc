// The state page: wiped by a fork, ended by the first reason.

#include "shim/core/state.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim/core/sys.h"
#include "tests/unit/shim/fake_scheduler.h"

namespace rubato::shim::testing {
namespace {

TEST(StateTest, FillsItsPage) {
  EXPECT_EQ(reinterpret_cast<uintptr_t>(&g_state) % 4096, 0u);
  EXPECT_EQ(sizeof(g_state), 4096u);
}

TEST(StateTest, IsFreshAtFirst) {
  EXPECT_EQ(g_state.phase, static_cast<uint32_t>(Phase::kFresh));
  EXPECT_FALSE(Attached());
}

// Whether the loader put the page into memory that the kernel can wipe is the linker's doing.
TEST(StateTest, TheKernelCanWipeIt) {
  ChildProcess child([] {
    if (madvise(&g_state, sizeof(g_state), MADV_WIPEONFORK) != 0) return;
    abi::StoreRelease(g_state.phase, static_cast<uint32_t>(Phase::kAttached));
    ChildProcess grandchild([] {
      EXPECT_EQ(g_state.phase, static_cast<uint32_t>(Phase::kFresh));
      EXPECT_FALSE(Attached());
    });
    grandchild.Join();
    EXPECT_TRUE(Attached());
  });
  child.Join();
}

TEST(StateTest, TheFirstReasonWinsAndReachesEverySlot) {
  ChildProcess child([] {
    DeviceSession sessions[2] = {};
    auto* slots = static_cast<abi::SlotRegion*>(MapZeroed(2 * sizeof(abi::SlotRegion)));
    for (int i = 0; i < 2; ++i) {
      sessions[i].slot = &slots[i];
      g_state.devices[i] = &sessions[i];
    }
    g_state.phase = static_cast<uint32_t>(Phase::kAttached);
    Detach(abi::DetachReason::kSurprise);
    Detach(abi::DetachReason::kClock);
    EXPECT_EQ(g_state.phase, static_cast<uint32_t>(Phase::kDetached));
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(slots[i].session.detached, static_cast<uint32_t>(abi::DetachReason::kSurprise));
    }
    Count(&sessions[0], abi::Counter::kMarkers, 3);
    EXPECT_EQ(slots[0].counters.value[static_cast<uint32_t>(abi::Counter::kMarkers)], 3u);
  });
  child.Join();
}

TEST(SysTest, TimesAndThreads) {
  const uint64_t before_ns = NowNs();
  SleepUntil(before_ns + 1'000'000);
  EXPECT_GE(NowNs(), before_ns + 1'000'000);
  EXPECT_EQ(CurrentPid(), static_cast<uint32_t>(getpid()));
  EXPECT_EQ(CurrentThreadId(), CurrentPid()) << "this is the first thread";
  const uint32_t word = 1;
  FutexWait(&word, 0, NowNs() + 1'000'000'000'000);  // Not the expected value: returns.
  FutexWait(&word, 1, NowNs());                      // Nobody wakes it: returns.
}

TEST(SysTest, IdentifiesFiles) {
  FileIdentity first, second;
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  EXPECT_TRUE(IdentifyFile(fds[0], &first, nullptr));
  const int copy = dup(fds[0]);
  EXPECT_TRUE(IdentifyFile(copy, &second, nullptr));
  EXPECT_EQ(first.inode, second.inode);
  close(copy);
  close(fds[0]);
  close(fds[1]);
  EXPECT_FALSE(IdentifyFile(fds[0], &first, nullptr));
}

}  // namespace
}  // namespace rubato::shim::testing
