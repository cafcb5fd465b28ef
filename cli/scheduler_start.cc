#include "cli/scheduler_start.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "cli/environment.h"
#include "cli/mps_control.h"
#include "cli/subprocess.h"
#include "cli/version.h"

namespace rubato::cli {
namespace {

constexpr base::Nanos kReadyLimit = 30 * base::kSecond;

base::Result<base::UniqueFd> TakeStartLock(const RuntimeDir& directory) {
  base::UniqueFd lock(
      open(directory.start_lock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return base::SystemError("cannot open " + directory.start_lock());
  while (flock(lock.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return base::SystemError("cannot lock " + directory.start_lock());
  }
  return lock;
}

}  // namespace

Mode ModeOf(control::Mode mode) {
  if (mode == control::MODE_HYBRID) return Mode::kHybrid;
  if (mode == control::MODE_MPS) return Mode::kMps;
  return Mode::kTimeslice;
}

std::vector<std::string> SchedulerArguments(const std::string& program, const StartOptions& options,
                                            const RuntimeDir& directory) {
  std::vector<std::string> arguments = {program, "--runtime-dir", directory.path(), "--mode",
                                        NameOf(options.mode)};
  if (!options.metrics_address.empty()) {
    arguments.insert(arguments.end(), {"--metrics-address", options.metrics_address});
  }
  if (options.time_dilation != 0) {
    arguments.insert(arguments.end(), {"--time-dilation", std::to_string(options.time_dilation)});
  }
  if (options.mode != Mode::kTimeslice) {
    arguments.insert(arguments.end(), {"--mps-directory", directory.mps_pipe_dir()});
  }
  arguments.insert(arguments.end(), options.extra.begin(), options.extra.end());
  return arguments;
}

base::Result<RunningScheduler> EnsureScheduler(const StartOptions& options,
                                               const RuntimeDir& directory,
                                               const InstallLayout& layout) {
  if (const base::Result<void> made = directory.Create(); !made.ok()) return made.error();
  if (SchedulerListens(directory)) return RunningScheduler{};
  const base::Result<base::UniqueFd> lock = TakeStartLock(directory);
  if (!lock.ok()) return lock.error();
  if (SchedulerListens(directory)) return RunningScheduler{};

  const base::Result<std::string> program = layout.Scheduler();
  if (!program.ok()) return program.error();
  RunningScheduler result;
  if (options.mode != Mode::kTimeslice) {
    const base::Result<MpsControl> mps = MpsControl::Find(directory, layout);
    if (!mps.ok()) return mps.error();
    const base::Result<bool> started = mps->Start();
    if (!started.ok()) return started.error();
    result.mps_started = *started;
  }
  const base::Result<void> started =
      StartDaemon(SchedulerArguments(*program, options, directory), CurrentEnvironment(),
                  directory.scheduler_log(), kReadyLimit);
  if (!started.ok()) {
    if (result.mps_started) {
      if (const auto mps = MpsControl::Started(directory); mps.ok()) (void)mps->Quit();
    }
    return started.error();
  }
  result.started = true;
  return result;
}

base::Result<void> CheckScheduler(const control::GetVersionResponse& scheduler,
                                  const StartOptions& options) {
  if (scheduler.version() != kVersion) {
    return base::Error{base::ErrorCode::kUnavailable,
                       "the scheduler that runs is version " + scheduler.version() + ", this is " +
                           kVersion + "; run `rubato down`, then try again"};
  }
  const Mode mode = ModeOf(scheduler.mode());
  if (options.mode_given && options.mode != mode) {
    return base::Error{base::ErrorCode::kExists, std::string("a scheduler runs already, in mode ") +
                                                     NameOf(mode) +
                                                     "; run `rubato down` first to change it"};
  }
  return {};
}

}  // namespace rubato::cli
