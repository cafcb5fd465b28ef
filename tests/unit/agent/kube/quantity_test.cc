#include "agent/kube/quantity.h"

#include <gtest/gtest.h>

#include <string>

namespace rubato::kube {
namespace {

TEST(QuantityTest, ReadsEveryForm) {
  const std::pair<const char*, uint64_t> kCases[] = {
      {"0", 0},
      {"3", 3},
      {"+3", 3},
      {"003", 3},
      {"1k", 1000},
      {"1Ki", 1024},
      {"8Gi", 8589934592},
      {"1.5Gi", 1610612736},
      {".5Ki", 512},
      {"5.Ki", 5120},
      {"1500M", 1500000000},
      {"2e3", 2000},
      {"2E3", 2000},
      {"2E", 2000000000000000000},
      {"1e+2", 100},
      {"100e-2", 1},
      {"1Ti", 1099511627776},
      {"1Pi", 1125899906842624},
      {"7Ei", 8070450532247928832},
      {"9223372036854775807", 9223372036854775807},
      {"3000m", 3},
      {"1000000000n", 1},
      {"5000000u", 5},
      {"1000000000000000000000m", 1000000000000000000},
  };
  for (const auto& [text, expected] : kCases) {
    const auto read = ParseQuantity(text);
    ASSERT_TRUE(read.ok()) << text << ": " << read.error().message;
    EXPECT_EQ(*read, expected) << text;
  }
}

TEST(QuantityTest, RoundsUpWhatIsNoWholeNumber) {
  EXPECT_EQ(*ParseQuantity("0.1Gi"), 107374183u);  // 107374182.4
  EXPECT_EQ(*ParseQuantity("100m"), 1u);
  EXPECT_EQ(*ParseQuantity("1n"), 1u);
  EXPECT_EQ(*ParseQuantity("1e-900"), 1u);
  EXPECT_EQ(*ParseQuantity("2001m"), 3u);
  // Exactly one more than a third of a gibibyte would be if it were rounded to the nearest.
  EXPECT_EQ(*ParseQuantity("0.333333333333Gi"), 357913942u);  // 357913941.3329...
}

TEST(QuantityTest, IsExactWhereFloatingPointIsNot) {
  EXPECT_EQ(*ParseQuantity("9007199254740993"), 9007199254740993u);            // 2^53 + 1
  EXPECT_EQ(*ParseQuantity("1.0000000000000000001Ei"), 1152921504606846977u);  // 2^60 + 0.115...
}

TEST(QuantityTest, RefusesTheRest) {
  for (const char* text : {"",
                           " 1",
                           "1 ",
                           "-1",
                           "Gi",
                           ".",
                           "+",
                           "1gi",
                           "1GB",
                           "1K",
                           "1GiB",
                           "1..2",
                           "1e",
                           "1e+",
                           "e3",
                           "0x10",
                           "1e3Gi",
                           "9223372036854775808",
                           "8Ei",
                           "10E",
                           "1e19",
                           "1e99999999999999999999",
                           "99999999999999999999999999999999999999999",
                           "1.00000000000000000000000000000000001",
                           "1,5Gi",
                           "\xff",
                           "NaN",
                           "inf"}) {
    EXPECT_FALSE(ParseQuantity(text).ok()) << text;
  }
  const std::string zeros(100000, '0');
  EXPECT_EQ(*ParseQuantity(zeros + "1"), 1u);
  EXPECT_FALSE(ParseQuantity("1" + zeros).ok());
}

TEST(QuantityTest, ItsErrorsHoldNothingUnprintable) {
  const auto read = ParseQuantity("1\n\x1b[31m");
  ASSERT_FALSE(read.ok());
  for (const char c : read.error().message) EXPECT_TRUE(c >= ' ' && c <= '~');
}

}  // namespace
}  // namespace rubato::kube
