// From flags, environment and file to a Config: flag before environment before file before default.
// Every error names its place (file and line, variable, flag) and, for an unknown key, the key that
// was probably meant.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent/config/config.h"
#include "base/result.h"

namespace rubato::agent {

struct ConfigSources {
  std::string path;                                        // Of the file; empty: none.
  std::vector<std::pair<std::string, std::string>> flags;  // Key path and text, later ones win.
  std::function<const char*(const char*)> environment;     // getenv.
};

// YAML text alone, on top of `defaults`. `name` is how errors call it.
base::Result<Config> ParseConfigText(std::string_view text, const std::string& name,
                                     const Config& defaults = {});

base::Result<Config> LoadConfig(const ConfigSources& sources);

}  // namespace rubato::agent
