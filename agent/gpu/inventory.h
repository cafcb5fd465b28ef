// Which GPUs this node has to offer, and in which health: reports of the vendor's library, errors
// of the driver, the configuration's choice and what another plugin has handed out, put together.
//
// Pure: time is an argument. A GPU that was seen once stays known, so that one that is lost is
// unhealthy and not forgotten.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "agent/config/config.h"
#include "agent/gpu/gpu_watch.h"
#include "agent/gpu/snapshot.h"
#include "base/time.h"

namespace rubato::agent {

struct KnownGpu {
  GpuReading reading;  // The last good one.
  bool healthy = true;
  std::string health_reason;  // Stable word: driver-hung, driver-away, gone, lost, xid-<n>.
  std::string health_detail;  // One line for people.
  bool withheld = false;
  std::string withheld_reason;  // Stable word: excluded, not-included, mig, other-plugin.
  std::string withheld_detail;
  std::map<uint64_t, uint64_t> xids_total;  // By number, ignored ones too.
};

class GpuInventory {
 public:
  struct Rules {
    std::vector<std::string> include;
    std::vector<std::string> exclude;
    std::vector<uint32_t> ignored_xids;
    base::Nanos recovery_ns = 30 * base::kSecond;
  };
  static Rules RulesOf(const Config& config);

  void SetRules(Rules rules);
  // True if what gpus() says has changed in health, withholding or membership.
  bool Report(const GpuReport& report, base::Nanos now_ns);
  // Device ids that PodResources shows for resources of other plugins ("nvidia.com/gpu" and the
  // like): UUIDs, UUIDs with a suffix after "::", or PCI addresses.
  bool SetForeign(const std::set<std::string>& device_ids);
  // Lets the time pass that health needs to recover.
  bool Tick(base::Nanos now_ns);

  // By index. Empty until the first good report.
  const std::vector<KnownGpu>& gpus() const { return gpus_; }
  const KnownGpu* Find(const std::string& uuid) const;
  // A snapshot has arrived, even if it named no GPU.
  bool ready() const { return ready_; }
  const std::string& trouble() const { return trouble_; }  // Of the library as a whole.
  const std::string& library() const { return library_; }
  const std::string& driver_version() const { return driver_version_; }
  bool hung() const { return hung_; }

 private:
  struct Fault {
    uint64_t xid = 0;
    base::Nanos last_ns = 0;
    // Needs a reset of the GPU: time alone heals nothing, only its loss and return does.
    bool sticky = false;
  };
  struct State {
    std::string lost;        // The library's words.
    bool present = true;     // In the last snapshot.
    base::Nanos bad_ns = 0;  // When it was last found lost, gone or hung; 0: never.
    std::string bad_reason;
    std::string bad_detail;
    std::map<uint64_t, Fault> faults;
  };

  bool Evaluate(base::Nanos now_ns);
  void Withhold(KnownGpu* gpu) const;
  bool Names(const std::vector<std::string>& list, const GpuReading& gpu) const;

  Rules rules_;
  std::vector<KnownGpu> gpus_;
  std::map<std::string, State> states_;  // By UUID.
  std::set<std::string> foreign_;
  bool ready_ = false;
  bool hung_ = false;
  bool away_ = false;
  std::string trouble_;
  std::string library_;
  std::string driver_version_;
  base::Nanos now_ns_ = 0;
};

}  // namespace rubato::agent
