// What the demo tenants need of a GPU: the driver found and asked for its functions as the CUDA
// runtime does it, one module, one context. Plain users of the driver API that know nothing of
// Rubato; they run on any GPU.
//
// Durations they are given are the device's. The software GPU may be dilated against real time;
// they divide what they measure by that factor (RUBATO_SOFTGPU_DILATION) and stretch what they wait
// for. On a real GPU it is 1.
#ifndef SOFTGPU_TENANTS_GPU_PROGRAM_H_
#define SOFTGPU_TENANTS_GPU_PROGRAM_H_

#include <cuda.h>

#include <cstdint>
#include <string>
#include <vector>

namespace rubato::softgpu {

// clang-format off
#define RUBATO_TENANT_CALLS(X)          \
  X(Init)                               \
  X(DeviceGet)                          \
  X(DevicePrimaryCtxRetain)             \
  X(CtxSetCurrent)                      \
  X(ModuleLoadData)                     \
  X(ModuleGetFunction)                  \
  X(MemAlloc)                           \
  X(MemFree)                            \
  X(MemHostAlloc)                       \
  X(MemFreeHost)                        \
  X(MemcpyHtoD)                         \
  X(MemcpyDtoH)                         \
  X(MemcpyHtoDAsync)                    \
  X(StreamCreateWithPriority)           \
  X(StreamSynchronize)                  \
  X(StreamWaitEvent)                    \
  X(StreamBeginCapture)                 \
  X(StreamEndCapture)                   \
  X(GraphInstantiateWithFlags)          \
  X(GraphLaunch)                        \
  X(LaunchKernel)                       \
  X(EventCreate)                        \
  X(EventRecord)                        \
  X(EventSynchronize)                   \
  X(EventDestroy)                       \
  X(GetErrorName)                       \
  X(CtxGetStreamPriorityRange)          \
  X(MemsetD32)
// clang-format on

struct GpuCalls {
#define RUBATO_DECLARE_CALL(name) decltype(&::cu##name) name = nullptr;
  // The header's macros give each name its newest form, and so does cuGetProcAddress at the
  // header's version.
  RUBATO_TENANT_CALLS(RUBATO_DECLARE_CALL)
#undef RUBATO_DECLARE_CALL
};

// Ends the program with a line on standard error if a call failed.
void Require(CUresult result, const char* what);

class GpuProgram {
 public:
  // Finds the driver and makes device 0 ready. `words` of device memory per stream, filled with a
  // fixed pattern.
  GpuProgram(uint32_t streams, uint32_t words, bool high_priority);

  const GpuCalls& calls() const { return calls_; }
  CUcontext context() const { return context_; }
  CUstream stream(uint32_t i) const { return streams_[i]; }
  CUdeviceptr buffer(uint32_t i) const { return buffers_[i]; }
  uint32_t streams() const { return static_cast<uint32_t>(streams_.size()); }

  // One kernel of `blocks` blocks of `ns` each that hashes the stream's buffer in place with `key`.
  void Launch(uint32_t stream, uint32_t blocks, uint32_t threads, uint32_t key, uint64_t ns);

  // Over all buffers, after waiting for all streams.
  std::string Checksum();

 private:
  GpuCalls calls_;
  CUcontext context_ = nullptr;
  CUmodule module_ = nullptr;
  CUfunction hash_ = nullptr;
  uint32_t words_;
  std::vector<CUstream> streams_;
  std::vector<CUdeviceptr> buffers_;
};

// Real nanoseconds per nanosecond of the device.
double Dilation();
int64_t NowNs();
// Sleeps, then spins for the last stretch, as periodic programs do.
void WaitUntilNs(int64_t at_ns);

// Reads "--name value" and "--name" flags; unknown ones end the program with status 2.
class Flags {
 public:
  Flags(int argc, char** argv, std::vector<std::string> known, const char* usage);
  bool Has(const std::string& name) const;
  double Number(const std::string& name, double fallback) const;

 private:
  std::vector<std::pair<std::string, std::string>> values_;
};

}  // namespace rubato::softgpu

#endif  // SOFTGPU_TENANTS_GPU_PROGRAM_H_
