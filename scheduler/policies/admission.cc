#include "scheduler/policies/admission.h"

#include <algorithm>
#include <tuple>

namespace rubato::policies {
namespace {

// What is learnt comes from tenants: beyond these nothing is told apart, and sums stay far from the
// ends of 64 bits.
constexpr Nanos kLongestJobNs = core::kLongestPeriodNs;
constexpr uint32_t kMostPermille = 10'000;
// A response that has grown so far grows on without end.
constexpr Nanos kHopelessNs = 4 * core::kLongestPeriodNs;
constexpr Nanos kMostJobs = 1'000'000;

Nanos JobOf(const RealtimeClaim& claim) {
  return std::clamp<Nanos>(claim.job_ns, 0, kLongestJobNs);
}

bool MoreUrgent(const RealtimeClaim& a, const RealtimeClaim& b) {
  const auto key = [](const RealtimeClaim& claim) {
    return std::make_tuple(claim.priority, claim.deadline_ns == 0, claim.deadline_ns, claim.id);
  };
  return key(a) < key(b);
}

struct Response {
  Nanos blocking_ns = 0;
  Nanos interference_ns = 0;
  Nanos response_ns = 0;
};

// Of `claim` beside `others`; an entry that is `claim` itself is passed over.
Response ResponseOf(const RealtimeClaim& claim, const std::vector<const RealtimeClaim*>& others,
                    Nanos longest_op_ns, const AdmissionRules& rules) {
  const Constants& constants = rules.constants;
  Response out;
  // Against a release that nobody predicts there is work in flight up to the bound, and an op that
  // is longer goes when nothing else is. Where releases are predicted an op goes only if it ends
  // before the next one; the bound is left for the times when the prediction is lost.
  out.blocking_ns = claim.period_ns != 0
                        ? constants.bound_ns
                        : std::max(constants.bound_ns, std::min(longest_op_ns, kLongestJobNs));
  std::vector<const RealtimeClaim*> ahead;
  for (const RealtimeClaim* other : others) {
    if (other == &claim) continue;
    if (rules.order == RealtimeOrder::kNone || MoreUrgent(*other, claim)) {
      ahead.push_back(other);
    } else {
      out.blocking_ns = std::max(out.blocking_ns, JobOf(*other));
    }
  }
  if (rules.mode != core::Mode::kMps) out.blocking_ns += constants.switch_ns;

  Nanos interference_ns = 0;
  for (const RealtimeClaim* other : ahead) interference_ns += JobOf(*other);
  const Nanos alone_ns = out.blocking_ns + JobOf(claim);
  // Each round counts the jobs that are released while the ones counted before run.
  for (;;) {
    const Nanos response_ns = alone_ns + interference_ns;
    Nanos next_ns = 0;
    for (const RealtimeClaim* other : ahead) {
      const Nanos jobs =
          other->period_ns <= 0 ? 1 : (response_ns + other->period_ns - 1) / other->period_ns;
      next_ns = std::min(next_ns + std::min(jobs, kMostJobs) * JobOf(*other), kHopelessNs);
      if (next_ns >= kHopelessNs) break;
    }
    if (next_ns <= interference_ns || response_ns >= kHopelessNs) break;
    interference_ns = next_ns;
  }
  out.interference_ns = interference_ns;
  out.response_ns = alone_ns + interference_ns;
  return out;
}

std::string PerCent(uint32_t permille) {
  std::string text = std::to_string(permille / 10);
  if (permille % 10 != 0) text += "." + std::to_string(permille % 10);
  return text + " %";
}

std::string Tenants(uint32_t count, const char* one, const char* several) {
  return count == 1 ? std::string("one ") + one : std::to_string(count) + " " + several;
}

// Four digits say enough.
std::string Time(Nanos time_ns) {
  Nanos step = 1;
  while (time_ns / step >= 10'000) step *= 10;
  return base::FormatDuration((time_ns + step / 2) / step * step);
}

}  // namespace

uint32_t DemandPermille(const RealtimeClaim& claim) {
  if (claim.share_permille != 0) return std::min(claim.share_permille, kMostPermille);
  if (claim.period_ns <= 0 || claim.job_ns <= 0) return 0;
  const Nanos permille = (JobOf(claim) * 1000 + claim.period_ns - 1) / claim.period_ns;
  return static_cast<uint32_t>(std::min<Nanos>(permille, kMostPermille));
}

uint32_t CapacityPermille(size_t tenants, const Constants& constants) {
  return tenants <= 1 ? 1000 : 1000 - std::min(constants.admission_reserve_permille, 1000u);
}

AdmissionTest TestAdmission(const RealtimeClaim& claim, const DeviceLoad& load,
                            const AdmissionRules& rules) {
  AdmissionTest test;
  test.own_permille = DemandPermille(claim);
  test.demand_permille = test.own_permille;
  test.unknown_tenants = test.own_permille == 0 ? 1 : 0;
  test.others = static_cast<uint32_t>(load.realtime.size());
  test.capacity_permille = CapacityPermille(load.realtime.size() + 1, rules.constants);
  test.job_ns = JobOf(claim);
  test.deadline_ns = claim.deadline_ns;
  std::vector<const RealtimeClaim*> before;
  for (const RealtimeClaim& other : load.realtime) {
    const uint32_t permille = DemandPermille(other);
    test.demand_permille += permille;
    if (permille == 0) ++test.unknown_tenants;
    before.push_back(&other);
  }
  const Response own = ResponseOf(claim, before, load.longest_op_ns, rules);
  test.blocking_ns = own.blocking_ns;
  test.interference_ns = own.interference_ns;
  test.response_ns = own.response_ns;
  if (test.demand_permille > test.capacity_permille) {
    test.verdict = AdmissionVerdict::kDemand;
    return test;
  }
  if (claim.deadline_ns != 0 && own.response_ns > claim.deadline_ns) {
    test.verdict = AdmissionVerdict::kResponseTime;
    return test;
  }
  // Nor may those that are there become late by it. Who is late without it has no say.
  std::vector<const RealtimeClaim*> after = before;
  after.push_back(&claim);
  for (const RealtimeClaim& other : load.realtime) {
    if (other.deadline_ns == 0) continue;
    const Nanos with_ns = ResponseOf(other, after, load.longest_op_ns, rules).response_ns;
    if (with_ns <= other.deadline_ns ||
        ResponseOf(other, before, load.longest_op_ns, rules).response_ns > other.deadline_ns)
      continue;
    test.verdict = AdmissionVerdict::kResponseTime;
    test.late_name = other.name;
    test.late_response_ns = with_ns;
    test.late_deadline_ns = other.deadline_ns;
    return test;
  }
  return test;
}

const char* ReasonOf(AdmissionVerdict verdict) {
  switch (verdict) {
    case AdmissionVerdict::kAdmitted:
      return "admitted";
    case AdmissionVerdict::kDemand:
      return "demand";
    case AdmissionVerdict::kResponseTime:
      return "response-time";
  }
  return "unknown";
}

std::string DescribeAdmission(const AdmissionTest& test, const DeviceLoad& load) {
  const std::string device = load.uuid.empty() ? std::string("the GPU") : load.uuid;
  const uint32_t others_permille = test.demand_permille - test.own_permille;
  switch (test.verdict) {
    case AdmissionVerdict::kDemand: {
      std::string text = "real-time tenants of " + device + " would ask for " +
                         PerCent(test.demand_permille) + " of it, and " +
                         PerCent(test.capacity_permille) + " can be promised: this one asks for " +
                         PerCent(test.own_permille);
      if (test.others != 0)
        text += ", " + Tenants(test.others, "other", "others") + " for " + PerCent(others_permille);
      return text;
    }
    case AdmissionVerdict::kResponseTime:
      if (test.late_deadline_ns != 0) {
        return "with it on " + device + ", a job of " + test.late_name + " could end " +
               Time(test.late_response_ns) + " after its release, and its deadline is " +
               Time(test.late_deadline_ns);
      }
      return "a job could end " + Time(test.response_ns) + " after its release on " + device +
             ", and the deadline is " + Time(test.deadline_ns) + ": " + Time(test.blocking_ns) +
             " blocked, " + Time(test.interference_ns) + " jobs of others, " +
             (test.job_ns == 0 ? std::string("its own length not known yet")
                               : Time(test.job_ns) + " its own");
    case AdmissionVerdict::kAdmitted:
      break;
  }
  std::string text = "real-time on " + device + ": ";
  text += test.own_permille == 0 ? std::string("its demand is not known yet")
                                 : PerCent(test.own_permille);
  text += ", " + PerCent(test.demand_permille) + " of " + PerCent(test.capacity_permille) +
          " asked for in all";
  if (test.deadline_ns != 0) {
    text += test.job_ns == 0 ? "; length of its jobs not known yet, response at least "
                             : "; response at most ";
    text += Time(test.response_ns) + " of " + Time(test.deadline_ns);
  }
  const uint32_t unknown_others = test.unknown_tenants - (test.own_permille == 0 ? 1 : 0);
  if (unknown_others != 0)
    text += "; demand of " + Tenants(unknown_others, "other", "others") + " not known yet";
  return text;
}

}  // namespace rubato::policies
