// The rubato command: reads the command line and hands over to the subcommand.
#include <cstdio>
#include <string>
#include <variant>
#include <vector>

#include "cli/command_line.h"
#include "cli/commands.h"
#include "cli/version.h"
#include "proto/abi/region.h"

namespace rubato::cli {

void Complain(const char* name, const std::string& message) {
  std::fprintf(stderr, "rubato %s: %s\n", name, message.c_str());
}

int Version() {
  std::printf("rubato %s (abi %u.%u)\n", kVersion, unsigned{abi::kMajor}, unsigned{abi::kMinor});
  return 0;
}

namespace {

struct Dispatch {
  int operator()(const UpCommand& command) const { return Up(command); }
  int operator()(const DownCommand&) const { return Down(); }
  int operator()(const RunCommand& command) const { return Run(command); }
  int operator()(const TopCommand& command) const { return Top(command); }
  int operator()(const StatusCommand& command) const { return Status(command); }
  int operator()(const DoctorCommand& command) const { return Doctor(command); }
  int operator()(const ProfileShowCommand& command) const { return ProfileShow(command); }
  int operator()(const ProfileClearCommand&) const { return ProfileClear(); }
  int operator()(const VersionCommand&) const { return Version(); }
};

}  // namespace
}  // namespace rubato::cli

// Out of memory may end the command without a word.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  const auto parsed = rubato::cli::ParseCommandLine(arguments);
  if (const auto* ending = std::get_if<rubato::cli::Ending>(&parsed)) {
    std::fputs(ending->out.c_str(), stdout);
    std::fputs(ending->err.c_str(), stderr);
    return ending->exit_code;
  }
  return std::visit(rubato::cli::Dispatch{}, std::get<rubato::cli::Command>(parsed));
}
