// What stays on a node after Rubato was uninstalled, and its removal: only when no agent runs and
// no container of the node holds slots, since their mounts point there.
#pragma once

#include <string>
#include <vector>

#include "agent/config/config.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace rubato::agent {

// Exclusive use of the host root, by the running agent or by a cleanup. kExists: somebody has it.
base::Result<base::UniqueFd> LockHostRoot(const std::string& host_root);

struct CleanupReport {
  bool clean = false;
  std::vector<std::string> holders;  // "namespace/pod/container" that hold slots.
  std::string obstacle;              // Another reason why nothing was done, one line.
  std::vector<std::string> removed;
};

// One attempt; asks the kubelet, for at most three seconds.
CleanupReport TryCleanup(const Config& config);

}  // namespace rubato::agent
