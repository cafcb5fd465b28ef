#include "deviceplugin/preference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <variant>

#include "deviceplugin/allocation.h"
#include "tests/unit/deviceplugin/gpus.h"

namespace rubato::deviceplugin {
namespace {

using Ids = std::vector<std::string>;

Ids Prefer(const std::vector<Gpu>& gpus, Packing packing, const Ids& available, int32_t size,
           const Ids& must = {}) {
  return PreferSlots(gpus, 10, packing, {available, must, size});
}

TEST(PreferenceTest, PacksTheFullestGpuThatHasRoom) {
  const auto gpus = MakeGpus(3);
  // GPU 0 has 10 free, GPU 1 has 4, GPU 2 has 2.
  const Ids free = Slots(0, 0, 9) + Slots(1, 6, 9) + Slots(2, 8, 9);
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 2), Slots(2, 8, 9));
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 3), Slots(1, 6, 8));
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 5), Slots(0, 0, 4));
}

TEST(PreferenceTest, SpreadsToTheEmptiest) {
  const auto gpus = MakeGpus(3);
  const Ids free = Slots(0, 5, 9) + Slots(1, 0, 7) + Slots(2, 8, 9);
  EXPECT_EQ(Prefer(gpus, Packing::kSpread, free, 2), Slots(1, 0, 1));
}

TEST(PreferenceTest, TiesGoToTheLowerIndex) {
  auto gpus = MakeGpus(3);
  std::swap(gpus[0], gpus[2]);
  const Ids free = Slots(2, 0, 9) + Slots(1, 0, 9) + Slots(0, 0, 9);
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 3), Slots(0, 0, 2));
  EXPECT_EQ(Prefer(gpus, Packing::kSpread, free, 3), Slots(0, 0, 2));
}

TEST(PreferenceTest, KeepsWithWhatMustBeIncluded) {
  const auto gpus = MakeGpus(2);
  const Ids free = Slots(0, 0, 9) + Slots(1, 0, 9);
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 3, Slots(1, 4, 5)),
            Slots(1, 4, 5) + Slots(1, 0, 0));
  // Of two GPUs, or more than asked for: no choice that would be accepted.
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 3, Slots(0, 0, 0) + Slots(1, 0, 0)), Ids{});
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 1, Slots(1, 4, 5)), Ids{});
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 2, {"GPU-7::0"}), Ids{});
}

TEST(PreferenceTest, NothingWhereNoGpuHasRoom) {
  const auto gpus = MakeGpus(2);
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, Slots(0, 0, 2) + Slots(1, 0, 2), 4), Ids{});
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, Slots(0, 0, 9) + Slots(1, 0, 9), 12), Ids{});
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, Slots(0, 0, 9), 0), Ids{});
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, Slots(0, 0, 9), -5), Ids{});
  EXPECT_EQ(PreferSlots(gpus, 0, Packing::kPacked, {Slots(0, 0, 9), {}, 1}), Ids{});
}

TEST(PreferenceTest, MultiplesAreWholeGpus) {
  const auto gpus = MakeGpus(3);
  const Ids free = Slots(0, 1, 9) + Slots(1, 0, 9) + Slots(2, 0, 9);
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 20), Slots(1, 0, 9) + Slots(2, 0, 9));
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 10), Slots(1, 0, 9));
  EXPECT_EQ(Prefer(gpus, Packing::kSpread, free, 10), Slots(1, 0, 9));
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 30), Ids{});
  // What must be included decides, where it is whole.
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 10, Slots(2, 3, 3)).front(), "GPU-2::3");
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 10, Slots(0, 3, 3)), Ids{});
}

TEST(PreferenceTest, WholeGpusAreOfOneNumaNode) {
  const std::vector<Gpu> gpus = {MakeGpu(0, 0), MakeGpu(1, 1), MakeGpu(2, 1), MakeGpu(3, 0),
                                 MakeGpu(4, 0)};
  Ids all;
  for (uint32_t i = 0; i < 5; ++i) all = all + Slots(i, 0, 9);
  const auto used = [&](const Ids& ids) {
    std::set<std::string> uuids;
    for (const auto& id : ids) uuids.insert(ParseSlotId(id)->uuid);
    return uuids;
  };
  // Node 1 has exactly two: node 0 keeps its three for a larger request.
  EXPECT_EQ(used(Prefer(gpus, Packing::kPacked, all, 20)),
            (std::set<std::string>{"GPU-1", "GPU-2"}));
  EXPECT_EQ(used(Prefer(gpus, Packing::kPacked, all, 30)),
            (std::set<std::string>{"GPU-0", "GPU-3", "GPU-4"}));
  // No node has four: as few nodes as possible.
  EXPECT_EQ(used(Prefer(gpus, Packing::kPacked, all, 40)),
            (std::set<std::string>{"GPU-0", "GPU-3", "GPU-4", "GPU-1"}));
  // The node of what must be included comes first.
  EXPECT_EQ(used(Prefer(gpus, Packing::kPacked, all, 20, Slots(3, 0, 0))),
            (std::set<std::string>{"GPU-3", "GPU-0"}));
}

TEST(PreferenceTest, LeavesUnhealthyWithheldAndUnknownAlone) {
  auto gpus = MakeGpus(3);
  gpus[0].healthy = false;
  gpus[1].withheld = true;
  const Ids free = Slots(0, 0, 9) + Slots(1, 0, 9) + Slots(2, 0, 9) + Slots(5, 0, 9) +
                   Ids{"", "nonsense", "GPU-2::10", "GPU-2::77"};
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 2), Slots(2, 0, 1));
  EXPECT_EQ(Prefer(gpus, Packing::kPacked, free, 20), Ids{});
}

// Whatever is free: advice is a part of what is available, of the size asked for, without
// repetition, includes what it must, and would be accepted; and none is given only where there is
// no GPU with room.
TEST(PreferenceTest, AdviceIsAlwaysAcceptable) {
  std::mt19937 random(7);
  for (int round = 0; round < 5000; ++round) {
    const auto gpus = MakeGpus(1 + random() % 4);
    Ids available;
    std::vector<size_t> room(gpus.size());
    for (uint32_t g = 0; g < gpus.size(); ++g) {
      for (uint32_t n = 0; n < 10; ++n) {
        if (random() % 3 == 0) continue;
        available.push_back(FormatSlotId(gpus[g].uuid, n));
        ++room[g];
      }
      if (random() % 3 == 0) {
        for (const auto& id : Slots(g, 0, 9)) {
          if (std::find(available.begin(), available.end(), id) == available.end())
            available.push_back(id);
        }
        room[g] = 10;
      }
    }
    std::shuffle(available.begin(), available.end(), random);
    const auto size = static_cast<int32_t>(random() % 35);
    Ids must;
    if (!available.empty() && random() % 4 == 0)
      must.push_back(available[random() % available.size()]);
    const auto packing = random() % 2 == 0 ? Packing::kPacked : Packing::kSpread;
    const Ids advice = Prefer(gpus, packing, available, size, must);
    if (advice.empty()) {
      if (!must.empty() || size == 0) continue;
      if (size <= 10) {
        EXPECT_LT(*std::max_element(room.begin(), room.end()), static_cast<size_t>(size));
      } else if (size % 10 == 0) {
        EXPECT_LT(std::count(room.begin(), room.end(), 10u), size / 10);
      }
      continue;
    }
    EXPECT_EQ(advice.size(), static_cast<size_t>(size));
    const std::set<std::string> chosen(advice.begin(), advice.end());
    EXPECT_EQ(chosen.size(), advice.size());
    const std::set<std::string> free(available.begin(), available.end());
    EXPECT_TRUE(std::includes(free.begin(), free.end(), chosen.begin(), chosen.end()));
    for (const auto& id : must) EXPECT_TRUE(chosen.contains(id));
    EXPECT_TRUE(std::holds_alternative<Grant>(JudgeAllocation(advice, gpus, 10)));
    EXPECT_EQ(Prefer(gpus, packing, available, size, must), advice);
  }
}

}  // namespace
}  // namespace rubato::deviceplugin
