// The libamdhip64 stand-in, as HIP programs see it.
#ifndef __HIP_PLATFORM_AMD__
#define __HIP_PLATFORM_AMD__
#endif
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#include <hip/hip_runtime_api.h>
#pragma GCC diagnostic pop

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <string>
#include <vector>

#include "softgpu/hip/fat_binary.h"
#include "softgpu/programs/programs.h"
#include "tests/unit/softgpu/device_fixture.h"

extern "C" {
void** __hipRegisterFatBinary(const void* data);
void __hipRegisterFunction(void** modules, const void* host, char* stub, const char* name,
                           unsigned limit, void* tid, void* bid, void* block, void* grid,
                           int* wave);
void __hipUnregisterFatBinary(void** modules);
hipError_t hipGetProcAddress(const char* name, void** out, int version, uint64_t flags,
                             int* status);
}
hipError_t hipExtModuleLaunchKernel(hipFunction_t f, uint32_t tx, uint32_t ty, uint32_t tz,
                                    uint32_t bx, uint32_t by, uint32_t bz, size_t shared,
                                    hipStream_t stream, void** params, void** extra,
                                    hipEvent_t start, hipEvent_t stop, uint32_t flags);

namespace rubato::softgpu {
namespace {

#define OK(call) ASSERT_EQ(call, hipSuccess)

class HipTest : public DeviceTest {};

constexpr uint32_t kWords = 64;

uint32_t Mix(uint32_t x, uint32_t key, uint32_t index) {
  x ^= key;
  x *= 0x9E3779B1u;
  x ^= x >> 15;
  x *= 0x85EBCA77u;
  x ^= x >> 13;
  return x + index;
}

void HashStub() {}  // What a compiler makes of a __global__ function on the host.

TEST_F(HipTest, EveryWayToLaunchRunsTheSameKernel) {
  StartDevice();
  Run([] {
    // Before any other call, as a program's static constructors do.
    static const HipFatBinary binary{.image = kProgram};
    void** modules = __hipRegisterFatBinary(&binary);
    ASSERT_NE(modules, nullptr);
    char name[] = "rb_hash";
    __hipRegisterFunction(modules, reinterpret_cast<const void*>(&HashStub), name, name, 0, nullptr,
                          nullptr, nullptr, nullptr, nullptr);
    hipStream_t stream;
    OK(hipStreamCreateWithFlags(&stream, hipStreamNonBlocking));
    void* p;
    OK(hipMalloc(&p, kWords * 4));
    OK(hipMemsetD32Async(reinterpret_cast<hipDeviceptr_t>(p), 7, kWords, stream));
    uint32_t count = kWords, key = 1;
    uint64_t ns = 1000;
    void* args[] = {&p, &p, &count, &key, &ns};
    OK(hipLaunchKernel(reinterpret_cast<const void*>(&HashStub), dim3(1), dim3(64), args, 0,
                       stream));
    key = 2;
    hipModule_t module;
    hipFunction_t function;
    OK(hipModuleLoadData(&module, kProgram));
    OK(hipModuleGetFunction(&function, module, "rb_hash"));
    OK(hipModuleLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, args, nullptr));
    key = 3;
    hipEvent_t start, stop;
    OK(hipEventCreate(&start));
    OK(hipEventCreate(&stop));
    OK(hipExtModuleLaunchKernel(function, 64, 1, 1, 64, 1, 1, 0, stream, args, nullptr, start, stop,
                                0));
    key = 4;
    struct {
      void* out;
      void* in;
      uint32_t count, key;
      uint64_t ns;
    } packed{p, p, count, key, ns};
    size_t size = sizeof packed;
    void* extra[] = {HIP_LAUNCH_PARAM_BUFFER_POINTER, &packed, HIP_LAUNCH_PARAM_BUFFER_SIZE, &size,
                     HIP_LAUNCH_PARAM_END};
    OK(hipModuleLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, nullptr, extra));
    OK(hipStreamSynchronize(stream));
    float ms = -1;
    OK(hipEventElapsedTime(&ms, start, stop));
    EXPECT_GE(ms, 0.001f);
    std::vector<uint32_t> out(kWords);
    OK(hipMemcpy(out.data(), p, kWords * 4, hipMemcpyDeviceToHost));
    for (uint32_t i = 0; i < kWords; ++i) {
      uint32_t v = 7;
      for (uint32_t k = 1; k <= 4; ++k) v = Mix(v, k, i);
      ASSERT_EQ(out[i], v);
    }
    __hipUnregisterFatBinary(modules);
    EXPECT_NE(hipLaunchKernel(nullptr, dim3(1), dim3(64), args, 0, stream), hipSuccess);
    EXPECT_NE(hipGetLastError(), hipSuccess);
    EXPECT_EQ(hipGetLastError(), hipSuccess);
  });
}

TEST_F(HipTest, StreamWordsReachRegisteredMemory) {
  StartDevice();
  Run([] {
    auto* page = static_cast<volatile uint32_t*>(
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    OK(hipHostRegister(const_cast<uint32_t*>(page), 4096, hipHostRegisterMapped));
    void* device;
    OK(hipHostGetDevicePointer(&device, const_cast<uint32_t*>(page), 0));
    hipStream_t stream;
    OK(hipStreamCreate(&stream));
    OK(hipStreamWaitValue32(stream, device, 1, hipStreamWaitValueGte, 0xFFFFFFFF));
    OK(hipStreamWriteValue32(stream, static_cast<char*>(device) + 64, 9, 0));
    EXPECT_EQ(hipStreamQuery(stream), hipErrorNotReady);
    page[0] = 1;
    OK(hipStreamSynchronize(stream));
    EXPECT_EQ(page[16], 9u);
    OK(hipHostUnregister(const_cast<uint32_t*>(page)));
  });
}

TEST_F(HipTest, GraphsDevicesAndNames) {
  StartDevice();
  Run([] {
    int count = 0;
    OK(hipGetDeviceCount(&count));
    EXPECT_EQ(count, 1);
    hipDeviceProp_t prop;
    OK(hipGetDeviceProperties(&prop, 0));
    EXPECT_EQ(prop.multiProcessorCount, 132);
    size_t free_bytes = 0, total = 0;
    OK(hipMemGetInfo(&free_bytes, &total));
    EXPECT_EQ(total, prop.totalGlobalMem);
    EXPECT_STREQ(hipGetErrorName(hipErrorInvalidValue), "hipErrorInvalidValue");
    hipStream_t stream;
    OK(hipStreamCreateWithFlags(&stream, hipStreamNonBlocking));
    void* p;
    OK(hipMalloc(&p, 4096));
    OK(hipStreamBeginCapture(stream, hipStreamCaptureModeGlobal));
    OK(hipMemsetAsync(p, 3, 4096, stream));
    hipGraph_t graph;
    OK(hipStreamEndCapture(stream, &graph));
    hipGraphExec_t exec;
    OK(hipGraphInstantiate(&exec, graph, nullptr, nullptr, 0));
    OK(hipMemset(p, 1, 4096));
    OK(hipDeviceSynchronize());
    OK(hipGraphLaunch(exec, stream));
    OK(hipStreamSynchronize(stream));
    unsigned char byte = 0;
    OK(hipMemcpy(&byte, static_cast<char*>(p) + 4095, 1, hipMemcpyDeviceToHost));
    EXPECT_EQ(byte, 3);
    void* found = nullptr;
    int status = -1;
    OK(hipGetProcAddress("hipStreamSynchronize", &found, 60000, 0, &status));
    EXPECT_EQ(status, 0);
    EXPECT_NE(hipGetProcAddress("hipNoSuchCall", &found, 60000, 0, &status), hipSuccess);
    EXPECT_EQ(found, nullptr);
  });
}

}  // namespace
}  // namespace rubato::softgpu
