// Whose allocation is whose: allocation records, the kubelet's PodResources and the pods of this
// node put together, in time.
//
// None of the three is enough. Records know no pods. PodResources knows no UIDs, keeps finished and
// force-deleted pods for a while and leaves init containers out. The watch knows no slots, is late
// now and then, and may be away for hours. So a binding that was found once stays until its pod is
// known to be over. Pure: time is an argument; it trusts the records alone to be its own.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "agent/kube/pod.h"
#include "agent/kube/pod_watch.h"
#include "agent/kube/promise.h"
#include "agent/tenants/plan.h"
#include "agent/tenants/policy.h"
#include "base/time.h"
#include "deviceplugin/allocation_store.h"
#include "deviceplugin/pod_resources.h"

namespace rubato::agent {

class TenantBook {
 public:
  struct Options {
    std::string resource_name = "rubato.dev/gpu";
    kube::PodSelection selection;
    // No API server at all: everybody is best-effort, and the kubelet alone says who is here.
    bool without_pods = false;
    // How long a pod that the kubelet names may be missing from a watch that works.
    base::Nanos unknown_pod_limit_ns = 30 * base::kSecond;
    // From the end of a pod to the release of its directory.
    base::Nanos release_delay_ns = 10 * base::kSecond;
    // The same for an allocation whose container was never seen.
    base::Nanos orphan_delay_ns = 300 * base::kSecond;
  };

  struct Facts {
    const std::map<std::string, deviceplugin::AllocationRecord>* records = nullptr;
    // The last good answer of the kubelet, and the highest serial of a record when it was asked:
    // later records may be missing from it. nullptr: there was none.
    const std::vector<deviceplugin::PodDevicesHeld>* held = nullptr;
    uint64_t held_serial = 0;
    const kube::PodWatch::Pods* pods = nullptr;
    bool pods_synced = false;
    std::map<std::string, uint64_t> gpu_bytes;  // By UUID; 0 and missing: not known.
  };

  TenantBook(Options options, TenantPolicy policy);
  void SetPolicy(TenantPolicy policy) { policy_ = std::move(policy); }

  Plan Join(const Facts& facts, base::Nanos now_ns);

  // When the plan may change by time alone; 0: never.
  base::Nanos next_change_ns() const { return next_change_ns_; }

 private:
  struct Entry {
    std::optional<PodRef> bound;
    bool init = false;
    base::Nanos unmatched_ns = 0;  // Since when nobody holds it; 0: somebody does.
    base::Nanos missing_ns = 0;    // Since when its pod is missing from a synced watch.
    bool seen_pod = false;         // The watch has known its pod.
  };
  struct Holder {
    const std::string* name_space = nullptr;
    const std::string* pod = nullptr;
    const std::string* container = nullptr;
    const kube::Pod* known = nullptr;
  };
  struct Promises {
    kube::Pod pod;
    kube::PodPromises promises;
  };

  const kube::PodPromises& PromisesOf(const kube::Pod& pod);
  void Match(const Facts& facts);
  void MatchInit(const Facts& facts);
  void Bind(const std::string& token, const Holder& holder, bool init);
  void Judge(const Facts& facts, const deviceplugin::AllocationRecord& record, Entry* entry,
             bool needed, base::Nanos now_ns, AllocationPlan* plan);
  void Wake(base::Nanos at_ns);

  const Options options_;
  TenantPolicy policy_;
  std::map<std::string, Entry> entries_;      // By token.
  std::map<std::string, Promises> promises_;  // By pod UID.
  std::map<std::string, bool> matched_;       // Tokens of this join.
  base::Nanos next_change_ns_ = 0;
};

}  // namespace rubato::agent
