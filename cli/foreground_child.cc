#include "cli/foreground_child.h"

#include <errno.h>
#include <spawn.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <utility>

namespace rubato::cli {
namespace {

constexpr std::array kPassedOn = {SIGINT,  SIGTERM,  SIGHUP,  SIGQUIT, SIGUSR1,
                                  SIGUSR2, SIGWINCH, SIGTSTP, SIGCONT};

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  // execve's parameters are not const for historical reasons; it does not write to them.
  for (const std::string& text : strings) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

ForegroundChild::ForegroundChild(base::UniqueFd signals, sigset_t original_mask)
    : signals_(std::move(signals)), original_mask_(original_mask) {}

base::Result<ForegroundChild> ForegroundChild::Prepare() {
  sigset_t handled;
  sigemptyset(&handled);
  for (const int signal : kPassedOn) sigaddset(&handled, signal);
  sigaddset(&handled, SIGCHLD);
  sigset_t original;
  pthread_sigmask(SIG_BLOCK, &handled, &original);
  // Whoever started us may have had SIGCHLD ignored: then children vanish before they are waited
  // for.
  struct sigaction default_action = {};
  default_action.sa_handler = SIG_DFL;
  sigaction(SIGCHLD, &default_action, nullptr);
  const int fd = signalfd(-1, &handled, SFD_CLOEXEC);
  if (fd < 0) return base::SystemError("signalfd");
  return ForegroundChild(base::UniqueFd(fd), original);
}

int ForegroundChild::Start(const std::vector<std::string>& argv,
                           const std::vector<std::string>& environment) {
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setsigmask(&attributes, &original_mask_);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  std::vector<char*> arguments = Pointers(argv);
  std::vector<char*> variables = Pointers(environment);
  const int error =
      posix_spawnp(&child_, arguments[0], nullptr, &attributes, arguments.data(), variables.data());
  posix_spawnattr_destroy(&attributes);
  return error;
}

void ForegroundChild::OnSignal(int signal, bool from_terminal) {
  // To continue twice is harmless, and a shell that continues the job may have reached us alone.
  if (from_terminal && signal != SIGCONT) return;
  kill(child_, signal);
}

int ForegroundChild::Wait() {
  for (;;) {
    signalfd_siginfo info;
    const ssize_t size = read(signals_.get(), &info, sizeof(info));
    if (size != static_cast<ssize_t>(sizeof(info))) {
      if (size < 0 && errno == EINTR) continue;
      return 125;
    }
    const int signal = static_cast<int>(info.ssi_signo);
    if (signal != SIGCHLD) {
      OnSignal(signal, info.ssi_code == SI_KERNEL);
      continue;
    }
    // One SIGCHLD may stand for several changes.
    for (;;) {
      int status = 0;
      const pid_t pid = waitpid(child_, &status, WNOHANG | WUNTRACED | WCONTINUED);
      if (pid != child_) break;
      if (WIFEXITED(status)) return WEXITSTATUS(status);
      if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
      // SIGSTOP, whatever stopped the child: the others are blocked here.
      if (WIFSTOPPED(status)) raise(SIGSTOP);
    }
  }
}

}  // namespace rubato::cli
