// `rubato top`: the tenants, looked at again and again until q or Ctrl-C.
//
// On a terminal the table repaints in the alternate screen, which is left again on every way out; a
// signal is read from a signalfd so that none of them can skip that. Elsewhere each look is printed
// below the last, without escape sequences.
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "cli/commands.h"
#include "cli/control_client.h"
#include "cli/status_report.h"

namespace rubato::cli {
namespace {

// The alternate screen, and a keyboard that neither echoes nor waits for a newline.
class Screen {
 public:
  Screen() {
    if (tcgetattr(STDIN_FILENO, &saved_) == 0) {
      keyboard_ = true;
      termios raw = saved_;
      raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
      tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    std::fputs("\x1b[?1049h\x1b[?25l", stdout);
  }
  ~Screen() {
    std::fputs("\x1b[?25h\x1b[?1049l", stdout);
    std::fflush(stdout);
    if (keyboard_) tcsetattr(STDIN_FILENO, TCSANOW, &saved_);
  }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  bool keyboard() const { return keyboard_; }

  // Writes over the last picture, without clearing first: no flicker.
  void Paint(const std::string& text) {
    winsize size = {};
    size_t rows = 24;
    size_t columns = 80;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1 && size.ws_col > 1) {
      rows = size.ws_row;
      columns = size.ws_col;
    }
    std::string picture = "\x1b[H";
    size_t line = 0;
    for (size_t at = 0; at < text.size() && line + 1 < rows; ++line) {
      const size_t end = std::min(text.find('\n', at), text.size());
      picture += text.substr(at, std::min(end - at, columns)) + "\x1b[K\r\n";
      at = end + 1;
    }
    picture += "\x1b[J";
    std::fputs(picture.c_str(), stdout);
    std::fflush(stdout);
  }

 private:
  termios saved_ = {};
  bool keyboard_ = false;
};

enum class Wake { kTime, kQuit };

// Until `until_ns`, or until the user has had enough.
Wake WaitForUser(int signals, bool keyboard, base::Nanos until_ns) {
  for (;;) {
    const base::Nanos left = until_ns - base::MonotonicNow();
    if (left <= 0) return Wake::kTime;
    pollfd waiting[2] = {{signals, POLLIN, 0}, {keyboard ? STDIN_FILENO : -1, POLLIN, 0}};
    const int ready = poll(waiting, 2, static_cast<int>(left / base::kMillisecond + 1));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return Wake::kTime;
    if (waiting[0].revents != 0) return Wake::kQuit;
    char key = 0;
    if (read(STDIN_FILENO, &key, 1) != 1) {
      keyboard = false;
    } else if (key == 'q' || key == 'Q' || key == '\x04') {
      return Wake::kQuit;
    }
  }
}

int Fail(const std::string& message) {
  Complain("top", message);
  return kExitFailed;
}

}  // namespace

int Top(const TopCommand& command) {
  const base::Result<RuntimeDir> directory = RuntimeDir::Locate();
  if (!directory.ok()) return Fail(directory.error().message);
  if (!SchedulerListens(*directory)) {
    return Fail("no scheduler runs at " + directory->path() +
                "; start one with `rubato up` or `rubato run`");
  }
  sigset_t ending;
  sigemptyset(&ending);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) sigaddset(&ending, signal);
  pthread_sigmask(SIG_BLOCK, &ending, nullptr);
  const base::UniqueFd signals(signalfd(-1, &ending, SFD_CLOEXEC));
  if (!signals.valid()) return Fail(base::SystemError("signalfd").message);

  const std::unique_ptr<ControlClient> client = ControlClient::Make(*directory);
  base::Result<control::GetStatusResponse> before = client->GetStatus();
  if (!before.ok()) return Fail(before.error().message);
  const base::Nanos interval_ns = static_cast<base::Nanos>(command.interval_ns);
  const bool live = isatty(STDOUT_FILENO) != 0 && !command.once;
  std::unique_ptr<Screen> screen;
  if (live) {
    screen = std::make_unique<Screen>();
    screen->Paint(TopTable(control::GetStatusResponse(), *before));
  }
  base::Nanos next_ns = base::MonotonicNow();
  for (;;) {
    next_ns += interval_ns;
    if (WaitForUser(signals.get(), screen != nullptr && screen->keyboard(), next_ns) ==
        Wake::kQuit) {
      return 0;
    }
    base::Result<control::GetStatusResponse> now = client->GetStatus();
    if (!now.ok()) {
      // A live view outlasts a restart of the scheduler.
      if (!live) return Fail(now.error().message);
      screen->Paint(now.error().message + "\n");
      continue;
    }
    const std::string table = TopTable(*before, *now);
    if (live) {
      screen->Paint(table);
    } else {
      std::fputs((table + (command.once ? "" : "\n")).c_str(), stdout);
      if (std::fflush(stdout) != 0) return kExitFailed;
      if (command.once) return 0;
    }
    before = std::move(now);
  }
}

}  // namespace rubato::cli
