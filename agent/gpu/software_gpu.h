// The software GPU as a source of GPUs: its stand-in for NVML, and its device process.
//
// On Kubernetes the device process is a pod of its own, so that it outlives the agent; elsewhere
// the stand-in starts one when nobody listens. Either way its socket is opened to containers of any
// user, since it is a GPU for everybody.
#pragma once

#include <string>

#include "agent/gpu/gpu_library.h"
#include "base/result.h"

namespace rubato::agent {

struct SoftwareGpuPlaces {
  std::string socket_dir;   // Holds device.sock.
  std::string library_dir;  // Holds libnvidia-ml.so.1 and the others.
  uint32_t devices = 1;
  // Start a device process where nobody listens. Not in a pod: there it would die with the agent,
  // and take the place of the one that is about to come.
  bool may_start = true;
};

// Sets the environment that the stand-in reads. Called once, before any thread starts.
base::Result<void> PrepareSoftwareGpu(const SoftwareGpuPlaces& places);

base::Result<std::unique_ptr<GpuLibrary>> OpenSoftwareGpu(const SoftwareGpuPlaces& places);

// Where the stand-ins are when nothing is configured: lib/softgpu or lib/rubato/softgpu beside the
// folder of the running program. Empty: neither is there.
std::string FindSoftwareGpuLibraries();

}  // namespace rubato::agent
