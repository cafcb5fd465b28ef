// The memory ledger: one process, several of one tenant, one that dies, two that race.

#include "shim/core/ledger.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "shim/core/attach.h"
#include "shim/core/sys.h"
#include "tests/unit/shim/fake_scheduler.h"

namespace rubato::shim::testing {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

DeviceSession* AttachAndOpen(FakeScheduler& scheduler) {
  scheduler.CloseInChild();
  setenv("RUBATO_SOCKET", scheduler.path().c_str(), 1);
  AttachProcess(DeviceOnlyDriver());
  DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
  EXPECT_NE(session, nullptr);
  return session;
}

class LedgerTest : public ::testing::Test {
 protected:
  void Run(uint64_t limit_bytes, const std::function<void(DeviceSession*, FakeScheduler&)>& body) {
    FakeScheduler scheduler(folder_.path(), {.limit_bytes = limit_bytes});
    ChildProcess child([&] {
      DeviceSession* session = AttachAndOpen(scheduler);
      if (session != nullptr) body(session, scheduler);
    });
    scheduler.Start();
    child.Join();
  }

  TemporaryFolder folder_;
};

TEST_F(LedgerTest, RefusesWhatExceedsTheLimit) {
  Run(10 * kGiB, [](DeviceSession* session, FakeScheduler&) {
    const abi::MemoryLine& line = session->slot->memory;
    EXPECT_TRUE(ReserveMemory(session, 6 * kGiB));
    CommitMemory(session, AllocationKind::kPointer, 0x1000, 6 * kGiB);
    EXPECT_FALSE(ReserveMemory(session, 4 * kGiB + 1));
    EXPECT_EQ(line.used_bytes, 6 * kGiB) << "a refusal leaves nothing behind";
    EXPECT_EQ(line.refused, 1u);
    EXPECT_TRUE(ReserveMemory(session, 4 * kGiB)) << "the limit itself is allowed";
    CancelMemory(session, 4 * kGiB);
    EXPECT_EQ(line.used_bytes, 6 * kGiB);
    EXPECT_EQ(line.peak_bytes, 6 * kGiB) << "what the driver refused was never used";
    EXPECT_FALSE(ReserveMemory(session, 11 * kGiB));
    EXPECT_FALSE(ReserveMemory(session, ~uint64_t{0}));
    EXPECT_FALSE(ReserveMemory(session, ~uint64_t{0} - 5 * kGiB));
    EXPECT_EQ(line.used_bytes, 6 * kGiB);
    ReleaseMemory(AllocationKind::kPointer, 0x1000);
    EXPECT_EQ(line.used_bytes, 0u);
    EXPECT_TRUE(ReserveMemory(session, 10 * kGiB));
    EXPECT_EQ(session->slot->counters.value[static_cast<uint32_t>(abi::Counter::kAllocations)], 1u);
    EXPECT_EQ(session->slot->counters.value[static_cast<uint32_t>(abi::Counter::kFrees)], 1u);
  });
}

TEST_F(LedgerTest, HandlesOfDifferentKindsAreDifferent) {
  Run(0, [](DeviceSession* session, FakeScheduler&) {
    const abi::MemoryLine& line = session->slot->memory;
    for (const AllocationKind kind :
         {AllocationKind::kPointer, AllocationKind::kArray, AllocationKind::kPhysical,
          AllocationKind::kPool, AllocationKind::kIpc, AllocationKind::kMipmap}) {
      EXPECT_TRUE(ReserveMemory(session, 100));
      CommitMemory(session, kind, 0x42, 100);
    }
    EXPECT_EQ(line.used_bytes, 600u);
    ReleaseMemory(AllocationKind::kArray, 0x42);
    ReleaseMemory(AllocationKind::kArray, 0x42);
    ReleaseMemory(AllocationKind::kArray, 0x43);
    EXPECT_EQ(line.used_bytes, 500u);
    ForgetMemory(session);
    EXPECT_EQ(line.used_bytes, 0u);
    ReleaseMemory(AllocationKind::kPointer, 0x42);
    EXPECT_EQ(line.used_bytes, 0u);
    EXPECT_EQ(line.peak_bytes, 600u);
  });
}

TEST_F(LedgerTest, ARecycledHandleIsCountedOnce) {
  Run(0, [](DeviceSession* session, FakeScheduler&) {
    EXPECT_TRUE(ReserveMemory(session, 100));
    CommitMemory(session, AllocationKind::kPointer, 0x1000, 100);
    // The free went through a call that nobody saw.
    EXPECT_TRUE(ReserveMemory(session, 30));
    CommitMemory(session, AllocationKind::kPointer, 0x1000, 30);
    EXPECT_EQ(session->slot->memory.used_bytes, 30u);
  });
}

TEST_F(LedgerTest, DevicesHaveAccountsOfTheirOwn) {
  Run(kGiB, [](DeviceSession* first, FakeScheduler&) {
    DeviceSession* second = nullptr;
    ASSERT_TRUE(FakeScheduler::Eventually([&] {
      second = OpenSession(DeviceOnlyDriver(), 1);
      return second != nullptr;
    }));
    EXPECT_TRUE(ReserveMemory(first, 100));
    CommitMemory(first, AllocationKind::kPointer, 0x1000, 100);
    ReleaseMemory(AllocationKind::kPointer, 0x1000);
    CommitMemory(first, AllocationKind::kPointer, 0x2000, 0);
    ForgetMemory(second);
    uint64_t bytes;
    EXPECT_TRUE(g_state.allocations[0].Find(0x2000, &bytes)) << "another device's allocation";
    ForgetMemory(first);
    EXPECT_FALSE(g_state.allocations[0].Find(0x2000, &bytes));
  });
}

TEST_F(LedgerTest, ShowsTheTenantItsShare) {
  Run(10 * kGiB, [](DeviceSession* session, FakeScheduler&) {
    uint64_t free = 70 * kGiB, total = 80 * kGiB;
    ShowMemory(nullptr, &free, &total);
    EXPECT_EQ(total, 10 * kGiB) << "before the first use of a device";
    EXPECT_EQ(free, 10 * kGiB);
    EXPECT_TRUE(ReserveMemory(session, 4 * kGiB));
    free = 70 * kGiB, total = 80 * kGiB;
    ShowMemory(session, &free, &total);
    EXPECT_EQ(total, 10 * kGiB);
    EXPECT_EQ(free, 6 * kGiB);
    free = kGiB, total = 80 * kGiB;
    ShowMemory(session, &free, &total);
    EXPECT_EQ(free, kGiB) << "others have filled the device";
    free = kGiB, total = 5 * kGiB;
    ShowMemory(session, &free, &total);
    EXPECT_EQ(total, 5 * kGiB) << "a limit makes no device larger";
  });
  Run(0, [](DeviceSession* session, FakeScheduler&) {
    uint64_t free = 70 * kGiB, total = 80 * kGiB;
    ShowMemory(session, &free, &total);
    EXPECT_EQ(total, 80 * kGiB);
    EXPECT_EQ(free, 70 * kGiB);
    EXPECT_TRUE(ReserveMemory(session, 500 * kGiB));
  });
}

TEST_F(LedgerTest, DetachedProcessesAreNotLimited) {
  Run(kGiB, [](DeviceSession* session, FakeScheduler&) {
    EXPECT_TRUE(ReserveMemory(nullptr, 100 * kGiB));
    EXPECT_TRUE(ReserveMemory(session, 100));
    CommitMemory(session, AllocationKind::kPointer, 0x1000, 100);
    Detach(abi::DetachReason::kSurprise);
    EXPECT_TRUE(ReserveMemory(session, 100 * kGiB));
    CommitMemory(session, AllocationKind::kPointer, 0x2000, 100 * kGiB);
    ReleaseMemory(AllocationKind::kPointer, 0x1000);
    ReleaseMemory(AllocationKind::kPointer, 0x2000);
    EXPECT_EQ(session->slot->memory.used_bytes, 0u) << "the account stays true";
  });
}

// The processes of the tests below tell each other how far they are through this.
struct Board {
  std::atomic<uint32_t> holders{0};
  std::atomic<uint32_t> overlaps{0};
  std::atomic<uint32_t> passed{0};
  std::atomic<uint32_t> ready{0};
};
Board* NewBoard() {
  void* memory =
      mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return new (memory) Board;
}

TEST_F(LedgerTest, TheScheduleChangesTheLimit) {
  FakeScheduler scheduler(folder_.path(), {.limit_bytes = 100});
  Signal refused, raised, torn;
  ChildProcess child([&] {
    DeviceSession* session = AttachAndOpen(scheduler);
    ASSERT_NE(session, nullptr);
    EXPECT_FALSE(ReserveMemory(session, 150));
    refused.Give();
    raised.Take();
    EXPECT_TRUE(ReserveMemory(session, 150));
    CancelMemory(session, 150);
    refused.Give();
    torn.Take();
    // A line in the middle of a write: what was promised at attach.
    EXPECT_FALSE(ReserveMemory(session, 150));
    EXPECT_TRUE(ReserveMemory(session, 100));
  });
  scheduler.Start();
  refused.Take();
  abi::TenantLine line = scheduler.page().tenants[3].tenant;
  line.limit_bytes = 200;
  abi::WriteLine(scheduler.page().tenants[3].tenant, line);
  raised.Give();
  refused.Take();
  abi::StoreRelease(scheduler.page().tenants[3].tenant.sequence, 77u);
  torn.Give();
  child.Join();
}

TEST_F(LedgerTest, ProcessesOfATenantShareOneLimitAndTheDeadGiveBack) {
  FakeScheduler scheduler(folder_.path(), {.limit_bytes = 100});
  // Somebody else's memory does not count.
  scheduler.AddPeer(9, abi::TenantClass::kBestEffort)->memory.used_bytes = 1000;
  Signal first_holds, second_refused, first_gone;
  ChildProcess first([&] {
    DeviceSession* session = AttachAndOpen(scheduler);
    EXPECT_TRUE(ReserveMemory(session, 60));
    first_holds.Give();
    for (;;) pause();
  });
  ChildProcess second([&] {
    first_holds.Take();
    DeviceSession* session = AttachAndOpen(scheduler);
    ASSERT_NE(session, nullptr);
    EXPECT_FALSE(ReserveMemory(session, 50));
    EXPECT_TRUE(ReserveMemory(session, 40));
    uint64_t free = 500, total = 1000;
    ShowMemory(session, &free, &total);
    EXPECT_EQ(free, 0u);
    second_refused.Give();
    first_gone.Take();
    EXPECT_TRUE(FakeScheduler::Eventually([&] { return ReserveMemory(session, 60); }));
  });
  scheduler.Start();
  second_refused.Take();
  first.Kill();
  first_gone.Give();
  second.Join();
}

TEST_F(LedgerTest, ALiarOfAnotherProcessHarmsItsOwnTenantOnly) {
  FakeScheduler scheduler(folder_.path(), {.limit_bytes = 100});
  scheduler.AddPeer(3, abi::TenantClass::kBestEffort)->memory.used_bytes = ~uint64_t{0} - 10;
  ChildProcess child([&] {
    DeviceSession* session = AttachAndOpen(scheduler);
    ASSERT_NE(session, nullptr);
    EXPECT_FALSE(ReserveMemory(session, 50)) << "the sum wrapped";
    uint64_t free = 500, total = 1000;
    ShowMemory(session, &free, &total);
    EXPECT_EQ(free, 0u);
  });
  scheduler.Start();
  child.Join();
}

TEST_F(LedgerTest, TwoThatRaceNeverBothPass) {
  FakeScheduler scheduler(folder_.path(), {.limit_bytes = 100});
  Board* board = NewBoard();
  const auto race = [&] {
    DeviceSession* session = AttachAndOpen(scheduler);
    ASSERT_NE(session, nullptr);
    ++board->ready;
    ASSERT_TRUE(FakeScheduler::Eventually([&] { return board->ready == 2; }));
    // Two threads each: the threads of a process share an account.
    std::vector<std::thread> threads;
    for (int t = 0; t < 2; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 20'000; ++i) {
          if (!ReserveMemory(session, 60)) continue;
          if (board->holders.fetch_add(1) != 0) ++board->overlaps;
          ++board->passed;
          board->holders.fetch_sub(1);
          CancelMemory(session, 60);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(session->slot->memory.used_bytes, 0u);
  };
  ChildProcess first(race);
  ChildProcess second(race);
  scheduler.Start();
  first.Join();
  second.Join();
  EXPECT_EQ(board->overlaps, 0u);
  EXPECT_GT(board->passed, 0u);
}

TEST_F(LedgerTest, ThreadsAllocateAndFreeWithoutLoss) {
  Run(0, [](DeviceSession* session, FakeScheduler&) {
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([=] {
        for (uint64_t i = 1; i <= 5'000; ++i) {
          const Handle handle = (t << 32) + i * 256;
          EXPECT_TRUE(ReserveMemory(session, i));
          CommitMemory(session, AllocationKind::kPointer, handle, i);
          if (i % 2 == 0) ReleaseMemory(AllocationKind::kPointer, handle);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    // The sum of the odd numbers up to 4999, four times.
    EXPECT_EQ(session->slot->memory.used_bytes, 4u * 2500 * 2500);
    ForgetMemory(session);
    EXPECT_EQ(session->slot->memory.used_bytes, 0u);
  });
}

}  // namespace
}  // namespace rubato::shim::testing
