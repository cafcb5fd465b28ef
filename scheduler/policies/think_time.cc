#include "scheduler/policies/think_time.h"

#include <algorithm>
#include <limits>

namespace rubato::policies {

void ThinkTime::OnGap(const core::JobGap& gap) {
  Nanos gap_ns = std::max<Nanos>(gap.gap_ns, 1);
  if (period_ns_ != 0 && gap.start_ns > period_ns_ / 2) {
    // Between activations: never short, or the job before was as long as the period.
    gap_ns = std::numeric_limits<Nanos>::max() / 16;
  }
  gaps_[next_] = gap_ns;
  next_ = (next_ + 1) % kGaps;
  count_ = std::min(count_ + 1, kGaps);
}

Nanos ThinkTime::ValueNs(const Constants& constants) const {
  if (count_ < kFewest) return 0;
  Nanos limit_ns = constants.think_limit_ns;
  if (period_ns_ != 0) limit_ns = std::min(limit_ns, period_ns_ / 8);
  std::array<Nanos, kGaps> sorted = gaps_;
  std::sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(count_));
  // The two kinds part where a gap is at least eight times the one before it, and each has at least
  // an eighth of all: one odd pause makes no second kind. The last such place below the limit
  // counts, since jobs may have gaps of more than one length.
  Nanos longest_short_ns = 0;
  const size_t fewest = std::max<size_t>(1, count_ / 8);
  for (size_t i = fewest; i + fewest <= count_; ++i) {
    if (sorted[i - 1] > limit_ns) break;
    if (sorted[i] / 8 >= sorted[i - 1]) longest_short_ns = sorted[i - 1];
  }
  return std::min(longest_short_ns + longest_short_ns / 2, limit_ns);
}

}  // namespace rubato::policies
