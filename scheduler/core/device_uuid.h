// The identity of a GPU: 16 bytes, and how people write them.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>

namespace rubato::core {

struct DeviceUuid {
  std::array<uint8_t, 16> bytes{};
  auto operator<=>(const DeviceUuid&) const = default;
};

// "GPU-01234567-89ab-cdef-0123-456789abcdef".
inline std::string FormatUuid(const DeviceUuid& uuid) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text = "GPU-";
  for (size_t i = 0; i < uuid.bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text.push_back('-');
    text.push_back(kDigits[uuid.bytes[i] >> 4]);
    text.push_back(kDigits[uuid.bytes[i] & 15]);
  }
  return text;
}

}  // namespace rubato::core
