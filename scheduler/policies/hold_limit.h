// Whether a real-time tenant's open jobs may hold the others: use measured against what it
// declared.
//
// A tenant that keeps a job open for nearly all of the time although it declared a period is wrong
// about itself, or pretends to be busy; either way it would starve the best-effort tenants. It
// loses the right to hold, and has it back after a window in which it behaved. Pure.
#pragma once

#include "scheduler/policies/constants.h"

namespace rubato::policies {

class HoldLimit {
 public:
  // `period_ns` 0: nothing was declared, so nothing can be exceeded.
  HoldLimit(Nanos period_ns, const Constants& constants);

  // `open_total_ns`: how long jobs have been open since the beginning, the present one included.
  // Only grows. Called at every poll.
  void Update(Nanos open_total_ns, Nanos now_ns);

  bool may_hold() const { return may_hold_; }
  uint64_t revocations() const { return revocations_; }

 private:
  static constexpr Nanos kTooMuchPermille = 950;
  static constexpr Nanos kQuietPermille = 800;

  bool declared_;
  Nanos window_ns_;
  bool may_hold_ = true;
  uint64_t revocations_ = 0;
  Nanos window_start_ns_ = 0;
  Nanos open_at_start_ns_ = 0;
};

}  // namespace rubato::policies
