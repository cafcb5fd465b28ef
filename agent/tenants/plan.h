// What each allocation should be to the scheduler: the outcome of the join (book.h), the input of
// the reconciler (reconciler.h). Plain values.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "proto/control/v1/control.pb.h"

namespace rubato::agent {

namespace control = rubato::control::v1;

// Something the pod's owner should read, told once for as long as it stays the same.
struct Notice {
  bool warning = false;
  std::string reason;  // UpperCamel, stable: "BadAnnotation".
  std::string message;
  bool operator==(const Notice&) const = default;
  bool operator<(const Notice& other) const {
    return std::tie(warning, reason, message) <
           std::tie(other.warning, other.reason, other.message);
  }
};

struct PodRef {
  std::string name_space;
  std::string pod;
  std::string uid;  // Empty: not known.
  std::string container;
  bool operator==(const PodRef&) const = default;
};

enum class AllocationState : uint8_t {
  kWaiting,     // Whose it is is not known yet.
  kLive,        // Its container may run: it is a tenant.
  kEnded,       // Its container runs no more; its directory may still be mounted.
  kReleasable,  // Nobody can mount its directory any more.
};

struct AllocationPlan {
  AllocationState state = AllocationState::kWaiting;
  // Stable word for the state: pod, pod-unknown, pods-unknown, no-pod, finished, pod-gone,
  // replaced.
  std::string why;
  uint64_t serial = 0;  // Order of allocation, in which tenants are registered again.
  PodRef pod;
  control::TenantSpec spec;  // Of kLive, and of kWaiting as far as it is known.
  // The annotations are known. A spec that is not complete makes a tenant where there is none, and
  // changes none that exists.
  bool complete = false;
  bool started = false;  // The container has been started before (the runtime knows it).
  std::vector<Notice> notices;
};

using Plan = std::map<std::string, AllocationPlan>;  // By token.

}  // namespace rubato::agent
