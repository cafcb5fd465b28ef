// What the machine offers a GPU program: which driver libraries load, and what NVML says.
//
// Vendor libraries run arbitrary code when they are loaded and may hang when a GPU is unwell, so
// each question is asked in a forked child that is killed when its time is up. Nothing is loaded
// into the calling process. Call before threads exist: the child runs ordinary code after fork.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/time.h"

namespace rubato::cli {

struct LibraryProbe {
  bool loads = false;
  bool timed_out = false;
  std::string path;   // Where the loader found it.
  std::string error;  // What the loader said, if it does not load.
};

// Loads the first of `names` that can be loaded, without calling anything in it.
LibraryProbe ProbeLibrary(const std::vector<std::string>& names, base::Nanos time_limit);

inline const std::vector<std::string> kCudaDriverNames = {"libcuda.so.1"};
inline const std::vector<std::string> kHipDriverNames = {"libamdhip64.so.6", "libamdhip64.so.5",
                                                         "libamdhip64.so"};

struct NvmlProbe {
  bool loads = false;
  bool timed_out = false;
  int error = 0;  // NVML's return code of the first call that failed; 0 if none did.
  std::string driver_version;
  int cuda_version = 0;              // As the driver reports it: 13000 is 13.0.
  std::vector<std::string> devices;  // One name per GPU.
};

NvmlProbe ProbeNvml(base::Nanos time_limit);

// True if a HIP program could find a GPU. The library alone says little: distributions ship it
// without a GPU's driver, which is what makes /dev/kfd.
bool HipUsable(const LibraryProbe& hip);

// True if the driver library at `path` is the software GPU's stand-in.
bool IsSoftwareGpu(std::string_view path);

}  // namespace rubato::cli
