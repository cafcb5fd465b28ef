#include "agent/config/load.h"

#include <yaml-cpp/yaml.h>

#include <fstream>
#include <set>
#include <sstream>

#include "agent/config/keys.h"

namespace rubato::agent {
namespace {

using base::Error;
using base::ErrorCode;
using base::Result;

constexpr size_t kMaxFileBytes = 1 << 20;

std::string Place(const std::string& name, const YAML::Mark& mark) {
  return name + ":" + std::to_string(mark.line + 1) + ": ";
}

Error At(const std::string& name, const YAML::Node& node, const std::string& message) {
  return Error{ErrorCode::kInvalid, Place(name, node.Mark()) + message};
}

bool IsSection(const std::string& path) {
  for (const ConfigKey& key : ConfigKeys()) {
    if (std::string_view(key.path).starts_with(path + ".")) return true;
  }
  return false;
}

Result<void> SetLeaf(const std::string& name, const ConfigKey& key, const YAML::Node& node,
                     Config* config) {
  std::vector<std::string> values;
  if (key.list) {
    if (!node.IsSequence())
      return At(name, node, std::string(key.path) + " is a list; write [a, b] or [] for none");
    for (const YAML::Node& item : node) {
      if (!item.IsScalar()) return At(name, item, std::string(key.path) + " lists plain values");
      values.push_back(item.Scalar());
    }
  } else {
    if (!node.IsScalar()) return At(name, node, std::string(key.path) + " is one plain value");
    values.push_back(node.Scalar());
  }
  if (auto set = key.set(config, values); !set)
    return At(name, node, std::string(key.path) + ": " + set.error().message);
  return {};
}

Result<void> Walk(const std::string& name, const std::string& prefix, const YAML::Node& map,
                  Config* config) {
  std::set<std::string> seen;
  for (const auto& entry : map) {
    if (!entry.first.IsScalar()) return At(name, entry.first, "a key must be a plain word");
    const std::string path = prefix + entry.first.Scalar();
    if (!seen.insert(path).second)
      return At(name, entry.first, "'" + path + "' is here twice; remove one");
    const ConfigKey* key = FindConfigKey(path);
    const bool section = key == nullptr && IsSection(path);
    if (key == nullptr && !section) {
      return At(name, entry.first,
                "unknown key '" + path + "'; the nearest is " + NearestKey(path));
    }
    if (entry.second.IsNull()) continue;  // "key:" with nothing behind it keeps the default.
    if (section) {
      if (!entry.second.IsMap()) return At(name, entry.second, path + " has keys below it");
      if (auto walked = Walk(name, path + ".", entry.second, config); !walked) return walked;
    } else if (auto set = SetLeaf(name, *key, entry.second, config); !set) {
      return set;
    }
  }
  return {};
}

Result<void> SetFromText(const std::string& place, const ConfigKey& key, const std::string& text,
                         Config* config) {
  const std::vector<std::string> values =
      key.list ? SplitList(text) : std::vector<std::string>{text};
  if (auto set = key.set(config, values); !set)
    return Error{ErrorCode::kInvalid, place + ": " + set.error().message};
  return {};
}

}  // namespace

Result<Config> ParseConfigText(std::string_view text, const std::string& name,
                               const Config& defaults) {
  Config config = defaults;
  try {
    const YAML::Node root = YAML::Load(std::string(text));
    if (!root.IsMap()) return Error{ErrorCode::kInvalid, name + ": must begin with `version: v1`"};
    if (!root["version"])
      return Error{ErrorCode::kInvalid, name + ": says no version; add `version: v1`"};
    if (auto walked = Walk(name, "", root, &config); !walked) return walked.error();
  } catch (const YAML::Exception& error) {
    return Error{ErrorCode::kInvalid, Place(name, error.mark) + "is no YAML: " + error.msg};
  }
  return config;
}

Result<Config> LoadConfig(const ConfigSources& sources) {
  Config config;
  if (!sources.path.empty()) {
    std::ifstream file(sources.path, std::ios::binary);
    if (!file) return base::SystemError("cannot read " + sources.path);
    std::string text(kMaxFileBytes + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (file.bad()) return base::SystemError("cannot read " + sources.path);
    text.resize(static_cast<size_t>(file.gcount()));
    if (text.size() > kMaxFileBytes)
      return Error{ErrorCode::kInvalid, sources.path + " is longer than 1 MiB"};
    auto parsed = ParseConfigText(text, sources.path, config);
    if (!parsed) return parsed;
    config = std::move(*parsed);
  }
  if (sources.environment) {
    if (const char* node = sources.environment("NODE_NAME"); node != nullptr && *node != '\0')
      config.node_name = node;
    for (const ConfigKey& key : ConfigKeys()) {
      const std::string variable = EnvironmentName(key.path);
      const char* text = sources.environment(variable.c_str());
      if (text == nullptr) continue;
      if (auto set = SetFromText(variable, key, text, &config); !set) return set.error();
    }
  }
  for (const auto& [path, text] : sources.flags) {
    const ConfigKey* key = FindConfigKey(path);
    if (key == nullptr) {
      return Error{ErrorCode::kInvalid, "--set " + path + ": unknown key '" + path +
                                            "'; the nearest is " + NearestKey(path)};
    }
    if (auto set = SetFromText("--set " + path, *key, text, &config); !set) return set.error();
  }
  if (config.gpu_source == GpuSource::kAuto && config.fake_devices > 0)
    config.gpu_source = GpuSource::kSoftware;
  if (config.gpu_source == GpuSource::kSoftware && config.fake_devices == 0)
    config.fake_devices = 1;
  if (auto checked = CheckConfig(config); !checked) {
    const std::string where = sources.path.empty() ? "" : sources.path + ": ";
    return Error{ErrorCode::kInvalid, where + checked.error().message};
  }
  return config;
}

}  // namespace rubato::agent
