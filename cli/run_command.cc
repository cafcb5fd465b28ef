// `rubato run`: registers a tenant, and runs the user's program with the shims loaded into it.
#include <stdlib.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/driver_probe.h"
#include "cli/environment.h"
#include "cli/foreground_child.h"
#include "cli/profile_report.h"
#include "cli/scheduler_start.h"

namespace rubato::cli {
namespace {

constexpr base::Nanos kProbeLimit = 20 * base::kSecond;

const char* NameOf(const RunCommand& command) {
  return command.profile ? "profile" : "run";
}

int Fail(const RunCommand& command, const std::string& message) {
  Complain(NameOf(command), message);
  return kExitRunFailed;
}

std::string BaseName(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

control::TenantSpec SpecOf(const RunCommand& command) {
  control::TenantSpec spec;
  const std::string name = command.name.empty() ? BaseName(command.argv.front()) : command.name;
  spec.set_name(name);
  spec.set_tenant_class(command.tenant_class == TenantClass::kRealtime
                            ? control::TENANT_CLASS_REALTIME
                            : control::TENANT_CLASS_BEST_EFFORT);
  spec.set_period_ns(command.period_ns);
  spec.set_deadline_ns(command.deadline_ns);
  spec.set_limit_bytes(command.limit_bytes);
  spec.set_weight(command.weight);
  spec.set_profile(command.profile);
  return spec;
}

// Empty if a GPU driver can be loaded; otherwise what is wrong and what to do.
std::string GpuProblem() {
  const LibraryProbe cuda = ProbeLibrary(kCudaDriverNames, kProbeLimit);
  if (cuda.loads) return "";
  const LibraryProbe hip = ProbeLibrary(kHipDriverNames, kProbeLimit);
  if (HipUsable(hip)) return "";
  if (cuda.timed_out || hip.timed_out) {
    return "the GPU driver library hangs when it is loaded; look at `dmesg` for what the GPU says";
  }
  return "no GPU driver was found (libcuda.so.1, or libamdhip64.so with /dev/kfd); install the "
         "driver, or use "
         "--no-gpu-check for a program that needs none";
}

}  // namespace

int Run(const RunCommand& command) {
  const base::Result<RuntimeDir> directory = RuntimeDir::Locate();
  if (!directory.ok()) return Fail(command, directory.error().message);
  const base::Result<InstallLayout> layout = InstallLayout::Find();
  if (!layout.ok()) return Fail(command, layout.error().message);
  const base::Result<std::vector<std::string>> shims = layout->Shims();
  if (!shims.ok()) return Fail(command, shims.error().message);
  for (const std::string& shim : *shims) {
    if (shim.find_first_of(" :") != std::string::npos) {
      return Fail(command,
                  "the path " + shim +
                      " has a blank or a colon, which LD_PRELOAD cannot carry; move Rubato");
    }
  }
  if (command.gpu_check) {
    if (const std::string problem = GpuProblem(); !problem.empty()) return Fail(command, problem);
  }
  const base::Result<RunningScheduler> running =
      EnsureScheduler(command.start, *directory, *layout);
  if (!running.ok()) return Fail(command, running.error().message);

  // From here on signals are read in Wait(), and threads may exist.
  base::Result<ForegroundChild> child = ForegroundChild::Prepare();
  if (!child.ok()) return Fail(command, child.error().message);
  const std::unique_ptr<ControlClient> client = ControlClient::Make(*directory);
  const base::Result<control::GetVersionResponse> scheduler = client->GetVersion();
  if (!scheduler.ok()) return Fail(command, scheduler.error().message);
  if (const base::Result<void> same = CheckScheduler(*scheduler, command.start); !same.ok()) {
    return Fail(command, same.error().message);
  }
  if (command.profile) {
    const base::Result<control::GetStatusResponse> status = client->GetStatus();
    if (!status.ok()) return Fail(command, status.error().message);
    if (const std::string others = ProgramsOn(*status); !others.empty()) {
      return Fail(command, "a program is measured alone, but " + others +
                               " runs; end it, or let it learn by itself under `rubato run`");
    }
  }
  const base::Result<std::unique_ptr<TenantHold>> hold =
      client->HoldTenant(SpecOf(command), command.require_class);
  if (!hold.ok()) return Fail(command, hold.error().message);
  const control::AdmissionDecision& admission = (*hold)->admission();
  if (admission.granted() != admission.asked()) {
    Complain(NameOf(command),
             "the program runs as best-effort: " + base::Printable(admission.detail()) +
                 "; see `rubato status` for who asks for what");
  }

  const char* preload = getenv("LD_PRELOAD");
  std::vector<std::string> environment = CurrentEnvironment();
  environment = WithVariable(std::move(environment), "LD_PRELOAD",
                             PrependPreload(*shims, preload != nullptr ? preload : ""));
  environment =
      WithVariable(std::move(environment), "RUBATO_SOCKET", (*hold)->attach_socket_path());
  const int error = child->Start(command.argv, environment);
  if (error == ENOENT) {
    Complain(NameOf(command), "there is no program '" + command.argv.front() +
                                  "'; check its name, its interpreter and PATH");
    return kExitNoProgram;
  }
  if (error != 0) {
    Complain(NameOf(command), "'" + command.argv.front() + "' cannot be executed (" +
                                  std::strerror(error) + "); check its permissions");
    return kExitNotExecutable;
  }
  const int exit_code = child->Wait();
  if (command.profile) {
    // Its tenant lives until the hold ends.
    const base::Result<control::GetStatusResponse> status = client->GetStatus();
    Complain("profile", status.ok() ? ProfileSummary(*status, (*hold)->attach_socket_path())
                                    : status.error().message);
  }
  return exit_code;
}

}  // namespace rubato::cli
