#include "cli/subprocess.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "cli/environment.h"

namespace rubato::cli {
namespace {

constexpr size_t kMaxTextBytes = 64 * 1024;

struct Pipe {
  base::UniqueFd reader;
  base::UniqueFd writer;
};

base::Result<Pipe> MakePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return base::SystemError("cannot make a pipe");
  return Pipe{base::UniqueFd(fds[0]), base::UniqueFd(fds[1])};
}

// Strings as execve takes them; made before fork.
class ArgumentVector {
 public:
  explicit ArgumentVector(const std::vector<std::string>& strings) {
    for (const std::string& text : strings) pointers_.push_back(const_cast<char*>(text.c_str()));
    pointers_.push_back(nullptr);
  }
  char* const* data() const { return pointers_.data(); }

 private:
  std::vector<char*> pointers_;
};

void UnblockSignals() {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

// Reads once. False at the end of the stream.
bool ReadSome(int fd, std::string* text) {
  char buffer[4096];
  const ssize_t size = read(fd, buffer, sizeof(buffer));
  if (size < 0) return errno == EINTR || errno == EAGAIN;
  if (text->size() < kMaxTextBytes) text->append(buffer, static_cast<size_t>(size));
  return size > 0;
}

int MillisecondsUntil(base::Nanos deadline_ns) {
  const base::Nanos left = deadline_ns - base::MonotonicNow();
  return left <= 0 ? 0 : static_cast<int>(left / base::kMillisecond + 1);
}

// Reads `out` until the process of the pidfd `ending` has ended. False: the time is up.
bool CollectOutput(int ending, int out, base::Nanos deadline_ns, std::string* text) {
  for (;;) {
    pollfd waiting[2] = {{ending, POLLIN, 0}, {out, POLLIN, 0}};
    const int ready = poll(waiting, 2, MillisecondsUntil(deadline_ns));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    // poll() leaves negative descriptors out.
    if (waiting[1].revents != 0) {
      if (!ReadSome(out, text)) out = -1;
    } else if (waiting[0].revents != 0) {
      return true;
    }
  }
}

// Reads a line of `fd`. False: the time is up before it, or the end, came.
bool ReadLine(int fd, base::Nanos deadline_ns, std::string* text) {
  for (;;) {
    pollfd waiting = {fd, POLLIN, 0};
    const int ready = poll(&waiting, 1, MillisecondsUntil(deadline_ns));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    if (!ReadSome(fd, text) || text->find('\n') != std::string::npos) return true;
  }
}

int ExitCodeOf(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string LastLine(const std::string& path, off_t from) {
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return "";
  const off_t end = lseek(fd.get(), 0, SEEK_END);
  lseek(fd.get(), std::max<off_t>(from, end - 4096), SEEK_SET);
  char buffer[4096];
  const ssize_t size = read(fd.get(), buffer, sizeof(buffer));
  std::string text(buffer, size > 0 ? static_cast<size_t>(size) : 0);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

}  // namespace

base::Result<ProgramOutput> RunProgram(const std::vector<std::string>& argv,
                                       const std::vector<std::string>& environment,
                                       const std::string& input, base::Nanos time_limit) {
  base::Result<Pipe> in = MakePipe();
  base::Result<Pipe> out = MakePipe();
  if (!in.ok()) return in.error();
  if (!out.ok()) return out.error();
  const ArgumentVector arguments(argv);
  const ArgumentVector variables(environment);
  const pid_t pid = fork();
  if (pid < 0) return base::SystemError("cannot start " + argv[0]);
  if (pid == 0) {
    dup2(in->reader.get(), STDIN_FILENO);
    dup2(out->writer.get(), STDOUT_FILENO);
    dup2(out->writer.get(), STDERR_FILENO);
    UnblockSignals();
    execvpe(argv[0].c_str(), arguments.data(), variables.data());
    _exit(127);
  }
  in->reader.Reset();
  out->writer.Reset();
  // Inputs are a few bytes, which a pipe takes at once; who does not read them must not end us.
  struct sigaction ignore = {};
  struct sigaction previous = {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, &previous);
  const ssize_t written = write(in->writer.get(), input.data(), input.size());
  sigaction(SIGPIPE, &previous, nullptr);
  in->writer.Reset();

  // The end of the program counts, not the end of its output: a daemon that it leaves behind may
  // hold the pipe for ever.
  const base::UniqueFd ending(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  ProgramOutput result;
  const bool in_time =
      ending.valid() && CollectOutput(ending.get(), out->reader.get(),
                                      base::MonotonicNow() + time_limit, &result.text);
  if (!in_time) kill(pid, SIGKILL);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!in_time) {
    return base::Error{base::ErrorCode::kUnavailable,
                       argv[0] + " did not end within " + base::FormatDuration(time_limit)};
  }
  result.exit_code = ExitCodeOf(status);
  if (written < 0 && result.exit_code == 0) result.exit_code = 1;
  return result;
}

base::Result<void> StartDaemon(const std::vector<std::string>& argv,
                               const std::vector<std::string>& environment,
                               const std::string& log_path, base::Nanos time_limit) {
  const base::UniqueFd log(
      open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!log.valid()) return base::SystemError("cannot open the log " + log_path);
  const off_t log_start = lseek(log.get(), 0, SEEK_END);
  const base::UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null.valid()) return base::SystemError("cannot open /dev/null");
  base::Result<Pipe> notify = MakePipe();
  if (!notify.ok()) return notify.error();

  const std::vector<std::string> daemon_environment =
      WithVariable(environment, "RUBATO_NOTIFY_FD", std::to_string(notify->writer.get()));
  const ArgumentVector arguments(argv);
  const ArgumentVector variables(daemon_environment);
  const pid_t pid = fork();
  if (pid < 0) return base::SystemError("cannot start " + argv[0]);
  if (pid == 0) {
    setsid();
    // A second fork gives the daemon to init: it is no child of ours that would have to be waited
    // for, and leads no session that could acquire a terminal.
    const pid_t daemon = fork();
    if (daemon != 0) _exit(daemon < 0 ? 1 : 0);
    umask(077);
    if (chdir("/") != 0) _exit(1);
    dup2(null.get(), STDIN_FILENO);
    dup2(log.get(), STDOUT_FILENO);
    dup2(log.get(), STDERR_FILENO);
    fcntl(notify->writer.get(), F_SETFD, 0);
    UnblockSignals();
    execve(argv[0].c_str(), arguments.data(), variables.data());
    _exit(127);
  }
  notify->writer.Reset();
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }

  std::string said;
  const bool in_time = ReadLine(notify->reader.get(), base::MonotonicNow() + time_limit, &said);
  if (said.starts_with("READY=1")) return {};
  const std::string line = said.substr(0, said.find('\n'));
  if (line.starts_with("ERROR=")) {
    return base::Error{base::ErrorCode::kUnavailable, line.substr(6)};
  }
  if (!in_time) {
    return base::Error{base::ErrorCode::kUnavailable, argv[0] + " was not ready within " +
                                                          base::FormatDuration(time_limit) +
                                                          "; look at " + log_path};
  }
  std::string why = LastLine(log_path, log_start);
  if (why.empty()) why = "it left no word";
  return base::Error{base::ErrorCode::kUnavailable,
                     argv[0] + " ended at once: " + why + "; look at " + log_path};
}

}  // namespace rubato::cli
