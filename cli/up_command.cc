// `rubato up`: MPS where the mode needs it, then the scheduler, in the background or before us.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "cli/commands.h"
#include "cli/environment.h"
#include "cli/foreground_child.h"
#include "cli/mps_control.h"
#include "cli/scheduler_start.h"

namespace rubato::cli {
namespace {

int Fail(const base::Error& error) {
  Complain("up", error.message);
  return kExitFailed;
}

void PrintRunning(const char* what, const control::GetVersionResponse& scheduler) {
  std::printf("%s: scheduler %s, pid %lld, mode %s%s%s\n", what, scheduler.version().c_str(),
              static_cast<long long>(scheduler.pid()), NameOf(ModeOf(scheduler.mode())),
              scheduler.metrics_address().empty() ? "" : ", metrics http://",
              scheduler.metrics_address().empty()
                  ? ""
                  : (scheduler.metrics_address() + "/metrics").c_str());
}

int UpInForeground(const UpCommand& command, const RuntimeDir& directory,
                   const InstallLayout& layout) {
  if (const base::Result<void> made = directory.Create(); !made.ok()) return Fail(made.error());
  if (SchedulerListens(directory)) {
    Complain("up", "a scheduler runs already; run `rubato down` first, or leave out --foreground");
    return kExitFailed;
  }
  const base::Result<std::string> program = layout.Scheduler();
  if (!program.ok()) return Fail(program.error());
  bool mps_started = false;
  if (command.start.mode != Mode::kTimeslice) {
    const base::Result<MpsControl> mps = MpsControl::Find(directory, layout);
    if (!mps.ok()) return Fail(mps.error());
    const base::Result<bool> started = mps->Start();
    if (!started.ok()) return Fail(started.error());
    mps_started = *started;
  }
  base::Result<ForegroundChild> child = ForegroundChild::Prepare();
  if (!child.ok()) return Fail(child.error());
  const int error =
      child->Start(SchedulerArguments(*program, command.start, directory), CurrentEnvironment());
  int exit_code = kExitFailed;
  if (error != 0) {
    Complain("up", "cannot start " + *program + ": " + std::strerror(error));
  } else {
    exit_code = child->Wait();
  }
  if (mps_started) {
    const base::Result<MpsControl> mps = MpsControl::Started(directory);
    if (mps.ok()) {
      if (const base::Result<void> quit = mps->Quit(); !quit.ok()) return Fail(quit.error());
    }
  }
  return exit_code;
}

}  // namespace

int Up(const UpCommand& command) {
  const base::Result<RuntimeDir> directory = RuntimeDir::Locate();
  if (!directory.ok()) return Fail(directory.error());
  const base::Result<InstallLayout> layout = InstallLayout::Find();
  if (!layout.ok()) return Fail(layout.error());
  if (command.foreground) return UpInForeground(command, *directory, *layout);

  const base::Result<RunningScheduler> running =
      EnsureScheduler(command.start, *directory, *layout);
  if (!running.ok()) return Fail(running.error());
  const base::Result<control::GetVersionResponse> scheduler =
      ControlClient::Make(*directory)->GetVersion();
  if (!scheduler.ok()) return Fail(scheduler.error());
  if (const base::Result<void> same = CheckScheduler(*scheduler, command.start); !same.ok()) {
    return Fail(same.error());
  }
  PrintRunning(running->started ? "started" : "runs already", *scheduler);
  return 0;
}

}  // namespace rubato::cli
