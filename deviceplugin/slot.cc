#include "deviceplugin/slot.h"

#include <algorithm>

namespace rubato::deviceplugin {
namespace {

constexpr std::string_view kSeparator = "::";

bool IsUuidCharacter(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
         c == '_' || c == '.';
}

base::Error Malformed() {
  return {base::ErrorCode::kInvalid,
          "a slot is named <uuid>::<n>, n from 0 to " + std::to_string(kMostSlotsPerGpu - 1)};
}

}  // namespace

bool IsUuid(std::string_view uuid) {
  return !uuid.empty() && uuid.size() <= kMostUuidCharacters &&
         std::all_of(uuid.begin(), uuid.end(), IsUuidCharacter);
}

base::Result<SlotId> ParseSlotId(std::string_view text) {
  if (text.size() > kMostSlotIdCharacters) return Malformed();
  const size_t at = text.find(kSeparator);
  if (at == std::string_view::npos) return Malformed();
  const std::string_view uuid = text.substr(0, at);
  const std::string_view digits = text.substr(at + kSeparator.size());
  if (!IsUuid(uuid) || digits.empty() || digits.size() > 2) return Malformed();
  if (digits.size() > 1 && digits.front() == '0') return Malformed();
  uint32_t number = 0;
  for (const char digit : digits) {
    if (digit < '0' || digit > '9') return Malformed();
    number = number * 10 + static_cast<uint32_t>(digit - '0');
  }
  static_assert(kMostSlotsPerGpu == 100, "two digits");
  return SlotId{std::string(uuid), number};
}

std::string FormatSlotId(std::string_view uuid, uint32_t number) {
  std::string text(uuid);
  text += kSeparator;
  text += std::to_string(number);
  return text;
}

}  // namespace rubato::deviceplugin
