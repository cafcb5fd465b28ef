#include "cli/install_layout.h"

#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include <array>

namespace rubato::cli {
namespace {

base::Result<std::string> FirstAccessible(const std::vector<std::string>& candidates, int mode) {
  for (const std::string& path : candidates) {
    if (access(path.c_str(), mode) == 0) return path;
  }
  return base::Error{
      base::ErrorCode::kNotFound,
      candidates.front() + " was not found; install Rubato as a whole, or build all of it"};
}

#if defined(__x86_64__)
constexpr const char* kMultiArch = "x86_64-linux-gnu";
#else
constexpr const char* kMultiArch = "aarch64-linux-gnu";
#endif

}  // namespace

base::Result<InstallLayout> InstallLayout::Find() {
  std::array<char, PATH_MAX> buffer;
  const ssize_t size = readlink("/proc/self/exe", buffer.data(), buffer.size());
  if (size <= 0 || static_cast<size_t>(size) >= buffer.size()) {
    return base::SystemError("/proc/self/exe");
  }
  const std::string path(buffer.data(), static_cast<size_t>(size));
  return InstallLayout{path.substr(0, path.rfind('/'))};
}

base::Result<std::string> InstallLayout::Scheduler() const {
  const std::string prefix = bin_dir.substr(0, bin_dir.rfind('/'));
  return FirstAccessible(
      {bin_dir + "/rubato-scheduler", prefix + "/libexec/rubato/rubato-scheduler"}, X_OK);
}

base::Result<std::vector<std::string>> InstallLayout::Shims() const {
  const std::string lib_dir = bin_dir.substr(0, bin_dir.rfind('/')) + "/lib/";
  std::vector<std::string> paths;
  for (const std::string name : {kCudaShimName, kHipShimName}) {
    base::Result<std::string> path = FirstAccessible(
        {lib_dir + name, lib_dir + "rubato/" + name, lib_dir + kMultiArch + "/" + name}, R_OK);
    if (!path.ok()) return path.error();
    std::array<char, PATH_MAX> resolved;
    if (realpath(path->c_str(), resolved.data()) == nullptr) return base::SystemError(*path);
    paths.emplace_back(resolved.data());
  }
  return paths;
}

}  // namespace rubato::cli
