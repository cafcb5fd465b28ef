#include "agent/census/census.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace rubato::agent {
namespace {

using base::kSecond;
using base::Nanos;
namespace control = rubato::control::v1;

constexpr const char kPodA[] = "0aaaaaaa-1111-2222-3333-444444444444";
constexpr const char kPodB[] = "0bbbbbbb-1111-2222-3333-444444444444";

std::string CgroupOf(const std::string& uid) {
  return "0::/kubepods/burstable/pod" + uid + "/" + std::string(64, 'c') + "\n";
}

class CensusTest : public ::testing::Test {
 protected:
  CensusTest()
      : census_([this](int64_t pid) -> std::optional<ProcessTraces> {
          const auto found = processes_.find(pid);
          if (found == processes_.end()) return std::nullopt;
          return found->second;
        }) {
    gpus_.resize(1);
    gpus_[0].reading.uuid = "GPU-a";
  }

  void Use(int64_t pid, const std::string& cgroup, const std::string& program = "python") {
    gpus_[0].reading.processes.push_back({pid, 100});
    processes_[pid] = {program, cgroup};
  }
  void Attach(int64_t pid, const std::string& pod_uid, const std::string& token = "t") {
    control::TenantStatus& tenant = *status_.add_tenants();
    tenant.set_attach_token(token);
    tenant.mutable_spec()->set_pod_uid(pod_uid);
    tenant.add_session_list()->set_pid(pid);
  }
  Census::Result Look() {
    return census_.Observe(
        gpus_, status_, [](const std::string& uid) { return uid == kPodA; }, now_ns_);
  }
  // Once at first sight, once after the patience is over.
  Census::Result LookTwice() {
    EXPECT_TRUE(Look().by_device.empty());
    now_ns_ += 11 * kSecond;
    return Look();
  }

  std::map<int64_t, ProcessTraces> processes_;
  Census census_;
  std::vector<KnownGpu> gpus_;
  control::GetStatusResponse status_;
  Nanos now_ns_ = 1000 * kSecond;
};

TEST_F(CensusTest, AttachedProcessesAreNoSuspects) {
  Use(7, CgroupOf(kPodA));
  Attach(7, kPodA);
  const auto result = LookTwice();
  EXPECT_TRUE(result.by_device.empty());
  EXPECT_TRUE(result.fresh.empty());
}

TEST_F(CensusTest, AProcessOfAContainerWithSlotsThatIsNotAttached) {
  Use(7, CgroupOf(kPodA), "static-app");
  const auto result = LookTwice();
  EXPECT_EQ(result.by_device.at("GPU-a").at("slots"), 1u);
  ASSERT_EQ(result.fresh.size(), 1u);
  EXPECT_EQ(result.fresh[0].pod_uid, kPodA);
  EXPECT_EQ(result.fresh[0].program, "static-app");
  EXPECT_EQ(result.fresh[0].reason, "slots");
  const auto again = Look();
  EXPECT_TRUE(again.fresh.empty()) << "told once";
  EXPECT_EQ(again.by_device.at("GPU-a").at("slots"), 1u) << "but still there";
}

TEST_F(CensusTest, OthersAreToldApart) {
  Use(7, CgroupOf(kPodB));
  Use(8, "0::/user.slice/session-1.scope\n");
  const auto result = LookTwice();
  EXPECT_EQ(result.by_device.at("GPU-a").at("no-slots"), 1u);
  EXPECT_EQ(result.by_device.at("GPU-a").at("host"), 1u);
}

TEST_F(CensusTest, AProcessThatAttachesInTimeIsNoSuspect) {
  Use(7, CgroupOf(kPodA));
  Look();
  now_ns_ += 5 * kSecond;
  Attach(7, kPodA);
  Look();
  now_ns_ += 3600 * kSecond;
  EXPECT_TRUE(Look().by_device.empty());
}

TEST_F(CensusTest, TheMpsServerAndProcessesThatEndedAreNone) {
  Use(7, CgroupOf(kPodA), "nvidia-cuda-mps");
  Use(8, CgroupOf(kPodA));
  processes_.erase(8);
  EXPECT_TRUE(LookTwice().by_device.empty());
}

TEST_F(CensusTest, AnAttachedProcessOfAnotherPodIsToldOnce) {
  processes_[7] = {"python", CgroupOf(kPodB)};
  Attach(7, kPodA);
  const auto result = Look();
  ASSERT_EQ(result.fresh.size(), 1u);
  EXPECT_EQ(result.fresh[0].reason, "other-pod");
  EXPECT_EQ(result.fresh[0].pod_uid, kPodB);
  EXPECT_TRUE(Look().fresh.empty());
}

TEST_F(CensusTest, WhatCannotBeSeenProvesNothing) {
  processes_[7] = {"python", "0::/\n"};
  Attach(7, kPodA);
  Attach(0, kPodA);
  EXPECT_TRUE(Look().fresh.empty());
}

TEST(ReadProcessTest, ReadsThisOne) {
  const auto traces = ReadProcess(::getpid());
  ASSERT_TRUE(traces.has_value());
  EXPECT_FALSE(traces->program.empty());
  EXPECT_FALSE(ReadProcess(0).has_value());
}

}  // namespace
}  // namespace rubato::agent
