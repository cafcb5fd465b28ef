#include "deviceplugin/resource_name.h"

#include <algorithm>
#include <cstddef>

namespace rubato::deviceplugin {
namespace {

// "requests." is put before the name, and the sum must be a DNS name.
constexpr size_t kMostDomain = 253 - 9;
constexpr size_t kMostLabel = 63;

bool IsLower(char c) {
  return c >= 'a' && c <= 'z';
}
bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsLetterOrDigit(char c) {
  return IsLower(c) || IsDigit(c) || (c >= 'A' && c <= 'Z');
}

bool IsDomain(std::string_view domain) {
  if (domain.empty() || domain.size() > kMostDomain) return false;
  while (true) {
    const size_t dot = domain.find('.');
    const std::string_view label = domain.substr(0, dot);
    if (label.empty()) return false;
    const auto good = [](char c) { return IsLower(c) || IsDigit(c) || c == '-'; };
    if (!std::all_of(label.begin(), label.end(), good) || label.front() == '-' ||
        label.back() == '-')
      return false;
    if (dot == std::string_view::npos) return true;
    domain.remove_prefix(dot + 1);
  }
}

}  // namespace

bool IsExtendedResourceName(std::string_view name) {
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos || name.find("kubernetes.io/") != std::string_view::npos ||
      name.substr(0, 9) == "requests.")
    return false;
  const std::string_view tail = name.substr(slash + 1);
  if (!IsDomain(name.substr(0, slash)) || tail.empty() || tail.size() > kMostLabel) return false;
  const auto good = [](char c) { return IsLetterOrDigit(c) || c == '-' || c == '_' || c == '.'; };
  return std::all_of(tail.begin(), tail.end(), good) && IsLetterOrDigit(tail.front()) &&
         IsLetterOrDigit(tail.back());
}

}  // namespace rubato::deviceplugin
