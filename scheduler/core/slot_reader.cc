#include "scheduler/core/slot_reader.h"

#include <algorithm>

#include "proto/abi/atomic.h"

namespace rubato::core {
namespace {

using abi::LoadAcquire;
using abi::LoadRelaxed;

// Copies a record word by word: the writer may be at it.
template <typename Record>
Record CopyRecord(const Record& from) {
  static_assert(sizeof(Record) % sizeof(uint64_t) == 0);
  Record copy;
  const auto* source = reinterpret_cast<const uint64_t*>(&from);
  auto* target = reinterpret_cast<uint64_t*>(&copy);
  for (size_t i = 0; i < sizeof(Record) / sizeof(uint64_t); ++i)
    target[i] = __atomic_load_n(source + i, __ATOMIC_RELAXED);
  return copy;
}

// Copies what is new of a ring, calls `take` for each record that was surely whole, and returns how
// many were lost. A head that jumps ahead by more than the ring loses records; one that goes back
// is believed anew from where it is.
template <typename Record, typename Take>
uint64_t Drain(const uint64_t& shared_head, const Record* ring, uint64_t size, uint64_t* tail,
               std::vector<Record>* scratch, Take take) {
  const uint64_t head = LoadAcquire(shared_head);
  if (head < *tail) {
    *tail = head;
    return 0;
  }
  uint64_t lost = 0;
  if (head - *tail > size) {
    lost = head - size - *tail;
    *tail = head - size;
  }
  const uint64_t first = *tail;
  scratch->clear();
  for (uint64_t i = first; i != head; ++i) scratch->push_back(CopyRecord(ring[i % size]));
  *tail = head;
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  // While the copies were made the writer may have come round and be at record `after` now.
  const uint64_t after = LoadRelaxed(shared_head);
  uint64_t overwritten = 0;
  if (after > first + size - 1) overwritten = std::min(after - (first + size - 1), head - first);
  for (uint64_t i = overwritten; i < head - first; ++i) take((*scratch)[i]);
  return std::min<uint64_t>(lost, uint64_t{1} << 20) + overwritten;
}

}  // namespace

SlotReader::SlotReader(const abi::SlotRegion* slot, bool skip_history) : slot_(slot) {
  if (!skip_history) return;
  job_tail_ = LoadAcquire(slot_->heads.job_head);
  sample_tail_ = LoadAcquire(slot_->heads.sample_head);
  for (size_t i = 0; i < kCounterCount; ++i)
    last_counters_[i] = LoadRelaxed(slot_->counters.value[i]);
  last_refused_ = LoadRelaxed(slot_->memory.refused);
}

void SlotReader::ReadJobs(base::Nanos now_ns, SlotReading* reading) {
  static thread_local std::vector<abi::JobRecord> scratch;
  const auto now = static_cast<uint64_t>(now_ns);
  reading->jobs_lost = Drain(
      slot_->heads.job_head, slot_->jobs, abi::kJobRing, &job_tail_, &scratch,
      [&](const abi::JobRecord& record) {
        if (record.first_op_ns == 0 || record.end_ns < record.first_op_ns || record.end_ns > now) {
          ++reading->rejected;
          return;
        }
        reading->jobs.push_back(JobPiece{static_cast<base::Nanos>(record.first_op_ns),
                                         static_cast<base::Nanos>(record.end_ns), record.op_count,
                                         (record.flags & abi::kJobContinued) != 0});
      });
}

void SlotReader::ReadSamples(SlotReading* reading) {
  static thread_local std::vector<abi::SampleRecord> scratch;
  reading->samples_lost = Drain(
      slot_->heads.sample_head, slot_->samples, abi::kSampleRing, &sample_tail_, &scratch,
      [&](const abi::SampleRecord& record) {
        if (record.key == 0 || record.key == ~uint64_t{0} || record.base_key == 0 ||
            record.base_key == ~uint64_t{0} || record.duration_ns == 0 || record.sm_permille == 0 ||
            record.sm_permille > 1000 ||
            record.kind > static_cast<uint32_t>(abi::OpKind::kSegment)) {
          ++reading->rejected;
          return;
        }
        reading->samples.push_back(Sample{record.key, record.base_key, record.duration_ns,
                                          record.sm_permille, static_cast<abi::OpKind>(record.kind),
                                          (record.flags & abi::kSampleDisturbed) != 0});
      });
}

void SlotReader::Read(base::Nanos now_ns, SlotReading* reading) {
  reading->jobs.clear();
  reading->samples.clear();
  reading->jobs_lost = reading->samples_lost = reading->rejected = 0;
  reading->active = false;

  const uint32_t state = LoadRelaxed(slot_->job.state);
  const uint64_t first_op_ns = LoadRelaxed(slot_->job.first_op_ns);
  reading->job_open = (state == static_cast<uint32_t>(abi::JobState::kOpen) ||
                       state == static_cast<uint32_t>(abi::JobState::kDraining)) &&
                      first_op_ns != 0 && first_op_ns <= static_cast<uint64_t>(now_ns);
  reading->job_first_op_ns = reading->job_open ? static_cast<base::Nanos>(first_op_ns) : 0;

  reading->used_bytes = std::min(LoadRelaxed(slot_->memory.used_bytes), kMostBytes);
  reading->peak_bytes = std::min(LoadRelaxed(slot_->memory.peak_bytes), kMostBytes);
  const uint64_t refused = LoadRelaxed(slot_->memory.refused);
  reading->memory_refused = refused > last_refused_ && refused - last_refused_ < kMostIncrement
                                ? refused - last_refused_
                                : 0;
  last_refused_ = refused;

  const uint32_t detached = LoadRelaxed(slot_->session.detached);
  reading->detached = detached < static_cast<uint32_t>(abi::DetachReason::kCount)
                          ? static_cast<abi::DetachReason>(detached)
                          : abi::DetachReason::kNone;
  reading->shim_build = LoadRelaxed(slot_->session.shim_build);

  for (size_t i = 0; i < kCounterCount; ++i) {
    const uint64_t value = LoadRelaxed(slot_->counters.value[i]);
    const uint64_t increment = value - last_counters_[i];  // Wraps for one that goes back.
    reading->counters[i] = increment < kMostIncrement ? increment : 0;
    if (increment != 0) reading->active = true;
    last_counters_[i] = value;
  }
  ReadJobs(now_ns, reading);
  ReadSamples(reading);
  if (!reading->jobs.empty() || !reading->samples.empty() || reading->job_open)
    reading->active = true;
}

}  // namespace rubato::core
