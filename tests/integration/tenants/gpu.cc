#include "tests/integration/tenants/gpu.h"

#include <dlfcn.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace rubato::test_tenant {
namespace {

// For the software GPU the lines that start with //softgpu say what a kernel does; its body is
// nothing to a real driver, which these programs are not meant for.
constexpr char kModule[] = R"(
.version 6.0
.target sm_60
.address_size 64

//softgpu kernel=hash op=hash out=p0 in=p0 count=p1 key=p2 block_ns=p3
.visible .entry hash(.param .u64 data, .param .u64 words, .param .u64 key, .param .u64 block_ns)
{
  ret;
}
)";

// The signatures in use are those of this version: some names got another one later.
constexpr int kDriverVersion = 12000;

using GetProcAddress = CUresult (*)(const char*, void**, int, cuuint64_t,
                                    CUdriverProcAddressQueryResult*);

}  // namespace

void Check(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  std::fprintf(stderr, "test tenant: %s failed with %d\n", what, static_cast<int>(result));
  std::exit(3);
}

const Gpu& Gpu::Open(bool per_thread) {
  static Gpu gpus[2];
  static bool opened[2];
  Gpu& gpu = gpus[per_thread ? 1 : 0];
  if (opened[per_thread ? 1 : 0]) return gpu;
  opened[per_thread ? 1 : 0] = true;
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "test tenant: %s\n", dlerror());
    std::exit(3);
  }
  const auto get = reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"));
  if (get == nullptr) {
    std::fprintf(stderr, "test tenant: no cuGetProcAddress_v2\n");
    std::exit(3);
  }
  const cuuint64_t flags = per_thread ? CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM
                                      : CU_GET_PROC_ADDRESS_LEGACY_STREAM;
  const auto resolve = [&](const char* name, void** address) {
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    const CUresult result = get(name, address, kDriverVersion, flags, &found);
    if (result != CUDA_SUCCESS || *address == nullptr) {
      std::fprintf(stderr, "test tenant: the driver has no %s\n", name);
      std::exit(3);
    }
  };
#define RUBATO_TENANT_RESOLVE(name) resolve("cu" #name, reinterpret_cast<void**>(&gpu.calls_.name));
  RUBATO_TENANT_CALLS(RUBATO_TENANT_RESOLVE)
#undef RUBATO_TENANT_RESOLVE

  Check(gpu.calls_.Init(0), "cuInit");
  CUdevice device = 0;
  Check(gpu.calls_.DeviceGet(&device, 0), "cuDeviceGet");
  Check(gpu.calls_.DevicePrimaryCtxRetain(&gpu.context_, device), "cuDevicePrimaryCtxRetain");
  gpu.MakeCurrent();
  CUmodule module = nullptr;
  Check(gpu.calls_.ModuleLoadData(&module, kModule), "cuModuleLoadData");
  Check(gpu.calls_.ModuleGetFunction(&gpu.hash_, module, "hash"), "cuModuleGetFunction");
  return gpu;
}

void Gpu::MakeCurrent() const {
  Check(calls_.CtxSetCurrent(context_), "cuCtxSetCurrent");
}

CUdeviceptr Gpu::Words(size_t words) const {
  CUdeviceptr data = 0;
  Check(calls_.MemAlloc(&data, words * sizeof(uint32_t)), "cuMemAlloc");
  std::vector<uint32_t> initial(words);
  for (size_t i = 0; i < words; ++i) initial[i] = static_cast<uint32_t>(i);
  Check(calls_.MemcpyHtoD(data, initial.data(), words * sizeof(uint32_t)), "cuMemcpyHtoD");
  return data;
}

std::vector<uint32_t> Gpu::Read(CUdeviceptr from, size_t words) const {
  std::vector<uint32_t> values(words);
  Check(calls_.MemcpyDtoH(values.data(), from, words * sizeof(uint32_t)), "cuMemcpyDtoH");
  return values;
}

void Gpu::Hash(CUstream stream, CUdeviceptr data, uint64_t words, uint64_t key, uint64_t block_ns,
               unsigned blocks) const {
  void* parameters[] = {&data, &words, &key, &block_ns};
  Check(calls_.LaunchKernel(hash_, blocks, 1, 1, 32, 1, 1, 0, stream, parameters, nullptr),
        "cuLaunchKernel");
}

uint64_t Checksum(const std::vector<uint32_t>& words) {
  uint64_t sum = 0xcbf29ce484222325ull;
  for (const uint32_t word : words) {
    for (int shift = 0; shift < 32; shift += 8) {
      sum = (sum ^ ((word >> shift) & 0xff)) * 0x100000001b3ull;
    }
  }
  return sum;
}

int64_t NowNs() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

int64_t Option(int argc, char** argv, const char* name, int64_t otherwise) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], name) == 0) return std::strtoll(argv[i + 1], nullptr, 10);
  }
  return otherwise;
}

}  // namespace rubato::test_tenant
