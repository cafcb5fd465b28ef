// What people write for sizes, and what they do not.
#include "cli/byte_size.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace rubato::cli {
namespace {

TEST(ByteSize, ReadsEachUnit) {
  const std::pair<const char*, uint64_t> cases[] = {
      {"1", 1},
      {"4096", 4096},
      {"7B", 7},
      {"64KB", 64'000},
      {"64kb", 64'000},
      {"1KiB", 1024},
      {"512MiB", 512ull << 20},
      {"20GiB", 20ull << 30},
      {"20 GiB", 20ull << 30},
      {"1.5GiB", 3ull << 29},
      {"0.5KiB", 512},
      {"2TB", 2'000'000'000'000},
      {"3TiB", 3ull << 40},
      {"9223372036854775807", 9223372036854775807ull},
  };
  for (const auto& [text, bytes] : cases) {
    const base::Result<uint64_t> parsed = ParseByteSize(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.error().message;
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ByteSize, RefusesTheRest) {
  for (const char* text :
       {"", " ", "GiB", "-1", "+1", "0", "0.1", "1e9", "1.2.3", "10XB", "10 G iB", "20Gi", "1KiB ",
        "9223372036854775808", "99999999999999999999999999999999999999999999", "9000000TiB",
        "1.0000000001GiB", "0x10", "1,5GiB"}) {
    EXPECT_FALSE(ParseByteSize(text).ok()) << text;
  }
}

TEST(ByteSize, ShowsWhatItReads) {
  EXPECT_EQ(FormatByteSize(0), "0 B");
  EXPECT_EQ(FormatByteSize(1023), "1023 B");
  EXPECT_EQ(FormatByteSize(1024), "1 KiB");
  EXPECT_EQ(FormatByteSize(3ull << 29), "1.5 GiB");
  EXPECT_EQ(FormatByteSize(20ull << 30), "20 GiB");
  EXPECT_EQ(FormatByteSize((20ull << 30) + 12345), "20.0 GiB");
  EXPECT_EQ(FormatByteSize(150ull << 40), "150 TiB");
}

}  // namespace
}  // namespace rubato::cli
