// What the vendors' entry points call: one function per kind of event, in the words of the design.
//
// Everything here is safe to call from any thread in any phase; in a process that is not attached
// each call is one load and one branch. None of these functions fails, logs, allocates on the
// launch path, or holds anything across a driver call. An entry point does: Before…, the real call,
// After….
#pragma once

#include <cstddef>
#include <cstdint>

#include "proto/abi/profile.h"
#include "shim/core/driver.h"
#include "shim/core/state.h"

namespace rubato::shim {

// Set once by the vendor part before any other call.
void SetDriver(const Driver* driver);
const Driver* GetDriver();

// Makes the private parts of a session whose slot is mapped. False if memory ran out.
bool EquipSession(DeviceSession* session);

// ---- Ops
// ------------------------------------------------------------------------------------------------------------
// One launch-like call. Fill `kind`, `stream`, `per_thread` and what the kind needs; leave the rest
// zero.
struct Op {
  abi::OpKind kind;
  bool per_thread;    // The entry point's default stream is the per-thread one (_ptsz).
  bool synchronous;   // The call returns only after its work is done (plain memcpy): it is also a
                      // synchronisation of its stream.
  Handle stream;      // As the program gave it.
  Handle function;    // kKernel: function; kGraph: executable graph.
  uint32_t grid[3];   // kKernel.
  uint32_t block[3];  // kKernel.
  uint32_t shared_bytes;  // kKernel: dynamic shared memory.
  uint64_t bytes;         // Copies and memsets.
};

// Carries an op from Before to After; lives on the entry point's stack.
struct OpToken {
  DeviceSession* session;  // Null: nothing to do afterwards.
  void* stream;            // StreamState of streams.h.
  Handle context;          // The calling thread's, if it had to be asked for.
  uint64_t expected_ns;    // How long the op takes, probably,
  uint64_t claimed_ns;     // and what it counts for in the queue: the longest it is known to take.
  uint64_t unmarked_ns;    // Work that may be behind the stream's last marker after this op.
  int32_t sample;          // Index of the measurement that is open, or -1.
  uint32_t flags;
};

// In parts of how many bytes a copy of this kind should go: a long one fits no window, its parts
// do. 0: whole (not a best-effort process, nobody to keep out of the way of, in a capture).
uint64_t CopyPartBytes(const Op& op);

// Waits at the gate if this is a best-effort process. Publishes what is about to be in flight.
void BeforeOpSlow(const Op& op, OpToken* token);
// `ok`: the driver accepted the op.
void AfterOpSlow(const Op& op, OpToken* token, bool ok);

inline void BeforeOp(const Op& op, OpToken* token) {
  token->session = nullptr;
  if (Attached()) BeforeOpSlow(op, token);
}
inline void AfterOp(const Op& op, OpToken* token, bool ok) {
  if (token->session != nullptr) AfterOpSlow(op, token, ok);
}

// ---- Synchronisation
// ------------------------------------------------------------------------------------------------
enum class SyncScope : uint8_t {
  kContext =
      0,  // Everything of the current context: cuCtxSynchronize, cuMemFree and other implicit ones.
  kStream = 1,  // `handle` is a stream.
  kEvent = 2,   // `handle` is an event.
};

// The program is about to wait. The GPU is asked to tell when the streams in scope are done.
void BeforeSync(SyncScope scope, Handle handle, bool per_thread);
// The wait returned; `ok`: everything in scope is done.
void AfterSync(SyncScope scope, Handle handle, bool per_thread, bool ok);
// A query of a stream or event (cuStreamQuery, cuEventQuery): Before the call, and After with
// whether it said "done".
void BeforeQuery(SyncScope scope, Handle handle, bool per_thread);
void AfterQuery(SyncScope scope, Handle handle, bool per_thread, bool done);

// ---- Objects
// --------------------------------------------------------------------------------------------------------
// Handles are recycled by drivers: what was cached under a handle is dropped here.
void OnEventRecorded(Handle event, Handle stream, bool per_thread);
void OnEventDestroyed(Handle event);
void OnStreamDestroyed(Handle stream);  // Before the real call.
void OnContextDestroying(
    Handle context);         // Before the real call. 0: the primary context of the current device.
void OnFunctionsUnloaded();  // A module or library is gone: any function handle may be recycled.
// After instantiation. `content_hash`: of the graph's nodes, the same in every process for the same
// graph.
void OnGraphInstantiated(Handle executable, uint64_t content_hash, uint32_t node_count);
void OnGraphDestroyed(Handle executable);
void OnCaptureBegun();  // A stream capture began in this process,
void OnCaptureEnded();  // and ended, also when it was invalid.
void OnUnknownSymbol(
    const char* name);  // The program asked for a name of the vendor that the table lacks.

}  // namespace rubato::shim
