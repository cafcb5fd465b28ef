// What is counted about the jobs of one real-time tenant on one device: responses, misses, lengths.
//
// Pure accounting; which release a job answered is the release model's business. MRET, the longest
// of the last few executions, is the execution-time estimate of DARIS (section "Execution time
// estimation": an estimate that follows the load instead of a worst case measured once).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/core/job.h"

namespace rubato::core {

// Upper bounds of the response-time histogram; one more bucket counts what lies beyond.
inline constexpr std::array<base::Nanos, 22> kResponseBounds = {
    50'000,      100'000,     200'000,       300'000,      500'000,    700'000,
    1'000'000,   1'500'000,   2'000'000,     3'000'000,    5'000'000,  7'000'000,
    10'000'000,  15'000'000,  20'000'000,    30'000'000,   50'000'000, 100'000'000,
    200'000'000, 500'000'000, 1'000'000'000, 5'000'000'000};

struct JobTotals {
  uint64_t jobs = 0;
  uint64_t responses = 0;  // Jobs whose response counts: not those of a warm-up.
  uint64_t deadline_misses = 0;
  base::Nanos response_sum_ns = 0;
  base::Nanos tardiness_ns = 0;  // Sum of the times by which jobs ended after their deadline.
  base::Nanos busy_ns = 0;       // Sum of the jobs' lengths from first op to end.
  std::array<uint64_t, kResponseBounds.size() + 1> buckets{};  // Not cumulative.

  void Add(const JobTotals& other);
};

class JobLedger {
 public:
  // A job whose release is known: `release_ns` <= job.end_ns; `deadline_ns` counts from it, 0:
  // none.
  void OnJob(const Job& job, base::Nanos release_ns, base::Nanos deadline_ns);
  // A job of which nobody can say when it was due: it counts, its response does not.
  void OnUnpromisedJob(const Job& job);
  // Quantiles begin anew, totals stay.
  void ForgetRecent();

  const JobTotals& totals() const { return totals_; }
  // Of the last responses (at most 512); `permille` 500 is the median, 1000 the maximum; 0 if none.
  base::Nanos ResponseQuantile(uint32_t permille) const;
  // Longest of the last five executions; 0 if none.
  base::Nanos mret_ns() const;

 private:
  static constexpr size_t kRecent = 512;
  static constexpr size_t kMretJobs = 5;

  JobTotals totals_;
  std::vector<base::Nanos> recent_;  // Ring of responses.
  size_t next_recent_ = 0;
  std::array<base::Nanos, kMretJobs> lengths_{};
  size_t next_length_ = 0;
};

}  // namespace rubato::core
