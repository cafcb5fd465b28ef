#include "agent/gpu/inventory.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

namespace rubato::agent {
namespace {

using base::Nanos;

// NVIDIA's catalogue: after these the GPU needs a reset (ECC beyond repair, fallen off the bus,
// page retirement, GSP and NVLink failures), whatever it answers meanwhile.
constexpr std::array<uint64_t, 10> kNeedReset = {48, 62, 64, 74, 79, 95, 119, 120, 140, 143};

std::string Lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace

GpuInventory::Rules GpuInventory::RulesOf(const Config& config) {
  return Rules{config.gpu_include, config.gpu_exclude, config.ignored_xids, config.gpu_recovery_ns};
}

void GpuInventory::SetRules(Rules rules) {
  rules_ = std::move(rules);
  (void)Evaluate(now_ns_);
}

const KnownGpu* GpuInventory::Find(const std::string& uuid) const {
  const auto found = std::find_if(gpus_.begin(), gpus_.end(),
                                  [&](const KnownGpu& gpu) { return gpu.reading.uuid == uuid; });
  return found == gpus_.end() ? nullptr : &*found;
}

bool GpuInventory::Report(const GpuReport& report, Nanos now_ns) {
  hung_ = report.hung;
  trouble_ = report.trouble;
  away_ = !report.hung && !report.snapshot.has_value();
  bool changed = false;
  if (report.snapshot.has_value()) {
    ready_ = true;
    library_ = report.snapshot->library;
    driver_version_ = report.snapshot->driver_version;
    std::set<std::string> present;
    for (const GpuReading& reading : report.snapshot->gpus) {
      if (reading.uuid.empty()) continue;
      present.insert(reading.uuid);
      const auto found = std::find_if(gpus_.begin(), gpus_.end(), [&](const KnownGpu& gpu) {
        return gpu.reading.uuid == reading.uuid;
      });
      State& state = states_[reading.uuid];
      const bool was_away = !state.lost.empty() || !state.present;
      state.lost = reading.lost;
      state.present = true;
      if (was_away && state.lost.empty()) {
        // It was reset, or put back: what needed that is over.
        std::erase_if(state.faults, [](const auto& fault) { return fault.second.sticky; });
      }
      if (found == gpus_.end()) {
        gpus_.push_back(KnownGpu{});
        gpus_.back().reading = reading;
        changed = true;
      } else {
        // A lost GPU answers nothing worth knowing.
        const uint64_t total_bytes = found->reading.total_bytes;
        if (reading.lost.empty() || found->reading.total_bytes == 0) found->reading = reading;
        if (found->reading.total_bytes == 0) found->reading.total_bytes = total_bytes;
      }
    }
    for (auto& [uuid, state] : states_) {
      if (!present.contains(uuid)) state.present = false;
    }
    for (const XidEvent& event : report.snapshot->xids) {
      const bool ignored = std::find(rules_.ignored_xids.begin(), rules_.ignored_xids.end(),
                                     event.xid) != rules_.ignored_xids.end();
      const bool sticky =
          std::find(kNeedReset.begin(), kNeedReset.end(), event.xid) != kNeedReset.end();
      for (KnownGpu& gpu : gpus_) {
        // An error that names no GPU may be of any.
        if (!event.uuid.empty() && event.uuid != gpu.reading.uuid) continue;
        ++gpu.xids_total[event.xid];
        if (ignored) continue;
        states_[gpu.reading.uuid].faults[event.xid] = Fault{event.xid, now_ns, sticky};
      }
    }
    std::sort(gpus_.begin(), gpus_.end(), [](const KnownGpu& a, const KnownGpu& b) {
      return std::tie(a.reading.index, a.reading.uuid) < std::tie(b.reading.index, b.reading.uuid);
    });
  }
  return Evaluate(now_ns) || changed;
}

bool GpuInventory::SetForeign(const std::set<std::string>& device_ids) {
  std::set<std::string> lower;
  for (const std::string& id : device_ids) lower.insert(Lower(id));
  if (lower == foreign_) return false;
  foreign_ = std::move(lower);
  return Evaluate(now_ns_);
}

bool GpuInventory::Tick(Nanos now_ns) {
  return Evaluate(now_ns);
}

bool GpuInventory::Names(const std::vector<std::string>& list, const GpuReading& gpu) const {
  const std::string index = std::to_string(gpu.index);
  return std::any_of(list.begin(), list.end(), [&](const std::string& entry) {
    return entry == index || Lower(entry) == Lower(gpu.uuid);
  });
}

void GpuInventory::Withhold(KnownGpu* gpu) const {
  const GpuReading& reading = gpu->reading;
  const auto because = [&](const char* reason, std::string detail) {
    gpu->withheld = true;
    gpu->withheld_reason = reason;
    gpu->withheld_detail = std::move(detail);
  };
  gpu->withheld = false;
  gpu->withheld_reason.clear();
  gpu->withheld_detail.clear();
  if (!rules_.include.empty() && !Names(rules_.include, reading))
    return because("not-included", "gpu.include does not name it");
  if (Names(rules_.exclude, reading)) return because("excluded", "gpu.exclude names it");
  if (reading.mig_enabled) {
    return because("mig", "MIG is enabled on it; disable MIG, or leave it to the vendor's plugin");
  }
  const std::string uuid = Lower(reading.uuid);
  for (const std::string& id : foreign_) {
    const std::string name = id.substr(0, id.find("::"));
    if (name == uuid || (!reading.pci_bus_id.empty() && name == reading.pci_bus_id)) {
      return because("other-plugin",
                     "another device plugin has handed it out; take it from one of the two");
    }
  }
}

bool GpuInventory::Evaluate(Nanos now_ns) {
  now_ns_ = std::max(now_ns, now_ns_);
  bool changed = false;
  for (KnownGpu& gpu : gpus_) {
    State& state = states_[gpu.reading.uuid];
    const KnownGpu before = KnownGpu{
        {}, gpu.healthy, gpu.health_reason, gpu.health_detail, gpu.withheld, gpu.withheld_reason,
        {}, {}};
    std::string reason;
    std::string detail;
    if (hung_) {
      reason = "driver-hung";
      detail = trouble_;
    } else if (away_) {
      reason = "driver-away";
      detail = trouble_;
    } else if (!state.present) {
      reason = "gone";
      detail = "the driver does not list it any more";
    } else if (!state.lost.empty()) {
      reason = "lost";
      detail = state.lost;
    }
    const bool bad_now = !reason.empty();
    if (bad_now) {
      state.bad_ns = now_ns_;
      state.bad_reason = reason;
      state.bad_detail = detail;
    }
    std::erase_if(state.faults, [&](const auto& entry) {
      const Fault& fault = entry.second;
      return !fault.sticky && !bad_now && now_ns_ - fault.last_ns >= rules_.recovery_ns;
    });
    if (!bad_now && !state.faults.empty()) {
      const Fault& fault = std::max_element(state.faults.begin(), state.faults.end(),
                                            [](const auto& a, const auto& b) {
                                              return std::pair(a.second.sticky, a.second.last_ns) <
                                                     std::pair(b.second.sticky, b.second.last_ns);
                                            })
                               ->second;
      reason = "xid-" + std::to_string(fault.xid);
      detail = "the driver reported Xid " + std::to_string(fault.xid) +
               (fault.sticky ? "; reset the GPU" : "");
    } else if (!bad_now && state.bad_ns != 0) {
      // Good again, but one answer does not make a recovery.
      if (now_ns_ - state.bad_ns >= rules_.recovery_ns) {
        state.bad_ns = 0;
      } else {
        reason = state.bad_reason;
        detail = state.bad_detail + " (answers again; offered again after a quiet time)";
      }
    }
    gpu.healthy = reason.empty();
    gpu.health_reason = reason;
    gpu.health_detail = detail;
    Withhold(&gpu);
    changed = changed || before.healthy != gpu.healthy ||
              before.health_reason != gpu.health_reason || before.withheld != gpu.withheld ||
              before.withheld_reason != gpu.withheld_reason;
  }
  return changed;
}

}  // namespace rubato::agent
