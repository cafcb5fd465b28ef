// The shims on the host, in folders named by their content: <root>/shim/<hash16>/ with the two
// libraries and their preload files, <root>/softgpu/<hash16>/ with the software GPU's libraries.
//
// A folder is complete or not there, and never changes: a running container has its files mapped,
// and a crashed one's cached answer names them. `current` beside them is what new containers get.
// Old folders go when no allocation names them.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "base/result.h"

namespace rubato::agent {

struct InstallReport {
  std::string shim_folder;     // "/var/lib/rubato/shim/0123456789abcdef"
  std::string softgpu_folder;  // Empty: the source has none.
  std::vector<std::string> added;
  std::vector<std::string> removed;
  std::vector<std::string> kept;  // Old ones that an allocation names.
};

// Copies from `source` (librubato-cuda.so, librubato-hip.so, softgpu/) below `root`, switches
// `current`, and removes what neither `in_use` nor `current` names. `in_use` are absolute folders.
// Error: nothing was switched.
base::Result<InstallReport> InstallShims(const std::string& source, const std::string& root,
                                         const std::set<std::string>& in_use);

// The folder that <root>/<kind>/current names; empty: none, or it is gone. Kind: "shim", "softgpu".
std::string CurrentFolder(const std::string& root, const std::string& kind);

}  // namespace rubato::agent
