// Command lines, good and bad: what is understood, which exit code a mistake has, and that each
// mistake is answered in one line that names the cure.
#include "cli/command_line.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace rubato::cli {
namespace {

template <typename T>
T Parsed(const std::vector<std::string>& arguments) {
  const auto result = ParseCommandLine(arguments);
  const auto* command = std::get_if<Command>(&result);
  if (command == nullptr) {
    ADD_FAILURE() << std::get<Ending>(result).err;
    return {};
  }
  const auto* value = std::get_if<T>(command);
  if (value == nullptr) {
    ADD_FAILURE() << "another command";
    return {};
  }
  return *value;
}

Ending Refused(const std::vector<std::string>& arguments) {
  const auto result = ParseCommandLine(arguments);
  const auto* ending = std::get_if<Ending>(&result);
  if (ending == nullptr) {
    ADD_FAILURE() << "accepted";
    return {};
  }
  return *ending;
}

TEST(CommandLine, RunReadsEverything) {
  const RunCommand run = Parsed<RunCommand>(
      {"run", "--class", "realtime", "--period", "10ms", "--deadline=8ms", "--memory", "20GiB",
       "--name", "camera", "--mode", "hybrid", "--", "python3", "serve.py", "--port", "80"});
  EXPECT_EQ(run.tenant_class, TenantClass::kRealtime);
  EXPECT_EQ(run.period_ns, 10'000'000u);
  EXPECT_EQ(run.deadline_ns, 8'000'000u);
  EXPECT_EQ(run.limit_bytes, 20ull << 30);
  EXPECT_EQ(run.name, "camera");
  EXPECT_EQ(run.start.mode, Mode::kHybrid);
  EXPECT_TRUE(run.start.mode_given);
  EXPECT_TRUE(run.gpu_check);
  EXPECT_EQ(run.argv, (std::vector<std::string>{"python3", "serve.py", "--port", "80"}));
}

TEST(CommandLine, RunDefaultsToBestEffort) {
  const RunCommand run = Parsed<RunCommand>({"run", "--no-gpu-check", "--weight", "3", "--", "a"});
  EXPECT_EQ(run.tenant_class, TenantClass::kBestEffort);
  EXPECT_EQ(run.weight, 3u);
  EXPECT_FALSE(run.gpu_check);
  EXPECT_FALSE(run.start.mode_given);
  EXPECT_EQ(run.limit_bytes, 0u);
}

TEST(CommandLine, TheProgramKeepsItsOptions) {
  const RunCommand run =
      Parsed<RunCommand>({"run", "--", "prog", "--class", "realtime", "--help", "--", "x"});
  EXPECT_EQ(run.tenant_class, TenantClass::kBestEffort);
  EXPECT_EQ(run.argv,
            (std::vector<std::string>{"prog", "--class", "realtime", "--help", "--", "x"}));
}

TEST(CommandLine, UpAndItsSchedulerOptions) {
  const UpCommand up =
      Parsed<UpCommand>({"up", "--mode", "mps", "--metrics-address", "none", "--time-dilation",
                         "20", "--foreground", "--", "--bound", "300us"});
  EXPECT_EQ(up.start.mode, Mode::kMps);
  EXPECT_EQ(up.start.metrics_address, "none");
  EXPECT_EQ(up.start.time_dilation, 20u);
  EXPECT_TRUE(up.foreground);
  EXPECT_EQ(up.start.extra, (std::vector<std::string>{"--bound", "300us"}));
}

TEST(CommandLine, TheOthers) {
  EXPECT_EQ(Parsed<StatusCommand>({"status"}).output, Output::kTable);
  EXPECT_EQ(Parsed<StatusCommand>({"status", "--output", "json"}).output, Output::kJson);
  EXPECT_EQ(Parsed<StatusCommand>({"status", "-o", "json"}).output, Output::kJson);
  EXPECT_EQ(Parsed<DoctorCommand>({"doctor", "--mode", "hybrid"}).mode, Mode::kHybrid);
  const TopCommand top = Parsed<TopCommand>({"top", "--once", "--interval", "200ms"});
  EXPECT_TRUE(top.once);
  EXPECT_EQ(top.interval_ns, 200'000'000u);
  Parsed<DownCommand>({"down"});
  Parsed<VersionCommand>({"version"});
  Parsed<VersionCommand>({"--version"});
}

TEST(CommandLine, HelpIsNoMistake) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"--help"}, {"run", "--help"}, {"up", "-h"}}) {
    const Ending help = Refused(arguments);
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_NE(help.out.find("rubato"), std::string::npos);
    EXPECT_TRUE(help.err.empty());
  }
}

struct Mistake {
  std::vector<std::string> arguments;
  int exit_code;
  const char* named;  // Must appear in the complaint.
};

TEST(CommandLine, MistakesAreNamedInOneLineWithTheCure) {
  const std::vector<Mistake> mistakes = {
      {{"run"}, 125, "no program"},
      {{"run", "--"}, 125, "no program"},
      {{"run", "./a.out"}, 125, "./a.out"},
      {{"run", "--perod", "10ms", "--", "a"}, 125, "--perod"},
      {{"run", "--class", "fast", "--", "a"}, 125, "fast"},
      {{"run", "--class", "--", "a"}, 125, "--class"},
      {{"run", "--class", "realtime", "--period", "10", "--", "a"}, 125, "'10'"},
      {{"run", "--class", "realtime", "--period", "0ms", "--", "a"}, 125, "0ms"},
      {{"run", "--class", "realtime", "--deadline", "-1ms", "--", "a"}, 125, "-1ms"},
      {{"run", "--period", "10ms", "--", "a"}, 125, "--period"},
      {{"run", "--class", "best-effort", "--deadline", "1ms", "--", "a"}, 125, "--deadline"},
      {{"run", "--class", "realtime", "--weight", "2", "--", "a"}, 125, "--weight"},
      {{"run", "--require-class", "--", "a"}, 125, "--require-class"},
      {{"run", "--weight", "0", "--", "a"}, 125, "'0'"},
      {{"run", "--weight", "99999999999999999999", "--", "a"}, 125, "99999999999999999999"},
      {{"run", "--memory", "20Gi", "--", "a"}, 125, "20Gi"},
      {{"run", "--mode", "magic", "--", "a"}, 125, "magic"},
      {{"up", "--mode", "magic"}, 2, "magic"},
      {{"up", "--time-dilation", "x"}, 2, "'x'"},
      {{"up", "now"}, 2, "now"},
      {{"status", "--output", "yaml"}, 2, "yaml"},
      {{"status", "--", "x"}, 2, "--"},
      {{"top", "--interval", "fast"}, 2, "fast"},
      {{"frobnicate"}, 2, "frobnicate"},
      {{"--frobnicate"}, 2, "--frobnicate"},
  };
  for (const Mistake& mistake : mistakes) {
    const Ending ending = Refused(mistake.arguments);
    SCOPED_TRACE(ending.err);
    EXPECT_EQ(ending.exit_code, mistake.exit_code);
    EXPECT_NE(ending.err.find(mistake.named), std::string::npos);
    EXPECT_NE(ending.err.find("; "), std::string::npos) << "says nothing to do";
    EXPECT_EQ(std::count(ending.err.begin(), ending.err.end(), '\n'), 1);
    EXPECT_EQ(ending.err.rfind("rubato", 0), 0u);
    EXPECT_TRUE(ending.out.empty());
  }
}

TEST(CommandLine, NothingShowsTheHelpAsAMistake) {
  const Ending ending = Refused({});
  EXPECT_EQ(ending.exit_code, 2);
  EXPECT_NE(ending.err.find("doctor"), std::string::npos);
}

TEST(CommandLine, ProfileRunsAProgramAlone) {
  const auto run = Parsed<RunCommand>({"profile", "--name", "train", "--", "python3", "show"});
  EXPECT_TRUE(run.profile);
  EXPECT_TRUE(run.gpu_check);
  EXPECT_EQ(run.name, "train");
  EXPECT_EQ(run.tenant_class, TenantClass::kBestEffort);
  EXPECT_EQ(run.argv, (std::vector<std::string>{"python3", "show"}));
  EXPECT_FALSE(Parsed<RunCommand>({"run", "--", "a"}).profile);
}

TEST(CommandLine, ProfileShowAndClear) {
  const auto show = Parsed<ProfileShowCommand>({"profile", "show", "--limit", "7", "-o", "json"});
  EXPECT_EQ(show.limit, 7u);
  EXPECT_EQ(show.output, Output::kJson);
  Parsed<ProfileClearCommand>({"profile", "clear"});
}

TEST(CommandLine, ProfileRefusals) {
  EXPECT_EQ(Refused({"profile"}).exit_code, kExitRunFailed);
  EXPECT_EQ(Refused({"profile"}).err.rfind("rubato profile: ", 0), 0u);
  EXPECT_EQ(Refused({"profile", "--"}).exit_code, kExitRunFailed);
  EXPECT_NE(Refused({"profile", "shew"}).err.find("'shew'"), std::string::npos);
  EXPECT_EQ(Refused({"profile", "show", "--", "x"}).exit_code, kExitUsage);
  EXPECT_NE(Refused({"profile", "--class", "realtime", "--", "x"}).err.find("--class"),
            std::string::npos);
}

}  // namespace
}  // namespace rubato::cli
