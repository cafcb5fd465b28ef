#include "softgpu/tenants/gpu_program.h"

#include <dlfcn.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "softgpu/programs/programs.h"

namespace rubato::softgpu {

namespace {

decltype(&::cuGetErrorName) error_name = nullptr;

}  // namespace

void Require(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  const char* name = nullptr;
  if (error_name != nullptr) error_name(result, &name);
  fprintf(stderr, "%s failed: %s (%d)\n", what, name != nullptr ? name : "unknown error",
          static_cast<int>(result));
  exit(1);
}

GpuProgram::GpuProgram(uint32_t streams, uint32_t words, bool high_priority) : words_(words) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (driver == nullptr) {
    fprintf(stderr,
            "no CUDA driver: %s; install one, or put the software GPU's lib/softgpu on "
            "LD_LIBRARY_PATH\n",
            dlerror());
    exit(1);
  }
  const auto get = reinterpret_cast<CUresult (*)(const char*, void**, int, cuuint64_t,
                                                 CUdriverProcAddressQueryResult*)>(
      dlsym(driver, "cuGetProcAddress_v2"));
  if (get == nullptr) {
    fprintf(stderr,
            "the CUDA driver is too old: it has no cuGetProcAddress_v2; version 12.0 or later is "
            "needed\n");
    exit(1);
  }
#define RUBATO_FIND_CALL(name)                                                             \
  {                                                                                        \
    void* address = nullptr;                                                               \
    Require(get("cu" #name, &address, CUDA_VERSION, CU_GET_PROC_ADDRESS_DEFAULT, nullptr), \
            "looking up cu" #name);                                                        \
    std::memcpy(&calls_.name, &address, sizeof address);                                   \
  }
  RUBATO_TENANT_CALLS(RUBATO_FIND_CALL)
#undef RUBATO_FIND_CALL
  error_name = calls_.GetErrorName;
  Require(calls_.Init(0), "cuInit");
  CUdevice device;
  Require(calls_.DeviceGet(&device, 0), "cuDeviceGet");
  Require(calls_.DevicePrimaryCtxRetain(&context_, device), "cuDevicePrimaryCtxRetain");
  Require(calls_.CtxSetCurrent(context_), "cuCtxSetCurrent");
  Require(calls_.ModuleLoadData(&module_, kProgram), "cuModuleLoadData");
  Require(calls_.ModuleGetFunction(&hash_, module_, "rb_hash"), "cuModuleGetFunction");
  int least = 0, greatest = 0;
  Require(calls_.CtxGetStreamPriorityRange(&least, &greatest), "cuCtxGetStreamPriorityRange");
  std::vector<uint32_t> pattern(words);
  for (uint32_t i = 0; i < words; ++i) pattern[i] = i * 2654435761u;
  for (uint32_t i = 0; i < streams; ++i) {
    CUstream stream;
    CUdeviceptr buffer;
    Require(calls_.StreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING,
                                            high_priority ? greatest : least),
            "cuStreamCreateWithPriority");
    Require(calls_.MemAlloc(&buffer, size_t{words} * 4), "cuMemAlloc");
    Require(calls_.MemcpyHtoD(buffer, pattern.data(), size_t{words} * 4), "cuMemcpyHtoD");
    streams_.push_back(stream);
    buffers_.push_back(buffer);
  }
}

void GpuProgram::Launch(uint32_t stream, uint32_t blocks, uint32_t threads, uint32_t key,
                        uint64_t ns) {
  CUdeviceptr buffer = buffers_[stream];
  uint32_t count = words_;
  void* parameters[] = {&buffer, &buffer, &count, &key, &ns};
  Require(calls_.LaunchKernel(hash_, blocks, 1, 1, threads, 1, 1, 0, streams_[stream], parameters,
                              nullptr),
          "cuLaunchKernel");
}

std::string GpuProgram::Checksum() {
  uint64_t sum = 1469598103934665603ull;
  std::vector<uint32_t> words(words_);
  for (size_t i = 0; i < streams_.size(); ++i) {
    Require(calls_.StreamSynchronize(streams_[i]), "cuStreamSynchronize");
    Require(calls_.MemcpyDtoH(words.data(), buffers_[i], size_t{words_} * 4), "cuMemcpyDtoH");
    for (uint32_t word : words) sum = (sum ^ word) * 1099511628211ull;
  }
  char text[17];
  snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(sum));
  return text;
}

double Dilation() {
  const char* text = getenv("RUBATO_SOFTGPU_DILATION");
  const double value = text != nullptr ? strtod(text, nullptr) : 1.0;
  return value > 0 ? value : 1.0;
}

int64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
}

void WaitUntilNs(int64_t at_ns) {
  constexpr int64_t kSpinNs = 200'000;
  const int64_t sleep_until = at_ns - kSpinNs;
  if (NowNs() < sleep_until) {
    const timespec t{sleep_until / 1'000'000'000, sleep_until % 1'000'000'000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr) != 0) {
    }
  }
  while (NowNs() < at_ns) {
  }
}

Flags::Flags(int argc, char** argv, std::vector<std::string> known, const char* usage) {
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i], value;
    if (name == "--help") {
      printf("%s", usage);
      exit(0);
    }
    if (const size_t equals = name.find('='); equals != std::string::npos) {
      value = name.substr(equals + 1);
      name.resize(equals);
    }
    if (name.rfind("--", 0) != 0 ||
        std::find(known.begin(), known.end(), name.substr(2)) == known.end()) {
      fprintf(stderr, "%s: unknown argument %s; see --help\n", argv[0], argv[i]);
      exit(2);
    }
    if (value.empty() && i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0) value = argv[++i];
    values_.emplace_back(name.substr(2), value);
  }
}

bool Flags::Has(const std::string& name) const {
  return std::any_of(values_.begin(), values_.end(),
                     [&](const auto& v) { return v.first == name; });
}

double Flags::Number(const std::string& name, double fallback) const {
  for (const auto& [key, value] : values_) {
    if (key != name) continue;
    char* end = nullptr;
    const double number = strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0' || number < 0) {
      fprintf(stderr, "--%s needs a number, not '%s'\n", name.c_str(), value.c_str());
      exit(2);
    }
    return number;
  }
  return fallback;
}

}  // namespace rubato::softgpu
