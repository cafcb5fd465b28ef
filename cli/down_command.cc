// `rubato down`: ends the scheduler and, once no program uses it, the MPS control daemon.
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "cli/commands.h"
#include "cli/control_client.h"
#include "cli/mps_control.h"

namespace rubato::cli {
namespace {

constexpr base::Nanos kEndLimit = 20 * base::kSecond;

int Fail(const std::string& message) {
  Complain("down", message);
  return kExitFailed;
}

// False: it has not ended in time.
bool WaitForEnd(int pidfd) {
  const base::Nanos deadline_ns = base::MonotonicNow() + kEndLimit;
  for (;;) {
    const base::Nanos left = deadline_ns - base::MonotonicNow();
    if (left <= 0) return false;
    pollfd ending = {pidfd, POLLIN, 0};
    const int ready = poll(&ending, 1, static_cast<int>(left / base::kMillisecond + 1));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

}  // namespace

int Down() {
  const base::Result<RuntimeDir> directory = RuntimeDir::Locate();
  if (!directory.ok()) return Fail(directory.error().message);
  uint32_t sessions = 0;
  bool stopped = false;
  if (directory->Exists() && SchedulerListens(*directory)) {
    const std::unique_ptr<ControlClient> client = ControlClient::Make(*directory);
    const base::Result<control::GetVersionResponse> version = client->GetVersion();
    if (!version.ok()) return Fail(version.error().message);
    // Opened before it is asked to end: afterwards the number may be another process's.
    const base::UniqueFd process(
        static_cast<int>(syscall(SYS_pidfd_open, static_cast<pid_t>(version->pid()), 0)));
    const base::Result<control::ShutdownResponse> shutdown = client->Shutdown();
    if (!shutdown.ok()) return Fail(shutdown.error().message);
    sessions = shutdown->sessions();
    if (process.valid() && !WaitForEnd(process.get())) {
      return Fail("the scheduler, pid " + std::to_string(version->pid()) +
                  ", has not ended; look at " + directory->scheduler_log() + ", or kill it");
    }
    stopped = true;
    std::printf("stopped the scheduler, pid %lld\n", static_cast<long long>(version->pid()));
    if (sessions != 0) {
      std::printf("%u session%s run%s on without it\n", sessions, sessions == 1 ? "" : "s",
                  sessions == 1 ? "s" : "");
    }
  }
  const base::Result<MpsControl> mps = MpsControl::Started(*directory);
  if (mps.ok()) {
    if (sessions != 0) {
      std::printf("MPS goes on for them; run `rubato down` again when they have ended\n");
      return 0;
    }
    const bool answered = mps->Answers();
    if (const base::Result<void> quit = mps->Quit(); !quit.ok()) return Fail(quit.error().message);
    if (answered) {
      std::printf("stopped the MPS control daemon\n");
      stopped = true;
    }
  }
  if (!stopped) std::printf("no scheduler runs\n");
  return 0;
}

}  // namespace rubato::cli
