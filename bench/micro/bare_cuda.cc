// A libcuda.so.1 whose functions do nothing, so that what is measured is the shim and nothing else.
//
// It knows one device and succeeds at once; the GPU's stores happen in the call that asks for them.
// It is not the software GPU, which has a driver's costs and rules. Calls without memory: any
// thread may make them.
// Names as the library exports them, not as the header renames them for programs.
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

#include <atomic>
#include <cstdint>
#include <cstring>

#define BARE extern "C" __attribute__((visibility("default"))) CUresult CUDAAPI

namespace {

char g_context;  // Its address is the one context.
char g_function;
// Handles of streams, events and memory: never the same twice, aligned as a driver's are.
std::atomic<uintptr_t> g_next_handle{0x100000};

template <typename T>
T NewHandle() {
  return reinterpret_cast<T>(g_next_handle.fetch_add(0x200, std::memory_order_relaxed));
}

}  // namespace

BARE cuInit(unsigned int) {
  return CUDA_SUCCESS;
}

BARE cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

BARE cuDeviceGetCount(int* count) {
  *count = 1;
  return CUDA_SUCCESS;
}

BARE cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

BARE cuDeviceGetName(char* name, int length, CUdevice) {
  std::strncpy(name, "Bare stand-in", static_cast<size_t>(length));
  return CUDA_SUCCESS;
}

BARE cuDeviceGetUuid(CUuuid* uuid, CUdevice) {
  std::memset(uuid, 0x42, sizeof(*uuid));
  return CUDA_SUCCESS;
}

BARE cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  return cuDeviceGetUuid(uuid, device);
}

BARE cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT ? 132 : 0;
  return CUDA_SUCCESS;
}

BARE cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  *bytes = size_t{80} << 30;
  return CUDA_SUCCESS;
}

BARE cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  *context = reinterpret_cast<CUcontext>(&g_context);
  return CUDA_SUCCESS;
}

BARE cuCtxSetCurrent(CUcontext) {
  return CUDA_SUCCESS;
}

BARE cuCtxGetCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(&g_context);
  return CUDA_SUCCESS;
}

BARE cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}

BARE cuCtxSynchronize(void) {
  return CUDA_SUCCESS;
}

BARE cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return CUDA_SUCCESS;
}

BARE cuStreamCreate(CUstream* stream, unsigned int) {
  *stream = NewHandle<CUstream>();
  return CUDA_SUCCESS;
}

BARE cuStreamCreateWithPriority(CUstream* stream, unsigned int flags, int) {
  return cuStreamCreate(stream, flags);
}

BARE cuStreamDestroy_v2(CUstream) {
  return CUDA_SUCCESS;
}
BARE cuStreamSynchronize(CUstream) {
  return CUDA_SUCCESS;
}

BARE cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

BARE cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  static thread_local CUstreamCaptureMode current = CU_STREAM_CAPTURE_MODE_GLOBAL;
  const CUstreamCaptureMode previous = current;
  current = *mode;
  *mode = previous;
  return CUDA_SUCCESS;
}

BARE cuStreamWriteValue32_v2(CUstream, CUdeviceptr address, cuuint32_t value, unsigned int) {
  __atomic_store_n(reinterpret_cast<uint32_t*>(address), value, __ATOMIC_RELEASE);
  return CUDA_SUCCESS;
}

BARE cuMemHostRegister_v2(void*, size_t, unsigned int) {
  return CUDA_SUCCESS;
}
BARE cuMemHostUnregister(void*) {
  return CUDA_SUCCESS;
}

BARE cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* memory, unsigned int) {
  *address = reinterpret_cast<CUdeviceptr>(memory);
  return CUDA_SUCCESS;
}

BARE cuEventCreate(CUevent* event, unsigned int) {
  *event = NewHandle<CUevent>();
  return CUDA_SUCCESS;
}

BARE cuEventDestroy_v2(CUevent) {
  return CUDA_SUCCESS;
}
BARE cuEventRecord(CUevent, CUstream) {
  return CUDA_SUCCESS;
}
BARE cuEventQuery(CUevent) {
  return CUDA_SUCCESS;
}
BARE cuEventSynchronize(CUevent) {
  return CUDA_SUCCESS;
}

BARE cuEventElapsedTime(float* milliseconds, CUevent, CUevent) {
  *milliseconds = 0.005f;
  return CUDA_SUCCESS;
}

BARE cuEventElapsedTime_v2(float* milliseconds, CUevent begin, CUevent end) {
  return cuEventElapsedTime(milliseconds, begin, end);
}

BARE cuModuleLoadData(CUmodule* module, const void*) {
  *module = NewHandle<CUmodule>();
  return CUDA_SUCCESS;
}

BARE cuModuleUnload(CUmodule) {
  return CUDA_SUCCESS;
}

BARE cuModuleGetFunction(CUfunction* function, CUmodule, const char*) {
  *function = reinterpret_cast<CUfunction>(&g_function);
  return CUDA_SUCCESS;
}

BARE cuFuncGetName(const char** name, CUfunction) {
  *name = "bare_kernel";
  return CUDA_SUCCESS;
}

BARE cuFuncIsLoaded(CUfunctionLoadingState* state, CUfunction) {
  *state = CU_FUNCTION_LOADING_STATE_LOADED;
  return CUDA_SUCCESS;
}

BARE cuFuncLoad(CUfunction) {
  return CUDA_SUCCESS;
}

BARE cuLaunchKernel(CUfunction, unsigned int, unsigned int, unsigned int, unsigned int,
                    unsigned int, unsigned int, unsigned int, CUstream, void**, void**) {
  return CUDA_SUCCESS;
}

BARE cuMemAlloc_v2(CUdeviceptr* address, size_t) {
  *address = g_next_handle.fetch_add(0x200, std::memory_order_relaxed);
  return CUDA_SUCCESS;
}

BARE cuMemFree_v2(CUdeviceptr) {
  return CUDA_SUCCESS;
}

BARE cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = size_t{79} << 30;
  *total_bytes = size_t{80} << 30;
  return CUDA_SUCCESS;
}

BARE cuMemcpyHtoDAsync_v2(CUdeviceptr, const void*, size_t, CUstream) {
  return CUDA_SUCCESS;
}
BARE cuMemsetD32Async(CUdeviceptr, unsigned int, size_t, CUstream) {
  return CUDA_SUCCESS;
}
