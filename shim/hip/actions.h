// Actions that depend on HIP's structures.
#pragma once

#include "shim/hooks/actions.h"

namespace rubato::shim {

// ---- Launches -----------------------------------------------------------------------------------

// Kernels of the runtime API are named by a host address, those of modules by a handle. Marked in
// the topmost bit, which no address has, so that a name is asked for in the right way.
inline constexpr Handle kHostFunction = Handle{1} << 63;

inline Function HostFunction(const void* address) {
  return reinterpret_cast<Function>(reinterpret_cast<Handle>(address) | kHostFunction);
}

inline Op KernelOp(Function f, const dim3& grid, const dim3& block, size_t shared_bytes,
                   Stream stream, bool per_thread) {
  return KernelOp(f, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes, stream,
                  per_thread);
}

// A launch that counts work items instead of blocks.
inline Op WorkItemsOp(Function f, uint32_t wx, uint32_t wy, uint32_t wz, uint32_t bx, uint32_t by,
                      uint32_t bz, size_t shared_bytes, Stream stream, bool per_thread) {
  const auto blocks = [](uint32_t items, uint32_t block) {
    return block == 0 ? items : items / block + (items % block != 0 ? 1u : 0u);
  };
  return KernelOp(f, blocks(wx, bx), blocks(wy, by), blocks(wz, bz), bx, by, bz, shared_bytes,
                  stream, per_thread);
}

template <typename Call>
inline Status RunConfigured(const DriverLaunchConfig* config, Function f, bool per_thread,
                            const Call& call) {
  if (config == nullptr) return call();
  return RunOp(KernelOp(f, config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
                        config->blockDimY, config->blockDimZ, config->sharedMemBytes,
                        config->hStream, per_thread),
               call);
}

template <typename Call>
inline Status RunConfigured(const RuntimeLaunchConfig* config, const void* f, bool per_thread,
                            const Call& call) {
  if (config == nullptr) return call();
  return RunOp(KernelOp(HostFunction(f), config->gridDim, config->blockDim,
                        config->dynamicSmemBytes, config->stream, per_thread),
               call);
}

// One kernel on several devices at once: decided for all by the first, never one by one, since they
// may wait for each other.
template <typename Call>
inline Status RunFirstOf(const FunctionLaunchParams* list, unsigned count, const Call& call) {
  if (list == nullptr || count == 0) return call();
  const FunctionLaunchParams& first = list[0];
  return RunOp(
      KernelOp(first.function, first.gridDimX, first.gridDimY, first.gridDimZ, first.blockDimX,
               first.blockDimY, first.blockDimZ, first.sharedMemBytes, first.hStream, false),
      call);
}

template <typename Call>
inline Status RunFirstOf(const hipLaunchParams* list, int count, const Call& call) {
  if (list == nullptr || count <= 0) return call();
  const hipLaunchParams& first = list[0];
  return RunOp(KernelOp(HostFunction(first.func), first.gridDim, first.blockDim, first.sharedMem,
                        first.stream, false),
               call);
}

// ---- Copies -------------------------------------------------------------------------------------

inline abi::OpKind OpKindOf(hipMemcpyKind kind) {
  switch (kind) {
    case hipMemcpyHostToDevice:
      return kCopyHostToDevice;
    case hipMemcpyDeviceToHost:
      return kCopyDeviceToHost;
    case hipMemcpyDeviceToDevice:
      return kCopyDevice;
    default:
      return kCopyOther;
  }
}

// Whether a copy that is not called asynchronous waits: with the host in it.
inline bool Waits(abi::OpKind kind) {
  return kind == kCopyHostToDevice || kind == kCopyDeviceToHost;
}

template <typename Call>
inline Status RunDirected(hipMemcpyKind kind, uint64_t bytes, bool per_thread, const Call& call) {
  Op op = CopyOp(OpKindOf(kind), bytes, Stream{}, per_thread);
  op.synchronous = Waits(op.kind);
  return RunOp(op, call);
}

// Enqueues in a stream and waits for it.
template <typename Call>
inline Status RunDirectedIn(Stream stream, hipMemcpyKind kind, uint64_t bytes, bool per_thread,
                            const Call& call) {
  Op op = CopyOp(OpKindOf(kind), bytes, stream, per_thread);
  op.synchronous = true;
  return RunOp(op, call);
}

// The direction by the memory types of a described copy, whose numbers depend on the version of the
// library that the program has loaded, not on the header of this build.
abi::OpKind DirectionOf(unsigned src_type, unsigned dst_type);

struct Shape {
  abi::OpKind kind;
  uint64_t bytes;
};

template <typename Copy>
inline Shape ShapeOf(const Copy& copy) {
  uint64_t bytes = uint64_t{copy.WidthInBytes} * copy.Height;
  if constexpr (requires { copy.Depth; }) bytes *= copy.Depth;
  return {DirectionOf(static_cast<unsigned>(copy.srcMemoryType),
                      static_cast<unsigned>(copy.dstMemoryType)),
          bytes};
}

inline Shape ShapeOf(const hipMemcpy3DParms& copy) {
  return {OpKindOf(copy.kind),
          uint64_t{copy.extent.width} * copy.extent.height * copy.extent.depth};
}

template <typename Copy, typename Call>
inline Status RunShaped(const Copy* copy, bool per_thread, const Call& call) {
  if (copy == nullptr) return call();
  const Shape shape = ShapeOf(*copy);
  Op op = CopyOp(shape.kind, shape.bytes, Stream{}, per_thread);
  op.synchronous = Waits(op.kind);
  return RunOp(op, call);
}

template <typename Copy, typename Call>
inline Status RunShapedAsync(const Copy* copy, Stream stream, bool per_thread, const Call& call) {
  if (copy == nullptr) return call();
  const Shape shape = ShapeOf(*copy);
  return RunOp(CopyOp(shape.kind, shape.bytes, stream, per_thread), call);
}

inline uint64_t BytesOf(const hipExtent& extent) {
  return uint64_t{extent.width} * extent.height * extent.depth;
}

// ---- Memory -------------------------------------------------------------------------------------

uint64_t BytesPerElement(hipArray_Format format, unsigned channels);

template <typename Descriptor>
inline uint64_t BytesOf(const Descriptor* descriptor) {
  if (descriptor == nullptr) return 0;
  uint64_t bytes = BytesPerElement(descriptor->Format, descriptor->NumChannels);
  bytes *= descriptor->Width;
  if (descriptor->Height != 0) bytes *= descriptor->Height;
  if constexpr (requires { descriptor->Depth; }) {
    if (descriptor->Depth != 0) bytes *= descriptor->Depth;
  }
  return bytes;
}

inline uint64_t BytesOf(const hipChannelFormatDesc* format, uint64_t width, uint64_t height,
                        uint64_t depth) {
  if (format == nullptr) return 0;
  const int64_t bits = int64_t{format->x} + format->y + format->z + format->w;
  const auto bytes = static_cast<uint64_t>(bits + 7) / 8;
  return bytes * width * (height != 0 ? height : 1) * (depth != 0 ? depth : 1);
}

// Each level has half the extent of the one before.
uint64_t MipmapBytes(uint64_t level_bytes, uint64_t width, uint64_t height, uint64_t depth,
                     unsigned levels);

inline uint64_t MipmapBytes(const HIP_ARRAY3D_DESCRIPTOR* descriptor, unsigned levels) {
  if (descriptor == nullptr) return 0;
  return MipmapBytes(BytesPerElement(descriptor->Format, descriptor->NumChannels),
                     descriptor->Width, descriptor->Height, descriptor->Depth, levels);
}

inline uint64_t MipmapBytes(const hipChannelFormatDesc* format, const hipExtent& extent,
                            unsigned levels) {
  return MipmapBytes(BytesOf(format, 1, 1, 1), extent.width, extent.height, extent.depth, levels);
}

template <typename Call>
inline Status Allocate3D(const hipExtent& extent, hipPitchedPtr* out, const Call& call) {
  if (out == nullptr) return call();
  // The pitch is in the answer's structure; the address is charged once both are known.
  hipPitchedPtr* answer = out;
  struct Parts {
    void* address;
    size_t pitch;
  } parts{};
  return AllocatePitched(extent.width, extent.height * extent.depth, &parts.address, &parts.pitch,
                         [&] {
                           const Status status = call();
                           if (status == kSuccess) parts = {answer->ptr, answer->pitch};
                           return status;
                         });
}

template <typename Call>
inline Status AllocatePhysical(const hipMemAllocationProp* properties, uint64_t bytes,
                               hipMemGenericAllocationHandle_t* out, const Call& call) {
  if (properties == nullptr || properties->location.type != hipMemLocationTypeDevice) {
    return call();
  }
  DeviceSession* session;
  {
    const ErrnoGuard guard;
    session = SessionOfDevice(properties->location.id);
  }
  return AllocateOn(session, AllocationKind::kPhysical, bytes, out, call);
}

// ---- Contexts -----------------------------------------------------------------------------------

// HIP has one context a device; the core knows it by the device's ordinal plus one.
inline Handle ContextOf(int ordinal) {
  return static_cast<Handle>(ordinal) + 1;
}

void ForgetDevice(int ordinal);

template <typename Call>
inline Status ResetPrimary(int ordinal, const Call& call) {
  {
    const ErrnoGuard guard;
    OnContextDestroying(ContextOf(ordinal));
  }
  const Status status = call();
  if (status == kSuccess) {
    const ErrnoGuard guard;
    ForgetDevice(ordinal);
  }
  return status;
}

template <typename Call>
inline Status ResetDevice(const Call& call) {
  int ordinal = -1;
  if (VendorDriver().current_device(&ordinal) != 0) return call();
  return ResetPrimary(ordinal, call);
}

// Contexts beside a device's own are names only: memory and streams outlive them.
template <typename Call>
inline Status DestroyContext(Context, const Call& call) {
  return MaybeWait(call);
}

}  // namespace rubato::shim
