#include "cli/environment.h"

#include <unistd.h>

#include <algorithm>

namespace rubato::cli {

std::vector<std::string> CurrentEnvironment() {
  std::vector<std::string> environment;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    environment.emplace_back(*entry);
  }
  return environment;
}

std::vector<std::string> WithVariable(std::vector<std::string> environment, std::string_view name,
                                      std::string_view value) {
  const std::string prefix = std::string(name) + "=";
  const auto is_it = [&prefix](const std::string& entry) { return entry.starts_with(prefix); };
  environment.erase(std::remove_if(environment.begin(), environment.end(), is_it),
                    environment.end());
  environment.push_back(prefix + std::string(value));
  return environment;
}

std::string PrependPreload(std::span<const std::string> libraries, std::string_view previous) {
  std::string value;
  const auto append = [&value](std::string_view entry) {
    if (entry.empty()) return;
    if (!value.empty()) value += ':';
    value += entry;
  };
  for (const std::string& library : libraries) append(library);
  while (!previous.empty()) {
    const size_t end = std::min(previous.find_first_of(" :"), previous.size());
    const std::string_view entry = previous.substr(0, end);
    if (std::find(libraries.begin(), libraries.end(), entry) == libraries.end()) append(entry);
    previous.remove_prefix(std::min(end + 1, previous.size()));
  }
  return value;
}

}  // namespace rubato::cli
