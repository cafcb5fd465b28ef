// The handle map: what is inserted is found, by every thread, whatever the others do.

#include "shim/core/handle_map.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "shim/core/sys.h"

namespace rubato::shim::testing {
namespace {

// A map lives in zeroed memory and has no destructor.
HandleMap* NewMap() {
  return static_cast<HandleMap*>(MapZeroed(sizeof(HandleMap)));
}

TEST(HandleMapTest, FindsWhatWasInserted) {
  HandleMap* map = NewMap();
  uint64_t value = 99;
  EXPECT_FALSE(map->Find(1, &value));
  EXPECT_EQ(value, 99u);
  EXPECT_FALSE(map->Erase(1));
  EXPECT_TRUE(map->Insert(1, 10));
  EXPECT_TRUE(map->Insert(0x7f0000001000, 0));
  EXPECT_TRUE(map->Find(1, &value));
  EXPECT_EQ(value, 10u);
  EXPECT_TRUE(map->Find(0x7f0000001000, &value));
  EXPECT_EQ(value, 0u);
  EXPECT_FALSE(map->Find(2, &value));
  EXPECT_EQ(map->size(), 2u);
  EXPECT_TRUE(map->Insert(1, 11));
  EXPECT_TRUE(map->Find(1, &value));
  EXPECT_EQ(value, 11u);
  EXPECT_EQ(map->size(), 2u);
  EXPECT_TRUE(map->Erase(1, &value));
  EXPECT_EQ(value, 11u);
  EXPECT_FALSE(map->Erase(1, &value));
  EXPECT_FALSE(map->Find(1, &value));
  EXPECT_EQ(map->size(), 1u);
}

TEST(HandleMapTest, TheTwoKeysThatAreNone) {
  HandleMap* map = NewMap();
  uint64_t value;
  for (const uint64_t key : {HandleMap::kNoKey, HandleMap::kGrave}) {
    EXPECT_FALSE(map->Insert(key, 1));
    EXPECT_FALSE(map->Find(key, &value));
    EXPECT_FALSE(map->Erase(key));
    map->Insert(5, 5);
    map->Erase(5);
    EXPECT_FALSE(map->Find(key, &value));
  }
}

TEST(HandleMapTest, InsertIfAbsentTellsWhoWon) {
  HandleMap* map = NewMap();
  uint64_t value = 1;
  EXPECT_TRUE(map->InsertIfAbsent(7, &value));
  EXPECT_EQ(value, 1u);
  value = 2;
  EXPECT_TRUE(map->InsertIfAbsent(7, &value));
  EXPECT_EQ(value, 1u);
}

TEST(HandleMapTest, ClearAndEraseIf) {
  HandleMap* map = NewMap();
  map->Clear();
  for (uint64_t key = 1; key <= 1000; ++key) map->Insert(key, key * 2);
  uint64_t limit = 500;
  map->EraseIf(
      [](uint64_t key, uint64_t value, void* context) {
        EXPECT_EQ(value, key * 2);
        return key <= *static_cast<uint64_t*>(context);
      },
      &limit);
  EXPECT_EQ(map->size(), 500u);
  uint64_t value;
  for (uint64_t key = 1; key <= 1000; ++key) EXPECT_EQ(map->Find(key, &value), key > 500) << key;
  map->Clear();
  EXPECT_EQ(map->size(), 0u);
  for (uint64_t key = 1; key <= 1000; ++key) EXPECT_FALSE(map->Find(key, &value));
  EXPECT_TRUE(map->Insert(3, 4));
  EXPECT_TRUE(map->Find(3, &value));
}

TEST(HandleMapTest, BehavesLikeAMap) {
  HandleMap* map = NewMap();
  std::unordered_map<uint64_t, uint64_t> model;
  std::mt19937_64 random(1);
  for (int i = 0; i < 300'000; ++i) {
    // Handles as drivers make them: aligned, close together; few enough to meet again.
    const uint64_t key = 0x7fff00000000 + (random() % 5000 + 1) * 0x200;
    const uint64_t value = random();
    uint64_t found = 0;
    switch (random() % 4) {
      case 0:
      case 1:
        ASSERT_TRUE(map->Insert(key, value));
        model[key] = value;
        break;
      case 2: {
        const auto it = model.find(key);
        ASSERT_EQ(map->Erase(key, &found), it != model.end());
        if (it != model.end()) {
          ASSERT_EQ(found, it->second);
          model.erase(it);
        }
        break;
      }
      default: {
        const auto it = model.find(key);
        ASSERT_EQ(map->Find(key, &found), it != model.end());
        if (it != model.end()) {
          ASSERT_EQ(found, it->second);
        }
      }
    }
    ASSERT_EQ(map->size(), model.size());
  }
}

uint64_t MappedKilobytes() {
  std::ifstream status("/proc/self/statm");
  uint64_t pages = 0;
  status >> pages;
  return pages * 4;
}

// Allocating and freeing for ever, with never the same handle twice.
TEST(HandleMapTest, ChurnCostsABoundedAmountOfMemory) {
  HandleMap* map = NewMap();
  constexpr uint64_t kLive = 300;
  uint64_t key = 1;
  const auto churn = [&](int rounds) {
    for (int i = 0; i < rounds; ++i, ++key) {
      ASSERT_TRUE(map->Insert(key * 0x9e3779b97f4a7c15ull | 1, key));
      if (key > kLive) {
        ASSERT_TRUE(map->Erase((key - kLive) * 0x9e3779b97f4a7c15ull | 1));
      }
    }
  };
  churn(100'000);
  const uint64_t before = MappedKilobytes();
  churn(1'000'000);
  // A table of this size has 16 KiB: a leak of one per rebuild would be tens of megabytes.
  EXPECT_LE(MappedKilobytes(), before + 1024);
  EXPECT_LE(map->size(), kLive + 1);
}

// Readers never see a value that was not stored under their key, however entries are reused.
TEST(HandleMapTest, ReadersAreNeverMisled) {
  HandleMap* map = NewMap();
  constexpr uint64_t kKeys = 600;
  static constexpr uint64_t kStable = 50;  // Keys that are never erased.
  const auto value_of = [](uint64_t key, uint64_t round) { return key << 32 | round; };
  for (uint64_t key = 1; key <= kStable; ++key) map->Insert(key, value_of(key, 0));
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0}, lost{0};
  std::vector<std::thread> threads;
  for (int reader = 0; reader < 3; ++reader) {
    threads.emplace_back([&, reader] {
      std::mt19937_64 random(static_cast<uint64_t>(reader));
      while (!done.load(std::memory_order_relaxed)) {
        const uint64_t key = random() % kKeys + 1;
        uint64_t value = 0;
        if (map->Find(key, &value)) {
          if (value >> 32 != key) ++wrong;
        } else if (key <= kStable) {
          ++lost;
        }
      }
    });
  }
  std::vector<std::thread> writers;
  for (uint64_t writer = 0; writer < 2; ++writer) {
    writers.emplace_back([&, writer] {
      std::mt19937_64 random(100 + writer);
      for (uint64_t round = 1; round < 60'000; ++round) {
        const uint64_t key = kStable + 1 + random() % (kKeys - kStable);
        if (random() % 2 == 0) {
          map->Insert(key, value_of(key, round));
        } else {
          uint64_t value;
          if (map->Erase(key, &value) && value >> 32 != key) ++wrong;
        }
        if (round % 20'000 == 0) {
          map->EraseIf([](uint64_t doomed, uint64_t, void*) { return doomed > kStable; }, nullptr);
        }
      }
    });
  }
  for (std::thread& thread : writers) thread.join();
  done = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(lost, 0);
}

TEST(HandleMapTest, EraseHasOneWinner) {
  HandleMap* map = NewMap();
  for (uint64_t key = 1; key <= 20'000; ++key) map->Insert(key, key);
  std::atomic<uint64_t> sum{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (uint64_t key = 1; key <= 20'000; ++key) {
        uint64_t value;
        if (map->Erase(key, &value)) sum += value;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sum, 20'000ull * 20'001 / 2);
  EXPECT_EQ(map->size(), 0u);
}

}  // namespace
}  // namespace rubato::shim::testing
