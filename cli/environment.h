// The environment that a tenant's program is started with, as a pure function of ours.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rubato::cli {

// "NAME=value" strings of this process.
std::vector<std::string> CurrentEnvironment();

// `environment` with `name` set to `value`; other entries keep their order.
std::vector<std::string> WithVariable(std::vector<std::string> environment, std::string_view name,
                                      std::string_view value);

// The value of LD_PRELOAD that loads `libraries` before what `previous` names. A library that
// `previous` names already is not repeated. The loader accepts spaces and colons between entries.
std::string PrependPreload(std::span<const std::string> libraries, std::string_view previous);

}  // namespace rubato::cli
