#include "shim/core/launch_clock.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace rubato::shim {
namespace {

constexpr uint64_t kMillisecond = 1'000'000;

// Long enough for the rate to be learnt and for many stretches.
void StaysNearTheClock() {
  const uint64_t end_ns = NowNs() + 60 * kMillisecond;
  for (;;) {
    const uint64_t before_ns = NowNs();
    const uint64_t now_ns = LaunchNowNs();
    const uint64_t after_ns = NowNs();
    ASSERT_GE(now_ns + kLongestStretchNs, before_ns);
    ASSERT_LE(now_ns, after_ns + kLongestStretchNs);
    if (before_ns > end_ns) return;
  }
}

TEST(LaunchClockTest, StaysNearTheClock) {
  StaysNearTheClock();
}

TEST(LaunchClockTest, StaysNearTheClockInEveryThread) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(StaysNearTheClock);
  for (std::thread& thread : threads) thread.join();
}

TEST(LaunchClockTest, IsNeverOldAfterAPause) {
  LaunchNowNs();
  SleepFor(2 * kLongestStretchNs);
  const uint64_t before_ns = NowNs();
  EXPECT_GE(LaunchNowNs() + 1000, before_ns) << "a stretch has its limit";
}

}  // namespace
}  // namespace rubato::shim
