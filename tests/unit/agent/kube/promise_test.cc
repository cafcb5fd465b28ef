#include "agent/kube/promise.h"

#include <gtest/gtest.h>

#include <string>

namespace rubato::kube {
namespace {

Pod PodWith(Pod::Annotations annotations,
            std::vector<PodContainer> containers = {{.name = "main", .slots = 1}}) {
  Pod pod;
  pod.name_space = "space";
  pod.name = "pod";
  pod.uid = "uid";
  pod.annotations = std::move(annotations);
  pod.containers = std::move(containers);
  return pod;
}

PodPromises Read(const Pod& pod) {
  return ReadPromises(pod, PodSelection{});
}

TEST(PromiseTest, WithoutAnnotationsAContainerIsBestEffort) {
  const PodPromises read = Read(PodWith({}));
  ASSERT_EQ(read.containers.size(), 1u);
  EXPECT_EQ(read.containers.at("main"), Promise{});
  EXPECT_TRUE(read.complaints.empty());
}

TEST(PromiseTest, ReadsEveryKey) {
  const PodPromises read = Read(PodWith({{"rubato.dev/class", "realtime"},
                                         {"rubato.dev/period", "10ms"},
                                         {"rubato.dev/deadline", " 8ms\n"},
                                         {"rubato.dev/priority", "high"},
                                         {"rubato.dev/memory", "8Gi"},
                                         {"rubato.dev/overhead-budget", "2%"}}));
  EXPECT_TRUE(read.complaints.empty());
  const Promise expected{PromisedClass::kRealtime,
                         10 * base::kMillisecond,
                         8 * base::kMillisecond,
                         PromisedPriority::kHigh,
                         20,
                         uint64_t{8} << 30};
  EXPECT_EQ(read.containers.at("main"), expected);
}

TEST(PromiseTest, AContainersOwnValueWins) {
  const PodPromises read = Read(PodWith(
      {{"rubato.dev/class", "realtime"},
       {"rubato.dev/period", "10ms"},
       {"rubato.dev/memory", "1Gi"},
       {"side.rubato.dev/class", "best-effort"},
       {"side.rubato.dev/memory", "2Gi"},
       {"main.rubato.dev/period", "20ms"}},
      {{.name = "main", .slots = 1}, {.name = "side", .slots = 2}, {.name = "log", .slots = 0}}));
  EXPECT_TRUE(read.complaints.empty()) << read.complaints[0].message;
  ASSERT_EQ(read.containers.size(), 2u);
  const Promise& main = read.containers.at("main");
  EXPECT_EQ(main.tenant_class, PromisedClass::kRealtime);
  EXPECT_EQ(main.period_ns, 20 * base::kMillisecond);
  EXPECT_EQ(main.memory_bytes, uint64_t{1} << 30);
  const Promise& side = read.containers.at("side");
  EXPECT_EQ(side.tenant_class, PromisedClass::kBestEffort);
  EXPECT_EQ(side.period_ns, 0);
  EXPECT_EQ(side.memory_bytes, uint64_t{2} << 30);
}

TEST(PromiseTest, ABadValueIsComplainedAboutAndNotPromised) {
  const std::pair<const char*, const char*> kBad[] = {
      {"rubato.dev/period", "10"},
      {"rubato.dev/period", "99us"},
      {"rubato.dev/period", "61s"},
      {"rubato.dev/period", "-5ms"},
      {"rubato.dev/period", ""},
      {"rubato.dev/deadline", "0ms"},
      {"rubato.dev/deadline", "2m"},
      {"rubato.dev/priority", "urgent"},
      {"rubato.dev/memory", "8GB"},
      {"rubato.dev/memory", "0"},
      {"rubato.dev/memory", "-1Gi"},
      {"rubato.dev/memory", "2Pi"},
      {"rubato.dev/overhead-budget", "2"},
      {"rubato.dev/overhead-budget", "0%"},
      {"rubato.dev/overhead-budget", "101%"},
      {"rubato.dev/overhead-budget", "100.1%"},
      {"rubato.dev/overhead-budget", "0.05%"},
      {"rubato.dev/overhead-budget", "%"},
      {"rubato.dev/overhead-budget", "1.2.3%"},
      {"rubato.dev/overhead-budget", "99999999999999999999%"},
  };
  for (const auto& [key, value] : kBad) {
    const PodPromises read = Read(PodWith({{"rubato.dev/class", "realtime"}, {key, value}}));
    const Promise plain{.tenant_class = PromisedClass::kRealtime};
    EXPECT_EQ(read.containers.at("main"), plain) << key << "=" << value;
    ASSERT_EQ(read.complaints.size(), 1u) << key << "=" << value;
    EXPECT_EQ(read.complaints[0].key, key);
    EXPECT_NE(read.complaints[0].message.find("write "), std::string::npos);
  }
}

TEST(PromiseTest, OverheadBudgetsAreExact) {
  const std::pair<const char*, uint32_t> kGood[] = {{"2%", 20},     {"0.5%", 5},   {"0.1%", 1},
                                                    {"100%", 1000}, {"2.50%", 25}, {"2 %", 20},
                                                    {"2.%", 20}};
  for (const auto& [value, permille] : kGood) {
    const PodPromises read =
        Read(PodWith({{"rubato.dev/class", "realtime"}, {"rubato.dev/overhead-budget", value}}));
    EXPECT_EQ(read.containers.at("main").overhead_budget_permille, permille) << value;
  }
}

TEST(PromiseTest, AnUnknownClassIsBestEffortWithOneComplaint) {
  const PodPromises read =
      Read(PodWith({{"rubato.dev/class", "Realtime"}, {"rubato.dev/period", "10ms"}}));
  EXPECT_EQ(read.containers.at("main"), Promise{});
  ASSERT_EQ(read.complaints.size(), 1u);
  EXPECT_EQ(read.complaints[0].key, "rubato.dev/class");
  EXPECT_NE(read.complaints[0].message.find("'Realtime'"), std::string::npos);
}

TEST(PromiseTest, RealtimeKeysOfABestEffortContainerAreComplainedAbout) {
  for (const char* key : {"rubato.dev/period", "rubato.dev/deadline", "rubato.dev/priority",
                          "rubato.dev/overhead-budget", "main.rubato.dev/period"}) {
    const PodPromises read = Read(PodWith({{key, "10ms"}}));
    EXPECT_EQ(read.containers.at("main"), Promise{});
    ASSERT_EQ(read.complaints.size(), 1u) << key;
    EXPECT_EQ(read.complaints[0].key, key);
  }
}

TEST(PromiseTest, UnknownKeysAndContainersAreComplainedAboutOnce) {
  const PodPromises read = Read(
      PodWith({{"rubato.dev/clas", "realtime"},
               {"rubato.dev/", "x"},
               {"mian.rubato.dev/class", "realtime"},
               {"log.rubato.dev/class", "realtime"},
               {"main.rubato.dev/perod", "1ms"},
               {"notrubato.dev/class", "realtime"},
               {"other.dev/class", "realtime"}},
              {{.name = "main", .slots = 1}, {.name = "second", .slots = 1}, {.name = "log"}}));
  std::vector<std::string> keys;
  for (const Complaint& complaint : read.complaints) keys.push_back(complaint.key);
  EXPECT_EQ(keys,
            (std::vector<std::string>{"log.rubato.dev/class", "main.rubato.dev/perod",
                                      "mian.rubato.dev/class", "rubato.dev/", "rubato.dev/clas"}));
  EXPECT_EQ(read.complaints[1].container, "main");
  EXPECT_EQ(read.complaints[4].container, "");
}

TEST(PromiseTest, APodsBadValueIsOneComplaintForAllContainers) {
  const PodPromises read = Read(PodWith({{"rubato.dev/memory", "lots"}},
                                        {{.name = "a", .slots = 1}, {.name = "b", .slots = 1}}));
  EXPECT_EQ(read.complaints.size(), 1u);
}

TEST(PromiseTest, HostileTextStaysShortAndPrintable) {
  Pod::Annotations annotations;
  for (int i = 0; i < 500; ++i)
    annotations["rubato.dev/" + std::to_string(i) + std::string(200, '\x01')] = "x";
  annotations["rubato.dev/class"] = std::string(257, '\n');
  const PodPromises read = Read(PodWith(annotations));
  EXPECT_LE(read.complaints.size(), 64u);
  for (const Complaint& complaint : read.complaints) {
    EXPECT_LE(complaint.key.size(), 128u);
    EXPECT_LE(complaint.message.size(), 400u);
    for (const char c : complaint.key + complaint.message) EXPECT_TRUE(c >= ' ' && c <= '~');
  }
}

TEST(PromiseTest, AnotherDomainIsRead) {
  PodSelection selection;
  selection.annotation_domain = "gpu.example.org";
  const PodPromises read = ReadPromises(PodWith({{"gpu.example.org/class", "realtime"},
                                                 {"main.gpu.example.org/period", "5ms"},
                                                 {"rubato.dev/period", "10ms"}}),
                                        selection);
  EXPECT_EQ(read.containers.at("main").period_ns, 5 * base::kMillisecond);
  EXPECT_TRUE(read.complaints.empty());
}

}  // namespace
}  // namespace rubato::kube
