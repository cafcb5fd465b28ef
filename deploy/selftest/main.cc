// rubato-selftest: runs in a container that was given slots, as `helm test` starts it, and says of
// each link between the container and the GPU whether it holds, in the order in which they depend
// on each other: the preloaded shim, the attach socket, the driver, work on the GPU, the session,
// and the session in the scheduler's metrics under this pod's name. Ends with 1 if one does not.
//
// It is a GPU program like any other: it knows nothing of Rubato's parts but what anybody can see
// from outside, and calls the vendor's library through the loader, so it needs no vendor header.
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "deploy/selftest/http_get.h"

namespace rubato::selftest {
namespace {

constexpr char kSocket[] = "/run/rubato/attach.sock";
constexpr char kPreload[] = "/etc/ld.so.preload";
constexpr size_t kWords = 1 << 18;
constexpr uint32_t kPattern = 0x5275ba70;
constexpr int kTries = 60;  // One a second.

int failures = 0;

void Ok(const char* link, const std::string& what) {
  std::printf("ok      %-9s %s\n", link, what.c_str());
  std::fflush(stdout);
}
void Note(const char* link, const std::string& what) {
  std::printf("note    %-9s %s\n", link, what.c_str());
  std::fflush(stdout);
}
void Failed(const char* link, const std::string& what) {
  std::printf("FAILED  %-9s %s\n", link, what.c_str());
  std::fflush(stdout);
  ++failures;
}

std::string ReadAll(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string Gibibytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GiB", static_cast<double>(bytes) / (1u << 30));
  return text;
}

void CheckPreload() {
  const std::string maps = ReadAll("/proc/self/maps");
  const size_t at = maps.find("/librubato-");
  if (at != std::string::npos) {
    const size_t begin = maps.rfind(' ', at) + 1;
    return Ok("shim", maps.substr(begin, maps.find('\n', at) - begin) + " is loaded");
  }
  if (::access(kPreload, R_OK) != 0 && std::getenv("LD_PRELOAD") == nullptr)
    return Failed("shim", std::string(kPreload) +
                              " is not there: this container was given no slots, or its runtime "
                              "drops mounts");
  Failed("shim", "the loader did not take the library of " + std::string(kPreload) +
                     " (musl, a static program, or a C library before 2.28)");
}

void CheckSocket() {
  const char* given = std::getenv("RUBATO_SOCKET");  // By `rubato run`.
  const std::string path = given != nullptr ? given : kSocket;
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode))
    return Ok("socket", path + " is there");
  Failed("socket", path +
                       " is not there: the agent has not registered this container at the "
                       "scheduler; look at the agent's log");
}

template <typename Function>
bool Look(void* library, const char* name, Function* function) {
  void* address = ::dlsym(library, name);
  std::memcpy(function, &address, sizeof address);
  return address != nullptr;
}

// What both vendors' libraries can be asked for, under different names.
struct Gpu {
  const char* vendor = "";
  int (*init)(unsigned) = nullptr;
  int (*memory)(size_t*, size_t*) = nullptr;
  int (*synchronize)() = nullptr;
  void* library = nullptr;
};

std::string Code(const char* call, int code) {
  return std::string(call) + " gave error " + std::to_string(code);
}

// A context on the first GPU, memory filled by the GPU and read back. Empty: all well.
std::string WorkOnCuda(Gpu* gpu) {
  int (*device_get)(int*, int) = nullptr;
  int (*retain)(void**, int) = nullptr;
  int (*set_current)(void*) = nullptr;
  int (*allocate)(unsigned long long*, size_t) = nullptr;
  int (*fill)(unsigned long long, unsigned, size_t) = nullptr;
  int (*copy)(void*, unsigned long long, size_t) = nullptr;
  if (!Look(gpu->library, "cuInit", &gpu->init) ||
      !Look(gpu->library, "cuDeviceGet", &device_get) ||
      !Look(gpu->library, "cuDevicePrimaryCtxRetain", &retain) ||
      !Look(gpu->library, "cuCtxSetCurrent", &set_current) ||
      !Look(gpu->library, "cuMemAlloc_v2", &allocate) ||
      !Look(gpu->library, "cuMemsetD32_v2", &fill) ||
      !Look(gpu->library, "cuMemcpyDtoH_v2", &copy) ||
      !Look(gpu->library, "cuMemGetInfo_v2", &gpu->memory) ||
      !Look(gpu->library, "cuCtxSynchronize", &gpu->synchronize))
    return "libcuda.so.1 lacks a function of CUDA 12";
  int device = 0;
  void* context = nullptr;
  unsigned long long words = 0;
  std::vector<uint32_t> host(kWords);
  if (const int e = gpu->init(0); e != 0) return Code("cuInit", e);
  if (const int e = device_get(&device, 0); e != 0) return Code("cuDeviceGet", e);
  if (const int e = retain(&context, device); e != 0) return Code("cuDevicePrimaryCtxRetain", e);
  if (const int e = set_current(context); e != 0) return Code("cuCtxSetCurrent", e);
  if (const int e = allocate(&words, kWords * 4); e != 0) return Code("cuMemAlloc", e);
  if (const int e = fill(words, kPattern, kWords); e != 0) return Code("cuMemsetD32", e);
  if (const int e = copy(host.data(), words, kWords * 4); e != 0) return Code("cuMemcpyDtoH", e);
  for (const uint32_t word : host) {
    if (word != kPattern) return "the GPU's memory does not hold what was written to it";
  }
  return "";
}

std::string WorkOnHip(Gpu* gpu) {
  int (*allocate)(void**, size_t) = nullptr;
  int (*fill)(void*, int, size_t) = nullptr;
  int (*copy)(void*, const void*, size_t, int) = nullptr;
  constexpr int kDeviceToHost = 2;
  if (!Look(gpu->library, "hipInit", &gpu->init) || !Look(gpu->library, "hipMalloc", &allocate) ||
      !Look(gpu->library, "hipMemset", &fill) || !Look(gpu->library, "hipMemcpy", &copy) ||
      !Look(gpu->library, "hipMemGetInfo", &gpu->memory) ||
      !Look(gpu->library, "hipDeviceSynchronize", &gpu->synchronize))
    return "libamdhip64.so lacks a function of HIP";
  void* bytes = nullptr;
  std::vector<unsigned char> host(kWords);
  if (const int e = gpu->init(0); e != 0) return Code("hipInit", e);
  if (const int e = allocate(&bytes, kWords); e != 0) return Code("hipMalloc", e);
  if (const int e = fill(bytes, 0x5a, kWords); e != 0) return Code("hipMemset", e);
  if (const int e = copy(host.data(), bytes, kWords, kDeviceToHost); e != 0)
    return Code("hipMemcpy", e);
  for (const unsigned char byte : host) {
    if (byte != 0x5a) return "the GPU's memory does not hold what was written to it";
  }
  return "";
}

bool CheckGpu(Gpu* gpu) {
  std::string fault;
  gpu->library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (gpu->library != nullptr) {
    gpu->vendor = "CUDA";
  } else {
    const char* error = ::dlerror();
    fault = error != nullptr ? error : "";
    for (const char* name : {"libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"}) {
      if (gpu->library == nullptr) gpu->library = ::dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    }
    gpu->vendor = "HIP";
  }
  if (gpu->library == nullptr) {
    Failed("driver", "no driver library: " + fault +
                         "; the runtime injects it: check runtimeClassName and deviceInjection");
    return false;
  }
  Ok("driver", std::string(gpu->vendor) + "'s library loads");
  fault = std::strcmp(gpu->vendor, "CUDA") == 0 ? WorkOnCuda(gpu) : WorkOnHip(gpu);
  if (!fault.empty()) {
    Failed("work", fault);
    return false;
  }
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  if (gpu->memory(&free_bytes, &total_bytes) == 0) {
    Ok("work", "the GPU filled memory and gave it back; it shows " + Gibibytes(total_bytes) +
                   ", of which " + Gibibytes(free_bytes) + " free");
  } else {
    Failed("work", "the GPU's memory cannot be asked for");
  }
  return true;
}

void CheckSession() {
  // The scheduler's pages are named memory files, in every attached process.
  const std::string maps = ReadAll("/proc/self/maps");
  if (maps.find("memfd:rubato-slot") != std::string::npos)
    return Ok("session", "this process is attached to the scheduler");
  Failed("session",
         "this process is not attached: it ran without Rubato; look at the scheduler's "
         "log and at rubato_handshakes_refused_total");
}

// The line of this pod, if the page has one that counts a session.
bool HasSession(const std::string& page, const std::string& name_space, const std::string& pod,
                std::string* line) {
  std::istringstream lines(page);
  while (std::getline(lines, *line)) {
    if (line->rfind("rubato_sessions{", 0) != 0) continue;
    if (line->find("namespace=\"" + name_space + "\"") == std::string::npos ||
        line->find("pod=\"" + pod + "\"") == std::string::npos)
      continue;
    if (std::strtod(line->substr(line->rfind(' ') + 1).c_str(), nullptr) >= 1) return true;
  }
  return false;
}

void CheckMetrics(const std::string& service, const std::string& port, const std::string& pod) {
  std::string variable;
  for (const char c : service)
    variable += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  variable += "_SERVICE_HOST";
  const char* host = std::getenv(variable.c_str());
  const size_t slash = pod.find('/');
  if (host == nullptr || slash == std::string::npos)
    return Note("metrics", "not looked at: " + variable + " is not set here");
  std::string fault;
  std::string line;
  // The identity of a process may reach the scheduler a moment after it has attached.
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const auto page = HttpGet(host, port, "/metrics", &fault);
    if (page && HasSession(*page, pod.substr(0, slash), pod.substr(slash + 1), &line))
      return Ok("metrics", line);
    if (page) fault = "no rubato_sessions series names the pod " + pod;
    ::sleep(1);
  }
  Failed("metrics", fault);
}

int Main(int argc, char** argv) {
  std::string pod;
  std::string service;
  std::string port = "9412";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (name == "--pod") {
      pod = value;
    } else if (name == "--metrics-service") {
      service = value;
    } else if (name == "--metrics-port") {
      port = value;
    } else {
      std::printf(
          "usage: rubato-selftest [--pod=NAMESPACE/NAME] [--metrics-service=NAME] "
          "[--metrics-port=PORT]\n"
          "Says of each link between this container and its GPU whether it holds.\n");
      return argument == "--help" ? 0 : 2;
    }
  }
  CheckPreload();
  CheckSocket();
  Gpu gpu;
  if (CheckGpu(&gpu)) {
    CheckSession();
    if (!service.empty()) CheckMetrics(service, port, pod);
    (void)gpu.synchronize();
  }
  std::printf(failures == 0 ? "All links hold.\n" : "%d of the links do not hold.\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace rubato::selftest

int main(int argc, char** argv) {
  return rubato::selftest::Main(argc, argv);
}
