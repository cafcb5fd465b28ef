// The memory ledger: what this process has allocated, against the limit of its tenant.
//
// The processes of a tenant share the ledger through their slots (abi::MemoryLine) without a lock.
// Not on the launch path. Sizes are remembered by handle, because a free names only the handle.
// Bytes count as requested by the program, rounded as the caller rounds them; memory the driver
// takes for itself is not counted.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shim/core/state.h"

namespace rubato::shim {

enum class AllocationKind : uint8_t {
  kPointer = 0,
  kArray = 1,
  kPhysical = 2,
  kPool = 3,
  kIpc = 4,
  kMipmap = 5
};

// Adds `bytes` to this device's account. False, with nothing added, if the tenant's limit would be
// exceeded: the caller answers out-of-memory without calling the driver. Always true when detached
// or without a limit.
[[nodiscard]] bool ReserveMemory(DeviceSession* session, uint64_t bytes);
// The driver refused what was reserved.
void CancelMemory(DeviceSession* session, uint64_t bytes);
// The allocation exists: its bytes leave the account when `handle` is released.
void CommitMemory(DeviceSession* session, AllocationKind kind, Handle handle, uint64_t bytes);
// Gives the bytes of `handle` back; unknown handles are ignored.
void ReleaseMemory(AllocationKind kind, Handle handle);
// All allocations of `session` are gone (context reset).
void ForgetMemory(DeviceSession* session);

// What the program may see: `*total_bytes` and `*free_bytes` are the device's, and become the
// tenant's.
void ShowMemory(DeviceSession* session, uint64_t* free_bytes, uint64_t* total_bytes);

}  // namespace rubato::shim
