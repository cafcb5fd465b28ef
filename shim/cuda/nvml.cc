// The management library's memory queries: a tenant sees its limit, not its neighbours' GPU.
//
// Frameworks size their caches by NVML, often in a parent process that never starts CUDA and only
// then forks its workers; so the query itself attaches. A device is recognised by its UUID among
// those that CUDA shows this process. Before CUDA has started there are no ordinals: the limit,
// which is the same for each device, is shown for all.

#include "shim/cuda/nvml.h"

#include <stddef.h>

#include "shim/hooks/actions.h"

using namespace rubato::shim;

namespace rubato::shim {

namespace {

constexpr size_t kUuidTextBytes = 96;

int HexValue(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
  return -1;
}

// "GPU-8f6a...": after the prefix 32 digits in groups.
bool ParseUuid(const char* text, uint8_t* uuid) {
  while (*text != '\0' && *text != '-') ++text;
  int digits = 0;
  for (; *text != '\0' && digits < 32; ++text) {
    if (*text == '-') continue;
    const int value = HexValue(*text);
    if (value < 0) return false;
    uuid[digits / 2] =
        static_cast<uint8_t>(digits % 2 == 0 ? value << 4 : uuid[digits / 2] | value);
    ++digits;
  }
  return digits == 32;
}

// Instead of an ordinal: a device that CUDA does not show this process, and one of which nobody can
// tell yet.
constexpr int kForeign = -1;
constexpr int kUntold = -2;

// True once CUDA has started in this process.
bool CudaStarted() {
  using GetCount = CUresult (*)(int*);
  const auto get_count = reinterpret_cast<GetCount>(VendorSymbol("cuDeviceGetCount"));
  int count = 0;
  return get_count != nullptr && get_count(&count) == CUDA_SUCCESS;
}

// The device's ordinal in this process.
int OrdinalOf(NvmlDevice device) {
  using GetUuid = NvmlStatus (*)(NvmlDevice, char*, unsigned);
  const auto get_uuid = reinterpret_cast<GetUuid>(ManagementSymbol("nvmlDeviceGetUUID"));
  char text[kUuidTextBytes] = {};
  uint8_t uuid[16];
  if (get_uuid == nullptr || get_uuid(device, text, sizeof(text)) != kNvmlSuccess ||
      !ParseUuid(text, uuid)) {
    return kUntold;
  }
  if (!CudaStarted()) return kUntold;
  const Driver& driver = VendorDriver();
  for (int ordinal = 0; ordinal < kMaxDevices; ++ordinal) {
    DeviceIdentity identity;
    if (driver.device_identity(ordinal, &identity) != 0) break;
    bool same = true;
    for (size_t i = 0; i < sizeof(uuid); ++i) same = same && uuid[i] == identity.uuid[i];
    if (same) return ordinal;
  }
  return kForeign;
}

// Puts the tenant's view in place of the device's; false if there is nothing to change.
bool Show(NvmlDevice device, unsigned long long* free_bytes, unsigned long long* total_bytes) {
  if (abi::LoadAcquire(g_state.phase) == static_cast<uint32_t>(Phase::kFresh)) {
    AttachProcess(VendorDriver());
  }
  if (!Attached()) return false;
  const int ordinal = OrdinalOf(device);
  if (ordinal == kForeign) return false;
  uint64_t free_now = *free_bytes;
  uint64_t total = *total_bytes;
  DeviceSession* session = ordinal >= 0 ? abi::LoadAcquire(g_state.devices[ordinal]) : nullptr;
  if (session != nullptr) {
    ShowMemory(session, &free_now, &total);
  } else if (g_state.limit_bytes != 0 && g_state.limit_bytes < total) {
    total = g_state.limit_bytes;
    if (free_now > total) free_now = total;
  }
  const bool changed = total != *total_bytes || free_now != *free_bytes;
  *free_bytes = free_now;
  *total_bytes = total;
  return changed;
}

}  // namespace

}  // namespace rubato::shim

extern "C" RUBATO_EXPORT NvmlStatus nvmlDeviceGetMemoryInfo(NvmlDevice device, NvmlMemory* memory) {
  using Real = NvmlStatus (*)(NvmlDevice, NvmlMemory*);
  const auto real = RealOf<Real>(Row::k_nvmlDeviceGetMemoryInfo);
  if (real == nullptr) return kNvmlLibraryNotFound;
  const NvmlStatus status = real(device, memory);
  if (status == kNvmlSuccess && memory != nullptr && !t_inside) {
    const ErrnoGuard guard;
    if (Show(device, &memory->free, &memory->total)) memory->used = memory->total - memory->free;
  }
  return status;
}

extern "C" RUBATO_EXPORT NvmlStatus nvmlDeviceGetMemoryInfo_v2(NvmlDevice device,
                                                               NvmlMemoryV2* memory) {
  using Real = NvmlStatus (*)(NvmlDevice, NvmlMemoryV2*);
  const auto real = RealOf<Real>(Row::k_nvmlDeviceGetMemoryInfo_v2);
  if (real == nullptr) return kNvmlLibraryNotFound;
  const NvmlStatus status = real(device, memory);
  if (status == kNvmlSuccess && memory != nullptr && !t_inside) {
    const ErrnoGuard guard;
    if (Show(device, &memory->free, &memory->total)) {
      // What the driver keeps for itself is no part of what the tenant may use.
      memory->reserved = 0;
      memory->used = memory->total - memory->free;
    }
  }
  return status;
}
