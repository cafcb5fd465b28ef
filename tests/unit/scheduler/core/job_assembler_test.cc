#include "scheduler/core/job_assembler.h"

#include <gtest/gtest.h>

namespace rubato::core {
namespace {

AssembledJobs Take(JobAssembler* assembler, const std::vector<JobPiece>& pieces,
                   base::Nanos think_ns, base::Nanos now_ns, base::Nanos open_ns = 0) {
  AssembledJobs out;
  assembler->Take(pieces, open_ns, think_ns, now_ns, &out);
  return out;
}

TEST(JobAssemblerTest, WithoutThinkTimeEachPieceIsAJob) {
  JobAssembler assembler;
  const AssembledJobs out = Take(&assembler, {{100, 200, 3, false}, {210, 250, 4, false}}, 0, 250);
  ASSERT_EQ(out.jobs.size(), 2u);
  EXPECT_EQ(out.jobs[1].first_op_ns, 210);
  ASSERT_EQ(out.gaps.size(), 1u);
  EXPECT_EQ(out.gaps[0].gap_ns, 10);
  EXPECT_EQ(out.gaps[0].at_ns, 210);
  EXPECT_EQ(out.open_ns, 140);
}

TEST(JobAssemblerTest, PiecesWithinTheThinkTimeAreOneJob) {
  JobAssembler assembler;
  const AssembledJobs out =
      Take(&assembler, {{100, 200, 3, false}, {210, 250, 4, false}}, 50, 1000);
  ASSERT_EQ(out.jobs.size(), 1u);
  EXPECT_EQ(out.jobs[0].first_op_ns, 100);
  EXPECT_EQ(out.jobs[0].end_ns, 250);
  EXPECT_EQ(out.jobs[0].op_count, 7u);
  EXPECT_EQ(out.jobs[0].pieces, 2u);
}

TEST(JobAssemblerTest, TheSessionsWordCountsWhereItKnewALongerThinkTime) {
  JobAssembler assembler;
  const AssembledJobs out = Take(&assembler, {{100, 200, 3, false}, {300, 350, 4, true}}, 50, 1000);
  EXPECT_EQ(out.jobs.size(), 1u);
}

TEST(JobAssemblerTest, AJobIsCompleteOnlyAfterTheThinkTime) {
  JobAssembler assembler;
  EXPECT_TRUE(Take(&assembler, {{100, 200, 3, false}}, 50, 220).jobs.empty());
  // An op has followed in time: the job goes on, however long.
  EXPECT_TRUE(Take(&assembler, {}, 50, 9000, 240).jobs.empty());
  EXPECT_EQ(Take(&assembler, {{240, 9100, 1, true}}, 50, 9200).jobs.size(), 1u);
  EXPECT_TRUE(Take(&assembler, {}, 50, 99999).jobs.empty()) << "reported once";
}

TEST(JobAssemblerTest, AnOpenJobThatBeganLaterDoesNotKeepTheLastOne) {
  JobAssembler assembler;
  EXPECT_EQ(Take(&assembler, {{100, 200, 3, false}}, 50, 400, 300).jobs.size(), 1u);
}

TEST(JobAssemblerTest, AGapIsSeenAcrossPolls) {
  JobAssembler assembler;
  Take(&assembler, {{100, 200, 3, false}}, 0, 400);
  const AssembledJobs out = Take(&assembler, {{700, 800, 3, false}}, 0, 900);
  ASSERT_EQ(out.gaps.size(), 1u);
  EXPECT_EQ(out.gaps[0].gap_ns, 500);
  EXPECT_EQ(out.gaps[0].at_ns, 700);
}

TEST(JobAssemblerTest, PiecesThatOverlapCountOnce) {
  JobAssembler assembler;
  const AssembledJobs out =
      Take(&assembler, {{100, 900, 1, false}, {100, 900, 1, false}, {50, 950, 1, false}}, 0, 1000);
  EXPECT_EQ(out.jobs.size(), 1u);
  EXPECT_EQ(out.open_ns, 800);
}

TEST(JobAssemblerTest, OpCountsSaturate) {
  JobAssembler assembler;
  const AssembledJobs out =
      Take(&assembler, {{100, 200, 0xfffffff0u, false}, {201, 300, 0xfffffff0u, true}}, 50, 1000);
  ASSERT_EQ(out.jobs.size(), 1u);
  EXPECT_EQ(out.jobs[0].op_count, 0xffffffffu);
}

}  // namespace
}  // namespace rubato::core
