// Makes sure that a scheduler runs in the user's runtime directory: for `up`, and for the first
// `run`.
//
// Two that start at the same time take turns at a lock file, so that one starts the scheduler and
// the other finds it.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "cli/command_line.h"
#include "cli/control_client.h"
#include "cli/install_layout.h"
#include "cli/runtime_dir.h"

namespace rubato::cli {

struct RunningScheduler {
  bool started = false;      // By this call; otherwise it was there.
  bool mps_started = false;  // Likewise, the MPS control daemon.
};

// Starts MPS where the mode needs it, then the scheduler, unless one listens already. Forks; call
// before threads exist. Says nothing about a scheduler that was there: see CheckScheduler().
base::Result<RunningScheduler> EnsureScheduler(const StartOptions& options,
                                               const RuntimeDir& directory,
                                               const InstallLayout& layout);

// The scheduler's command line.
std::vector<std::string> SchedulerArguments(const std::string& program, const StartOptions& options,
                                            const RuntimeDir& directory);

// An error if the scheduler is of another version than this program, or runs in another mode than
// was asked for.
base::Result<void> CheckScheduler(const control::GetVersionResponse& scheduler,
                                  const StartOptions& options);

Mode ModeOf(control::Mode mode);

}  // namespace rubato::cli
