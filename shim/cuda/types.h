// CUDA's types under the names that shim/hooks/hooks.def uses.
#pragma once

// All versions of all calls, each under its own name: no macro renames cuMemAlloc to cuMemAlloc_v2.
#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL
#endif
#include <cuda.h>

#include "shim/core/driver.h"
#include "shim/cuda/nvml.h"

namespace rubato::shim {

using Status = CUresult;
using Function = CUfunction;
using Stream = CUstream;
using Event = CUevent;
using Context = CUcontext;
using Module = CUmodule;
using Device = CUdevice;
using Graph = CUgraph;
using GraphNode = CUgraphNode;
using GraphEdge = CUgraphEdgeData;
using GraphExec = CUgraphExec;
using GraphUpdateResult = CUgraphExecUpdateResult;
using InstantiateParams = CUDA_GRAPH_INSTANTIATE_PARAMS;
using CaptureMode = CUstreamCaptureMode;
using DevicePtr = CUdeviceptr;
using DevicePtrV1 = CUdeviceptr_v1;
using HostSource = const void*;
using Value32 = unsigned;
using Array = CUarray;
using MipmappedArray = CUmipmappedArray;
using ArrayDescriptor = CUDA_ARRAY_DESCRIPTOR;
using Array3DDescriptor = CUDA_ARRAY3D_DESCRIPTOR;
using Copy2D = CUDA_MEMCPY2D;
using Copy3D = CUDA_MEMCPY3D;
using Pool = CUmemoryPool;
using PhysicalHandle = CUmemGenericAllocationHandle;
using PhysicalProperties = CUmemAllocationProp;
using FunctionLaunchParams = CUDA_LAUNCH_PARAMS;

inline constexpr Status kSuccess = CUDA_SUCCESS;
inline constexpr Status kOutOfMemory = CUDA_ERROR_OUT_OF_MEMORY;
// The library is not there, or has no such call.
inline constexpr Status kMissingLibrary = CUDA_ERROR_NO_DEVICE;
inline constexpr Status kMissingCall = CUDA_ERROR_NOT_SUPPORTED;

}  // namespace rubato::shim
