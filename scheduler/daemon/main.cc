// rubato-scheduler: one per node, or one per user where `rubato up` starts it.

#include <signal.h>

#include <cstdio>
#include <exception>

#include "base/log.h"
#include "base/notify.h"
#include "base/runtime_dir.h"
#include "scheduler/daemon/daemon.h"
#include "scheduler/daemon/health_probe.h"
#include "scheduler/daemon/options.h"

namespace {

int Fail(const std::string& line, int exit_code) {
  std::fprintf(stderr, "rubato-scheduler: %s\n", line.c_str());
  rubato::base::NotifyFailed(line);
  return exit_code;
}

int Run(int argc, char** argv) {
  const rubato::sched::ParsedOptions parsed = rubato::sched::ParseOptions(argc, argv);
  if (!parsed.options.has_value()) {
    return parsed.exit_code == 0 ? 0 : Fail(parsed.complaint, parsed.exit_code);
  }
  if (parsed.options->probe != rubato::sched::Options::Probe::kNone) {
    const std::string socket_path =
        parsed.options->runtime_dir + "/" + rubato::base::kControlSocketName;
    const bool drains_too = parsed.options->probe == rubato::sched::Options::Probe::kAnswers;
    if (auto serving = rubato::sched::ProbeHealth(socket_path, drains_too); !serving) {
      std::fprintf(stderr, "rubato-scheduler: %s\n", serving.error().message.c_str());
      return 1;
    }
    return 0;
  }
  if (auto log = rubato::base::StartLog("rubato-scheduler", parsed.options->log_level); !log)
    return Fail(log.error().message, 2);
  ::signal(SIGPIPE, SIG_IGN);
  auto daemon = rubato::sched::Daemon::Start(*parsed.options);
  if (!daemon) return Fail(daemon.error().message, 1);
  (*daemon)->Run();
  daemon->reset();
  rubato::base::LogInfo("ended");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    return Fail(std::string("gave up: ") + error.what(), 1);
  }
}
