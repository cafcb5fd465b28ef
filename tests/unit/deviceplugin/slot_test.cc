#include "deviceplugin/slot.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace rubato::deviceplugin {
namespace {

constexpr char kUuid[] = "GPU-8f3c1a52-0b7e-4d11-9a52-0123456789ab";

TEST(SlotTest, FormatsAndParsesBack) {
  EXPECT_EQ(FormatSlotId(kUuid, 7), std::string(kUuid) + "::7");
  for (uint32_t number = 0; number < kMostSlotsPerGpu; ++number) {
    auto slot = ParseSlotId(FormatSlotId(kUuid, number));
    ASSERT_TRUE(slot.ok()) << number;
    EXPECT_EQ(*slot, (SlotId{kUuid, number}));
  }
}

TEST(SlotTest, TakesTheLongestNameThatAKubeletTakes) {
  const std::string uuid(kMostUuidCharacters, 'a');
  EXPECT_TRUE(IsUuid(uuid));
  EXPECT_EQ(FormatSlotId(uuid, 99).size(), kMostSlotIdCharacters);
  EXPECT_TRUE(ParseSlotId(FormatSlotId(uuid, 99)).ok());
  EXPECT_FALSE(IsUuid(uuid + "a"));
  EXPECT_FALSE(ParseSlotId(uuid + "a::1").ok());
}

TEST(SlotTest, RefusesEverythingElse) {
  for (const char* text : {"",
                           "::",
                           "::1",
                           "GPU-1",
                           "GPU-1::",
                           "GPU-1:1",
                           "GPU-1:::1",
                           "GPU-1::01",
                           "GPU-1::-1",
                           "GPU-1::+1",
                           "GPU-1:: 1",
                           "GPU-1::1 ",
                           " GPU-1::1",
                           "GPU-1::100",
                           "GPU-1::1a",
                           "GPU-1::0x1",
                           "GPU-1::1::2",
                           "GPU 1::1",
                           "GPU/1::1",
                           "GPU-1::1\n",
                           "GPU-1::99999999999999999999",
                           "GPU-\xc3\xa9::1",
                           "../../etc::1"}) {
    EXPECT_FALSE(ParseSlotId(text).ok()) << text;
  }
  EXPECT_FALSE(ParseSlotId(std::string("GPU-1::1\0", 9)).ok());
  EXPECT_FALSE(ParseSlotId(std::string("GPU\0-1::1", 9)).ok());
  EXPECT_FALSE(ParseSlotId(std::string(100'000, 'a') + "::1").ok());
}

// What is accepted is exactly what is written: for any text, the parsed slot gives the text again.
TEST(SlotTest, AcceptsNoTwoSpellings) {
  std::mt19937 random(20240917);
  const std::string alphabet = "GPU-::::0123456789a_. \n+";
  int accepted = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::string text;
    const size_t length = random() % 12;
    for (size_t k = 0; k < length; ++k) text += alphabet[random() % alphabet.size()];
    auto slot = ParseSlotId(text);
    if (!slot) continue;
    ++accepted;
    ASSERT_EQ(FormatSlotId(slot->uuid, slot->number), text);
    ASSERT_LT(slot->number, kMostSlotsPerGpu);
    ASSERT_TRUE(IsUuid(slot->uuid));
  }
  EXPECT_GT(accepted, 100);
  // And what any bytes do to it.
  for (int i = 0; i < 200'000; ++i) {
    std::string text = FormatSlotId(kUuid, random() % kMostSlotsPerGpu);
    for (int change = 0; change < 2; ++change)
      text[random() % text.size()] = static_cast<char>(random());
    auto slot = ParseSlotId(text);
    if (!slot) continue;
    ASSERT_EQ(FormatSlotId(slot->uuid, slot->number), text);
  }
}

}  // namespace
}  // namespace rubato::deviceplugin
