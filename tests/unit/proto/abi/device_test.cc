#include "proto/abi/device.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

namespace rubato::abi {
namespace {

TEST(LineTest, WhatIsWrittenIsRead) {
  auto line = std::make_unique<TenantLine>();
  TenantLine value{};
  value.bound_ns = 300;
  value.sequence = 12345;  // Not the writer's business.
  WriteLine(*line, value);
  EXPECT_EQ(line->sequence, 2u);
  TenantLine copy{};
  ASSERT_TRUE(ReadLine(*line, &copy));
  EXPECT_EQ(copy.bound_ns, 300u);
}

TEST(LineTest, AWriterThatDiedInTheMiddleIsNotWaitedFor) {
  auto line = std::make_unique<TenantLine>();
  line->sequence = 7;
  line->bound_ns = 1;
  TenantLine copy{};
  copy.bound_ns = 42;
  EXPECT_FALSE(ReadLine(*line, &copy));
  EXPECT_EQ(copy.bound_ns, 42u) << "the previous copy stays";
  TenantLine value{};
  value.bound_ns = 2;
  WriteLine(*line, value);
  ASSERT_TRUE(ReadLine(*line, &copy)) << "the next writer mends it";
  EXPECT_EQ(copy.bound_ns, 2u);
}

TEST(LineTest, ReadersNeverSeeHalfALine) {
  auto line = std::make_unique<ReleaseLine>();
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    uint64_t i = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      ++i;
      ReleaseLine value{};
      value.phase_ns = value.period_ns = value.early_ns = value.late_ns = value.margin_ns =
          value.touch_lead_ns = value.valid_until_ns = i;
      WriteLine(*line, value);
    }
  });
  uint64_t seen = 0;
  uint64_t reads = 0;
  while (reads < 20'000) {
    ReleaseLine copy{};
    if (!ReadLine(*line, &copy)) {
      std::this_thread::yield();
      continue;
    }
    ++reads;
    ASSERT_EQ(copy.period_ns, copy.phase_ns);
    ASSERT_EQ(copy.early_ns, copy.phase_ns);
    ASSERT_EQ(copy.late_ns, copy.phase_ns);
    ASSERT_EQ(copy.margin_ns, copy.phase_ns);
    ASSERT_EQ(copy.touch_lead_ns, copy.phase_ns);
    ASSERT_EQ(copy.valid_until_ns, copy.phase_ns);
    ASSERT_GE(copy.phase_ns, seen) << "nor an older one";
    seen = copy.phase_ns;
  }
  stop = true;
  writer.join();
}

}  // namespace
}  // namespace rubato::abi
