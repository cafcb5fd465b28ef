#include "scheduler/core/slot_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>

namespace rubato::core {
namespace {

constexpr base::Nanos kNow = 1'000'000'000'000;

class SlotReaderTest : public ::testing::Test {
 protected:
  void AddJob(uint64_t first_op_ns, uint64_t end_ns, uint32_t flags = 0) {
    abi::JobRecord& record = slot_->jobs[slot_->heads.job_head % abi::kJobRing];
    record = abi::JobRecord{};
    record.first_op_ns = first_op_ns;
    record.end_ns = end_ns;
    record.flags = flags;
    record.op_count = 1;
    ++slot_->heads.job_head;
  }
  void AddSample(uint64_t key, uint32_t duration_ns) {
    slot_->samples[slot_->heads.sample_head % abi::kSampleRing] =
        abi::SampleRecord{key, key, duration_ns, 1000, 0, 0};
    ++slot_->heads.sample_head;
  }
  const SlotReading& Read(SlotReader* reader) {
    reader->Read(kNow, &reading_);
    return reading_;
  }

  std::unique_ptr<abi::SlotRegion> slot_ = std::make_unique<abi::SlotRegion>();
  SlotReading reading_;
};

TEST_F(SlotReaderTest, AnEmptySlotSaysNothing) {
  SlotReader reader(slot_.get(), false);
  const SlotReading& reading = Read(&reader);
  EXPECT_FALSE(reading.active);
  EXPECT_FALSE(reading.job_open);
  EXPECT_TRUE(reading.jobs.empty());
}

TEST_F(SlotReaderTest, EachRecordIsReadOnce) {
  SlotReader reader(slot_.get(), false);
  AddJob(100, 200);
  AddJob(300, 400, abi::kJobContinued);
  ASSERT_EQ(Read(&reader).jobs.size(), 2u);
  EXPECT_FALSE(reading_.jobs[0].continued);
  EXPECT_TRUE(reading_.jobs[1].continued);
  EXPECT_TRUE(Read(&reader).jobs.empty());
  AddJob(500, 600);
  ASSERT_EQ(Read(&reader).jobs.size(), 1u);
  EXPECT_EQ(reading_.jobs[0].first_op_ns, 500);
}

TEST_F(SlotReaderTest, AFullRingLosesTheOldest) {
  SlotReader reader(slot_.get(), false);
  for (uint64_t i = 0; i < abi::kJobRing + 10; ++i) AddJob(1000 + i * 10, 1005 + i * 10);
  const SlotReading& reading = Read(&reader);
  // The oldest record of a full ring may be under the writer's hands.
  EXPECT_EQ(reading.jobs_lost, 11u);
  ASSERT_EQ(reading.jobs.size(), abi::kJobRing - 1);
  EXPECT_EQ(reading.jobs.back().first_op_ns,
            static_cast<base::Nanos>(1000 + (abi::kJobRing + 9) * 10));
}

TEST_F(SlotReaderTest, RecordsThatCannotBeTrueAreRejected) {
  SlotReader reader(slot_.get(), false);
  AddJob(0, 100);                                // No beginning.
  AddJob(200, 100);                              // Ends before it begins.
  AddJob(100, static_cast<uint64_t>(kNow) + 1);  // Ends in the future.
  AddJob(~uint64_t{0} - 5, ~uint64_t{0});        // Negative when signed.
  AddSample(0, 10);
  AddSample(~uint64_t{0}, 10);
  AddSample(5, 0);
  slot_->samples[slot_->heads.sample_head++ % abi::kSampleRing] =
      abi::SampleRecord{5, 5, 10, 1001, 0, 0};
  slot_->samples[slot_->heads.sample_head++ % abi::kSampleRing] =
      abi::SampleRecord{5, 5, 10, 1000, 99, 0};
  const SlotReading& reading = Read(&reader);
  EXPECT_TRUE(reading.jobs.empty());
  EXPECT_TRUE(reading.samples.empty());
  EXPECT_EQ(reading.rejected, 9u);
}

TEST_F(SlotReaderTest, AHeadThatJumpsOrGoesBackIsSurvived) {
  SlotReader reader(slot_.get(), false);
  AddJob(100, 200);
  slot_->heads.job_head = ~uint64_t{0};
  EXPECT_LE(Read(&reader).jobs.size(), abi::kJobRing);
  slot_->heads.job_head = 3;
  EXPECT_TRUE(Read(&reader).jobs.empty());
  AddJob(500, 600);
  EXPECT_EQ(Read(&reader).jobs.size(), 1u);
}

TEST_F(SlotReaderTest, CountersAreIncrements) {
  SlotReader reader(slot_.get(), false);
  slot_->counters.value[0] = 5;
  EXPECT_EQ(Read(&reader).counters[0], 5u);
  EXPECT_TRUE(reading_.active);
  slot_->counters.value[0] = 7;
  EXPECT_EQ(Read(&reader).counters[0], 2u);
  slot_->counters.value[0] = 3;  // Back: counted from there on.
  EXPECT_EQ(Read(&reader).counters[0], 0u);
  slot_->counters.value[0] = 4;
  EXPECT_EQ(Read(&reader).counters[0], 1u);
  slot_->counters.value[0] = ~uint64_t{0};  // Further than anybody can count.
  EXPECT_EQ(Read(&reader).counters[0], 0u);
}

TEST_F(SlotReaderTest, ASlotHandedBackIsReadFromNowOn) {
  AddJob(100, 200);
  AddSample(5, 10);
  slot_->counters.value[3] = 900;
  slot_->memory.refused = 7;
  SlotReader reader(slot_.get(), true);
  const SlotReading& reading = Read(&reader);
  EXPECT_TRUE(reading.jobs.empty());
  EXPECT_TRUE(reading.samples.empty());
  EXPECT_EQ(reading.counters[3], 0u);
  EXPECT_EQ(reading.memory_refused, 0u);
}

TEST_F(SlotReaderTest, OpenJobs) {
  SlotReader reader(slot_.get(), false);
  slot_->job.state = static_cast<uint32_t>(abi::JobState::kOpen);
  slot_->job.first_op_ns = 500;
  EXPECT_TRUE(Read(&reader).job_open);
  EXPECT_EQ(reading_.job_first_op_ns, 500);
  slot_->job.first_op_ns = static_cast<uint64_t>(kNow) + 1;
  EXPECT_FALSE(Read(&reader).job_open) << "begins in the future";
  slot_->job.first_op_ns = 500;
  slot_->job.state = 77;
  EXPECT_FALSE(Read(&reader).job_open) << "no such state";
}

TEST_F(SlotReaderTest, MemoryIsCutToWhatADeviceCanHave) {
  SlotReader reader(slot_.get(), false);
  slot_->memory.used_bytes = ~uint64_t{0};
  slot_->memory.peak_bytes = 12;
  EXPECT_EQ(Read(&reader).used_bytes, kMostBytes);
  EXPECT_EQ(reading_.peak_bytes, 12u);
}

TEST_F(SlotReaderTest, AnUnknownDetachReasonIsNone) {
  SlotReader reader(slot_.get(), false);
  slot_->session.detached = 12345;
  EXPECT_EQ(Read(&reader).detached, abi::DetachReason::kNone);
  slot_->session.detached = static_cast<uint32_t>(abi::DetachReason::kSurprise);
  EXPECT_EQ(Read(&reader).detached, abi::DetachReason::kSurprise);
}

}  // namespace
}  // namespace rubato::core
