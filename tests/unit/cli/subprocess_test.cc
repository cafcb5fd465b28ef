// Programs that end, hang, cannot be found, and daemons that say they are ready or do not.
#include "cli/subprocess.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/environment.h"

namespace rubato::cli {
namespace {

constexpr base::Nanos kGenerous = 60 * base::kSecond;

base::Result<ProgramOutput> Shell(const std::string& script, const std::string& input = "",
                                  base::Nanos limit = kGenerous) {
  return RunProgram({"sh", "-c", script}, CurrentEnvironment(), input, limit);
}

TEST(RunProgram, GivesInputAndTakesOutputAndExitCode) {
  const base::Result<ProgramOutput> output =
      Shell("read word; echo got $word; echo err >&2; exit 7", "ping\n");
  ASSERT_TRUE(output.ok());
  EXPECT_EQ(output->exit_code, 7);
  EXPECT_EQ(output->text, "got ping\nerr\n");
}

TEST(RunProgram, SignalsBecomeExitCodes) {
  const base::Result<ProgramOutput> output = Shell("kill -TERM $$");
  ASSERT_TRUE(output.ok());
  EXPECT_EQ(output->exit_code, 128 + SIGTERM);
}

TEST(RunProgram, AMissingProgramIs127) {
  const base::Result<ProgramOutput> output =
      RunProgram({"rubato-no-such-program"}, CurrentEnvironment(), "x\n", kGenerous);
  ASSERT_TRUE(output.ok());
  EXPECT_EQ(output->exit_code, 127);
}

TEST(RunProgram, KillsWhatHangs) {
  const base::Result<ProgramOutput> output =
      RunProgram({"cat", "/dev/zero"}, CurrentEnvironment(), "", 50 * base::kMillisecond);
  ASSERT_FALSE(output.ok());
  EXPECT_NE(output.error().message.find("did not end"), std::string::npos);
}

TEST(RunProgram, DoesNotWaitForWhatAProgramLeavesBehind) {
  // The child of the shell holds the output pipe open until it is told to end.
  const base::Result<ProgramOutput> output = Shell("tail -f /dev/null > /dev/null & echo $!");
  ASSERT_TRUE(output.ok());
  EXPECT_EQ(output->exit_code, 0);
  const pid_t left = std::stoi(output->text);
  EXPECT_EQ(kill(left, SIGKILL), 0);
}

class DaemonTest : public testing::Test {
 protected:
  DaemonTest() {
    char name[] = "/tmp/rubato-cli-test-XXXXXX";
    root_ = mkdtemp(name);
  }
  ~DaemonTest() override { std::filesystem::remove_all(root_); }

  base::Result<void> Start(const std::string& script, base::Nanos limit = kGenerous) {
    return StartDaemon({"/bin/sh", "-c", script}, CurrentEnvironment(), log(), limit);
  }
  std::string log() const { return root_ + "/log"; }
  std::string LogText() const {
    std::ifstream stream(log());
    std::stringstream text;
    text << stream.rdbuf();
    return text.str();
  }

  std::string root_;
};

TEST_F(DaemonTest, IsThereOnceItIsReady) {
  const base::Result<void> started = Start(
      "echo pid $$; eval \"echo READY=1 >&$RUBATO_NOTIFY_FD\"; eval \"exec "
      "$RUBATO_NOTIFY_FD>&-\"; exec tail -f /dev/null");
  ASSERT_TRUE(started.ok()) << started.error().message;
  const std::string text = LogText();
  ASSERT_EQ(text.rfind("pid ", 0), 0u) << text;
  const pid_t daemon = std::stoi(text.substr(4));
  // Not our child, in a session of its own.
  EXPECT_NE(getsid(daemon), getsid(0));
  EXPECT_EQ(kill(daemon, SIGKILL), 0);
}

TEST_F(DaemonTest, ItsOwnWordsSayWhyItFailed) {
  const base::Result<void> started =
      Start("eval \"echo ERROR=the port is taken >&$RUBATO_NOTIFY_FD\"; exit 1");
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(started.error().message, "the port is taken");
}

TEST_F(DaemonTest, ItsLogSaysWhyItFailedOtherwise) {
  std::ofstream(log()) << "an older line\n";
  const base::Result<void> started = Start("echo no such flag >&2; exit 2");
  ASSERT_FALSE(started.ok());
  EXPECT_NE(started.error().message.find("no such flag"), std::string::npos);
  EXPECT_NE(started.error().message.find(log()), std::string::npos);
}

TEST_F(DaemonTest, OneThatSaysNothingIsNamed) {
  const base::Result<void> started = Start("exit 0");
  ASSERT_FALSE(started.ok());
  EXPECT_NE(started.error().message.find("no word"), std::string::npos);
}

}  // namespace
}  // namespace rubato::cli
