// The actions that rows of hooks.def name, for both vendors: what happens around one real call.
//
// Each takes `call`, makes it exactly once unless it answers the program with an error of the
// vendor's, and returns what it returned. They run in the calling thread, hold nothing across the
// call, and leave errno as the real call left it. What differs between the vendors (structures of
// copies and arrays, graphs, contexts) is in shim/cuda/actions.h and shim/hip/actions.h.
#pragma once

#include <type_traits>

#include "shim/core/ledger.h"
#include "shim/hooks/entry.h"

namespace rubato::shim {

using enum abi::OpKind;

template <typename T>
inline Handle AsHandle(T handle) {
  static_assert(sizeof(T) <= sizeof(Handle));  // NOLINT(bugprone-sizeof-expression)
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<Handle>(handle);
  } else {
    return static_cast<Handle>(handle);
  }
}

// The handle that names a stream whichever entry point is used: a _ptsz twin means the per-thread
// stream by null.
inline Handle NamedStream(Stream stream, bool per_thread) {
  return stream == Stream{} && per_thread ? VendorDriver().per_thread_stream : AsHandle(stream);
}

// What a stream says about a capture. A driver that cannot be asked has no captures.
enum class Capture : uint8_t { kNone, kOpen, kUntold };
inline Capture CaptureOf(Handle stream) {
  const Driver& driver = VendorDriver();
  int capturing = 0;
  if (driver.is_capturing == nullptr) return Capture::kNone;
  if (driver.is_capturing(stream, &capturing) != 0) return Capture::kUntold;
  return capturing != 0 ? Capture::kOpen : Capture::kNone;
}

// ---- Ops ----------------------------------------------------------------------------------------

inline Op StreamOp(abi::OpKind kind, Stream stream, bool per_thread) {
  Op op{};
  op.kind = kind;
  op.per_thread = per_thread;
  op.stream = AsHandle(stream);
  return op;
}

inline Op KernelOp(Function f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, size_t shared_bytes, Stream stream, bool per_thread) {
  Op op = StreamOp(kKernel, stream, per_thread);
  op.function = AsHandle(f);
  op.grid[0] = gx;
  op.grid[1] = gy;
  op.grid[2] = gz;
  op.block[0] = bx;
  op.block[1] = by;
  op.block[2] = bz;
  op.shared_bytes = static_cast<uint32_t>(shared_bytes);
  return op;
}

inline Op GraphOp(GraphExec exec, Stream stream, bool per_thread) {
  Op op = StreamOp(kGraph, stream, per_thread);
  op.function = AsHandle(exec);
  return op;
}

inline Op CopyOp(abi::OpKind kind, uint64_t bytes, Stream stream, bool per_thread) {
  Op op = StreamOp(kind, stream, per_thread);
  op.bytes = bytes;
  return op;
}

template <typename Call>
inline Status RunOp(const Op& op, const Call& call) {
  OpToken token;
  {
    const ErrnoGuard guard;
    BeforeOp(op, &token);
  }
  const Status status = call();
  if (token.session != nullptr) {
    const ErrnoGuard guard;
    AfterOpSlow(op, &token, status == kSuccess);
  }
  return status;
}

// A copy in the default stream that returns only after it is done.
template <typename Call>
inline Status RunWaiting(abi::OpKind kind, uint64_t bytes, bool per_thread, const Call& call) {
  Op op = CopyOp(kind, bytes, Stream{}, per_thread);
  op.synchronous = true;
  return RunOp(op, call);
}

template <typename Address>
inline Address Later(Address address, size_t bytes) {
  if constexpr (std::is_pointer_v<Address>) {
    return reinterpret_cast<Address>(reinterpret_cast<uintptr_t>(address) + bytes);
  } else {
    return address + bytes;
  }
}

// A copy that follows the order of its stream. A long one of a best-effort program goes in parts,
// back to back in the same stream: what they copy is the same, and no op of this stream that the
// program orders after the copy can come between. `call` makes the call with what the references
// say at that time.
template <typename Dst, typename Src, typename Call>
inline Status RunInParts(abi::OpKind kind, Dst& dst, Src& src, size_t& bytes, Stream stream,
                         bool per_thread, const Call& call) {
  Op op = CopyOp(kind, bytes, stream, per_thread);
  const size_t part = CopyPartBytes(op);
  if (part == 0 || bytes / 2 < part) return RunOp(op, call);
  size_t left = bytes;
  for (;;) {
    // The last part takes what would be too little for one of its own.
    bytes = left / 2 < part ? left : part;
    op.bytes = bytes;
    const Status status = RunOp(op, call);
    left -= bytes;
    if (status != kSuccess || left == 0) return status;
    dst = Later(dst, bytes);
    src = Later(src, bytes);
  }
}

inline uint64_t SumOf(const size_t* sizes, size_t count) {
  uint64_t sum = 0;
  if (sizes == nullptr) return sum;
  for (size_t i = 0; i < count; ++i) sum += sizes[i];
  return sum;
}

// ---- Waits and queries --------------------------------------------------------------------------

template <typename Call>
inline Status Wait(SyncScope scope, Handle handle, bool per_thread, const Call& call) {
  {
    const ErrnoGuard guard;
    BeforeSync(scope, handle, per_thread);
  }
  const Status status = call();
  const ErrnoGuard guard;
  AfterSync(scope, handle, per_thread, status == kSuccess);
  return status;
}

// A call that may wait for the device, but does not promise that anything is done afterwards.
template <typename Call>
inline Status MaybeWait(const Call& call) {
  {
    const ErrnoGuard guard;
    BeforeSync(SyncScope::kContext, 0, false);
  }
  const Status status = call();
  const ErrnoGuard guard;
  AfterSync(SyncScope::kContext, 0, false, false);
  return status;
}

template <typename Call>
inline Status Query(SyncScope scope, Handle handle, bool per_thread, const Call& call) {
  {
    const ErrnoGuard guard;
    BeforeQuery(scope, handle, per_thread);
  }
  const Status status = call();
  const ErrnoGuard guard;
  AfterQuery(scope, handle, per_thread, status == kSuccess);
  return status;
}

// ---- Memory -------------------------------------------------------------------------------------

inline DeviceSession* SessionOfDevice(int ordinal) {
  if (ordinal < 0 || ordinal >= kMaxDevices) return nullptr;
  DeviceSession* session = abi::LoadAcquire(g_state.devices[ordinal]);
  return session != nullptr ? session : OpenSession(VendorDriver(), ordinal);
}

// Of the calling thread's device; null if there is none, or if it cannot be opened.
inline DeviceSession* SessionOfThread() {
  int ordinal = -1;
  if (VendorDriver().current_device(&ordinal) != 0) return nullptr;
  return SessionOfDevice(ordinal);
}

// Charges `bytes` to `session`, makes the call, and keeps or cancels the charge.
template <typename Out, typename Call>
inline Status AllocateOn(DeviceSession* session, AllocationKind kind, uint64_t bytes, Out* out,
                         const Call& call) {
  if (session == nullptr || out == nullptr) return call();
  {
    const ErrnoGuard guard;
    if (!ReserveMemory(session, bytes)) return kOutOfMemory;
  }
  const Status status = call();
  const ErrnoGuard guard;
  if (status == kSuccess) {
    CommitMemory(session, kind, AsHandle(*out), bytes);
  } else {
    CancelMemory(session, bytes);
  }
  return status;
}

template <typename Out, typename Call>
inline Status Allocate(AllocationKind kind, uint64_t bytes, Out* out, const Call& call) {
  DeviceSession* session;
  {
    const ErrnoGuard guard;
    session = SessionOfThread();
  }
  return AllocateOn(session, kind, bytes, out, call);
}

// An allocation in a stream that captures is a node of a graph: memory comes with a launch, from a
// pool that the driver keeps, and is not the program's until then.
template <typename Out, typename Call>
inline Status AllocateInStream(Stream stream, bool per_thread, uint64_t bytes, Out* out,
                               const Call& call) {
  if (abi::LoadRelaxed(g_state.active_captures) != 0 &&
      CaptureOf(NamedStream(stream, per_thread)) != Capture::kNone) {
    return call();
  }
  return Allocate(AllocationKind::kPointer, bytes, out, call);
}

// Rows are padded by the driver, by how much is known afterwards.
inline constexpr uint64_t kUsualPitchBytes = 512;

template <typename Out, typename Pitch, typename Call>
inline Status AllocatePitched(uint64_t width, uint64_t height, Out* out, Pitch* pitch,
                              const Call& call) {
  const uint64_t guess =
      (width + kUsualPitchBytes - 1) / kUsualPitchBytes * kUsualPitchBytes * height;
  DeviceSession* session;
  {
    const ErrnoGuard guard;
    session = out != nullptr && pitch != nullptr ? SessionOfThread() : nullptr;
    if (session != nullptr && !ReserveMemory(session, guess)) return kOutOfMemory;
  }
  const Status status = call();
  if (session == nullptr) return status;
  const ErrnoGuard guard;
  if (status != kSuccess) {
    CancelMemory(session, guess);
    return status;
  }
  const uint64_t bytes = uint64_t{*pitch} * height;
  uint64_t charged = guess;
  if (bytes < guess) {
    CancelMemory(session, guess - bytes);
    charged = bytes;
  } else if (bytes > guess && ReserveMemory(session, bytes - guess)) {
    charged = bytes;
  }
  // A limit that only the padding exceeds refuses the next allocation instead of this one.
  CommitMemory(session, AllocationKind::kPointer, AsHandle(*out), charged);
  return status;
}

// The bytes are given back only after the driver took the memory: a refused free leaves them, and a
// thread that allocates in between may be refused, but never gets what is not there.
template <typename Address, typename Call>
inline Status Free(AllocationKind kind, Address address, const Call& call) {
  const Status status = call();
  if (status == kSuccess && address != Address{}) {
    const ErrnoGuard guard;
    ReleaseMemory(kind, AsHandle(address));
  }
  return status;
}

// A free that waits for the whole context first. Of nothing, it does nothing: programs call it so
// to make the runtime start.
template <typename Address, typename Call>
inline Status FreeAndWait(AllocationKind kind, Address address, const Call& call) {
  if (address == Address{}) return call();
  return Free(kind, address, [&] { return Wait(SyncScope::kContext, 0, false, call); });
}

template <typename Address, typename Call>
inline Status FreeMaybeWait(AllocationKind kind, Address address, const Call& call) {
  return Free(kind, address, [&] { return MaybeWait(call); });
}

template <typename Count, typename Call>
inline Status MemoryInfo(Count* free_bytes, Count* total_bytes, const Call& call) {
  const Status status = call();
  if (status != kSuccess || free_bytes == nullptr || total_bytes == nullptr) return status;
  const ErrnoGuard guard;
  DeviceSession* session = SessionOfThread();
  if (session == nullptr) return status;
  uint64_t free_now = *free_bytes;
  uint64_t total = *total_bytes;
  ShowMemory(session, &free_now, &total);
  *free_bytes = static_cast<Count>(free_now);
  *total_bytes = static_cast<Count>(total);
  return status;
}

// ---- Objects ------------------------------------------------------------------------------------

template <typename Call>
inline Status Record(Event event, Stream stream, bool per_thread, const Call& call) {
  const Status status = call();
  const ErrnoGuard guard;
  if (status == kSuccess) OnEventRecorded(AsHandle(event), AsHandle(stream), per_thread);
  return status;
}

// What is known of an event ends: it is destroyed, or recorded by something other than a stream.
template <typename Call>
inline Status Forget(Event event, const Call& call) {
  OnEventDestroyed(AsHandle(event));
  return call();
}

// A stream that is destroyed while it captures takes its capture with it.
template <typename Call>
inline Status DestroyStream(Stream stream, const Call& call) {
  bool capturing = false;
  {
    const ErrnoGuard guard;
    OnStreamDestroyed(AsHandle(stream));
    capturing = abi::LoadRelaxed(g_state.active_captures) != 0 &&
                CaptureOf(AsHandle(stream)) == Capture::kOpen;
  }
  const Status status = call();
  if (status == kSuccess && capturing) {
    const ErrnoGuard guard;
    OnCaptureEnded();
  }
  return status;
}

template <typename Call>
inline Status Unload(const Call& call) {
  const Status status = MaybeWait(call);
  const ErrnoGuard guard;
  OnFunctionsUnloaded();
  return status;
}

template <typename Call>
inline Status BeginCapture(const Call& call) {
  // Counted before it begins: between the two, another thread of ours must already keep still.
  OnCaptureBegun();
  const Status status = call();
  const ErrnoGuard guard;
  if (status != kSuccess) OnCaptureEnded();
  return status;
}

// An end that fails may or may not have ended the capture: the stream itself says.
template <typename Call>
inline Status EndCapture(Stream stream, bool per_thread, const Call& call) {
  const Handle asked = NamedStream(stream, per_thread);
  const bool open = CaptureOf(asked) == Capture::kOpen;
  const Status status = call();
  const ErrnoGuard guard;
  if (open && (status == kSuccess || CaptureOf(asked) == Capture::kNone)) OnCaptureEnded();
  return status;
}

// Identifies a graph by what is in it; vendor's part.
struct GraphContent {
  uint64_t hash;
  uint32_t nodes;
};
GraphContent ReadGraph(Graph graph);

template <typename Call>
inline Status Instantiate(GraphExec* exec, Graph graph, const Call& call) {
  const Status status = call();
  if (status == kSuccess && exec != nullptr) {
    const ErrnoGuard guard;
    const GraphContent content = ReadGraph(graph);
    OnGraphInstantiated(AsHandle(*exec), content.hash, content.nodes);
  }
  return status;
}

template <typename Call>
inline Status UpdateGraph(GraphExec exec, Graph graph, const Call& call) {
  const Status status = call();
  if (status == kSuccess) {
    const ErrnoGuard guard;
    const GraphContent content = ReadGraph(graph);
    OnGraphInstantiated(AsHandle(exec), content.hash, content.nodes);
  }
  return status;
}

template <typename Call>
inline Status DestroyGraph(GraphExec exec, const Call& call) {
  {
    const ErrnoGuard guard;
    OnGraphDestroyed(AsHandle(exec));
  }
  return call();
}

}  // namespace rubato::shim
