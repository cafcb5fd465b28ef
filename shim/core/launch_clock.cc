#include "shim/core/launch_clock.h"

#if defined(__x86_64__)

#include <cpuid.h>

namespace rubato::shim {

namespace {

// The rate comes from two readings at least this far apart: 1 us of uncertainty at either end is
// then an error of 0.05 % at most, 20 ns in the longest stretch.
constexpr uint64_t kShortestBaseNs = 4'000'000;
// A reading counts for the rate if the thread kept its core meanwhile: no longer than 1 us at 4
// GHz.
constexpr uint64_t kLongestReadingTicks = 4000;
// Rates that no processor has are the work of something between it and us.
constexpr uint64_t kLowestScale = (uint64_t{1} << 24) / 8;   // 8 GHz
constexpr uint64_t kHighestScale = (uint64_t{1} << 24) * 4;  // 250 MHz

// The first good reading of this process, from which the rate is measured.
uint64_t g_first_ns;
uint64_t g_first_ticks;
uint32_t g_claimed;  // 1: somebody is writing the two above, 2: they are written.
uint32_t g_scale;    // 0: not known yet; kUseless: never.

constexpr uint32_t kUseless = ~0u;

bool SteadyCounter() {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0x80000007u, &a, &b, &c, &d) != 0 && (d & (1u << 8)) != 0;
}

uint32_t ScaleFrom(uint64_t now_ns, uint64_t ticks) {
  uint32_t claimed = abi::LoadAcquire(g_claimed);
  if (claimed == 0) {
    if (!SteadyCounter()) {
      abi::StoreRelaxed(g_scale, kUseless);
    } else if (__atomic_compare_exchange_n(&g_claimed, &claimed, 1u, false, __ATOMIC_RELAXED,
                                           __ATOMIC_RELAXED)) {
      g_first_ns = now_ns;
      g_first_ticks = ticks;
      abi::StoreRelease(g_claimed, 2u);
    }
    return 0;
  }
  if (claimed != 2 || now_ns < g_first_ns + kShortestBaseNs || ticks <= g_first_ticks) return 0;
  uint64_t elapsed_ns = now_ns - g_first_ns;
  uint64_t elapsed_ticks = ticks - g_first_ticks;
  // Days of either would not fit into 64 bits once scaled.
  while (elapsed_ns >= uint64_t{1} << 39) {
    elapsed_ns >>= 1;
    elapsed_ticks >>= 1;
  }
  const uint64_t scale = elapsed_ticks == 0 ? 0 : (elapsed_ns << 24) / elapsed_ticks;
  const bool plausible = scale >= kLowestScale && scale <= kHighestScale;
  abi::StoreRelaxed(g_scale, plausible ? static_cast<uint32_t>(scale) : kUseless);
  return plausible ? static_cast<uint32_t>(scale) : 0;
}

}  // namespace

uint64_t ReadLaunchClock(LaunchClock* clock) {
  const uint32_t known = abi::LoadRelaxed(g_scale);
  if (known == kUseless) return NowNs();
  const uint64_t before = __builtin_ia32_rdtsc();
  const uint64_t now_ns = NowNs();
  const uint64_t after = __builtin_ia32_rdtsc();
  // Whoever lost the core in between does not know which instant the time belongs to.
  const bool good = after >= before && after - before <= kLongestReadingTicks;
  const uint32_t scale = !good ? 0 : known != 0 ? known : ScaleFrom(now_ns, after);
  clock->base_ns = now_ns;
  clock->base_ticks = after;
  clock->scale = scale;
  clock->longest_ticks = scale == 0 ? 0 : (kLongestStretchNs << 24) / scale;
  return now_ns;
}

}  // namespace rubato::shim

#endif
