// CLOCK_MONOTONIC for the launch path, at a third of what clock_gettime costs there.
//
// Between two real readings of a thread the processor's time stamp counter fills in, for at most
// kLongestStretchNs: however wrong it is (a thread moved between processors that disagree, a
// virtual machine moved between hosts), the time is wrong by no more than that, once, and a window
// has a larger margin. Only where the processor says that the counter never stops or changes its
// rate; anywhere else this is clock_gettime. Any thread; what a thread remembers is its own.
#pragma once

#include <cstdint>

#include "proto/abi/atomic.h"
#include "shim/core/sys.h"

namespace rubato::shim {

inline constexpr uint64_t kLongestStretchNs = 40'000;

#if defined(__x86_64__)

struct LaunchClock {
  uint64_t base_ns;
  uint64_t base_ticks;
  uint64_t longest_ticks;  // kLongestStretchNs in ticks; 0: the rate is not known, or of no use.
  uint32_t scale;          // Nanoseconds per tick, times 2^24.
};

inline thread_local constinit LaunchClock t_launch_clock{};

// A real reading, from which the next stretch is counted.
uint64_t ReadLaunchClock(LaunchClock* clock);

inline uint64_t LaunchNowNs() {
  LaunchClock& clock = t_launch_clock;
  const uint64_t ticks = __builtin_ia32_rdtsc() - clock.base_ticks;
  if (ticks < clock.longest_ticks) [[likely]] {
    return clock.base_ns + (ticks * clock.scale >> 24);
  }
  return ReadLaunchClock(&clock);
}

#else

inline uint64_t LaunchNowNs() {
  return NowNs();
}

#endif

}  // namespace rubato::shim
