// CUDA's part of the core's driver table: real functions of libcuda, typed, with CUDA's flags.
//
// Every pointer is taken from the real library, so nothing here comes back through our entries. A
// call that this driver lacks stays null in the table, and the core does without it.

#include <dlfcn.h>

#include "shim/hooks/entry.h"
#include "shim/hooks/lookup.h"

namespace rubato::shim {

namespace {

// The calls, by name and by the type that cuda.h declares for that name.
#define RUBATO_CALLS(X)           \
  X(cuCtxGetCurrent)              \
  X(cuCtxGetDevice)               \
  X(cuCtxSetCurrent)              \
  X(cuCtxGetStreamPriorityRange)  \
  X(cuDeviceGet)                  \
  X(cuDeviceGetAttribute)         \
  X(cuDeviceGetName)              \
  X(cuDeviceGetUuid)              \
  X(cuDeviceGetUuid_v2)           \
  X(cuDeviceTotalMem_v2)          \
  X(cuEventCreate)                \
  X(cuEventDestroy_v2)            \
  X(cuEventElapsedTime)           \
  X(cuEventQuery)                 \
  X(cuEventRecord)                \
  X(cuFuncGetName)                \
  X(cuFuncIsLoaded)               \
  X(cuFuncLoad)                   \
  X(cuKernelGetFunction)          \
  X(cuKernelGetName)              \
  X(cuLaunchKernel)               \
  X(cuMemAlloc_v2)                \
  X(cuMemFree_v2)                 \
  X(cuMemHostGetDevicePointer_v2) \
  X(cuMemHostRegister_v2)         \
  X(cuMemHostUnregister)          \
  X(cuMemsetD32Async)             \
  X(cuModuleGetFunction)          \
  X(cuModuleLoadData)             \
  X(cuModuleUnload)               \
  X(cuStreamCreateWithPriority)   \
  X(cuStreamDestroy_v2)           \
  X(cuStreamIsCapturing)          \
  X(cuStreamWriteValue32)         \
  X(cuStreamWriteValue32_v2)      \
  X(cuThreadExchangeStreamCaptureMode)

struct Calls {
#define RUBATO_FIELD(name) decltype(&::name) name;
  RUBATO_CALLS(RUBATO_FIELD)
#undef RUBATO_FIELD
};
Calls g_calls;

template <typename T>
T AsVendor(Handle handle) {
  return reinterpret_cast<T>(handle);
}

int CurrentContext(Handle* context) {
  CUcontext current = nullptr;
  const CUresult status = g_calls.cuCtxGetCurrent(&current);
  *context = reinterpret_cast<Handle>(current);
  return status;
}

// A CUdevice is the ordinal itself.
int CurrentDevice(int* ordinal) {
  CUdevice device = -1;
  const CUresult status = g_calls.cuCtxGetDevice(&device);
  *ordinal = device;
  return status;
}

int IdentifyDevice(int ordinal, DeviceIdentity* identity) {
  *identity = DeviceIdentity{};
  CUdevice device = 0;
  CUresult status = g_calls.cuDeviceGet(&device, ordinal);
  if (status != CUDA_SUCCESS) return status;
  CUuuid uuid{};
  const auto get_uuid =
      g_calls.cuDeviceGetUuid_v2 != nullptr ? g_calls.cuDeviceGetUuid_v2 : g_calls.cuDeviceGetUuid;
  status = get_uuid(&uuid, device);
  if (status != CUDA_SUCCESS) return status;
  for (size_t i = 0; i < sizeof(identity->uuid); ++i) {
    identity->uuid[i] = static_cast<uint8_t>(uuid.bytes[i]);
  }
  int sm_count = 0;
  status =
      g_calls.cuDeviceGetAttribute(&sm_count, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
  if (status != CUDA_SUCCESS) return status;
  identity->sm_count = static_cast<uint32_t>(sm_count);
  size_t total = 0;
  status = g_calls.cuDeviceTotalMem_v2(&total, device);
  if (status != CUDA_SUCCESS) return status;
  identity->total_bytes = total;
  g_calls.cuDeviceGetName(identity->name, sizeof(identity->name), device);
  identity->name[sizeof(identity->name) - 1] = '\0';
  return CUDA_SUCCESS;
}

int SetContext(Handle context) {
  return g_calls.cuCtxSetCurrent(AsVendor<CUcontext>(context));
}

int RegisterHost(void* memory, size_t bytes, uint64_t* device_address) {
  CUresult status = g_calls.cuMemHostRegister_v2(
      memory, bytes, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
  if (status != CUDA_SUCCESS) return status;
  CUdeviceptr address = 0;
  status = g_calls.cuMemHostGetDevicePointer_v2(&address, memory, 0);
  if (status != CUDA_SUCCESS) g_calls.cuMemHostUnregister(memory);
  *device_address = address;
  return status;
}

int UnregisterHost(void* memory) {
  return g_calls.cuMemHostUnregister(memory);
}

int WriteWord(Handle stream, uint64_t device_address, uint32_t value) {
  const auto write = g_calls.cuStreamWriteValue32_v2 != nullptr ? g_calls.cuStreamWriteValue32_v2
                                                                : g_calls.cuStreamWriteValue32;
  return write(AsVendor<CUstream>(stream), device_address, value, CU_STREAM_WRITE_VALUE_DEFAULT);
}

int IsCapturing(Handle stream, int* capturing) {
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult status = g_calls.cuStreamIsCapturing(AsVendor<CUstream>(stream), &capture);
  *capturing = capture != CU_STREAM_CAPTURE_STATUS_NONE ? 1 : 0;
  return status;
}

int RelaxCapture(int* previous_mode) {
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  const CUresult status = g_calls.cuThreadExchangeStreamCaptureMode(&mode);
  *previous_mode = mode;
  return status;
}

int RestoreCapture(int previous_mode) {
  auto mode = static_cast<CUstreamCaptureMode>(previous_mode);
  return g_calls.cuThreadExchangeStreamCaptureMode(&mode);
}

int CreateEvent(Handle* event) {
  CUevent created = nullptr;
  const CUresult status = g_calls.cuEventCreate(&created, CU_EVENT_DEFAULT);
  *event = reinterpret_cast<Handle>(created);
  return status;
}

int DestroyEvent(Handle event) {
  return g_calls.cuEventDestroy_v2(AsVendor<CUevent>(event));
}

int RecordEvent(Handle event, Handle stream) {
  return g_calls.cuEventRecord(AsVendor<CUevent>(event), AsVendor<CUstream>(stream));
}

int QueryEvent(Handle event) {
  const CUresult status = g_calls.cuEventQuery(AsVendor<CUevent>(event));
  return status == CUDA_ERROR_NOT_READY ? kNotReady : static_cast<int>(status);
}

int ElapsedUs(Handle begin, Handle end, double* microseconds) {
  float milliseconds = 0;
  const CUresult status =
      g_calls.cuEventElapsedTime(&milliseconds, AsVendor<CUevent>(begin), AsVendor<CUevent>(end));
  *microseconds = static_cast<double>(milliseconds) * 1e3;
  return status;
}

// Launches take a CUkernel where a CUfunction is declared, and nothing tells them apart from
// outside. Asked with the wrong kind of handle, both calls answer CUDA_ERROR_INVALID_HANDLE.
int FunctionName(Handle function, const char** name) {
  const CUresult status = g_calls.cuFuncGetName(name, AsVendor<CUfunction>(function));
  if (status == CUDA_SUCCESS || g_calls.cuKernelGetName == nullptr) return status;
  return g_calls.cuKernelGetName(name, AsVendor<CUkernel>(function));
}

int LoadFunction(Handle function) {
  CUfunction loaded = AsVendor<CUfunction>(function);
  CUfunctionLoadingState state = CU_FUNCTION_LOADING_STATE_UNLOADED;
  CUresult status = g_calls.cuFuncIsLoaded(&state, loaded);
  if (status == CUDA_ERROR_INVALID_HANDLE && g_calls.cuKernelGetFunction != nullptr) {
    status = g_calls.cuKernelGetFunction(&loaded, AsVendor<CUkernel>(function));
    if (status == CUDA_SUCCESS) status = g_calls.cuFuncIsLoaded(&state, loaded);
  }
  if (status != CUDA_SUCCESS || state == CU_FUNCTION_LOADING_STATE_LOADED) return status;
  return g_calls.cuFuncLoad(loaded);
}

// ---- Pre-touch ----------------------------------------------------------------------------------

// One per context that a helper thread has entered; far more than there are devices.
struct TouchParts {
  uint32_t used;
  CUstream stream;
  CUmodule module;
  CUfunction kernel;  // Null: the driver cannot compile PTX, and a small memset does it.
  CUdeviceptr memory;
};
TouchParts g_touches[4 * kMaxDevices];

// The oldest PTX that current drivers take; it runs on every GPU since Pascal.
constexpr char kTouchPtx[] =
    ".version 6.0\n"
    ".target sm_60\n"
    ".address_size 64\n"
    ".visible .entry rubato_touch()\n"
    "{\n"
    "  ret;\n"
    "}\n";

int ReleaseTouch(Handle touch) {
  auto* parts = AsVendor<TouchParts*>(touch);
  if (parts == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (parts->stream != nullptr) g_calls.cuStreamDestroy_v2(parts->stream);
  if (parts->module != nullptr) g_calls.cuModuleUnload(parts->module);
  if (parts->memory != 0) g_calls.cuMemFree_v2(parts->memory);
  parts->stream = nullptr;
  parts->module = nullptr;
  parts->kernel = nullptr;
  parts->memory = 0;
  __atomic_store_n(&parts->used, 0u, __ATOMIC_RELEASE);
  return CUDA_SUCCESS;
}

TouchParts* TakeTouch() {
  for (TouchParts& parts : g_touches) {
    uint32_t unused = 0;
    if (__atomic_compare_exchange_n(&parts.used, &unused, 1u, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_RELAXED)) {
      return &parts;
    }
  }
  return nullptr;
}

int PrepareTouch(Handle* touch) {
  TouchParts* parts = TakeTouch();
  if (parts == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  int least = 0;
  int greatest = 0;
  g_calls.cuCtxGetStreamPriorityRange(&least, &greatest);
  CUresult status =
      g_calls.cuStreamCreateWithPriority(&parts->stream, CU_STREAM_NON_BLOCKING, greatest);
  if (status == CUDA_SUCCESS) {
    if (g_calls.cuModuleLoadData(&parts->module, kTouchPtx) != CUDA_SUCCESS ||
        g_calls.cuModuleGetFunction(&parts->kernel, parts->module, "rubato_touch") !=
            CUDA_SUCCESS) {
      parts->kernel = nullptr;
      status = g_calls.cuMemAlloc_v2(&parts->memory, sizeof(uint32_t));
    }
  }
  if (status != CUDA_SUCCESS) {
    ReleaseTouch(reinterpret_cast<Handle>(parts));
    return status;
  }
  *touch = reinterpret_cast<Handle>(parts);
  return CUDA_SUCCESS;
}

int LaunchTouch(Handle touch) {
  const auto* parts = AsVendor<const TouchParts*>(touch);
  if (parts->kernel == nullptr) {
    return g_calls.cuMemsetD32Async(parts->memory, 0, 1, parts->stream);
  }
  return g_calls.cuLaunchKernel(parts->kernel, 1, 1, 1, 1, 1, 1, 0, parts->stream, nullptr,
                                nullptr);
}

void* FindSymbol(const char* name) {
  return NextSymbol(RTLD_DEFAULT, name);
}

// ---- The table ----------------------------------------------------------------------------------

// Before libcuda is loaded there is only this to say.
constexpr Driver kNoDriver = {
    .find_symbol = FindSymbol,
    .vendor = 1,
    .legacy_stream = 1,
    .per_thread_stream = 2,
};

// Several threads may fill it at once; they store the same values.
Driver g_driver;
uint32_t g_driver_made;

template <typename T>
void TakeCall(T* field, const char* name) {
  __atomic_store_n(field, reinterpret_cast<T>(VendorSymbol(name)), __ATOMIC_RELAXED);
}

void MakeDriver() {
#define RUBATO_TAKE(name) TakeCall(&g_calls.name, #name);
  RUBATO_CALLS(RUBATO_TAKE)
#undef RUBATO_TAKE
  Driver driver = kNoDriver;
  driver.current_context = CurrentContext;
  driver.current_device = CurrentDevice;
  driver.device_identity = IdentifyDevice;
  driver.set_context = SetContext;
  driver.register_host = RegisterHost;
  driver.unregister_host = UnregisterHost;
  if (g_calls.cuStreamWriteValue32_v2 != nullptr || g_calls.cuStreamWriteValue32 != nullptr) {
    driver.write_word = WriteWord;
  }
  if (g_calls.cuStreamIsCapturing != nullptr) driver.is_capturing = IsCapturing;
  if (g_calls.cuThreadExchangeStreamCaptureMode != nullptr) {
    driver.relax_capture = RelaxCapture;
    driver.restore_capture = RestoreCapture;
  }
  driver.event_create = CreateEvent;
  driver.event_destroy = DestroyEvent;
  driver.event_record = RecordEvent;
  driver.event_query = QueryEvent;
  driver.event_elapsed_us = ElapsedUs;
  if (g_calls.cuFuncGetName != nullptr) driver.function_name = FunctionName;
  if (g_calls.cuFuncIsLoaded != nullptr && g_calls.cuFuncLoad != nullptr) {
    driver.load_function = LoadFunction;
  }
  driver.touch_prepare = PrepareTouch;
  driver.touch_launch = LaunchTouch;
  driver.touch_release = ReleaseTouch;
  g_driver = driver;
  SetDriver(&g_driver);
  __atomic_store_n(&g_driver_made, 1u, __ATOMIC_RELEASE);
}

}  // namespace

const Driver& VendorDriver() {
  if (__atomic_load_n(&g_driver_made, __ATOMIC_ACQUIRE) != 0) [[likely]] {
    return g_driver;
  }
  if (!ResolveReal(Load::kIfPresent)) return kNoDriver;
  MakeDriver();
  return g_driver;
}

}  // namespace rubato::shim
