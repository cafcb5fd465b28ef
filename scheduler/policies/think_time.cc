#include "scheduler/policies/think_time.h"

#include <algorithm>

namespace rubato::policies {
namespace {

Nanos Guarded(Nanos gap_ns, Nanos limit_ns, const Constants& constants) {
  return std::min(gap_ns + std::max(constants.think_guard_ns, gap_ns / 4), limit_ns);
}

}  // namespace

void ThinkTime::OnGap(Nanos gap_ns, GapPlace place) {
  gaps_[next_] = Gap{std::max<Nanos>(gap_ns, 1), place};
  next_ = (next_ + 1) % kGaps;
  count_ = std::min(count_ + 1, kGaps);
}

Nanos ThinkTime::ValueNs(Nanos period_ns, const Constants& constants) const {
  if (count_ < kFewest) return 0;
  if (period_ns == 0) return Blind(constants);
  return Predicted(std::min(constants.think_limit_ns, period_ns / 8), constants);
}

Nanos ThinkTime::Predicted(Nanos limit_ns, const Constants& constants) const {
  std::vector<Nanos> inside;
  size_t between = 0;
  for (size_t i = 0; i < count_; ++i) {
    if (gaps_[i].place == GapPlace::kBetween) ++between;
    // A gap beyond the limit cannot be covered; what is inside the job stays open to others.
    if (gaps_[i].place == GapPlace::kInside && gaps_[i].gap_ns <= limit_ns)
      inside.push_back(gaps_[i].gap_ns);
  }
  // Fewer than one split in 20 jobs is not worth a pause in all of them.
  if (inside.empty() || inside.size() * 20 < between) return 0;
  std::sort(inside.begin(), inside.end());
  return Guarded(inside[(inside.size() - 1) * 9 / 10], limit_ns, constants);
}

// Gaps of two kinds part where one is at least eight times the one before it, and each kind has at
// least an eighth of all: one odd pause makes no second kind. The last such place below the limit
// counts, since jobs may have gaps of more than one length.
Nanos ThinkTime::Blind(const Constants& constants) const {
  const Nanos limit_ns = constants.blind_think_limit_ns;
  std::vector<Nanos> sorted;
  for (size_t i = 0; i < count_; ++i) sorted.push_back(gaps_[i].gap_ns);
  std::sort(sorted.begin(), sorted.end());
  Nanos longest_short_ns = 0;
  const size_t fewest = std::max<size_t>(1, count_ / 8);
  for (size_t i = fewest; i + fewest <= count_; ++i) {
    if (sorted[i - 1] > limit_ns) break;
    if (sorted[i] / 8 >= sorted[i - 1]) longest_short_ns = sorted[i - 1];
  }
  return longest_short_ns == 0 ? 0 : Guarded(longest_short_ns, limit_ns, constants);
}

}  // namespace rubato::policies
