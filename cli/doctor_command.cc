// `rubato doctor`: tries what Rubato needs of this machine and names the cure for what is missing.
//
// Each check does the thing itself where it can (seals a memfd, preloads the libraries into a
// process) instead of reading version numbers. Everything that forks comes before the scheduler is
// asked, since that starts threads.
#include <errno.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <netinet/in.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <utility>

#include "base/shared_memory.h"
#include "base/unique_fd.h"
#include "cli/commands.h"
#include "cli/control_client.h"
#include "cli/doctor_report.h"
#include "cli/driver_probe.h"
#include "cli/environment.h"
#include "cli/mps_control.h"
#include "cli/scheduler_start.h"
#include "cli/subprocess.h"
#include "cli/version.h"

namespace rubato::cli {
namespace {

constexpr base::Nanos kProbeLimit = 15 * base::kSecond;
constexpr size_t kPageBytes = 4096;
constexpr uint16_t kMetricsPort = 9412;

class Findings {
 public:
  void Ok(std::string check, std::string detail) {
    Add({std::move(check), Verdict::kOk, std::move(detail), ""});
  }
  void Note(std::string check, std::string detail, std::string cure = "") {
    Add({std::move(check), Verdict::kNote, std::move(detail), std::move(cure)});
  }
  void Warn(std::string check, std::string detail, std::string cure) {
    Add({std::move(check), Verdict::kWarning, std::move(detail), std::move(cure)});
  }
  void Missing(std::string check, std::string detail, std::string cure) {
    Add({std::move(check), Verdict::kMissing, std::move(detail), std::move(cure)});
  }
  // Errors name their cure after a semicolon.
  void Missing(std::string check, const base::Error& error) {
    const size_t cut = error.message.rfind("; ");
    const bool has_cure = cut != std::string::npos;
    Missing(std::move(check), error.message.substr(0, cut),
            has_cure ? error.message.substr(cut + 2) : "");
  }
  const std::vector<Finding>& all() const { return all_; }

 private:
  void Add(Finding finding) { all_.push_back(std::move(finding)); }

  std::vector<Finding> all_;
};

void CheckKernel(Findings* findings) {
  const auto lacks = [findings](const std::string& what) {
    findings->Missing("kernel", what,
                      "use Linux 5.3 or later, and a container runtime whose "
                      "seccomp profile allows memfd_create and pidfd_open");
  };
  const base::Result<base::UniqueFd> memfd = base::MakeMemfd("rubato-doctor", kPageBytes);
  if (!memfd.ok()) return lacks("no memfd: " + memfd.error().message);
  const base::Result<void> size = base::SealSize(memfd->get());
  const base::Result<base::Mapping> mapping = base::Mapping::Writable(memfd->get(), kPageBytes);
  const base::Result<void> writers = base::SealAgainstWriters(memfd->get());
  if (!size.ok() || !mapping.ok() || !writers.ok() || !base::WritersAreSealed(memfd->get())) {
    return lacks("memfds cannot be sealed against future writers");
  }
  // The seal has to hold: the whole distrust between tenants stands on it.
  if (base::Mapping::Writable(memfd->get(), kPageBytes).ok()) {
    return lacks("a sealed memfd can still be mapped for writing");
  }
  const base::Result<ProgramOutput> child =
      RunProgram({"/proc/self/exe", "version"}, CurrentEnvironment(), "", kProbeLimit);
  if (!child.ok()) return lacks(child.error().message);
  findings->Ok("kernel", "sealed memfds and pidfds work");
}

void CheckRuntimeDir(const RuntimeDir& directory, Findings* findings) {
  if (!directory.Exists()) {
    std::string parent = directory.path().substr(0, directory.path().rfind('/'));
    if (parent.empty()) parent = "/";
    if (access(parent.c_str(), F_OK) != 0) parent = parent.substr(0, parent.rfind('/') + 1);
    if (access(parent.c_str(), W_OK | X_OK) != 0) {
      return findings->Missing("runtime-directory", "cannot be made in " + parent,
                               "set XDG_RUNTIME_DIR to a folder of yours");
    }
    return findings->Ok("runtime-directory", directory.path() + " (made at the first use)");
  }
  // The folder is there: this only checks it.
  const base::Result<void> usable = base::PrepareRuntimeDir(directory.path());
  if (!usable.ok()) {
    return findings->Missing("runtime-directory", usable.error().message,
                             "set XDG_RUNTIME_DIR to a folder of yours that others cannot enter");
  }
  findings->Ok("runtime-directory", directory.path());
}

void CheckShims(const InstallLayout& layout, Findings* findings) {
  const base::Result<std::vector<std::string>> shims = layout.Shims();
  if (!shims.ok()) {
    return findings->Missing("preloaded-libraries", shims.error());
  }
  for (const std::string& path : *shims) {
    if (path.find_first_of(" :") != std::string::npos) {
      return findings->Missing("preloaded-libraries",
                               path + " has a blank or a colon, which LD_PRELOAD cannot carry",
                               "move Rubato to another folder");
    }
    struct stat info;
    if (stat(path.c_str(), &info) == 0 && (info.st_mode & S_IROTH) == 0) {
      findings->Warn("preloaded-libraries", path + " cannot be read by other users",
                     "run `chmod a+r " + path + "` if programs of other users are to be tenants");
    }
  }
  findings->Ok("preloaded-libraries", shims->at(0) + ", " + shims->at(1));

  // The loader reports a library that it cannot preload, and goes on without it.
  const std::vector<std::string> environment =
      WithVariable(CurrentEnvironment(), "LD_PRELOAD", PrependPreload(*shims, ""));
  const base::Result<ProgramOutput> output =
      RunProgram({"/proc/self/exe", "version"}, environment, "", kProbeLimit);
  if (!output.ok()) {
    return findings->Missing("preloading", output.error().message,
                             "install the libraries that belong to this program");
  }
  if (output->exit_code != 0 || output->text.find("ld.so") != std::string::npos) {
    return findings->Missing(
        "preloading", "the loader refuses: " + output->text.substr(0, output->text.find('\n')),
        "install the libraries that belong to this machine and its libc");
  }
  if (getauxval(AT_SECURE) != 0) {
    return findings->Warn("preloading", "this program runs set-uid or with capabilities",
                          "run it as the user itself: LD_PRELOAD is ignored for such programs");
  }
  findings->Ok("preloading", "works for dynamically linked programs of glibc " +
                                 std::string(gnu_get_libc_version()) +
                                 "; not for set-uid, static or musl programs");
}

void CheckSchedulerProgram(const InstallLayout& layout, Findings* findings) {
  const base::Result<std::string> program = layout.Scheduler();
  if (!program.ok()) {
    return findings->Missing("scheduler-program", program.error());
  }
  const base::Result<ProgramOutput> output =
      RunProgram({*program, "--version"}, CurrentEnvironment(), "", kProbeLimit);
  if (!output.ok() || output->exit_code != 0) {
    return findings->Missing(
        "scheduler-program",
        *program + " does not run: " +
            (output.ok() ? output->text.substr(0, output->text.find('\n'))
                         : output.error().message),
        "install the libraries that it needs (`ldd " + *program + "` names them)");
  }
  if (output->text.find(kVersion) == std::string::npos) {
    return findings->Missing(
        "scheduler-program",
        *program + " is of another version: " + output->text.substr(0, output->text.find('\n')),
        std::string("install version ") + kVersion + " of both");
  }
  findings->Ok("scheduler-program", *program);
}

void CheckDeviceFiles(Findings* findings) {
  for (const char* path : {"/dev/nvidiactl", "/dev/nvidia-uvm"}) {
    if (access(path, R_OK | W_OK) == 0) continue;
    findings->Warn("device-files", std::string(path) + ": " + std::strerror(errno),
                   "load the kernel module (nvidia-smi does), or give this container the GPU");
    return;
  }
  findings->Ok("device-files", "/dev/nvidiactl and /dev/nvidia-uvm are open to us");
}

void CheckNvml(Findings* findings) {
  const NvmlProbe nvml = ProbeNvml(kProbeLimit);
  if (nvml.timed_out) {
    return findings->Missing("gpus", "NVML does not answer: a GPU or its driver hangs",
                             "look at `dmesg` for Xid lines, and at nvidia-smi");
  }
  if (!nvml.loads) {
    return findings->Warn("gpus", "libnvidia-ml.so.1 was not found: GPUs cannot be counted",
                          "give the container the utility capability of the driver");
  }
  if (nvml.error != 0) {
    return findings->Missing("gpus", "NVML fails with error " + std::to_string(nvml.error),
                             nvml.error == 18
                                 ? "the driver library and the kernel module differ: restart"
                                 : "look at what nvidia-smi says");
  }
  if (nvml.devices.empty()) {
    return findings->Missing("gpus", "no GPU", "give this machine or container a GPU");
  }
  std::string detail = std::to_string(nvml.devices.size()) + ": " + nvml.devices.front();
  if (nvml.devices.size() > 1) detail += ", ...";
  detail += "; driver " + nvml.driver_version;
  if (nvml.cuda_version != 0) {
    detail += ", CUDA " + std::to_string(nvml.cuda_version / 1000) + "." +
              std::to_string(nvml.cuda_version % 1000 / 10);
  }
  findings->Ok("gpus", detail);
}

void CheckDrivers(Findings* findings) {
  const LibraryProbe cuda = ProbeLibrary(kCudaDriverNames, kProbeLimit);
  const LibraryProbe hip = ProbeLibrary(kHipDriverNames, kProbeLimit);
  const auto report = [findings](const char* check, const LibraryProbe& probe, bool other) {
    if (probe.loads) {
      findings->Ok(check, probe.path + (IsSoftwareGpu(probe.path) ? " (software GPU)" : ""));
    } else if (probe.timed_out) {
      findings->Missing(check, probe.error, "look at `dmesg` for what the GPU says");
    } else if (other) {
      findings->Note(check, "none");
    } else {
      findings->Missing(check, probe.error,
                        "install the GPU's driver, or try the software GPU: put its lib/softgpu "
                        "first in LD_LIBRARY_PATH");
    }
  };
  report("cuda-driver", cuda, HipUsable(hip));
  if (hip.loads && !HipUsable(hip)) {
    findings->Note("hip-driver", hip.path + ", but no /dev/kfd: no AMD GPU");
  } else {
    report("hip-driver", hip, true);
  }
  if (!cuda.loads) return;
  if (!IsSoftwareGpu(cuda.path)) CheckDeviceFiles(findings);
  CheckNvml(findings);
}

void CheckMps(const RuntimeDir& directory, const InstallLayout& layout, bool needed,
              Findings* findings) {
  const auto report = [&](const std::string& what, const std::string& cure) {
    if (needed) {
      findings->Missing("mps", what, cure);
    } else {
      findings->Note("mps", what + " (only hybrid and mps need it)");
    }
  };
  const base::Result<MpsControl> mps = MpsControl::Find(directory, layout);
  if (!mps.ok()) return report(mps.error().message, "set RUBATO_MPS_CONTROL to its command");
  const std::string& program = mps->command().front();
  const base::Result<ProgramOutput> found = RunProgram(
      {"sh", "-c", "command -v -- \"$0\"", program}, CurrentEnvironment(), "", kProbeLimit);
  if (!found.ok() || found->exit_code != 0) {
    return report(program + " was not found",
                  "install it with the driver, or set RUBATO_MPS_CONTROL to its command");
  }
  findings->Ok("mps", program);
}

void CheckMetricsPort(Findings* findings) {
  const base::UniqueFd socket_fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(kMetricsPort);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int on = 1;
  setsockopt(socket_fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(socket_fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    return findings->Ok("metrics-port", "127.0.0.1:9412 is free");
  }
  findings->Warn("metrics-port", std::string("127.0.0.1:9412: ") + std::strerror(errno),
                 "set RUBATO_METRICS_ADDRESS to another address, for example 127.0.0.1:0");
}

void CheckRunningScheduler(const RuntimeDir& directory, Findings* findings) {
  const base::Result<control::GetStatusResponse> status =
      ControlClient::Make(directory)->GetStatus();
  if (!status.ok()) {
    return findings->Missing("scheduler", status.error().message,
                             "look at " + directory.scheduler_log());
  }
  const control::GetVersionResponse& scheduler = status->scheduler();
  if (const base::Result<void> same = CheckScheduler(scheduler, StartOptions{}); !same.ok()) {
    return findings->Missing("scheduler",
                             "version " + scheduler.version() + " runs, this is " + kVersion,
                             "run `rubato down`; the next `rubato up` starts the right one");
  }
  const std::string detail =
      "runs: pid " + std::to_string(scheduler.pid()) + ", mode " + NameOf(ModeOf(scheduler.mode()));
  if (scheduler.draining()) {
    findings->Warn("scheduler", detail + ", draining: it takes no new tenants",
                   "run `rubato down`, then `rubato up`");
  } else {
    findings->Ok("scheduler", detail);
  }
  if (status->mps().wanted() && !status->mps().healthy()) {
    findings->Missing("mps-daemon", "does not answer: " + status->mps().detail(),
                      "run `rubato down`, then `rubato up --mode " +
                          std::string(NameOf(ModeOf(scheduler.mode()))) + "`");
  }
}

}  // namespace

int Doctor(const DoctorCommand& command) {
  Findings findings;
  const base::Result<InstallLayout> layout = InstallLayout::Find();
  const base::Result<RuntimeDir> directory = RuntimeDir::Locate();
  CheckKernel(&findings);
  if (!layout.ok()) {
    findings.Missing("installation", layout.error().message, "mount /proc");
  } else {
    CheckShims(*layout, &findings);
    CheckSchedulerProgram(*layout, &findings);
  }
  CheckDrivers(&findings);
  if (!directory.ok()) {
    findings.Missing("runtime-directory", directory.error());
  } else {
    CheckRuntimeDir(*directory, &findings);
    if (layout.ok()) {
      CheckMps(*directory, *layout, command.mode != Mode::kTimeslice, &findings);
    }
    if (directory->Exists() && SchedulerListens(*directory)) {
      CheckRunningScheduler(*directory, &findings);
    } else {
      findings.Note("scheduler", "none runs; `rubato up` or the first `rubato run` starts one");
      CheckMetricsPort(&findings);
    }
  }
  const std::string text =
      command.output == Output::kJson ? DoctorJson(findings.all()) : DoctorTable(findings.all());
  std::fputs(text.c_str(), stdout);
  return Healthy(findings.all()) ? 0 : kExitFailed;
}

}  // namespace rubato::cli
