// `rubato profile show` and `rubato profile clear`. `rubato profile -- PROGRAM` is in
// run_command.cc, since it runs a program.
#include <chrono>
#include <cstdio>

#include "cli/commands.h"
#include "cli/control_client.h"
#include "cli/profile_report.h"

namespace rubato::cli {
namespace {

int Fail(const std::string& message) {
  Complain("profile", message);
  return kExitFailed;
}

// A client of the scheduler that runs, or null after a complaint.
std::unique_ptr<ControlClient> Connect() {
  const base::Result<RuntimeDir> directory = RuntimeDir::Locate();
  if (!directory.ok()) {
    Fail(directory.error().message);
    return nullptr;
  }
  if (!SchedulerListens(*directory)) {
    Fail("no scheduler runs at " + directory->path() +
         "; start one with `rubato up` or `rubato run`");
    return nullptr;
  }
  return ControlClient::Make(*directory);
}

}  // namespace

int ProfileShow(const ProfileShowCommand& command) {
  const std::unique_ptr<ControlClient> client = Connect();
  if (client == nullptr) return kExitFailed;
  const base::Result<control::ListProfilesResponse> profiles = client->ListProfiles(command.limit);
  if (!profiles.ok()) return Fail(profiles.error().message);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::string text =
      command.output == Output::kJson
          ? ProfileJson(*profiles)
          : ProfileTable(*profiles, std::chrono::duration_cast<std::chrono::seconds>(now).count());
  std::fputs(text.c_str(), stdout);
  return 0;
}

int ProfileClear() {
  const std::unique_ptr<ControlClient> client = Connect();
  if (client == nullptr) return kExitFailed;
  const base::Result<control::ClearProfilesResponse> cleared = client->ClearProfiles();
  if (!cleared.ok()) return Fail(cleared.error().message);
  std::printf("%llu entries forgotten\n", static_cast<unsigned long long>(cleared->entries()));
  return 0;
}

}  // namespace rubato::cli
