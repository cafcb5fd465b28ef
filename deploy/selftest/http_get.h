// One HTTP GET over plain TCP, for a metrics page: enough for a server of ours in the same cluster,
// and no more. Blocking, with a time limit on each step; single-threaded.
#pragma once

#include <optional>
#include <string>

namespace rubato::selftest {

// The body of a 200 answer; nothing, with `*fault` saying why, otherwise. `host` is an address.
std::optional<std::string> HttpGet(const std::string& host, const std::string& port,
                                   const std::string& path, std::string* fault);

}  // namespace rubato::selftest
