// The driver as the test programs see it: resolved at run time like the vendor's runtime does, one
// context, one module of three kernels. They know nothing of Rubato.
//
// Any unexpected error ends the program with exit code 3 and a line on stderr, so that a test sees
// it as itself and not as a missing result.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rubato::test_tenant {

#define RUBATO_TENANT_CALLS(X)   \
  X(Init)                        \
  X(DriverGetVersion)            \
  X(DeviceGet)                   \
  X(DeviceGetCount)              \
  X(DevicePrimaryCtxRetain)      \
  X(CtxSetCurrent)               \
  X(CtxSynchronize)              \
  X(ModuleLoadData)              \
  X(ModuleGetFunction)           \
  X(MemAlloc)                    \
  X(MemFree)                     \
  X(MemAllocAsync)               \
  X(MemFreeAsync)                \
  X(MemAllocManaged)             \
  X(MemAllocPitch)               \
  X(MemCreate)                   \
  X(MemRelease)                  \
  X(MemGetAllocationGranularity) \
  X(MemGetInfo)                  \
  X(MemcpyHtoD)                  \
  X(MemcpyDtoH)                  \
  X(MemcpyHtoDAsync)             \
  X(MemcpyDtoHAsync)             \
  X(MemcpyDtoDAsync)             \
  X(MemsetD32Async)              \
  X(LaunchKernel)                \
  X(LaunchKernelEx)              \
  X(StreamCreate)                \
  X(StreamDestroy)               \
  X(StreamSynchronize)           \
  X(StreamWaitEvent)             \
  X(StreamQuery)                 \
  X(StreamBeginCapture)          \
  X(StreamEndCapture)            \
  X(StreamIsCapturing)           \
  X(EventCreate)                 \
  X(EventRecord)                 \
  X(EventSynchronize)            \
  X(EventDestroy)                \
  X(GraphCreate)                 \
  X(GraphAddKernelNode)          \
  X(GraphInstantiateWithFlags)   \
  X(GraphLaunch)                 \
  X(GraphExecDestroy)            \
  X(GraphDestroy)                \
  X(GetErrorName)

struct Calls {
#define RUBATO_TENANT_MEMBER(name) decltype(&cu##name) name = nullptr;
  RUBATO_TENANT_CALLS(RUBATO_TENANT_MEMBER)
#undef RUBATO_TENANT_MEMBER
};

class Gpu {
 public:
  // Loads the driver, makes the primary context of device 0 current, loads the kernels. With
  // `per_thread`, the calls are those of a program built for per-thread default streams.
  static const Gpu& Open(bool per_thread = false);

  const Calls& call() const { return calls_; }
  void MakeCurrent() const;

  // `words` words of device memory, set to their index.
  CUdeviceptr Words(size_t words) const;
  std::vector<uint32_t> Read(CUdeviceptr from, size_t words) const;

  // In place, over `words` words: each becomes a hash of itself, its index and `key`, after one
  // block has run for `block_ns` of the device's time.
  void Hash(CUstream stream, CUdeviceptr data, uint64_t words, uint64_t key, uint64_t block_ns,
            unsigned blocks = 1) const;
  CUfunction hash() const { return hash_; }

 private:
  Gpu() = default;

  Calls calls_;
  CUcontext context_ = nullptr;
  CUfunction hash_ = nullptr;
};

// Ends the program unless `result` is CUDA_SUCCESS.
void Check(CUresult result, const char* what);

// FNV-1a of the words: what two runs must agree on.
uint64_t Checksum(const std::vector<uint32_t>& words);

int64_t NowNs();

// The value of "--name" in the arguments, else `otherwise`.
int64_t Option(int argc, char** argv, const char* name, int64_t otherwise);

int Periodic(int argc, char** argv);
int Flood(int argc, char** argv);
int Workload(int argc, char** argv);
int Memory(int argc, char** argv);
int Forker(int argc, char** argv);

}  // namespace rubato::test_tenant
