// Devices, contexts and versions.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>

#include "softgpu/cuda/driver.h"

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.

namespace {

constexpr int kDriverVersion = 13000;

bool Valid(const Entry& e, CUdevice device) {
  return device >= 0 && static_cast<uint32_t>(device) < e.device().hello().devices;
}

const wire::DeviceInfo& InfoOf(const Entry& e, CUdevice device) {
  return e.device().hello().info[static_cast<uint32_t>(device)];
}

// A table, one attribute after the other: neighbours may have equal values.
// NOLINTBEGIN(bugprone-branch-clone)
int Attribute(const Entry& e, CUdevice_attribute which, CUdevice device) {
  const wire::DeviceInfo& info = InfoOf(e, device);
  const bool memops = !e.driver().settings.no_memops;
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
      return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
      return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
      return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
      return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
      return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
      return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      return 48 * 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return static_cast<int>(std::min<uint32_t>(227 * 1024, info.shared_bytes_per_sm));
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return static_cast<int>(info.shared_bytes_per_sm);
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK:
      return 0;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
      return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH:
      return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
      return static_cast<int>(info.registers_per_sm);
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
      return static_cast<int>(info.registers_per_sm);
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
      return 1'980'000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      return 3'201'000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
      return 6144;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      return 60 << 20;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT:
      return 512;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT:
      return 32;
    case CU_DEVICE_ATTRIBUTE_SURFACE_ALIGNMENT:
      return 512;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return static_cast<int>(info.sm_count);
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      return static_cast<int>(info.threads_per_sm);
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
      return static_cast<int>(info.blocks_per_sm);
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return 9;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      return 0;
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP:
      return 1;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
      return 2;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
      return 1;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
      return 1;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
      return 1;
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
      return 1;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS:
      return 1;
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
      return 1;
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
      return 1;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED:
      return 1;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
      return 1;
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
      return 1;
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
      return 0;
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
      return 1;
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
      return 1;
    case CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS_V1:
      return memops ? 1 : 0;
    case CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR_V1:
      return memops ? 1 : 0;
    case CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_MEM_OPS_V1:
      return memops ? 1 : 0;
    case CU_DEVICE_ATTRIBUTE_CAN_FLUSH_REMOTE_WRITES:
      return 0;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE:
      return CU_COMPUTEMODE_DEFAULT;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
      return static_cast<int>(info.pci_bus);
    case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
      return 0;
    case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID:
      return 0;
    case CU_DEVICE_ATTRIBUTE_INTEGRATED:
      return 0;
    case CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT:
      return 0;
    case CU_DEVICE_ATTRIBUTE_ECC_ENABLED:
      return 1;
    case CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED:
      return 1;
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:
      return 0;
    default:
      return 0;
  }
}
// NOLINTEND(bugprone-branch-clone)

}  // namespace

RUBATO_SOFTGPU_API cuDriverGetVersion(int* version) {
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *version = kDriverVersion;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGetCount(int* count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *count = static_cast<int>(e.device().hello().devices);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGet(CUdevice* device, int ordinal) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGetName(char* name, int length, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (name == nullptr || length <= 0) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  snprintf(name, static_cast<size_t>(length), "%s", InfoOf(e, device).name);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (uuid == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  std::memcpy(uuid->bytes, InfoOf(e, device).uuid, 16);
  return CUDA_SUCCESS;
}

#undef cuDeviceGetUuid
RUBATO_SOFTGPU_API cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  return cuDeviceGetUuid_v2(uuid, device);
}

RUBATO_SOFTGPU_API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = InfoOf(e, device).memory_bytes;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (value == nullptr || attribute <= 0 || attribute >= CU_DEVICE_ATTRIBUTE_MAX)
    return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  *value = Attribute(e, attribute, device);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (major == nullptr || minor == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  *major = 9;
  *minor = 0;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGetPCIBusId(char* text, int length, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (text == nullptr || length <= 0) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", InfoOf(e, device).pci_bus);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGetByPCIBusId(CUdevice* device, const char* text) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (device == nullptr || text == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (uint32_t i = 0; i < e.device().hello().devices; ++i) {
    char mine[32];
    snprintf(mine, sizeof mine, "0000:%02x:00.0", e.device().hello().info[i].pci_bus);
    if (strcasecmp(mine, text) == 0 || strcasecmp(mine + 5, text) == 0) {
      *device = static_cast<CUdevice>(i);
      return CUDA_SUCCESS;
    }
  }
  return CUDA_ERROR_INVALID_DEVICE;
}

RUBATO_SOFTGPU_API cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (can == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, device) || !Valid(e, peer)) return CUDA_ERROR_INVALID_DEVICE;
  *can = device != peer ? 1 : 0;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGetP2PAttribute(int* value, CUdevice_P2PAttribute attribute, CUdevice a,
                                           CUdevice b) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, a) || !Valid(e, b) || a == b) return CUDA_ERROR_INVALID_DEVICE;
  *value = attribute == CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED ? 1 : 0;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  return Is(peer) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

RUBATO_SOFTGPU_API cuCtxDisablePeerAccess(CUcontext peer) {
  Entry e;
  if (e.failed()) return e.result();
  return Is(peer) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

RUBATO_SOFTGPU_API cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  PrimaryContext& primary = e.driver().primary[device];
  if (primary.context == nullptr) {
    const CUresult result = NewContext(e, device, primary.flags, true, &primary.context);
    if (result != CUDA_SUCCESS) return result;
  }
  ++primary.references;
  *out = primary.context;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  PrimaryContext& primary = e.driver().primary[device];
  if (primary.references == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (--primary.references > 0) return CUDA_SUCCESS;
  CUcontext context = std::exchange(primary.context, nullptr);
  DeleteContext(e, context);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDevicePrimaryCtxReset_v2(CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  PrimaryContext& primary = e.driver().primary[device];
  if (primary.context != nullptr) {
    CUcontext context = std::exchange(primary.context, nullptr);
    primary.references = 0;
    DeleteContext(e, context);
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  PrimaryContext& primary = e.driver().primary[device];
  primary.flags = flags;
  if (primary.context != nullptr) primary.context->flags = flags;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  const PrimaryContext& primary = e.driver().primary[device];
  if (flags != nullptr) *flags = primary.flags;
  if (active != nullptr) *active = primary.context != nullptr ? 1 : 0;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxCreate_v2(CUcontext* out, unsigned flags, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Valid(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  const CUresult result = NewContext(e, device, flags, false, out);
  if (result == CUDA_SUCCESS) ThisThread().stack.push_back(*out);
  return result;
}

RUBATO_SOFTGPU_API cuCtxCreate_v3(CUcontext* out, CUexecAffinityParam*, int count, unsigned flags,
                                  CUdevice device) {
  if (count > 0) return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
  return cuCtxCreate_v2(out, flags, device);
}

RUBATO_SOFTGPU_API cuCtxCreate_v4(CUcontext* out, CUctxCreateParams* params, unsigned flags,
                                  CUdevice device) {
  if (params != nullptr && (params->numExecAffinityParams > 0 || params->cigParams != nullptr)) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  return cuCtxCreate_v2(out, flags, device);
}

RUBATO_SOFTGPU_API cuCtxDestroy_v2(CUcontext context) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(context)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  if (context->primary || context->green != nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  auto& stack = ThisThread().stack;
  if (!stack.empty() && stack.back() == context) stack.pop_back();
  DeleteContext(e, context);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxPushCurrent_v2(CUcontext context) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(context)) return CUDA_ERROR_INVALID_CONTEXT;
  ThisThread().stack.push_back(context);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxPopCurrent_v2(CUcontext* out) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  auto& stack = ThisThread().stack;
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (out != nullptr) *out = stack.back();
  stack.pop_back();
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxSetCurrent(CUcontext context) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  auto& stack = ThisThread().stack;
  if (context == nullptr) {
    if (!stack.empty()) stack.pop_back();
    return CUDA_SUCCESS;
  }
  if (!Is(context)) return CUDA_ERROR_INVALID_CONTEXT;
  if (stack.empty()) {
    stack.push_back(context);
  } else {
    stack.back() = context;
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxGetCurrent(CUcontext* out) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const auto& stack = ThisThread().stack;
  *out = stack.empty() ? nullptr : stack.back();
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxGetDevice(CUdevice* device) {
  Entry e;
  if (e.failed()) return e.result();
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *device = e.context()->device;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxGetFlags(unsigned* flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *flags = e.context()->flags;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxSetFlags(unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  e.context()->flags = flags;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxGetId(CUcontext context, unsigned long long* id) {
  Entry e(context == nullptr ? Entry::Need::kContext : Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUcontext c = context == nullptr ? e.context() : context;
  if (!Is(c)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  *id = c->id;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxGetApiVersion(CUcontext context, unsigned* version) {
  Entry e(context == nullptr ? Entry::Need::kContext : Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (context != nullptr && !Is(context)) return CUDA_ERROR_INVALID_CONTEXT;
  *version = 3020;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxSynchronize(void) {
  Entry e;
  if (e.failed()) return e.result();
  if (CUresult r = RefuseInCapture(e)) return r;
  return WaitForContext(e, e.context());
}

RUBATO_SOFTGPU_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  Entry e;
  if (e.failed()) return e.result();
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxGetLimit(size_t* value, CUlimit limit) {
  Entry e;
  if (e.failed()) return e.result();
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto it = e.context()->limits.find(limit);
  if (it != e.context()->limits.end()) {
    *value = it->second;
  } else {
    *value = limit == CU_LIMIT_STACK_SIZE         ? 1024
             : limit == CU_LIMIT_PRINTF_FIFO_SIZE ? 1 << 20
                                                  : 8 << 20;
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxSetLimit(CUlimit limit, size_t value) {
  Entry e;
  if (e.failed()) return e.result();
  e.context()->limits[limit] = value;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxGetCacheConfig(CUfunc_cache* config) {
  Entry e;
  if (e.failed()) return e.result();
  if (config == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *config = e.context()->cache;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxSetCacheConfig(CUfunc_cache config) {
  Entry e;
  if (e.failed()) return e.result();
  e.context()->cache = config;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxResetPersistingL2Cache(void) {
  Entry e;
  return e.result();
}

RUBATO_SOFTGPU_API cuProfilerStart(void) {
  Entry e;
  return e.result();
}

RUBATO_SOFTGPU_API cuProfilerStop(void) {
  Entry e;
  return e.result();
}

RUBATO_SOFTGPU_API cuGetExportTable(const void** table, const CUuuid*) {
  if (table != nullptr) *table = nullptr;
  return CUDA_ERROR_NOT_FOUND;
}

// The newer forms name their context.
RUBATO_SOFTGPU_API cuCtxGetDevice_v2(CUdevice* device, CUcontext context) {
  if (context == nullptr) return cuCtxGetDevice(device);
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(context)) return CUDA_ERROR_INVALID_CONTEXT;
  *device = context->device;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxSynchronize_v2(CUcontext context) {
  if (context == nullptr) return cuCtxSynchronize();
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(context)) return CUDA_ERROR_INVALID_CONTEXT;
  if (CUresult r = RefuseInCapture(e)) return r;
  return WaitForContext(e, context);
}

#undef cuDevicePrimaryCtxRelease
#undef cuDevicePrimaryCtxReset
#undef cuDevicePrimaryCtxSetFlags
RUBATO_SOFTGPU_API cuDevicePrimaryCtxRelease(CUdevice device) {
  return cuDevicePrimaryCtxRelease_v2(device);
}
RUBATO_SOFTGPU_API cuDevicePrimaryCtxReset(CUdevice device) {
  return cuDevicePrimaryCtxReset_v2(device);
}
RUBATO_SOFTGPU_API cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned flags) {
  return cuDevicePrimaryCtxSetFlags_v2(device, flags);
}
