// rubato-agent: the node's agent, and the small commands around its installation.
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <set>
#include <string>

#include "agent/agent.h"
#include "agent/command_line.h"
#include "agent/config/keys.h"
#include "agent/gpu/gpu_watch.h"
#include "agent/install/cleanup.h"
#include "agent/install/shim_store.h"
#include "base/log.h"
#include "base/notify.h"
#include "deviceplugin/allocation_store.h"

namespace {

namespace fs = std::filesystem;
using namespace rubato;         // NOLINT
using namespace rubato::agent;  // NOLINT

constexpr int kHeld = 3;  // Exit code: pods still hold slots.

int Fail(const std::string& line, int exit_code) {
  std::fprintf(stderr, "rubato-agent: %s\n", line.c_str());
  base::NotifyFailed(line);
  return exit_code;
}

// A folder and its parents; false and a line on standard error if that fails.
bool MakeFolder(const std::string& path, mode_t mode) {
  std::error_code error;
  fs::create_directories(path, error);
  if (!error && ::chmod(path.c_str(), mode) == 0) return true;
  std::fprintf(stderr, "rubato-agent: cannot make %s with mode %o\n", path.c_str(), mode);
  return false;
}

int InstallShimCommand(const CommandLine& line, const Config& config) {
  const std::string root = line.install_to.empty() ? config.host_root : line.install_to;
  // What a recorded allocation names stays: a container that crashes is started from it again.
  std::set<std::string> in_use;
  auto records = deviceplugin::ReadRecordsFile(root + "/allocations.json");
  if (records) {
    for (const auto& [token, record] : records->records)
      in_use.insert(record.host_folders.begin(), record.host_folders.end());
  } else if (records.error().code != base::ErrorCode::kNotFound) {
    // Which folders are in use is not known: none is removed.
    std::fprintf(stderr, "rubato-agent: %s; old shims are kept\n", records.error().message.c_str());
    for (const char* kind : {"shim", "softgpu"}) {
      std::error_code error;
      for (const auto& entry : fs::directory_iterator(fs::path(root) / kind, error))
        in_use.insert(entry.path().string());
    }
  }
  const auto report = InstallShims(line.install_from, root, in_use);
  if (!report) return Fail(report.error().message, 1);
  for (const std::string& folder : report->added) std::printf("added %s\n", folder.c_str());
  for (const std::string& folder : report->removed) std::printf("removed %s\n", folder.c_str());
  for (const std::string& folder : report->kept) std::printf("kept %s\n", folder.c_str());
  std::printf("current %s\n", report->shim_folder.c_str());

  // What the other containers of the pod expect, since the kubelet makes folders open to all.
  bool made = MakeFolder(root + "/alloc", 0755) && MakeFolder(config.scheduler_runtime_dir, 0700);
  if (config.gpu_source == GpuSource::kSoftware)
    made = MakeFolder(config.softgpu_socket_directory(), 0755) && made;
  if (config.mode != SharingMode::kTimeslice) {
    made = MakeFolder(config.mps_pipe_dir, 0755) && made;
    if (!config.mps_shm_dir.empty()) made = MakeFolder(config.mps_shm_dir, 01777) && made;
  }
  return made ? 0 : 1;
}

void SayCleanup(const CleanupReport& report) {
  for (const std::string& path : report.removed) std::printf("removed %s\n", path.c_str());
  for (const std::string& holder : report.holders)
    std::printf("%s holds slots; delete the pod\n", holder.c_str());
  if (!report.obstacle.empty()) std::printf("%s\n", report.obstacle.c_str());
  if (report.clean) std::printf("this node is clean\n");
  std::fflush(stdout);
}

int CleanupCommand(const CommandLine& line, const Config& config) {
  CleanupReport report = TryCleanup(config);
  SayCleanup(report);
  if (!line.cleanup_wait) return report.clean ? 0 : report.holders.empty() ? 1 : kHeld;
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  sigprocmask(SIG_BLOCK, &ends, nullptr);
  const timespec pause{5, 0};
  while (!report.clean) {
    if (::sigtimedwait(&ends, nullptr, &pause) > 0) return kHeld;
    const CleanupReport before = std::move(report);
    report = TryCleanup(config);
    if (report.clean || report.holders != before.holders || report.obstacle != before.obstacle)
      SayCleanup(report);
  }
  int signal_number = 0;
  sigwait(&ends, &signal_number);
  return 0;
}

int CheckConfigCommand(const Config& config) {
  for (const ConfigKey& key : ConfigKeys())
    std::printf("%s: %s\n", key.path, key.show(config).c_str());
  return 0;
}

int RunCommand(const CommandLine& line, const Config& config) {
  auto agent = Agent::Start(config, line.sources);
  if (!agent) return Fail(agent.error().message, 1);
  (*agent)->Run();
  agent->reset();
  base::LogInfo("ended");
  if (GpuWatch::ThreadLeftBehind()) {
    // A thread is inside the driver: what exit handlers would free is still in its hands.
    std::fflush(nullptr);
    ::_exit(0);
  }
  return 0;
}

int Run(int argc, char** argv) {
  const ParsedCommandLine parsed = ParseCommandLine(argc, argv);
  if (!parsed.line.has_value())
    return parsed.exit_code == 0 ? 0 : Fail(parsed.complaint, parsed.exit_code);
  const auto config = LoadConfig(parsed.line->sources);
  if (!config) return Fail(config.error().message, 2);
  if (auto log = base::StartLog("rubato-agent", config->log_level); !log)
    return Fail(log.error().message, 2);
  ::signal(SIGPIPE, SIG_IGN);
  switch (parsed.line->command) {
    case Command::kInstallShim:
      return InstallShimCommand(*parsed.line, *config);
    case Command::kCleanup:
      return CleanupCommand(*parsed.line, *config);
    case Command::kCheckConfig:
      return CheckConfigCommand(*config);
    case Command::kRun:
      return RunCommand(*parsed.line, *config);
  }
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    return Fail(std::string("gave up: ") + error.what(), 1);
  }
}
