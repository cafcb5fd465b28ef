// The command line of rubato-scheduler.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "proto/abi/device.h"
#include "scheduler/policies/constants.h"

namespace rubato::sched {

struct Options {
  std::string runtime_dir;
  std::string attach_directory;  // Empty: the one in the runtime directory.
  bool attach_shared = false;    // It was given: others make folders in it too.
  // Do nothing but ask the scheduler that runs there: does it serve, or at least answer?
  enum class Probe : uint8_t { kNone, kServes, kAnswers };
  Probe probe = Probe::kNone;
  abi::Mode mode = abi::Mode::kTimeslice;
  std::string metrics_address = "127.0.0.1:9412";  // Empty: none.
  std::string mps_directory;                       // Empty in timeslice mode.
  std::string profile_store;  // File of durations that outlive the scheduler; empty: none.
  uint32_t time_dilation = 1;
  std::string log_level = "info";
  policies::Constants constants;  // Dilated.
};

// Options, or an exit code: after --help and --version (0) and after a bad flag (2), when the text
// has been printed.
struct ParsedOptions {
  std::optional<Options> options;
  int exit_code = 0;
  std::string complaint;  // One line, with exit code 2.
};
ParsedOptions ParseOptions(int argc, const char* const* argv);

}  // namespace rubato::sched
