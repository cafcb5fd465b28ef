// ROCm SMI by dlopen, for AMD's GPUs: names, memory, load and power. Only calls whose arguments
// have kept their layout since ROCm 5 are used; clocks and temperature come from the kernel's own
// files (amdgpu's hwmon), which need no library.
//
// HIP tells a GPU's UUID as the sixteen hexadecimal digits of its unique id, taken as sixteen
// bytes; the same is made here, so that a slot's name is the device that a program reports.
#include <dirent.h>
#include <dlfcn.h>
#include <sys/stat.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <fstream>
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
constexpr int kMemoryVram = 0;
constexpr int kComponentDriver = 0;

struct Calls {
  Status (*Init)(uint64_t) = nullptr;
  Status (*ShutDown)() = nullptr;
  Status (*Count)(uint32_t*) = nullptr;
  Status (*UniqueId)(uint32_t, uint64_t*) = nullptr;
  Status (*Name)(uint32_t, char*, size_t) = nullptr;
  Status (*PciId)(uint32_t, uint64_t*) = nullptr;
  Status (*MemoryTotal)(uint32_t, int, uint64_t*) = nullptr;
  Status (*MemoryUsed)(uint32_t, int, uint64_t*) = nullptr;
  // Those below may be absent.
  Status (*BusyPercent)(uint32_t, uint32_t*) = nullptr;
  Status (*Power)(uint32_t, uint32_t, uint64_t*) = nullptr;  // Microwatts.
  Status (*RenderMinor)(uint32_t, uint32_t*) = nullptr;
  Status (*Version)(int, char*, uint32_t) = nullptr;
  Status (*StatusText)(Status, const char**) = nullptr;
};

template <typename F>
bool Take(void* library, F* out, const char* name) {
  void* symbol = ::dlsym(library, name);
  *out = reinterpret_cast<F>(symbol);
  return symbol != nullptr;
}

bool TakeAll(void* library, Calls* c) {
  const bool needed = Take(library, &c->Init, "rsmi_init") &&
                      Take(library, &c->ShutDown, "rsmi_shut_down") &&
                      Take(library, &c->Count, "rsmi_num_monitor_devices") &&
                      Take(library, &c->UniqueId, "rsmi_dev_unique_id_get") &&
                      Take(library, &c->Name, "rsmi_dev_name_get") &&
                      Take(library, &c->PciId, "rsmi_dev_pci_id_get") &&
                      Take(library, &c->MemoryTotal, "rsmi_dev_memory_total_get") &&
                      Take(library, &c->MemoryUsed, "rsmi_dev_memory_usage_get");
  (void)Take(library, &c->BusyPercent, "rsmi_dev_busy_percent_get");
  (void)Take(library, &c->Power, "rsmi_dev_power_ave_get");
  (void)Take(library, &c->RenderMinor, "rsmi_dev_drm_render_minor_get");
  (void)Take(library, &c->Version, "rsmi_version_str_get");
  (void)Take(library, &c->StatusText, "rsmi_status_string");
  return needed;
}

std::string UuidOf(uint64_t unique_id) {
  char digits[17];
  std::snprintf(digits, sizeof(digits), "%016" PRIx64, unique_id);
  std::string out = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    char byte[3];
    std::snprintf(byte, sizeof(byte), "%02x", static_cast<unsigned>(digits[i]));
    out += byte;
  }
  return out;
}

std::string BusIdOf(uint64_t id) {
  char text[32];
  std::snprintf(text, sizeof(text), "%04x:%02x:%02x.%x", static_cast<unsigned>(id >> 32),
                static_cast<unsigned>(id >> 8) & 0xff, static_cast<unsigned>(id >> 3) & 0x1f,
                static_cast<unsigned>(id) & 0x7);
  return text;
}

std::optional<double> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

// The first hwmon folder of the device: freq1 is the shader clock, freq2 the memory's, in hertz;
// temp1 the edge, in thousandths of a degree.
std::string HwmonOf(const std::string& pci_bus_id) {
  const std::string parent = "/sys/bus/pci/devices/" + pci_bus_id + "/hwmon";
  DIR* folder = ::opendir(parent.c_str());
  if (folder == nullptr) return "";
  std::string found;
  while (const dirent* entry = ::readdir(folder)) {
    const std::string name = entry->d_name;
    if (name.starts_with("hwmon") && (found.empty() || name < found)) found = name;
  }
  ::closedir(folder);
  return found.empty() ? "" : parent + "/" + found;
}

class RocmSmi final : public GpuLibrary {
 public:
  explicit RocmSmi(const Calls& calls) : calls_(calls) {}
  ~RocmSmi() override {
    if (started_) (void)calls_.ShutDown();
  }

  Result<void> Start() {
    const Status status = calls_.Init(0);
    if (status != kSuccess) {
      return Error{ErrorCode::kUnavailable, "ROCm SMI finds no driver (" + Words(status) +
                                                "); check that amdgpu is loaded on the node"};
    }
    started_ = true;
    char text[128] = {};
    if (calls_.Version != nullptr &&
        calls_.Version(kComponentDriver, text, sizeof(text)) == kSuccess)
      driver_ = text;
    return {};
  }

  Result<GpuSnapshot> Read() override {
    GpuSnapshot snapshot;
    snapshot.taken_ns = base::MonotonicNow();
    snapshot.library = "ROCm SMI";
    snapshot.driver_version = driver_;
    uint32_t count = 0;
    if (const Status status = calls_.Count(&count); status != kSuccess)
      return Error{ErrorCode::kUnavailable, "ROCm SMI cannot count the GPUs: " + Words(status)};
    for (uint32_t index = 0; index < count; ++index) {
      uint64_t unique_id = 0;
      // Integrated graphics and some virtual functions have none: no name, no slots.
      if (calls_.UniqueId(index, &unique_id) != kSuccess || unique_id == 0) continue;
      snapshot.gpus.push_back(ReadGpu(index, unique_id));
    }
    return snapshot;
  }

 private:
  std::string Words(Status status) const {
    const char* text = nullptr;
    if (calls_.StatusText != nullptr && calls_.StatusText(status, &text) == kSuccess &&
        text != nullptr)
      return text;
    return "status " + std::to_string(status);
  }

  GpuReading ReadGpu(uint32_t index, uint64_t unique_id) const {
    GpuReading gpu;
    gpu.vendor = GpuVendor::kAmd;
    gpu.index = index;
    gpu.uuid = UuidOf(unique_id);
    char text[256] = {};
    if (calls_.Name(index, text, sizeof(text) - 1) == kSuccess) gpu.name = text;
    uint64_t id = 0;
    if (calls_.PciId(index, &id) == kSuccess) {
      gpu.pci_bus_id = BusIdOf(id);
      gpu.numa_node = NumaNodeOf(gpu.pci_bus_id);
    }
    gpu.device_nodes = {"/dev/kfd"};
    uint32_t minor = 0;
    if (calls_.RenderMinor != nullptr && calls_.RenderMinor(index, &minor) == kSuccess)
      gpu.device_nodes.push_back("/dev/dri/renderD" + std::to_string(minor));
    const Status total = calls_.MemoryTotal(index, kMemoryVram, &gpu.total_bytes);
    const Status used = calls_.MemoryUsed(index, kMemoryVram, &gpu.used_bytes);
    if (total != kSuccess) gpu.lost = Words(total);
    if (used != kSuccess) gpu.lost = Words(used);
    uint32_t percent = 0;
    if (calls_.BusyPercent != nullptr && calls_.BusyPercent(index, &percent) == kSuccess)
      gpu.utilization_ratio = std::min(percent, 100u) / 100.0;
    uint64_t microwatts = 0;
    if (calls_.Power != nullptr && calls_.Power(index, 0, &microwatts) == kSuccess)
      gpu.power_watts = static_cast<double>(microwatts) / 1e6;
    if (const std::string hwmon = HwmonOf(gpu.pci_bus_id); !hwmon.empty()) {
      gpu.sm_clock_hz = ReadNumber(hwmon + "/freq1_input");
      gpu.memory_clock_hz = ReadNumber(hwmon + "/freq2_input");
      if (const auto millidegrees = ReadNumber(hwmon + "/temp1_input"))
        gpu.temperature_celsius = *millidegrees / 1e3;
      // Newer GPUs tell no average to the library.
      if (!gpu.power_watts.has_value()) {
        if (const auto now = ReadNumber(hwmon + "/power1_input")) gpu.power_watts = *now / 1e6;
      }
    }
    return gpu;
  }

  const Calls calls_;
  bool started_ = false;
  std::string driver_;
};

}  // namespace

Result<std::unique_ptr<GpuLibrary>> OpenRocmSmi(const std::string& driver_root) {
  std::string why;
  // The plain name comes with the development package only; the others are those of ROCm 5 to 7.
  for (const char* name : {"librocm_smi64.so.1", "librocm_smi64.so.5", "librocm_smi64.so.6",
                           "librocm_smi64.so.7", "librocm_smi64.so"}) {
    for (const std::string& path : LibraryCandidates(driver_root, name)) {
      struct stat info {};
      const bool bare = path.front() != '/';
      if (!bare && ::stat(path.c_str(), &info) != 0) continue;
      void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library == nullptr) {
        if (const char* text = ::dlerror(); text != nullptr && !bare) why = text;
        continue;
      }
      Calls calls;
      if (!TakeAll(library, &calls))
        return Error{ErrorCode::kInvalid,
                     path + " lacks functions of ROCm SMI; install ROCm 5 or later"};
      auto smi = std::make_unique<RocmSmi>(calls);
      if (auto started = smi->Start(); !started) return started.error();
      return std::unique_ptr<GpuLibrary>(std::move(smi));
    }
  }
  if (!why.empty()) return Error{ErrorCode::kNotFound, "cannot load ROCm SMI: " + why};
  return Error{ErrorCode::kNotFound, "there is no librocm_smi64 below " + driver_root +
                                         "; set gpu.driverRoot to where ROCm is"};
}

}  // namespace rubato::agent
