#include "scheduler/core/profile_table.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace rubato::core {
namespace {

// `count` keys whose home is `home`.
std::vector<uint64_t> KeysAt(uint32_t home, size_t count) {
  std::vector<uint64_t> keys;
  for (uint64_t key = 1; keys.size() < count; ++key) {
    if (abi::ProfileHome(key) == home) keys.push_back(key);
  }
  return keys;
}

class ProfileTableTest : public ::testing::Test {
 protected:
  void Add(uint64_t key, base::Nanos duration_ns, base::Nanos now_ns) {
    KernelProfile* profile = table_.Insert(key, abi::OpKind::kKernel);
    profile->duration_ns = duration_ns;
    profile->last_sample_ns = now_ns;
    table_.Publish(*profile);
  }
  std::unique_ptr<abi::ProfileRegion> region_ = std::make_unique<abi::ProfileRegion>();
  ProfileTable table_{region_.get()};
};

TEST_F(ProfileTableTest, TheLongestOpIsOneThatRunsLatelyAndNoGraph) {
  EXPECT_EQ(table_.LongestSince(0), 0);
  Add(1, 9000, 100);
  Add(2, 5000, 200);
  KernelProfile* graph = table_.Insert(3, abi::OpKind::kGraph);
  graph->duration_ns = 70'000;
  graph->last_sample_ns = 200;
  EXPECT_EQ(table_.LongestSince(100), 9000);
  EXPECT_EQ(table_.LongestSince(101), 5000);
  EXPECT_EQ(table_.LongestSince(201), 0);
}

TEST_F(ProfileTableTest, WhatIsInsertedIsFoundByReaders) {
  for (uint64_t key = 1; key <= 5000; ++key)
    Add(key * 0x9e3779b9ull, 1000 + static_cast<base::Nanos>(key), 1);
  for (uint64_t key = 1; key <= 5000; ++key) {
    const abi::ProfileEntry* entry = abi::FindProfile(*region_, key * 0x9e3779b9ull);
    if (entry == nullptr) continue;  // Given up for another.
    EXPECT_EQ(entry->duration_ns, 1000 + key);
  }
  EXPECT_EQ(table_.size() + table_.evictions(), 5000u);
  EXPECT_LT(table_.evictions(), 50u);
  EXPECT_EQ(region_->entry_count, table_.size());
}

TEST_F(ProfileTableTest, AnEntryIsInvisibleUntilItIsPublished) {
  table_.Insert(77, abi::OpKind::kCopyDevice);
  EXPECT_EQ(abi::FindProfile(*region_, 77), nullptr);
  KernelProfile* profile = table_.Find(77);
  ASSERT_NE(profile, nullptr);
  profile->duration_ns = 5;
  table_.Publish(*profile);
  const abi::ProfileEntry* entry = abi::FindProfile(*region_, 77);
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->duration_ns, 5u);
  EXPECT_EQ(entry->kind, static_cast<uint32_t>(abi::OpKind::kCopyDevice));
}

TEST_F(ProfileTableTest, TheOldestMakesRoom) {
  const std::vector<uint64_t> keys = KeysAt(123, abi::kProfileProbes + 1);
  for (size_t i = 0; i < abi::kProfileProbes; ++i)
    Add(keys[i], 100, i == 3 ? 1 : 1000 + static_cast<base::Nanos>(i));
  Add(keys.back(), 200, 5000);
  EXPECT_EQ(abi::FindProfile(*region_, keys[3]), nullptr);
  EXPECT_EQ(table_.Find(keys[3]), nullptr);
  ASSERT_NE(abi::FindProfile(*region_, keys.back()), nullptr);
  for (size_t i = 0; i < abi::kProfileProbes; ++i) {
    if (i == 3) continue;
    EXPECT_NE(abi::FindProfile(*region_, keys[i]), nullptr) << i;
  }
  EXPECT_EQ(table_.evictions(), 1u);
}

TEST_F(ProfileTableTest, AnUnpublishedPlaceDoesNotEndTheProbing) {
  const std::vector<uint64_t> keys = KeysAt(55, 3);
  Add(keys[0], 100, 1);
  table_.Insert(keys[1], abi::OpKind::kKernel);  // Not published yet.
  // It holds the second place; the third key must still be found behind it.
  Add(keys[2], 300, 1);
  const abi::ProfileEntry* third = abi::FindProfile(*region_, keys[2]);
  ASSERT_NE(third, nullptr);
  EXPECT_EQ(third->duration_ns, 300u);
  KernelProfile* second = table_.Find(keys[1]);
  ASSERT_NE(second, nullptr);
  second->duration_ns = 200;
  table_.Publish(*second);
  ASSERT_NE(abi::FindProfile(*region_, keys[1]), nullptr);
  EXPECT_EQ(abi::FindProfile(*region_, keys[1])->duration_ns, 200u);
}

TEST_F(ProfileTableTest, DurationsSaturate) {
  Add(9, 3'600'000'000'000, 1);
  EXPECT_EQ(abi::FindProfile(*region_, 9)->duration_ns, 0xffffffffu);
}

KernelProfile Known(uint64_t key, base::Nanos duration_ns) {
  KernelProfile profile;
  profile.key = key;
  profile.duration_ns = duration_ns;
  profile.sample_count = 2;
  return profile;
}

TEST_F(ProfileTableTest, WhatIsRestoredIsFoundAndIsNoChange) {
  EXPECT_TRUE(table_.Restore(Known(5, 700)));
  ASSERT_NE(abi::FindProfile(*region_, 5), nullptr);
  EXPECT_EQ(abi::FindProfile(*region_, 5)->duration_ns, 700u);
  EXPECT_EQ(table_.Find(5)->sample_count, 2u);
  EXPECT_EQ(region_->entry_count, 1u);
  EXPECT_TRUE(table_.TakeChanged().empty());
  EXPECT_EQ(table_.LongestSince(1), 0) << "nobody runs it yet";
}

TEST_F(ProfileTableTest, WhatIsRestoredTakesNoOnesPlace) {
  const std::vector<uint64_t> keys = KeysAt(3, abi::kProfileProbes + 1);
  for (size_t i = 0; i < abi::kProfileProbes; ++i) Add(keys[i], 100, 1);
  EXPECT_FALSE(table_.Restore(Known(keys.back(), 700)));
  EXPECT_FALSE(table_.Restore(Known(keys.front(), 700))) << "what this run has learnt is newer";
  EXPECT_EQ(table_.Find(keys.front())->duration_ns, 100);
  EXPECT_EQ(table_.evictions(), 0u);
  EXPECT_FALSE(table_.Restore(Known(0, 700)));
  EXPECT_FALSE(table_.Restore(Known(~uint64_t{0}, 700)));
}

TEST_F(ProfileTableTest, ChangesAreTakenOnce) {
  Add(1, 100, 1);
  Add(2, 200, 1);
  EXPECT_EQ(table_.TakeChanged().size(), 2u);
  EXPECT_TRUE(table_.TakeChanged().empty());
  table_.Find(2)->duration_ns = 250;
  table_.Publish(*table_.Find(2));
  const std::vector<KernelProfile> changed = table_.TakeChanged();
  ASSERT_EQ(changed.size(), 1u);
  EXPECT_EQ(changed.front().duration_ns, 250);
}

TEST_F(ProfileTableTest, AClearedTableKnowsNothingAndLearnsAgain) {
  const std::vector<uint64_t> keys = KeysAt(3, 4);
  for (const uint64_t key : keys) Add(key, 100, 1);
  table_.Clear();
  for (const uint64_t key : keys) EXPECT_EQ(abi::FindProfile(*region_, key), nullptr);
  EXPECT_EQ(table_.size(), 0u);
  EXPECT_EQ(region_->entry_count, 0u);
  for (const uint64_t key : keys) Add(key, 300, 2);
  for (const uint64_t key : keys) EXPECT_EQ(abi::FindProfile(*region_, key)->duration_ns, 300u);
  EXPECT_EQ(table_.evictions(), 0u);
}

}  // namespace
}  // namespace rubato::core
