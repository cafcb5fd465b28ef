// A stand-in for libamdhip64: HIP on the software GPU.
//
// Every call is translated to the driver entry points of softgpu/cuda, which are linked in here and
// stay inside this library. Handles are theirs under another name, error numbers agree by design of
// HIP, and a program's images are the same annotated text. What HIP adds is the current device with
// its implicit context, the last error of a thread and kernels named by host functions. Arrays and
// textures are not offered.
#ifndef __HIP_PLATFORM_AMD__
#define __HIP_PLATFORM_AMD__
#endif
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#include <hip/hip_runtime_api.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "softgpu/cuda/driver.h"
#include "softgpu/hip/fat_binary.h"

// References by the symbols' own names; the library is linked so that they bind to itself.
#define HIP_ENTRY(name) extern "C" const char rubato_ref_##name[] __asm__(#name);
#include "softgpu/hip/entry_points.def"
#undef HIP_ENTRY

#define HIP_API extern "C" __attribute__((visibility("default"))) hipError_t
#define HIP_API_CXX __attribute__((visibility("default"))) hipError_t

namespace {

thread_local hipError_t last_error = hipSuccess;
thread_local int current_device = 0;

hipError_t Say(CUresult result) {
  const auto error = static_cast<hipError_t>(
      result == CUDA_ERROR_CONTEXT_IS_DESTROYED ? CUDA_ERROR_INVALID_CONTEXT : result);
  // "Not ready" is an answer, not a failure.
  if (error != hipSuccess && error != hipErrorNotReady) last_error = error;
  return error;
}

hipError_t Say(hipError_t error) {
  return Say(static_cast<CUresult>(error));
}

std::mutex& Lock() {
  static std::mutex* const mutex = new std::mutex;
  return *mutex;
}

// The runtime's promise: any call finds its thread's device initialised and its primary context
// current.
CUresult Enter() {
  if (CUresult r = cuInit(0)) return r;
  CUcontext context = nullptr;
  if (CUresult r = cuCtxGetCurrent(&context)) return r;
  if (context != nullptr) return CUDA_SUCCESS;
  {
    std::lock_guard<std::mutex> guard(Lock());
    static std::map<int, CUcontext>* const primaries = new std::map<int, CUcontext>;
    unsigned flags;
    int active = 0;
    if (CUresult r = cuDevicePrimaryCtxGetState(current_device, &flags, &active)) return r;
    auto it = primaries->find(current_device);
    if (it == primaries->end() || active == 0) {
      if (CUresult r = cuDevicePrimaryCtxRetain(&context, current_device)) return r;
      (*primaries)[current_device] = context;
    } else {
      context = it->second;
    }
  }
  return cuCtxSetCurrent(context);
}

#define HIP_ENTER() \
  if (CUresult entered = Enter()) return Say(entered)

CUdeviceptr At(const void* p) {
  return reinterpret_cast<CUdeviceptr>(p);
}
CUstream S(hipStream_t s) {
  return reinterpret_cast<CUstream>(s);
}
CUevent E(hipEvent_t e) {
  return reinterpret_cast<CUevent>(e);
}
CUgraph G(hipGraph_t g) {
  return reinterpret_cast<CUgraph>(g);
}
CUgraphNode N(hipGraphNode_t n) {
  return reinterpret_cast<CUgraphNode>(n);
}
const CUgraphNode* N(const hipGraphNode_t* n) {
  return reinterpret_cast<const CUgraphNode*>(n);
}
CUgraphNode* N(hipGraphNode_t* n) {
  return reinterpret_cast<CUgraphNode*>(n);
}
CUgraphExec X(hipGraphExec_t x) {
  return reinterpret_cast<CUgraphExec>(x);
}
CUfunction F(hipFunction_t f) {
  return reinterpret_cast<CUfunction>(f);
}

// Kernels that host functions stand for: registered by compiled programs before main.
struct HostKernel {
  std::string name;
  const void* image;
};

struct Registry {
  std::map<const void*, HostKernel> kernels;
  std::map<const void*, HostKernel> variables;
  std::map<std::pair<CUcontext, const void*>, CUmodule> modules;
};

Registry& TheRegistry() {
  static Registry* const registry = new Registry;
  return *registry;
}

CUresult ModuleOf(const void* image, CUmodule* out) {
  CUcontext context = nullptr;
  if (CUresult r = cuCtxGetCurrent(&context)) return r;
  CUmodule& module = TheRegistry().modules[{context, image}];
  if (module == nullptr) {
    if (CUresult r = cuModuleLoadData(&module, image)) return r;
  }
  *out = module;
  return CUDA_SUCCESS;
}

// What a host function, or a handle given in its place, names.
CUresult FunctionOf(const void* pointer, CUfunction* out) {
  std::lock_guard<std::mutex> guard(Lock());
  auto it = TheRegistry().kernels.find(pointer);
  if (it == TheRegistry().kernels.end()) {
    *out = static_cast<CUfunction>(const_cast<void*>(pointer));
    return pointer != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
  }
  CUmodule module;
  if (CUresult r = ModuleOf(it->second.image, &module)) return r;
  return cuModuleGetFunction(out, module, it->second.name.c_str());
}

// The end mark of HIP's list of extras is another number than CUDA's.
struct Extras {
  explicit Extras(void** extra) {
    if (extra == nullptr) return;
    size_t i = 0;
    for (; i + 1 < std::size(list) && extra[i] != HIP_LAUNCH_PARAM_END; i += 2) {
      list[i] = extra[i];
      list[i + 1] = extra[i + 1];
    }
    list[i] = CU_LAUNCH_PARAM_END;
    given = list;
  }
  void* list[8] = {};
  void** given = nullptr;
};

CUresult Launch(CUfunction f, dim3 grid, dim3 block, unsigned shared, CUstream stream,
                void** params, void** extra, hipEvent_t start = nullptr,
                hipEvent_t stop = nullptr) {
  if (start != nullptr) {
    if (CUresult r = cuEventRecord(E(start), stream)) return r;
  }
  Extras extras(extra);
  if (CUresult r = cuLaunchKernel(f, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared,
                                  stream, params, extras.given)) {
    return r;
  }
  return stop != nullptr ? cuEventRecord(E(stop), stream) : CUDA_SUCCESS;
}

CUresult Copy(void* dst, const void* src, size_t n, CUstream stream, bool async) {
  if (n == 0) return CUDA_SUCCESS;
  return async ? cuMemcpyAsync(At(dst), At(src), n, stream) : cuMemcpy(At(dst), At(src), n);
}

CUDA_MEMCPY2D Box(void* dst, size_t dst_pitch, const void* src, size_t src_pitch, size_t width,
                  size_t height) {
  CUDA_MEMCPY2D box{};
  box.srcMemoryType = box.dstMemoryType = CU_MEMORYTYPE_UNIFIED;
  box.srcDevice = At(src);
  box.dstDevice = At(dst);
  box.srcPitch = src_pitch;
  box.dstPitch = dst_pitch;
  box.WidthInBytes = width;
  box.Height = height;
  return box;
}

CUDA_KERNEL_NODE_PARAMS NodeParams(const hipKernelNodeParams& p, CUfunction function,
                                   void** extra) {
  CUDA_KERNEL_NODE_PARAMS out{};
  out.func = function;
  out.gridDimX = p.gridDim.x;
  out.gridDimY = p.gridDim.y;
  out.gridDimZ = p.gridDim.z;
  out.blockDimX = p.blockDim.x;
  out.blockDimY = p.blockDim.y;
  out.blockDimZ = p.blockDim.z;
  out.sharedMemBytes = p.sharedMemBytes;
  out.kernelParams = p.kernelParams;
  out.extra = extra;
  return out;
}

int Attribute(int device, CUdevice_attribute which) {
  int value = 0;
  cuDeviceGetAttribute(&value, which, device);
  return value;
}

}  // namespace

// Errors.

HIP_API hipGetLastError() {
  const hipError_t error = last_error;
  last_error = hipSuccess;
  return error;
}
HIP_API hipPeekAtLastError() {
  return last_error;
}

extern "C" __attribute__((visibility("default"))) const char* hipGetErrorName(hipError_t error) {
  const char* name = nullptr;
  if (error == hipSuccess) return "hipSuccess";
  if (cuGetErrorName(static_cast<CUresult>(error), &name) != CUDA_SUCCESS) return "hipErrorUnknown";
  // CUDA_ERROR_INVALID_VALUE is hipErrorInvalidValue.
  static std::map<int, std::string>* const names = new std::map<int, std::string>;
  std::lock_guard<std::mutex> guard(Lock());
  std::string& text = (*names)[error];
  if (text.empty()) {
    text = "hipError";
    bool upper = true;
    for (const char* c = name + 11; *c != '\0'; ++c) {
      if (*c == '_') {
        upper = true;
        continue;
      }
      text += upper ? *c : static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
      upper = false;
    }
  }
  return text.c_str();
}

extern "C" __attribute__((visibility("default"))) const char* hipGetErrorString(hipError_t error) {
  const char* text = nullptr;
  return cuGetErrorString(static_cast<CUresult>(error), &text) == CUDA_SUCCESS ? text
                                                                               : "unknown error";
}

// Devices and contexts.

HIP_API hipInit(unsigned flags) {
  return Say(cuInit(flags));
}
HIP_API hipDriverGetVersion(int* version) {
  if (version == nullptr) return Say(hipErrorInvalidValue);
  *version = HIP_VERSION;
  return hipSuccess;
}
HIP_API hipRuntimeGetVersion(int* version) {
  return hipDriverGetVersion(version);
}
HIP_API hipGetDeviceCount(int* count) {
  if (CUresult r = cuInit(0)) return Say(r);
  return Say(cuDeviceGetCount(count));
}
HIP_API hipSetDevice(int device) {
  int count = 0;
  if (CUresult r = cuInit(0)) return Say(r);
  if (CUresult r = cuDeviceGetCount(&count)) return Say(r);
  if (device < 0 || device >= count) return Say(hipErrorInvalidDevice);
  if (device != current_device) {
    current_device = device;
    if (CUresult r = cuCtxSetCurrent(nullptr)) return Say(r);
  }
  return Say(Enter());
}
HIP_API hipGetDevice(int* device) {
  if (device == nullptr) return Say(hipErrorInvalidValue);
  *device = current_device;
  return hipSuccess;
}
HIP_API hipDeviceGet(hipDevice_t* device, int ordinal) {
  if (CUresult r = cuInit(0)) return Say(r);
  return Say(cuDeviceGet(device, ordinal));
}
HIP_API hipDeviceGetName(char* name, int length, hipDevice_t device) {
  HIP_ENTER();
  return Say(cuDeviceGetName(name, length, device));
}
HIP_API hipDeviceGetUuid(hipUUID* uuid, hipDevice_t device) {
  HIP_ENTER();
  return Say(cuDeviceGetUuid_v2(reinterpret_cast<CUuuid*>(uuid), device));
}
HIP_API hipDeviceTotalMem(size_t* bytes, hipDevice_t device) {
  HIP_ENTER();
  return Say(cuDeviceTotalMem_v2(bytes, device));
}
HIP_API hipDeviceComputeCapability(int* major, int* minor, hipDevice_t device) {
  HIP_ENTER();
  if (major == nullptr || minor == nullptr) return Say(hipErrorInvalidValue);
  *major = Attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  *minor = Attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  return hipSuccess;
}
HIP_API hipDeviceGetPCIBusId(char* text, int length, int device) {
  HIP_ENTER();
  return Say(cuDeviceGetPCIBusId(text, length, device));
}
HIP_API hipDeviceGetByPCIBusId(int* device, const char* text) {
  HIP_ENTER();
  return Say(cuDeviceGetByPCIBusId(device, text));
}
HIP_API hipDeviceCanAccessPeer(int* can, int device, int peer) {
  HIP_ENTER();
  return Say(cuDeviceCanAccessPeer(can, device, peer));
}
HIP_API hipDeviceEnablePeerAccess(int, unsigned flags) {
  return Say(flags == 0 ? hipSuccess : hipErrorInvalidValue);
}
HIP_API hipDeviceDisablePeerAccess(int) {
  return hipSuccess;
}
HIP_API hipDeviceSynchronize() {
  HIP_ENTER();
  return Say(cuCtxSynchronize());
}
HIP_API hipDeviceReset() {
  HIP_ENTER();
  const CUresult result = cuDevicePrimaryCtxReset(current_device);
  cuCtxSetCurrent(nullptr);
  std::lock_guard<std::mutex> guard(Lock());
  TheRegistry().modules.clear();
  return Say(result);
}
HIP_API hipSetDeviceFlags(unsigned flags) {
  HIP_ENTER();
  return Say(cuDevicePrimaryCtxSetFlags(current_device, flags));
}
HIP_API hipGetDeviceFlags(unsigned* flags) {
  HIP_ENTER();
  return Say(cuCtxGetFlags(flags));
}
HIP_API hipDeviceGetStreamPriorityRange(int* least, int* greatest) {
  HIP_ENTER();
  return Say(cuCtxGetStreamPriorityRange(least, greatest));
}
HIP_API hipDeviceSetCacheConfig(hipFuncCache_t) {
  return hipSuccess;
}
HIP_API hipDeviceGetCacheConfig(hipFuncCache_t* config) {
  if (config != nullptr) *config = hipFuncCachePreferNone;
  return hipSuccess;
}
HIP_API hipDeviceGetLimit(size_t* value, enum hipLimit_t) {
  HIP_ENTER();
  return Say(cuCtxGetLimit(value, CU_LIMIT_MALLOC_HEAP_SIZE));
}

HIP_API hipDeviceGetAttribute(int* value, hipDeviceAttribute_t attribute, int device) {
  HIP_ENTER();
  if (value == nullptr) return Say(hipErrorInvalidValue);
  CUdevice_attribute which;
  switch (attribute) {
    case hipDeviceAttributeMultiprocessorCount:
      which = CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
      break;
    case hipDeviceAttributeWarpSize:
      which = CU_DEVICE_ATTRIBUTE_WARP_SIZE;
      break;
    case hipDeviceAttributeMaxThreadsPerBlock:
      which = CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
      break;
    case hipDeviceAttributeMaxThreadsPerMultiProcessor:
      which = CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR;
      break;
    case hipDeviceAttributeMaxSharedMemoryPerBlock:
      which = CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK;
      break;
    case hipDeviceAttributeMaxRegistersPerBlock:
      which = CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK;
      break;
    case hipDeviceAttributeMaxBlockDimX:
      which = CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X;
      break;
    case hipDeviceAttributeMaxBlockDimY:
      which = CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y;
      break;
    case hipDeviceAttributeMaxBlockDimZ:
      which = CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z;
      break;
    case hipDeviceAttributeMaxGridDimX:
      which = CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X;
      break;
    case hipDeviceAttributeMaxGridDimY:
      which = CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y;
      break;
    case hipDeviceAttributeMaxGridDimZ:
      which = CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z;
      break;
    case hipDeviceAttributeClockRate:
      which = CU_DEVICE_ATTRIBUTE_CLOCK_RATE;
      break;
    case hipDeviceAttributeMemoryClockRate:
      which = CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE;
      break;
    case hipDeviceAttributeMemoryBusWidth:
      which = CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH;
      break;
    case hipDeviceAttributeL2CacheSize:
      which = CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
      break;
    case hipDeviceAttributeComputeCapabilityMajor:
      which = CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
      break;
    case hipDeviceAttributeComputeCapabilityMinor:
      which = CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
      break;
    case hipDeviceAttributeConcurrentKernels:
      which = CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS;
      break;
    case hipDeviceAttributePciBusId:
      which = CU_DEVICE_ATTRIBUTE_PCI_BUS_ID;
      break;
    case hipDeviceAttributePciDeviceId:
      which = CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID;
      break;
    case hipDeviceAttributeCooperativeLaunch:
      which = CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH;
      break;
    case hipDeviceAttributeManagedMemory:
      which = CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY;
      break;
    case hipDeviceAttributeConcurrentManagedAccess:
      which = CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS;
      break;
    case hipDeviceAttributeCanMapHostMemory:
      which = CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY;
      break;
    case hipDeviceAttributeUnifiedAddressing:
      which = CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING;
      break;
    case hipDeviceAttributeMemoryPoolsSupported:
      which = CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
      break;
    case hipDeviceAttributeCanUseStreamWaitValue:
      which = CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_MEM_OPS_V1;
      break;
    default:
      *value = 0;
      return hipSuccess;
  }
  return Say(cuDeviceGetAttribute(value, which, device));
}

HIP_API hipGetDeviceProperties(hipDeviceProp_t* prop, int device) {
  HIP_ENTER();
  if (prop == nullptr) return Say(hipErrorInvalidValue);
  std::memset(prop, 0, sizeof *prop);
  if (CUresult r = cuDeviceGetName(prop->name, sizeof prop->name, device)) return Say(r);
  cuDeviceTotalMem_v2(&prop->totalGlobalMem, device);
  prop->sharedMemPerBlock =
      static_cast<size_t>(Attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK));
  prop->regsPerBlock = Attribute(device, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK);
  prop->warpSize = Attribute(device, CU_DEVICE_ATTRIBUTE_WARP_SIZE);
  prop->maxThreadsPerBlock = Attribute(device, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
  const CUdevice_attribute block[3] = {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X,
                                       CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y,
                                       CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z};
  const CUdevice_attribute grid[3] = {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X,
                                      CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y,
                                      CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z};
  for (int i = 0; i < 3; ++i) {
    prop->maxThreadsDim[i] = Attribute(device, block[i]);
    prop->maxGridSize[i] = Attribute(device, grid[i]);
  }
  prop->clockRate = Attribute(device, CU_DEVICE_ATTRIBUTE_CLOCK_RATE);
  prop->memoryClockRate = Attribute(device, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
  prop->memoryBusWidth = Attribute(device, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
  prop->totalConstMem =
      static_cast<size_t>(Attribute(device, CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY));
  prop->major = 9;
  prop->minor = 0;
  prop->multiProcessorCount = Attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  prop->l2CacheSize = Attribute(device, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  prop->maxThreadsPerMultiProcessor =
      Attribute(device, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
  prop->concurrentKernels = 1;
  prop->pciBusID = Attribute(device, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
  prop->canMapHostMemory = 1;
  prop->cooperativeLaunch = 1;
  prop->managedMemory = 1;
  prop->concurrentManagedAccess = 1;
  prop->ECCEnabled = 1;
  snprintf(prop->gcnArchName, sizeof prop->gcnArchName, "softgpu");
  return hipSuccess;
}

HIP_API hipDevicePrimaryCtxRetain(hipCtx_t* context, hipDevice_t device) {
  if (CUresult r = cuInit(0)) return Say(r);
  return Say(cuDevicePrimaryCtxRetain(reinterpret_cast<CUcontext*>(context), device));
}
HIP_API hipDevicePrimaryCtxRelease(hipDevice_t device) {
  return Say(cuDevicePrimaryCtxRelease(device));
}
HIP_API hipDevicePrimaryCtxReset(hipDevice_t device) {
  return Say(cuDevicePrimaryCtxReset(device));
}
HIP_API hipDevicePrimaryCtxGetState(hipDevice_t device, unsigned* flags, int* active) {
  if (CUresult r = cuInit(0)) return Say(r);
  return Say(cuDevicePrimaryCtxGetState(device, flags, active));
}
HIP_API hipDevicePrimaryCtxSetFlags(hipDevice_t device, unsigned flags) {
  return Say(cuDevicePrimaryCtxSetFlags(device, flags));
}
HIP_API hipCtxCreate(hipCtx_t* context, unsigned flags, hipDevice_t device) {
  if (CUresult r = cuInit(0)) return Say(r);
  return Say(cuCtxCreate_v4(reinterpret_cast<CUcontext*>(context), nullptr, flags, device));
}
HIP_API hipCtxDestroy(hipCtx_t context) {
  return Say(cuCtxDestroy(reinterpret_cast<CUcontext>(context)));
}
HIP_API hipCtxPushCurrent(hipCtx_t context) {
  return Say(cuCtxPushCurrent(reinterpret_cast<CUcontext>(context)));
}
HIP_API hipCtxPopCurrent(hipCtx_t* context) {
  return Say(cuCtxPopCurrent(reinterpret_cast<CUcontext*>(context)));
}
HIP_API hipCtxSetCurrent(hipCtx_t context) {
  return Say(cuCtxSetCurrent(reinterpret_cast<CUcontext>(context)));
}
HIP_API hipCtxGetCurrent(hipCtx_t* context) {
  HIP_ENTER();
  return Say(cuCtxGetCurrent(reinterpret_cast<CUcontext*>(context)));
}
HIP_API hipCtxGetDevice(hipDevice_t* device) {
  HIP_ENTER();
  return Say(cuCtxGetDevice(device));
}
HIP_API hipCtxSynchronize() {
  HIP_ENTER();
  return Say(cuCtxSynchronize());
}
HIP_API hipProfilerStart() {
  return hipSuccess;
}
HIP_API hipProfilerStop() {
  return hipSuccess;
}

// Streams and events.

HIP_API hipStreamCreateWithPriority(hipStream_t* stream, unsigned flags, int priority) {
  HIP_ENTER();
  return Say(cuStreamCreateWithPriority(reinterpret_cast<CUstream*>(stream), flags, priority));
}
HIP_API hipStreamCreateWithFlags(hipStream_t* stream, unsigned flags) {
  return hipStreamCreateWithPriority(stream, flags, 0);
}
HIP_API hipStreamCreate(hipStream_t* stream) {
  return hipStreamCreateWithPriority(stream, 0, 0);
}
HIP_API hipStreamDestroy(hipStream_t stream) {
  HIP_ENTER();
  return Say(cuStreamDestroy(S(stream)));
}
HIP_API hipStreamSynchronize(hipStream_t stream) {
  HIP_ENTER();
  return Say(cuStreamSynchronize(S(stream)));
}
HIP_API hipStreamQuery(hipStream_t stream) {
  HIP_ENTER();
  return Say(cuStreamQuery(S(stream)));
}
HIP_API hipStreamGetPriority(hipStream_t stream, int* priority) {
  HIP_ENTER();
  return Say(cuStreamGetPriority(S(stream), priority));
}
HIP_API hipStreamGetFlags(hipStream_t stream, unsigned* flags) {
  HIP_ENTER();
  return Say(cuStreamGetFlags(S(stream), flags));
}
HIP_API hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned flags) {
  HIP_ENTER();
  return Say(cuStreamWaitEvent(S(stream), E(event), flags));
}
HIP_API hipStreamAddCallback(hipStream_t stream, hipStreamCallback_t callback, void* data,
                             unsigned flags) {
  HIP_ENTER();
  return Say(
      cuStreamAddCallback(S(stream), reinterpret_cast<CUstreamCallback>(callback), data, flags));
}
HIP_API hipLaunchHostFunc(hipStream_t stream, hipHostFn_t fn, void* data) {
  HIP_ENTER();
  return Say(cuLaunchHostFunc(S(stream), fn, data));
}
HIP_API hipStreamAttachMemAsync(hipStream_t stream, void* pointer, size_t bytes, unsigned flags) {
  HIP_ENTER();
  return Say(cuStreamAttachMemAsync(S(stream), At(pointer), bytes, flags));
}
HIP_API hipStreamWriteValue32(hipStream_t stream, void* pointer, uint32_t value, unsigned) {
  HIP_ENTER();
  return Say(cuStreamWriteValue32(S(stream), At(pointer), value, 0));
}
HIP_API hipStreamWriteValue64(hipStream_t stream, void* pointer, uint64_t value, unsigned) {
  HIP_ENTER();
  return Say(cuStreamWriteValue64(S(stream), At(pointer), value, 0));
}
HIP_API hipStreamWaitValue32(hipStream_t stream, void* pointer, uint32_t value, unsigned flags,
                             uint32_t mask) {
  HIP_ENTER();
  if (mask != 0xFFFFFFFFu) return Say(hipErrorNotSupported);
  return Say(cuStreamWaitValue32(S(stream), At(pointer), value, flags));
}
HIP_API hipStreamWaitValue64(hipStream_t stream, void* pointer, uint64_t value, unsigned flags,
                             uint64_t mask) {
  HIP_ENTER();
  if (mask != ~uint64_t{0}) return Say(hipErrorNotSupported);
  return Say(cuStreamWaitValue64(S(stream), At(pointer), value, flags));
}

HIP_API hipEventCreateWithFlags(hipEvent_t* event, unsigned flags) {
  HIP_ENTER();
  // HIP's own flags (release scope, reverse order) change nothing here.
  return Say(cuEventCreate(reinterpret_cast<CUevent*>(event), flags & 0x7));
}
HIP_API hipEventCreate(hipEvent_t* event) {
  return hipEventCreateWithFlags(event, 0);
}
HIP_API hipEventDestroy(hipEvent_t event) {
  return Say(cuEventDestroy(E(event)));
}
HIP_API hipEventRecord(hipEvent_t event, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuEventRecord(E(event), S(stream)));
}
HIP_API hipEventQuery(hipEvent_t event) {
  return Say(cuEventQuery(E(event)));
}
HIP_API hipEventSynchronize(hipEvent_t event) {
  return Say(cuEventSynchronize(E(event)));
}
HIP_API hipEventElapsedTime(float* ms, hipEvent_t start, hipEvent_t end) {
  return Say(cuEventElapsedTime_v2(ms, E(start), E(end)));
}

// Memory.

HIP_API hipMalloc(void** out, size_t bytes) {
  HIP_ENTER();
  if (out == nullptr) return Say(hipErrorInvalidValue);
  *out = nullptr;
  if (bytes == 0) return hipSuccess;
  return Say(cuMemAlloc(reinterpret_cast<CUdeviceptr*>(out), bytes));
}
HIP_API hipExtMallocWithFlags(void** out, size_t bytes, unsigned) {
  return hipMalloc(out, bytes);
}
HIP_API hipMallocManaged(void** out, size_t bytes, unsigned flags) {
  HIP_ENTER();
  return Say(cuMemAllocManaged(reinterpret_cast<CUdeviceptr*>(out), bytes, flags));
}
HIP_API hipMallocPitch(void** out, size_t* pitch, size_t width, size_t height) {
  HIP_ENTER();
  return Say(cuMemAllocPitch(reinterpret_cast<CUdeviceptr*>(out), pitch, width, height, 4));
}
HIP_API hipMemAllocPitch(hipDeviceptr_t* out, size_t* pitch, size_t width, size_t height,
                         unsigned element) {
  HIP_ENTER();
  return Say(cuMemAllocPitch(reinterpret_cast<CUdeviceptr*>(out), pitch, width, height, element));
}
HIP_API hipMalloc3D(hipPitchedPtr* out, hipExtent extent) {
  HIP_ENTER();
  if (out == nullptr) return Say(hipErrorInvalidValue);
  CUdeviceptr address = 0;
  size_t pitch = 0;
  const CUresult result =
      cuMemAllocPitch(&address, &pitch, extent.width, extent.height * extent.depth, 4);
  if (result == CUDA_SUCCESS)
    *out = {reinterpret_cast<void*>(address), pitch, extent.width, extent.height};
  return Say(result);
}
HIP_API hipFree(void* pointer) {
  HIP_ENTER();
  return Say(cuMemFree(At(pointer)));
}
HIP_API hipHostMalloc(void** out, size_t bytes, unsigned flags) {
  HIP_ENTER();
  return Say(cuMemHostAlloc(out, bytes, flags & 0x7));
}
HIP_API hipHostAlloc(void** out, size_t bytes, unsigned flags) {
  return hipHostMalloc(out, bytes, flags);
}
HIP_API hipMallocHost(void** out, size_t bytes) {
  return hipHostMalloc(out, bytes, 0);
}
HIP_API hipMemAllocHost(void** out, size_t bytes) {
  return hipHostMalloc(out, bytes, 0);
}
HIP_API hipHostFree(void* pointer) {
  HIP_ENTER();
  if (pointer == nullptr) return hipSuccess;
  return Say(cuMemFreeHost(pointer));
}
HIP_API hipFreeHost(void* pointer) {
  return hipHostFree(pointer);
}
HIP_API hipHostRegister(void* pointer, size_t bytes, unsigned flags) {
  HIP_ENTER();
  return Say(cuMemHostRegister_v2(pointer, bytes, flags & 0x7));
}
HIP_API hipHostUnregister(void* pointer) {
  HIP_ENTER();
  return Say(cuMemHostUnregister(pointer));
}
HIP_API hipHostGetDevicePointer(void** out, void* pointer, unsigned flags) {
  HIP_ENTER();
  return Say(cuMemHostGetDevicePointer(reinterpret_cast<CUdeviceptr*>(out), pointer, flags));
}
HIP_API hipHostGetFlags(unsigned* flags, void* pointer) {
  HIP_ENTER();
  return Say(cuMemHostGetFlags(flags, pointer));
}
HIP_API hipMemGetInfo(size_t* free_bytes, size_t* total) {
  HIP_ENTER();
  return Say(cuMemGetInfo(free_bytes, total));
}
HIP_API hipMemGetAddressRange(hipDeviceptr_t* base, size_t* bytes, hipDeviceptr_t pointer) {
  HIP_ENTER();
  return Say(cuMemGetAddressRange(reinterpret_cast<CUdeviceptr*>(base), bytes, At(pointer)));
}
HIP_API hipMemPtrGetInfo(void* pointer, size_t* bytes) {
  HIP_ENTER();
  return Say(cuMemGetAddressRange(nullptr, bytes, At(pointer)));
}
HIP_API hipPointerGetAttribute(void* data, hipPointer_attribute attribute, hipDeviceptr_t pointer) {
  HIP_ENTER();
  return Say(cuPointerGetAttribute(data, static_cast<CUpointer_attribute>(attribute), At(pointer)));
}
HIP_API hipPointerGetAttributes(hipPointerAttribute_t* out, const void* pointer) {
  HIP_ENTER();
  if (out == nullptr) return Say(hipErrorInvalidValue);
  CUmemorytype type;
  if (CUresult r = cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, At(pointer)))
    return Say(r);
  unsigned managed = 0;
  cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, At(pointer));
  std::memset(out, 0, sizeof *out);
  out->memoryType = type == CU_MEMORYTYPE_HOST ? hipMemoryTypeHost : hipMemoryTypeDevice;
  out->devicePointer = const_cast<void*>(pointer);
  out->hostPointer =
      type == CU_MEMORYTYPE_HOST || managed != 0 ? const_cast<void*>(pointer) : nullptr;
  out->isManaged = static_cast<int>(managed);
  cuPointerGetAttribute(&out->device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, At(pointer));
  return hipSuccess;
}
HIP_API hipMallocAsync(void** out, size_t bytes, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuMemAllocAsync(reinterpret_cast<CUdeviceptr*>(out), bytes, S(stream)));
}
HIP_API hipMallocFromPoolAsync(void** out, size_t bytes, hipMemPool_t pool, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuMemAllocFromPoolAsync(reinterpret_cast<CUdeviceptr*>(out), bytes,
                                     reinterpret_cast<CUmemoryPool>(pool), S(stream)));
}
HIP_API hipFreeAsync(void* pointer, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuMemFreeAsync(At(pointer), S(stream)));
}
HIP_API hipDeviceGetDefaultMemPool(hipMemPool_t* pool, int device) {
  HIP_ENTER();
  return Say(cuDeviceGetDefaultMemPool(reinterpret_cast<CUmemoryPool*>(pool), device));
}
HIP_API hipDeviceGetMemPool(hipMemPool_t* pool, int device) {
  HIP_ENTER();
  return Say(cuDeviceGetMemPool(reinterpret_cast<CUmemoryPool*>(pool), device));
}
HIP_API hipDeviceSetMemPool(int device, hipMemPool_t pool) {
  HIP_ENTER();
  return Say(cuDeviceSetMemPool(device, reinterpret_cast<CUmemoryPool>(pool)));
}
HIP_API hipMemPoolCreate(hipMemPool_t* pool, const hipMemPoolProps* props) {
  HIP_ENTER();
  if (props == nullptr) return Say(hipErrorInvalidValue);
  CUmemPoolProps p{};
  p.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  p.location.id = props->location.id;
  return Say(cuMemPoolCreate(reinterpret_cast<CUmemoryPool*>(pool), &p));
}
HIP_API hipMemPoolDestroy(hipMemPool_t pool) {
  return Say(cuMemPoolDestroy(reinterpret_cast<CUmemoryPool>(pool)));
}
HIP_API hipMemPoolTrimTo(hipMemPool_t pool, size_t keep) {
  return Say(cuMemPoolTrimTo(reinterpret_cast<CUmemoryPool>(pool), keep));
}
HIP_API hipMemPoolSetAttribute(hipMemPool_t pool, hipMemPoolAttr attribute, void* value) {
  return Say(cuMemPoolSetAttribute(reinterpret_cast<CUmemoryPool>(pool),
                                   static_cast<CUmemPool_attribute>(attribute), value));
}
HIP_API hipMemPoolGetAttribute(hipMemPool_t pool, hipMemPoolAttr attribute, void* value) {
  return Say(cuMemPoolGetAttribute(reinterpret_cast<CUmemoryPool>(pool),
                                   static_cast<CUmemPool_attribute>(attribute), value));
}
HIP_API hipMemAddressReserve(void** out, size_t bytes, size_t alignment, void* address,
                             unsigned long long flags) {
  HIP_ENTER();
  return Say(cuMemAddressReserve(reinterpret_cast<CUdeviceptr*>(out), bytes, alignment, At(address),
                                 flags));
}
HIP_API hipMemAddressFree(void* pointer, size_t bytes) {
  return Say(cuMemAddressFree(At(pointer), bytes));
}

namespace {
CUmemAllocationProp Prop(const hipMemAllocationProp& prop) {
  CUmemAllocationProp p{};
  p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  p.location.id = prop.location.id;
  return p;
}
}  // namespace

HIP_API hipMemCreate(hipMemGenericAllocationHandle_t* out, size_t bytes,
                     const hipMemAllocationProp* prop, unsigned long long flags) {
  HIP_ENTER();
  if (prop == nullptr || out == nullptr) return Say(hipErrorInvalidValue);
  const CUmemAllocationProp p = Prop(*prop);
  return Say(cuMemCreate(reinterpret_cast<CUmemGenericAllocationHandle*>(out), bytes, &p, flags));
}
HIP_API hipMemRelease(hipMemGenericAllocationHandle_t handle) {
  return Say(cuMemRelease(reinterpret_cast<CUmemGenericAllocationHandle>(handle)));
}
HIP_API hipMemMap(void* pointer, size_t bytes, size_t offset,
                  hipMemGenericAllocationHandle_t handle, unsigned long long flags) {
  return Say(cuMemMap(At(pointer), bytes, offset,
                      reinterpret_cast<CUmemGenericAllocationHandle>(handle), flags));
}
HIP_API hipMemUnmap(void* pointer, size_t bytes) {
  return Say(cuMemUnmap(At(pointer), bytes));
}
HIP_API hipMemSetAccess(void* pointer, size_t bytes, const hipMemAccessDesc*, size_t count) {
  const CUmemAccessDesc any{};
  return Say(cuMemSetAccess(At(pointer), bytes, &any, count));
}
HIP_API hipMemGetAllocationGranularity(size_t* out, const hipMemAllocationProp* prop,
                                       hipMemAllocationGranularity_flags option) {
  if (prop == nullptr) return Say(hipErrorInvalidValue);
  const CUmemAllocationProp p = Prop(*prop);
  return Say(cuMemGetAllocationGranularity(out, &p,
                                           static_cast<CUmemAllocationGranularity_flags>(option)));
}
HIP_API hipMemPrefetchAsync(const void* pointer, size_t, int, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuStreamAttachMemAsync(S(stream), At(pointer), 0, 0));
}
HIP_API hipMemAdvise(const void* pointer, size_t, hipMemoryAdvise, int) {
  HIP_ENTER();
  return Say(cuMemGetAddressRange(nullptr, nullptr, At(pointer)));
}
HIP_API hipIpcGetMemHandle(hipIpcMemHandle_t* handle, void* pointer) {
  HIP_ENTER();
  static_assert(sizeof(hipIpcMemHandle_t) >= 64);
  return Say(cuIpcGetMemHandle(reinterpret_cast<CUipcMemHandle*>(handle), At(pointer)));
}
HIP_API hipIpcOpenMemHandle(void** out, hipIpcMemHandle_t handle, unsigned flags) {
  HIP_ENTER();
  CUipcMemHandle h;
  std::memcpy(&h, &handle, sizeof h);
  return Say(cuIpcOpenMemHandle(reinterpret_cast<CUdeviceptr*>(out), h, flags));
}
HIP_API hipIpcCloseMemHandle(void* pointer) {
  HIP_ENTER();
  return Say(cuIpcCloseMemHandle(At(pointer)));
}

// Copies and fills.

HIP_API hipMemcpy(void* dst, const void* src, size_t n, hipMemcpyKind) {
  HIP_ENTER();
  return Say(Copy(dst, src, n, nullptr, false));
}
HIP_API hipMemcpyAsync(void* dst, const void* src, size_t n, hipMemcpyKind, hipStream_t stream) {
  HIP_ENTER();
  return Say(Copy(dst, src, n, S(stream), true));
}
HIP_API hipMemcpyWithStream(void* dst, const void* src, size_t n, hipMemcpyKind,
                            hipStream_t stream) {
  HIP_ENTER();
  if (CUresult r = Copy(dst, src, n, S(stream), true)) return Say(r);
  return Say(cuStreamSynchronize(S(stream)));
}
HIP_API hipMemcpyHtoD(hipDeviceptr_t dst, void* src, size_t n) {
  HIP_ENTER();
  return Say(cuMemcpyHtoD(At(dst), src, n));
}
HIP_API hipMemcpyHtoDAsync(hipDeviceptr_t dst, void* src, size_t n, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuMemcpyHtoDAsync(At(dst), src, n, S(stream)));
}
HIP_API hipMemcpyDtoH(void* dst, hipDeviceptr_t src, size_t n) {
  HIP_ENTER();
  return Say(cuMemcpyDtoH(dst, At(src), n));
}
HIP_API hipMemcpyDtoHAsync(void* dst, hipDeviceptr_t src, size_t n, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuMemcpyDtoHAsync(dst, At(src), n, S(stream)));
}
HIP_API hipMemcpyDtoD(hipDeviceptr_t dst, hipDeviceptr_t src, size_t n) {
  HIP_ENTER();
  return Say(cuMemcpyDtoD(At(dst), At(src), n));
}
HIP_API hipMemcpyDtoDAsync(hipDeviceptr_t dst, hipDeviceptr_t src, size_t n, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuMemcpyDtoDAsync(At(dst), At(src), n, S(stream)));
}
HIP_API hipMemcpyPeer(void* dst, int, const void* src, int, size_t n) {
  HIP_ENTER();
  return Say(cuMemcpyDtoD(At(dst), At(src), n));
}
HIP_API hipMemcpyPeerAsync(void* dst, int, const void* src, int, size_t n, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuMemcpyDtoDAsync(At(dst), At(src), n, S(stream)));
}
HIP_API hipMemcpy2D(void* dst, size_t dst_pitch, const void* src, size_t src_pitch, size_t width,
                    size_t height, hipMemcpyKind) {
  HIP_ENTER();
  const CUDA_MEMCPY2D box = Box(dst, dst_pitch, src, src_pitch, width, height);
  return Say(cuMemcpy2D(&box));
}
HIP_API hipMemcpy2DAsync(void* dst, size_t dst_pitch, const void* src, size_t src_pitch,
                         size_t width, size_t height, hipMemcpyKind, hipStream_t stream) {
  HIP_ENTER();
  const CUDA_MEMCPY2D box = Box(dst, dst_pitch, src, src_pitch, width, height);
  return Say(cuMemcpy2DAsync(&box, S(stream)));
}

namespace {
hipError_t Fill(const void* p, size_t pitch, unsigned value, unsigned element, size_t width,
                size_t height, hipStream_t stream, bool async) {
  HIP_ENTER();
  const CUstream s = S(stream);
  CUresult r;
  if (element == 1) {
    r = async ? cuMemsetD2D8Async(At(p), pitch, static_cast<unsigned char>(value), width, height, s)
              : cuMemsetD2D8(At(p), pitch, static_cast<unsigned char>(value), width, height);
  } else if (element == 2) {
    r = async
            ? cuMemsetD2D16Async(At(p), pitch, static_cast<unsigned short>(value), width, height, s)
            : cuMemsetD2D16(At(p), pitch, static_cast<unsigned short>(value), width, height);
  } else {
    r = async ? cuMemsetD2D32Async(At(p), pitch, value, width, height, s)
              : cuMemsetD2D32(At(p), pitch, value, width, height);
  }
  return Say(r);
}
}  // namespace

HIP_API hipMemset(void* p, int v, size_t n) {
  return Fill(p, 0, static_cast<unsigned>(v), 1, n, 1, nullptr, false);
}
HIP_API hipMemsetAsync(void* p, int v, size_t n, hipStream_t s) {
  return Fill(p, 0, static_cast<unsigned>(v), 1, n, 1, s, true);
}
HIP_API hipMemset2D(void* p, size_t pitch, int v, size_t w, size_t h) {
  return Fill(p, pitch, static_cast<unsigned>(v), 1, w, h, nullptr, false);
}
HIP_API hipMemset2DAsync(void* p, size_t pitch, int v, size_t w, size_t h, hipStream_t s) {
  return Fill(p, pitch, static_cast<unsigned>(v), 1, w, h, s, true);
}
HIP_API hipMemset3D(hipPitchedPtr p, int v, hipExtent e) {
  return Fill(p.ptr, p.pitch, static_cast<unsigned>(v), 1, e.width, e.height * e.depth, nullptr,
              false);
}
HIP_API hipMemset3DAsync(hipPitchedPtr p, int v, hipExtent e, hipStream_t s) {
  return Fill(p.ptr, p.pitch, static_cast<unsigned>(v), 1, e.width, e.height * e.depth, s, true);
}
HIP_API hipMemsetD8(hipDeviceptr_t p, unsigned char v, size_t n) {
  return Fill(p, 0, v, 1, n, 1, nullptr, false);
}
HIP_API hipMemsetD8Async(hipDeviceptr_t p, unsigned char v, size_t n, hipStream_t s) {
  return Fill(p, 0, v, 1, n, 1, s, true);
}
HIP_API hipMemsetD16(hipDeviceptr_t p, unsigned short v, size_t n) {
  return Fill(p, 0, v, 2, n, 1, nullptr, false);
}
HIP_API hipMemsetD16Async(hipDeviceptr_t p, unsigned short v, size_t n, hipStream_t s) {
  return Fill(p, 0, v, 2, n, 1, s, true);
}
HIP_API hipMemsetD32(hipDeviceptr_t p, int v, size_t n) {
  return Fill(p, 0, static_cast<unsigned>(v), 4, n, 1, nullptr, false);
}
HIP_API hipMemsetD32Async(hipDeviceptr_t p, int v, size_t n, hipStream_t s) {
  return Fill(p, 0, static_cast<unsigned>(v), 4, n, 1, s, true);
}

// Modules and launches.

HIP_API hipModuleLoadData(hipModule_t* module, const void* image) {
  HIP_ENTER();
  return Say(cuModuleLoadData(reinterpret_cast<CUmodule*>(module), image));
}
HIP_API hipModuleLoadDataEx(hipModule_t* module, const void* image, unsigned, hipJitOption*,
                            void**) {
  return hipModuleLoadData(module, image);
}
HIP_API hipModuleLoad(hipModule_t* module, const char* path) {
  HIP_ENTER();
  return Say(cuModuleLoad(reinterpret_cast<CUmodule*>(module), path));
}
HIP_API hipModuleUnload(hipModule_t module) {
  HIP_ENTER();
  return Say(cuModuleUnload(reinterpret_cast<CUmodule>(module)));
}
HIP_API hipModuleGetFunction(hipFunction_t* function, hipModule_t module, const char* name) {
  HIP_ENTER();
  return Say(cuModuleGetFunction(reinterpret_cast<CUfunction*>(function),
                                 reinterpret_cast<CUmodule>(module), name));
}
HIP_API hipModuleGetGlobal(hipDeviceptr_t* address, size_t* bytes, hipModule_t module,
                           const char* name) {
  HIP_ENTER();
  return Say(cuModuleGetGlobal(reinterpret_cast<CUdeviceptr*>(address), bytes,
                               reinterpret_cast<CUmodule>(module), name));
}
HIP_API hipFuncGetAttribute(int* value, hipFunction_attribute attribute, hipFunction_t function) {
  return Say(cuFuncGetAttribute(value, static_cast<CUfunction_attribute>(attribute), F(function)));
}
HIP_API hipFuncGetAttributes(hipFuncAttributes* out, const void* pointer) {
  HIP_ENTER();
  CUfunction f;
  if (out == nullptr) return Say(hipErrorInvalidValue);
  if (CUresult r = FunctionOf(pointer, &f)) return Say(r);
  std::memset(out, 0, sizeof *out);
  int shared = 0;
  if (CUresult r = cuFuncGetAttribute(&out->numRegs, CU_FUNC_ATTRIBUTE_NUM_REGS, f)) return Say(r);
  cuFuncGetAttribute(&out->maxThreadsPerBlock, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, f);
  cuFuncGetAttribute(&out->maxDynamicSharedSizeBytes,
                     CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, f);
  cuFuncGetAttribute(&shared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, f);
  out->sharedSizeBytes = static_cast<size_t>(shared);
  return hipSuccess;
}
HIP_API hipFuncSetAttribute(const void* pointer, hipFuncAttribute attribute, int value) {
  HIP_ENTER();
  CUfunction f;
  if (CUresult r = FunctionOf(pointer, &f)) return Say(r);
  return Say(cuFuncSetAttribute(f, static_cast<CUfunction_attribute>(attribute), value));
}
HIP_API hipFuncSetCacheConfig(const void*, hipFuncCache_t) {
  return hipSuccess;
}

HIP_API hipModuleLaunchKernel(hipFunction_t f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                              unsigned by, unsigned bz, unsigned shared, hipStream_t stream,
                              void** params, void** extra) {
  HIP_ENTER();
  return Say(Launch(F(f), dim3(gx, gy, gz), dim3(bx, by, bz), shared, S(stream), params, extra));
}
HIP_API hipLaunchKernel(const void* f, dim3 grid, dim3 block, void** args, size_t shared,
                        hipStream_t stream) {
  HIP_ENTER();
  CUfunction function;
  if (CUresult r = FunctionOf(f, &function)) return Say(r);
  return Say(
      Launch(function, grid, block, static_cast<unsigned>(shared), S(stream), args, nullptr));
}
HIP_API hipExtLaunchKernel(const void* f, dim3 grid, dim3 block, void** args, size_t shared,
                           hipStream_t stream, hipEvent_t start, hipEvent_t stop, int) {
  HIP_ENTER();
  CUfunction function;
  if (CUresult r = FunctionOf(f, &function)) return Say(r);
  return Say(Launch(function, grid, block, static_cast<unsigned>(shared), S(stream), args, nullptr,
                    start, stop));
}
HIP_API hipLaunchCooperativeKernel(const void* f, dim3 grid, dim3 block, void** args,
                                   unsigned shared, hipStream_t stream) {
  HIP_ENTER();
  CUfunction function;
  if (CUresult r = FunctionOf(f, &function)) return Say(r);
  return Say(cuLaunchCooperativeKernel(function, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                                       shared, S(stream), args));
}
HIP_API hipModuleLaunchCooperativeKernel(hipFunction_t f, unsigned gx, unsigned gy, unsigned gz,
                                         unsigned bx, unsigned by, unsigned bz, unsigned shared,
                                         hipStream_t stream, void** params) {
  HIP_ENTER();
  return Say(cuLaunchCooperativeKernel(F(f), gx, gy, gz, bx, by, bz, shared, S(stream), params));
}

// These two have C++ names, and count threads, not blocks.
HIP_API_CXX hipExtModuleLaunchKernel(hipFunction_t f, uint32_t tx, uint32_t ty, uint32_t tz,
                                     uint32_t bx, uint32_t by, uint32_t bz, size_t shared,
                                     hipStream_t stream, void** params, void** extra,
                                     hipEvent_t start, hipEvent_t stop, uint32_t) {
  HIP_ENTER();
  if (bx == 0 || by == 0 || bz == 0) return Say(hipErrorInvalidValue);
  return Say(Launch(F(f), dim3((tx + bx - 1) / bx, (ty + by - 1) / by, (tz + bz - 1) / bz),
                    dim3(bx, by, bz), static_cast<unsigned>(shared), S(stream), params, extra,
                    start, stop));
}
HIP_API_CXX hipHccModuleLaunchKernel(hipFunction_t f, uint32_t tx, uint32_t ty, uint32_t tz,
                                     uint32_t bx, uint32_t by, uint32_t bz, size_t shared,
                                     hipStream_t stream, void** params, void** extra,
                                     hipEvent_t start, hipEvent_t stop) {
  return hipExtModuleLaunchKernel(f, tx, ty, tz, bx, by, bz, shared, stream, params, extra, start,
                                  stop, 0);
}

namespace {
struct CallConfiguration {
  dim3 grid, block;
  size_t shared;
  hipStream_t stream;
};
thread_local std::vector<CallConfiguration> configurations;
}  // namespace

HIP_API __hipPushCallConfiguration(dim3 grid, dim3 block, size_t shared, hipStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return hipSuccess;
}
HIP_API __hipPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, hipStream_t* stream) {
  if (configurations.empty()) return Say(hipErrorInvalidConfiguration);
  const CallConfiguration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *stream = c.stream;
  return hipSuccess;
}

extern "C" __attribute__((visibility("default"))) void** __hipRegisterFatBinary(const void* data) {
  const auto* wrapper = static_cast<const rubato::softgpu::HipFatBinary*>(data);
  if (wrapper == nullptr || wrapper->magic != rubato::softgpu::kHipFatMagic) return nullptr;
  return new void*(const_cast<void*>(wrapper->image));
}
extern "C" __attribute__((visibility("default"))) void __hipUnregisterFatBinary(void** modules) {
  if (modules == nullptr) return;
  std::lock_guard<std::mutex> guard(Lock());
  Registry& r = TheRegistry();
  std::erase_if(r.kernels, [&](const auto& k) { return k.second.image == *modules; });
  std::erase_if(r.variables, [&](const auto& k) { return k.second.image == *modules; });
  delete modules;
}
extern "C" __attribute__((visibility("default"))) void __hipRegisterFunction(
    void** modules, const void* host, char*, const char* name, unsigned, void*, void*, void*, void*,
    int*) {
  if (modules == nullptr || name == nullptr) return;
  std::lock_guard<std::mutex> guard(Lock());
  TheRegistry().kernels[host] = {name, *modules};
}
extern "C" __attribute__((visibility("default"))) void __hipRegisterVar(void** modules, void* host,
                                                                        char*, char* name, int,
                                                                        size_t, int, int) {
  if (modules == nullptr || name == nullptr) return;
  std::lock_guard<std::mutex> guard(Lock());
  TheRegistry().variables[host] = {name, *modules};
}

namespace {
CUresult SymbolOf(const void* symbol, CUdeviceptr* address, size_t* bytes) {
  std::lock_guard<std::mutex> guard(Lock());
  auto it = TheRegistry().variables.find(symbol);
  if (it == TheRegistry().variables.end()) return CUDA_ERROR_NOT_FOUND;
  CUmodule module;
  if (CUresult r = ModuleOf(it->second.image, &module)) return r;
  return cuModuleGetGlobal(address, bytes, module, it->second.name.c_str());
}
}  // namespace

HIP_API hipGetSymbolAddress(void** address, const void* symbol) {
  HIP_ENTER();
  size_t bytes;
  return Say(SymbolOf(symbol, reinterpret_cast<CUdeviceptr*>(address), &bytes));
}
HIP_API hipGetSymbolSize(size_t* bytes, const void* symbol) {
  HIP_ENTER();
  CUdeviceptr address;
  return Say(SymbolOf(symbol, &address, bytes));
}
HIP_API hipMemcpyToSymbol(const void* symbol, const void* src, size_t n, size_t offset,
                          hipMemcpyKind) {
  HIP_ENTER();
  CUdeviceptr address;
  size_t bytes;
  if (CUresult r = SymbolOf(symbol, &address, &bytes)) return Say(r);
  if (offset > bytes || n > bytes - offset) return Say(hipErrorInvalidValue);
  return Say(cuMemcpy(address + offset, At(src), n));
}
HIP_API hipMemcpyFromSymbol(void* dst, const void* symbol, size_t n, size_t offset, hipMemcpyKind) {
  HIP_ENTER();
  CUdeviceptr address;
  size_t bytes;
  if (CUresult r = SymbolOf(symbol, &address, &bytes)) return Say(r);
  if (offset > bytes || n > bytes - offset) return Say(hipErrorInvalidValue);
  return Say(cuMemcpy(At(dst), address + offset, n));
}

HIP_API hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, hipFunction_t f,
                                                           int threads, size_t shared) {
  HIP_ENTER();
  return Say(cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, F(f), threads, shared));
}
HIP_API hipModuleOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, hipFunction_t f,
                                                                    int threads, size_t shared,
                                                                    unsigned) {
  return hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(blocks, f, threads, shared);
}
HIP_API hipOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* f, int threads,
                                                     size_t shared) {
  HIP_ENTER();
  CUfunction function;
  if (CUresult r = FunctionOf(f, &function)) return Say(r);
  return Say(cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared));
}
HIP_API hipOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* f,
                                                              int threads, size_t shared,
                                                              unsigned) {
  return hipOccupancyMaxActiveBlocksPerMultiprocessor(blocks, f, threads, shared);
}
HIP_API hipModuleOccupancyMaxPotentialBlockSize(int* grid, int* block, hipFunction_t f,
                                                size_t shared, int limit) {
  HIP_ENTER();
  return Say(cuOccupancyMaxPotentialBlockSize(grid, block, F(f), nullptr, shared, limit));
}

// Capture and graphs.

HIP_API hipStreamBeginCapture(hipStream_t stream, hipStreamCaptureMode mode) {
  HIP_ENTER();
  return Say(cuStreamBeginCapture(S(stream), static_cast<CUstreamCaptureMode>(mode)));
}
HIP_API hipStreamEndCapture(hipStream_t stream, hipGraph_t* graph) {
  HIP_ENTER();
  return Say(cuStreamEndCapture(S(stream), reinterpret_cast<CUgraph*>(graph)));
}
HIP_API hipStreamIsCapturing(hipStream_t stream, hipStreamCaptureStatus* status) {
  HIP_ENTER();
  return Say(cuStreamIsCapturing(S(stream), reinterpret_cast<CUstreamCaptureStatus*>(status)));
}
HIP_API hipStreamGetCaptureInfo_v2(hipStream_t stream, hipStreamCaptureStatus* status,
                                   unsigned long long* id, hipGraph_t* graph,
                                   const hipGraphNode_t** nodes, size_t* count) {
  HIP_ENTER();
  cuuint64_t number = 0;
  const CUresult r =
      cuStreamGetCaptureInfo_v3(S(stream), reinterpret_cast<CUstreamCaptureStatus*>(status),
                                &number, reinterpret_cast<CUgraph*>(graph),
                                reinterpret_cast<const CUgraphNode**>(nodes), nullptr, count);
  if (id != nullptr) *id = number;
  return Say(r);
}
HIP_API hipStreamGetCaptureInfo(hipStream_t stream, hipStreamCaptureStatus* status,
                                unsigned long long* id) {
  return hipStreamGetCaptureInfo_v2(stream, status, id, nullptr, nullptr, nullptr);
}
HIP_API hipStreamUpdateCaptureDependencies(hipStream_t stream, hipGraphNode_t* nodes, size_t count,
                                           unsigned flags) {
  HIP_ENTER();
  return Say(cuStreamUpdateCaptureDependencies_v2(S(stream), N(nodes), nullptr, count, flags));
}
HIP_API hipThreadExchangeStreamCaptureMode(hipStreamCaptureMode* mode) {
  return Say(cuThreadExchangeStreamCaptureMode(reinterpret_cast<CUstreamCaptureMode*>(mode)));
}

HIP_API hipGraphCreate(hipGraph_t* graph, unsigned flags) {
  HIP_ENTER();
  return Say(cuGraphCreate(reinterpret_cast<CUgraph*>(graph), flags));
}
HIP_API hipGraphDestroy(hipGraph_t graph) {
  return Say(cuGraphDestroy(G(graph)));
}
HIP_API hipGraphClone(hipGraph_t* out, hipGraph_t graph) {
  return Say(cuGraphClone(reinterpret_cast<CUgraph*>(out), G(graph)));
}
HIP_API hipGraphAddKernelNode(hipGraphNode_t* out, hipGraph_t graph, const hipGraphNode_t* needs,
                              size_t count, const hipKernelNodeParams* params) {
  HIP_ENTER();
  CUfunction f;
  if (params == nullptr) return Say(hipErrorInvalidValue);
  if (CUresult r = FunctionOf(params->func, &f)) return Say(r);
  Extras extras(params->extra);
  const CUDA_KERNEL_NODE_PARAMS p = NodeParams(*params, f, extras.given);
  return Say(cuGraphAddKernelNode_v2(N(out), G(graph), N(needs), count, &p));
}
HIP_API hipGraphKernelNodeGetParams(hipGraphNode_t node, hipKernelNodeParams* out) {
  CUDA_KERNEL_NODE_PARAMS p;
  if (out == nullptr) return Say(hipErrorInvalidValue);
  if (CUresult r = cuGraphKernelNodeGetParams_v2(N(node), &p)) return Say(r);
  *out = {};
  out->func = p.func;
  out->gridDim = dim3(p.gridDimX, p.gridDimY, p.gridDimZ);
  out->blockDim = dim3(p.blockDimX, p.blockDimY, p.blockDimZ);
  out->sharedMemBytes = p.sharedMemBytes;
  out->kernelParams = p.kernelParams;
  return hipSuccess;
}
HIP_API hipGraphKernelNodeSetParams(hipGraphNode_t node, const hipKernelNodeParams* params) {
  HIP_ENTER();
  CUfunction f;
  if (params == nullptr) return Say(hipErrorInvalidValue);
  if (CUresult r = FunctionOf(params->func, &f)) return Say(r);
  Extras extras(params->extra);
  const CUDA_KERNEL_NODE_PARAMS p = NodeParams(*params, f, extras.given);
  return Say(cuGraphKernelNodeSetParams_v2(N(node), &p));
}
HIP_API hipGraphExecKernelNodeSetParams(hipGraphExec_t exec, hipGraphNode_t node,
                                        const hipKernelNodeParams* params) {
  HIP_ENTER();
  CUfunction f;
  if (params == nullptr) return Say(hipErrorInvalidValue);
  if (CUresult r = FunctionOf(params->func, &f)) return Say(r);
  Extras extras(params->extra);
  const CUDA_KERNEL_NODE_PARAMS p = NodeParams(*params, f, extras.given);
  return Say(cuGraphExecKernelNodeSetParams_v2(X(exec), N(node), &p));
}
HIP_API hipGraphAddMemcpyNode1D(hipGraphNode_t* out, hipGraph_t graph, const hipGraphNode_t* needs,
                                size_t count, void* dst, const void* src, size_t bytes,
                                hipMemcpyKind) {
  HIP_ENTER();
  CUDA_MEMCPY3D box{};
  box.srcMemoryType = box.dstMemoryType = CU_MEMORYTYPE_UNIFIED;
  box.srcDevice = At(src);
  box.dstDevice = At(dst);
  box.WidthInBytes = bytes;
  box.Height = box.Depth = 1;
  return Say(cuGraphAddMemcpyNode(N(out), G(graph), N(needs), count, &box, nullptr));
}
HIP_API hipGraphAddMemsetNode(hipGraphNode_t* out, hipGraph_t graph, const hipGraphNode_t* needs,
                              size_t count, const hipMemsetParams* params) {
  HIP_ENTER();
  if (params == nullptr) return Say(hipErrorInvalidValue);
  const CUDA_MEMSET_NODE_PARAMS p{At(params->dst),     params->pitch, params->value,
                                  params->elementSize, params->width, params->height};
  return Say(cuGraphAddMemsetNode(N(out), G(graph), N(needs), count, &p, nullptr));
}
HIP_API hipGraphAddHostNode(hipGraphNode_t* out, hipGraph_t graph, const hipGraphNode_t* needs,
                            size_t count, const hipHostNodeParams* params) {
  HIP_ENTER();
  if (params == nullptr) return Say(hipErrorInvalidValue);
  CUDA_HOST_NODE_PARAMS p{};
  p.fn = params->fn;
  p.userData = params->userData;
  return Say(cuGraphAddHostNode(N(out), G(graph), N(needs), count, &p));
}
HIP_API hipGraphAddEmptyNode(hipGraphNode_t* out, hipGraph_t graph, const hipGraphNode_t* needs,
                             size_t count) {
  HIP_ENTER();
  return Say(cuGraphAddEmptyNode(N(out), G(graph), N(needs), count));
}
HIP_API hipGraphAddChildGraphNode(hipGraphNode_t* out, hipGraph_t graph,
                                  const hipGraphNode_t* needs, size_t count, hipGraph_t child) {
  HIP_ENTER();
  return Say(cuGraphAddChildGraphNode(N(out), G(graph), N(needs), count, G(child)));
}
HIP_API hipGraphAddDependencies(hipGraph_t graph, const hipGraphNode_t* from,
                                const hipGraphNode_t* to, size_t count) {
  return Say(cuGraphAddDependencies_v2(G(graph), N(from), N(to), nullptr, count));
}
HIP_API hipGraphRemoveDependencies(hipGraph_t graph, const hipGraphNode_t* from,
                                   const hipGraphNode_t* to, size_t count) {
  return Say(cuGraphRemoveDependencies_v2(G(graph), N(from), N(to), nullptr, count));
}
HIP_API hipGraphGetNodes(hipGraph_t graph, hipGraphNode_t* nodes, size_t* count) {
  return Say(cuGraphGetNodes(G(graph), N(nodes), count));
}
HIP_API hipGraphGetRootNodes(hipGraph_t graph, hipGraphNode_t* nodes, size_t* count) {
  return Say(cuGraphGetRootNodes(G(graph), N(nodes), count));
}
HIP_API hipGraphGetEdges(hipGraph_t graph, hipGraphNode_t* from, hipGraphNode_t* to,
                         size_t* count) {
  return Say(cuGraphGetEdges_v2(G(graph), N(from), N(to), nullptr, count));
}
HIP_API hipGraphNodeGetDependencies(hipGraphNode_t node, hipGraphNode_t* nodes, size_t* count) {
  return Say(cuGraphNodeGetDependencies_v2(N(node), N(nodes), nullptr, count));
}
HIP_API hipGraphNodeGetDependentNodes(hipGraphNode_t node, hipGraphNode_t* nodes, size_t* count) {
  return Say(cuGraphNodeGetDependentNodes_v2(N(node), N(nodes), nullptr, count));
}
HIP_API hipGraphNodeGetType(hipGraphNode_t node, hipGraphNodeType* type) {
  CUgraphNodeType t;
  if (type == nullptr) return Say(hipErrorInvalidValue);
  if (CUresult r = cuGraphNodeGetType(N(node), &t)) return Say(r);
  switch (t) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
      *type = hipGraphNodeTypeKernel;
      break;
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      *type = hipGraphNodeTypeMemcpy;
      break;
    case CU_GRAPH_NODE_TYPE_MEMSET:
      *type = hipGraphNodeTypeMemset;
      break;
    case CU_GRAPH_NODE_TYPE_HOST:
      *type = hipGraphNodeTypeHost;
      break;
    case CU_GRAPH_NODE_TYPE_GRAPH:
      *type = hipGraphNodeTypeGraph;
      break;
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      *type = hipGraphNodeTypeEventRecord;
      break;
    default:
      *type = hipGraphNodeTypeEmpty;
  }
  return hipSuccess;
}
HIP_API hipGraphNodeFindInClone(hipGraphNode_t* out, hipGraphNode_t node, hipGraph_t clone) {
  return Say(cuGraphNodeFindInClone(N(out), N(node), G(clone)));
}
HIP_API hipGraphDestroyNode(hipGraphNode_t node) {
  return Say(cuGraphDestroyNode(N(node)));
}
HIP_API hipGraphInstantiateWithFlags(hipGraphExec_t* out, hipGraph_t graph,
                                     unsigned long long flags) {
  HIP_ENTER();
  return Say(cuGraphInstantiateWithFlags(reinterpret_cast<CUgraphExec*>(out), G(graph), flags));
}
HIP_API hipGraphInstantiate(hipGraphExec_t* out, hipGraph_t graph, hipGraphNode_t*, char*, size_t) {
  return hipGraphInstantiateWithFlags(out, graph, 0);
}
HIP_API hipGraphExecUpdate(hipGraphExec_t exec, hipGraph_t graph, hipGraphNode_t* node,
                           hipGraphExecUpdateResult* result) {
  HIP_ENTER();
  CUgraphExecUpdateResultInfo info;
  const CUresult r = cuGraphExecUpdate_v2(X(exec), G(graph), &info);
  if (node != nullptr) *node = reinterpret_cast<hipGraphNode_t>(info.errorNode);
  if (result != nullptr) *result = static_cast<hipGraphExecUpdateResult>(info.result);
  return Say(r);
}
HIP_API hipGraphLaunch(hipGraphExec_t exec, hipStream_t stream) {
  HIP_ENTER();
  return Say(cuGraphLaunch(X(exec), S(stream)));
}
HIP_API hipGraphExecDestroy(hipGraphExec_t exec) {
  return Say(cuGraphExecDestroy(X(exec)));
}

// The forms whose stream 0 is the thread's own.
#define HIP_PER_THREAD(name, parameters, arguments) \
  HIP_API name##_spt parameters {                   \
    const rubato::softgpu::PerThreadDefault twin;   \
    return name arguments;                          \
  }
HIP_PER_THREAD(hipMemcpy, (void* a, const void* b, size_t c, hipMemcpyKind d), (a, b, c, d))
HIP_PER_THREAD(hipMemcpyAsync, (void* a, const void* b, size_t c, hipMemcpyKind d, hipStream_t e),
               (a, b, c, d, e))
HIP_PER_THREAD(hipMemset, (void* a, int b, size_t c), (a, b, c))
HIP_PER_THREAD(hipStreamSynchronize, (hipStream_t a), (a))
HIP_PER_THREAD(hipStreamQuery, (hipStream_t a), (a))
HIP_PER_THREAD(hipStreamWaitEvent, (hipStream_t a, hipEvent_t b, unsigned c), (a, b, c))
HIP_PER_THREAD(hipStreamGetFlags, (hipStream_t a, unsigned* b), (a, b))
HIP_PER_THREAD(hipStreamGetPriority, (hipStream_t a, int* b), (a, b))
HIP_PER_THREAD(hipLaunchKernel, (const void* a, dim3 b, dim3 c, void** d, size_t e, hipStream_t f),
               (a, b, c, d, e, f))
HIP_PER_THREAD(hipLaunchCooperativeKernel,
               (const void* a, dim3 b, dim3 c, void** d, unsigned e, hipStream_t f),
               (a, b, c, d, e, f))

// Since ROCm 6; flags 1 asks for the per-thread forms.
HIP_API hipGetProcAddress(const char* name, void** out, int, uint64_t flags, int* status) {
  struct Named {
    const char* name;
    const void* address;
  };
  static const Named kNames[] = {
#define HIP_ENTRY(name) {#name, rubato_ref_##name},
#include "softgpu/hip/entry_points.def"
#undef HIP_ENTRY
  };
  if (name == nullptr || out == nullptr) return Say(hipErrorInvalidValue);
  *out = nullptr;
  const std::string twin = std::string(name) + "_spt";
  for (const Named& entry : kNames) {
    const bool exact = strcmp(entry.name, name) == 0;
    const bool per_thread = (flags & 1) != 0 && twin == entry.name;
    if (per_thread || (exact && *out == nullptr)) *out = const_cast<void*>(entry.address);
  }
  if (status != nullptr) *status = *out != nullptr ? 0 : 1;
  return Say(*out != nullptr ? hipSuccess : hipErrorNotFound);
}
