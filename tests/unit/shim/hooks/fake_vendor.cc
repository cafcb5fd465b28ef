// A vendor's library that does nothing but remember: see fake_vendor.h.

#include "tests/unit/shim/hooks/fake_vendor.h"

#include <errno.h>
#include <string.h>

#include "shim/hooks/vendor.h"

#define FAKE_API extern "C" __attribute__((visibility("default")))

using namespace rubato::shim;

namespace {

FakeVendor g_fake;

struct Recorder {
  const char* name;

  template <typename... Arguments>
  int operator()(const Arguments&... arguments) const {
    static_assert(sizeof...(Arguments) <= kMaxArguments);
    ++g_fake.calls;
    g_fake.last = FakeCall{};
    g_fake.last.name = name;
    (Keep(arguments), ...);
    // A call made from inside replaces what was remembered: this one is remembered again.
    const FakeCall kept = g_fake.last;
    if (g_fake.during != nullptr) g_fake.during(name);
    g_fake.last = kept;
    errno = g_fake.leave_errno;
    return g_fake.status;
  }

 private:
  template <typename T>
  static void Keep(const T& argument) {
    g_fake.last.arguments[g_fake.last.count] = FirstBytes(argument);
    g_fake.last.digests[g_fake.last.count] = DigestOf(argument);
    ++g_fake.last.count;
  }
};

}  // namespace

FAKE_API FakeVendor* FakeVendorState() {
  return &g_fake;
}

#define ENTRY(name, per_thread, kind, params, args, action) \
  FAKE_API Status name params {                             \
    return static_cast<Status>(Recorder{#name} args);       \
  }
#define ENTRY_BY_HAND(name, kind, params)
#include "shim/hooks/families.h"
#include "shim/hooks/hooks.def"
#undef ENTRY
#undef ENTRY_BY_HAND

namespace {

struct Export {
  const char* name;
  void* address;
};

#define PROTOTYPE(params) Status(*) params
#define ENTRY(name, per_thread, kind, params, ...) \
  {#name, reinterpret_cast<void*>(static_cast<Status(*) params>(&::name))},
#define ENTRY_BY_HAND(name, kind, params)
const Export kExports[] = {
#include "shim/hooks/hooks.def"
};
#undef ENTRY
#undef ENTRY_BY_HAND

void* Find(const char* name, const char* first, const char* second) {
  char full[128];
  if (strlen(name) + strlen(first) + strlen(second) >= sizeof(full)) return nullptr;
  strcpy(full, name);
  strcat(full, first);
  strcat(full, second);
  for (const Export& entry : kExports) {
    if (strcmp(entry.name, full) == 0) return entry.address;
  }
  return nullptr;
}

}  // namespace

#if defined(RUBATO_VENDOR_CUDA)

FAKE_API CUresult cuInit(unsigned flags) {
  return static_cast<CUresult>(Recorder{"cuInit"}(flags));
}

// A call of a driver newer than the lists.
FAKE_API CUresult cuBrandNewCall(int) {
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

namespace {

// The newest form the version allows; per-thread forms where the flag asks for them.
void* Choose(const char* symbol, int version, cuuint64_t flags) {
  const bool per_thread = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
  const char* const forms[] = {version >= 3020 ? "_v2" : "", ""};
  for (const char* form : forms) {
    void* found = nullptr;
    if (per_thread) found = Find(symbol, form, "_ptsz");
    if (per_thread && found == nullptr) found = Find(symbol, form, "_ptds");
    if (found == nullptr) found = Find(symbol, form, "");
    if (found != nullptr) return found;
  }
  if (strcmp(symbol, "cuBrandNewCall") == 0) return reinterpret_cast<void*>(&cuBrandNewCall);
  if (strcmp(symbol, "cuDriverGetVersion") == 0) {
    return reinterpret_cast<void*>(&cuDriverGetVersion);
  }
  return nullptr;
}

}  // namespace

FAKE_API CUresult cuGetProcAddress_v2(const char* symbol, void** function, int version,
                                      cuuint64_t flags, CUdriverProcAddressQueryResult* result);

FAKE_API CUresult cuGetProcAddress(const char* symbol, void** function, int version,
                                   cuuint64_t flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}

FAKE_API CUresult cuGetProcAddress_v2(const char* symbol, void** function, int version,
                                      cuuint64_t flags, CUdriverProcAddressQueryResult* result) {
  if (strcmp(symbol, "cuGetProcAddress") == 0) {
    *function = version >= 12000 ? reinterpret_cast<void*>(&cuGetProcAddress_v2)
                                 : reinterpret_cast<void*>(&cuGetProcAddress);
  } else {
    *function = Choose(symbol, version, flags);
  }
  if (result != nullptr) {
    *result =
        *function != nullptr ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  }
  return *function != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

// What actions ask the driver in passing; not remembered as calls of the program.
FAKE_API CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(0xc0ffee);
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* status) {
  *status = static_cast<CUstreamCaptureStatus>(g_fake.capturing);
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuPointerGetAttribute(void* data, CUpointer_attribute, CUdeviceptr) {
  if (g_fake.memory_type == 0) return CUDA_ERROR_INVALID_VALUE;
  *static_cast<CUmemorytype*>(data) = static_cast<CUmemorytype>(g_fake.memory_type);
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 0;
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuCtxFromGreenCtx(CUcontext* context, CUgreenCtx green) {
  *context = reinterpret_cast<CUcontext>(green);
  return CUDA_SUCCESS;
}

// One device, whose UUID is 00 01 02 ... 0f.
FAKE_API CUresult cuDeviceGetCount(int* count) {
  *count = 1;
  return static_cast<CUresult>(g_fake.not_started);
}

FAKE_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

FAKE_API CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice) {
  for (int i = 0; i < 16; ++i) uuid->bytes[i] = static_cast<char>(i);
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute, CUdevice) {
  *value = 132;
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  *bytes = 80'000;
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
  strncpy(name, "fake", static_cast<size_t>(bytes));
  return CUDA_SUCCESS;
}

#else

FAKE_API hipError_t hipInit(unsigned flags) {
  return static_cast<hipError_t>(Recorder{"hipInit"}(flags));
}

FAKE_API hipError_t hipGetProcAddress(const char* symbol, void** function, int, uint64_t flags,
                                      ProcAddressResult*) {
  *function = flags != 0 ? Find(symbol, "_spt", "") : nullptr;
  if (*function == nullptr) *function = Find(symbol, "", "");
  return *function != nullptr ? hipSuccess : hipErrorNotFound;
}

FAKE_API hipError_t hipGetDevice(int* device) {
  *device = 0;
  return hipSuccess;
}

FAKE_API hipError_t hipStreamIsCapturing(hipStream_t, hipStreamCaptureStatus* status) {
  *status = static_cast<hipStreamCaptureStatus>(g_fake.capturing);
  return hipSuccess;
}

#endif
