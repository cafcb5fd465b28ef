#include "agent/tenants/policy.h"

#include <gtest/gtest.h>

namespace rubato::agent {
namespace {

constexpr uint64_t kGi = uint64_t{1} << 30;

deviceplugin::AllocationRecord Record(size_t slots, std::vector<std::string> gpus,
                                      uint32_t slots_per_gpu = 10) {
  deviceplugin::AllocationRecord record;
  record.token = "0123456789abcdef0123456789abcdef";
  record.serial = 1;
  for (size_t i = 0; i < slots; ++i)
    record.slots.push_back(gpus[i / slots_per_gpu] + "::" + std::to_string(i % slots_per_gpu));
  record.gpus = std::move(gpus);
  record.slots_per_gpu = slots_per_gpu;
  return record;
}

kube::Promise Realtime() {
  kube::Promise promise;
  promise.tenant_class = kube::PromisedClass::kRealtime;
  promise.period_ns = 10 * base::kMillisecond;
  promise.deadline_ns = 8 * base::kMillisecond;
  return promise;
}

TEST(NamespaceAllowedTest, NobodyByDefaultEverybodyByStar) {
  EXPECT_FALSE(NamespaceAllowed({}, "a"));
  EXPECT_TRUE(NamespaceAllowed({"b", "a"}, "a"));
  EXPECT_FALSE(NamespaceAllowed({"b"}, "a"));
  EXPECT_TRUE(NamespaceAllowed({"*"}, "a"));
}

TEST(SpecOfSlotsTest, ShareAndWeightFollowTheSlots) {
  const auto spec = SpecOfSlots(Record(3, {"GPU-a"}), {"ns", "pod", "uid", "main"});
  EXPECT_EQ(spec.name(), "pod/main");
  EXPECT_EQ(spec.namespace_(), "ns");
  EXPECT_EQ(spec.pod_uid(), "uid");
  EXPECT_EQ(spec.share_permille(), 300u);
  EXPECT_EQ(spec.weight(), 3u);
  ASSERT_EQ(spec.device_uuids_size(), 1);
  EXPECT_EQ(spec.device_uuids(0), "GPU-a");
  EXPECT_TRUE(spec.any_user());
  EXPECT_EQ(spec.tenant_class(), control::TENANT_CLASS_BEST_EFFORT);
}

TEST(SpecOfSlotsTest, WholeGpusAreWholeShares) {
  const auto spec = SpecOfSlots(Record(20, {"GPU-a", "GPU-b"}), {"ns", "pod", "uid", "main"});
  EXPECT_EQ(spec.share_permille(), 1000u);
  EXPECT_EQ(spec.weight(), 10u);
  EXPECT_EQ(spec.device_uuids_size(), 2);
}

TEST(SpecOfSlotsTest, ATinyShareIsNotNone) {
  EXPECT_EQ(SpecOfSlots(Record(1, {"GPU-a"}, 100), {}).share_permille(), 10u);
  EXPECT_EQ(SpecOfSlots(Record(1, {"GPU-a"}, 3), {}).share_permille(), 333u);
}

TEST(SpecOfSlotsTest, NamesFitTheControlApi) {
  const auto spec =
      SpecOfSlots(Record(1, {"GPU-a"}), {"ns", std::string(253, 'p'), "uid", std::string(63, 'c')});
  EXPECT_EQ(spec.name().size(), 128u);
  EXPECT_EQ(SpecOfSlots(Record(1, {"GPU-a"}), {}).name(), "unknown-01234567");
}

TEST(ApplyPromiseTest, RealtimeWithRightIsPassedOn) {
  TenantPolicy policy;
  policy.realtime_namespaces = {"ns"};
  auto spec = SpecOfSlots(Record(3, {"GPU-a"}), {"ns", "pod", "uid", "main"});
  std::vector<Notice> notices;
  kube::Promise promise = Realtime();
  promise.priority = kube::PromisedPriority::kHigh;
  ApplyPromise(promise, policy, false, &spec, &notices);
  EXPECT_EQ(spec.tenant_class(), control::TENANT_CLASS_REALTIME);
  EXPECT_EQ(spec.period_ns(), 10'000'000u);
  EXPECT_EQ(spec.deadline_ns(), 8'000'000u);
  EXPECT_EQ(spec.priority(), 0u);
  EXPECT_EQ(spec.refusal_reason(), "");
  EXPECT_TRUE(notices.empty());
}

TEST(ApplyPromiseTest, RealtimeWithoutRightKeepsItsWishAndTheReason) {
  auto spec = SpecOfSlots(Record(3, {"GPU-a"}), {"ns", "pod", "uid", "main"});
  std::vector<Notice> notices;
  ApplyPromise(Realtime(), TenantPolicy{}, false, &spec, &notices);
  EXPECT_EQ(spec.tenant_class(), control::TENANT_CLASS_REALTIME);
  EXPECT_EQ(spec.refusal_reason(), "not-allowed");
  EXPECT_NE(spec.refusal_detail().find("namespace ns"), std::string::npos);
}

TEST(ApplyPromiseTest, InitContainersPrepareAsBestEffort) {
  TenantPolicy policy;
  policy.realtime_namespaces = {"*"};
  auto spec = SpecOfSlots(Record(3, {"GPU-a"}), {"ns", "pod", "uid", "load"});
  std::vector<Notice> notices;
  ApplyPromise(Realtime(), policy, true, &spec, &notices);
  EXPECT_EQ(spec.tenant_class(), control::TENANT_CLASS_BEST_EFFORT);
  EXPECT_EQ(spec.period_ns(), 0u);
}

TEST(ApplyPromiseTest, ALargeBudgetNeedsARight) {
  TenantPolicy policy;
  policy.realtime_namespaces = {"*"};
  kube::Promise promise = Realtime();
  promise.overhead_budget_permille = 50;
  auto spec = SpecOfSlots(Record(3, {"GPU-a"}), {"ns", "pod", "uid", "main"});
  std::vector<Notice> notices;
  ApplyPromise(promise, policy, false, &spec, &notices);
  EXPECT_EQ(spec.overhead_budget_permille(), 20u);
  ASSERT_EQ(notices.size(), 1u);
  EXPECT_EQ(notices[0].reason, "BudgetNotAllowed");
  EXPECT_NE(notices[0].message.find("5%"), std::string::npos);

  policy.budget_namespaces = {"ns"};
  notices.clear();
  ApplyPromise(promise, policy, false, &spec, &notices);
  EXPECT_EQ(spec.overhead_budget_permille(), 50u);
  EXPECT_TRUE(notices.empty());

  promise.overhead_budget_permille = 0;  // Not the scheduler's default.
  ApplyPromise(promise, policy, false, &spec, &notices);
  EXPECT_EQ(spec.overhead_budget_permille(), 1u);
}

class ShareMemoryTest : public ::testing::Test {
 protected:
  MemoryAsk& Add(const std::string& token, uint32_t share_permille,
                 std::optional<uint64_t> asked = std::nullopt, bool right = false) {
    MemoryAsk ask;
    ask.token = token;
    ask.serial = asks_.size() + 1;
    ask.gpus = {"GPU-a"};
    ask.share_permille = share_permille;
    ask.asked_bytes = asked;
    ask.may_exceed_share = right;
    asks_.push_back(ask);
    return asks_.back();
  }
  std::map<std::string, MemoryGrant> Share() {
    return ShareMemory(asks_, {{"GPU-a", 80 * kGi}}, policy_);
  }

  std::vector<MemoryAsk> asks_;
  TenantPolicy policy_;
};

TEST_F(ShareMemoryTest, BySlots) {
  Add("a", 300);
  Add("b", 200);
  auto grants = Share();
  EXPECT_EQ(grants["a"].limit_bytes, 24 * kGi);
  EXPECT_EQ(grants["b"].limit_bytes, 16 * kGi);
}

TEST_F(ShareMemoryTest, WholeGpusHaveNoLimit) {
  Add("a", 1000);
  EXPECT_EQ(Share()["a"].limit_bytes, 0u);
}

TEST_F(ShareMemoryTest, LessThanTheShareNeedsNoRight) {
  Add("a", 300, 8 * kGi);
  auto grants = Share();
  EXPECT_EQ(grants["a"].limit_bytes, 8 * kGi);
  EXPECT_FALSE(grants["a"].notice.has_value());
}

TEST_F(ShareMemoryTest, MoreThanTheShareNeedsARight) {
  Add("a", 300, 40 * kGi);
  auto grants = Share();
  EXPECT_EQ(grants["a"].limit_bytes, 24 * kGi);
  ASSERT_TRUE(grants["a"].notice.has_value());
  EXPECT_EQ(grants["a"].notice->reason, "MemoryNotAllowed");
  EXPECT_NE(grants["a"].notice->message.find("40Gi"), std::string::npos);
}

TEST_F(ShareMemoryTest, ExtraComesFromWhatIsLeft) {
  Add("a", 300, 40 * kGi, true);
  EXPECT_EQ(Share()["a"].limit_bytes, 40 * kGi);
  // Slots are a right: others get theirs, and the extra shrinks.
  Add("b", 600);
  auto grants = Share();
  EXPECT_EQ(grants["b"].limit_bytes, 48 * kGi);
  EXPECT_EQ(grants["a"].limit_bytes, 32 * kGi);
  EXPECT_EQ(grants["a"].notice->reason, "MemoryReduced");
}

TEST_F(ShareMemoryTest, TheOlderAllocationGetsTheExtra) {
  Add("b", 300, 60 * kGi, true);
  Add("a", 300, 60 * kGi, true);
  auto grants = Share();
  EXPECT_EQ(grants["b"].limit_bytes, 56 * kGi);
  EXPECT_EQ(grants["a"].limit_bytes, 24 * kGi);
}

TEST_F(ShareMemoryTest, NeverBeyondTheDeviceUnlessConfigured) {
  Add("a", 500, 70 * kGi, true);
  Add("b", 500, 200 * kGi, true);
  uint64_t sum = 0;
  for (const auto& [token, grant] : Share()) sum += grant.limit_bytes;
  EXPECT_EQ(sum, 80 * kGi);
  policy_.memory_overcommit = true;
  auto grants = Share();
  EXPECT_EQ(grants["a"].limit_bytes, 70 * kGi);
  EXPECT_EQ(grants["b"].limit_bytes, 80 * kGi) << "more than the device has cannot be had";
  EXPECT_EQ(grants["b"].notice->reason, "MemoryReduced");
}

TEST_F(ShareMemoryTest, AnInitContainersSlotsCountOnce) {
  Add("init", 500).init = true;
  Add("a", 500, 70 * kGi, true);
  auto grants = Share();
  EXPECT_EQ(grants["init"].limit_bytes, 40 * kGi);
  EXPECT_EQ(grants["a"].limit_bytes, 70 * kGi);
}

TEST_F(ShareMemoryTest, AGpuOfUnknownSizeSetsNoShare) {
  Add("a", 500);
  EXPECT_EQ(ShareMemory(asks_, {{"GPU-a", 0}}, policy_)["a"].limit_bytes, 0u);
}

TEST(FormatBytesTest, AsAnnotationsAreWritten) {
  EXPECT_EQ(FormatBytes(8 * kGi), "8Gi");
  EXPECT_EQ(FormatBytes(kGi + kGi / 2), "1.5Gi");
  EXPECT_EQ(FormatBytes(512), "512");
}

}  // namespace
}  // namespace rubato::agent
