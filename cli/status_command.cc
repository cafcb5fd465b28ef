// `rubato status`: what the scheduler knows now, once.
#include <cstdio>

#include "cli/commands.h"
#include "cli/control_client.h"
#include "cli/status_report.h"

namespace rubato::cli {

int Status(const StatusCommand& command) {
  const base::Result<RuntimeDir> directory = RuntimeDir::Locate();
  if (!directory.ok()) {
    Complain("status", directory.error().message);
    return kExitFailed;
  }
  if (!SchedulerListens(*directory)) {
    if (command.output == Output::kJson) std::fputs(NoSchedulerJson().c_str(), stdout);
    Complain("status", "no scheduler runs at " + directory->path() +
                           "; start one with `rubato up` or `rubato run`");
    return kExitFailed;
  }
  const base::Result<control::GetStatusResponse> status =
      ControlClient::Make(*directory)->GetStatus();
  if (!status.ok()) {
    Complain("status", status.error().message);
    return kExitFailed;
  }
  const std::string text =
      command.output == Output::kJson ? StatusJson(*status) : StatusTable(*status);
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace rubato::cli
