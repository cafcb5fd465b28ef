// The environment variables that the shim reads, all of them.
//
// Read once, when the process attaches: a program may change its environment at any time, and
// getenv beside setenv is a race that only the start of a process avoids. A set-uid program does
// not honour them, as it does not honour LD_PRELOAD.
#pragma once

#include <stdlib.h>

namespace rubato::shim {

// Path of the attach socket; set by `rubato run`. Containers use abi::kDefaultSocketPath.
inline const char* SocketVariable() {
  const char* path = secure_getenv("RUBATO_SOCKET");
  return path != nullptr && path[0] != '\0' ? path : nullptr;
}

inline bool Switched(const char* name) {
  const char* value = secure_getenv(name);
  return value != nullptr && value[0] != '\0' && !(value[0] == '0' && value[1] == '\0');
}

// 1: this program runs as without the shim.
inline bool DisableVariable() {
  return Switched("RUBATO_DISABLE");
}

// 1: say on stderr why a process does not attach, or is detached.
inline bool DebugVariable() {
  return Switched("RUBATO_SHIM_DEBUG");
}

}  // namespace rubato::shim
