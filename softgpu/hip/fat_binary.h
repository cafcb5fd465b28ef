// What a compiled HIP program hands to __hipRegisterFatBinary: a wrapper around its device code.
// For the software GPU that code is annotated PTX text (softgpu/programs); tests and programs build
// the wrapper by hand.
#ifndef SOFTGPU_HIP_FAT_BINARY_H_
#define SOFTGPU_HIP_FAT_BINARY_H_

#include <cstdint>

namespace rubato::softgpu {

inline constexpr uint32_t kHipFatMagic = 0x48495046;

struct HipFatBinary {
  uint32_t magic = kHipFatMagic;
  uint32_t version = 1;
  const void* image = nullptr;
  const void* reserved = nullptr;
};

}  // namespace rubato::softgpu

#endif  // SOFTGPU_HIP_FAT_BINARY_H_
