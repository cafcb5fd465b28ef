// What the user asked for, as data: the command line read and checked, nothing done yet.
//
// Pure, so that every bad flag can be tried in a test. Whatever is wrong becomes one line that says
// what it is and what to write instead.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace rubato::cli {

enum class Mode { kTimeslice, kHybrid, kMps };
enum class TenantClass { kRealtime, kBestEffort };
enum class Output { kTable, kJson };

const char* NameOf(Mode mode);
const char* NameOf(TenantClass tenant_class);

// How a scheduler is to be started, by `up` or by the first `run`.
struct StartOptions {
  Mode mode = Mode::kTimeslice;
  bool mode_given = false;
  std::string metrics_address;     // Empty: the scheduler's default.
  uint32_t time_dilation = 0;      // 0: from the environment.
  std::vector<std::string> extra;  // Passed on to the scheduler as they are.
};

struct UpCommand {
  StartOptions start;
  bool foreground = false;
};

struct DownCommand {};

struct RunCommand {
  TenantClass tenant_class = TenantClass::kBestEffort;
  std::string name;  // Empty: the program's base name.
  uint64_t period_ns = 0;
  uint64_t deadline_ns = 0;
  uint64_t limit_bytes = 0;
  uint32_t weight = 0;
  bool require_class = false;
  bool gpu_check = true;
  bool profile = false;  // `rubato profile`: alone, with every op measured.
  StartOptions start;
  std::vector<std::string> argv;
};

struct TopCommand {
  uint64_t interval_ns = 1'000'000'000;
  bool once = false;
};

struct StatusCommand {
  Output output = Output::kTable;
};

struct DoctorCommand {
  Output output = Output::kTable;
  Mode mode = Mode::kTimeslice;
};

struct ProfileShowCommand {
  Output output = Output::kTable;
  uint32_t limit = 0;  // 0: the scheduler's default.
};

struct ProfileClearCommand {};

struct VersionCommand {};

using Command =
    std::variant<UpCommand, DownCommand, RunCommand, TopCommand, StatusCommand, DoctorCommand,
                 ProfileShowCommand, ProfileClearCommand, VersionCommand>;

// The end of the program before anything was done: a help text on stdout, or a complaint on stderr.
struct Ending {
  int exit_code = 0;
  std::string out;
  std::string err;
};

inline constexpr int kExitFailed = 1;       // Something went wrong while doing it.
inline constexpr int kExitUsage = 2;        // The command line is wrong.
inline constexpr int kExitRunFailed = 125;  // `rubato run` itself failed, usage included.
inline constexpr int kExitNotExecutable = 126;
inline constexpr int kExitNoProgram = 127;

// `arguments` without the program's name.
std::variant<Command, Ending> ParseCommandLine(const std::vector<std::string>& arguments);

}  // namespace rubato::cli
