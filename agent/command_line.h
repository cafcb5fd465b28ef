// The command line of rubato-agent: what to do, and the sources of its configuration.
#pragma once

#include <optional>
#include <string>

#include "agent/config/load.h"

namespace rubato::agent {

enum class Command : uint8_t { kRun, kInstallShim, kCleanup, kCheckConfig };

struct CommandLine {
  Command command = Command::kRun;
  ConfigSources sources;
  std::string install_from = "/usr/lib/rubato";
  std::string install_to;  // Empty: hostRoot.
  bool cleanup_wait = false;
};

// A command line, or an exit code: after --help and --version (0) and after a bad flag (2).
struct ParsedCommandLine {
  std::optional<CommandLine> line;
  int exit_code = 0;
  std::string complaint;  // One line, with exit code 2.
};
ParsedCommandLine ParseCommandLine(int argc, const char* const* argv);

}  // namespace rubato::agent
