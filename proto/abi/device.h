// The device page: what the scheduler tells every session of one GPU.
//
// One region per device, written by the scheduler alone, sealed against everybody else. It holds
// the policy of each tenant (class, release model, bounds, partition, memory limit), the directory
// of attached sessions and the constants that the shim's gate obeys, so that no time constant is
// compiled into a tenant. One page for all tenants rather than one page per tenant: a best-effort
// session has to read the release model of every real-time neighbour anyway, there is one writer,
// and a session then follows arrivals and departures without another fd. It names nobody: tenants
// appear as indices. Sessions extrapolate the release models themselves (window.h), so a dead
// scheduler leaves no stale release behind.
#pragma once

#include <cstddef>
#include <cstdint>

#include "proto/abi/atomic.h"
#include "proto/abi/region.h"

namespace rubato::abi {

inline constexpr uint32_t kMaxTenants = 64;  // Per device.
inline constexpr uint32_t kMaxSessions =
    128;  // Per device. A session beyond this is refused with kNoDirectory.

enum class TenantClass : uint32_t { kFree = 0, kRealtime = 1, kBestEffort = 2 };

enum class Mode : uint32_t {
  kTimeslice = 0,  // Every tenant has its own context.
  kHybrid =
      1,     // Real-time tenants have their own contexts; best-effort tenants share one MPS server.
  kMps = 2,  // All tenants share one MPS server.
};

// Written under a sequence lock: `sequence` is odd while the scheduler writes. Readers copy and
// retry a few times, then use their previous copy; they never wait.
struct alignas(64) TenantLine {
  uint32_t sequence;
  uint32_t tenant_class;  // TenantClass.
  uint32_t generation;    // Changes when the entry is given to another tenant.
  uint32_t weight;        // Best-effort share among best-effort tenants; 0 means 1.
  uint64_t limit_bytes;   // Memory limit on this device; 0 means none.
  uint64_t bound_ns;  // Best-effort work in flight allowed against this real-time tenant without a
                      // valid model.
  uint64_t think_ns;  // A job stays open for this long after its closing call returned.
  uint64_t max_hold_ns;  // An open job holds others for at most this long; 0 means it never holds.
  uint64_t deadline_ns;  // Relative to the release; 0 means the period, or none.
  uint32_t flags;        // kTenant*.
  uint32_t priority;     // Real-time order among equals; smaller is more urgent.
};
static_assert(sizeof(TenantLine) == 64);
// Its sessions pre-touch before predicted releases.
inline constexpr uint32_t kTenantTouch = 1u << 0;
// While the end of its job is on the GPU, work may be queued behind it: it has a context of its
// own, its jobs fit into one time slice, and nothing follows them.
inline constexpr uint32_t kTenantQueueBehind = 1u << 1;

struct alignas(64) ReleaseLine {  // Sequence lock as above. How to extrapolate: window.h.
  uint32_t sequence;
  uint32_t flags;      // kReleaseValid.
  uint64_t phase_ns;   // CLOCK_MONOTONIC of one release.
  uint64_t period_ns;  // At least 1000.
  uint64_t early_ns;   // A release may come this much before its prediction,
  uint64_t late_ns;    // or this much after it.
  uint64_t margin_ns;  // Best-effort work ends this long before the earliest release (pre-touch
                       // lead included).
  uint64_t
      touch_lead_ns;  // The pre-touch kernel is submitted this long before the predicted release.
  uint64_t valid_until_ns;  // The model is not extrapolated beyond this; renewed by the scheduler
                            // while jobs confirm it.
};
static_assert(sizeof(ReleaseLine) == 64);
inline constexpr uint32_t kReleaseValid = 1u << 0;

struct alignas(
    64) SpaceLine {  // Sequence lock as above. Space: who may use which SMs, and beside whom.
  uint32_t sequence;
  uint32_t padding_permille;  // SMs that best-effort work may use while a job of this real-time
                              // tenant runs.
  uint32_t
      partition_index;  // Of the process's pool of partitions; kNoPartition means the whole device.
  uint32_t partition_generation;
  uint32_t sm_first;
  uint32_t sm_count;     // 0 means all.
  uint32_t stage_count;  // Stages per job; 0 means not staged.
  uint32_t stage_index;  // Next stage's partition is `partition_index` from this stage on.
  uint64_t job_ns;       // Predicted length of a job.
  uint64_t gap_ns;       // Longest predicted gap inside a job; 0 means none is offered.
  uint8_t reserved[16];
};
static_assert(sizeof(SpaceLine) == 64);
inline constexpr uint32_t kNoPartition = 0xffffffffu;

struct alignas(64) SpareLine {  // Zero in 1.0.
  uint8_t reserved[64];
};

struct TenantEntry {
  TenantLine tenant;
  ReleaseLine release;
  SpaceLine space;
  SpareLine spare;
};
static_assert(sizeof(TenantEntry) == 256);

struct alignas(32) SessionEntry {  // Written by the scheduler; each field is read by itself.
  uint32_t generation;    // Odd: live. Even: free. Changes with every arrival and departure.
  uint32_t tenant;        // Index into `tenants`; checked against kMaxTenants by readers.
  uint32_t tenant_class;  // Copy of the tenant's class.
  uint32_t flags;         // kSessionMayHold.
  uint8_t reserved[16];
};
static_assert(sizeof(SessionEntry) == 32);
// The session's open jobs count. A tenant that claims more real-time than it was admitted for loses
// this bit, which only the scheduler can write: pretending to be busy starves nobody.
inline constexpr uint32_t kSessionMayHold = 1u << 0;

// Written before the first session attaches, constant afterwards, except `sample_every`.
struct alignas(64) DeviceConstants {
  uint32_t mode;  // Mode.
  uint32_t sm_count;
  uint8_t uuid[16];
  uint64_t spin_ns;            // A waiting thread sleeps until this long before its hour; then it
                               // spins.
  uint64_t sleep_floor_ns;     // Waits shorter than this are spun.
  uint64_t unknown_op_ns;      // Duration assumed for an op of unknown key.
  uint64_t marker_work_ns;     // A best-effort stream gets a marker after this much predicted work,
  uint32_t marker_ops;         // or after this many ops, whichever comes first.
  uint32_t sample_every;       // One op in this many of a known key is measured. Atomic: 1 while a
                               // program is being profiled.
  uint64_t depth_ns;           // Work in flight allowed per device while no real-time tenant is
                               // attached; 0: unlimited.
  uint64_t fallback_bound_ns;  // The same once the scheduler is lost and no model is valid.
  uint64_t expire_factor;      // A wait expires at this many times the op's predicted duration,
  uint64_t expire_floor_ns;    // and never before this long.
  uint64_t lease_ns;           // After a re-attach, the previous page is obeyed for this long too.
  uint64_t copy_part_device_bytes;  // A best-effort copy within device memory goes in parts of this
  uint64_t copy_part_host_bytes;    // size, one between host and device of this; 0: whole.
  uint8_t reserved[8];
};
static_assert(sizeof(DeviceConstants) == 128);
static_assert(offsetof(DeviceConstants, spin_ns) == 24);
static_assert(offsetof(DeviceConstants, depth_ns) == 64);

struct alignas(64) DeviceState {  // Written by the scheduler at run time.
  uint64_t generation;  // Changes after every change of the directory or of a tenant's class.
  uint32_t realtime_sessions;    // Live sessions with kSessionMayHold. 0: the gate stays open.
  uint32_t session_high_water;   // Entries [0, this) of `sessions` have been used.
  uint32_t besteffort_sessions;  // Live best-effort sessions. 0: pre-touch has nothing to pre-pay.
  uint32_t turn_tenant;  // Best-effort tenant whose turn it is; kNoPartition: nobody's, all may go.
  uint64_t turn_until_ns;
  uint64_t turn_slice_ns;  // 0: no turns.
  uint64_t heartbeat_ns;   // Last time the scheduler wrote here. For people; nothing depends on it.
  uint8_t reserved[16];
};
static_assert(sizeof(DeviceState) == 64);

struct alignas(4096) DeviceRegion {
  RegionHeader header;        // 0x0000
  DeviceConstants constants;  // 0x0040
  DeviceState state;          // 0x00C0
  uint8_t reserved0[0x1000 - 0x100];
  SessionEntry sessions[kMaxSessions];  // 0x1000 .. 0x2000
  TenantEntry tenants[kMaxTenants];     // 0x2000 .. 0x6000
};
static_assert(offsetof(DeviceRegion, constants) == 0x40);
static_assert(offsetof(DeviceRegion, state) == 0xC0);
static_assert(offsetof(DeviceRegion, sessions) == 0x1000);
static_assert(offsetof(DeviceRegion, tenants) == 0x2000);
static_assert(sizeof(DeviceRegion) == 0x6000);

// How lines are copied: by words, each of them atomic, whatever fields they hold.
inline constexpr unsigned kLineWords = 8;
using LineWord = uint64_t __attribute__((may_alias));

// Copies `*line` into `*out` if no write is under way; tries a few times. Returns false, and leaves
// `*out` alone, if the writer was there each time (it died in the middle, say): the caller goes on
// with its previous copy.
template <typename Line>
inline bool ReadLine(const Line& line, Line* out) {
  static_assert(sizeof(Line) == kLineWords * sizeof(LineWord));
  for (int attempt = 0; attempt < 8; ++attempt) {
    const uint32_t before = LoadAcquire(line.sequence);
    if ((before & 1u) != 0) continue;
    uint64_t words[kLineWords];
    const auto* from = reinterpret_cast<const LineWord*>(&line);
    for (unsigned i = 0; i < kLineWords; ++i)
      words[i] = __atomic_load_n(from + i, __ATOMIC_ACQUIRE);
    if (LoadRelaxed(line.sequence) == before) {
      __builtin_memcpy(out, words, sizeof(words));
      return true;
    }
  }
  return false;
}

// Replaces `*line` by `value` (whose sequence is ignored). One writer only: the scheduler's loop
// thread.
template <typename Line>
inline void WriteLine(Line& line, const Line& value) {
  static_assert(sizeof(Line) == kLineWords * sizeof(LineWord));
  const uint32_t before = LoadRelaxed(line.sequence) & ~1u;
  StoreRelaxed(line.sequence, before + 1);
  uint64_t words[kLineWords];
  __builtin_memcpy(words, &value, sizeof(words));
  const uint32_t odd = before + 1;
  static_assert(__builtin_offsetof(Line, sequence) == 0);
  __builtin_memcpy(words, &odd, sizeof(odd));
  auto* to = reinterpret_cast<LineWord*>(&line);
  // Release stores: a reader that sees one of them sees the odd sequence too.
  for (unsigned i = 0; i < kLineWords; ++i) __atomic_store_n(to + i, words[i], __ATOMIC_RELEASE);
  StoreRelease(line.sequence, before + 2);
}

}  // namespace rubato::abi
