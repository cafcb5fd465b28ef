#include "scheduler/policies/hold_limit.h"

#include <algorithm>

namespace rubato::policies {

// At least eight periods, so that one long job is no habit.
HoldLimit::HoldLimit(Nanos period_ns, const Constants& constants)
    : declared_(period_ns != 0), window_ns_(std::max(constants.hold_window_ns, 8 * period_ns)) {}

void HoldLimit::Update(Nanos open_total_ns, Nanos now_ns) {
  if (!declared_) return;
  if (window_start_ns_ == 0) {
    window_start_ns_ = now_ns;
    open_at_start_ns_ = open_total_ns;
    return;
  }
  const Nanos length_ns = now_ns - window_start_ns_;
  if (length_ns < window_ns_) return;
  const Nanos open_ns = std::clamp<Nanos>(open_total_ns - open_at_start_ns_, 0, length_ns);
  const Nanos permille = open_ns / std::max<Nanos>(1, length_ns / 1000);
  if (may_hold_ && permille > kTooMuchPermille) {
    may_hold_ = false;
    ++revocations_;
  } else if (!may_hold_ && permille < kQuietPermille) {
    may_hold_ = true;
  }
  window_start_ns_ = now_ns;
  open_at_start_ns_ = open_total_ns;
}

}  // namespace rubato::policies
