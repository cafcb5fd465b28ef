#include "agent/command_line.h"

#include <gtest/gtest.h>

#include <vector>

namespace rubato::agent {
namespace {

ParsedCommandLine Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "rubato-agent");
  return ParseCommandLine(static_cast<int>(arguments.size()), arguments.data());
}

TEST(CommandLineTest, WithoutACommandItRuns) {
  const auto parsed = Parse({"--config", "/etc/agent.yaml"});
  ASSERT_TRUE(parsed.line.has_value());
  EXPECT_EQ(parsed.line->command, Command::kRun);
  EXPECT_EQ(parsed.line->sources.path, "/etc/agent.yaml");
  EXPECT_EQ(Parse({"run", "--config", "/x"}).line->sources.path, "/x");
}

TEST(CommandLineTest, FlagsBecomeKeys) {
  const auto parsed = Parse({"--metrics-address", "0.0.0.0:1", "--set", "gpu.source=software",
                             "--set", "policy.realtimeNamespaces=a,b", "--node-name", "n"});
  ASSERT_TRUE(parsed.line.has_value());
  using Flags = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(parsed.line->sources.flags, (Flags{{"gpu.source", "software"},
                                               {"policy.realtimeNamespaces", "a,b"},
                                               {"metrics.address", "0.0.0.0:1"},
                                               {"kubernetes.nodeName", "n"}}));
}

TEST(CommandLineTest, Commands) {
  const auto install = Parse({"install-shim", "--config", "/c", "--from", "/a", "--to", "/b"});
  ASSERT_TRUE(install.line.has_value());
  EXPECT_EQ(install.line->command, Command::kInstallShim);
  EXPECT_EQ(install.line->install_from, "/a");
  EXPECT_EQ(install.line->install_to, "/b");
  EXPECT_EQ(install.line->sources.path, "/c");
  EXPECT_TRUE(Parse({"cleanup", "--wait"}).line->cleanup_wait);
  EXPECT_FALSE(Parse({"cleanup", "--once"}).line->cleanup_wait);
  EXPECT_EQ(Parse({"check-config"}).line->command, Command::kCheckConfig);
}

TEST(CommandLineTest, WhatIsWrongIsSaidInOneLine) {
  for (const auto& arguments : std::vector<std::vector<const char*>>{
           {"--nonsense"}, {"--set", "x"}, {"cleanup", "--wait", "--once"}, {"fly"}}) {
    const auto parsed = Parse(arguments);
    EXPECT_FALSE(parsed.line.has_value());
    EXPECT_EQ(parsed.exit_code, 2);
    EXPECT_NE(parsed.complaint.find("see rubato-agent --help"), std::string::npos);
    EXPECT_EQ(parsed.complaint.find('\n'), std::string::npos);
  }
}

}  // namespace
}  // namespace rubato::agent
