// What is known about the duration of one op key on one device.
#pragma once

#include <array>
#include <cstdint>

#include "base/time.h"
#include "proto/abi/profile.h"

namespace rubato::core {

struct KernelProfile {
  uint64_t key = 0;
  abi::OpKind kind = abi::OpKind::kKernel;
  base::Nanos duration_ns = 0;          // Expected on the whole device; 0: not measured there yet.
  base::Nanos spread_ns = 0;            // Mean absolute deviation.
  std::array<uint32_t, 5> recent_ns{};  // The last five measurements on the whole device.
  uint32_t sample_count = 0;
  bool clean = false;     // One measurement at least had no neighbour in between.
  uint64_t measured = 0;  // Measurements ever, those of earlier runs included.
  uint32_t trial = 0;     // Measurements that a duration of an earlier run has still to stand.
  std::array<base::Nanos, 4> by_share_ns{};  // On 1/8, 1/4, 1/2, 3/4 of the SMs; 0: not measured.
  base::Nanos last_sample_ns = 0;
};

inline uint32_t SaturateTo32(base::Nanos duration_ns) {
  if (duration_ns <= 0) return 0;
  return duration_ns > 0xffffffffll ? 0xffffffffu : static_cast<uint32_t>(duration_ns);
}

// The longest of the recent measurements that repeats itself: one that is more than twice as long
// as all others was held up by something that is no property of the op.
inline uint32_t LongestRecent(const KernelProfile& profile) {
  uint32_t longest = 0;
  uint32_t second = 0;
  unsigned measured = 0;
  for (const uint32_t recent : profile.recent_ns) {
    measured += recent != 0 ? 1 : 0;
    if (recent > longest) {
      second = longest;
      longest = recent;
    } else if (recent > second) {
      second = recent;
    }
  }
  return measured > 2 && longest / 2 > second ? second : longest;
}

inline abi::ProfileEntry ToProfileEntry(const KernelProfile& profile) {
  abi::ProfileEntry entry{};
  entry.key = profile.key;
  entry.duration_ns = SaturateTo32(profile.duration_ns);
  entry.max_ns = LongestRecent(profile);
  entry.spread_ns = SaturateTo32(profile.spread_ns);
  entry.sample_count = profile.sample_count;
  for (size_t i = 0; i < profile.by_share_ns.size(); ++i)
    entry.by_share_ns[i] = SaturateTo32(profile.by_share_ns[i]);
  entry.last_sample_ns = static_cast<uint64_t>(profile.last_sample_ns);
  entry.kind = static_cast<uint32_t>(profile.kind);
  return entry;
}

}  // namespace rubato::core
