// Reads one session's slot: copies, checks the copies, and hands on only what was checked.
//
// The slot is written by a tenant and may hold anything, change at any time and lie about time.
// This is the only place in the scheduler that reads one. It keeps the tails of the rings and the
// last counter values, so that everything it returns is new since the last read. Pure: the slot is
// memory, the time an argument.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/time.h"
#include "proto/abi/profile.h"
#include "proto/abi/slot.h"

namespace rubato::core {

inline constexpr size_t kCounterCount = static_cast<size_t>(abi::Counter::kCount);

struct JobPiece {  // A checked JobRecord: first_op_ns <= end_ns <= now.
  base::Nanos first_op_ns;
  base::Nanos end_ns;
  uint32_t op_count;
  bool continued;  // Continues the job of the piece before it.
};

struct Sample {  // A checked SampleRecord: keys not 0, duration not 0, share 1 to 1000.
  uint64_t key;
  uint64_t base_key;
  uint32_t duration_ns;
  uint32_t sm_permille;
  abi::OpKind kind;
  bool disturbed;  // A neighbour may have run in between: an upper bound.
};

struct SlotReading {
  // Of this moment.
  bool job_open = false;  // State open or draining, with a beginning that is not in the future.
  base::Nanos job_first_op_ns = 0;
  uint64_t used_bytes = 0;
  uint64_t peak_bytes = 0;
  uint64_t memory_refused = 0;
  abi::DetachReason detached = abi::DetachReason::kNone;
  uint32_t shim_build = 0;
  // New since the last reading.
  std::vector<JobPiece> jobs;
  std::vector<Sample> samples;
  std::array<uint64_t, kCounterCount> counters{};  // Increments.
  uint64_t jobs_lost = 0;                          // Records overwritten before they were read.
  uint64_t samples_lost = 0;
  uint64_t rejected = 0;  // Records that could not be true.
  bool active = false;    // Something moved.
};

class SlotReader {
 public:
  // `slot` must stay mapped for as long as the reader is used. Begins at the rings' present heads
  // if `skip_history` (a slot handed back after a restart), else at their beginning.
  SlotReader(const abi::SlotRegion* slot, bool skip_history);

  // `reading` is overwritten; its vectors keep their storage.
  void Read(base::Nanos now_ns, SlotReading* reading);

 private:
  void ReadJobs(base::Nanos now_ns, SlotReading* reading);
  void ReadSamples(SlotReading* reading);

  const abi::SlotRegion* slot_;
  uint64_t job_tail_ = 0;
  uint64_t sample_tail_ = 0;
  std::array<uint64_t, kCounterCount> last_counters_{};
  uint64_t last_refused_ = 0;
};

// Largest number of bytes a device can have, for what a tenant says about its memory.
inline constexpr uint64_t kMostBytes = uint64_t{1} << 50;
// A counter that grows by more than this between two readings lies.
inline constexpr uint64_t kMostIncrement = uint64_t{1} << 42;

}  // namespace rubato::core
