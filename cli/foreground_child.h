// Runs the user's program as if it had been started without us: same terminal, same process group,
// its signals and its exit code.
//
// The child stays in our process group, so pipelines and the terminal treat both as one job. What
// the terminal sends (Ctrl-C, Ctrl-\, Ctrl-Z, hang-up, resize) therefore reaches the child without
// us and is not sent a second time; what another process sends to us alone is passed on. When the
// child stops, we stop, so that the shell sees the job stopped; when we are continued, so is it.
// Signals are read from a signalfd by the one thread that calls Wait().
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace rubato::cli {

class ForegroundChild {
 public:
  // Blocks the signals that Wait() handles, in this thread and all that it starts later. Call
  // before the first thread exists.
  static base::Result<ForegroundChild> Prepare();

  // Starts `argv` (looked up in PATH) with `environment`, with the signal mask and dispositions
  // that we were started with. Returns 0, or the errno of what failed: ENOENT, EACCES, ...
  int Start(const std::vector<std::string>& argv, const std::vector<std::string>& environment);

  // Until the child has ended. Its exit code, or 128 + the signal that ended it.
  int Wait();

 private:
  ForegroundChild(base::UniqueFd signals, sigset_t original_mask);

  void OnSignal(int signal, bool from_terminal);

  base::UniqueFd signals_;
  sigset_t original_mask_;
  pid_t child_ = -1;
};

}  // namespace rubato::cli
