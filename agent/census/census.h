// Who uses the GPUs, seen from the host: processes that are not attached, and attached ones that
// belong to another pod than their socket.
//
// Only where the host's processes are visible (hostPID.enabled). A process is suspected after a
// while, not at once: it may be about to attach. Pure but for the reader that is handed in.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "agent/gpu/inventory.h"
#include "base/time.h"
#include "proto/control/v1/control.pb.h"

namespace rubato::agent {

// What /proc says of a process; nullopt: it is gone, or not visible.
struct ProcessTraces {
  std::string program;  // Its name, at most 15 characters.
  std::string cgroup;   // The text of its cgroup file.
};
using ProcessReader = std::function<std::optional<ProcessTraces>(int64_t pid)>;
std::optional<ProcessTraces> ReadProcess(int64_t pid);

class Census {
 public:
  struct Suspicion {
    int64_t pid = 0;
    std::string program;
    std::string device;   // Empty: of an attached process in the wrong place.
    std::string pod_uid;  // Empty: in no pod.
    // slots (its container has slots and it is not attached), no-slots, host, or other-pod (it is
    // attached by a socket that was given to another pod).
    std::string reason;
  };
  struct Result {
    std::map<std::string, std::map<std::string, uint32_t>> by_device;  // UUID, reason: processes.
    std::vector<Suspicion> fresh;                                      // Not reported before.
  };

  explicit Census(ProcessReader reader, base::Nanos patience_ns = 10 * base::kSecond)
      : reader_(std::move(reader)), patience_ns_(patience_ns) {}

  // `has_slots` says whether a pod, by its UID, asks for slots.
  Result Observe(const std::vector<KnownGpu>& gpus,
                 const rubato::control::v1::GetStatusResponse& status,
                 const std::function<bool(const std::string& uid)>& has_slots, base::Nanos now_ns);

 private:
  struct Seen {
    base::Nanos first_ns = 0;
    bool reported = false;
  };
  ProcessReader reader_;
  const base::Nanos patience_ns_;
  std::map<std::pair<std::string, int64_t>, Seen> seen_;     // Device and PID.
  std::map<std::pair<std::string, int64_t>, bool> checked_;  // Token and PID of attached ones.
};

}  // namespace rubato::agent
