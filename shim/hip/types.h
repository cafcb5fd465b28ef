// HIP's types under the names that shim/hooks/hooks.def uses.
#pragma once

#include "shim/core/driver.h"
#include "shim/hip/newer.h"

namespace rubato::shim {

using Status = hipError_t;
using Function = hipFunction_t;
using Stream = hipStream_t;
using Event = hipEvent_t;
using Context = hipCtx_t;
using Module = hipModule_t;
using Device = hipDevice_t;
using Graph = hipGraph_t;
using GraphNode = hipGraphNode_t;
using GraphExec = hipGraphExec_t;
using GraphUpdateResult = hipGraphExecUpdateResult;
using CaptureMode = hipStreamCaptureMode;
using DevicePtr = hipDeviceptr_t;
// The host's side of a copy to the device is const since ROCm 7.
#if HIP_VERSION_MAJOR >= 7
using HostSource = const void*;
#else
using HostSource = void*;
#endif
using Value32 = int;
using Array = hipArray_t;
using ArraySource = hipArray_const_t;
using MipmappedArray = hipMipmappedArray_t;
using ArrayDescriptor = HIP_ARRAY_DESCRIPTOR;
using Array3DDescriptor = HIP_ARRAY3D_DESCRIPTOR;
using Copy2D = hip_Memcpy2D;
using Copy3D = HIP_MEMCPY3D;
using Pool = hipMemPool_t;
using PhysicalHandle = hipMemGenericAllocationHandle_t;
using PhysicalProperties = hipMemAllocationProp;

inline constexpr Status kSuccess = hipSuccess;
inline constexpr Status kOutOfMemory = hipErrorOutOfMemory;
// The library is not there, or has no such call.
inline constexpr Status kMissingLibrary = hipErrorNoDevice;
inline constexpr Status kMissingCall = hipErrorNotSupported;

}  // namespace rubato::shim
