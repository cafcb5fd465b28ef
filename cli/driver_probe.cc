#include "cli/driver_probe.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <sstream>

#include "base/clock.h"
#include "base/unique_fd.h"

namespace rubato::cli {
namespace {

constexpr size_t kMaxAnswerBytes = 64 * 1024;

struct Answer {
  bool complete = false;
  bool timed_out = false;
  std::string text;
};

void WriteAll(int fd, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t size = write(fd, text.data() + done, text.size() - done);
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) return;
    done += static_cast<size_t>(size);
  }
}

// What `question` returned in a forked child. The child leaves by _exit: no destructor of a vendor
// library, and none of ours, runs in it.
Answer AskInChild(base::Nanos time_limit, const std::function<std::string()>& question) {
  Answer answer;
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return answer;
  base::UniqueFd reader(pipe_fds[0]);
  base::UniqueFd writer(pipe_fds[1]);
  const pid_t pid = fork();
  if (pid < 0) return answer;
  if (pid == 0) {
    // Vendor libraries print to the terminal when they are unhappy; their word is not for users.
    const int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd >= 0) {
      dup2(null_fd, STDOUT_FILENO);
      dup2(null_fd, STDERR_FILENO);
    }
    WriteAll(writer.get(), question());
    _exit(0);
  }
  writer.Reset();
  const base::Nanos deadline = base::MonotonicNow() + time_limit;
  char buffer[4096];
  for (;;) {
    const base::Nanos left = deadline - base::MonotonicNow();
    pollfd waiting = {reader.get(), POLLIN, 0};
    const int ready = left <= 0 ? 0 : poll(&waiting, 1, static_cast<int>(left / 1000000 + 1));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      answer.timed_out = true;
      break;
    }
    const ssize_t size = read(reader.get(), buffer, sizeof(buffer));
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) break;
    answer.text.append(buffer, static_cast<size_t>(size));
    if (answer.text.size() > kMaxAnswerBytes) break;
  }
  kill(pid, SIGKILL);
  int status = 0;
  // A child that hangs inside the kernel cannot be killed; it is not waited for, and becomes
  // somebody else's when we end.
  const int flags = answer.timed_out ? WNOHANG : 0;
  while (waitpid(pid, &status, flags) < 0 && errno == EINTR) {
  }
  answer.complete = !answer.timed_out && answer.text.ends_with('\n');
  return answer;
}

std::string PathOf(void* handle) {
  const link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr) return "";
  return map->l_name;
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::string OneLine(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

template <typename Function>
Function Symbol(void* handle, const char* name) {
  return reinterpret_cast<Function>(dlsym(handle, name));
}

// The few calls of NVML that are needed, declared here: its header is not in every toolkit.
using NvmlDevice = struct NvmlDeviceOpaque*;
constexpr unsigned kNvmlTextBytes = 96;

std::string AskNvml() {
  void* handle = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return "missing\n";
  const auto init = Symbol<int (*)()>(handle, "nvmlInit_v2");
  const auto driver = Symbol<int (*)(char*, unsigned)>(handle, "nvmlSystemGetDriverVersion");
  const auto cuda = Symbol<int (*)(int*)>(handle, "nvmlSystemGetCudaDriverVersion_v2");
  const auto count = Symbol<int (*)(unsigned*)>(handle, "nvmlDeviceGetCount_v2");
  const auto by_index =
      Symbol<int (*)(unsigned, NvmlDevice*)>(handle, "nvmlDeviceGetHandleByIndex_v2");
  const auto name = Symbol<int (*)(NvmlDevice, char*, unsigned)>(handle, "nvmlDeviceGetName");
  if (init == nullptr || count == nullptr || by_index == nullptr || name == nullptr) {
    return "missing\n";
  }
  std::string text = "loads\n";
  const auto report = [&text](int error) { return text + "error " + std::to_string(error) + "\n"; };
  if (const int error = init(); error != 0) return report(error);
  char buffer[kNvmlTextBytes] = {};
  if (driver != nullptr && driver(buffer, sizeof(buffer)) == 0) {
    text += "driver " + OneLine(buffer) + "\n";
  }
  int cuda_version = 0;
  if (cuda != nullptr && cuda(&cuda_version) == 0) {
    text += "cuda " + std::to_string(cuda_version) + "\n";
  }
  unsigned devices = 0;
  if (const int error = count(&devices); error != 0) return report(error);
  for (unsigned i = 0; i < devices; ++i) {
    NvmlDevice device = nullptr;
    char device_name[kNvmlTextBytes] = {};
    if (by_index(i, &device) != 0 || name(device, device_name, sizeof(device_name)) != 0) {
      text += "device (does not answer)\n";
      continue;
    }
    text += "device " + OneLine(device_name) + "\n";
  }
  return text + "end\n";
}

}  // namespace

LibraryProbe ProbeLibrary(const std::vector<std::string>& names, base::Nanos time_limit) {
  const Answer answer = AskInChild(time_limit, [&names] {
    std::string error;
    for (const std::string& name : names) {
      void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) return "loads\n" + OneLine(PathOf(handle)) + "\n";
      const char* said = dlerror();
      if (error.empty() && said != nullptr) error = said;
    }
    return "fails\n" + OneLine(error) + "\n";
  });
  LibraryProbe probe;
  probe.timed_out = answer.timed_out;
  const std::vector<std::string> lines = Lines(answer.text);
  if (!answer.complete || lines.size() != 2) {
    probe.error =
        answer.timed_out ? "loading it did not end in time" : "loading it ended the process";
    return probe;
  }
  probe.loads = lines[0] == "loads";
  (probe.loads ? probe.path : probe.error) = lines[1];
  return probe;
}

NvmlProbe ProbeNvml(base::Nanos time_limit) {
  const Answer answer = AskInChild(time_limit, AskNvml);
  NvmlProbe probe;
  probe.timed_out = answer.timed_out;
  for (const std::string& line : Lines(answer.text)) {
    const size_t space = line.find(' ');
    const std::string word = line.substr(0, space);
    const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (word == "loads") probe.loads = true;
    if (word == "error") probe.error = std::atoi(rest.c_str());
    if (word == "driver") probe.driver_version = rest;
    if (word == "cuda") probe.cuda_version = std::atoi(rest.c_str());
    if (word == "device") probe.devices.push_back(rest);
  }
  return probe;
}

bool HipUsable(const LibraryProbe& hip) {
  return hip.loads && (IsSoftwareGpu(hip.path) || access("/dev/kfd", F_OK) == 0);
}

bool IsSoftwareGpu(std::string_view path) {
  return path.find("/softgpu/") != std::string_view::npos;
}

}  // namespace rubato::cli
