#include "agent/config/load.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <set>

#include "agent/config/keys.h"

namespace rubato::agent {
namespace {

base::Result<Config> Parse(const std::string& text) {
  return ParseConfigText(text, "agent.yaml");
}

std::string ErrorOf(const std::string& text) {
  const auto parsed = Parse(text);
  return parsed ? "no error" : parsed.error().message;
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text) {
    path_ = ::testing::TempDir() + "/agent-" + std::to_string(::getpid()) + "-" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".yaml";
    std::ofstream(path_) << text;
  }
  ~TemporaryFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(ParseConfigTextTest, DefaultsAreTheDefaults) {
  const auto parsed = Parse("version: v1\n");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*parsed, Config{});
}

TEST(ParseConfigTextTest, ReadsEveryKindOfValue) {
  const auto parsed = Parse(R"(
version: v1
slotsPerGpu: 4
allocation:
  policy: spread
gpu:
  exclude: [GPU-a, 3]
  pollInterval: 500ms
  ignoredXids: [13]
policy:
  realtimeNamespaces: [trusted]
  memoryOvercommit: true
  maxOverheadBudget: 2.5%
admission: {onRefusal: refuse}
metrics: {address: "0.0.0.0:9413"}
hostRoot: /srv/rubato/
)");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->slots_per_gpu, 4u);
  EXPECT_EQ(parsed->placement, Placement::kSpread);
  EXPECT_EQ(parsed->gpu_exclude, (std::vector<std::string>{"GPU-a", "3"}));
  EXPECT_EQ(parsed->gpu_poll_interval_ns, 500 * base::kMillisecond);
  EXPECT_EQ(parsed->ignored_xids, std::vector<uint32_t>{13});
  EXPECT_EQ(parsed->realtime_namespaces, std::vector<std::string>{"trusted"});
  EXPECT_TRUE(parsed->memory_overcommit);
  EXPECT_EQ(parsed->max_overhead_budget_permille, 25u);
  EXPECT_EQ(parsed->on_refusal, OnRefusal::kRefuse);
  EXPECT_EQ(parsed->metrics_address, "0.0.0.0:9413");
  EXPECT_EQ(parsed->host_root, "/srv/rubato");
}

TEST(ParseConfigTextTest, AnUnknownKeyIsAnErrorWithLineAndNearestKey) {
  EXPECT_EQ(ErrorOf("version: v1\nslotPerGpu: 4\n"),
            "agent.yaml:2: unknown key 'slotPerGpu'; the nearest is slotsPerGpu");
  EXPECT_EQ(ErrorOf("version: v1\ngpu:\n  source: auto\n  exlude: []\n"),
            "agent.yaml:4: unknown key 'gpu.exlude'; the nearest is gpu.exclude");
}

TEST(ParseConfigTextTest, BadValuesNameTheirLine) {
  EXPECT_EQ(ErrorOf("version: v1\nslotsPerGpu: many\n"),
            "agent.yaml:2: slotsPerGpu: 'many' is not a number from 1 to 100");
  EXPECT_EQ(ErrorOf("version: v1\nslotsPerGpu: 0\n"),
            "agent.yaml:2: slotsPerGpu: '0' is not a number from 1 to 100");
  EXPECT_EQ(ErrorOf("version: v1\n\nmode: fast\n"),
            "agent.yaml:3: mode: 'fast' is not one of timeslice, hybrid, mps");
  EXPECT_EQ(ErrorOf("version: v1\nhostRoot: var\n"),
            "agent.yaml:2: hostRoot: 'var' is not an absolute path");
  EXPECT_EQ(ErrorOf("version: v1\nevents: {enabled: yes}\n"),
            "agent.yaml:2: events.enabled: 'yes' is not true or false");
  EXPECT_NE(ErrorOf("version: v1\nresourceName: kubernetes.io/gpu\n").find("agent.yaml:2"),
            std::string::npos);
  EXPECT_NE(ErrorOf("version: v1\npolicy: {maxOverheadBudget: 101%}\n").find("0% to 100%"),
            std::string::npos);
  EXPECT_NE(ErrorOf("version: v1\ngpu: {pollInterval: 10}\n").find("is not a duration"),
            std::string::npos);
}

TEST(ParseConfigTextTest, ShapesAreChecked) {
  EXPECT_NE(ErrorOf("version: v1\ngpu: auto\n").find("has keys below it"), std::string::npos);
  EXPECT_NE(ErrorOf("version: v1\ngpu: {include: GPU-a}\n").find("is a list"), std::string::npos);
  EXPECT_NE(ErrorOf("version: v1\nmode: [a]\n").find("one plain value"), std::string::npos);
  EXPECT_NE(ErrorOf("version: v1\nmode: mps\nmode: mps\n").find("here twice"), std::string::npos);
  EXPECT_NE(ErrorOf("a: [\n").find("is no YAML"), std::string::npos);
  EXPECT_NE(ErrorOf("").find("version: v1"), std::string::npos);
  EXPECT_NE(ErrorOf("mode: mps\n").find("version: v1"), std::string::npos);
  EXPECT_NE(ErrorOf("version: v2\n").find("is not v1"), std::string::npos);
}

TEST(ParseConfigTextTest, AKeyWithoutAValueKeepsTheDefault) {
  const auto parsed = Parse("version: v1\nslotsPerGpu:\ngpu:\npolicy: {realtimeNamespaces: }\n");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(*parsed, Config{});
}

TEST(LoadConfigTest, FlagBeforeEnvironmentBeforeFile) {
  const TemporaryFile file("version: v1\nslotsPerGpu: 2\nmode: timeslice\nlog: {level: error}\n");
  ConfigSources sources;
  sources.path = file.path();
  sources.environment = [](const char* name) -> const char* {
    const std::string text = name;
    if (text == "RUBATO_AGENT_SLOTS_PER_GPU") return "3";
    if (text == "RUBATO_AGENT_LOG_LEVEL") return "debug";
    if (text == "RUBATO_AGENT_POLICY_REALTIME_NAMESPACES") return "a, b";
    if (text == "NODE_NAME") return "node-1";
    return nullptr;
  };
  auto loaded = LoadConfig(sources);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->slots_per_gpu, 3u);
  EXPECT_EQ(loaded->log_level, "debug");
  EXPECT_EQ(loaded->node_name, "node-1");
  EXPECT_EQ(loaded->realtime_namespaces, (std::vector<std::string>{"a", "b"}));
  sources.flags = {{"slotsPerGpu", "4"}, {"kubernetes.nodeName", "other"}};
  loaded = LoadConfig(sources);
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->slots_per_gpu, 4u);
  EXPECT_EQ(loaded->node_name, "other");
}

TEST(LoadConfigTest, ErrorsNameTheirSource) {
  ConfigSources sources;
  sources.flags = {{"gpu.sorce", "auto"}};
  EXPECT_EQ(LoadConfig(sources).error().message,
            "--set gpu.sorce: unknown key 'gpu.sorce'; the nearest is gpu.source");
  sources.flags.clear();
  sources.environment = [](const char* name) -> const char* {
    return std::string(name) == "RUBATO_AGENT_MODE" ? "fast" : nullptr;
  };
  EXPECT_EQ(LoadConfig(sources).error().message,
            "RUBATO_AGENT_MODE: 'fast' is not one of timeslice, hybrid, mps");
  sources.environment = nullptr;
  sources.path = "/nonexistent/agent.yaml";
  EXPECT_NE(LoadConfig(sources).error().message.find("/nonexistent/agent.yaml"), std::string::npos);
}

TEST(LoadConfigTest, FakeDevicesImplyTheSoftwareGpu) {
  ConfigSources sources;
  sources.flags = {{"gpu.fakeDevices", "2"}};
  EXPECT_EQ(LoadConfig(sources)->gpu_source, GpuSource::kSoftware);
  sources.flags = {{"gpu.source", "software"}};
  EXPECT_EQ(LoadConfig(sources)->fake_devices, 1u);
  sources.flags = {{"gpu.fakeDevices", "2"}, {"gpu.source", "nvml"}};
  EXPECT_FALSE(LoadConfig(sources).ok());
}

TEST(LoadConfigTest, WhatDoesNotGoTogetherIsRefused) {
  ConfigSources sources;
  sources.flags = {{"mode", "mps"}};
  EXPECT_NE(LoadConfig(sources).error().message.find("mps.pipeDirectory"), std::string::npos);
  sources.flags = {{"gpu.include", "1"}, {"gpu.exclude", "1"}};
  EXPECT_FALSE(LoadConfig(sources).ok());
  sources.flags = {{"hostRoot", "/" + std::string(80, 'x')}};
  EXPECT_NE(LoadConfig(sources).error().message.find("hostRoot must be at most"),
            std::string::npos);
}

TEST(ConfigKeysTest, EveryKeyShowsWhatItSets) {
  for (const ConfigKey& key : ConfigKeys()) {
    Config config;
    const std::string shown = key.show(config);
    const std::vector<std::string> values =
        key.list ? SplitList(shown) : std::vector<std::string>{shown};
    EXPECT_TRUE(key.set(&config, values).ok()) << key.path << ": " << shown;
    EXPECT_EQ(config, Config{}) << key.path;
    EXPECT_EQ(FindConfigKey(key.path), &key) << key.path << " is there twice";
  }
}

TEST(ConfigKeysTest, EnvironmentNamesDiffer) {
  EXPECT_EQ(EnvironmentName("gpu.driverRoot"), "RUBATO_AGENT_GPU_DRIVER_ROOT");
  EXPECT_EQ(EnvironmentName("hostPID.enabled"), "RUBATO_AGENT_HOST_PID_ENABLED");
  std::set<std::string> names;
  for (const ConfigKey& key : ConfigKeys())
    EXPECT_TRUE(names.insert(EnvironmentName(key.path)).second);
}

TEST(ConfigKeysTest, AReloadAppliesTheLiveOnesAndNamesTheOthers) {
  Config before;
  Config after;
  after.realtime_namespaces = {"a"};
  after.slots_per_gpu = 3;
  after.on_refusal = OnRefusal::kRefuse;
  EXPECT_EQ(NeedingRestart(before, after), std::vector<std::string>{"slotsPerGpu"});
  const Config merged = WithLiveKeys(before, after);
  EXPECT_EQ(merged.realtime_namespaces, after.realtime_namespaces);
  EXPECT_EQ(merged.on_refusal, OnRefusal::kRefuse);
  EXPECT_EQ(merged.slots_per_gpu, before.slots_per_gpu);
}

TEST(ConfigKeysTest, TheReferenceNamesEveryKeyAndItsDefault) {
  std::ifstream file(RUBATO_SOURCE_DIR "/docs/agent.md");
  const std::string page((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const Config defaults;
  for (const ConfigKey& key : ConfigKeys()) {
    std::string shown = key.show(defaults);
    if (key.list) {
      shown = "[" + shown + "]";
    }
    const std::string row =
        "| `" + std::string(key.path) + "` | " + (shown.empty() ? "" : "`" + shown + "`") +
        (shown.empty() ? "| " : " | ") + (key.live ? "yes" : "no") + " | " + key.meaning + " |";
    EXPECT_NE(page.find(row), std::string::npos) << "docs/agent.md lacks this row:\n" << row;
  }
}

}  // namespace
}  // namespace rubato::agent
