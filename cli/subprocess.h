// Short-lived programs that the command line asks something, and daemons that it leaves behind.
//
// Both are started by fork and exec; the code between the two calls only what is safe there.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"

namespace rubato::cli {

struct ProgramOutput {
  int exit_code = 0;  // 128 + the signal, if one ended it; 127 if it could not be executed.
  std::string text;   // Of stdout and stderr; what exceeds 64 KiB is dropped.
};

// Runs `argv` (looked up in PATH) with `input` on stdin, and waits. A program that takes longer
// than `time_limit` is killed, which is an error.
base::Result<ProgramOutput> RunProgram(const std::vector<std::string>& argv,
                                       const std::vector<std::string>& environment,
                                       const std::string& input, base::Nanos time_limit);

// Starts `argv[0]` (a path) in a session of its own, with stdin from /dev/null and its output
// appended to `log_path`, and waits until it says READY=1 through RUBATO_NOTIFY_FD (base/notify.h).
// An error carries what it said, or the last line of its log.
base::Result<void> StartDaemon(const std::vector<std::string>& argv,
                               const std::vector<std::string>& environment,
                               const std::string& log_path, base::Nanos time_limit);

}  // namespace rubato::cli
