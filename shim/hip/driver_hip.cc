// HIP's part of the core's driver table: real functions of libamdhip64, typed, with HIP's flags.
//
// Every pointer is taken from the real library, so nothing here comes back through our entries. A
// call that this runtime lacks stays null in the table, and the core does without it.

#include <dlfcn.h>

#include "shim/hip/actions.h"
#include "shim/hip/runtime.h"
#include "shim/hooks/lookup.h"

namespace rubato::shim {

namespace {

template <typename... Arguments>
using Call = hipError_t (*)(Arguments...);

// The calls, typed by hand: HIP's headers overload some of their names for C++.
struct Calls {
  Call<int*> hipGetDevice;
  Call<int> hipSetDevice;
  Call<hipDevice_t*, int> hipDeviceGet;
  Call<hipUUID*, hipDevice_t> hipDeviceGetUuid;
  Call<char*, int, hipDevice_t> hipDeviceGetName;
  Call<size_t*, hipDevice_t> hipDeviceTotalMem;
  Call<int*, hipDeviceAttribute_t, int> hipDeviceGetAttribute;
  Call<void*, size_t, unsigned> hipHostRegister;
  Call<void*> hipHostUnregister;
  Call<void**, void*, unsigned> hipHostGetDevicePointer;
  Call<hipStream_t, void*, uint32_t, unsigned> hipStreamWriteValue32;
  Call<hipStream_t, hipStreamCaptureStatus*> hipStreamIsCapturing;
  Call<hipStreamCaptureMode*> hipThreadExchangeStreamCaptureMode;
  Call<hipEvent_t*, unsigned> hipEventCreateWithFlags;
  Call<hipEvent_t> hipEventDestroy;
  Call<hipEvent_t, hipStream_t> hipEventRecord;
  Call<hipEvent_t> hipEventQuery;
  Call<float*, hipEvent_t, hipEvent_t> hipEventElapsedTime;
  Call<int*, int*> hipDeviceGetStreamPriorityRange;
  Call<hipStream_t*, unsigned, int> hipStreamCreateWithPriority;
  Call<hipStream_t> hipStreamDestroy;
  Call<void**, size_t> hipMalloc;
  Call<void*> hipFree;
  Call<void*, int, size_t, hipStream_t> hipMemsetAsync;
  Call<int*> hipRuntimeGetVersion;
  const char* (*hipKernelNameRef)(hipFunction_t);
  const char* (*hipKernelNameRefByPtr)(const void*, hipStream_t);
};
Calls g_calls;
int g_version;

template <typename T>
T AsVendor(Handle handle) {
  return reinterpret_cast<T>(handle);
}

int CurrentDevice(int* ordinal) {
  return g_calls.hipGetDevice(ordinal);
}

int CurrentContext(Handle* context) {
  int ordinal = -1;
  const hipError_t status = g_calls.hipGetDevice(&ordinal);
  *context = status == hipSuccess ? ContextOf(ordinal) : 0;
  return status;
}

int SetContext(Handle context) {
  return g_calls.hipSetDevice(static_cast<int>(context) - 1);
}

int IdentifyDevice(int ordinal, DeviceIdentity* identity) {
  *identity = DeviceIdentity{};
  hipDevice_t device = 0;
  hipError_t status = g_calls.hipDeviceGet(&device, ordinal);
  if (status != hipSuccess) return status;
  hipUUID uuid{};
  status = g_calls.hipDeviceGetUuid(&uuid, device);
  if (status != hipSuccess) return status;
  for (size_t i = 0; i < sizeof(identity->uuid); ++i) {
    identity->uuid[i] = static_cast<uint8_t>(uuid.bytes[i]);
  }
  int sm_count = 0;
  status = g_calls.hipDeviceGetAttribute(&sm_count, hipDeviceAttributeMultiprocessorCount, ordinal);
  if (status != hipSuccess) return status;
  identity->sm_count = static_cast<uint32_t>(sm_count);
  size_t total = 0;
  status = g_calls.hipDeviceTotalMem(&total, device);
  if (status != hipSuccess) return status;
  identity->total_bytes = total;
  static_cast<void>(g_calls.hipDeviceGetName(identity->name, sizeof(identity->name), device));
  identity->name[sizeof(identity->name) - 1] = '\0';
  return hipSuccess;
}

int RegisterHost(void* memory, size_t bytes, uint64_t* device_address) {
  hipError_t status =
      g_calls.hipHostRegister(memory, bytes, hipHostRegisterPortable | hipHostRegisterMapped);
  if (status != hipSuccess) return status;
  void* address = nullptr;
  status = g_calls.hipHostGetDevicePointer(&address, memory, 0);
  if (status != hipSuccess) static_cast<void>(g_calls.hipHostUnregister(memory));
  *device_address = reinterpret_cast<uint64_t>(address);
  return status;
}

int UnregisterHost(void* memory) {
  return g_calls.hipHostUnregister(memory);
}

int WriteWord(Handle stream, uint64_t device_address, uint32_t value) {
  return g_calls.hipStreamWriteValue32(AsVendor<hipStream_t>(stream),
                                       reinterpret_cast<void*>(device_address), value, 0);
}

int IsCapturing(Handle stream, int* capturing) {
  hipStreamCaptureStatus capture = hipStreamCaptureStatusNone;
  const hipError_t status = g_calls.hipStreamIsCapturing(AsVendor<hipStream_t>(stream), &capture);
  *capturing = capture != hipStreamCaptureStatusNone ? 1 : 0;
  return status;
}

int RelaxCapture(int* previous_mode) {
  hipStreamCaptureMode mode = hipStreamCaptureModeRelaxed;
  const hipError_t status = g_calls.hipThreadExchangeStreamCaptureMode(&mode);
  *previous_mode = mode;
  return status;
}

int RestoreCapture(int previous_mode) {
  auto mode = static_cast<hipStreamCaptureMode>(previous_mode);
  return g_calls.hipThreadExchangeStreamCaptureMode(&mode);
}

int CreateEvent(Handle* event) {
  hipEvent_t created = nullptr;
  const hipError_t status = g_calls.hipEventCreateWithFlags(&created, hipEventDefault);
  *event = reinterpret_cast<Handle>(created);
  return status;
}

int DestroyEvent(Handle event) {
  return g_calls.hipEventDestroy(AsVendor<hipEvent_t>(event));
}

int RecordEvent(Handle event, Handle stream) {
  return g_calls.hipEventRecord(AsVendor<hipEvent_t>(event), AsVendor<hipStream_t>(stream));
}

int QueryEvent(Handle event) {
  const hipError_t status = g_calls.hipEventQuery(AsVendor<hipEvent_t>(event));
  return status == hipErrorNotReady ? kNotReady : static_cast<int>(status);
}

int ElapsedUs(Handle begin, Handle end, double* microseconds) {
  float milliseconds = 0;
  const hipError_t status = g_calls.hipEventElapsedTime(&milliseconds, AsVendor<hipEvent_t>(begin),
                                                        AsVendor<hipEvent_t>(end));
  *microseconds = static_cast<double>(milliseconds) * 1e3;
  return status;
}

int FunctionName(Handle function, const char** name) {
  if ((function & kHostFunction) != 0) {
    if (g_calls.hipKernelNameRefByPtr == nullptr) return hipErrorNotSupported;
    *name = g_calls.hipKernelNameRefByPtr(reinterpret_cast<const void*>(function & ~kHostFunction),
                                          nullptr);
  } else {
    if (g_calls.hipKernelNameRef == nullptr) return hipErrorNotSupported;
    *name = g_calls.hipKernelNameRef(AsVendor<hipFunction_t>(function));
  }
  return *name != nullptr ? hipSuccess : hipErrorInvalidHandle;
}

// ---- Pre-touch: a memset of one word, which HIP runs as a kernel --------------------------------

struct TouchParts {
  uint32_t used;
  hipStream_t stream;
  void* memory;
};
TouchParts g_touches[4 * kMaxDevices];

int ReleaseTouch(Handle touch) {
  auto* parts = AsVendor<TouchParts*>(touch);
  if (parts == nullptr) return hipErrorInvalidHandle;
  if (parts->stream != nullptr) static_cast<void>(g_calls.hipStreamDestroy(parts->stream));
  if (parts->memory != nullptr) static_cast<void>(g_calls.hipFree(parts->memory));
  parts->stream = nullptr;
  parts->memory = nullptr;
  __atomic_store_n(&parts->used, 0u, __ATOMIC_RELEASE);
  return hipSuccess;
}

int PrepareTouch(Handle* touch) {
  for (TouchParts& parts : g_touches) {
    uint32_t unused = 0;
    if (!__atomic_compare_exchange_n(&parts.used, &unused, 1u, false, __ATOMIC_ACQUIRE,
                                     __ATOMIC_RELAXED)) {
      continue;
    }
    int least = 0;
    int greatest = 0;
    static_cast<void>(g_calls.hipDeviceGetStreamPriorityRange(&least, &greatest));
    hipError_t status =
        g_calls.hipStreamCreateWithPriority(&parts.stream, hipStreamNonBlocking, greatest);
    if (status == hipSuccess) status = g_calls.hipMalloc(&parts.memory, sizeof(uint32_t));
    if (status != hipSuccess) {
      ReleaseTouch(reinterpret_cast<Handle>(&parts));
      return status;
    }
    *touch = reinterpret_cast<Handle>(&parts);
    return hipSuccess;
  }
  return hipErrorOutOfMemory;
}

int LaunchTouch(Handle touch) {
  const auto* parts = AsVendor<const TouchParts*>(touch);
  return g_calls.hipMemsetAsync(parts->memory, 0, sizeof(uint32_t), parts->stream);
}

void* FindSymbol(const char* name) {
  return NextSymbol(RTLD_DEFAULT, name);
}

// ---- The table ----------------------------------------------------------------------------------

// Before libamdhip64 is loaded there is only this to say.
constexpr Driver kNoDriver = {
    .find_symbol = FindSymbol,
    .vendor = 2,
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
#define RUBATO_TAKE(name) TakeCall(&g_calls.name, #name)
  RUBATO_TAKE(hipGetDevice);
  RUBATO_TAKE(hipSetDevice);
  RUBATO_TAKE(hipDeviceGet);
  RUBATO_TAKE(hipDeviceGetUuid);
  RUBATO_TAKE(hipDeviceGetName);
  RUBATO_TAKE(hipDeviceTotalMem);
  RUBATO_TAKE(hipDeviceGetAttribute);
  RUBATO_TAKE(hipHostRegister);
  RUBATO_TAKE(hipHostUnregister);
  RUBATO_TAKE(hipHostGetDevicePointer);
  RUBATO_TAKE(hipStreamWriteValue32);
  RUBATO_TAKE(hipStreamIsCapturing);
  RUBATO_TAKE(hipThreadExchangeStreamCaptureMode);
  RUBATO_TAKE(hipEventCreateWithFlags);
  RUBATO_TAKE(hipEventDestroy);
  RUBATO_TAKE(hipEventRecord);
  RUBATO_TAKE(hipEventQuery);
  RUBATO_TAKE(hipEventElapsedTime);
  RUBATO_TAKE(hipDeviceGetStreamPriorityRange);
  RUBATO_TAKE(hipStreamCreateWithPriority);
  RUBATO_TAKE(hipStreamDestroy);
  RUBATO_TAKE(hipMalloc);
  RUBATO_TAKE(hipFree);
  RUBATO_TAKE(hipMemsetAsync);
  RUBATO_TAKE(hipRuntimeGetVersion);
  RUBATO_TAKE(hipKernelNameRef);
  RUBATO_TAKE(hipKernelNameRefByPtr);
#undef RUBATO_TAKE
  int version = 0;
  if (g_calls.hipRuntimeGetVersion != nullptr &&
      g_calls.hipRuntimeGetVersion(&version) == hipSuccess) {
    // 50221153 is 5.2.
    __atomic_store_n(&g_version, version / 10'000'000 * 100 + version / 100'000 % 100,
                     __ATOMIC_RELAXED);
  }
  Driver driver = kNoDriver;
  driver.current_context = CurrentContext;
  driver.current_device = CurrentDevice;
  driver.device_identity = IdentifyDevice;
  driver.set_context = SetContext;
  driver.register_host = RegisterHost;
  driver.unregister_host = UnregisterHost;
  if (g_calls.hipStreamWriteValue32 != nullptr) driver.write_word = WriteWord;
  if (g_calls.hipStreamIsCapturing != nullptr) driver.is_capturing = IsCapturing;
  if (g_calls.hipThreadExchangeStreamCaptureMode != nullptr) {
    driver.relax_capture = RelaxCapture;
    driver.restore_capture = RestoreCapture;
  }
  driver.event_create = CreateEvent;
  driver.event_destroy = DestroyEvent;
  driver.event_record = RecordEvent;
  driver.event_query = QueryEvent;
  driver.event_elapsed_us = ElapsedUs;
  driver.function_name = FunctionName;
  driver.touch_prepare = PrepareTouch;
  driver.touch_launch = LaunchTouch;
  driver.touch_release = ReleaseTouch;
  g_driver = driver;
  SetDriver(&g_driver);
  __atomic_store_n(&g_driver_made, 1u, __ATOMIC_RELEASE);
}

}  // namespace

int RuntimeVersion() {
  return __atomic_load_n(&g_version, __ATOMIC_RELAXED);
}

const Driver& VendorDriver() {
  if (__atomic_load_n(&g_driver_made, __ATOMIC_ACQUIRE) != 0) [[likely]] {
    return g_driver;
  }
  if (!ResolveReal(Load::kIfPresent)) return kNoDriver;
  MakeDriver();
  return g_driver;
}

}  // namespace rubato::shim
