// The keys of agent.yaml as a table: path, how a text becomes the value and back, whether a reload
// applies it, and what it means. Flags (--set), the environment and the file all go through it, and
// a test holds docs/agent.md against it.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "agent/config/config.h"
#include "base/result.h"

namespace rubato::agent {

struct ConfigKey {
  const char* path;  // "gpu.source"
  bool list;         // A YAML sequence; comma-separated elsewhere.
  bool live;         // A reload applies it; otherwise the next start does.
  std::function<base::Result<void>(Config*, const std::vector<std::string>&)> set;
  std::function<std::string(const Config&)> show;  // Lists comma-separated.
  const char* meaning;
};

std::span<const ConfigKey> ConfigKeys();
const ConfigKey* FindConfigKey(std::string_view path);
// "RUBATO_AGENT_GPU_SOURCE" for "gpu.source".
std::string EnvironmentName(std::string_view path);
// The known path that is written most like `path`.
std::string NearestKey(std::string_view path);
// Splits at commas; blanks around the parts go, and so does an empty text.
std::vector<std::string> SplitList(std::string_view text);

// What the single keys cannot see: values that do not go together, and defaults that follow others.
base::Result<void> CheckConfig(const Config& config);

// Paths of the keys whose values differ and that a reload does not apply.
std::vector<std::string> NeedingRestart(const Config& before, const Config& after);
// `before` with the live keys of `after`.
Config WithLiveKeys(const Config& before, const Config& after);

}  // namespace rubato::agent
