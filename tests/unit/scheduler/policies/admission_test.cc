// Who fits and who does not, and whether the numbers said are the ones that decided.

#include "scheduler/policies/admission.h"

#include <gtest/gtest.h>

#include <limits>

namespace rubato::policies {
namespace {

constexpr Nanos kMs = kMillisecond;

AdmissionRules Rules(RealtimeOrder order = RealtimeOrder::kNone,
                     core::Mode mode = core::Mode::kTimeslice) {
  AdmissionRules rules;
  rules.order = order;
  rules.mode = mode;
  rules.constants.bound_ns = 300 * kMicrosecond;
  rules.constants.switch_ns = 100 * kMicrosecond;
  rules.constants.admission_reserve_permille = 100;
  return rules;
}

RealtimeClaim Share(uint32_t permille, core::TenantId id = 1) {
  RealtimeClaim claim;
  claim.id = id;
  claim.name = "tenant-" + std::to_string(id);
  claim.share_permille = permille;
  return claim;
}

RealtimeClaim Periodic(Nanos period_ns, Nanos job_ns, core::TenantId id = 1,
                       Nanos deadline_ns = 0) {
  RealtimeClaim claim = Share(0, id);
  claim.period_ns = period_ns;
  claim.deadline_ns = deadline_ns;
  claim.job_ns = job_ns;
  return claim;
}

DeviceLoad Load(std::vector<RealtimeClaim> realtime, Nanos longest_op_ns = 0) {
  return DeviceLoad{"GPU-1", std::move(realtime), longest_op_ns};
}

TEST(AdmissionTest, DemandIsTheShareElseWhatIsMeasured) {
  EXPECT_EQ(DemandPermille(Share(300)), 300u);
  EXPECT_EQ(DemandPermille(Periodic(10 * kMs, 2 * kMs)), 200u);
  EXPECT_EQ(DemandPermille(Periodic(3 * kMs, 1 * kMs)), 334u) << "rounded up";
  EXPECT_EQ(DemandPermille(Periodic(0, 2 * kMs)), 0u);
  EXPECT_EQ(DemandPermille(Periodic(10 * kMs, 0)), 0u);
  RealtimeClaim both = Periodic(10 * kMs, 9 * kMs);
  both.share_permille = 300;
  EXPECT_EQ(DemandPermille(both), 300u) << "slots are what was promised";
}

TEST(AdmissionTest, OneTenantMayHaveAllSeveralKeepTheReserve) {
  EXPECT_EQ(TestAdmission(Share(1000), Load({}), Rules()).verdict, AdmissionVerdict::kAdmitted);
  EXPECT_EQ(TestAdmission(Share(1000), Load({}), Rules()).capacity_permille, 1000u);
  const AdmissionTest full = TestAdmission(Share(300), Load({Share(600, 2)}), Rules());
  EXPECT_EQ(full.verdict, AdmissionVerdict::kAdmitted);
  EXPECT_EQ(full.demand_permille, 900u);
  EXPECT_EQ(full.capacity_permille, 900u);
  const AdmissionTest over = TestAdmission(Share(400), Load({Share(600, 2)}), Rules());
  EXPECT_EQ(over.verdict, AdmissionVerdict::kDemand);
  EXPECT_EQ(over.demand_permille, 1000u);
  EXPECT_EQ(over.own_permille, 400u);
  EXPECT_EQ(over.capacity_permille, 900u);
  EXPECT_EQ(over.others, 1u);
}

TEST(AdmissionTest, WhatIsUnknownCountsAsNothingAndIsSaid) {
  const AdmissionTest test =
      TestAdmission(Periodic(10 * kMs, 0), Load({Share(600, 2), Periodic(0, 0, 3)}), Rules());
  EXPECT_EQ(test.verdict, AdmissionVerdict::kAdmitted);
  EXPECT_EQ(test.demand_permille, 600u);
  EXPECT_EQ(test.unknown_tenants, 2u);
  const std::string text = DescribeAdmission(test, Load({}));
  EXPECT_NE(text.find("its demand is not known yet"), std::string::npos) << text;
  EXPECT_NE(text.find("demand of one other not known yet"), std::string::npos) << text;
}

TEST(AdmissionTest, TheResponseIsBlockingAndJobs) {
  const AdmissionTest test = TestAdmission(Periodic(20 * kMs, 2 * kMs, 1, 6 * kMs),
                                           Load({Periodic(50 * kMs, 3 * kMs, 2)}), Rules());
  EXPECT_EQ(test.verdict, AdmissionVerdict::kAdmitted);
  EXPECT_EQ(test.blocking_ns, 400 * kMicrosecond);
  EXPECT_EQ(test.interference_ns, 3 * kMs);
  EXPECT_EQ(test.response_ns, 5 * kMs + 400 * kMicrosecond);
  EXPECT_EQ(test.deadline_ns, 6 * kMs);
  const AdmissionTest late = TestAdmission(Periodic(20 * kMs, 2 * kMs, 1, 5 * kMs),
                                           Load({Periodic(50 * kMs, 3 * kMs, 2)}), Rules());
  EXPECT_EQ(late.verdict, AdmissionVerdict::kResponseTime);
  EXPECT_EQ(DescribeAdmission(late, Load({})),
            "a job could end 5.4ms after its release on GPU-1, and the deadline is 5ms: 400us "
            "blocked, 3ms jobs of others, 2ms its own");
}

TEST(AdmissionTest, JobsThatComeMeanwhileCountAgain) {
  // Alone 4.4 ms; the first job of the other makes it 6.4, by when its second is released, which
  // makes it 8.4; the third comes at 10.
  const AdmissionTest test = TestAdmission(Periodic(20 * kMs, 4 * kMs, 1, 8 * kMs),
                                           Load({Periodic(5 * kMs, 2 * kMs, 2)}), Rules());
  EXPECT_EQ(test.verdict, AdmissionVerdict::kResponseTime);
  EXPECT_EQ(test.response_ns, 8 * kMs + 400 * kMicrosecond);
}

TEST(AdmissionTest, ADeviceThatIsOverfullHasNoResponseButAnEnd) {
  RealtimeClaim other = Periodic(1, std::numeric_limits<Nanos>::max(), 2);
  other.share_permille = 10;  // So that demand does not refuse it first.
  RealtimeClaim claim = Periodic(kMs, std::numeric_limits<Nanos>::max(), 1, kMs);
  claim.share_permille = 10;
  const AdmissionTest test = TestAdmission(claim, Load({other}), Rules());
  EXPECT_EQ(test.verdict, AdmissionVerdict::kResponseTime);
  EXPECT_GE(test.response_ns, core::kLongestPeriodNs);
  RealtimeClaim negative = Periodic(-5, -7, 3, -1);
  EXPECT_EQ(DemandPermille(negative), 0u);
}

TEST(AdmissionTest, WithoutAPeriodTheLongestOpMayBeInTheWay) {
  const RealtimeClaim aperiodic = Periodic(0, kMs, 1, 5 * kMs);
  const RealtimeClaim periodic = Periodic(10 * kMs, kMs, 1, 5 * kMs);
  EXPECT_EQ(TestAdmission(aperiodic, Load({}, 8 * kMs), Rules()).blocking_ns,
            8 * kMs + 100 * kMicrosecond);
  EXPECT_EQ(TestAdmission(aperiodic, Load({}, 8 * kMs), Rules()).verdict,
            AdmissionVerdict::kResponseTime);
  EXPECT_EQ(TestAdmission(aperiodic, Load({}, kMicrosecond), Rules()).blocking_ns,
            400 * kMicrosecond);
  EXPECT_EQ(TestAdmission(periodic, Load({}, 8 * kMs), Rules()).blocking_ns, 400 * kMicrosecond)
      << "the gate lets such an op go only where it ends before the release";
}

TEST(AdmissionTest, InOneContextNothingIsSwitched) {
  EXPECT_EQ(TestAdmission(Periodic(10 * kMs, kMs), Load({}),
                          Rules(RealtimeOrder::kNone, core::Mode::kMps))
                .blocking_ns,
            300 * kMicrosecond);
  EXPECT_EQ(TestAdmission(Periodic(10 * kMs, kMs), Load({}),
                          Rules(RealtimeOrder::kNone, core::Mode::kHybrid))
                .blocking_ns,
            400 * kMicrosecond);
}

TEST(AdmissionTest, EvenAJobOfUnknownLengthMayBeTooLate) {
  const AdmissionTest test =
      TestAdmission(Periodic(kMs, 0, 1, 200 * kMicrosecond), Load({}), Rules());
  EXPECT_EQ(test.verdict, AdmissionVerdict::kResponseTime);
  EXPECT_NE(DescribeAdmission(test, Load({})).find("its own length not known yet"),
            std::string::npos);
}

TEST(AdmissionTest, WithoutADeadlineThereIsNothingToMiss) {
  EXPECT_EQ(TestAdmission(Periodic(0, kSecond), Load({}), Rules()).verdict,
            AdmissionVerdict::kAdmitted);
}

TEST(AdmissionTest, ANewcomerMakesNobodyLate) {
  // The one that is there: 0.4 + 3 of 6 ms. With the newcomer's 4 ms: 7.4.
  const std::vector<RealtimeClaim> there = {Periodic(20 * kMs, 3 * kMs, 1, 6 * kMs)};
  const RealtimeClaim newcomer = Periodic(50 * kMs, 4 * kMs, 2, 50 * kMs);
  const AdmissionTest test = TestAdmission(newcomer, Load(there), Rules());
  EXPECT_EQ(test.verdict, AdmissionVerdict::kResponseTime);
  EXPECT_EQ(test.late_name, "tenant-1");
  EXPECT_EQ(test.late_response_ns, 7 * kMs + 400 * kMicrosecond);
  EXPECT_EQ(DescribeAdmission(test, Load(there)),
            "with it on GPU-1, a job of tenant-1 could end 7.4ms after its release, and its "
            "deadline is 6ms");
  // One that is late by itself refuses nobody.
  const std::vector<RealtimeClaim> late = {Periodic(20 * kMs, 3 * kMs, 1, kMs)};
  EXPECT_EQ(TestAdmission(newcomer, Load(late), Rules()).verdict, AdmissionVerdict::kAdmitted);
}

TEST(AdmissionTest, OrderedByUrgencyOnlyTheUrgentGoFirst) {
  const AdmissionRules rules = Rules(RealtimeOrder::kUrgency);
  const RealtimeClaim urgent = Periodic(10 * kMs, 2 * kMs, 1, 5 * kMs);
  const RealtimeClaim patient = Periodic(50 * kMs, 6 * kMs, 2, 40 * kMs);
  AdmissionTest test = TestAdmission(patient, Load({urgent}), rules);
  EXPECT_EQ(test.blocking_ns, 400 * kMicrosecond);
  EXPECT_EQ(test.interference_ns, 2 * kMs);
  EXPECT_EQ(test.verdict, AdmissionVerdict::kResponseTime) << "the urgent one waits for its 6 ms";
  EXPECT_EQ(test.late_response_ns, 8 * kMs + 100 * kMicrosecond);
  test = TestAdmission(urgent, Load({patient}), rules);
  EXPECT_EQ(test.blocking_ns, 6 * kMs + 100 * kMicrosecond) << "which cannot be interrupted";
  EXPECT_EQ(test.interference_ns, 0);
  RealtimeClaim prior = patient;
  prior.priority = 0;
  RealtimeClaim later = urgent;
  later.priority = 5;
  EXPECT_EQ(TestAdmission(later, Load({prior}), rules).interference_ns, 6 * kMs);
}

TEST(AdmissionTest, TheSameQuestionHasTheSameAnswer) {
  const DeviceLoad load = Load({Share(200, 3), Periodic(10 * kMs, 2 * kMs, 4, 9 * kMs)}, 5 * kMs);
  const RealtimeClaim claim = Periodic(7 * kMs, kMs, 9, 6 * kMs);
  EXPECT_EQ(DescribeAdmission(TestAdmission(claim, load, Rules()), load),
            DescribeAdmission(TestAdmission(claim, load, Rules()), load));
}

TEST(AdmissionTest, WordsForPeopleHaveTheNumbers) {
  const DeviceLoad load = Load({Share(400, 2), Share(200, 3)});
  const AdmissionTest refused = TestAdmission(Share(400), load, Rules());
  EXPECT_EQ(DescribeAdmission(refused, load),
            "real-time tenants of GPU-1 would ask for 100 % of it, and 90 % can be promised: this "
            "one asks for 40 %, 2 others for 60 %");
  RealtimeClaim claim = Share(300);
  claim.period_ns = 10 * kMs;
  claim.deadline_ns = 8 * kMs;
  const AdmissionTest granted = TestAdmission(claim, load, Rules());
  EXPECT_EQ(DescribeAdmission(granted, load),
            "real-time on GPU-1: 30 %, 90 % of 90 % asked for in all; length of its jobs not known "
            "yet, response at least 400us of 8ms");
  claim.job_ns = 2 * kMs;
  claim.share_permille = 125;
  EXPECT_EQ(DescribeAdmission(TestAdmission(claim, Load({}), Rules()), Load({})),
            "real-time on GPU-1: 12.5 %, 12.5 % of 100 % asked for in all; response at most 2.4ms "
            "of 8ms");
  EXPECT_EQ(std::string(ReasonOf(AdmissionVerdict::kResponseTime)), "response-time");
}

}  // namespace
}  // namespace rubato::policies
