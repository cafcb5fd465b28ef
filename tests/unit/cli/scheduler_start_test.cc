// What the scheduler is started with, and when one that runs already is the wrong one.
#include "cli/scheduler_start.h"

#include <gtest/gtest.h>

#include "cli/version.h"

namespace rubato::cli {
namespace {

control::GetVersionResponse Running(const std::string& version, control::Mode mode) {
  control::GetVersionResponse response;
  response.set_version(version);
  response.set_mode(mode);
  return response;
}

TEST(SchedulerStart, PassesWhatTheUserAskedFor) {
  const RuntimeDir directory = *RuntimeDir::At("/run/x");
  StartOptions options;
  EXPECT_EQ(SchedulerArguments("/bin/s", options, directory),
            (std::vector<std::string>{"/bin/s", "--runtime-dir", "/run/x", "--mode", "timeslice"}));
  options.mode = Mode::kHybrid;
  options.metrics_address = "127.0.0.1:0";
  options.time_dilation = 20;
  options.extra = {"--bound", "1ms"};
  EXPECT_EQ(SchedulerArguments("/bin/s", options, directory),
            (std::vector<std::string>{"/bin/s", "--runtime-dir", "/run/x", "--mode", "hybrid",
                                      "--metrics-address", "127.0.0.1:0", "--time-dilation", "20",
                                      "--mps-directory", "/run/x/mps", "--bound", "1ms"}));
}

TEST(SchedulerStart, RefusesAnotherVersionAndAnotherMode) {
  StartOptions any;
  StartOptions hybrid;
  hybrid.mode = Mode::kHybrid;
  hybrid.mode_given = true;
  EXPECT_TRUE(CheckScheduler(Running(kVersion, control::MODE_HYBRID), any).ok());
  EXPECT_TRUE(CheckScheduler(Running(kVersion, control::MODE_HYBRID), hybrid).ok());
  const base::Result<void> mode = CheckScheduler(Running(kVersion, control::MODE_MPS), hybrid);
  ASSERT_FALSE(mode.ok());
  EXPECT_NE(mode.error().message.find("mps"), std::string::npos);
  const base::Result<void> version = CheckScheduler(Running("0.0.9", control::MODE_MPS), any);
  ASSERT_FALSE(version.ok());
  EXPECT_NE(version.error().message.find("0.0.9"), std::string::npos);
  EXPECT_NE(version.error().message.find("rubato down"), std::string::npos);
}

}  // namespace
}  // namespace rubato::cli
