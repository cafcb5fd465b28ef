#include "cli/mps_control.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <utility>

#include "base/clock.h"
#include "cli/driver_probe.h"
#include "cli/environment.h"
#include "cli/subprocess.h"

namespace rubato::cli {
namespace {

constexpr const char* kNvidiaProgram = "nvidia-cuda-mps-control";
constexpr base::Nanos kAnswerLimit = 5 * base::kSecond;
constexpr base::Nanos kStartLimit = 20 * base::kSecond;
constexpr base::Nanos kProbeLimit = 10 * base::kSecond;
constexpr int kPauseMs = 20;

// The software GPU's program, seen from its libcuda.so.1 in <build>/lib/softgpu.
base::Result<std::string> SoftwareGpuProgram(const InstallLayout& layout,
                                             const std::string& library) {
  const std::string folder = library.substr(0, library.rfind('/'));
  for (const std::string& path :
       {layout.bin_dir + "/rubato-softgpu", folder + "/../../bin/rubato-softgpu"}) {
    if (access(path.c_str(), X_OK) == 0) return path;
  }
  return base::Error{base::ErrorCode::kNotFound,
                     "rubato-softgpu, which plays the MPS control daemon of the software GPU, was "
                     "not found; set RUBATO_MPS_CONTROL to its command"};
}

std::vector<std::string> Words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

base::Result<void> MakeFolder(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return base::SystemError("cannot make the directory " + path);
  }
  return {};
}

std::string FirstLine(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

}  // namespace

MpsControl::MpsControl(RuntimeDir directory, std::vector<std::string> command)
    : directory_(std::move(directory)), command_(std::move(command)) {}

base::Result<MpsControl> MpsControl::Find(const RuntimeDir& directory,
                                          const InstallLayout& layout) {
  if (const char* given = getenv("RUBATO_MPS_CONTROL"); given != nullptr && given[0] != '\0') {
    std::vector<std::string> words = Words(given);
    if (!words.empty()) return MpsControl(directory, std::move(words));
  }
  const LibraryProbe driver = ProbeLibrary(kCudaDriverNames, kProbeLimit);
  if (driver.loads && IsSoftwareGpu(driver.path)) {
    const base::Result<std::string> program = SoftwareGpuProgram(layout, driver.path);
    if (!program.ok()) return program.error();
    return MpsControl(directory, {*program, "--mps-control"});
  }
  return MpsControl(directory, {kNvidiaProgram});
}

base::Result<MpsControl> MpsControl::Started(const RuntimeDir& directory) {
  MpsControl control(directory, {});
  std::ifstream record(control.record_path());
  for (std::string word; std::getline(record, word);) control.command_.push_back(word);
  if (control.command_.empty()) {
    return base::Error{base::ErrorCode::kNotFound, "no MPS control daemon was started here"};
  }
  return control;
}

std::vector<std::string> MpsControl::Environment() const {
  return WithVariable(
      WithVariable(CurrentEnvironment(), "CUDA_MPS_PIPE_DIRECTORY", directory_.mps_pipe_dir()),
      "CUDA_MPS_LOG_DIRECTORY", directory_.mps_log_dir());
}

bool MpsControl::Answers() const {
  const base::Result<ProgramOutput> answer =
      RunProgram(command_, Environment(), "get_server_list\n", kAnswerLimit);
  return answer.ok() && answer->exit_code == 0;
}

base::Result<bool> MpsControl::Start() const {
  if (Answers()) return false;
  for (const std::string& folder : {directory_.mps_pipe_dir(), directory_.mps_log_dir()}) {
    if (const base::Result<void> made = MakeFolder(folder); !made.ok()) return made.error();
  }
  {
    std::ofstream record(record_path(), std::ios::trunc);
    for (const std::string& word : command_) record << word << '\n';
    record.close();
    if (!record) return base::SystemError("cannot write " + record_path());
  }
  std::vector<std::string> start = command_;
  start.push_back("-d");
  const base::Nanos deadline_ns = base::MonotonicNow() + kStartLimit;
  const base::Result<ProgramOutput> started = RunProgram(start, Environment(), "", kStartLimit);
  if (!started.ok()) return started.error();
  if (started->exit_code == 127) {
    return base::Error{base::ErrorCode::kNotFound,
                       command_[0] +
                           " was not found, which hybrid and mps need; install it with the NVIDIA "
                           "driver, or use --mode timeslice"};
  }
  if (started->exit_code != 0) {
    return base::Error{base::ErrorCode::kUnavailable,
                       "the MPS control daemon does not start: " + FirstLine(started->text) +
                           "; look at " + directory_.mps_log_dir() + ", or use --mode timeslice"};
  }
  while (!Answers()) {
    if (base::MonotonicNow() >= deadline_ns) {
      return base::Error{base::ErrorCode::kUnavailable,
                         "the MPS control daemon does not answer; look at " +
                             directory_.mps_log_dir() + ", or use --mode timeslice"};
    }
    poll(nullptr, 0, kPauseMs);
  }
  return true;
}

base::Result<void> MpsControl::Quit() const {
  const base::Nanos deadline_ns = base::MonotonicNow() + kStartLimit;
  const base::Result<ProgramOutput> quit =
      RunProgram(command_, Environment(), "quit\n", kStartLimit);
  if (!quit.ok()) return quit.error();
  while (Answers()) {
    if (base::MonotonicNow() >= deadline_ns) {
      return base::Error{
          base::ErrorCode::kUnavailable,
          "the MPS control daemon does not end; look at " + directory_.mps_log_dir()};
    }
    poll(nullptr, 0, kPauseMs);
  }
  unlink(record_path().c_str());
  return {};
}

}  // namespace rubato::cli
