#include "shim/core/ledger.h"

#include "shim/core/attach.h"

namespace rubato::shim {

namespace {

constexpr uint32_t kKinds = sizeof(g_state.allocations) / sizeof(g_state.allocations[0]);
static_assert(static_cast<uint32_t>(AllocationKind::kMipmap) < kKinds);

// What is remembered under a handle: bytes, and the ordinal of the device that they lie on.
constexpr unsigned kOrdinalShift = 56;
constexpr uint64_t kMostBytes = (uint64_t{1} << kOrdinalShift) - 1;
static_assert(kMaxDevices <= 256);

uint64_t Pack(const DeviceSession& session, uint64_t bytes) {
  return (static_cast<uint64_t>(session.ordinal) << kOrdinalShift) | bytes;
}
int OrdinalOf(uint64_t packed) {
  return static_cast<int>(packed >> kOrdinalShift);
}
uint64_t BytesOf(uint64_t packed) {
  return packed & kMostBytes;
}

uint64_t AddSaturating(uint64_t a, uint64_t b) {
  return a + b < a ? ~uint64_t{0} : a + b;
}

HandleMap& MapOf(AllocationKind kind) {
  return g_state.allocations[static_cast<uint32_t>(kind) % kKinds];
}

void TakeBack(DeviceSession* session, uint64_t bytes) {
  __atomic_fetch_sub(&session->slot->memory.used_bytes, bytes, __ATOMIC_RELAXED);
}

uint64_t LimitOf(const DeviceSession& session) {
  const DeviceView* view = abi::LoadAcquire(session.view);
  abi::TenantLine line;
  if (abi::ReadLine(view->page->tenants[view->tenant].tenant, &line) &&
      line.tenant_class != static_cast<uint32_t>(abi::TenantClass::kFree)) {
    return line.limit_bytes;
  }
  // The scheduler died while it wrote, or took the tenant away: what was promised at attach.
  return abi::LoadRelaxed(g_state.limit_bytes);
}

// What all live sessions of this tenant hold on the device as far as `view` knows, this one
// included. `*complete` becomes false if one of them has not been fetched yet.
uint64_t BytesInView(const DeviceSession& session, const DeviceView& view, bool* complete) {
  const abi::DeviceRegion& page = *view.page;
  uint64_t sum = abi::LoadRelaxed(session.slot->memory.used_bytes);
  uint32_t high = abi::LoadAcquire(page.state.session_high_water);
  if (high > abi::kMaxSessions) high = abi::kMaxSessions;
  for (uint32_t i = 0; i < high; ++i) {
    const abi::SessionEntry& entry = page.sessions[i];
    const uint32_t generation = abi::LoadAcquire(entry.generation);
    if ((generation & 1u) == 0 || i == view.session ||
        abi::LoadRelaxed(entry.tenant) != view.tenant) {
      continue;
    }
    const abi::SlotRegion* slot = PeerSlot(view.peers[i], generation);
    if (slot == nullptr) {
      *complete = false;
      continue;
    }
    sum = AddSaturating(sum, abi::LoadRelaxed(slot->memory.used_bytes));
  }
  return sum;
}

uint64_t TenantBytes(DeviceSession* session) {
  bool complete = true;
  uint64_t sum = BytesInView(*session, *abi::LoadAcquire(session->view), &complete);
  if (!complete) {
    // A process of the same tenant arrived a moment ago. What it holds counts before we decide.
    AwaitPeers(session);
    sum = BytesInView(*session, *abi::LoadAcquire(session->view), &complete);
  }
  // After a restart of the scheduler the tenant's processes come back one by one; those that have
  // not are in the earlier view only. Those in both would count twice: so the larger sum.
  const DeviceView* previous = abi::LoadAcquire(session->previous);
  if (previous == nullptr) return sum;
  const uint64_t earlier = BytesInView(*session, *previous, &complete);
  return earlier > sum ? earlier : sum;
}

void RaisePeak(DeviceSession* session) {
  abi::MemoryLine& memory = session->slot->memory;
  const uint64_t used = abi::LoadRelaxed(memory.used_bytes);
  uint64_t peak = abi::LoadRelaxed(memory.peak_bytes);
  while (used > peak && !__atomic_compare_exchange_n(&memory.peak_bytes, &peak, used, true,
                                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

}  // namespace

bool ReserveMemory(DeviceSession* session, uint64_t bytes) {
  if (session == nullptr) return true;
  abi::MemoryLine& memory = session->slot->memory;
  const uint64_t limit = Attached() ? LimitOf(*session) : 0;
  // More than the limit is refused before it is added: a sum that other processes read must not
  // jump for a request that cannot be met anyway.
  if (limit != 0 && bytes > limit) {
    abi::CountRelaxed(memory.refused);
    return false;
  }
  __atomic_fetch_add(&memory.used_bytes, bytes, __ATOMIC_RELAXED);
  if (limit == 0) return true;
  // Two processes that reserve at the same time: each has added before it reads, so at least one
  // sees the other.
  abi::FenceSeqCst();
  if (TenantBytes(session) <= limit) return true;
  TakeBack(session, bytes);
  abi::CountRelaxed(memory.refused);
  return false;
}

void CancelMemory(DeviceSession* session, uint64_t bytes) {
  if (session != nullptr) TakeBack(session, bytes);
}

void CommitMemory(DeviceSession* session, AllocationKind kind, Handle handle, uint64_t bytes) {
  if (session == nullptr) return;
  // A handle that is still known was freed by a call that nobody saw.
  ReleaseMemory(kind, handle);
  if (bytes > kMostBytes || !MapOf(kind).Insert(handle, Pack(*session, bytes))) {
    // What cannot be remembered could never be given back.
    TakeBack(session, bytes);
    return;
  }
  RaisePeak(session);
  Count(session, abi::Counter::kAllocations);
}

void ReleaseMemory(AllocationKind kind, Handle handle) {
  uint64_t packed;
  if (!MapOf(kind).Erase(handle, &packed)) return;
  DeviceSession* session = abi::LoadAcquire(g_state.devices[OrdinalOf(packed) % kMaxDevices]);
  if (session == nullptr) return;
  TakeBack(session, BytesOf(packed));
  Count(session, abi::Counter::kFrees);
}

void ForgetMemory(DeviceSession* session) {
  if (session == nullptr) return;
  struct Sweep {
    int ordinal;
    uint64_t bytes;
  } sweep = {session->ordinal, 0};
  for (HandleMap& map : g_state.allocations) {
    map.EraseIf(
        [](uint64_t, uint64_t packed, void* context) {
          auto* state = static_cast<Sweep*>(context);
          if (OrdinalOf(packed) != state->ordinal) return false;
          state->bytes += BytesOf(packed);
          return true;
        },
        &sweep);
  }
  TakeBack(session, sweep.bytes);
}

void ShowMemory(DeviceSession* session, uint64_t* free_bytes, uint64_t* total_bytes) {
  if (!Attached()) return;
  uint64_t limit = abi::LoadRelaxed(g_state.limit_bytes);
  uint64_t used = 0;
  if (session != nullptr) {
    limit = LimitOf(*session);
    if (limit != 0) used = TenantBytes(session);
  }
  if (limit == 0) return;
  const uint64_t left = used < limit ? limit - used : 0;
  if (left < *free_bytes) *free_bytes = left;
  if (limit < *total_bytes) *total_bytes = limit;
}

}  // namespace rubato::shim
