// A device with neighbours, made of plain memory: what a session sees, without a scheduler.
//
// The tests of the gate, jobs, streams and samples build their world here: a device page, a profile
// table, the session's own slot and those of its peers, and a driver whose GPU is a list of words
// to write. The GPU completes work when a test says so, from whatever thread.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "shim/core/core.h"
#include "shim/core/gate.h"
#include "shim/core/sampler.h"
#include "shim/core/state.h"
#include "shim/core/streams.h"

namespace rubato::shim::testing {

template <typename Region>
Region* MapRegion() {
  void* memory =
      mmap(nullptr, sizeof(Region), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<Region*>(memory);
}

// The GPU and the driver: words are written when Complete() is called.
struct FakeGpu {
  static FakeGpu& Get() {
    static FakeGpu gpu;
    return gpu;
  }

  struct PendingWord {
    Handle stream;
    uint64_t address;
    uint32_t value;
  };

  std::mutex mutex;
  std::vector<PendingWord> pending;
  Handle context = 0x1000;
  std::atomic<int> device{0};
  bool register_fails = false;
  bool words_fail = false;
  std::atomic<bool> at_once{false};  // Words are written as soon as they are enqueued.
  std::atomic<uint64_t> next_event{1};
  double event_us = 100;
  std::atomic<int> event_state{0};  // What event_query answers.
  int registrations = 0;
  std::atomic<int> events_recorded{0};

  void Reset() {
    std::lock_guard lock(mutex);
    pending.clear();
    context = 0x1000;
    register_fails = words_fail = false;
    at_once = false;
    event_us = 100;
    event_state = 0;
    registrations = 0;
    events_recorded = 0;
  }

  static void Write(const PendingWord& word) {
    __atomic_store_n(reinterpret_cast<uint32_t*>(word.address), word.value, __ATOMIC_RELEASE);
  }

  void CompleteAll() {
    std::lock_guard lock(mutex);
    for (const PendingWord& word : pending) Write(word);
    pending.clear();
  }

  size_t PendingCount() {
    std::lock_guard lock(mutex);
    return pending.size();
  }
};

inline const Driver& FakeDriver() {
  static const Driver driver = [] {
    Driver d{};
    d.current_context = [](Handle* context) {
      *context = FakeGpu::Get().context;
      return 0;
    };
    d.current_device = [](int* ordinal) {
      *ordinal = FakeGpu::Get().device;
      return 0;
    };
    d.register_host = [](void* memory, size_t, uint64_t* address) {
      FakeGpu& gpu = FakeGpu::Get();
      if (gpu.register_fails) return 1;
      gpu.registrations++;
      *address = reinterpret_cast<uint64_t>(memory);
      return 0;
    };
    d.unregister_host = [](void*) { return 0; };
    d.write_word = [](Handle stream, uint64_t address, uint32_t value) {
      FakeGpu& gpu = FakeGpu::Get();
      if (gpu.words_fail) return 801;
      const FakeGpu::PendingWord word{stream, address, value};
      if (gpu.at_once) {
        FakeGpu::Write(word);
        return 0;
      }
      std::lock_guard lock(gpu.mutex);
      gpu.pending.push_back(word);
      return 0;
    };
    d.is_capturing = [](Handle, int* capturing) {
      *capturing = 1;
      return 0;
    };
    d.relax_capture = [](int* mode) {
      *mode = 0;
      return 0;
    };
    d.restore_capture = [](int) { return 0; };
    d.event_create = [](Handle* event) {
      *event = FakeGpu::Get().next_event++;
      return 0;
    };
    d.event_destroy = [](Handle) { return 0; };
    d.event_record = [](Handle, Handle) {
      FakeGpu::Get().events_recorded++;
      return 0;
    };
    d.event_query = [](Handle) { return FakeGpu::Get().event_state.load(); };
    d.event_elapsed_us = [](Handle, Handle, double* us) {
      *us = FakeGpu::Get().event_us;
      return 0;
    };
    d.function_name = [](Handle function, const char** name) {
      *name = function == 0xf1 ? "gemm" : "other";
      return 0;
    };
    d.vendor = 1;
    d.legacy_stream = 1;
    d.per_thread_stream = 2;
    return d;
  }();
  return driver;
}

// One session on device 0 of this process, attached, with up to kMaxSessions - 1 peers.
class Neighbourhood {
 public:
  static constexpr uint32_t kOwnSession = 0;
  static constexpr uint32_t kOwnTenant = 0;

  explicit Neighbourhood(abi::TenantClass own_class) {
    FakeGpu::Get().Reset();
    g_state.serial = 0;  // What threads cached of an earlier world is void.
    SetDriver(&FakeDriver());
    page = MapRegion<abi::DeviceRegion>();
    profile = MapRegion<abi::ProfileRegion>();
    session.ordinal = 0;
    session.slot = MapRegion<abi::SlotRegion>();
    view = MapRegion<DeviceView>();
    view->page = page;
    view->profile = profile;
    view->session = kOwnSession;
    view->tenant = kOwnTenant;
    view->until_ns = abi::kNever;
    session.view = view;
    EquipSession(&session);
    page->constants.spin_ns = 20'000;
    page->constants.sleep_floor_ns = 20'000;
    page->constants.unknown_op_ns = 500'000;
    page->constants.marker_work_ns = 100'000;
    page->constants.marker_ops = 8;
    page->constants.sample_every = 64;
    page->constants.fallback_bound_ns = 2'000'000;
    page->constants.expire_factor = 3;
    page->constants.expire_floor_ns = 3'600'000'000'000;  // Tests that want expiry lower it.
    page->state.session_high_water = 1;
    page->sessions[kOwnSession].generation = 1;
    page->sessions[kOwnSession].tenant_class = static_cast<uint32_t>(own_class);
    g_state.tenant_class = static_cast<uint32_t>(own_class);
    g_state.active_captures = 0;
    g_state.functions.Clear();
    g_state.graphs.Clear();
    g_state.functions_epoch++;
    g_state.devices[0] = &session;
    // Far in the future: no test of this fixture talks to a scheduler.
    g_state.next_contact_ns = abi::kNever;
    abi::StoreRelease(g_state.phase, static_cast<uint32_t>(Phase::kAttached));
  }

  ~Neighbourhood() {
    abi::StoreRelease(g_state.phase, static_cast<uint32_t>(Phase::kFresh));
    g_state.devices[0] = nullptr;
  }
  Neighbourhood(const Neighbourhood&) = delete;
  Neighbourhood& operator=(const Neighbourhood&) = delete;

  abi::SlotRegion* AddPeer(uint32_t index, abi::TenantClass tenant_class) {
    abi::SlotRegion* slot = MapRegion<abi::SlotRegion>();
    view->peers[index].generation = 1;
    view->peers[index].slot = slot;
    page->sessions[index].tenant = index;
    page->sessions[index].tenant_class = static_cast<uint32_t>(tenant_class);
    page->sessions[index].flags = abi::kSessionMayHold;
    page->sessions[index].generation = 1;
    if (page->state.session_high_water < index + 1) page->state.session_high_water = index + 1;
    abi::TenantLine tenant{};
    tenant.tenant_class = static_cast<uint32_t>(tenant_class);
    tenant.bound_ns = 300'000;
    tenant.max_hold_ns = 3'600'000'000'000;
    abi::WriteLine(page->tenants[index].tenant, tenant);
    if (tenant_class == abi::TenantClass::kRealtime) {
      page->state.realtime_sessions++;
    } else {
      page->state.besteffort_sessions++;
    }
    return slot;
  }

  void SetTenant(uint32_t index, void (*change)(abi::TenantLine*)) {
    abi::TenantLine line{};
    abi::ReadLine(page->tenants[index].tenant, &line);
    change(&line);
    abi::WriteLine(page->tenants[index].tenant, line);
  }

  void SetRelease(uint32_t index, const abi::ReleaseLine& line) {
    abi::WriteLine(page->tenants[index].release, line);
  }

  uint64_t Counted(abi::Counter counter) {
    FlushCounts(&session);
    return abi::LoadRelaxed(session.slot->counters.value[static_cast<uint32_t>(counter)]);
  }

  abi::DeviceRegion* page;
  abi::ProfileRegion* profile;
  DeviceView* view;
  DeviceSession session{};
};

inline Op KernelOp(Handle stream, Handle function = 0xf1) {
  Op op{};
  op.kind = abi::OpKind::kKernel;
  op.stream = stream;
  op.function = function;
  op.grid[0] = op.grid[1] = op.grid[2] = 1;
  op.block[0] = 128;
  op.block[1] = op.block[2] = 1;
  return op;
}

// One whole op, as an entry point makes it.
inline void Launch(const Op& op, bool ok = true) {
  OpToken token;
  BeforeOp(op, &token);
  AfterOp(op, &token, ok);
}

}  // namespace rubato::shim::testing
