#include "base/time.h"

#include <gtest/gtest.h>

namespace rubato::base {
namespace {

TEST(TimeTest, Reads) {
  EXPECT_EQ(*ParseDuration("10ms"), 10 * kMillisecond);
  EXPECT_EQ(*ParseDuration("250us"), 250 * kMicrosecond);
  EXPECT_EQ(*ParseDuration("800ns"), 800);
  EXPECT_EQ(*ParseDuration("1.5s"), 1500 * kMillisecond);
  EXPECT_EQ(*ParseDuration("16.666ms"), 16'666'000);
  EXPECT_EQ(*ParseDuration("0.000000001s"), 1);
  EXPECT_EQ(*ParseDuration(".5ms"), 500 * kMicrosecond);
  EXPECT_EQ(*ParseDuration("0s"), 0);
  EXPECT_EQ(*ParseDuration("1.99999999999999999999999s"), 1'999'999'999);
}

TEST(TimeTest, Refuses) {
  for (const char* bad : {"", "10", "ms", "-1ms", "10 ms", "10msx", "1.2.3s", ".", ".s", "1e3ms",
                          "99999999999999999999s", "1000001s", "10m", "0x10ms"}) {
    const auto parsed = ParseDuration(bad);
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_NE(parsed.error().message.find("for example 10ms"), std::string::npos);
  }
}

TEST(TimeTest, Shows) {
  EXPECT_EQ(FormatDuration(0), "0s");
  EXPECT_EQ(FormatDuration(10 * kMillisecond), "10ms");
  EXPECT_EQ(FormatDuration(1500 * kMillisecond), "1.5s");
  EXPECT_EQ(FormatDuration(999), "999ns");
  EXPECT_EQ(FormatDuration(1'234'567), "1.235ms");
  EXPECT_EQ(FormatDuration(999'999'999), "1s");
  EXPECT_EQ(FormatDuration(1'050'000), "1.05ms");
  EXPECT_EQ(FormatDuration(-250 * kMicrosecond), "-250us");
}

TEST(TimeTest, WhatIsShownCanBeRead) {
  for (const Nanos value : {Nanos{1}, Nanos{999}, 5 * kMicrosecond, 12'500 * kMicrosecond,
                            3 * kSecond, 86'400 * kSecond}) {
    EXPECT_EQ(*ParseDuration(FormatDuration(value)), value);
  }
}

}  // namespace
}  // namespace rubato::base
