#include "proto/abi/slot.h"

#include <gtest/gtest.h>

namespace rubato::abi {
namespace {

TEST(SlotWordTest, PartsComeBack) {
  const uint32_t word = MakeWord(0xab, 0x123456);
  EXPECT_EQ(WordGeneration(word), 0xabu);
  EXPECT_EQ(WordSequence(word), 0x123456u);
  EXPECT_EQ(WordSequence(MakeWord(1, 0x1ffffff)), 0xffffffu) << "a sequence keeps to its bits";
}

TEST(SlotWordTest, NothingSubmittedIsReached) {
  EXPECT_TRUE(WordReached(0, 0));
  EXPECT_TRUE(WordReached(MakeWord(3, 77), MakeWord(4, 0)));
}

TEST(SlotWordTest, ReachedMeansAsFarOrFurther) {
  EXPECT_FALSE(WordReached(MakeWord(2, 4), MakeWord(2, 5)));
  EXPECT_TRUE(WordReached(MakeWord(2, 5), MakeWord(2, 5)));
  EXPECT_TRUE(WordReached(MakeWord(2, 6), MakeWord(2, 5)));
}

TEST(SlotWordTest, ALateWriteOfAnEarlierStreamIsIgnored) {
  EXPECT_FALSE(WordReached(MakeWord(1, 900), MakeWord(2, 1)));
  EXPECT_FALSE(WordReached(MakeWord(2, 900), MakeWord(1, 1)));
}

TEST(SlotWordTest, SequencesWrap) {
  const uint32_t last = MakeWord(7, kWordSequenceMask);
  EXPECT_EQ(NextWord(last), MakeWord(7, 1)) << "0 means that there was no op";
  EXPECT_FALSE(WordReached(last, NextWord(last)));
  EXPECT_TRUE(WordReached(NextWord(last), last));
  EXPECT_TRUE(WordReached(MakeWord(7, 100), MakeWord(7, kWordSequenceMask - 100)));
  EXPECT_FALSE(WordReached(MakeWord(7, kWordSequenceMask - 100), MakeWord(7, 100)));
}

TEST(SlotWordTest, AMillionMarkersInARow) {
  uint32_t submitted = MakeWord(200, kWordSequenceMask - 500'000);
  uint32_t completed = submitted;
  for (int i = 0; i < 1'000'000; ++i) {
    submitted = NextWord(submitted);
    ASSERT_FALSE(WordReached(completed, submitted));
    completed = submitted;
    ASSERT_TRUE(WordReached(completed, submitted));
    ASSERT_EQ(WordGeneration(submitted), 200u);
  }
}

TEST(SlotLayoutTest, GpuWordsHavePagesOfTheirOwn) {
  EXPECT_EQ(offsetof(SlotRegion, gpu_words) % 4096, 0u);
  EXPECT_EQ(sizeof(SlotRegion::gpu_words) % 4096, 0u);
}

}  // namespace
}  // namespace rubato::abi
