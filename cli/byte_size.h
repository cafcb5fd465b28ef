// Amounts of memory as people write them on a command line, and as tables show them.
//
// Apart from base/time.h because only the command line speaks in sizes: every other border of the
// project carries plain bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace rubato::cli {

// "20GiB", "1.5 MiB", "64KB", "4096": binary units (KiB, MiB, GiB, TiB), decimal units (KB, MB, GB,
// TB), or plain bytes ("B" allowed); case is ignored. Fails on anything else, on zero and on
// amounts of 2^63 bytes and more.
base::Result<uint64_t> ParseByteSize(std::string_view text);

// "512 B", "1.5 GiB": three significant digits at most, for people.
std::string FormatByteSize(uint64_t bytes);

}  // namespace rubato::cli
