// HIP calls that distributions' headers do not declare yet, or only where per-thread default
// streams are asked for. A declaration that the header has as well must be the same, or nothing
// compiles.
//
// Structures that came with a call are declared here while the header is older than the call.
#pragma once

#include <hip/hip_runtime_api.h>

#include <hip/hip_ext.h>

#define RUBATO_HIP_HEADER (HIP_VERSION_MAJOR * 100 + HIP_VERSION_MINOR)

namespace rubato::shim {

#if RUBATO_HIP_HEADER >= 505
using FunctionLaunchParams = hipFunctionLaunchParams;
#else
struct FunctionLaunchParams {
  hipFunction_t function;
  unsigned gridDimX;
  unsigned gridDimY;
  unsigned gridDimZ;
  unsigned blockDimX;
  unsigned blockDimY;
  unsigned blockDimZ;
  unsigned sharedMemBytes;
  hipStream_t hStream;
  void** kernelParams;
};
#endif

#if RUBATO_HIP_HEADER >= 601
using InstantiateParams = hipGraphInstantiateParams;
using GraphEdge = hipGraphEdgeData;
#else
struct InstantiateParams;
struct GraphEdge;
#endif

#if RUBATO_HIP_HEADER >= 602
using ProcAddressResult = hipDriverProcAddressQueryResult;
#else
enum ProcAddressResult : int;
#endif

#if RUBATO_HIP_HEADER >= 605
using DriverLaunchConfig = HIP_LAUNCH_CONFIG;
using RuntimeLaunchConfig = hipLaunchConfig_t;
#else
struct LaunchAttribute;
struct DriverLaunchConfig {
  unsigned gridDimX;
  unsigned gridDimY;
  unsigned gridDimZ;
  unsigned blockDimX;
  unsigned blockDimY;
  unsigned blockDimZ;
  unsigned sharedMemBytes;
  hipStream_t hStream;
  LaunchAttribute* attrs;
  unsigned numAttrs;
};
struct RuntimeLaunchConfig {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  hipStream_t stream;
  LaunchAttribute* attrs;
  unsigned numAttrs;
};
#endif

}  // namespace rubato::shim

extern "C" {

hipError_t hipModuleLaunchCooperativeKernel(hipFunction_t f, unsigned gx, unsigned gy, unsigned gz,
                                            unsigned bx, unsigned by, unsigned bz, unsigned shared,
                                            hipStream_t stream, void** params);
hipError_t hipModuleLaunchCooperativeKernelMultiDevice(rubato::shim::FunctionLaunchParams* list,
                                                       unsigned count, unsigned flags);
// hipExtModuleLaunchKernel and hipHccModuleLaunchKernel, by the names of their symbols.
hipError_t
_Z24hipExtModuleLaunchKernelP18ihipModuleSymbol_tjjjjjjmP12ihipStream_tPPvS4_P11ihipEvent_tS6_j(
    hipFunction_t f, uint32_t wx, uint32_t wy, uint32_t wz, uint32_t bx, uint32_t by, uint32_t bz,
    size_t shared, hipStream_t stream, void** params, void** extra, hipEvent_t start,
    hipEvent_t stop, uint32_t flags);
hipError_t
_Z24hipHccModuleLaunchKernelP18ihipModuleSymbol_tjjjjjjmP12ihipStream_tPPvS4_P11ihipEvent_tS6_(
    hipFunction_t f, uint32_t wx, uint32_t wy, uint32_t wz, uint32_t bx, uint32_t by, uint32_t bz,
    size_t shared, hipStream_t stream, void** params, void** extra, hipEvent_t start,
    hipEvent_t stop);
hipError_t hipDrvLaunchKernelEx(const rubato::shim::DriverLaunchConfig* config, hipFunction_t f,
                                void** params, void** extra);
hipError_t hipLaunchKernelExC(const rubato::shim::RuntimeLaunchConfig* config, const void* f,
                              void** params);
hipError_t hipLaunchKernel_spt(const void* f, dim3 grid, dim3 block, void** params, size_t shared,
                               hipStream_t stream);
hipError_t hipLaunchCooperativeKernel_spt(const void* f, dim3 grid, dim3 block, void** params,
                                          uint32_t shared, hipStream_t stream);
hipError_t hipGraphLaunch_spt(hipGraphExec_t exec, hipStream_t stream);
hipError_t hipGraphInstantiateWithParams(hipGraphExec_t* exec, hipGraph_t graph,
                                         rubato::shim::InstantiateParams* params);

hipError_t hipMemcpy_spt(void* dst, const void* src, size_t bytes, hipMemcpyKind kind);
hipError_t hipMemcpyAsync_spt(void* dst, const void* src, size_t bytes, hipMemcpyKind kind,
                              hipStream_t stream);
hipError_t hipMemcpy2D_spt(void* dst, size_t dst_pitch, const void* src, size_t src_pitch,
                           size_t width, size_t height, hipMemcpyKind kind);
hipError_t hipMemcpy2DAsync_spt(void* dst, size_t dst_pitch, const void* src, size_t src_pitch,
                                size_t width, size_t height, hipMemcpyKind kind,
                                hipStream_t stream);
hipError_t hipMemcpy2DFromArray_spt(void* dst, size_t dst_pitch, hipArray_const_t src, size_t x,
                                    size_t y, size_t width, size_t height, hipMemcpyKind kind);
hipError_t hipMemcpy2DFromArrayAsync_spt(void* dst, size_t dst_pitch, hipArray_const_t src,
                                         size_t x, size_t y, size_t width, size_t height,
                                         hipMemcpyKind kind, hipStream_t stream);
hipError_t hipMemcpy2DToArray_spt(hipArray_t dst, size_t x, size_t y, const void* src,
                                  size_t src_pitch, size_t width, size_t height,
                                  hipMemcpyKind kind);
hipError_t hipMemcpy2DToArrayAsync_spt(hipArray_t dst, size_t x, size_t y, const void* src,
                                       size_t src_pitch, size_t width, size_t height,
                                       hipMemcpyKind kind, hipStream_t stream);
hipError_t hipMemcpyFromArray_spt(void* dst, hipArray_const_t src, size_t x, size_t y, size_t bytes,
                                  hipMemcpyKind kind);
hipError_t hipMemcpyFromSymbol_spt(void* dst, const void* symbol, size_t bytes, size_t offset,
                                   hipMemcpyKind kind);
hipError_t hipMemcpyFromSymbolAsync_spt(void* dst, const void* symbol, size_t bytes, size_t offset,
                                        hipMemcpyKind kind, hipStream_t stream);
hipError_t hipMemcpyToSymbol_spt(const void* symbol, const void* src, size_t bytes, size_t offset,
                                 hipMemcpyKind kind);
hipError_t hipMemcpyToSymbolAsync_spt(const void* symbol, const void* src, size_t bytes,
                                      size_t offset, hipMemcpyKind kind, hipStream_t stream);
hipError_t hipMemcpy3D_spt(const hipMemcpy3DParms* copy);
hipError_t hipMemcpy3DAsync_spt(const hipMemcpy3DParms* copy, hipStream_t stream);

hipError_t hipMemcpyDtoA(hipArray_t dst, size_t dst_offset, hipDeviceptr_t src, size_t bytes);
hipError_t hipMemcpyAtoD(hipDeviceptr_t dst, hipArray_t src, size_t src_offset, size_t bytes);
hipError_t hipMemcpyAtoA(hipArray_t dst, size_t dst_offset, hipArray_t src, size_t src_offset,
                         size_t bytes);
hipError_t hipMemcpyHtoAAsync(hipArray_t dst, size_t dst_offset, const void* src, size_t bytes,
                              hipStream_t stream);
hipError_t hipMemcpyAtoHAsync(void* dst, hipArray_t src, size_t src_offset, size_t bytes,
                              hipStream_t stream);

hipError_t hipMemsetD2D8(hipDeviceptr_t dst, size_t pitch, unsigned char value, size_t width,
                         size_t height);
hipError_t hipMemsetD2D16(hipDeviceptr_t dst, size_t pitch, unsigned short value, size_t width,
                          size_t height);
hipError_t hipMemsetD2D32(hipDeviceptr_t dst, size_t pitch, unsigned value, size_t width,
                          size_t height);
hipError_t hipMemsetD2D8Async(hipDeviceptr_t dst, size_t pitch, unsigned char value, size_t width,
                              size_t height, hipStream_t stream);
hipError_t hipMemsetD2D16Async(hipDeviceptr_t dst, size_t pitch, unsigned short value, size_t width,
                               size_t height, hipStream_t stream);
hipError_t hipMemsetD2D32Async(hipDeviceptr_t dst, size_t pitch, unsigned value, size_t width,
                               size_t height, hipStream_t stream);
hipError_t hipMemset_spt(void* dst, int value, size_t bytes);
hipError_t hipMemsetAsync_spt(void* dst, int value, size_t bytes, hipStream_t stream);
hipError_t hipMemset2D_spt(void* dst, size_t pitch, int value, size_t width, size_t height);
hipError_t hipMemset2DAsync_spt(void* dst, size_t pitch, int value, size_t width, size_t height,
                                hipStream_t stream);
hipError_t hipMemset3D_spt(hipPitchedPtr dst, int value, hipExtent extent);
hipError_t hipMemset3DAsync_spt(hipPitchedPtr dst, int value, hipExtent extent, hipStream_t stream);

hipError_t hipStreamSynchronize_spt(hipStream_t stream);
hipError_t hipStreamQuery_spt(hipStream_t stream);
hipError_t hipEventRecord_spt(hipEvent_t event, hipStream_t stream);
hipError_t hipEventRecordWithFlags(hipEvent_t event, hipStream_t stream, unsigned flags);
hipError_t hipStreamBeginCapture_spt(hipStream_t stream, hipStreamCaptureMode mode);
hipError_t hipStreamBeginCaptureToGraph(hipStream_t stream, hipGraph_t graph,
                                        const hipGraphNode_t* dependencies,
                                        const rubato::shim::GraphEdge* edges, size_t count,
                                        hipStreamCaptureMode mode);
hipError_t hipStreamEndCapture_spt(hipStream_t stream, hipGraph_t* graph);

hipError_t hipGetProcAddress(const char* symbol, void** function, int version, uint64_t flags,
                             rubato::shim::ProcAddressResult* result);
}
