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

TEST(MetricsTest, SeriesAreThereFromAdmissionOn) {
  SchedulerStatus status;
  TenantStatus& pod = status.tenants.emplace_back();
  pod.spec.name = "camera";
  pod.spec.name_space = "shop";
  pod.spec.pod = "cam-0";
  pod.spec.container = "infer";
  pod.spec.tenant_class = core::TenantClass::kRealtime;
  pod.spec.period_ns = 10 * base::kMillisecond;
  pod.spec.deadline_ns = 8 * base::kMillisecond;
  pod.spec.share_permille = 300;
  pod.spec.limit_bytes = 1 << 30;
  pod.spec.device_uuids = {"GPU-1"};
  pod.admission.asked = core::TenantClass::kRealtime;
  pod.admission.granted = core::TenantClass::kRealtime;
  pod.admission.reason = "admitted";
  const std::string labels =
      "{tenant=\"camera\",namespace=\"shop\",pod=\"cam-0\",container=\"infer\","
      "class=\"realtime\",device=\"GPU-1\"}";
  std::string text = MetricsText(status, kInfo);
  for (const char* zero :
       {"rubato_jobs_total", "rubato_deadline_misses_total", "rubato_sessions",
        "rubato_memory_used_bytes", "rubato_launches_total", "rubato_tardiness_seconds_total",
        "rubato_job_response_seconds_count", "rubato_release_locked"})
    EXPECT_EQ(ValueOf(text, zero + labels), "0") << zero;
  EXPECT_EQ(ValueOf(text, "rubato_deadline_seconds" + labels), "0.008");
  EXPECT_EQ(ValueOf(text, "rubato_release_period_seconds" + labels), "0.01");
  EXPECT_EQ(ValueOf(text, "rubato_overhead_budget_ratio" + labels), "0.02");
  EXPECT_EQ(ValueOf(text, "rubato_share_ratio" + labels), "0.3");
  EXPECT_EQ(ValueOf(text, "rubato_memory_limit_bytes" + labels), "1073741824");
  EXPECT_EQ(ValueOf(text,
                    "rubato_tenant_admission{tenant=\"camera\",namespace=\"shop\",pod=\"cam-0\","
                    "container=\"infer\",class=\"realtime\",asked=\"realtime\","
                    "reason=\"admitted\"}"),
            "1");

  // Refused: the series of the class that it has, and the reason.
  pod.admission.granted = core::TenantClass::kBestEffort;
  pod.admission.reason = "demand";
  text = MetricsText(status, kInfo);
  EXPECT_EQ(ValueOf(text, "rubato_jobs_total" + labels), "");
  EXPECT_EQ(ValueOf(text, "rubato_deadline_seconds" + labels), "");
  EXPECT_EQ(ValueOf(text,
                    "rubato_gate_wait_seconds_total{tenant=\"camera\",namespace=\"shop\","
                    "pod=\"cam-0\",container=\"infer\",class=\"best-effort\","
                    "device=\"GPU-1\"}"),
            "0");
  EXPECT_EQ(ValueOf(text,
                    "rubato_tenant_admission{tenant=\"camera\",namespace=\"shop\",pod=\"cam-0\","
                    "container=\"infer\",class=\"best-effort\",asked=\"realtime\","
                    "reason=\"demand\"}"),
            "1");

  status.tenants.clear();
  EXPECT_EQ(MetricsText(status, kInfo).find("camera"), std::string::npos)
      << "nothing of a tenant that is gone and did nothing";
}

TEST(MetricsTest, AClassChangeMakesASecondSeries) {
  SchedulerStatus status = Picture();
  TenantStatus& camera = status.tenants[0];
  TenantDeviceStatus next;
  next.tenant_class = core::TenantClass::kBestEffort;
  next.device_uuid = "GPU-1";
  next.totals.counters[static_cast<size_t>(abi::Counter::kOps)] = 7;
  camera.devices.push_back(next);
  camera.admission.granted = core::TenantClass::kBestEffort;
  const std::string text = MetricsText(status, kInfo);
  const std::string names = "tenant=\"camera\",namespace=\"\",pod=\"cam-0\",container=\"\",";
  EXPECT_EQ(ValueOf(text, "rubato_jobs_total{" + names + "class=\"realtime\",device=\"GPU-1\"}"),
            "3");
  EXPECT_EQ(
      ValueOf(text, "rubato_launches_total{" + names + "class=\"best-effort\",device=\"GPU-1\"}"),
      "7");
}

TEST(MetricsTest, DemandAndDecisionsAreCounted) {
  SchedulerStatus status = Picture();
  status.draining = true;
  status.demands.push_back(DeviceDemand{"GPU-1", 2, 700, 900});
  status.admissions[{core::TenantClass::kRealtime, core::TenantClass::kBestEffort, "demand"}] = 4;
  const std::string text = MetricsText(status, kInfo);
  EXPECT_EQ(ValueOf(text, "rubato_device_realtime_demand_ratio{device=\"GPU-1\"}"), "0.7");
  EXPECT_EQ(ValueOf(text, "rubato_device_realtime_capacity_ratio{device=\"GPU-1\"}"), "0.9");
  EXPECT_EQ(ValueOf(text, "rubato_device_realtime_tenants{device=\"GPU-1\"}"), "2");
  EXPECT_EQ(ValueOf(text,
                    "rubato_admissions_total{asked=\"realtime\",class=\"best-effort\","
                    "reason=\"demand\"}"),
            "4");
  EXPECT_EQ(ValueOf(text, "rubato_scheduler_draining"), "1");
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
