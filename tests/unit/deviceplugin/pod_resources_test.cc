#include "deviceplugin/pod_resources.h"

#include <gtest/gtest.h>

#include <optional>

#include "deviceplugin/plugin.h"
#include "tests/fakes/kubelet.h"
#include "tests/unit/deviceplugin/gpus.h"
#include "tests/unit/deviceplugin/loop_fixture.h"

namespace rubato::deviceplugin {
namespace {

constexpr base::Nanos kPatienceNs = 30 * base::kSecond;
constexpr char kResource[] = "rubato.dev/gpu";

class PodResourcesTest : public LoopFixture {
 protected:
  void SetUp() override {
    LoopFixture::SetUp();
    kubelet_ = std::make_unique<testing::FakeKubelet>(directory_);
    OnLoop([&] { client_ = PodResources::Make(loop_.get(), kubelet_->pod_resources_socket()); });
  }
  void TearDown() override {
    OnLoop([&] {
      plugin_.reset();
      client_.reset();
    });
    kubelet_.reset();
    LoopFixture::TearDown();
  }
  void StartPlugin() {
    OnLoop([&] {
      PluginPlaces places;
      places.kubelet_directory = kubelet_->plugin_directory();
      places.pod_resources_socket = kubelet_->pod_resources_socket();
      places.allocations = {directory_ + "/alloc", directory_ + "/allocations.json"};
      PluginOptions options;
      options.answer.shim_directory = "/shim";
      auto plugin = DevicePlugin::Start(loop_.get(), places, options, {});
      ASSERT_TRUE(plugin.ok()) << plugin.error().message;
      plugin_ = std::move(*plugin);
      ASSERT_TRUE(plugin_->SetGpus(MakeGpus(1)).ok());
    });
    ASSERT_TRUE(kubelet_->WaitFor(kResource, [](const auto& r) { return r.healthy() == 10; }));
  }

  template <typename Value>
  using Answer = std::optional<base::Result<Value>>;
  Answer<std::vector<PodDevicesHeld>> List(base::Nanos timeout_ns = kPatienceNs) {
    std::promise<base::Result<std::vector<PodDevicesHeld>>> listed;
    OnLoop([&] {
      client_->List(timeout_ns, [&](auto result) { listed.set_value(std::move(result)); });
    });
    return listed.get_future().get();
  }
  Answer<PodDevicesHeld> Get(const std::string& name_space, const std::string& pod) {
    std::promise<base::Result<PodDevicesHeld>> got;
    OnLoop([&] {
      client_->Get(name_space, pod, kPatienceNs,
                   [&](auto result) { got.set_value(std::move(result)); });
    });
    return got.get_future().get();
  }
  Answer<std::vector<HeldDevices>> Allocatable() {
    std::promise<base::Result<std::vector<HeldDevices>>> all;
    OnLoop([&] {
      client_->GetAllocatable(kPatienceNs, [&](auto result) { all.set_value(std::move(result)); });
    });
    return all.get_future().get();
  }

  // The connection is made anew after a little while.
  bool Found() {
    const base::Nanos until_ns = base::MonotonicNow() + kPatienceNs;
    while (base::MonotonicNow() < until_ns) {
      if (List()->ok()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  std::unique_ptr<testing::FakeKubelet> kubelet_;
  std::unique_ptr<DevicePlugin> plugin_;
  std::unique_ptr<PodResources> client_;
};

TEST_F(PodResourcesTest, TellsWhoHoldsWhat) {
  ASSERT_TRUE(kubelet_->Start().ok());
  StartPlugin();
  auto made = kubelet_->Admit("ns", "pod", "main", kResource, 3);
  ASSERT_TRUE(made.ok()) << made.error().message;
  ASSERT_TRUE(kubelet_->Admit("ns", "pod", "side", kResource, 1).ok());
  ASSERT_TRUE(kubelet_->Admit("other", "pod", "main", kResource, 1).ok());

  auto listed = List();
  ASSERT_TRUE(listed->ok()) << listed->error().message;
  ASSERT_EQ((*listed)->size(), 2u);
  const PodDevicesHeld& pod = (**listed)[0];
  EXPECT_EQ(pod.name_space, "ns");
  EXPECT_EQ(pod.pod, "pod");
  ASSERT_EQ(pod.containers.size(), 2u);
  EXPECT_EQ(pod.containers[0].container, "main");
  ASSERT_EQ(pod.containers[0].devices.size(), 1u);
  EXPECT_EQ(pod.containers[0].devices[0].resource_name, kResource);
  EXPECT_EQ(pod.containers[0].devices[0].ids, made->ids);

  auto got = Get("other", "pod");
  ASSERT_TRUE(got->ok()) << got->error().message;
  EXPECT_EQ((*got)->name_space, "other");
  EXPECT_EQ((*got)->containers.size(), 1u);
  EXPECT_EQ(Get("other", "absent")->error().code, base::ErrorCode::kNotFound);

  auto all = Allocatable();
  ASSERT_TRUE(all->ok());
  size_t count = 0;
  for (const HeldDevices& devices : **all) count += devices.ids.size();
  EXPECT_EQ(count, 10u);
}

TEST_F(PodResourcesTest, SaysWhatIsWrong) {
  EXPECT_EQ(List()->error().code, base::ErrorCode::kUnavailable);
  ASSERT_TRUE(kubelet_->Start().ok());
  EXPECT_TRUE(Found());
  kubelet_->RefusePodResources("PodResources API Get method disabled");
  EXPECT_EQ(Get("a", "b")->error().code, base::ErrorCode::kNotAllowed);
  kubelet_->RefusePodResources("something else");
  EXPECT_EQ(List()->error().code, base::ErrorCode::kSystem);
  kubelet_->RefusePodResources("");
  kubelet_->HoldPodResources(true);
  EXPECT_EQ(List(50 * base::kMillisecond)->error().code, base::ErrorCode::kUnavailable);
  kubelet_->HoldPodResources(false);
}

TEST_F(PodResourcesTest, FindsAKubeletThatComesBack) {
  ASSERT_TRUE(kubelet_->Start().ok());
  for (int round = 0; round < 3; ++round) {
    EXPECT_TRUE(List()->ok());
    kubelet_->Stop();
    EXPECT_EQ(List()->error().code, base::ErrorCode::kUnavailable);
    ASSERT_TRUE(kubelet_->Start().ok());
    EXPECT_TRUE(Found());
  }
}

TEST_F(PodResourcesTest, EndsWithCallsUnderWay) {
  ASSERT_TRUE(kubelet_->Start().ok());
  kubelet_->HoldPodResources(true);
  OnLoop([&] {
    for (int i = 0; i < 10; ++i)
      client_->List(kPatienceNs, [](auto) { ADD_FAILURE() << "called back after the end"; });
    client_.reset();
  });
  kubelet_->HoldPodResources(false);
}

}  // namespace
}  // namespace rubato::deviceplugin
