#include "scheduler/policies/profile_learning.h"

#include <gtest/gtest.h>

#include <memory>

namespace rubato::policies {
namespace {

core::Sample SampleOf(uint32_t duration_ns, uint32_t permille = 1000, bool disturbed = false) {
  return core::Sample{11, 7, duration_ns, permille, abi::OpKind::kKernel, disturbed};
}

TEST(ProfileLearningTest, TheFirstMeasurementIsTheDuration) {
  core::KernelProfile profile;
  LearnDuration(SampleOf(1'410'000), 5, &profile);
  EXPECT_EQ(profile.duration_ns, 1'410'000);
  EXPECT_EQ(profile.sample_count, 1u);
  EXPECT_EQ(profile.last_sample_ns, 5);
}

void Settle(uint32_t duration_ns, core::KernelProfile* profile) {
  for (int i = 0; i < 5; ++i) LearnDuration(SampleOf(duration_ns), 1, profile);
}

TEST(ProfileLearningTest, ColdFirstMeasurementsDoNotCount) {
  core::KernelProfile profile;
  LearnDuration(SampleOf(5'000'000), 1, &profile);
  LearnDuration(SampleOf(100'000), 1, &profile);
  LearnDuration(SampleOf(102'000), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 102'000);
  EXPECT_EQ(core::LongestRecent(profile), 102'000u);
}

TEST(ProfileLearningTest, RisesFast) {
  core::KernelProfile profile;
  Settle(1'410'000, &profile);
  int needed = 0;
  while (profile.duration_ns < 1'640'000) {
    LearnDuration(SampleOf(1'650'000), 1, &profile);
    ASSERT_LT(++needed, 20);
  }
  EXPECT_LE(needed, 10);
}

TEST(ProfileLearningTest, FallsSlowly) {
  core::KernelProfile profile;
  Settle(1'650'000, &profile);
  for (int i = 0; i < 5; ++i) LearnDuration(SampleOf(1'410'000), 1, &profile);
  EXPECT_GT(profile.duration_ns, 1'580'000);
  for (int i = 0; i < 200; ++i) LearnDuration(SampleOf(1'410'000), 1, &profile);
  EXPECT_LT(profile.duration_ns, 1'411'000);
}

TEST(ProfileLearningTest, OneThatWasHeldUpMovesLittle) {
  core::KernelProfile profile;
  Settle(100'000, &profile);
  LearnDuration(SampleOf(9'000'000), 1, &profile);
  EXPECT_LE(profile.duration_ns, 130'000);
  EXPECT_EQ(core::LongestRecent(profile), 100'000u);
  LearnDuration(SampleOf(8'000'000), 1, &profile);
  EXPECT_EQ(core::LongestRecent(profile), 9'000'000u) << "twice is no accident";
}

TEST(ProfileLearningTest, RemembersTheLongestOfFive) {
  core::KernelProfile profile;
  LearnDuration(SampleOf(1'900'000), 1, &profile);
  for (int i = 0; i < 4; ++i) LearnDuration(SampleOf(1'000'000), 1, &profile);
  EXPECT_EQ(core::LongestRecent(profile), 1'900'000u);
  LearnDuration(SampleOf(1'000'000), 1, &profile);
  EXPECT_EQ(core::LongestRecent(profile), 1'000'000u);
}

TEST(ProfileLearningTest, SharesAreKeptApart) {
  core::KernelProfile profile;
  LearnDuration(SampleOf(1'000'000, 1000), 1, &profile);
  LearnDuration(SampleOf(1'900'000, 500), 1, &profile);
  LearnDuration(SampleOf(7'000'000, 125), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 1'000'000);
  EXPECT_EQ(profile.by_share_ns[0], 7'000'000);
  EXPECT_EQ(profile.by_share_ns[1], 0);
  EXPECT_EQ(profile.by_share_ns[2], 1'900'000);
}

TEST(ProfileLearningTest, ADisturbedMeasurementIsAnUpperBound) {
  core::KernelProfile profile;
  LearnDuration(SampleOf(3'000'000, 1000, true), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 3'000'000) << "better than nothing";
  LearnDuration(SampleOf(1'000'000), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 1'000'000) << "until there is a clean one";
  LearnDuration(SampleOf(20'000'000, 1000, true), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 1'000'000) << "far too long to mean anything";
  LearnDuration(SampleOf(2'000'000, 1000, true), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 1'050'000);
  LearnDuration(SampleOf(500'000, 1000, true), 1, &profile);
  EXPECT_LT(profile.duration_ns, 1'050'000);
}

TEST(ProfileLearningTest, BothKeysOfASampleAreFoundByReaders) {
  auto region = std::make_unique<abi::ProfileRegion>();
  core::ProfileTable table(region.get());
  LearnSample(SampleOf(1'000'000), 1, &table);
  LearnSample(core::Sample{12, 7, 4'000'000, 1000, abi::OpKind::kKernel, false}, 2, &table);
  const abi::ProfileEntry* one = abi::FindProfile(*region, 11);
  const abi::ProfileEntry* two = abi::FindProfile(*region, 12);
  const abi::ProfileEntry* base = abi::FindProfile(*region, 7);
  ASSERT_NE(one, nullptr);
  ASSERT_NE(two, nullptr);
  ASSERT_NE(base, nullptr);
  EXPECT_EQ(one->duration_ns, 1'000'000u);
  EXPECT_EQ(two->duration_ns, 4'000'000u);
  EXPECT_GT(base->duration_ns, 1'000'000u);
  EXPECT_EQ(base->max_ns, 4'000'000u);
  EXPECT_EQ(region->entry_count, 3u);
}

TEST(ProfileLearningTest, ACountThatIsFullStaysInStep) {
  core::KernelProfile profile;
  profile.sample_count = 0xffffffffu;
  profile.clean = true;
  profile.duration_ns = 1'000'000;
  for (int i = 0; i < 10; ++i) LearnDuration(SampleOf(1'000'000), 1, &profile);
  EXPECT_GT(profile.sample_count, 1'000'000'000u);
  EXPECT_EQ(core::LongestRecent(profile), 1'000'000u);
}

core::KernelProfile StoredAs(Nanos duration_ns) {
  return Remembered(11, abi::OpKind::kKernel, duration_ns, static_cast<uint32_t>(duration_ns), 0,
                    100, true);
}

TEST(RememberedProfileTest, IsPredictedWithAtOnceAndMeasuredAtItsFirstLaunches) {
  const core::KernelProfile profile = StoredAs(1'000'000);
  const abi::ProfileEntry entry = core::ToProfileEntry(profile);
  EXPECT_EQ(entry.duration_ns, 1'000'000u);
  EXPECT_EQ(entry.max_ns, 1'000'000u);
  EXPECT_EQ(entry.sample_count, kSettledSamples - kTrialSamples);
}

TEST(RememberedProfileTest, StandsWhereMeasurementsAgree) {
  core::KernelProfile profile = StoredAs(1'000'000);
  for (const uint32_t measured : {1'040'000u, 990'000u, 1'010'000u})
    LearnDuration(SampleOf(measured), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 1'000'000);
  EXPECT_EQ(profile.sample_count, kSettledSamples);
  EXPECT_EQ(profile.measured, 103u);
  // And from then on it is one like any other.
  for (int i = 0; i < 10; ++i) LearnDuration(SampleOf(1'200'000), 1, &profile);
  EXPECT_GT(profile.duration_ns, 1'180'000);
}

TEST(RememberedProfileTest, AColdFirstLaunchDoesNotEndIt) {
  core::KernelProfile profile = StoredAs(1'000'000);
  for (const uint32_t measured : {9'000'000u, 1'005'000u, 1'001'000u})
    LearnDuration(SampleOf(measured), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 1'000'000);
  EXPECT_LE(core::LongestRecent(profile), 1'010'000u);
}

// Whatever factor it is wrong by: right after three measurements, and settled after five.
TEST(RememberedProfileTest, AWrongOneIsRightAfterThreeMeasurements) {
  for (const Nanos stored : {Nanos{1}, Nanos{10'000}, Nanos{700'000}, Nanos{1'500'000},
                             Nanos{100'000'000}, Nanos{4'000'000'000}}) {
    core::KernelProfile profile = StoredAs(stored);
    for (const uint32_t measured : {1'010'000u, 1'000'000u, 990'000u})
      LearnDuration(SampleOf(measured), 1, &profile);
    EXPECT_EQ(profile.duration_ns, 1'000'000) << stored;
    EXPECT_EQ(core::LongestRecent(profile), 1'010'000u) << stored;
    EXPECT_LE(profile.spread_ns, 20'000) << stored;
    EXPECT_EQ(profile.sample_count, kTrialSamples) << stored;
    LearnDuration(SampleOf(1'000'000), 1, &profile);
    LearnDuration(SampleOf(1'000'000), 1, &profile);
    EXPECT_EQ(profile.duration_ns, 1'000'000) << stored;
    EXPECT_EQ(core::ToProfileEntry(profile).sample_count, kSettledSamples) << stored;
  }
}

TEST(RememberedProfileTest, OneThatWasNeverMeasuredCleanlyEndsWithTheFirstThatIs) {
  core::KernelProfile profile =
      Remembered(11, abi::OpKind::kKernel, 3'000'000, 3'000'000, 0, 4, false);
  LearnDuration(SampleOf(1'000'000), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 1'000'000);
  EXPECT_EQ(profile.sample_count, 1u);
  EXPECT_EQ(profile.trial, 0u);
}

// As in a program beside a neighbour that is always there.
TEST(RememberedProfileTest, DisturbedMeasurementsDoNotJudgeItUnlessTheyAreShorter) {
  core::KernelProfile profile = StoredAs(1'000'000);
  for (int i = 0; i < 10; ++i) LearnDuration(SampleOf(9'000'000, 1000, true), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 1'000'000);
  EXPECT_EQ(profile.trial, kTrialSamples);
  for (int i = 0; i < 3; ++i) LearnDuration(SampleOf(400'000, 1000, true), 1, &profile);
  EXPECT_EQ(profile.duration_ns, 400'000);
}

}  // namespace
}  // namespace rubato::policies
