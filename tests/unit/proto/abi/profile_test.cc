#include "proto/abi/profile.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>

namespace rubato::abi {
namespace {

TEST(ProfileKeyTest, NamesHashTheSameEverywhere) {
  // The offset basis and the published value of FNV-1a (64 bits) for "a".
  EXPECT_EQ(HashName(""), 0xcbf29ce484222325ull);
  EXPECT_EQ(HashName("a"), 0xaf63dc4c8601ec8cull);
}

TEST(ProfileKeyTest, EveryPartOfAKernelCounts) {
  const uint64_t base = KernelKey(1, 2, 3, 4, 5, 6, 7, 8);
  std::set<uint64_t> keys = {base,
                             KernelKey(9, 2, 3, 4, 5, 6, 7, 8),
                             KernelKey(1, 9, 3, 4, 5, 6, 7, 8),
                             KernelKey(1, 2, 9, 4, 5, 6, 7, 8),
                             KernelKey(1, 2, 3, 9, 5, 6, 7, 8),
                             KernelKey(1, 2, 3, 4, 9, 6, 7, 8),
                             KernelKey(1, 2, 3, 4, 5, 9, 7, 8),
                             KernelKey(1, 2, 3, 4, 5, 6, 9, 8),
                             KernelKey(1, 2, 3, 4, 5, 6, 7, 9)};
  EXPECT_EQ(keys.size(), 9u);
  EXPECT_FALSE(keys.contains(0));
}

TEST(ProfileKeyTest, CopiesFallIntoFourClassesPerPowerOfTwo) {
  std::set<uint64_t> keys;
  for (uint64_t bytes = 1024; bytes < 2048; ++bytes)
    keys.insert(CopyKey(OpKind::kCopyDevice, bytes));
  EXPECT_EQ(keys.size(), 4u);
  EXPECT_NE(CopyKey(OpKind::kCopyDevice, 1024), CopyKey(OpKind::kMemset, 1024));
  EXPECT_EQ(CopyKey(OpKind::kCopyDevice, 0), CopyKey(OpKind::kCopyDevice, 1));
  EXPECT_NE(CopyKey(OpKind::kCopyDevice, ~uint64_t{0}), 0u);
}

TEST(ProfileKeyTest, HistoryTellsKernelsApart) {
  uint64_t one = 0;
  uint64_t two = 0;
  for (const uint64_t key : {11, 12, 13, 14}) one = PushHistory(one, key);
  for (const uint64_t key : {11, 12, 13, 15}) two = PushHistory(two, key);
  EXPECT_NE(HistoryKey(7, one), HistoryKey(7, two));
  EXPECT_NE(HistoryKey(7, one), 0u);
  // What lies further back is forgotten.
  uint64_t longer = PushHistory(0, 99);
  for (const uint64_t key : {11, 12, 13, 14}) longer = PushHistory(longer, key);
  EXPECT_EQ(longer, one);
}

TEST(ProfileTableTest, ALookUpEndsAtAFreePlaceOrAfterAllProbes) {
  auto table = std::make_unique<ProfileRegion>();
  const uint64_t key = 12345;
  const uint32_t home = ProfileHome(key);
  EXPECT_EQ(FindProfile(*table, key), nullptr);
  table->entries[(home + 1) % kProfileEntries].key = key;
  EXPECT_EQ(FindProfile(*table, key), nullptr) << "behind a free place there is nothing";
  table->entries[home].key = 1;
  EXPECT_EQ(FindProfile(*table, key), &table->entries[(home + 1) % kProfileEntries]);
  // All places taken by others, the key beyond them.
  for (uint32_t i = 0; i < kProfileProbes; ++i)
    table->entries[(home + i) % kProfileEntries].key = 1 + i;
  table->entries[(home + kProfileProbes) % kProfileEntries].key = key;
  EXPECT_EQ(FindProfile(*table, key), nullptr);
}

TEST(ProfileTableTest, HomesWrapAround) {
  auto table = std::make_unique<ProfileRegion>();
  uint64_t key = 1;
  while (ProfileHome(key) != kProfileEntries - 1) ++key;
  table->entries[kProfileEntries - 1].key = ~uint64_t{0};
  table->entries[0].key = key;
  EXPECT_EQ(FindProfile(*table, key), &table->entries[0]);
}

}  // namespace
}  // namespace rubato::abi
