// Where the other parts of Rubato lie, seen from this program's own file.
//
// A build tree and an installation have the same shape (bin/rubato, bin or libexec for the
// scheduler, lib for the preloaded libraries), so nothing needs an installation path compiled in,
// and the parts that run together come from the same place.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace rubato::cli {

struct InstallLayout {
  std::string bin_dir;  // Of this program.

  static base::Result<InstallLayout> Find();

  // The scheduler's program: beside this one, or in ../libexec/rubato.
  base::Result<std::string> Scheduler() const;
  // Both preloaded libraries, CUDA first: in ../lib, ../lib/rubato or a multi-arch folder of
  // ../lib.
  base::Result<std::vector<std::string>> Shims() const;
};

inline constexpr const char* kCudaShimName = "librubato-cuda.so";
inline constexpr const char* kHipShimName = "librubato-hip.so";

}  // namespace rubato::cli
