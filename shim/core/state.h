// The shim's state in one process.
//
// ProcessState is one page that the kernel replaces by zeros in the child of a fork
// (MADV_WIPEONFORK), so a child starts as a process that has never attached, whatever its parent
// was doing, and without an atfork handler. Everything else hangs off this page by pointers into
// mappings that are never moved or unmapped: what becomes stale is mapped over at the same address,
// so a thread that still looks at it may see somebody else's numbers, but never a fault. Threads:
// any thread of the host program may be in any function of the shim at any time. Fields are atomics
// accessed by proto/abi/atomic.h unless their comment says who alone uses them.
#pragma once

#include <cstdint>

#include "proto/abi/device.h"
#include "proto/abi/profile.h"
#include "proto/abi/slot.h"
#include "shim/core/driver.h"
#include "shim/core/handle_map.h"

namespace rubato::shim {

inline constexpr int kMaxDevices = 16;

enum class Phase : uint32_t {
  kFresh = 0,      // The program has not touched the vendor's library. Also: child of a fork.
  kAttaching = 1,  // One thread talks to the scheduler; others that arrive meanwhile wait for it
                   // (cuInit only).
  kAttached = 2,
  kDetached = 3,  // For good: calls are forwarded, nothing is counted any more but in `reason`.
};

// Another session on the same device, as this one sees it. Made and replaced by the refreshing
// thread. Read it through PeerSlot.
struct Peer {
  const abi::SlotRegion* slot;  // Read-only mapping; null: no peer here.
  uint32_t generation;          // Of the directory entry this mapping belongs to.
  uint32_t reserved;
};

// The peer's slot if it is mapped for `generation` of its directory entry, else null: then the
// session behind the entry has not been fetched yet, and says nothing.
inline const abi::SlotRegion* PeerSlot(const Peer& peer, uint32_t generation) {
  const abi::SlotRegion* slot = abi::LoadAcquire(peer.slot);
  if (slot == nullptr || abi::LoadAcquire(peer.generation) != generation) return nullptr;
  return abi::LoadRelaxed(peer.slot) == slot ? slot : nullptr;
}

// What this process knows of one scheduler instance's device page. A session has two, used in turn:
// after a re-attach the earlier view is obeyed as well until its lease ends (`until_ns`).
struct DeviceView {
  const abi::DeviceRegion* page;
  const abi::ProfileRegion* profile;
  uint32_t device;   // The scheduler's index of the device.
  uint32_t session;  // Own index in its directory.
  uint32_t tenant;   // Own index in its tenant table.
  uint32_t reserved;
  uint64_t
      generation;  // Of the directory when `peers` was made; compared with the page's at each gate.
  uint64_t until_ns;              // abi::kNever for the current view.
  Peer peers[abi::kMaxSessions];  // By directory index.
  uint8_t* memory;                // Address space of the mappings above, in attach.cc's order.
};

struct StreamTable;  // streams.h
struct Sampler;      // sampler.h
struct Touch;        // touch.h

struct DeviceSession {
  int ordinal;  // In this process.
  abi::SlotRegion*
      slot;  // Writable mapping; kept until the process ends: a GPU may still write into it.
  DeviceView* view;          // Current.
  DeviceView* previous;      // Of the last scheduler, under lease; or null.
  uint64_t next_refresh_ns;  // Peers are not fetched before this.
  StreamTable* streams;
  Sampler* sampler;
  Touch* touch;
  uint64_t words_address;  // Of slot->gpu_words as the GPU sees it; 0: not registered.
  Handle words_context;    // Context in which it was registered.
  uint32_t
      words_failed;  // 1: registration or stream memory operations do not work here; use events.
  uint32_t registering;  // 1 while one thread registers.
  uint32_t recording;    // 1 while one thread writes a job record.
};

struct Connection;  // attach.cc

struct alignas(4096) ProcessState {
  uint32_t phase;         // Phase. Also a futex: threads wait here for the one that attaches.
  uint32_t reason;        // abi::DetachReason.
  uint32_t tenant_class;  // abi::TenantClass, from the first Welcome.
  uint32_t mode;          // abi::Mode, from the first Welcome.
  uint64_t limit_bytes;   // From the last Welcome; 0: none.
  uint64_t epoch;         // Of the scheduler instance attached to.
  uint32_t lost;          // 1: the scheduler is gone, and the views are what is left of it.
  uint32_t talking;       // 1 while one thread uses `connection`. Tried, never waited for, outside
                          // cuInit and the first use of a device.
  uint64_t
      next_contact_ns;  // Not before this: look whether the scheduler is gone, or try to re-attach.
  uint32_t active_captures;  // Stream captures begun and not ended in this process.
  uint32_t debug;            // 1: RUBATO_SHIM_DEBUG was set.
  uint32_t owner_pid;        // Process this page belongs to: for kernels that do not wipe it.
  uint32_t wiped_on_fork;    // 1: the kernel does.
  Connection* connection;
  DeviceSession* devices[kMaxDevices];
  uint32_t opening[kMaxDevices];  // How far opening the device is: attach.cc.
  HandleMap allocations[8];       // By AllocationKind: ledger.cc.
  HandleMap functions;            // Function -> hash of its name: ops.cc.
  HandleMap graphs;               // Executable graph -> content hash: ops.cc.
  uint64_t serial;           // Of this process's attachment: what a thread cached before a fork
                             // is void in the child. 0 until the first session is equipped.
  uint32_t adrift;           // 1: attached to nobody yet: adrift.h. Implies `lost`.
  uint32_t functions_epoch;  // Changes when functions are unloaded: what threads cached is void.
  uint32_t unknown_symbols;  // Names asked for that the hook table lacks.
};
static_assert(sizeof(ProcessState) == 4096);

extern ProcessState g_state;  // The wiped page.

inline bool Attached() {
  return abi::LoadAcquire(g_state.phase) == static_cast<uint32_t>(Phase::kAttached);
}
inline bool IsRealtime() {
  return abi::LoadRelaxed(g_state.tenant_class) ==
         static_cast<uint32_t>(abi::TenantClass::kRealtime);
}

// Ends the shim's work in this process: everything is forwarded from now on. Safe from any thread
// at any time; the first reason wins and is written to the slots, where the scheduler counts it.
void Detach(abi::DetachReason reason);

inline void Count(DeviceSession* session, abi::Counter counter, uint64_t value = 1) {
  abi::CountRelaxed(session->slot->counters.value[static_cast<uint32_t>(counter)], value);
}

}  // namespace rubato::shim
