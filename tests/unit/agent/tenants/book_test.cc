#include "agent/tenants/book.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace rubato::agent {
namespace {

using base::kSecond;
using base::Nanos;

constexpr uint64_t kGi = uint64_t{1} << 30;
constexpr const char kResource[] = "rubato.dev/gpu";

// A node with one GPU, its kubelet and its watch, in virtual time.
class BookTest : public ::testing::Test {
 protected:
  BookTest() : book_(TenantBook::Options{}, Policy()) {}

  static TenantPolicy Policy() {
    TenantPolicy policy;
    policy.realtime_namespaces = {"trusted"};
    return policy;
  }

  static std::vector<std::string> Slots(int first, int count) {
    std::vector<std::string> out;
    for (int i = first; i < first + count; ++i) out.push_back("GPU-a::" + std::to_string(i));
    return out;
  }

  // What the plugin does at Allocate; returns the token.
  std::string Allocate(std::vector<std::string> slots) {
    deviceplugin::AllocationRecord record;
    record.serial = ++serial_;
    record.token = std::string(31, '0') + static_cast<char>('a' + serial_);
    record.slots = slots;
    record.gpus = {"GPU-a"};
    record.slots_per_gpu = 10;
    for (auto& [token, other] : records_) {
      for (const std::string& slot : slots) {
        if (std::find(other.slots.begin(), other.slots.end(), slot) != other.slots.end())
          other.superseded = true;
      }
    }
    records_[record.token] = record;
    return record.token;
  }

  void Hold(const std::string& pod, const std::string& container, std::vector<std::string> slots,
            const std::string& name_space = "ns") {
    // Order is the kubelet's own.
    std::reverse(slots.begin(), slots.end());
    for (auto& known : held_) {
      if (known.pod == pod && known.name_space == name_space) {
        known.containers.push_back({container, {{kResource, slots}}});
        return;
      }
    }
    held_.push_back({name_space, pod, {{container, {{kResource, slots}, {"other.dev/x", {"1"}}}}}});
  }
  void Drop(const std::string& pod) {
    std::erase_if(held_, [&](const auto& entry) { return entry.pod == pod; });
  }

  kube::Pod& Put(const std::string& name, std::vector<kube::PodContainer> containers,
                 const std::string& name_space = "ns") {
    kube::Pod pod;
    pod.name_space = name_space;
    pod.name = name;
    pod.uid = "uid-" + name;
    pod.phase = kube::PodPhase::kPending;
    pod.containers = std::move(containers);
    return pods_[{name_space, name}] = pod;
  }
  static kube::PodContainer Main(const std::string& name, uint64_t slots) {
    return {name, kube::ContainerKind::kMain, slots, ""};
  }
  static kube::PodContainer Init(const std::string& name, uint64_t slots) {
    return {name, kube::ContainerKind::kInit, slots, ""};
  }

  Plan Join() {
    TenantBook::Facts facts;
    facts.records = &records_;
    facts.held = kubelet_answers_ ? &held_ : nullptr;
    facts.held_serial = serial_;
    facts.pods = &pods_;
    facts.pods_synced = synced_;
    facts.gpu_bytes = {{"GPU-a", 80 * kGi}};
    return book_.Join(facts, now_ns_);
  }
  AllocationPlan JoinOf(const std::string& token) { return Join().at(token); }

  // A container with slots that runs as it should.
  std::string Run(const std::string& pod, int first, int count) {
    const std::string token = Allocate(Slots(first, count));
    Hold(pod, "main", Slots(first, count));
    Put(pod, {Main("main", static_cast<uint64_t>(count))}).phase = kube::PodPhase::kRunning;
    EXPECT_EQ(JoinOf(token).state, AllocationState::kLive);
    return token;
  }

  TenantBook book_;
  std::map<std::string, deviceplugin::AllocationRecord> records_;
  std::vector<deviceplugin::PodDevicesHeld> held_;
  kube::PodWatch::Pods pods_;
  bool synced_ = true;
  bool kubelet_answers_ = true;
  uint64_t serial_ = 0;
  Nanos now_ns_ = 1000 * kSecond;
};

TEST_F(BookTest, AContainerBecomesATenantWithItsNames) {
  const std::string token = Run("p", 0, 3);
  const AllocationPlan plan = JoinOf(token);
  EXPECT_TRUE(plan.complete);
  EXPECT_EQ(plan.pod, (PodRef{"ns", "p", "uid-p", "main"}));
  EXPECT_EQ(plan.spec.name(), "p/main");
  EXPECT_EQ(plan.spec.pod_uid(), "uid-p");
  EXPECT_EQ(plan.spec.share_permille(), 300u);
  EXPECT_EQ(plan.spec.limit_bytes(), 24 * kGi);
  EXPECT_EQ(plan.spec.tenant_class(), control::TENANT_CLASS_BEST_EFFORT);
}

TEST_F(BookTest, AnnotationsBecomeTheSpecAndChangeWithIt) {
  const std::string token = Allocate(Slots(0, 3));
  Hold("p", "main", Slots(0, 3), "trusted");
  kube::Pod& pod = Put("p", {Main("main", 3)}, "trusted");
  pod.annotations = {{"rubato.dev/class", "realtime"}, {"rubato.dev/period", "10ms"}};
  AllocationPlan plan = JoinOf(token);
  EXPECT_EQ(plan.spec.tenant_class(), control::TENANT_CLASS_REALTIME);
  EXPECT_EQ(plan.spec.period_ns(), 10'000'000u);
  EXPECT_EQ(plan.spec.refusal_reason(), "");
  pod.annotations["rubato.dev/period"] = "20ms";
  pod.annotations["rubato.dev/memory"] = "8Gi";
  plan = JoinOf(token);
  EXPECT_EQ(plan.spec.period_ns(), 20'000'000u);
  EXPECT_EQ(plan.spec.limit_bytes(), 8 * kGi);
}

TEST_F(BookTest, ANamespaceWithoutRightIsRefusedWithTheReason) {
  const std::string token = Run("p", 0, 3);
  pods_.at({"ns", "p"}).annotations = {{"rubato.dev/class", "realtime"}};
  EXPECT_EQ(JoinOf(token).spec.refusal_reason(), "not-allowed");
  TenantPolicy policy = Policy();
  policy.realtime_namespaces = {"ns"};
  book_.SetPolicy(policy);
  EXPECT_EQ(JoinOf(token).spec.refusal_reason(), "");
}

TEST_F(BookTest, ABadAnnotationIsToldAndNotPromised) {
  const std::string token = Run("p", 0, 3);
  pods_.at({"ns", "p"}).annotations = {{"rubato.dev/class", "fast"}};
  const AllocationPlan plan = JoinOf(token);
  EXPECT_EQ(plan.state, AllocationState::kLive);
  EXPECT_EQ(plan.spec.tenant_class(), control::TENANT_CLASS_BEST_EFFORT);
  ASSERT_EQ(plan.notices.size(), 1u);
  EXPECT_EQ(plan.notices[0].reason, "BadAnnotation");
}

TEST_F(BookTest, TwoContainersOfAPodAreTwoTenants) {
  const std::string first = Allocate(Slots(0, 2));
  const std::string second = Allocate(Slots(2, 3));
  Hold("p", "a", Slots(0, 2), "trusted");
  Hold("p", "b", Slots(2, 3), "trusted");
  Put("p", {Main("a", 2), Main("b", 3)}, "trusted").annotations = {
      {"rubato.dev/class", "realtime"}, {"b.rubato.dev/class", "best-effort"}};
  const Plan plan = Join();
  EXPECT_EQ(plan.at(first).pod.container, "a");
  EXPECT_EQ(plan.at(first).spec.tenant_class(), control::TENANT_CLASS_REALTIME);
  EXPECT_EQ(plan.at(second).pod.container, "b");
  EXPECT_EQ(plan.at(second).spec.tenant_class(), control::TENANT_CLASS_BEST_EFFORT);
}

TEST_F(BookTest, ARecordThatIsYoungerThanTheKubeletsAnswerWaits) {
  const std::string token = Allocate(Slots(0, 1));
  TenantBook::Facts facts;
  facts.records = &records_;
  facts.held = &held_;
  facts.held_serial = 0;
  facts.pods = &pods_;
  facts.pods_synced = true;
  EXPECT_EQ(book_.Join(facts, now_ns_).at(token).state, AllocationState::kWaiting);
  EXPECT_EQ(book_.Join(facts, now_ns_ + 3600 * kSecond).at(token).state, AllocationState::kWaiting);
}

TEST_F(BookTest, TheKubeletMayBeFasterThanTheWatch) {
  const std::string token = Allocate(Slots(0, 1));
  Hold("p", "main", Slots(0, 1));
  AllocationPlan plan = JoinOf(token);
  EXPECT_EQ(plan.state, AllocationState::kLive);
  EXPECT_EQ(plan.why, "pod-unknown");
  EXPECT_FALSE(plan.complete);
  EXPECT_EQ(plan.spec.namespace_(), "ns");
  EXPECT_GT(book_.next_change_ns(), now_ns_);
  now_ns_ += kSecond;
  Put("p", {Main("main", 1)});
  plan = JoinOf(token);
  EXPECT_TRUE(plan.complete);
  EXPECT_EQ(plan.pod.uid, "uid-p");
}

TEST_F(BookTest, APodThatTheWatchNeverShowsIsGone) {
  const std::string token = Allocate(Slots(0, 1));
  Hold("ghost", "main", Slots(0, 1));
  EXPECT_EQ(JoinOf(token).state, AllocationState::kLive);
  now_ns_ += 31 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kEnded);
  // Still at the kubelet: it may still be mounted.
  now_ns_ += 3600 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kEnded);
  Drop("ghost");
  EXPECT_EQ(JoinOf(token).state, AllocationState::kEnded);
  now_ns_ += 11 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kReleasable);
}

TEST_F(BookTest, AFinishedPodIsNoTenantThoughTheKubeletShowsIt) {
  const std::string token = Run("p", 0, 3);
  pods_.at({"ns", "p"}).phase = kube::PodPhase::kSucceeded;
  AllocationPlan plan = JoinOf(token);
  EXPECT_EQ(plan.state, AllocationState::kEnded);
  EXPECT_EQ(plan.why, "finished");
  now_ns_ += 3600 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kEnded) << "the kubelet may still mount it";
  Drop("p");
  Join();
  now_ns_ += 11 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kReleasable);
}

TEST_F(BookTest, AForceDeletedPodIsNoTenantThoughTheKubeletShowsIt) {
  const std::string token = Run("p", 0, 3);
  pods_.clear();
  AllocationPlan plan = JoinOf(token);
  EXPECT_EQ(plan.state, AllocationState::kEnded);
  EXPECT_EQ(plan.why, "pod-gone");
  now_ns_ += 3600 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kEnded);
}

TEST_F(BookTest, APodThatIsBeingDeletedRunsOn) {
  const std::string token = Run("p", 0, 3);
  pods_.at({"ns", "p"}).deleting = true;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kLive);
}

TEST_F(BookTest, TheSameSlotsGoToTheNewestAllocation) {
  const std::string old_token = Run("old", 0, 3);
  pods_.clear();
  Drop("old");
  const std::string new_token = Allocate(Slots(0, 3));
  Hold("new", "main", Slots(0, 3));
  Put("new", {Main("main", 3)});
  const Plan plan = Join();
  EXPECT_EQ(plan.at(new_token).pod.pod, "new");
  EXPECT_EQ(plan.at(new_token).state, AllocationState::kLive);
  EXPECT_EQ(plan.at(old_token).state, AllocationState::kEnded);
}

TEST_F(BookTest, TheSameSlotsBesideAFinishedPodThatStillShows) {
  const std::string old_token = Run("old", 0, 3);
  pods_.at({"ns", "old"}).phase = kube::PodPhase::kFailed;
  const std::string new_token = Allocate(Slots(0, 3));
  Hold("new", "main", Slots(0, 3));
  Put("new", {Main("main", 3)});
  const Plan plan = Join();
  EXPECT_EQ(plan.at(new_token).pod.pod, "new");
  EXPECT_EQ(plan.at(new_token).state, AllocationState::kLive);
  EXPECT_EQ(plan.at(old_token).state, AllocationState::kEnded);
}

TEST_F(BookTest, APodOfTheSameNameIsAnotherPod) {
  const std::string old_token = Run("web-0", 0, 3);
  Drop("web-0");
  pods_.clear();
  const std::string new_token = Allocate(Slots(3, 3));
  Hold("web-0", "main", Slots(3, 3));
  Put("web-0", {Main("main", 3)}).uid = "uid-other";
  const Plan plan = Join();
  EXPECT_EQ(plan.at(old_token).state, AllocationState::kEnded);
  EXPECT_EQ(plan.at(new_token).state, AllocationState::kLive);
  EXPECT_EQ(plan.at(new_token).pod.uid, "uid-other");
}

TEST_F(BookTest, AnInitContainerHasItsOwnTenant) {
  // The kubelet hands the init container's slots on to the main one, and shows only that.
  const std::string init = Allocate(Slots(0, 2));
  const std::string main = Allocate(Slots(0, 2));
  Hold("p", "main", Slots(0, 2), "trusted");
  Put("p", {Init("load", 2), Main("main", 2)}, "trusted").annotations = {
      {"rubato.dev/class", "realtime"}};
  const Plan plan = Join();
  EXPECT_EQ(plan.at(init).state, AllocationState::kLive);
  EXPECT_EQ(plan.at(init).pod.container, "load");
  EXPECT_EQ(plan.at(init).spec.tenant_class(), control::TENANT_CLASS_BEST_EFFORT);
  EXPECT_EQ(plan.at(main).pod.container, "main");
  EXPECT_EQ(plan.at(main).spec.tenant_class(), control::TENANT_CLASS_REALTIME);
  // They go together.
  pods_.clear();
  Drop("p");
  now_ns_ += 1;
  EXPECT_EQ(Join().at(init).state, AllocationState::kEnded);
  now_ns_ += 11 * kSecond;
  EXPECT_EQ(Join().at(init).state, AllocationState::kReleasable);
}

TEST_F(BookTest, TwoInitContainersOfDifferentSize) {
  const std::string other = Run("other", 5, 2);
  const std::string first = Allocate(Slots(0, 2));
  const std::string second = Allocate(Slots(0, 3));
  const std::string main = Allocate(Slots(0, 1));
  Hold("p", "main", Slots(0, 1));
  Put("p", {Init("first", 2), Init("second", 3), Main("main", 1)});
  const Plan plan = Join();
  EXPECT_EQ(plan.at(first).pod.container, "first");
  EXPECT_EQ(plan.at(second).pod.container, "second");
  EXPECT_EQ(plan.at(main).pod.container, "main");
  EXPECT_EQ(plan.at(other).pod.pod, "other");
}

TEST_F(BookTest, AnInitContainersRecordIsKeptUntilItsPodIsKnown) {
  const std::string init = Allocate(Slots(0, 2));
  const std::string main = Allocate(Slots(0, 3));
  Hold("p", "main", Slots(0, 3));
  EXPECT_NE(Join().at(init).state, AllocationState::kReleasable);
  Put("p", {Init("load", 2), Main("main", 3)});
  const Plan plan = Join();
  EXPECT_EQ(plan.at(init).pod.container, "load");
  EXPECT_EQ(plan.at(main).pod.container, "main");
}

TEST_F(BookTest, AnotherPodsRecordBeforeItIsNotAnInitContainers) {
  const std::string other = Run("other", 5, 2);
  const std::string main = Allocate(Slots(0, 3));
  Hold("p", "main", Slots(0, 3));
  Put("p", {Init("load", 2), Main("main", 3)});
  const Plan plan = Join();
  EXPECT_EQ(plan.at(other).pod.pod, "other");
  EXPECT_EQ(plan.at(main).pod.pod, "p");
}

TEST_F(BookTest, StaticPodsComeByTheirMirrorsName) {
  const std::string token = Allocate(Slots(0, 1));
  Hold("static-node1", "main", Slots(0, 1), "kube-system");
  EXPECT_EQ(JoinOf(token).why, "pod-unknown");
  kube::Pod& mirror = Put("static-node1", {Main("main", 1)}, "kube-system");
  mirror.static_uid = "0123456789abcdef0123456789abcdef";
  const AllocationPlan plan = JoinOf(token);
  EXPECT_TRUE(plan.complete);
  EXPECT_EQ(plan.pod.name_space, "kube-system");
}

TEST_F(BookTest, AfterARestartOfTheAgentTheSameComesOut) {
  const std::string first = Run("p", 0, 3);
  const std::string second = Run("q", 3, 3);
  const Plan before = Join();
  TenantBook again(TenantBook::Options{}, Policy());
  TenantBook::Facts facts;
  facts.records = &records_;
  facts.held = &held_;
  facts.held_serial = serial_;
  facts.pods = &pods_;
  facts.pods_synced = true;
  facts.gpu_bytes = {{"GPU-a", 80 * kGi}};
  const Plan after = again.Join(facts, now_ns_);
  for (const std::string& token : {first, second}) {
    EXPECT_EQ(after.at(token).state, AllocationState::kLive);
    EXPECT_EQ(after.at(token).spec.SerializeAsString(), before.at(token).spec.SerializeAsString());
  }
}

TEST_F(BookTest, WithoutAnApiServerForNowNothingIsTakenAway) {
  synced_ = false;
  const std::string token = Allocate(Slots(0, 1));
  Hold("p", "main", Slots(0, 1));
  AllocationPlan plan = JoinOf(token);
  EXPECT_EQ(plan.state, AllocationState::kLive);
  EXPECT_EQ(plan.why, "pods-unknown");
  EXPECT_FALSE(plan.complete);
  Drop("p");
  now_ns_ += 24 * 3600 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kLive);
}

TEST_F(BookTest, WithoutAKubeletForNowNothingIsTakenAway) {
  const std::string token = Run("p", 0, 3);
  kubelet_answers_ = false;
  now_ns_ += 24 * 3600 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kLive);
}

TEST_F(BookTest, ABoundAllocationOutlivesAKubeletThatForgot) {
  const std::string token = Run("p", 0, 3);
  held_.clear();  // Restarted, and not yet through its pods.
  now_ns_ += 3600 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kLive);
}

TEST_F(BookTest, AKubeletThatAllocatesAgainReplaces) {
  const std::string first = Run("p", 0, 3);
  const std::string second = Allocate(Slots(3, 3));
  held_.clear();
  Hold("p", "main", Slots(3, 3));
  const Plan plan = Join();
  EXPECT_EQ(plan.at(second).state, AllocationState::kLive);
  EXPECT_EQ(plan.at(first).state, AllocationState::kEnded);
  EXPECT_EQ(plan.at(first).why, "replaced");
  now_ns_ += 3600 * kSecond;
  EXPECT_EQ(Join().at(first).state, AllocationState::kEnded) << "its container may still run";
}

TEST_F(BookTest, AnAllocationThatNobodyEverTookIsReleasedLate) {
  const std::string token = Allocate(Slots(0, 1));
  EXPECT_EQ(JoinOf(token).state, AllocationState::kWaiting);
  now_ns_ += 60 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kEnded);
  now_ns_ += 300 * kSecond;
  EXPECT_EQ(JoinOf(token).state, AllocationState::kReleasable);
}

TEST_F(BookTest, ButNotWhileAPodLacksOneOfItsSize) {
  const std::string token = Allocate(Slots(0, 2));
  Put("p", {Main("main", 2)});
  now_ns_ += 3600 * kSecond;
  JoinOf(token);
  now_ns_ += 3600 * kSecond;
  EXPECT_NE(JoinOf(token).state, AllocationState::kReleasable);
}

TEST_F(BookTest, WithoutPodsTheKubeletDecides) {
  TenantBook::Options options;
  options.without_pods = true;
  TenantBook book(options, Policy());
  const std::string token = Allocate(Slots(0, 1));
  Hold("p", "main", Slots(0, 1));
  TenantBook::Facts facts;
  facts.records = &records_;
  facts.held = &held_;
  facts.held_serial = serial_;
  AllocationPlan plan = book.Join(facts, now_ns_).at(token);
  EXPECT_EQ(plan.state, AllocationState::kLive);
  EXPECT_TRUE(plan.complete);
  held_.clear();
  EXPECT_EQ(book.Join(facts, now_ns_).at(token).state, AllocationState::kEnded);
  EXPECT_EQ(book.Join(facts, now_ns_ + 11 * kSecond).at(token).state, AllocationState::kReleasable);
}

}  // namespace
}  // namespace rubato::agent
