// NVML by dlopen. The few declarations it needs are written out here from the published interface
// (NVML 11 to 13): the vendor's header is not in every toolkit, and a binary that asks for symbols
// one by one runs with every driver.
#include <dlfcn.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>

#include "agent/gpu/gpu_library.h"
#include "base/clock.h"

namespace rubato::agent {
namespace {

using base::Error;
using base::ErrorCode;
using base::Result;

using Status = int;
constexpr Status kSuccess = 0;
constexpr Status kInsufficientSize = 7;
constexpr Status kTimeout = 10;
constexpr Status kGpuIsLost = 15;
constexpr Status kResetRequired = 16;

constexpr int kClockSm = 1;
constexpr int kClockMemory = 2;
constexpr int kTemperatureGpu = 0;
constexpr unsigned long long kEventXidCritical = 0x8;
constexpr unsigned long long kMemoryNotKnown = ~0ull;

struct Opaque;
using Device = Opaque*;
using EventSet = Opaque*;

struct Memory {
  unsigned long long total, free, used;
};
struct Utilization {
  unsigned gpu, memory;
};
struct PciInfo {
  char bus_id_legacy[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};
struct ProcessInfo {  // Of the calls _v2 and _v3.
  unsigned pid;
  unsigned long long used_bytes;
  unsigned gpu_instance, compute_instance;
};
struct EventData {
  Device device;
  unsigned long long type, data;
  unsigned gpu_instance, compute_instance;
};

struct Calls {
  Status (*Init)() = nullptr;
  Status (*Shutdown)() = nullptr;
  const char* (*ErrorString)(Status) = nullptr;
  Status (*NvmlVersion)(char*, unsigned) = nullptr;
  Status (*DriverVersion)(char*, unsigned) = nullptr;
  Status (*Count)(unsigned*) = nullptr;
  Status (*ByIndex)(unsigned, Device*) = nullptr;
  Status (*Uuid)(Device, char*, unsigned) = nullptr;
  Status (*Name)(Device, char*, unsigned) = nullptr;
  Status (*Minor)(Device, unsigned*) = nullptr;
  Status (*Pci)(Device, PciInfo*) = nullptr;
  Status (*MemoryOf)(Device, Memory*) = nullptr;
  // Those below may be absent.
  Status (*MigMode)(Device, unsigned*, unsigned*) = nullptr;
  Status (*UtilizationOf)(Device, Utilization*) = nullptr;
  Status (*Power)(Device, unsigned*) = nullptr;
  Status (*Temperature)(Device, int, unsigned*) = nullptr;
  Status (*Clock)(Device, int, unsigned*) = nullptr;
  Status (*ComputeProcesses)(Device, unsigned*, ProcessInfo*) = nullptr;
  Status (*MpsProcesses)(Device, unsigned*, ProcessInfo*) = nullptr;
  Status (*GraphicsProcesses)(Device, unsigned*, ProcessInfo*) = nullptr;
  Status (*EventSetCreate)(EventSet*) = nullptr;
  Status (*EventSetFree)(EventSet) = nullptr;
  Status (*RegisterEvents)(Device, unsigned long long, EventSet) = nullptr;
  Status (*EventSetWait)(EventSet, EventData*, unsigned) = nullptr;
};

template <typename F>
bool Take(void* library, F* out, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (void* symbol = ::dlsym(library, name); symbol != nullptr) {
      *out = reinterpret_cast<F>(symbol);
      return true;
    }
  }
  return false;
}

bool TakeAll(void* library, Calls* c) {
  const bool needed =
      Take(library, &c->Init, {"nvmlInit_v2"}) && Take(library, &c->Shutdown, {"nvmlShutdown"}) &&
      Take(library, &c->ErrorString, {"nvmlErrorString"}) &&
      Take(library, &c->NvmlVersion, {"nvmlSystemGetNVMLVersion"}) &&
      Take(library, &c->DriverVersion, {"nvmlSystemGetDriverVersion"}) &&
      Take(library, &c->Count, {"nvmlDeviceGetCount_v2"}) &&
      Take(library, &c->ByIndex, {"nvmlDeviceGetHandleByIndex_v2"}) &&
      Take(library, &c->Uuid, {"nvmlDeviceGetUUID"}) &&
      Take(library, &c->Name, {"nvmlDeviceGetName"}) &&
      Take(library, &c->Minor, {"nvmlDeviceGetMinorNumber"}) &&
      Take(library, &c->Pci, {"nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetPciInfo_v2"}) &&
      Take(library, &c->MemoryOf, {"nvmlDeviceGetMemoryInfo"});
  (void)Take(library, &c->MigMode, {"nvmlDeviceGetMigMode"});
  (void)Take(library, &c->UtilizationOf, {"nvmlDeviceGetUtilizationRates"});
  (void)Take(library, &c->Power, {"nvmlDeviceGetPowerUsage"});
  (void)Take(library, &c->Temperature, {"nvmlDeviceGetTemperature"});
  (void)Take(library, &c->Clock, {"nvmlDeviceGetClockInfo"});
  (void)Take(
      library, &c->ComputeProcesses,
      {"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"});
  (void)Take(
      library, &c->MpsProcesses,
      {"nvmlDeviceGetMPSComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v2"});
  (void)Take(
      library, &c->GraphicsProcesses,
      {"nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2"});
  const bool events = Take(library, &c->EventSetCreate, {"nvmlEventSetCreate"}) &&
                      Take(library, &c->EventSetFree, {"nvmlEventSetFree"}) &&
                      Take(library, &c->RegisterEvents, {"nvmlDeviceRegisterEvents"}) &&
                      Take(library, &c->EventSetWait, {"nvmlEventSetWait_v2", "nvmlEventSetWait"});
  if (!events) c->EventSetCreate = nullptr;
  return needed;
}

// "00000000:3B:00.0" as sysfs has it: four digits of the domain, lower case.
std::string BusId(const PciInfo& info) {
  char text[32];
  unsigned domain = 0, bus = 0, device = 0, function = 0;
  char copy[sizeof(info.bus_id) + 1] = {};
  std::memcpy(copy, info.bus_id, sizeof(info.bus_id));
  if (std::sscanf(copy, "%x:%x:%x.%x", &domain, &bus, &device, &function) != 4) return "";
  std::snprintf(text, sizeof(text), "%04x:%02x:%02x.%x", domain, bus, device, function);
  return text;
}

class Nvml final : public GpuLibrary {
 public:
  Nvml(void* library, const Calls& calls, GpuVendor vendor)
      : library_(library), calls_(calls), vendor_(vendor) {}

  ~Nvml() override {
    if (events_ != nullptr) (void)calls_.EventSetFree(events_);
    if (started_) (void)calls_.Shutdown();
    // Never dlclose: the library has threads and handlers of its own.
  }

  Result<void> Start() {
    const Status status = calls_.Init();
    if (status != kSuccess) {
      return Error{ErrorCode::kUnavailable,
                   std::string("NVML finds no driver (") + calls_.ErrorString(status) +
                       "); check gpu.driverRoot and that the node's driver is loaded"};
    }
    started_ = true;
    char text[96] = {};
    if (calls_.NvmlVersion(text, sizeof(text)) == kSuccess) version_ = text;
    if (calls_.DriverVersion(text, sizeof(text)) == kSuccess) driver_ = text;
    if (calls_.EventSetCreate != nullptr && calls_.EventSetCreate(&events_) != kSuccess)
      events_ = nullptr;
    return {};
  }

  Result<GpuSnapshot> Read() override {
    GpuSnapshot snapshot;
    snapshot.taken_ns = base::MonotonicNow();
    snapshot.library = "NVML " + version_;
    snapshot.driver_version = driver_;
    unsigned count = 0;
    if (const Status status = calls_.Count(&count); status != kSuccess)
      return Failure("cannot count the GPUs", status);
    for (unsigned index = 0; index < count; ++index) {
      Device device = nullptr;
      const Status status = calls_.ByIndex(index, &device);
      if (status == kSuccess) {
        snapshot.gpus.push_back(ReadGpu(index, device));
      } else if (const auto known = known_.find(index); known != known_.end()) {
        // Its handle is gone with it, its name is not.
        snapshot.gpus.push_back(known->second);
        snapshot.gpus.back().lost = calls_.ErrorString(status);
      } else if (status != kGpuIsLost && status != kResetRequired) {
        return Failure("cannot look at GPU " + std::to_string(index), status);
      }
    }
    // With every GPU out of reach, only a new start of the library finds what has come back.
    if (!snapshot.gpus.empty() &&
        std::all_of(snapshot.gpus.begin(), snapshot.gpus.end(),
                    [](const GpuReading& gpu) { return !gpu.lost.empty(); }))
      return Error{ErrorCode::kUnavailable, "NVML reaches no GPU: " + snapshot.gpus.front().lost};
    ReadEvents(&snapshot);
    return snapshot;
  }

 private:
  Error Failure(const std::string& what, Status status) const {
    return Error{ErrorCode::kUnavailable, "NVML " + what + ": " + calls_.ErrorString(status)};
  }

  GpuReading ReadGpu(unsigned index, Device device) {
    GpuReading gpu;
    gpu.vendor = vendor_;
    gpu.index = index;
    const auto known = known_.find(index);
    char text[96] = {};
    const Status status = calls_.Uuid(device, text, sizeof(text));
    if (status != kSuccess) {
      if (known != known_.end()) gpu = known->second;
      gpu.lost = calls_.ErrorString(status);
      return gpu;
    }
    gpu.uuid = text;
    if (calls_.Name(device, text, sizeof(text)) == kSuccess) gpu.name = text;
    unsigned minor = index;
    (void)calls_.Minor(device, &minor);
    if (vendor_ == GpuVendor::kNvidia) gpu.device_nodes = {"/dev/nvidia" + std::to_string(minor)};
    PciInfo pci{};
    if (calls_.Pci(device, &pci) == kSuccess) gpu.pci_bus_id = BusId(pci);
    if (vendor_ == GpuVendor::kNvidia) gpu.numa_node = NumaNodeOf(gpu.pci_bus_id);
    unsigned current = 0, pending = 0;
    if (calls_.MigMode != nullptr && calls_.MigMode(device, &current, &pending) == kSuccess)
      gpu.mig_enabled = current != 0;
    if (known == known_.end() || known->second.uuid != gpu.uuid) {
      known_[index] = gpu;
      if (events_ != nullptr) (void)calls_.RegisterEvents(device, kEventXidCritical, events_);
    }
    uuid_of_[device] = gpu.uuid;

    Memory memory{};
    if (const Status answer = calls_.MemoryOf(device, &memory); answer == kSuccess) {
      gpu.total_bytes = memory.total;
      gpu.used_bytes = memory.used;
      known_[index].total_bytes = memory.total;
    } else if (answer == kGpuIsLost || answer == kResetRequired || !gpu.mig_enabled) {
      gpu.lost = calls_.ErrorString(answer);
    }
    unsigned number = 0;
    if (calls_.Clock != nullptr && calls_.Clock(device, kClockSm, &number) == kSuccess)
      gpu.sm_clock_hz = number * 1e6;
    if (calls_.Clock != nullptr && calls_.Clock(device, kClockMemory, &number) == kSuccess)
      gpu.memory_clock_hz = number * 1e6;
    if (calls_.Power != nullptr && calls_.Power(device, &number) == kSuccess)
      gpu.power_watts = number / 1e3;
    if (calls_.Temperature != nullptr &&
        calls_.Temperature(device, kTemperatureGpu, &number) == kSuccess)
      gpu.temperature_celsius = number;
    Utilization utilization{};
    if (calls_.UtilizationOf != nullptr && calls_.UtilizationOf(device, &utilization) == kSuccess)
      gpu.utilization_ratio = std::min(utilization.gpu, 100u) / 100.0;
    ReadProcesses(device, &gpu);
    return gpu;
  }

  void ReadProcesses(Device device, GpuReading* gpu) {
    std::map<int64_t, uint64_t> found;
    for (auto* call : {calls_.ComputeProcesses, calls_.MpsProcesses, calls_.GraphicsProcesses}) {
      if (call == nullptr) continue;
      std::vector<ProcessInfo> list(64);
      Status status = kInsufficientSize;
      unsigned count = 0;
      // More may come between two questions; a list that keeps growing is cut.
      for (int attempt = 0; attempt < 4 && status == kInsufficientSize; ++attempt) {
        count = static_cast<unsigned>(list.size());
        status = call(device, &count, list.data());
        if (status == kInsufficientSize) list.resize(std::min<size_t>(2u * count + 64, 65536));
      }
      if (status != kSuccess) continue;
      gpu->processes_known = true;
      for (size_t i = 0; i < std::min<size_t>(count, list.size()); ++i) {
        uint64_t& used = found[list[i].pid];
        if (list[i].used_bytes != kMemoryNotKnown)
          used = std::max<uint64_t>(used, list[i].used_bytes);
      }
    }
    for (const auto& [pid, used] : found) gpu->processes.push_back({pid, used});
  }

  // Those that wait; the call is not made to wait for more.
  void ReadEvents(GpuSnapshot* snapshot) {
    if (events_ == nullptr) return;
    for (int i = 0; i < 64; ++i) {
      EventData event{};
      const Status status = calls_.EventSetWait(events_, &event, 0);
      if (status != kSuccess) {
        // A lost GPU ends the events of all; a new library object makes a new set.
        if (status != kTimeout && status != kGpuIsLost) events_ = nullptr;
        return;
      }
      if ((event.type & kEventXidCritical) == 0) continue;
      const auto found = uuid_of_.find(event.device);
      snapshot->xids.push_back({found == uuid_of_.end() ? "" : found->second, event.data});
    }
  }

  void* const library_;
  const Calls calls_;
  const GpuVendor vendor_;
  bool started_ = false;
  std::string version_;
  std::string driver_;
  EventSet events_ = nullptr;
  std::map<unsigned, GpuReading> known_;  // What does not change, by index.
  std::map<Device, std::string> uuid_of_;
};

Result<std::unique_ptr<GpuLibrary>> Start(void* library, const std::string& path,
                                          GpuVendor vendor) {
  Calls calls;
  if (!TakeAll(library, &calls)) {
    return Error{ErrorCode::kInvalid,
                 path + " lacks functions of NVML; install a driver from 470 on"};
  }
  auto nvml = std::make_unique<Nvml>(library, calls, vendor);
  if (auto started = nvml->Start(); !started) return started.error();
  return std::unique_ptr<GpuLibrary>(std::move(nvml));
}

}  // namespace

Result<std::unique_ptr<GpuLibrary>> OpenNvmlFile(const std::string& path, GpuVendor vendor) {
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = ::dlerror();
    return Error{ErrorCode::kNotFound, std::string("cannot load NVML: ") + (why ? why : path)};
  }
  return Start(library, path, vendor);
}

Result<std::unique_ptr<GpuLibrary>> OpenNvml(const std::string& driver_root) {
  std::string why;
  for (const std::string& path : LibraryCandidates(driver_root, "libnvidia-ml.so.1")) {
    struct stat info {};
    const bool bare = path.front() != '/';
    if (!bare && ::stat(path.c_str(), &info) != 0) continue;
    if (void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); library != nullptr)
      return Start(library, path, GpuVendor::kNvidia);
    if (const char* text = ::dlerror(); text != nullptr && !bare) why = text;
  }
  if (!why.empty()) return Error{ErrorCode::kNotFound, "cannot load NVML: " + why};
  return Error{ErrorCode::kNotFound,
               "there is no libnvidia-ml.so.1 below " + driver_root +
                   "; set gpu.driverRoot to where the node's NVIDIA driver is"};
}

}  // namespace rubato::agent
