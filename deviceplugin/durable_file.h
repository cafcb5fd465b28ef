// Small files that survive a crash at any point: read whole, replaced whole.
//
// The calling thread waits for the disk, so the allocation store calls from a thread of its own.
#pragma once

#include <cstddef>
#include <string>

#include "base/result.h"

namespace rubato::deviceplugin {

// kNotFound: there is no such file. kFull: it has more than `most_bytes`.
base::Result<std::string> ReadWholeFile(const std::string& path, size_t most_bytes);

// After it returns without error, `path` holds `text`, also after a loss of power; until then what
// it held before. Mode 0600. Writes "<path>.tmp" on the way; one writer at a time.
base::Result<void> ReplaceFile(const std::string& path, const std::string& text);

// Makes a directory and its parents. Existing ones are left as they are; new ones get `mode`,
// whatever the umask.
base::Result<void> MakeDirectories(const std::string& path, unsigned mode);

}  // namespace rubato::deviceplugin
