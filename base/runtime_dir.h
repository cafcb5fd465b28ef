// Where a scheduler and those who talk to it meet: the runtime directory and the names in it.
#pragma once

#include <string>

#include "base/result.h"

namespace rubato::base {

inline constexpr const char kControlSocketName[] = "control.sock";
inline constexpr const char kAttachDirectoryName[] = "attach";  // <token>/attach.sock per tenant.
inline constexpr const char kLockName[] = "scheduler.lock";     // flock of the running scheduler.
inline constexpr const char kMpsDirectoryName[] = "mps";  // Pipe directory, where one is made.

// RUBATO_RUNTIME_DIR if set, else $XDG_RUNTIME_DIR/rubato, else /run/user/<uid>/rubato if
// /run/user/<uid> exists, else /tmp/rubato-<uid>.
std::string DefaultRuntimeDir();

// Makes the directory (mode 0700; parents are not made) or checks that it belongs to this user,
// is a directory and no symbolic link, and is closed to others.
Result<void> PrepareRuntimeDir(const std::string& path);

}  // namespace rubato::base
