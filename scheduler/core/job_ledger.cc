#include "scheduler/core/job_ledger.h"

#include <algorithm>

namespace rubato::core {

void JobTotals::Add(const JobTotals& other) {
  jobs += other.jobs;
  responses += other.responses;
  deadline_misses += other.deadline_misses;
  response_sum_ns += other.response_sum_ns;
  tardiness_ns += other.tardiness_ns;
  busy_ns += other.busy_ns;
  for (size_t i = 0; i < buckets.size(); ++i) buckets[i] += other.buckets[i];
}

void JobLedger::OnUnpromisedJob(const Job& job) {
  const base::Nanos length_ns = std::max<base::Nanos>(0, job.end_ns - job.first_op_ns);
  ++totals_.jobs;
  totals_.busy_ns += length_ns;
  lengths_[next_length_] = length_ns;
  next_length_ = (next_length_ + 1) % kMretJobs;
}

void JobLedger::OnJob(const Job& job, base::Nanos release_ns, base::Nanos deadline_ns) {
  OnUnpromisedJob(job);
  const base::Nanos response_ns = std::max<base::Nanos>(0, job.end_ns - release_ns);
  ++totals_.responses;
  if (deadline_ns != 0 && response_ns > deadline_ns) {
    ++totals_.deadline_misses;
    totals_.tardiness_ns += response_ns - deadline_ns;
  }
  totals_.response_sum_ns += response_ns;
  const auto bucket = std::lower_bound(kResponseBounds.begin(), kResponseBounds.end(), response_ns);
  ++totals_.buckets[static_cast<size_t>(bucket - kResponseBounds.begin())];
  if (recent_.size() < kRecent) {
    recent_.push_back(response_ns);
  } else {
    recent_[next_recent_] = response_ns;
    next_recent_ = (next_recent_ + 1) % kRecent;
  }
}

void JobLedger::ForgetRecent() {
  recent_.clear();
  next_recent_ = 0;
}

base::Nanos JobLedger::ResponseQuantile(uint32_t permille) const {
  if (recent_.empty()) return 0;
  std::vector<base::Nanos> sorted = recent_;
  // The smallest response that at least `permille` of the jobs did not exceed.
  size_t rank = (sorted.size() * std::min(permille, 1000u) + 999) / 1000;
  if (rank > 0) --rank;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(rank),
                   sorted.end());
  return sorted[rank];
}

base::Nanos JobLedger::mret_ns() const {
  return *std::max_element(lengths_.begin(), lengths_.end());
}

}  // namespace rubato::core
