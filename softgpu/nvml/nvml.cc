// A stand-in for libnvidia-ml: the management view of the software GPU.
//
// Asks the device process over a line of its own, without a context, so a program that only looks
// does not show up as one that computes. It starts the device if there is none, as the driver is
// there before any program. One mutex.
#include "softgpu/nvml/nvml.h"

#include <strings.h>
#include <time.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "softgpu/client/connection.h"

#define NVML_API extern "C" __attribute__((visibility("default")))

struct nvmlDevice_st {
  uint32_t index;
  uint64_t busy_ns, now_ns;  // When utilisation was asked for last.
  unsigned utilization;
};

struct nvmlEventSet_st {
  bool open;
};

namespace {

using rubato::softgpu::Connection;
namespace wire = rubato::softgpu::wire;

constexpr double kIdleWatts = 75, kBusyWatts = 650;
constexpr unsigned kMaxSmMhz = 1980, kMaxMemoryMhz = 3201;
constexpr char kDriverVersion[] = "580.159.03";
constexpr int kCudaVersion = 13000;

struct State {
  std::mutex mutex;
  unsigned references = 0;
  std::unique_ptr<Connection> device;
  nvmlDevice_st handles[wire::kMaxDevices] = {};
};

State& TheState() {
  static State* const state = new State;
  return *state;
}

bool Ready() {
  return TheState().references > 0 && TheState().device != nullptr;
}

bool IsDevice(nvmlDevice_t device) {
  State& s = TheState();
  return device >= s.handles && device < s.handles + s.device->hello().devices;
}

const wire::DeviceInfo& InfoOf(nvmlDevice_t device) {
  return TheState().device->hello().info[device->index];
}

void Uuid(nvmlDevice_t device, char out[41]) {
  const unsigned char* u = InfoOf(device).uuid;
  snprintf(out, 41, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
           u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13],
           u[14], u[15]);
}

nvmlReturn_t Give(const char* text, char* out, unsigned length) {
  if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  if (strlen(text) + 1 > length) return NVML_ERROR_INSUFFICIENT_SIZE;
  std::memcpy(out, text, strlen(text) + 1);
  return NVML_SUCCESS;
}

wire::Reply Ask(nvmlDevice_t device, wire::RequestType type, uint64_t a0 = 0) {
  return TheState().device->Call(type, device->index, {a0});
}

// Share of the time since the last question in which blocks ran.
bool Usage(nvmlDevice_t device, unsigned* percent, double* clock) {
  const wire::Reply reply = Ask(device, wire::RequestType::kUsage);
  if (reply.status != wire::Status::kOk) return false;
  const uint64_t span = reply.v[1] - device->now_ns;
  // Asked again within a millisecond, the device answers as before, as the driver's sampling does.
  if (span > 1'000'000) {
    const uint64_t busy = reply.v[0] - device->busy_ns;
    device->utilization = static_cast<unsigned>(100 * busy / span);
    device->busy_ns = reply.v[0];
    device->now_ns = reply.v[1];
  }
  *percent = device->utilization;
  *clock = static_cast<double>(reply.v[2]) / 1e6;
  return true;
}

template <typename Info>
nvmlReturn_t Processes(nvmlDevice_t device, unsigned* count, Info* infos) {
  std::lock_guard<std::mutex> guard(TheState().mutex);
  if (!Ready()) return NVML_ERROR_UNINITIALIZED;
  if (count == nullptr || !IsDevice(device) || (*count > 0 && infos == nullptr))
    return NVML_ERROR_INVALID_ARGUMENT;
  std::vector<std::pair<uint64_t, uint64_t>> all;
  for (;;) {
    const wire::Reply reply = Ask(device, wire::RequestType::kUsage, all.size());
    if (reply.status != wire::Status::kOk) return NVML_ERROR_GPU_IS_LOST;
    const size_t before = all.size();
    for (size_t i = 4; i + 1 < std::size(reply.v) && all.size() < reply.v[3]; i += 2) {
      all.emplace_back(reply.v[i], reply.v[i + 1]);
    }
    if (all.size() >= reply.v[3] || all.size() == before) break;
  }
  const unsigned room = *count;
  *count = static_cast<unsigned>(all.size());
  if (all.empty()) return NVML_SUCCESS;
  if (room < all.size()) return NVML_ERROR_INSUFFICIENT_SIZE;
  for (size_t i = 0; i < all.size(); ++i) {
    infos[i] = {};
    infos[i].pid = static_cast<unsigned>(all[i].first);
    infos[i].usedGpuMemory = all[i].second;
    if constexpr (sizeof(Info) > sizeof(nvmlProcessInfo_v1_t)) {
      infos[i].gpuInstanceId = infos[i].computeInstanceId = 0xFFFFFFFF;
    }
  }
  return NVML_SUCCESS;
}

void BusId(nvmlDevice_t device, char* out, size_t length, bool wide) {
  snprintf(out, length, wide ? "%08x:%02x:00.0" : "%04x:%02x:00.0", 0u, InfoOf(device).pci_bus);
}

}  // namespace

#define NVML_ENTER(device)                             \
  std::lock_guard<std::mutex> guard(TheState().mutex); \
  if (!Ready()) return NVML_ERROR_UNINITIALIZED;       \
  if (!IsDevice(device)) return NVML_ERROR_INVALID_ARGUMENT

NVML_API nvmlReturn_t nvmlInitWithFlags(unsigned) {
  State& s = TheState();
  std::lock_guard<std::mutex> guard(s.mutex);
  if (s.device == nullptr || s.device->lost()) {
    s.device = Connection::Open(true);
    if (s.device == nullptr) return NVML_ERROR_DRIVER_NOT_LOADED;
    for (uint32_t i = 0; i < wire::kMaxDevices; ++i) s.handles[i] = {i, 0, 0, 0};
  }
  ++s.references;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlInit_v2() {
  return nvmlInitWithFlags(0);
}
NVML_API nvmlReturn_t nvmlInit() {
  return nvmlInitWithFlags(0);
}

NVML_API nvmlReturn_t nvmlShutdown() {
  State& s = TheState();
  std::lock_guard<std::mutex> guard(s.mutex);
  if (s.references == 0) return NVML_ERROR_UNINITIALIZED;
  if (--s.references == 0) s.device.reset();
  return NVML_SUCCESS;
}

NVML_API const char* nvmlErrorString(nvmlReturn_t result) {
  switch (result) {
    case NVML_SUCCESS:
      return "Success";
    case NVML_ERROR_UNINITIALIZED:
      return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT:
      return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED:
      return "Not Supported";
    case NVML_ERROR_NO_PERMISSION:
      return "Insufficient Permissions";
    case NVML_ERROR_NOT_FOUND:
      return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE:
      return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED:
      return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT:
      return "Timeout";
    case NVML_ERROR_GPU_IS_LOST:
      return "GPU is lost";
    default:
      return "Unknown Error";
  }
}

NVML_API nvmlReturn_t nvmlSystemGetDriverVersion(char* out, unsigned length) {
  std::lock_guard<std::mutex> guard(TheState().mutex);
  return Ready() ? Give(kDriverVersion, out, length) : NVML_ERROR_UNINITIALIZED;
}
NVML_API nvmlReturn_t nvmlSystemGetNVMLVersion(char* out, unsigned length) {
  std::lock_guard<std::mutex> guard(TheState().mutex);
  return Ready() ? Give("13.580.159.03", out, length) : NVML_ERROR_UNINITIALIZED;
}
NVML_API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int* version) {
  std::lock_guard<std::mutex> guard(TheState().mutex);
  if (!Ready()) return NVML_ERROR_UNINITIALIZED;
  if (version == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *version = kCudaVersion;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int* version) {
  return nvmlSystemGetCudaDriverVersion_v2(version);
}

NVML_API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned* count) {
  std::lock_guard<std::mutex> guard(TheState().mutex);
  if (!Ready()) return NVML_ERROR_UNINITIALIZED;
  if (count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *count = TheState().device->hello().devices;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetCount(unsigned* count) {
  return nvmlDeviceGetCount_v2(count);
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t* out) {
  std::lock_guard<std::mutex> guard(TheState().mutex);
  if (!Ready()) return NVML_ERROR_UNINITIALIZED;
  if (out == nullptr || index >= TheState().device->hello().devices)
    return NVML_ERROR_INVALID_ARGUMENT;
  *out = &TheState().handles[index];
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t* out) {
  return nvmlDeviceGetHandleByIndex_v2(index, out);
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char* uuid, nvmlDevice_t* out) {
  std::lock_guard<std::mutex> guard(TheState().mutex);
  if (!Ready()) return NVML_ERROR_UNINITIALIZED;
  if (out == nullptr || uuid == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  for (uint32_t i = 0; i < TheState().device->hello().devices; ++i) {
    char mine[41];
    Uuid(&TheState().handles[i], mine);
    if (strcasecmp(mine, uuid) != 0) continue;
    *out = &TheState().handles[i];
    return NVML_SUCCESS;
  }
  return NVML_ERROR_NOT_FOUND;
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char* text, nvmlDevice_t* out) {
  std::lock_guard<std::mutex> guard(TheState().mutex);
  if (!Ready()) return NVML_ERROR_UNINITIALIZED;
  if (out == nullptr || text == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  for (uint32_t i = 0; i < TheState().device->hello().devices; ++i) {
    char wide[32], narrow[32];
    BusId(&TheState().handles[i], wide, sizeof wide, true);
    BusId(&TheState().handles[i], narrow, sizeof narrow, false);
    if (strcasecmp(wide, text) != 0 && strcasecmp(narrow, text) != 0 &&
        strcasecmp(narrow + 5, text) != 0)
      continue;
    *out = &TheState().handles[i];
    return NVML_SUCCESS;
  }
  return NVML_ERROR_NOT_FOUND;
}
NVML_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char* text, nvmlDevice_t* out) {
  return nvmlDeviceGetHandleByPciBusId_v2(text, out);
}

NVML_API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned* index) {
  NVML_ENTER(device);
  if (index == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *index = device->index;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned* number) {
  return nvmlDeviceGetIndex(device, number);
}
NVML_API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char* out, unsigned length) {
  NVML_ENTER(device);
  return Give(InfoOf(device).name, out, length);
}
NVML_API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char* out, unsigned length) {
  NVML_ENTER(device);
  char text[41];
  Uuid(device, text);
  return Give(text, out, length);
}
NVML_API nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char*, unsigned) {
  NVML_ENTER(device);
  return NVML_ERROR_NOT_SUPPORTED;
}

NVML_API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t* out) {
  NVML_ENTER(device);
  if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *out = {};
  out->bus = InfoOf(device).pci_bus;
  BusId(device, out->busIdLegacy, sizeof out->busIdLegacy, false);
  BusId(device, out->busId, sizeof out->busId, true);
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t* out) {
  return nvmlDeviceGetPciInfo_v3(device, out);
}
NVML_API nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t* out) {
  return nvmlDeviceGetPciInfo_v3(device, out);
}

NVML_API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t* out) {
  NVML_ENTER(device);
  if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  const wire::Reply reply = Ask(device, wire::RequestType::kMemoryInfo);
  if (reply.status != wire::Status::kOk) return NVML_ERROR_GPU_IS_LOST;
  *out = {reply.v[1], reply.v[0], reply.v[1] - reply.v[0]};
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t* out) {
  NVML_ENTER(device);
  // The version carries the size; another one is another struct.
  if (out == nullptr || (out->version != (sizeof(nvmlMemory_v2_t) | 2u << 24)))
    return NVML_ERROR_INVALID_ARGUMENT;
  const wire::Reply reply = Ask(device, wire::RequestType::kMemoryInfo);
  if (reply.status != wire::Status::kOk) return NVML_ERROR_GPU_IS_LOST;
  out->total = reply.v[1];
  out->reserved = 0;
  out->free = reply.v[0];
  out->used = reply.v[1] - reply.v[0];
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t* out) {
  NVML_ENTER(device);
  double clock;
  if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  if (!Usage(device, &out->gpu, &clock)) return NVML_ERROR_GPU_IS_LOST;
  out->memory = 0;  // The model keeps no account of the memory controller.
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned* milliwatts) {
  NVML_ENTER(device);
  unsigned percent;
  double clock;
  if (milliwatts == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  if (!Usage(device, &percent, &clock)) return NVML_ERROR_GPU_IS_LOST;
  *milliwatts =
      static_cast<unsigned>(1000 * (kIdleWatts + (kBusyWatts - kIdleWatts) * percent / 100));
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned* milliwatts) {
  NVML_ENTER(device);
  if (milliwatts == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *milliwatts = 700'000;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned* milliwatts) {
  return nvmlDeviceGetEnforcedPowerLimit(device, milliwatts);
}
NVML_API nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int, unsigned* degrees) {
  NVML_ENTER(device);
  unsigned percent;
  double clock;
  if (degrees == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  if (!Usage(device, &percent, &clock)) return NVML_ERROR_GPU_IS_LOST;
  *degrees = 30 + percent * 4 / 10;
  return NVML_SUCCESS;
}

// Clock types: 0 graphics, 1 SM, 2 memory, 3 video.
NVML_API nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, int type, unsigned* mhz) {
  NVML_ENTER(device);
  unsigned percent;
  double clock;
  if (mhz == nullptr || type < 0 || type > 3) return NVML_ERROR_INVALID_ARGUMENT;
  if (!Usage(device, &percent, &clock)) return NVML_ERROR_GPU_IS_LOST;
  *mhz = type == 2 ? kMaxMemoryMhz : static_cast<unsigned>(kMaxSmMhz * clock);
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, int type, unsigned* mhz) {
  NVML_ENTER(device);
  if (mhz == nullptr || type < 0 || type > 3) return NVML_ERROR_INVALID_ARGUMENT;
  *mhz = type == 2 ? kMaxMemoryMhz : kMaxSmMhz;
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, int* mode) {
  NVML_ENTER(device);
  if (mode == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *mode = 0;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int* major,
                                                         int* minor) {
  NVML_ENTER(device);
  if (major == nullptr || minor == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *major = 9;
  *minor = 0;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned* current,
                                           unsigned* pending) {
  NVML_ENTER(device);
  if (current == nullptr || pending == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *current = *pending = 0;
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned* count,
                                                              nvmlProcessInfo_t* infos) {
  return Processes(device, count, infos);
}
NVML_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned* count,
                                                              nvmlProcessInfo_t* infos) {
  return Processes(device, count, infos);
}
NVML_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned* count,
                                                           nvmlProcessInfo_v1_t* infos) {
  return Processes(device, count, infos);
}
NVML_API nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device,
                                                                 unsigned* count,
                                                                 nvmlProcessInfo_t*) {
  NVML_ENTER(device);
  if (count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *count = 0;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned* count,
                                                               nvmlProcessInfo_t*) {
  return nvmlDeviceGetMPSComputeRunningProcesses_v3(device, count, nullptr);
}

// The software GPU has no faults to report: waiting for an event always ends by its time.
NVML_API nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t* out) {
  std::lock_guard<std::mutex> guard(TheState().mutex);
  if (!Ready()) return NVML_ERROR_UNINITIALIZED;
  if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *out = new nvmlEventSet_st{true};
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
  if (set == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  delete set;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device,
                                                       unsigned long long* types) {
  NVML_ENTER(device);
  if (types == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *types = 0x8;  // Critical Xid errors.
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types,
                                               nvmlEventSet_t set) {
  NVML_ENTER(device);
  if (set == nullptr || !set->open) return NVML_ERROR_INVALID_ARGUMENT;
  return (types & ~0x8ull) == 0 ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}
NVML_API nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t* data,
                                          unsigned timeout_ms) {
  if (set == nullptr || data == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  timespec left{timeout_ms / 1000, static_cast<long>(timeout_ms % 1000) * 1'000'000};
  while (nanosleep(&left, &left) != 0) {
  }
  return NVML_ERROR_TIMEOUT;
}
NVML_API nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t* data,
                                       unsigned timeout_ms) {
  return nvmlEventSetWait_v2(set, data, timeout_ms);
}
