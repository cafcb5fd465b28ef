#include "scheduler/core/job_ledger.h"

#include <gtest/gtest.h>

#include <numeric>

namespace rubato::core {
namespace {

using base::kMicrosecond;
using base::kMillisecond;

Job JobOf(base::Nanos first_op_ns, base::Nanos length_ns) {
  return Job{first_op_ns, first_op_ns + length_ns, 1, 1};
}

TEST(JobLedgerTest, EmptyIsZero) {
  const JobLedger ledger;
  EXPECT_EQ(ledger.ResponseQuantile(500), 0);
  EXPECT_EQ(ledger.mret_ns(), 0);
  EXPECT_EQ(ledger.totals().jobs, 0u);
}

TEST(JobLedgerTest, QuantilesAreResponsesThatOccurred) {
  JobLedger ledger;
  for (int i = 1; i <= 100; ++i) ledger.OnJob(JobOf(1000, i * kMicrosecond), 1000, 0);
  EXPECT_EQ(ledger.ResponseQuantile(500), 50 * kMicrosecond);
  EXPECT_EQ(ledger.ResponseQuantile(990), 99 * kMicrosecond);
  EXPECT_EQ(ledger.ResponseQuantile(1000), 100 * kMicrosecond);
  EXPECT_EQ(ledger.ResponseQuantile(0), kMicrosecond);
}

TEST(JobLedgerTest, OldResponsesLeaveTheQuantiles) {
  JobLedger ledger;
  ledger.OnJob(JobOf(1000, base::kSecond), 1000, 0);
  for (int i = 0; i < 512; ++i) ledger.OnJob(JobOf(1000, kMillisecond), 1000, 0);
  EXPECT_EQ(ledger.ResponseQuantile(1000), kMillisecond);
  EXPECT_EQ(ledger.totals().jobs, 513u);
}

TEST(JobLedgerTest, ADeadlineIsMissedOnlyBeyondIt) {
  JobLedger ledger;
  ledger.OnJob(JobOf(1000, kMillisecond), 1000, kMillisecond);
  EXPECT_EQ(ledger.totals().deadline_misses, 0u);
  ledger.OnJob(JobOf(1000, kMillisecond), 999, kMillisecond);
  EXPECT_EQ(ledger.totals().deadline_misses, 1u);
  ledger.OnJob(JobOf(1000, base::kSecond), 1000, 0);
  EXPECT_EQ(ledger.totals().deadline_misses, 1u) << "no deadline";
  ledger.OnJob(JobOf(1000, 3 * kMillisecond), 1000, kMillisecond);
  EXPECT_EQ(ledger.totals().tardiness_ns, 2 * kMillisecond + 1) << "time after deadlines";
}

TEST(JobLedgerTest, BucketsHoldEachJobOnce) {
  JobLedger ledger;
  ledger.OnJob(JobOf(1000, kResponseBounds[3]), 1000, 0);
  ledger.OnJob(JobOf(1000, kResponseBounds[3] + 1), 1000, 0);
  ledger.OnJob(JobOf(1000, 1000 * base::kSecond), 1000, 0);
  const JobTotals& totals = ledger.totals();
  EXPECT_EQ(totals.buckets[3], 1u) << "a bound belongs to its bucket";
  EXPECT_EQ(totals.buckets[4], 1u);
  EXPECT_EQ(totals.buckets.back(), 1u);
  EXPECT_EQ(std::accumulate(totals.buckets.begin(), totals.buckets.end(), uint64_t{0}), 3u);
}

TEST(JobLedgerTest, MretIsTheLongestOfFive) {
  JobLedger ledger;
  ledger.OnJob(JobOf(1000, 9 * kMillisecond), 1000, 0);
  for (int i = 0; i < 4; ++i) ledger.OnJob(JobOf(1000, kMillisecond), 1000, 0);
  EXPECT_EQ(ledger.mret_ns(), 9 * kMillisecond);
  ledger.OnJob(JobOf(1000, 2 * kMillisecond), 1000, 0);
  EXPECT_EQ(ledger.mret_ns(), 2 * kMillisecond);
}

}  // namespace
}  // namespace rubato::core
