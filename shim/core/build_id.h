// Tells two builds of the shim apart: the first bytes of the build id that the linker put into this
// binary.
#pragma once

#include <cstdint>

namespace rubato::shim {

// 0 if the binary has no build id.
uint32_t ShimBuild();

}  // namespace rubato::shim
