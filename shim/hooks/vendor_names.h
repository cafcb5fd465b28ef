// The names by which a vendor's libraries and functions are recognised.
#pragma once

namespace rubato::shim {

#if defined(RUBATO_VENDOR_CUDA)
inline constexpr const char* kVendorLibraries[] = {"libcuda.so.1"};
inline constexpr const char* kManagementLibraries[] = {"libnvidia-ml.so.1"};
// Followed by a capital letter: cuInit, but not cudaMalloc, cublasCreate or cudnnCreate.
inline constexpr const char* kVendorPrefixes[] = {"cu", "nvml"};
#else
// ROCm's soname changes with its major version. What the program has loaded comes first.
inline constexpr const char* kVendorLibraries[] = {"libamdhip64.so.7", "libamdhip64.so.6",
                                                   "libamdhip64.so.5", "libamdhip64.so"};
inline constexpr const char* kManagementLibraries[] = {"librocm_smi64.so"};  // No row uses it.
inline constexpr const char* kVendorPrefixes[] = {"hip"};
#endif

}  // namespace rubato::shim
