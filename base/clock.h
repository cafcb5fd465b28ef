// The clock, as something that can be handed in: the daemon's main gives the system's, tests give
// one that moves only when told to.
//
// Pure code takes `now_ns` as an argument instead.
#pragma once

#include <time.h>

#include "base/time.h"

namespace rubato::base {

// CLOCK_MONOTONIC, from the vDSO.
inline Nanos MonotonicNow() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<Nanos>(now.tv_sec) * kSecond + now.tv_nsec;
}

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Nanos NowNs() const = 0;
};

class SystemClock final : public Clock {
 public:
  Nanos NowNs() const override { return MonotonicNow(); }
};

}  // namespace rubato::base
