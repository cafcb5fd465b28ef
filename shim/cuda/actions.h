// Actions that depend on CUDA's structures.
#pragma once

#include "shim/hooks/actions.h"

namespace rubato::shim {

// ---- Launches -----------------------------------------------------------------------------------

template <typename Call>
inline Status RunConfigured(const CUlaunchConfig* config, Function f, bool per_thread,
                            const Call& call) {
  if (config == nullptr) return call();
  return RunOp(KernelOp(f, config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
                        config->blockDimY, config->blockDimZ, config->sharedMemBytes,
                        config->hStream, per_thread),
               call);
}

// One kernel on several devices at once: decided for all by the first, never one by one, since they
// wait for each other.
template <typename Call>
inline Status RunFirstOf(const CUDA_LAUNCH_PARAMS* list, unsigned count, const Call& call) {
  if (list == nullptr || count == 0) return call();
  const CUDA_LAUNCH_PARAMS& first = list[0];
  return RunOp(
      KernelOp(first.function, first.gridDimX, first.gridDimY, first.gridDimZ, first.blockDimX,
               first.blockDimY, first.blockDimZ, first.sharedMemBytes, first.hStream, false),
      call);
}

// ---- Copies -------------------------------------------------------------------------------------

inline bool OnHost(CUmemorytype type) {
  return type == CU_MEMORYTYPE_HOST;
}
inline bool OnDevice(CUmemorytype type) {
  return type == CU_MEMORYTYPE_DEVICE || type == CU_MEMORYTYPE_ARRAY;
}

inline abi::OpKind DirectionOf(CUmemorytype src, CUmemorytype dst) {
  if (OnDevice(src) && OnDevice(dst)) return kCopyDevice;
  if (OnHost(src) && OnDevice(dst)) return kCopyHostToDevice;
  if (OnDevice(src) && OnHost(dst)) return kCopyDeviceToHost;
  return kCopyOther;
}

struct Shape {
  abi::OpKind kind;
  uint64_t bytes;
};

template <typename Copy>
inline Shape ShapeOf(const Copy& copy) {
  uint64_t bytes = uint64_t{copy.WidthInBytes} * copy.Height;
  if constexpr (requires { copy.Depth; }) bytes *= copy.Depth;
  return {DirectionOf(copy.srcMemoryType, copy.dstMemoryType), bytes};
}

// Where an address of the unified space lies; memory that CUDA does not know is the host's.
CUmemorytype MemoryTypeOf(CUdeviceptr address);

template <typename Copy, typename Call>
inline Status RunShaped(const Copy* copy, bool per_thread, const Call& call) {
  if (copy == nullptr) return call();
  const Shape shape = ShapeOf(*copy);
  Op op = CopyOp(shape.kind, shape.bytes, Stream{}, per_thread);
  op.synchronous = OnHost(copy->srcMemoryType) || OnHost(copy->dstMemoryType);
  return RunOp(op, call);
}

template <typename Copy, typename Call>
inline Status RunShapedAsync(const Copy* copy, Stream stream, bool per_thread, const Call& call) {
  if (copy == nullptr) return call();
  const Shape shape = ShapeOf(*copy);
  return RunOp(CopyOp(shape.kind, shape.bytes, stream, per_thread), call);
}

// A copy that waits exactly if the host is in it, which only the driver can tell.
template <typename Call>
inline Status RunUnified(CUdeviceptr dst, CUdeviceptr src, uint64_t bytes, bool per_thread,
                         const Call& call) {
  CUmemorytype from;
  CUmemorytype to;
  {
    const ErrnoGuard guard;
    from = MemoryTypeOf(src);
    to = MemoryTypeOf(dst);
  }
  Op op = CopyOp(DirectionOf(from, to), bytes, Stream{}, per_thread);
  op.synchronous = OnHost(from) || OnHost(to);
  return RunOp(op, call);
}

// Copies below this are not worth asking the driver about their direction.
inline constexpr size_t kDirectionMatters = size_t{1} << 20;

template <typename Call>
inline Status RunUnifiedAsync(CUdeviceptr& dst, CUdeviceptr& src, size_t& bytes, Stream stream,
                              bool per_thread, const Call& call) {
  abi::OpKind kind = kCopyOther;
  if (bytes >= kDirectionMatters) {
    const ErrnoGuard guard;
    kind = DirectionOf(MemoryTypeOf(src), MemoryTypeOf(dst));
  }
  return RunInParts(kind, dst, src, bytes, stream, per_thread, call);
}

inline uint64_t BytesOf(const CUDA_MEMCPY3D_BATCH_OP* list, size_t count) {
  uint64_t sum = 0;
  if (list == nullptr) return sum;
  for (size_t i = 0; i < count; ++i) {
    const CUextent3D& extent = list[i].extent;
    sum += uint64_t{extent.width} * extent.height * extent.depth;
  }
  return sum;
}

inline uint64_t BytesOf(const CUmemDecompressParams* list, size_t count) {
  uint64_t sum = 0;
  if (list == nullptr) return sum;
  for (size_t i = 0; i < count; ++i) sum += list[i].dstNumBytes;
  return sum;
}

// ---- Memory -------------------------------------------------------------------------------------

// Bytes of one element of an array. Block-compressed and planar formats are rounded up to what one
// texel could take; their exact size is the driver's.
uint64_t BytesPerElement(CUarray_format format, unsigned channels);

template <typename Descriptor>
inline uint64_t BytesOf(const Descriptor* descriptor) {
  if (descriptor == nullptr) return 0;
  uint64_t bytes = BytesPerElement(descriptor->Format, descriptor->NumChannels);
  bytes *= descriptor->Width;
  if (descriptor->Height != 0) bytes *= descriptor->Height;
  if constexpr (requires { descriptor->Depth; }) {
    // Without memory of their own: it is mapped into them, and counted where it is created.
    if ((descriptor->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) != 0) return 0;
    if (descriptor->Depth != 0) bytes *= descriptor->Depth;
  }
  return bytes;
}

// Each level has half the extent of the one before, layers excepted.
uint64_t MipmapBytes(const CUDA_ARRAY3D_DESCRIPTOR* descriptor, unsigned levels);

template <typename Call>
inline Status AllocatePhysical(const CUmemAllocationProp* properties, uint64_t bytes,
                               CUmemGenericAllocationHandle* out, const Call& call) {
  // Physical memory may also be the host's.
  if (properties == nullptr || properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
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

// The primary contexts of this process, as its own calls have retained them. The driver destroys
// one with its last reference, and does not say so.
struct PrimaryContext {
  Handle handle;
  uint32_t references;
};
extern PrimaryContext g_primary[kMaxDevices];

// The primary context of `device` if it is active, else 0.
Handle ActivePrimary(Device device);
// The context behind a green context, or 0.
Handle ContextOfGreen(CUgreenCtx green);
// All of the device's memory of this process is gone.
void ForgetDevice(Device device);

inline bool Counted(Device device) {
  return device >= 0 && device < kMaxDevices;
}

// A context and everything in it are about to end.
template <typename Call>
inline Status DestroyContext(Context context, const Call& call) {
  {
    const ErrnoGuard guard;
    OnContextDestroying(AsHandle(context));
  }
  return call();
}

template <typename Call>
inline Status WaitForContext(Context context, const Call& call) {
  Handle current = 0;
  if (VendorDriver().current_context(&current) == 0 && current == AsHandle(context)) {
    return Wait(SyncScope::kContext, 0, false, call);
  }
  return MaybeWait(call);
}

template <typename Call>
inline Status DestroyGreenContext(CUgreenCtx green, const Call& call) {
  {
    const ErrnoGuard guard;
    const Handle context = ContextOfGreen(green);
    if (context != 0) OnContextDestroying(context);
  }
  return call();
}

template <typename Call>
inline Status RetainPrimary(Context* out, Device device, const Call& call) {
  const Status status = call();
  if (status == kSuccess && out != nullptr && Counted(device)) {
    __atomic_store_n(&g_primary[device].handle, AsHandle(*out), __ATOMIC_RELAXED);
    __atomic_fetch_add(&g_primary[device].references, 1u, __ATOMIC_ACQ_REL);
  }
  return status;
}

template <typename Call>
inline Status ReleasePrimary(Device device, const Call& call) {
  const bool last =
      Counted(device) && __atomic_load_n(&g_primary[device].references, __ATOMIC_ACQUIRE) == 1;
  if (last) {
    const ErrnoGuard guard;
    OnContextDestroying(__atomic_load_n(&g_primary[device].handle, __ATOMIC_RELAXED));
  }
  const Status status = call();
  if (status != kSuccess || !Counted(device)) return status;
  uint32_t references = __atomic_load_n(&g_primary[device].references, __ATOMIC_ACQUIRE);
  while (references != 0 &&
         !__atomic_compare_exchange_n(&g_primary[device].references, &references, references - 1,
                                      false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
  }
  if (last) {
    const ErrnoGuard guard;
    ForgetDevice(device);
  }
  return status;
}

template <typename Call>
inline Status ResetPrimary(Device device, const Call& call) {
  {
    const ErrnoGuard guard;
    const Handle context = ActivePrimary(device);
    if (context != 0) OnContextDestroying(context);
  }
  const Status status = call();
  if (status == kSuccess) {
    const ErrnoGuard guard;
    ForgetDevice(device);
  }
  return status;
}

}  // namespace rubato::shim
