// The user's program sees the signals that are sent to us, and its end becomes our exit code.
//
// Each case runs in a process of its own (fork), because signals that are blocked stay blocked.
#include "cli/foreground_child.h"

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "cli/environment.h"

namespace rubato::cli {
namespace {

constexpr const char* kSelf = "/proc/self/exe";
constexpr const char* kCountMode = "--count-signals";

// The program of the tests: counts one signal until another ends it, with exit code 10 + the count.
int CountSignals(int counted, int last) {
  sigset_t both;
  sigemptyset(&both);
  sigaddset(&both, counted);
  sigaddset(&both, last);
  sigprocmask(SIG_BLOCK, &both, nullptr);
  const auto say = [](const char* line, size_t size) { return write(1, line, size) > 0; };
  if (!say("ready\n", 6)) return 1;
  int count = 0;
  for (;;) {
    int signal = 0;
    if (sigwait(&both, &signal) != 0) return 2;
    if (signal == last) return 10 + count;
    ++count;
    if (!say("got\n", 4)) return 1;
  }
}

std::vector<std::string> Shell(const std::string& script) {
  return {"sh", "-c", script};
}

// Runs the program as a foreground child in a forked process, whose stdout is the pipe.
class Wrapper {
 public:
  explicit Wrapper(const std::vector<std::string>& argv) {
    int fds[2];
    EXPECT_EQ(pipe2(fds, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      // A group of its own, so that a test that fails can end all of it.
      setpgid(0, 0);
      dup2(fds[1], STDOUT_FILENO);
      base::Result<ForegroundChild> child = ForegroundChild::Prepare();
      if (!child.ok()) _exit(99);
      if (child->Start(argv, CurrentEnvironment()) != 0) _exit(98);
      _exit(child->Wait());
    }
    setpgid(pid_, pid_);
    close(fds[1]);
    out_ = fds[0];
  }
  ~Wrapper() {
    close(out_);
    if (pid_ > 0) {
      kill(-pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }

  // Blocks until the program has printed a line.
  std::string Line() {
    std::string line;
    char c = 0;
    while (read(out_, &c, 1) == 1 && c != '\n') line += c;
    return line;
  }
  void Send(int signal) { ASSERT_EQ(kill(pid_, signal), 0); }
  int ExitCode() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  // Blocks until the wrapper itself has stopped (or continued).
  bool WaitStopped() {
    int status = 0;
    return waitpid(pid_, &status, WUNTRACED) == pid_ && WIFSTOPPED(status);
  }

 private:
  pid_t pid_ = -1;
  int out_ = -1;
};

TEST(ForegroundChild, ExitCodePassesThrough) {
  EXPECT_EQ(Wrapper(Shell("exit 0")).ExitCode(), 0);
  EXPECT_EQ(Wrapper(Shell("exit 42")).ExitCode(), 42);
}

TEST(ForegroundChild, DeathBySignalIs128Plus) {
  EXPECT_EQ(Wrapper(Shell("kill -KILL $$")).ExitCode(), 128 + SIGKILL);
  EXPECT_EQ(Wrapper(Shell("kill -SEGV $$")).ExitCode(), 128 + SIGSEGV);
}

TEST(ForegroundChild, SignalsReachTheProgramOnce) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH}) {
    // Another signal ends the program: until then a second delivery of the first is counted.
    const int last = signal == SIGUSR1 ? SIGUSR2 : SIGUSR1;
    Wrapper wrapper({kSelf, kCountMode, std::to_string(signal), std::to_string(last)});
    ASSERT_EQ(wrapper.Line(), "ready");
    wrapper.Send(signal);
    ASSERT_EQ(wrapper.Line(), "got") << signal;
    wrapper.Send(last);
    EXPECT_EQ(wrapper.ExitCode(), 10 + 1) << signal;
  }
}

TEST(ForegroundChild, StopsAndContinuesTogether) {
  Wrapper wrapper({kSelf, kCountMode, std::to_string(SIGCONT), std::to_string(SIGTERM)});
  ASSERT_EQ(wrapper.Line(), "ready");
  wrapper.Send(SIGTSTP);
  ASSERT_TRUE(wrapper.WaitStopped());
  wrapper.Send(SIGCONT);
  EXPECT_EQ(wrapper.Line(), "got");
  wrapper.Send(SIGTERM);
  EXPECT_EQ(wrapper.ExitCode(), 10 + 1);
}

TEST(ForegroundChild, TheProgramStartsWithNoSignalBlocked) {
  Wrapper wrapper(Shell("grep SigBlk /proc/self/status"));
  EXPECT_NE(wrapper.Line().find("0000000000000000"), std::string::npos);
  EXPECT_EQ(wrapper.ExitCode(), 0);
}

TEST(ForegroundChild, SaysWhyAProgramDoesNotStart) {
  base::Result<ForegroundChild> child = ForegroundChild::Prepare();
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(child->Start({"rubato-no-such-program"}, CurrentEnvironment()), ENOENT);
  EXPECT_EQ(child->Start({"/etc/passwd"}, CurrentEnvironment()), EACCES);
}

}  // namespace
}  // namespace rubato::cli

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == rubato::cli::kCountMode) {
    return rubato::cli::CountSignals(std::stoi(argv[2]), std::stoi(argv[3]));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
