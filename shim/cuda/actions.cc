#include "shim/cuda/actions.h"

namespace rubato::shim {

namespace {

// A format's bytes per channel, or per texel where `whole` is set.
struct ElementSize {
  unsigned bytes;
  bool whole;
};

ElementSize SizeOfFormat(CUarray_format format) {
  switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
      return {1, false};
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
      return {2, false};
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
      return {4, false};
    case CU_AD_FORMAT_UNORM_INT8X1:
    case CU_AD_FORMAT_SNORM_INT8X1:
      return {1, true};
    case CU_AD_FORMAT_UNORM_INT8X2:
    case CU_AD_FORMAT_SNORM_INT8X2:
    case CU_AD_FORMAT_UNORM_INT16X1:
    case CU_AD_FORMAT_SNORM_INT16X1:
      return {2, true};
    case CU_AD_FORMAT_UNORM_INT8X4:
    case CU_AD_FORMAT_SNORM_INT8X4:
    case CU_AD_FORMAT_UNORM_INT16X2:
    case CU_AD_FORMAT_SNORM_INT16X2:
    case CU_AD_FORMAT_UNORM_INT_101010_2:
      return {4, true};
    case CU_AD_FORMAT_UNORM_INT16X4:
    case CU_AD_FORMAT_SNORM_INT16X4:
      return {8, true};
    // Four bits or a byte a texel.
    case CU_AD_FORMAT_BC1_UNORM:
    case CU_AD_FORMAT_BC1_UNORM_SRGB:
    case CU_AD_FORMAT_BC2_UNORM:
    case CU_AD_FORMAT_BC2_UNORM_SRGB:
    case CU_AD_FORMAT_BC3_UNORM:
    case CU_AD_FORMAT_BC3_UNORM_SRGB:
    case CU_AD_FORMAT_BC4_UNORM:
    case CU_AD_FORMAT_BC4_SNORM:
    case CU_AD_FORMAT_BC5_UNORM:
    case CU_AD_FORMAT_BC5_SNORM:
    case CU_AD_FORMAT_BC6H_UF16:
    case CU_AD_FORMAT_BC6H_SF16:
    case CU_AD_FORMAT_BC7_UNORM:
    case CU_AD_FORMAT_BC7_UNORM_SRGB:
      return {1, true};
    // Planes of eight or sixteen bits, of which there are at most two a texel.
    case CU_AD_FORMAT_NV12:
    case CU_AD_FORMAT_NV16:
    case CU_AD_FORMAT_YUY2:
      return {2, true};
    default:
      return {4, true};
  }
}

}  // namespace

PrimaryContext g_primary[kMaxDevices];

uint64_t BytesPerElement(CUarray_format format, unsigned channels) {
  const ElementSize size = SizeOfFormat(format);
  return size.whole ? size.bytes : uint64_t{size.bytes} * channels;
}

uint64_t MipmapBytes(const CUDA_ARRAY3D_DESCRIPTOR* descriptor, unsigned levels) {
  if (descriptor == nullptr) return 0;
  CUDA_ARRAY3D_DESCRIPTOR level = *descriptor;
  const bool layered = (level.Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
  uint64_t bytes = 0;
  for (unsigned i = 0; i < levels && i < 64; ++i) {
    bytes += BytesOf(&level);
    if (level.Width <= 1 && level.Height <= 1 && (layered || level.Depth <= 1)) break;
    if (level.Width > 1) level.Width /= 2;
    if (level.Height > 1) level.Height /= 2;
    if (!layered && level.Depth > 1) level.Depth /= 2;
  }
  return bytes;
}

CUmemorytype MemoryTypeOf(CUdeviceptr address) {
  using Get = CUresult (*)(void*, CUpointer_attribute, CUdeviceptr);
  static Get get;
  Get found = __atomic_load_n(&get, __ATOMIC_RELAXED);
  if (found == nullptr) {
    found = reinterpret_cast<Get>(VendorSymbol("cuPointerGetAttribute"));
    if (found == nullptr) return CU_MEMORYTYPE_UNIFIED;
    __atomic_store_n(&get, found, __ATOMIC_RELAXED);
  }
  CUmemorytype type = CU_MEMORYTYPE_HOST;
  const CUresult status = found(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address);
  return status == CUDA_SUCCESS ? type : CU_MEMORYTYPE_HOST;
}

Handle ActivePrimary(Device device) {
  if (!Counted(device)) return 0;
  if (__atomic_load_n(&g_primary[device].references, __ATOMIC_ACQUIRE) != 0) {
    return __atomic_load_n(&g_primary[device].handle, __ATOMIC_RELAXED);
  }
  // Retained before this process was attached.
  using GetState = CUresult (*)(CUdevice, unsigned*, int*);
  using Retain = CUresult (*)(CUcontext*, CUdevice);
  using Release = CUresult (*)(CUdevice);
  const auto state = reinterpret_cast<GetState>(VendorSymbol("cuDevicePrimaryCtxGetState"));
  const auto retain = RealOf<Retain>(Row::k_cuDevicePrimaryCtxRetain);
  const auto release = RealOf<Release>(Row::k_cuDevicePrimaryCtxRelease_v2);
  unsigned flags = 0;
  int active = 0;
  CUcontext context = nullptr;
  if (state == nullptr || retain == nullptr || release == nullptr ||
      state(device, &flags, &active) != CUDA_SUCCESS || active == 0 ||
      retain(&context, device) != CUDA_SUCCESS) {
    return 0;
  }
  release(device);
  return AsHandle(context);
}

Handle ContextOfGreen(CUgreenCtx green) {
  using FromGreen = CUresult (*)(CUcontext*, CUgreenCtx);
  const auto from_green = reinterpret_cast<FromGreen>(VendorSymbol("cuCtxFromGreenCtx"));
  CUcontext context = nullptr;
  if (from_green == nullptr || from_green(&context, green) != CUDA_SUCCESS) return 0;
  return AsHandle(context);
}

void ForgetDevice(Device device) {
  if (!Counted(device)) return;
  DeviceSession* session = abi::LoadAcquire(g_state.devices[device]);
  if (session != nullptr) ForgetMemory(session);
}

}  // namespace rubato::shim
