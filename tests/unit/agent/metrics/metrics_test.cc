#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "agent/metrics/picture.h"

namespace rubato::agent {
namespace {

class MetricsTest : public ::testing::Test {
 protected:
  MetricsTest() {
    picture_.version = "1.2.3";
    picture_.resource_name = "rubato.dev/gpu";
    picture_.now_ns = 100 * base::kSecond;
    picture_.started_ns = 40 * base::kSecond;
    GpuPicture gpu;
    gpu.gpu.reading.uuid = "GPU-a";
    gpu.gpu.reading.total_bytes = 1000;
    gpu.gpu.reading.used_bytes = 700;
    gpu.gpu.reading.sm_clock_hz = 1.98e9;
    gpu.slots = 10;
    gpu.slots_allocated = 3;
    gpu.tenants_known = true;
    gpu.tenants_bytes = 500;
    picture_.gpus.push_back(gpu);
  }

  bool Has(const std::string& line) const {
    return ("\n" + MetricsText(picture_)).find("\n" + line + "\n") != std::string::npos;
  }
  bool HasFamily(const std::string& name) const {
    return MetricsText(picture_).find("# TYPE " + name + " ") != std::string::npos;
  }

  AgentPicture picture_;
};

TEST_F(MetricsTest, GpusInBaseUnits) {
  EXPECT_TRUE(Has("rubato_gpu_memory_total_bytes{device=\"GPU-a\"} 1000"));
  EXPECT_TRUE(Has("rubato_gpu_memory_used_bytes{device=\"GPU-a\"} 700"));
  EXPECT_TRUE(Has("rubato_gpu_unexplained_memory_bytes{device=\"GPU-a\"} 200"));
  EXPECT_TRUE(Has("rubato_gpu_sm_clock_hertz{device=\"GPU-a\"} 1980000000"));
  EXPECT_TRUE(Has("rubato_slots{device=\"GPU-a\"} 10"));
  EXPECT_TRUE(Has("rubato_slots_allocated{device=\"GPU-a\"} 3"));
  EXPECT_TRUE(Has("rubato_gpu_healthy{device=\"GPU-a\"} 1"));
  // What the library does not tell has no series, rather than a zero.
  EXPECT_EQ(MetricsText(picture_).find("rubato_gpu_power_watts{"), std::string::npos);
  EXPECT_TRUE(Has("rubato_agent_uptime_seconds 60"));
}

TEST_F(MetricsTest, ReasonsOfHealthAndWithholding) {
  picture_.gpus[0].gpu.healthy = false;
  picture_.gpus[0].gpu.health_reason = "xid-79";
  picture_.gpus[0].gpu.withheld = true;
  picture_.gpus[0].gpu.withheld_reason = "mig";
  picture_.gpus[0].gpu.xids_total = {{79, 2}};
  EXPECT_TRUE(Has("rubato_gpu_healthy{device=\"GPU-a\"} 0"));
  EXPECT_TRUE(Has("rubato_gpu_unhealthy{device=\"GPU-a\",reason=\"xid-79\"} 1"));
  EXPECT_TRUE(Has("rubato_gpu_withheld{device=\"GPU-a\",reason=\"mig\"} 1"));
  EXPECT_TRUE(Has("rubato_gpu_xid_errors_total{device=\"GPU-a\",xid=\"79\"} 2"));
}

TEST_F(MetricsTest, MemoryIsUnexplainedOnlyWhereTheSchedulerAnswers) {
  picture_.gpus[0].tenants_known = false;
  EXPECT_EQ(MetricsText(picture_).find("rubato_gpu_unexplained_memory_bytes{"), std::string::npos);
  picture_.gpus[0].tenants_known = true;
  picture_.gpus[0].tenants_bytes = 900;  // Read at another instant.
  EXPECT_TRUE(Has("rubato_gpu_unexplained_memory_bytes{device=\"GPU-a\"} 0"));
}

TEST_F(MetricsTest, ReasonsAreThereBeforeTheirFirstTime) {
  for (const auto reason : deviceplugin::kAllRejectReasons) {
    EXPECT_TRUE(Has(std::string("rubato_allocation_rejected_total{reason=\"") +
                    deviceplugin::RejectReasonName(reason) + "\"} 0"));
  }
  EXPECT_TRUE(Has("rubato_agent_prestart_open_total{reason=\"scheduler-away\"} 0"));
  EXPECT_TRUE(Has("rubato_kubelet_registered{resource=\"rubato.dev/gpu\"} 0"));
  EXPECT_FALSE(HasFamily("rubato_bypass_suspected")) << "there is no census";
  picture_.census = true;
  EXPECT_TRUE(Has("rubato_bypass_suspected{device=\"GPU-a\",reason=\"slots\"} 0"));
}

TEST_F(MetricsTest, WhyIsMyPodBestEffort) {
  picture_.tenants.push_back(
      {{"ns", "p", "uid", "main"}, "realtime", "best-effort", "demand", true, 1});
  EXPECT_TRUE(
      Has("rubato_container_class{namespace=\"ns\",pod=\"p\",container=\"main\",asked=\"realtime\","
          "class=\"best-effort\",reason=\"demand\"} 1"));
  EXPECT_TRUE(
      Has("rubato_container_tenant_registered{namespace=\"ns\",pod=\"p\",container=\"main\"} 1"));
}

TEST_F(MetricsTest, EveryFamilyIsInTheReference) {
  picture_.census = true;
  picture_.has_pods = true;
  std::ifstream file(RUBATO_SOURCE_DIR "/docs/agent.md");
  const std::string page((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::istringstream text(MetricsText(picture_));
  std::set<std::string> names;
  for (std::string line; std::getline(text, line);) {
    if (!line.starts_with("# TYPE ")) continue;
    const std::string name = line.substr(7, line.find(' ', 7) - 7);
    EXPECT_TRUE(names.insert(name).second) << name << " is there twice";
    EXPECT_NE(page.find("`" + name), std::string::npos) << "docs/agent.md lacks " << name;
  }
  EXPECT_GT(names.size(), 40u);
}

}  // namespace
}  // namespace rubato::agent
