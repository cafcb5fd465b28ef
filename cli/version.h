// The version of the project, from the root CMakeLists.txt.
#pragma once

namespace rubato::cli {

inline constexpr const char* kVersion = RUBATO_VERSION;

}  // namespace rubato::cli
