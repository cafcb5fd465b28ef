// What a pod's annotations ask for, container by container.
//
//   rubato.dev/class: realtime | best-effort        <container>.rubato.dev/class: ...
//   rubato.dev/period, rubato.dev/deadline: 10ms    for one container; wins over the pod's
//   rubato.dev/priority: high | low
//   rubato.dev/memory: 8Gi
//   rubato.dev/overhead-budget: 2%
//
// Pure. The text is a tenant's: what cannot be read is complained about, for an event, and is then
// not promised; a pod runs whatever its annotations say. Whether a promise is allowed and fits is
// decided elsewhere.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "agent/kube/pod.h"
#include "base/time.h"

namespace rubato::kube {

enum class PromisedClass : uint8_t { kBestEffort, kRealtime };
enum class PromisedPriority : uint8_t { kNormal, kHigh, kLow };

struct Promise {
  PromisedClass tenant_class = PromisedClass::kBestEffort;
  // Only of real-time containers; 0: not declared. Within what the scheduler accepts.
  base::Nanos period_ns = 0;
  base::Nanos deadline_ns = 0;
  PromisedPriority priority = PromisedPriority::kNormal;
  std::optional<uint32_t> overhead_budget_permille;  // Never 0.
  std::optional<uint64_t> memory_bytes;              // Of any class; never 0.

  bool operator==(const Promise&) const = default;
};

struct Complaint {
  std::string key;        // The annotation's, printable, at most 128 characters.
  std::string container;  // Empty: the whole pod.
  std::string message;    // One line for people: what is wrong and what to write.

  bool operator==(const Complaint&) const = default;
};

struct PodPromises {
  std::map<std::string, Promise, std::less<>> containers;  // Those that ask for the resource.
  std::vector<Complaint> complaints;                       // One per key and cause, in order.

  bool operator==(const PodPromises&) const = default;
};

PodPromises ReadPromises(const Pod& pod, const PodSelection& selection);

}  // namespace rubato::kube
