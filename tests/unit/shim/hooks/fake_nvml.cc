// A management library with one device, for the tests of its memory queries.

#include <cstring>

#include "shim/cuda/nvml.h"
#include "tests/unit/shim/hooks/fake_vendor.h"

#define FAKE_API extern "C" __attribute__((visibility("default")))

namespace {

FakeManagement g_fake;

}  // namespace

FAKE_API FakeManagement* FakeManagementState() {
  return &g_fake;
}

FAKE_API NvmlStatus nvmlDeviceGetMemoryInfo(NvmlDevice device, NvmlMemory* memory) {
  g_fake.device = device;
  *memory = {80'000, 70'000, 10'000};
  return g_fake.status;
}

FAKE_API NvmlStatus nvmlDeviceGetMemoryInfo_v2(NvmlDevice device, NvmlMemoryV2* memory) {
  g_fake.device = device;
  *memory = {memory->version, 80'000, 1'000, 70'000, 9'000};
  return g_fake.status;
}

FAKE_API NvmlStatus nvmlDeviceGetUUID(NvmlDevice, char* text, unsigned bytes) {
  if (std::strlen(g_fake.uuid) >= bytes) return 7;
  std::strcpy(text, g_fake.uuid);
  return 0;
}
