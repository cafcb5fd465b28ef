// The whole core at once, for the sanitizers: threads that launch, wait, allocate, destroy streams
// and unload functions, while neighbours come and go and the scheduler is restarted under them.

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "shim/core/attach.h"
#include "shim/core/core.h"
#include "shim/core/ledger.h"
#include "shim/core/sys.h"
#include "tests/unit/shim/fake_scheduler.h"

namespace rubato::shim::testing {
namespace {

using abi::TenantClass;

constexpr uint64_t kMillisecond = 1'000'000;
constexpr int kThreads = 4;
constexpr int kRestarts = 4;
constexpr uint32_t kPeerTenant = 4;

// A driver whose GPU is done at once.
const Driver& InstantDriver() {
  static const Driver driver = [] {
    Driver made = DeviceOnlyDriver();
    made.current_context = [](Handle* context) {
      *context = 0x1000;
      return 0;
    };
    made.current_device = [](int* ordinal) {
      *ordinal = 0;
      return 0;
    };
    made.register_host = [](void* memory, size_t, uint64_t* address) {
      *address = reinterpret_cast<uint64_t>(memory);
      return 0;
    };
    made.unregister_host = [](void*) { return 0; };
    made.write_word = [](Handle, uint64_t address, uint32_t value) {
      __atomic_store_n(reinterpret_cast<uint32_t*>(address), value, __ATOMIC_RELEASE);
      return 0;
    };
    made.is_capturing = [](Handle, int* capturing) {
      *capturing = 0;
      return 0;
    };
    made.relax_capture = [](int* mode) {
      *mode = 0;
      return 0;
    };
    made.restore_capture = [](int) { return 0; };
    made.event_create = [](Handle* event) {
      static std::atomic<Handle> next{1};
      *event = next++;
      return 0;
    };
    made.event_destroy = [](Handle) { return 0; };
    made.event_record = [](Handle, Handle) { return 0; };
    made.event_query = [](Handle) { return 0; };
    made.event_elapsed_us = [](Handle, Handle, double* us) {
      *us = 5;
      return 0;
    };
    made.function_name = [](Handle, const char** name) {
      *name = "kernel";
      return 0;
    };
    made.legacy_stream = 1;
    made.per_thread_stream = 2;
    return made;
  }();
  return driver;
}

// Shared by the test and its child.
struct Board {
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> reattached{0};
  std::atomic<uint64_t> ops{0};
};

void OneOp(Handle stream, bool per_thread, unsigned grid) {
  Op op{};
  op.kind = abi::OpKind::kKernel;
  op.stream = stream;
  op.per_thread = per_thread;
  op.function = 0xf000 + grid % 20;
  op.grid[0] = grid;
  op.grid[1] = op.grid[2] = op.block[0] = op.block[1] = op.block[2] = 1;
  OpToken token;
  BeforeOp(op, &token);
  AfterOp(op, &token, grid % 13 != 0);
}

void OneThread(Board* board, uint64_t number) {
  Handle stream = 0x10000 + number;
  for (uint64_t i = 1; !board->stop; ++i) {
    OneOp(stream, false, static_cast<unsigned>(1 + i % 64));
    OneOp(0, i % 2 == 0, static_cast<unsigned>(1 + i % 7));
    board->ops.fetch_add(2, std::memory_order_relaxed);
    if (i % 16 == 0) {
      const auto scope = i % 64 == 0 ? SyncScope::kContext : SyncScope::kStream;
      BeforeSync(scope, stream, false);
      AfterSync(scope, stream, false, true);
    }
    if (i % 20 == 0) {
      BeforeQuery(SyncScope::kStream, stream, false);
      AfterQuery(SyncScope::kStream, stream, false, true);
    }
    if (i % 8 == 0) {
      DeviceSession* session = OpenSession(InstantDriver(), 0);
      const Handle handle = number << 32 | i;
      if (session != nullptr && ReserveMemory(session, 64)) {
        CommitMemory(session, AllocationKind::kPointer, handle, 64);
        ReleaseMemory(AllocationKind::kPointer, handle);
      }
      uint64_t free = 1 << 20, total = 1 << 20;
      ShowMemory(session, &free, &total);
    }
    if (i % 200 == 0) {
      OnStreamDestroyed(stream);
      stream += 0x100;
    }
    if (i % 500 == 0) OnFunctionsUnloaded();
    if (number == 0 && i % 32 == 0) {
      abi::StoreRelaxed(g_state.next_contact_ns, uint64_t{0});
      MaintainConnection(InstantDriver(), NowNs());
    }
    DeviceSession* session = abi::LoadAcquire(g_state.devices[0]);
    if (session != nullptr) {
      board->reattached = static_cast<uint32_t>(abi::LoadRelaxed(
          session->slot->counters.value[static_cast<uint32_t>(abi::Counter::kReattaches)]));
    }
  }
}

FakeScheduler::Options OptionsOf(TenantClass tenant_class, uint64_t epoch) {
  return {.tenant_class = tenant_class,
          .limit_bytes = uint64_t{1} << 40,
          .lease_ns = kMillisecond,
          .epoch = epoch};
}

void Furnish(FakeScheduler& scheduler) {
  abi::DeviceConstants& constants = scheduler.page().constants;
  constants.spin_ns = 1000;
  constants.sleep_floor_ns = 1000;
  constants.unknown_op_ns = 1000;
  constants.marker_work_ns = 10'000;
  constants.marker_ops = 4;
  constants.sample_every = 8;
  constants.fallback_bound_ns = kMillisecond;
  constants.expire_factor = 3;
  constants.expire_floor_ns = kMillisecond;
  abi::TenantLine line = {};
  line.tenant_class = static_cast<uint32_t>(TenantClass::kRealtime);
  line.bound_ns = kMillisecond;
  line.max_hold_ns = kMillisecond;
  abi::WriteLine(scheduler.page().tenants[kPeerTenant].tenant, line);
  abi::StoreRelaxed(scheduler.page().state.realtime_sessions, 1u);
  abi::StoreRelaxed(scheduler.page().state.besteffort_sessions, 2u);
}

class StressTest : public ::testing::TestWithParam<TenantClass> {};

TEST_P(StressTest, NothingBreaksWhileEverythingChanges) {
  TemporaryFolder folder;
  void* memory =
      mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* board = new (memory) Board;
  auto scheduler = std::make_unique<FakeScheduler>(folder.path(), OptionsOf(GetParam(), 100));
  Furnish(*scheduler);
  ChildProcess child([&] {
    scheduler->CloseInChild();
    setenv("RUBATO_SOCKET", scheduler->path().c_str(), 1);
    SetDriver(&InstantDriver());
    AttachProcess(InstantDriver());
    ASSERT_TRUE(Attached());
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < kThreads; ++t) threads.emplace_back(OneThread, board, t);
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(Attached()) << "detached for reason " << g_state.reason;
    DeviceSession* session = g_state.devices[0];
    ASSERT_NE(session, nullptr);
    EXPECT_EQ(session->slot->memory.used_bytes, 0u);
  });
  scheduler->Start();
  for (uint32_t restart = 0; restart <= kRestarts; ++restart) {
    EXPECT_TRUE(FakeScheduler::Eventually([&] { return scheduler->SessionCount() == 1; }));
    const uint64_t ops = board->ops;
    std::vector<abi::SlotRegion*> peers;
    for (uint64_t i = 0; i < 30; ++i) {
      abi::SlotRegion* peer =
          scheduler->AddPeer(i % 3 == 0 ? kPeerTenant : 3,
                             i % 3 == 0 ? TenantClass::kRealtime : TenantClass::kBestEffort);
      abi::StoreRelaxed(peer->job.first_op_ns, NowNs());
      abi::StoreRelease(peer->job.state, static_cast<uint32_t>(i % 2));
      abi::StoreRelease(peer->work.inflight_until_ns, NowNs() + kMillisecond);
      peers.push_back(peer);
      if (peers.size() > 5) {
        scheduler->RemovePeer(peers.front());
        peers.erase(peers.begin());
      }
      SleepFor(kMillisecond / 2);
    }
    EXPECT_TRUE(FakeScheduler::Eventually([&] { return board->ops > ops + 1000; }))
        << "the program stands still";
    for (const std::string& complaint : scheduler->Complaints()) ADD_FAILURE() << complaint;
    if (restart == kRestarts) break;
    scheduler.reset();
    scheduler =
        std::make_unique<FakeScheduler>(folder.path(), OptionsOf(GetParam(), 101 + restart));
    Furnish(*scheduler);
    scheduler->Start();
    EXPECT_TRUE(FakeScheduler::Eventually([&] { return board->reattached > restart; }));
  }
  board->stop = true;
  child.Join();
}

INSTANTIATE_TEST_SUITE_P(Classes, StressTest,
                         ::testing::Values(TenantClass::kRealtime, TenantClass::kBestEffort),
                         [](const auto& tenant) {
                           return tenant.param == TenantClass::kRealtime ? "Realtime"
                                                                         : "BestEffort";
                         });

}  // namespace
}  // namespace rubato::shim::testing
