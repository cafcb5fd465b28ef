// A library that answers NVML's and ROCm SMI's calls with what its test has set, in the layouts of
// the vendors' own headers.
#include "tests/unit/agent/gpu/fake_vendor_library.h"

#include <cstdio>
#include <cstring>

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED FakeVendor fake_vendor;
FakeVendor fake_vendor;

namespace {

using Device = FakeVendor::Gpu*;

unsigned IndexOf(Device device) {
  return static_cast<unsigned>(device - fake_vendor.gpus);
}

struct Memory {
  unsigned long long total, free, used;
};
struct PciInfo {
  char legacy[16];
  unsigned domain, bus, device, id, subsystem;
  char bus_id[32];
};
struct ProcessInfo {
  unsigned pid;
  unsigned long long used;
  unsigned gi, ci;
};
struct EventData {
  Device device;
  unsigned long long type, data;
  unsigned gi, ci;
};
struct Utilization {
  unsigned gpu, memory;
};

}  // namespace

// ---- NVML.

EXPORTED int nvmlInit_v2() {
  ++fake_vendor.inits;
  return fake_vendor.init_status;
}
EXPORTED int nvmlShutdown() {
  ++fake_vendor.shutdowns;
  return 0;
}
EXPORTED const char* nvmlErrorString(int status) {
  return status == 15 ? "GPU is lost" : "some error";
}
EXPORTED int nvmlSystemGetNVMLVersion(char* out, unsigned length) {
  snprintf(out, length, "13.1");
  return 0;
}
EXPORTED int nvmlSystemGetDriverVersion(char* out, unsigned length) {
  snprintf(out, length, "580.1");
  return 0;
}
EXPORTED int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = fake_vendor.count;
  return 0;
}
EXPORTED int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device* out) {
  *out = &fake_vendor.gpus[index];
  return 0;
}
EXPORTED int nvmlDeviceGetUUID(Device device, char* out, unsigned length) {
  snprintf(out, length, "GPU-%u", IndexOf(device));
  return device->status;
}
EXPORTED int nvmlDeviceGetName(Device, char* out, unsigned length) {
  snprintf(out, length, "Fake H200");
  return 0;
}
EXPORTED int nvmlDeviceGetMinorNumber(Device device, unsigned* minor) {
  *minor = IndexOf(device) + 4;
  return 0;
}
EXPORTED int nvmlDeviceGetPciInfo_v3(Device device, PciInfo* out) {
  std::memset(out, 0, sizeof(*out));
  snprintf(out->bus_id, sizeof(out->bus_id), "00000000:%02X:00.0", 0x3A + IndexOf(device));
  return 0;
}
EXPORTED int nvmlDeviceGetMemoryInfo(Device device, Memory* out) {
  *out = {1000, 400, 600};
  return device->status;
}
EXPORTED int nvmlDeviceGetMigMode(Device device, unsigned* current, unsigned* pending) {
  *current = *pending = device->mig;
  return 0;
}
EXPORTED int nvmlDeviceGetUtilizationRates(Device, Utilization* out) {
  *out = {50, 10};
  return 0;
}
EXPORTED int nvmlDeviceGetPowerUsage(Device, unsigned* milliwatts) {
  *milliwatts = 350'500;
  return 0;
}
EXPORTED int nvmlDeviceGetClockInfo(Device, int type, unsigned* mhz) {
  *mhz = type == 1 ? 1980 : 3201;
  return 0;
}
EXPORTED int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned* count,
                                                     ProcessInfo* out) {
  const unsigned room = *count;
  *count = device->processes;
  if (room < device->processes) return 7;
  // The last one's memory is not known.
  for (unsigned i = 0; i < device->processes; ++i)
    out[i] = {100 + i, i + 1 == device->processes ? ~0ull : 10 + i, 0, 0};
  return 0;
}
EXPORTED int nvmlEventSetCreate(void** set) {
  *set = &fake_vendor;
  return 0;
}
EXPORTED int nvmlEventSetFree(void*) {
  return 0;
}
EXPORTED int nvmlDeviceRegisterEvents(Device, unsigned long long, void*) {
  return 0;
}
EXPORTED int nvmlEventSetWait_v2(void*, EventData* data, unsigned) {
  if (fake_vendor.xids == 0) return 10;
  const auto& next = fake_vendor.xid[--fake_vendor.xids];
  *data = {next.gpu < 0 ? nullptr : &fake_vendor.gpus[next.gpu], 8, next.xid, 0, 0};
  return 0;
}

// ---- ROCm SMI.

EXPORTED int rsmi_init(uint64_t) {
  ++fake_vendor.inits;
  return fake_vendor.init_status;
}
EXPORTED int rsmi_shut_down() {
  ++fake_vendor.shutdowns;
  return 0;
}
EXPORTED int rsmi_num_monitor_devices(uint32_t* count) {
  *count = fake_vendor.count;
  return 0;
}
EXPORTED int rsmi_dev_unique_id_get(uint32_t index, uint64_t* id) {
  *id = fake_vendor.gpus[index].unique_id;
  return *id == 0 ? 2 : 0;
}
EXPORTED int rsmi_dev_name_get(uint32_t, char* out, size_t length) {
  snprintf(out, length, "Fake MI300X");
  return 0;
}
EXPORTED int rsmi_dev_pci_id_get(uint32_t index, uint64_t* id) {
  *id = uint64_t{1} << 32 | (0xc0 + index) << 8 | 2 << 3 | 1;
  return 0;
}
EXPORTED int rsmi_dev_memory_total_get(uint32_t index, int, uint64_t* bytes) {
  *bytes = 2000;
  return fake_vendor.gpus[index].status;
}
EXPORTED int rsmi_dev_memory_usage_get(uint32_t, int, uint64_t* bytes) {
  *bytes = 500;
  return 0;
}
EXPORTED int rsmi_dev_busy_percent_get(uint32_t, uint32_t* percent) {
  *percent = 25;
  return 0;
}
EXPORTED int rsmi_dev_power_ave_get(uint32_t, uint32_t, uint64_t* microwatts) {
  *microwatts = 400'000'000;
  return 0;
}
EXPORTED int rsmi_dev_drm_render_minor_get(uint32_t index, uint32_t* minor) {
  *minor = 128 + index;
  return 0;
}
EXPORTED int rsmi_version_str_get(int, char* out, uint32_t length) {
  snprintf(out, length, "6.8.5");
  return 0;
}
EXPORTED int rsmi_status_string(int, const char** text) {
  *text = "some status";
  return 0;
}
