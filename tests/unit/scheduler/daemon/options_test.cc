#include "scheduler/daemon/options.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <vector>

namespace rubato::sched {
namespace {

ParsedOptions Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "rubato-scheduler");
  return ParseOptions(static_cast<int>(arguments.size()), arguments.data());
}

TEST(OptionsTest, Defaults) {
  ::unsetenv("RUBATO_TIME_DILATION");
  const ParsedOptions parsed = Parse({"--runtime-dir", "/run/x"});
  ASSERT_TRUE(parsed.options.has_value());
  EXPECT_EQ(parsed.options->mode, abi::Mode::kTimeslice);
  EXPECT_EQ(parsed.options->metrics_address, "127.0.0.1:9412");
  EXPECT_EQ(parsed.options->time_dilation, 1u);
  EXPECT_TRUE(parsed.options->mps_directory.empty());
  EXPECT_EQ(parsed.options->constants.bound_ns, policies::Constants{}.bound_ns);
}

TEST(OptionsTest, ValuesAndTheirDilation) {
  const ParsedOptions parsed =
      Parse({"--runtime-dir", "/run/x", "--mode", "hybrid", "--bound", "1ms", "--margin", "200us",
             "--time-dilation", "20", "--metrics-address", "none"});
  ASSERT_TRUE(parsed.options.has_value());
  EXPECT_EQ(parsed.options->mode, abi::Mode::kHybrid);
  EXPECT_EQ(parsed.options->mps_directory, "/run/x/mps");
  EXPECT_EQ(parsed.options->constants.bound_ns, 20 * base::kMillisecond);
  EXPECT_EQ(parsed.options->constants.margin_ns, 4 * base::kMillisecond);
  EXPECT_TRUE(parsed.options->metrics_address.empty());
}

TEST(OptionsTest, DilationFromTheEnvironment) {
  ::setenv("RUBATO_TIME_DILATION", "7", 1);
  const ParsedOptions parsed = Parse({"--runtime-dir", "/run/x"});
  ::unsetenv("RUBATO_TIME_DILATION");
  ASSERT_TRUE(parsed.options.has_value());
  EXPECT_EQ(parsed.options->time_dilation, 7u);
}

TEST(OptionsTest, TheAttachDirectoryIsPrivateUnlessGiven) {
  ParsedOptions parsed = Parse({"--runtime-dir", "/run/x/"});
  ASSERT_TRUE(parsed.options.has_value());
  EXPECT_EQ(parsed.options->attach_directory, "/run/x/attach");
  EXPECT_FALSE(parsed.options->attach_shared);
  parsed = Parse({"--runtime-dir", "/run/x", "--attach-directory", "/var/lib/rubato/alloc/"});
  ASSERT_TRUE(parsed.options.has_value());
  EXPECT_EQ(parsed.options->attach_directory, "/var/lib/rubato/alloc");
  EXPECT_TRUE(parsed.options->attach_shared);
  EXPECT_EQ(parsed.options->probe, Options::Probe::kNone);
  EXPECT_EQ(Parse({"--runtime-dir", "/run/x", "--health"}).options->probe, Options::Probe::kServes);
  EXPECT_EQ(Parse({"--runtime-dir", "/run/x", "--alive"}).options->probe, Options::Probe::kAnswers);
}

TEST(OptionsTest, BadFlagsAreOneLineAndTwo) {
  static const std::string long_path = "/" + std::string(62, 'x');
  const std::vector<std::vector<const char*>> cases = {{"--mode", "fast"},
                                                       {"--bound", "10"},
                                                       {"--bound", "-1ms"},
                                                       {"--no-such-flag"},
                                                       {"--time-dilation", "0"},
                                                       {"--log-level", "loud"},
                                                       {"--runtime-dir", "here"},
                                                       {"--metrics-address", "9412"},
                                                       {"--attach-directory", "here"},
                                                       {"--attach-directory", long_path.c_str()}};
  for (const auto& arguments : cases) {
    const ParsedOptions parsed = Parse(arguments);
    EXPECT_FALSE(parsed.options.has_value()) << arguments[0];
    EXPECT_EQ(parsed.exit_code, 2) << arguments[0];
    EXPECT_FALSE(parsed.complaint.empty()) << arguments[0];
    EXPECT_EQ(parsed.complaint.find('\n'), std::string::npos) << parsed.complaint;
  }
}

std::string ProfileStoreWith(const char* state_home, const char* home) {
  ::unsetenv("XDG_STATE_HOME");
  ::unsetenv("HOME");
  if (state_home != nullptr) ::setenv("XDG_STATE_HOME", state_home, 1);
  if (home != nullptr) ::setenv("HOME", home, 1);
  const ParsedOptions parsed = Parse({"--runtime-dir", "/run/x"});
  return parsed.options.has_value() ? parsed.options->profile_store : "refused";
}

TEST(OptionsTest, TheProfileStoreIsAmongTheUsersState) {
  EXPECT_EQ(ProfileStoreWith("/s", "/h"), "/s/rubato/profiles.sqlite");
  EXPECT_EQ(ProfileStoreWith("", "/h"), "/h/.local/state/rubato/profiles.sqlite");
  EXPECT_EQ(ProfileStoreWith("relative", "/h"), "/h/.local/state/rubato/profiles.sqlite");
  EXPECT_EQ(ProfileStoreWith(nullptr, nullptr), "");
  EXPECT_EQ(ProfileStoreWith(nullptr, "/"), "");
}

TEST(OptionsTest, TheProfileStoreCanBeElsewhereOrNowhere) {
  ParsedOptions parsed = Parse({"--runtime-dir", "/run/x", "--profile-store", "/var/p"});
  ASSERT_TRUE(parsed.options.has_value());
  EXPECT_EQ(parsed.options->profile_store, "/var/p");
  parsed = Parse({"--runtime-dir", "/run/x", "--profile-store", "none"});
  ASSERT_TRUE(parsed.options.has_value());
  EXPECT_EQ(parsed.options->profile_store, "");
  parsed = Parse({"--runtime-dir", "/run/x", "--profile-store", "p.sqlite"});
  EXPECT_FALSE(parsed.options.has_value());
  EXPECT_EQ(parsed.exit_code, 2);
}

}  // namespace
}  // namespace rubato::sched
