// The tables and the JSON document, from answers made by hand.
#include "cli/status_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

namespace rubato::cli {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

control::GetStatusResponse Example() {
  control::GetStatusResponse status;
  status.set_now_ns(100 * kSecond);
  control::GetVersionResponse* scheduler = status.mutable_scheduler();
  scheduler->set_version("0.1.0");
  scheduler->set_abi_major(1);
  scheduler->set_pid(42);
  scheduler->set_mode(control::MODE_HYBRID);
  scheduler->set_epoch(0xabc);
  scheduler->set_started_ns(8 * kSecond);
  scheduler->set_metrics_address("127.0.0.1:9412");
  control::DeviceStatus* device = status.add_devices();
  device->set_uuid("GPU-1");
  device->set_name("Software GPU");
  device->set_sm_count(132);
  device->set_total_bytes(141ull << 30);

  control::TenantStatus* camera = status.add_tenants();
  camera->set_tenant_id(1);
  camera->mutable_spec()->set_name("camera");
  camera->mutable_spec()->set_tenant_class(control::TENANT_CLASS_REALTIME);
  camera->mutable_spec()->set_period_ns(10'000'000);
  camera->set_sessions(1);
  control::TenantDeviceStatus* at = camera->add_devices();
  at->set_jobs_total(1000);
  at->set_deadline_misses_total(2);
  at->set_response_p50_ns(832'400);
  at->set_response_p99_ns(1'234'567);
  at->set_gpu_busy_ns_total(8 * kSecond);
  at->set_ops_total(5000);
  at->mutable_release()->set_kind(control::ReleaseModel::KIND_LOCKED);

  control::TenantStatus* train = status.add_tenants();
  train->set_tenant_id(2);
  train->mutable_spec()->set_name("train\x1b[31m");
  train->mutable_spec()->set_tenant_class(control::TENANT_CLASS_BEST_EFFORT);
  train->mutable_spec()->set_limit_bytes(20ull << 30);
  at = train->add_devices();
  at->set_ops_total(70'000);
  at->set_gate_wait_ns_total(5 * kSecond);
  at->set_gpu_busy_ns_total(60 * kSecond);
  at->set_memory_used_bytes(3ull << 29);
  return status;
}

bool HasRow(const std::string& text, const std::vector<std::string>& words) {
  size_t start = 0;
  while (start < text.size()) {
    const size_t end = text.find('\n', start);
    const std::string line = text.substr(start, end - start);
    size_t at = 0;
    bool all = true;
    for (const std::string& word : words) {
      at = line.find(word, at);
      if (at == std::string::npos) {
        all = false;
        break;
      }
      at += word.size();
    }
    if (all) return true;
    if (end == std::string::npos) break;
    start = end + 1;
  }
  return false;
}

TEST(StatusReport, TableNamesSchedulerDevicesAndTenants) {
  const std::string text = StatusTable(Example());
  EXPECT_TRUE(HasRow(text, {"scheduler 0.1.0", "pid 42", "hybrid", "1m32s", "127.0.0.1:9412"}))
      << text;
  EXPECT_TRUE(HasRow(text, {"Software GPU", "132", "141 GiB"})) << text;
  EXPECT_TRUE(HasRow(
      text, {"camera", "realtime", "10ms", "locked", "1000", "832us", "1.23ms", "2", "5000"}))
      << text;
  EXPECT_TRUE(HasRow(text, {"train?[31m", "best-effort", "70000", "5s", "1.5 GiB", "20 GiB"}))
      << text;
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
}

TEST(StatusReport, TableSaysWhyATenantIsBestEffort) {
  control::GetStatusResponse status = Example();
  control::TenantStatus* refused = status.add_tenants();
  refused->set_tenant_id(3);
  refused->mutable_spec()->set_name("cam");
  refused->mutable_spec()->set_namespace_("shop");
  refused->mutable_spec()->set_pod("cam-0");
  refused->mutable_spec()->set_container("infer");
  refused->mutable_spec()->set_tenant_class(control::TENANT_CLASS_REALTIME);
  refused->mutable_spec()->set_share_permille(300);
  refused->mutable_spec()->set_limit_bytes(8ull << 30);
  refused->mutable_spec()->add_device_uuids("GPU-1");
  control::AdmissionDecision* decision = refused->mutable_admission();
  decision->set_asked(control::TENANT_CLASS_REALTIME);
  decision->set_granted(control::TENANT_CLASS_BEST_EFFORT);
  decision->set_reason("demand");
  decision->set_detail("would ask for 110 %\x1b[2J");
  decision->set_demand_permille(1100);
  status.mutable_devices(0)->set_realtime_demand_permille(805);
  status.mutable_devices(0)->set_realtime_capacity_permille(900);
  const std::string text = StatusTable(status);
  EXPECT_TRUE(HasRow(text, {"shop/cam-0/infer", "realtime", "best-effort", "30%", "8 GiB", "demand",
                            "would ask for 110 %?[2J"}))
      << text;
  EXPECT_TRUE(HasRow(text, {"Software GPU", "80.5%", "90%"})) << text;
  EXPECT_TRUE(HasRow(TopTable(status, status), {"cam", "best-effort"}));
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  const nlohmann::json json = nlohmann::json::parse(StatusJson(status));
  const nlohmann::json& tenant = json["tenants"][2];
  EXPECT_EQ(tenant["class"], "best-effort");
  EXPECT_EQ(tenant["asked_class"], "realtime");
  EXPECT_EQ(tenant["share_permille"], 300);
  EXPECT_EQ(tenant["device_uuids"], nlohmann::json::array({"GPU-1"}));
  EXPECT_EQ(tenant["admission"]["granted"], "best-effort");
  EXPECT_EQ(tenant["admission"]["reason"], "demand");
  EXPECT_EQ(tenant["admission"]["demand_permille"], 1100);
  EXPECT_EQ(json["devices"][0]["realtime_demand_permille"], 805);
}

TEST(StatusReport, AClassChangeShowsAsTwoRows) {
  control::GetStatusResponse status = Example();
  control::TenantStatus* camera = status.mutable_tenants(0);
  camera->mutable_devices(0)->set_tenant_class(control::TENANT_CLASS_REALTIME);
  camera->mutable_admission()->set_granted(control::TENANT_CLASS_BEST_EFFORT);
  control::TenantDeviceStatus* next = camera->add_devices();
  next->set_tenant_class(control::TENANT_CLASS_BEST_EFFORT);
  next->set_ops_total(11);
  const std::string text = StatusTable(status);
  EXPECT_TRUE(HasRow(text, {"camera", "realtime", "locked", "1000"})) << text;
  EXPECT_TRUE(HasRow(text, {"camera", "best-effort", "-", "11"})) << text;
}

TEST(StatusReport, RealtimeTenantsStandFirstThenByName) {
  control::GetStatusResponse status = Example();
  for (const char* name : {"aaa", "zzz"}) {
    control::TenantStatus* tenant = status.add_tenants();
    *tenant = status.tenants(0);
    tenant->mutable_spec()->set_name(name);
  }
  for (const std::string& text : {StatusTable(status), TopTable(status, status)}) {
    SCOPED_TRACE(text);
    const size_t first = text.find("aaa");
    EXPECT_LT(first, text.find("camera"));
    EXPECT_LT(text.find("camera"), text.find("zzz"));
    EXPECT_LT(text.find("zzz"), text.find("train?"));
    EXPECT_NE(text.find("train?"), std::string::npos);
  }
}

TEST(StatusReport, TopShowsRatesBetweenTwoLooks) {
  const control::GetStatusResponse before = Example();
  control::GetStatusResponse now = Example();
  now.set_now_ns(before.now_ns() + 2 * kSecond);
  control::TenantDeviceStatus* camera = now.mutable_tenants(0)->mutable_devices(0);
  camera->set_jobs_total(1200);
  camera->set_gpu_busy_ns_total(8 * kSecond + 160'000'000);
  control::TenantDeviceStatus* train = now.mutable_tenants(1)->mutable_devices(0);
  train->set_ops_total(71'000);
  train->set_gpu_busy_ns_total(61 * kSecond);
  train->set_gate_wait_ns_total(5 * kSecond + 500'000'000);
  const std::string text = TopTable(before, now);
  EXPECT_TRUE(HasRow(text, {"camera", "realtime", "100", "832us", "1.23ms", "2", "0.0", "8.0%"}))
      << text;
  EXPECT_TRUE(HasRow(text, {"train", "best-effort", "-", "500", "50.0%", "25.0%", "1.5 GiB"}))
      << text;
}

TEST(StatusReport, TopTakesNoRatesAcrossSchedulers) {
  const control::GetStatusResponse before = Example();
  control::GetStatusResponse now = Example();
  now.set_now_ns(before.now_ns() + kSecond);
  now.mutable_scheduler()->set_epoch(0xdef);
  now.mutable_tenants(0)->mutable_devices(0)->set_jobs_total(3);
  EXPECT_TRUE(HasRow(TopTable(before, now), {"camera", "realtime", "-", "832us"}));
  EXPECT_TRUE(
      HasRow(TopTable(control::GetStatusResponse(), now), {"camera", "realtime", "-", "832us"}));
}

std::set<std::string> Keys(const nlohmann::json& json) {
  std::set<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.insert(key);
  return keys;
}

// The documented contract: adding keys here is right, removing them is not.
TEST(StatusReport, JsonHasTheDocumentedKeys) {
  const nlohmann::json json = nlohmann::json::parse(StatusJson(Example()));
  EXPECT_EQ(Keys(json), (std::set<std::string>{"schema", "now_ns", "scheduler", "mps", "devices",
                                               "tenants", "sessions_detached",
                                               "handshakes_refused_total", "profile_store"}));
  EXPECT_EQ(json["scheduler"]["epoch"], "0000000000000abc");
  EXPECT_EQ(json["scheduler"]["mode"], "hybrid");
  EXPECT_EQ(json["tenants"][0]["name"], "camera");
  EXPECT_EQ(json["tenants"][0]["class"], "realtime");
  EXPECT_EQ(json["tenants"][0]["devices"][0]["jobs_total"], 1000);
  EXPECT_EQ(json["tenants"][0]["devices"][0]["release"]["kind"], "locked");
  EXPECT_EQ(json["tenants"][1]["limit_bytes"], 20ull << 30);
  EXPECT_TRUE(json["tenants"][1]["devices"][0]["release"].is_null());
  EXPECT_EQ(json["tenants"][1]["devices"][0]["memory_used_bytes"], 3ull << 29);
}

TEST(StatusReport, JsonWithoutASchedulerHasTheSameKeys) {
  const nlohmann::json json = nlohmann::json::parse(NoSchedulerJson());
  EXPECT_EQ(Keys(json), Keys(nlohmann::json::parse(StatusJson(Example()))));
  EXPECT_TRUE(json["scheduler"].is_null());
  EXPECT_TRUE(json["tenants"].empty());
}

}  // namespace
}  // namespace rubato::cli
