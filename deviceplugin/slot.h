// The names of slots: "<uuid>::<n>", n counted from 0.
//
// The kubelet knows a slot by this text alone and picks slots without asking, so the GPU must be
// readable from it. The double colon is what other exporters split shared devices at as well. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace rubato::deviceplugin {

inline constexpr uint32_t kMostSlotsPerGpu = 100;
// The kubelet takes device names of at most 63 characters; "::" and two digits are ours.
inline constexpr size_t kMostSlotIdCharacters = 63;
inline constexpr size_t kMostUuidCharacters = kMostSlotIdCharacters - 4;

struct SlotId {
  std::string uuid;
  uint32_t number = 0;  // Below kMostSlotsPerGpu.
  bool operator==(const SlotId&) const = default;
};

// Whether slots can be named after `uuid`.
bool IsUuid(std::string_view uuid);

// Accepts exactly what FormatSlotId() makes: no blanks, no sign, no leading zero. Error: kInvalid.
base::Result<SlotId> ParseSlotId(std::string_view text);

// Precondition: IsUuid(uuid), number < kMostSlotsPerGpu.
std::string FormatSlotId(std::string_view uuid, uint32_t number);

}  // namespace rubato::deviceplugin
