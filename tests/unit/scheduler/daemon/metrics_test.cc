#include "scheduler/daemon/metrics.h"

#include <gtest/gtest.h>

#include <sstream>

namespace rubato::sched {
namespace {

const MetricsInfo kInfo{"0.1.0", "timeslice", "1.0"};

SchedulerStatus Picture() {
  SchedulerStatus status;
  status.now_ns = 20 * base::kSecond;
  status.started_ns = 10 * base::kSecond;
  TenantStatus& camera = status.tenants.emplace_back();
  camera.spec.name = "camera";
  camera.spec.pod = "cam-0";
  camera.spec.tenant_class = core::TenantClass::kRealtime;
  camera.admission.asked = camera.admission.granted = core::TenantClass::kRealtime;
  camera.admission.reason = "admitted";
  TenantDeviceStatus& on = camera.devices.emplace_back();
  on.tenant_class = core::TenantClass::kRealtime;
  on.device_uuid = "GPU-1";
  on.sessions = 1;
  on.totals.jobs.jobs = 3;
  on.totals.jobs.responses = 3;
  on.totals.jobs.deadline_misses = 1;
  on.totals.jobs.buckets[0] = 2;
  on.totals.jobs.buckets.back() = 1;
  on.totals.jobs.response_sum_ns = 1'500'000'000;
  on.prediction.kind = policies::ReleaseKind::kLocked;
  TenantStatus& training = status.tenants.emplace_back();
  training.spec.name = "training";
  training.spec.tenant_class = core::TenantClass::kBestEffort;
  training.admission.asked = training.admission.granted = core::TenantClass::kBestEffort;
  training.admission.reason = "admitted";
  training.spec.limit_bytes = 5000;
  TenantDeviceStatus& at = training.devices.emplace_back();
  at.tenant_class = core::TenantClass::kBestEffort;
  at.device_uuid = "GPU-1";
  at.memory_used_bytes = 4000;
  at.totals.counters[static_cast<size_t>(abi::Counter::kOps)] = 42;
  at.totals.counters[static_cast<size_t>(abi::Counter::kGateWaitNs)] = 2'500'000'000;
  return status;
}

// The value of the series whose line starts with `series`, or "".
std::string ValueOf(const std::string& text, const std::string& series) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(series) && line.size() > series.size() && line[series.size()] == ' ')
      return line.substr(series.size() + 1);
  }
  return "";
}

TEST(MetricsTest, TenantsHaveTheirLabels) {
  const std::string text = MetricsText(Picture(), kInfo);
  const std::string camera =
      "{tenant=\"camera\",namespace=\"\",pod=\"cam-0\",container=\"\",class=\"realtime\","
      "device=\"GPU-1\"}";
  const std::string training =
      "{tenant=\"training\",namespace=\"\",pod=\"\",container=\"\",class=\"best-effort\","
      "device=\"GPU-1\"}";
  EXPECT_EQ(ValueOf(text, "rubato_jobs_total" + camera), "3");
  EXPECT_EQ(ValueOf(text, "rubato_deadline_misses_total" + camera), "1");
  EXPECT_EQ(ValueOf(text, "rubato_release_locked" + camera), "1");
  EXPECT_EQ(ValueOf(text, "rubato_sessions" + camera), "1");
  EXPECT_EQ(ValueOf(text, "rubato_besteffort_launches_total" + training), "42");
  EXPECT_EQ(ValueOf(text, "rubato_gate_wait_seconds_total" + training), "2.5");
  EXPECT_EQ(ValueOf(text, "rubato_memory_used_bytes" + training), "4000");
  EXPECT_EQ(ValueOf(text, "rubato_memory_limit_bytes" + training), "5000");
  EXPECT_EQ(ValueOf(text, "rubato_jobs_total" + training), "") << "no jobs, no series";
}

TEST(MetricsTest, BucketsAreCumulative) {
  const std::string text = MetricsText(Picture(), kInfo);
  const std::string labels =
      "tenant=\"camera\",namespace=\"\",pod=\"cam-0\",container=\"\",class=\"realtime\","
      "device=\"GPU-1\"";
  EXPECT_EQ(ValueOf(text, "rubato_job_response_seconds_count{" + labels + "}"), "3");
  EXPECT_EQ(ValueOf(text, "rubato_job_response_seconds_sum{" + labels + "}"), "1.5");
  EXPECT_EQ(ValueOf(text, "rubato_job_response_seconds_bucket{" + labels + ",le=\"+Inf\"}"), "3");
  EXPECT_NE(text.find("rubato_job_response_seconds_bucket{" + labels + ",le=\"5e-05\"} 2"),
            std::string::npos)
      << text.substr(text.find("rubato_job_response_seconds_bucket"), 300);
}

TEST(MetricsTest, FinishedTenantsCountOn) {
  SchedulerStatus status = Picture();
  TenantTotals gone;
  gone.jobs.jobs = 10;
  status.retired[LabelsOf(status.tenants[0].spec, core::TenantClass::kRealtime, "GPU-1")].Add(gone);
  const std::string text = MetricsText(status, kInfo);
  EXPECT_NE(text.find("device=\"GPU-1\"} 13"), std::string::npos);
}

TEST(MetricsTest, EveryFamilyHasHelpAndAName) {
  const std::string text = MetricsText(Picture(), kInfo);
  std::istringstream lines(text);
  int families = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("# HELP ")) continue;
    ++families;
    EXPECT_TRUE(line.starts_with("# HELP rubato_")) << line;
    EXPECT_GT(line.size(), line.find(' ', 7) + 20) << line;
  }
  EXPECT_GT(families, 25);
}

TEST(MetricsTest, ReasonsAreThereBeforeTheyHappen) {
  SchedulerStatus status = Picture();
  status.sessions_detached["surprise"] = 0;
  const std::string text = MetricsText(status, kInfo);
  EXPECT_EQ(ValueOf(text, "rubato_sessions_detached_total{reason=\"surprise\"}"), "0");
  EXPECT_EQ(ValueOf(text, "rubato_handshakes_refused_total{reason=\"clock\"}"), "0");
}

}  // namespace
}  // namespace rubato::sched
