// The libnvidia-ml stand-in beside a program that uses the GPU.
#include <cuda.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "softgpu/nvml/nvml.h"
#include "softgpu/programs/programs.h"
#include "tests/unit/softgpu/device_fixture.h"

extern "C" {
nvmlReturn_t nvmlInit_v2();
nvmlReturn_t nvmlShutdown();
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned*);
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned, nvmlDevice_t*);
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char*, nvmlDevice_t*);
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char*, nvmlDevice_t*);
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t, char*, unsigned);
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t, char*, unsigned);
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t, nvmlPciInfo_t*);
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t, nvmlMemory_t*);
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t, nvmlMemory_v2_t*);
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t, nvmlUtilization_t*);
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t, unsigned*, nvmlProcessInfo_t*);
nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t, int, unsigned*);
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t, unsigned*, unsigned*);
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int*);
}

namespace rubato::softgpu {
namespace {

#define OK(call) ASSERT_EQ(call, NVML_SUCCESS)

class NvmlTest : public DeviceTest {};

TEST_F(NvmlTest, NeedsInitialising) {
  StartDevice();
  Run([] {
    unsigned count;
    EXPECT_EQ(nvmlDeviceGetCount_v2(&count), NVML_ERROR_UNINITIALIZED);
    EXPECT_EQ(nvmlShutdown(), NVML_ERROR_UNINITIALIZED);
    OK(nvmlInit_v2());
    OK(nvmlShutdown());
    EXPECT_EQ(nvmlDeviceGetCount_v2(&count), NVML_ERROR_UNINITIALIZED);
  });
}

TEST_F(NvmlTest, NamesDevicesInEveryWay) {
  Set("DEVICES", "3");
  StartDevice();
  Run([] {
    OK(nvmlInit_v2());
    unsigned count = 0;
    OK(nvmlDeviceGetCount_v2(&count));
    EXPECT_EQ(count, 3u);
    nvmlDevice_t device = nullptr, same = nullptr;
    OK(nvmlDeviceGetHandleByIndex_v2(2, &device));
    EXPECT_EQ(nvmlDeviceGetHandleByIndex_v2(3, &same), NVML_ERROR_INVALID_ARGUMENT);
    char uuid[96], name[96];
    OK(nvmlDeviceGetUUID(device, uuid, sizeof uuid));
    EXPECT_EQ(nvmlDeviceGetUUID(device, uuid, 10), NVML_ERROR_INSUFFICIENT_SIZE);
    OK(nvmlDeviceGetHandleByUUID(uuid, &same));
    EXPECT_EQ(same, device);
    nvmlPciInfo_t pci;
    OK(nvmlDeviceGetPciInfo_v3(device, &pci));
    OK(nvmlDeviceGetHandleByPciBusId_v2(pci.busId, &same));
    EXPECT_EQ(same, device);
    EXPECT_EQ(nvmlDeviceGetHandleByUUID("GPU-none", &same), NVML_ERROR_NOT_FOUND);
    OK(nvmlDeviceGetName(device, name, sizeof name));
    // The driver names the same device the same way.
    ASSERT_EQ(cuInit(0), CUDA_SUCCESS);
    CUuuid driver;
    ASSERT_EQ(cuDeviceGetUuid_v2(&driver, 2), CUDA_SUCCESS);
    char text[41];
    const auto* u = reinterpret_cast<const unsigned char*>(driver.bytes);
    snprintf(text, sizeof text,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
    EXPECT_STREQ(text, uuid);
    unsigned current = 9, pending = 9;
    OK(nvmlDeviceGetMigMode(device, &current, &pending));
    EXPECT_EQ(current + pending, 0u);
  });
}

TEST_F(NvmlTest, SeesWhoUsesTheDevice) {
  StartDevice();
  Run([] {
    OK(nvmlInit_v2());
    nvmlDevice_t device;
    OK(nvmlDeviceGetHandleByIndex_v2(0, &device));
    unsigned count = 0;
    OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, nullptr));
    EXPECT_EQ(count, 0u);
    nvmlUtilization_t use{};
    OK(nvmlDeviceGetUtilizationRates(device, &use));
    CUcontext context;
    CUmodule module;
    CUfunction spin;
    CUdeviceptr p;
    ASSERT_EQ(cuInit(0), CUDA_SUCCESS);
    ASSERT_EQ(cuCtxCreate(&context, nullptr, 0, 0), CUDA_SUCCESS);
    ASSERT_EQ(cuMemAlloc(&p, 1 << 20), CUDA_SUCCESS);
    OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, nullptr) ==
               NVML_ERROR_INSUFFICIENT_SIZE
           ? 0
           : 1);
    ASSERT_EQ(count, 1u);
    nvmlProcessInfo_t info;
    OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, &info));
    EXPECT_EQ(info.pid, static_cast<unsigned>(getpid()));
    EXPECT_EQ(info.usedGpuMemory, 1u << 20);
    nvmlMemory_t memory;
    OK(nvmlDeviceGetMemoryInfo(device, &memory));
    EXPECT_EQ(memory.used, 1u << 20);
    nvmlMemory_v2_t newer{};
    EXPECT_EQ(nvmlDeviceGetMemoryInfo_v2(device, &newer), NVML_ERROR_INVALID_ARGUMENT);
    newer.version = sizeof newer | 2u << 24;
    OK(nvmlDeviceGetMemoryInfo_v2(device, &newer));
    EXPECT_EQ(newer.used, 1u << 20);
    // Kernels all the time between two questions.
    ASSERT_EQ(cuModuleLoadData(&module, kProgram), CUDA_SUCCESS);
    ASSERT_EQ(cuModuleGetFunction(&spin, module, "rb_spin"), CUDA_SUCCESS);
    uint64_t ns = 5'000'000;
    void* args[] = {&ns};
    for (int i = 0; i < 20; ++i) {
      ASSERT_EQ(cuLaunchKernel(spin, 1, 1, 1, 32, 1, 1, 0, nullptr, args, nullptr), CUDA_SUCCESS);
    }
    EXPECT_TRUE(Eventually([&] {
      return nvmlDeviceGetUtilizationRates(device, &use) == NVML_SUCCESS && use.gpu > 90;
    }));
    ASSERT_EQ(cuCtxSynchronize(), CUDA_SUCCESS);
    EXPECT_TRUE(Eventually([&] {
      return nvmlDeviceGetUtilizationRates(device, &use) == NVML_SUCCESS && use.gpu == 0;
    }));
    unsigned mhz = 0;
    OK(nvmlDeviceGetClockInfo(device, 1, &mhz));
    EXPECT_EQ(mhz, 1980u);
  });
}

}  // namespace
}  // namespace rubato::softgpu
