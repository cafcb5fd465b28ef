#include "agent/install/cleanup.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "base/clock.h"
#include "base/event_loop.h"
#include "base/runtime_dir.h"
#include "deviceplugin/pod_resources.h"

namespace rubato::agent {
namespace {

namespace fs = std::filesystem;
using base::Error;
using base::ErrorCode;
using deviceplugin::PodDevicesHeld;

constexpr base::Nanos kKubeletLimit = 3 * base::kSecond;
constexpr const char kLockName[] = "agent.lock";

base::Result<std::vector<PodDevicesHeld>> AskKubelet(const Config& config) {
  auto loop = base::EventLoop::Make();
  if (!loop) return loop.error();
  std::optional<base::Result<std::vector<PodDevicesHeld>>> answer;
  const auto client = deviceplugin::PodResources::Make(
      loop->get(), config.kubelet_root + "/pod-resources/kubelet.sock");
  client->List(kKubeletLimit, [&](base::Result<std::vector<PodDevicesHeld>> listed) {
    answer = std::move(listed);
    (*loop)->Stop();
  });
  const base::Nanos end_ns = base::MonotonicNow() + kKubeletLimit + base::kSecond;
  while (!answer.has_value() && base::MonotonicNow() < end_ns) (*loop)->RunOnce(end_ns);
  if (!answer.has_value()) return Error{ErrorCode::kUnavailable, "the kubelet does not answer"};
  return std::move(*answer);
}

// What a scheduler leaves in its runtime directory, unless one is running there.
void RemoveRuntimeDir(const std::string& directory, CleanupReport* report) {
  const std::string lock_path = directory + "/" + base::kLockName;
  const base::UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (lock.valid() && ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return;
  for (const std::string& path : {directory + "/" + base::kControlSocketName, lock_path}) {
    if (::unlink(path.c_str()) == 0) report->removed.push_back(path);
  }
  // Stays where something else lies in it, or where it is a mount.
  if (::rmdir(directory.c_str()) == 0) report->removed.push_back(directory);
}

}  // namespace

base::Result<base::UniqueFd> LockHostRoot(const std::string& host_root) {
  std::error_code error;
  fs::create_directories(host_root, error);
  const std::string path = host_root + "/" + kLockName;
  base::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return base::SystemError("cannot open " + path);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    return Error{ErrorCode::kExists,
                 "another rubato-agent uses " + host_root + "; end it, or choose another hostRoot"};
  }
  return fd;
}

CleanupReport TryCleanup(const Config& config) {
  CleanupReport report;
  std::error_code error;
  if (!fs::exists(config.host_root, error)) {
    report.clean = true;
    return report;
  }
  const auto lock = LockHostRoot(config.host_root);
  if (!lock) {
    report.obstacle = lock.error().message;
    return report;
  }
  auto held = AskKubelet(config);
  if (!held) {
    report.obstacle = "cannot ask the kubelet who holds slots: " + held.error().message;
    return report;
  }
  for (const PodDevicesHeld& pod : *held) {
    for (const auto& container : pod.containers) {
      for (const auto& devices : container.devices) {
        if (devices.resource_name == config.resource_name && !devices.ids.empty())
          report.holders.push_back(pod.name_space + "/" + pod.pod + "/" + container.container);
      }
    }
  }
  if (!report.holders.empty()) return report;
  // The lock's file last: until then nobody else begins.
  for (const char* name : {"alloc", "shim", "softgpu", "allocations.json", kLockName}) {
    const fs::path path = fs::path(config.host_root) / name;
    if (!fs::exists(fs::symlink_status(path, error))) continue;
    fs::remove_all(path, error);
    if (error) {
      report.obstacle = "cannot remove " + path.string() + ": " + error.message();
      return report;
    }
    report.removed.push_back(path.string());
  }
  if (!config.health_socket.empty()) ::unlink(config.health_socket.c_str());
  RemoveRuntimeDir(config.scheduler_runtime_dir, &report);
  report.clean = true;
  return report;
}

}  // namespace rubato::agent
