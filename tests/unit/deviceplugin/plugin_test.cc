#include "deviceplugin/plugin.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <set>

#include "proto/kubelet/deviceplugin_v1beta1.grpc.pb.h"
#include "tests/fakes/kubelet.h"
#include "tests/unit/deviceplugin/gpus.h"
#include "tests/unit/deviceplugin/loop_fixture.h"
#include "tests/unit/deviceplugin/raw_http2.h"

namespace rubato::deviceplugin {
namespace {

namespace fs = std::filesystem;
using testing::FakeKubelet;
using testing::FakeResource;

constexpr char kResource[] = "rubato.dev/gpu";
constexpr char kOptionsMethod[] = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
// A gRPC message of four bytes: both options are true.
const std::string kBothOptions("\0\0\0\0\x04\x08\x01\x10\x01", 9);

class PluginTest : public LoopFixture {
 protected:
  void SetUp() override {
    LoopFixture::SetUp();
    kubelet_ = std::make_unique<FakeKubelet>(directory_);
    places_.kubelet_directory = kubelet_->plugin_directory();
    places_.pod_resources_socket = kubelet_->pod_resources_socket();
    places_.allocations = {directory_ + "/host/alloc", directory_ + "/host/allocations.json"};
    options_.answer.shim_directory = "/var/lib/rubato/shim/0011223344556677";
    // Only the tests of the self-check want it.
    options_.self_check_interval_ns = 0;
  }
  void TearDown() override {
    OnLoop([&] { plugin_.reset(); });
    kubelet_.reset();
    LoopFixture::TearDown();
  }

  void StartPlugin(std::vector<Gpu> gpus = MakeGpus(2)) {
    OnLoop([&] {
      auto plugin = DevicePlugin::Start(loop_.get(), places_, options_, callbacks_);
      ASSERT_TRUE(plugin.ok()) << plugin.error().message;
      plugin_ = std::move(*plugin);
      if (!gpus.empty()) {
        ASSERT_TRUE(plugin_->SetGpus(gpus).ok());
      }
    });
  }
  void StartBoth(std::vector<Gpu> gpus = MakeGpus(2)) {
    ASSERT_TRUE(kubelet_->Start().ok());
    StartPlugin(gpus);
    ASSERT_TRUE(Registered(gpus.size() * options_.slots_per_gpu));
  }
  // Both sides agree.
  bool Registered(size_t healthy = 20) {
    return kubelet_->WaitFor(kResource, [&](const FakeResource& resource) {
      return resource.connected && resource.healthy() == healthy;
    }) && Eventually([&] { return plugin_->state().registered; });
  }
  PluginState State() {
    PluginState state;
    OnLoop([&] { state = plugin_->state(); });
    return state;
  }
  uint64_t Registrations(RegisterCause cause) { return State().registrations_total.at(cause); }
  uint64_t Rejected(RejectReason reason) { return State().allocations_rejected_total.at(reason); }
  uint64_t PreStarts(PreStartOutcome outcome) { return State().pre_starts_total.at(outcome); }
  void SetGpus(std::vector<Gpu> gpus) {
    OnLoop([&] {
      auto set = plugin_->SetGpus(std::move(gpus));
      ASSERT_TRUE(set.ok()) << set.error().message;
    });
  }
  std::map<std::string, AllocationRecord> Records() {
    std::map<std::string, AllocationRecord> records;
    OnLoop([&] { records = plugin_->allocations().records(); });
    return records;
  }
  std::string OwnSocket() const { return places_.kubelet_directory + "/rubato-gpu.sock"; }
  void Stop(StopKind kind) {
    std::promise<void> stopped;
    OnLoop([&] { plugin_->Stop(kind, [&] { stopped.set_value(); }); });
    stopped.get_future().wait();
  }

  std::unique_ptr<FakeKubelet> kubelet_;
  PluginPlaces places_;
  PluginOptions options_;
  PluginCallbacks callbacks_;
  std::unique_ptr<DevicePlugin> plugin_;
};

// ---- Registration.

TEST_F(PluginTest, RegistersWhenThereIsAGpu) {
  ASSERT_TRUE(kubelet_->Start().ok());
  StartPlugin({});
  EXPECT_FALSE(State().registered);
  EXPECT_EQ(State().detail, "no GPU to offer");
  SetGpus(MakeGpus(2));
  ASSERT_TRUE(Registered());
  const FakeResource resource = kubelet_->resource(kResource);
  EXPECT_EQ(resource.registrations, 1u);
  EXPECT_EQ(resource.endpoint, "rubato-gpu.sock");
  EXPECT_TRUE(resource.options.pre_start_required());
  EXPECT_TRUE(resource.options.get_preferred_allocation_available());
  EXPECT_EQ(resource.devices.size(), 20u);
  EXPECT_TRUE(resource.devices.contains("GPU-1::9"));
  // The first list was complete.
  EXPECT_EQ(resource.shortest_list, 20u);
  const PluginState state = State();
  EXPECT_EQ(state.detail, "");
  EXPECT_GT(state.registered_since_ns, 0);
  EXPECT_EQ(state.registrations_total.at(RegisterCause::kFirst), 1u);
  EXPECT_EQ(state.registrations_failed_total, 0u);
  EXPECT_EQ(state.slots_listed, 20u);
  EXPECT_EQ(state.slots_healthy, 20u);
  struct stat status {};
  ASSERT_EQ(::stat(OwnSocket().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600u);
}

TEST_F(PluginTest, WaitsForAKubeletThatComesLater) {
  fs::create_directories(kubelet_->plugin_directory());
  StartPlugin();
  EXPECT_TRUE(
      Eventually([&] { return plugin_->state().detail.find("waiting for") != std::string::npos; }));
  ASSERT_TRUE(kubelet_->Start().ok());
  EXPECT_TRUE(Registered());
}

TEST_F(PluginTest, WaitsForADirectoryThatComesLater) {
  StartPlugin();
  EXPECT_TRUE(Eventually(
      [&] { return plugin_->state().detail.find("does not exist") != std::string::npos; }));
  ASSERT_TRUE(kubelet_->Start().ok());
  EXPECT_TRUE(Registered());
}

TEST_F(PluginTest, SeesASocketThatIsMovedIntoPlace) {
  fs::create_directories(kubelet_->plugin_directory());
  StartPlugin();
  ASSERT_TRUE(kubelet_->Start(FakeKubelet::Arrival::kMoved).ok());
  EXPECT_TRUE(Registered());
}

TEST_F(PluginTest, ReplacesAStaleSocketOfItsOwn) {
  ASSERT_TRUE(kubelet_->Start().ok());
  std::ofstream(OwnSocket()) << "left behind";
  StartPlugin();
  EXPECT_TRUE(Registered());
}

TEST_F(PluginTest, RegistersAgainWithEveryNewKubelet) {
  StartBoth();
  for (uint64_t round = 1; round <= 5; ++round) {
    kubelet_->Stop();
    EXPECT_TRUE(Eventually([&] { return !plugin_->state().registered; }));
    ASSERT_TRUE(
        kubelet_
            ->Start(round % 2 == 0 ? FakeKubelet::Arrival::kMoved : FakeKubelet::Arrival::kCreated)
            .ok());
    ASSERT_TRUE(Registered());
    EXPECT_EQ(kubelet_->resource(kResource).shortest_list, 20u);
    EXPECT_EQ(Registrations(RegisterCause::kKubelet), round);
  }
  EXPECT_EQ(Registrations(RegisterCause::kFirst), 1u);
}

TEST_F(PluginTest, NoticesAKubeletThatRestartsAtOnce) {
  StartBoth();
  kubelet_->Stop();
  ASSERT_TRUE(kubelet_->Start().ok());
  EXPECT_TRUE(kubelet_->WaitFor(kResource, [](const auto& r) { return r.healthy() == 20; }));
  EXPECT_TRUE(Eventually([&] {
    return plugin_->state().registered &&
           plugin_->state().registrations_total.at(RegisterCause::kKubelet) == 1;
  }));
}

TEST_F(PluginTest, RegistersAgainWhenItsSocketIsDeleted) {
  StartBoth();
  kubelet_->WipeSockets();
  EXPECT_TRUE(Eventually([&] {
    return plugin_->state().registered &&
           plugin_->state().registrations_total.at(RegisterCause::kSocketLost) == 1;
  }));
  EXPECT_TRUE(Registered());
  EXPECT_TRUE(fs::exists(OwnSocket()));
  EXPECT_EQ(RawCall(OwnSocket(), kOptionsMethod, "localhost").data, kBothOptions);
}

TEST_F(PluginTest, RegistersAgainWhenTheKubeletEndsItsStream) {
  StartBoth();
  for (uint64_t round = 1; round <= 3; ++round) {
    kubelet_->CancelStream(kResource);
    EXPECT_TRUE(Eventually([&] {
      return plugin_->state().registered &&
             plugin_->state().registrations_total.at(RegisterCause::kStreamLost) >= round;
    }));
    ASSERT_TRUE(Registered());
  }
  EXPECT_GE(kubelet_->resource(kResource).registrations, 4u);
}

TEST_F(PluginTest, SurvivesTheWholeDirectory) {
  StartBoth();
  kubelet_->Stop();
  fs::remove_all(kubelet_->plugin_directory());
  EXPECT_TRUE(Eventually(
      [&] { return plugin_->state().detail.find("does not exist") != std::string::npos; }));
  ASSERT_TRUE(kubelet_->Start().ok());
  EXPECT_TRUE(Registered());
}

TEST_F(PluginTest, TriesAgainWhenItIsRefused) {
  ASSERT_TRUE(kubelet_->Start().ok());
  kubelet_->RefuseRegistrations("not in the mood");
  StartPlugin();
  EXPECT_TRUE(Eventually([&] { return plugin_->state().registrations_failed_total >= 2; }));
  EXPECT_TRUE(Eventually(
      [&] { return plugin_->state().detail.find("not in the mood") != std::string::npos; }));
  EXPECT_FALSE(State().registered);
  kubelet_->RefuseRegistrations("");
  EXPECT_TRUE(Registered());
}

TEST_F(PluginTest, AnswersWhileTheKubeletThinksAboutIt) {
  ASSERT_TRUE(kubelet_->Start().ok());
  kubelet_->HoldRegistrations(true);
  StartPlugin();
  EXPECT_TRUE(Eventually([&] { return plugin_->state().detail == "registering"; }));
  // Whatever the kubelet asks before it answers.
  EXPECT_EQ(RawCall(OwnSocket(), kOptionsMethod, "localhost").data, kBothOptions);
  SetGpus(MakeGpus(3));
  EXPECT_FALSE(State().registered);
  kubelet_->HoldRegistrations(false);
  EXPECT_TRUE(Registered(30));
}

TEST_F(PluginTest, AKubeletThatDiesDuringTheRegistration) {
  ASSERT_TRUE(kubelet_->Start().ok());
  kubelet_->HoldRegistrations(true);
  StartPlugin();
  EXPECT_TRUE(Eventually([&] { return plugin_->state().detail == "registering"; }));
  kubelet_->Stop();
  kubelet_->HoldRegistrations(false);
  ASSERT_TRUE(kubelet_->Start().ok());
  EXPECT_TRUE(Registered());
}

TEST_F(PluginTest, RegisteredMeansThatTheListIsRead) {
  ASSERT_TRUE(kubelet_->Start().ok());
  kubelet_->IgnoreLists(true);
  StartPlugin();
  EXPECT_TRUE(kubelet_->WaitFor(kResource, [](const auto& r) { return r.registrations == 1; }));
  EXPECT_TRUE(Eventually([&] {
    EXPECT_FALSE(plugin_->state().registered);
    return plugin_->state().registrations_failed_total >= 1;
  }));
  kubelet_->IgnoreLists(false);
  EXPECT_TRUE(Registered());
}

TEST_F(PluginTest, TellsOfChanges) {
  std::atomic<int> changes = 0;
  callbacks_.changed = [&] { ++changes; };
  StartBoth();
  EXPECT_GT(changes, 0);
  const int before = changes;
  kubelet_->Stop();
  EXPECT_TRUE(Eventually([&] { return changes > before; }));
}

// Before Kubernetes 1.26 the kubelet sent the socket's path as the authority.
TEST_F(PluginTest, TakesAnyAuthority) {
  StartBoth();
  for (const std::string& authority :
       {std::string("localhost"), OwnSocket(),
        std::string("/var/lib/kubelet/device-plugins/rubato-gpu.sock"),
        std::string("%2Fvar%2Flib%2Fkubelet%2Fdevice-plugins%2Frubato-gpu.sock"),
        std::string("unix:///var/lib/kubelet/device-plugins/rubato-gpu.sock"),
        "/" + std::string(200, 'x')}) {
    const RawAnswer answer = RawCall(OwnSocket(), kOptionsMethod, authority);
    EXPECT_TRUE(answer.connected && answer.ended) << authority;
    EXPECT_FALSE(answer.reset) << authority;
    EXPECT_EQ(answer.data, kBothOptions) << authority;
  }
}

TEST_F(PluginTest, TurnsOtherUsersAway) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  StartBoth();
  // Past the socket's mode, which stops them first.
  ASSERT_EQ(::chmod(OwnSocket().c_str(), 0666), 0);
  fs::permissions(directory_, fs::perms(0755));
  fs::permissions(kubelet_->plugin_directory(), fs::perms(0755));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof(address.sun_path), "%s", OwnSocket().c_str());
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) ::_exit(3);
    char byte;
    ::_exit(::read(fd, &byte, 1) == 0 ? 0 : 4);  // The end, and no greeting.
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(State().peers_refused_total, 1u);
  EXPECT_TRUE(State().registered);
}

// ---- The list.

TEST_F(PluginTest, HealthGoesBothWaysInWholeLists) {
  StartBoth();
  auto gpus = MakeGpus(2);
  gpus[1].healthy = false;
  gpus[1].unhealthy_reason = "xid 79";
  SetGpus(gpus);
  EXPECT_TRUE(Registered(10));
  FakeResource resource = kubelet_->resource(kResource);
  EXPECT_EQ(resource.devices.size(), 20u);
  EXPECT_TRUE(resource.devices.at("GPU-0::3").healthy);
  EXPECT_FALSE(resource.devices.at("GPU-1::3").healthy);
  EXPECT_EQ(State().slots_healthy, 10u);
  SetGpus(MakeGpus(2));
  EXPECT_TRUE(Registered(20));
  resource = kubelet_->resource(kResource);
  EXPECT_EQ(resource.registrations, 1u);
  EXPECT_EQ(resource.shortest_list, 20u);
  EXPECT_EQ(resource.lists, 3u);
}

TEST_F(PluginTest, TheSameListIsNotSentAgain) {
  StartBoth();
  const uint64_t lists = kubelet_->resource(kResource).lists;
  auto gpus = MakeGpus(2);
  gpus[0].name = "Another name";
  SetGpus(gpus);
  gpus[0].healthy = false;
  SetGpus(gpus);
  EXPECT_TRUE(Registered(10));
  EXPECT_EQ(kubelet_->resource(kResource).lists, lists + 1);
}

TEST_F(PluginTest, AGpuThatIsGoneStaysUnhealthy) {
  StartBoth();
  SetGpus(MakeGpus(1));
  EXPECT_TRUE(Registered(10));
  EXPECT_EQ(kubelet_->resource(kResource).devices.size(), 20u);
  // Even when the inventory finds nothing at all.
  SetGpus({});
  EXPECT_TRUE(Registered(0));
  EXPECT_EQ(kubelet_->resource(kResource).devices.size(), 20u);
  EXPECT_EQ(kubelet_->resource(kResource).shortest_list, 20u);
  auto rejected = kubelet_->Allocate(kResource, {"GPU-1::0"});
  ASSERT_FALSE(rejected.ok());
  EXPECT_NE(rejected.error().message.find("gone"), std::string::npos);
  SetGpus(MakeGpus(2));
  EXPECT_TRUE(Registered(20));
}

TEST_F(PluginTest, AWithheldGpuHasNoSlots) {
  StartBoth();
  auto gpus = MakeGpus(2);
  gpus[0].withheld = true;
  gpus[0].withheld_reason = "MIG is on";
  SetGpus(gpus);
  EXPECT_TRUE(Registered(10));
  EXPECT_EQ(kubelet_->resource(kResource).devices.size(), 10u);
  SetGpus(MakeGpus(2));
  EXPECT_TRUE(Registered(20));
}

TEST_F(PluginTest, TellsNumaNodesUnlessToldNotTo) {
  StartBoth({MakeGpu(0, 1), MakeGpu(1)});
  EXPECT_EQ(kubelet_->resource(kResource).devices.at("GPU-0::0").numa_node, 1);
  EXPECT_EQ(kubelet_->resource(kResource).devices.at("GPU-1::0").numa_node, -1);
  OnLoop([&] {
    options_.numa_topology = false;
    EXPECT_TRUE(plugin_->SetOptions(options_).ok());
  });
  EXPECT_TRUE(kubelet_->WaitFor(
      kResource, [](const auto& r) { return r.devices.at("GPU-0::0").numa_node == -1; }));
}

TEST_F(PluginTest, OptionsChangeWithoutANewRegistration) {
  StartBoth();
  OnLoop([&] {
    options_.slots_per_gpu = 4;
    EXPECT_TRUE(plugin_->SetOptions(options_).ok());
  });
  EXPECT_TRUE(Registered(8));
  EXPECT_EQ(kubelet_->resource(kResource).registrations, 1u);
  OnLoop([&] {
    for (const uint32_t slots : {0u, 101u}) {
      PluginOptions wrong = options_;
      wrong.slots_per_gpu = slots;
      EXPECT_FALSE(plugin_->SetOptions(wrong).ok());
    }
    PluginOptions wrong = options_;
    wrong.answer.shim_directory = "relative";
    EXPECT_FALSE(plugin_->SetOptions(wrong).ok());
    wrong = options_;
    wrong.pre_start_budget_ns = 0;
    EXPECT_FALSE(plugin_->SetOptions(wrong).ok());
    wrong.pre_start_budget_ns = 31 * base::kSecond;
    EXPECT_FALSE(plugin_->SetOptions(wrong).ok());
  });
  EXPECT_TRUE(Registered(8));
}

TEST_F(PluginTest, RefusesWrongPlacesAndGpus) {
  const auto refused = [&](const std::function<void(PluginPlaces*)>& change) {
    PluginPlaces places = places_;
    change(&places);
    bool started = false;
    OnLoop([&] { started = DevicePlugin::Start(loop_.get(), places, options_, {}).ok(); });
    return !started;
  };
  EXPECT_TRUE(refused([](auto* places) { places->resource_name = "gpu"; }));
  EXPECT_TRUE(refused([](auto* places) { places->kubelet_directory = "relative"; }));
  EXPECT_TRUE(refused([](auto* places) { places->socket_name = "kubelet.sock"; }));
  EXPECT_TRUE(refused([](auto* places) { places->socket_name = "../x.sock"; }));
  EXPECT_TRUE(refused([](auto* places) { places->allocations.directory = ""; }));
  EXPECT_FALSE(refused([](auto*) {}));

  StartBoth();
  OnLoop([&] {
    auto gpus = MakeGpus(2);
    gpus[1].uuid = gpus[0].uuid;
    EXPECT_FALSE(plugin_->SetGpus(gpus).ok());
    gpus[1].uuid = "a::b";
    EXPECT_FALSE(plugin_->SetGpus(gpus).ok());
    gpus[1].uuid = "";
    EXPECT_FALSE(plugin_->SetGpus(gpus).ok());
  });
  EXPECT_TRUE(Registered(20));
}

TEST_F(PluginTest, OffersManySlots) {
  options_.slots_per_gpu = 100;
  StartBoth(MakeGpus(16));
  EXPECT_EQ(kubelet_->resource(kResource).devices.size(), 1600u);
}

// ---- The self-check.

TEST_F(PluginTest, NoticesAKubeletThatForgotItsSlots) {
  options_.self_check_interval_ns = 30 * base::kMillisecond;
  StartBoth();
  kubelet_->ForgetDevices(true);
  EXPECT_TRUE(Eventually([&] { return plugin_->state().self_checks_failed_total >= 1; }));
  kubelet_->ForgetDevices(false);
  EXPECT_TRUE(Eventually([&] {
    return plugin_->state().registered &&
           plugin_->state().registrations_total.at(RegisterCause::kSelfCheck) >= 1;
  }));
  EXPECT_TRUE(Registered());
  EXPECT_GE(kubelet_->resource(kResource).registrations, 2u);
}

TEST_F(PluginTest, TakesUnhealthySlotsCountedInOrOut) {
  options_.self_check_interval_ns = 5 * base::kMillisecond;
  auto gpus = MakeGpus(2);
  gpus[0].healthy = false;
  ASSERT_TRUE(kubelet_->Start().ok());
  StartPlugin(gpus);
  ASSERT_TRUE(Registered(10));
  for (const bool count : {false, true}) {
    kubelet_->CountUnhealthy(count);
    const base::Nanos until_ns = base::MonotonicNow() + 200 * base::kMillisecond;
    EXPECT_TRUE(Eventually([&] { return base::MonotonicNow() > until_ns; }));
  }
  EXPECT_EQ(State().self_checks_failed_total, 0u);
  EXPECT_EQ(State().self_checks_unanswered_total, 0u);
  EXPECT_EQ(kubelet_->resource(kResource).registrations, 1u);
}

TEST_F(PluginTest, AKubeletThatDoesNotCountIsLeftAlone) {
  options_.self_check_interval_ns = 5 * base::kMillisecond;
  kubelet_->RefusePodResources("PodResources API GetAllocatableResources disabled");
  StartBoth();
  EXPECT_TRUE(Eventually([&] { return plugin_->state().self_checks_unanswered_total >= 3; }));
  EXPECT_EQ(kubelet_->resource(kResource).registrations, 1u);
  EXPECT_TRUE(State().registered);
}

// ---- Allocate.

const ::v1beta1::Mount* MountAt(const ::v1beta1::ContainerAllocateResponse& answer,
                                const std::string& path) {
  for (const auto& mount : answer.mounts()) {
    if (mount.container_path() == path) return &mount;
  }
  return nullptr;
}

TEST_F(PluginTest, AllocatesAndRemembers) {
  std::mutex mutex;
  std::vector<AllocationRecord> told;
  callbacks_.allocated = [&](const AllocationRecord& record) {
    const std::lock_guard<std::mutex> lock(mutex);
    told.push_back(record);
  };
  StartBoth();
  auto container = kubelet_->Admit("ns", "pod", "main", kResource, 3);
  ASSERT_TRUE(container.ok()) << container.error().message;
  EXPECT_EQ(container->ids, Slots(0, 0, 2));

  const auto records = Records();
  ASSERT_EQ(records.size(), 1u);
  const AllocationRecord& record = records.begin()->second;
  EXPECT_EQ(record.slots, Slots(0, 0, 2));
  EXPECT_EQ(record.gpus, (std::vector<std::string>{"GPU-0"}));
  EXPECT_EQ(record.vendor, "nvidia");
  EXPECT_EQ(record.slots_per_gpu, 10u);
  EXPECT_EQ(record.host_folders, (std::vector<std::string>{options_.answer.shim_directory}));
  {
    const std::lock_guard<std::mutex> lock(mutex);
    ASSERT_EQ(told.size(), 1u);
    EXPECT_EQ(told[0], record);
  }
  // It was on the disk before the kubelet knew of it.
  auto disk = ReadRecordsFile(places_.allocations.records_file);
  ASSERT_TRUE(disk.ok());
  EXPECT_EQ(disk->records.at(record.token), record);

  const auto* socket = MountAt(container->answer, "/run/rubato");
  ASSERT_NE(socket, nullptr);
  EXPECT_EQ(socket->host_path(), places_.allocations.directory + "/" + record.token);
  EXPECT_TRUE(fs::is_directory(socket->host_path()));
  EXPECT_TRUE(socket->read_only());
  const auto* preload = MountAt(container->answer, "/etc/ld.so.preload");
  ASSERT_NE(preload, nullptr);
  EXPECT_EQ(preload->host_path(), options_.answer.shim_directory + "/ld.so.preload.cuda");
  EXPECT_TRUE(preload->read_only());
  EXPECT_EQ(container->answer.envs().at("NVIDIA_VISIBLE_DEVICES"), "GPU-0");
  const PluginState state = State();
  EXPECT_EQ(state.allocations_total, 1u);
  EXPECT_GT(state.last_allocate_ns, 0);
  EXPECT_GE(state.last_allocate_ns, state.last_allocate_disk_ns);
}

TEST_F(PluginTest, DeviceNodesAnnotationsAndCdiReachTheKubelet) {
  options_.answer.pass_device_nodes = true;
  options_.answer.device_injection = DeviceInjection::kCdiAnnotations;
  StartBoth();
  auto container = kubelet_->Admit("ns", "pod", "main", kResource, 1);
  ASSERT_TRUE(container.ok());
  ASSERT_EQ(container->answer.devices_size(), 2);
  EXPECT_EQ(container->answer.devices(0).host_path(), "/dev/nvidia0");
  EXPECT_EQ(container->answer.devices(0).container_path(), "/dev/nvidia0");
  EXPECT_EQ(container->answer.devices(0).permissions(), "rw");
  ASSERT_EQ(container->answer.annotations_size(), 1);
  EXPECT_EQ(container->answer.annotations().begin()->second, "nvidia.com/gpu=GPU-0");
  OnLoop([&] {
    options_.answer.device_injection = DeviceInjection::kCdi;
    EXPECT_TRUE(plugin_->SetOptions(options_).ok());
  });
  container = kubelet_->Admit("ns", "pod2", "main", kResource, 1);
  ASSERT_TRUE(container.ok());
  EXPECT_EQ(container->answer.annotations_size(), 0);
  ASSERT_EQ(container->answer.cdi_devices_size(), 1);
  EXPECT_EQ(container->answer.cdi_devices(0).name(), "nvidia.com/gpu=GPU-0");
}

TEST_F(PluginTest, EveryAllocationHasItsOwnDirectory) {
  StartBoth();
  auto first = kubelet_->Allocate(kResource, Slots(0, 0, 2));
  auto second = kubelet_->Allocate(kResource, Slots(0, 0, 2));
  ASSERT_TRUE(first.ok() && second.ok());
  const auto* one = MountAt(first->container_responses(0), "/run/rubato");
  const auto* two = MountAt(second->container_responses(0), "/run/rubato");
  EXPECT_NE(one->host_path(), two->host_path());
  // The first container may still restart with its answer.
  EXPECT_TRUE(fs::is_directory(one->host_path()));
  EXPECT_TRUE(fs::is_directory(two->host_path()));
  size_t superseded = 0;
  for (const auto& [token, record] : Records()) superseded += record.superseded;
  EXPECT_EQ(superseded, 1u);
}

TEST_F(PluginTest, PacksPodsOnOneGpu) {
  StartBoth();
  std::set<std::string> gpus;
  for (int i = 0; i < 3; ++i) {
    auto container = kubelet_->Admit("ns", "p" + std::to_string(i), "main", kResource, 3);
    ASSERT_TRUE(container.ok());
    EXPECT_EQ(container->answer.envs().at("NVIDIA_VISIBLE_DEVICES"), "GPU-0");
  }
  // One slot of GPU 0 is left: this one does not fit there.
  auto next = kubelet_->Admit("ns", "p3", "main", kResource, 3);
  ASSERT_TRUE(next.ok());
  EXPECT_EQ(next->answer.envs().at("NVIDIA_VISIBLE_DEVICES"), "GPU-1");
  auto small = kubelet_->Admit("ns", "p4", "main", kResource, 1);
  ASSERT_TRUE(small.ok());
  EXPECT_EQ(small->answer.envs().at("NVIDIA_VISIBLE_DEVICES"), "GPU-0");
}

TEST_F(PluginTest, FragmentsAreRefusedWithWords) {
  StartBoth();
  ASSERT_TRUE(kubelet_->Admit("ns", "a", "main", kResource, 6).ok());
  ASSERT_TRUE(kubelet_->Admit("ns", "b", "main", kResource, 6).ok());
  // Eight are free, four on each.
  auto refused = kubelet_->Admit("ns", "c", "main", kResource, 5);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, base::ErrorCode::kNotAllowed);
  EXPECT_EQ(refused.error().message.find("rubato: across-gpus: "), 0u) << refused.error().message;
  EXPECT_EQ(Rejected(RejectReason::kAcrossGpus), 1u);
  EXPECT_EQ(Records().size(), 2u);
}

TEST_F(PluginTest, WholeGpus) {
  StartBoth();
  auto both = kubelet_->Admit("ns", "a", "main", kResource, 20);
  ASSERT_TRUE(both.ok()) << both.error().message;
  EXPECT_EQ(both->answer.envs().at("NVIDIA_VISIBLE_DEVICES"), "GPU-0,GPU-1");
  EXPECT_EQ(Records().begin()->second.slots.size(), 20u);
}

TEST_F(PluginTest, RefusesAndCounts) {
  auto gpus = MakeGpus(3);
  gpus[2].withheld = true;
  StartBoth(MakeGpus(2));
  gpus[1].healthy = false;
  SetGpus(gpus);
  const struct {
    std::vector<std::string> ids;
    RejectReason reason;
    base::ErrorCode code;
  } cases[] = {
      {{}, RejectReason::kEmptyRequest, base::ErrorCode::kInvalid},
      {{"GPU-0::0", "GPU-0::0"}, RejectReason::kDuplicateSlot, base::ErrorCode::kInvalid},
      {{"nonsense"}, RejectReason::kMalformedSlot, base::ErrorCode::kInvalid},
      {{std::string(100'000, 'a')}, RejectReason::kMalformedSlot, base::ErrorCode::kInvalid},
      {{"GPU-7::0"}, RejectReason::kUnknownGpu, base::ErrorCode::kNotFound},
      {{"GPU-0::10"}, RejectReason::kUnknownSlot, base::ErrorCode::kNotFound},
      {{"GPU-1::0"}, RejectReason::kUnhealthyGpu, base::ErrorCode::kNotAllowed},
      {{"GPU-2::0"}, RejectReason::kWithheldGpu, base::ErrorCode::kNotAllowed},
  };
  std::map<RejectReason, uint64_t> expected;
  for (const auto& item : cases) {
    auto refused = kubelet_->Allocate(kResource, item.ids);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, item.code) << refused.error().message;
    EXPECT_NE(refused.error().message.find(RejectReasonName(item.reason)), std::string::npos);
    EXPECT_EQ(Rejected(item.reason), ++expected[item.reason]);
  }
  EXPECT_TRUE(Records().empty());
  EXPECT_EQ(State().allocations_total, 0u);
  // And the next good one is answered.
  EXPECT_TRUE(kubelet_->Allocate(kResource, {"GPU-0::0"}).ok());
}

TEST_F(PluginTest, RefusesWhereNoShimIsInstalled) {
  options_.answer.shim_directory = "";
  StartBoth();
  auto refused = kubelet_->Allocate(kResource, {"GPU-0::0"});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(Rejected(RejectReason::kShimMissing), 1u);
  OnLoop([&] {
    options_.answer.shim_directory = "/shim";
    EXPECT_TRUE(plugin_->SetOptions(options_).ok());
  });
  EXPECT_TRUE(kubelet_->Allocate(kResource, {"GPU-0::0"}).ok());
}

class DirectClientTest : public PluginTest {
 protected:
  std::unique_ptr<::v1beta1::DevicePlugin::Stub> Stub() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return ::v1beta1::DevicePlugin::NewStub(grpc::CreateCustomChannel(
        "unix:" + OwnSocket(), grpc::InsecureChannelCredentials(), arguments));
  }
};

TEST_F(DirectClientTest, SeveralContainersInOneRequest) {
  StartBoth();
  ::v1beta1::AllocateRequest request;
  request.add_container_requests()->add_devices_ids("GPU-0::1");
  request.add_container_requests()->add_devices_ids("GPU-1::1");
  ::v1beta1::AllocateResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(Stub()->Allocate(&context, request, &response).ok());
  ASSERT_EQ(response.container_responses_size(), 2);
  EXPECT_EQ(response.container_responses(1).envs().at("NVIDIA_VISIBLE_DEVICES"), "GPU-1");
  EXPECT_EQ(Records().size(), 2u);
  // One of them wrong: none is given.
  request.add_container_requests()->add_devices_ids("GPU-9::1");
  grpc::ClientContext second;
  EXPECT_EQ(Stub()->Allocate(&second, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Records().size(), 2u);
  grpc::ClientContext third;
  EXPECT_EQ(Stub()->Allocate(&third, {}, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(DirectClientTest, HugeRequestsAreCutOff) {
  StartBoth();
  ::v1beta1::AllocateRequest request;
  auto* container = request.add_container_requests();
  for (int i = 0; i < 200'000; ++i) container->add_devices_ids("GPU-0::1");
  ::v1beta1::AllocateResponse response;
  grpc::ClientContext context;
  EXPECT_EQ(Stub()->Allocate(&context, request, &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(kubelet_->Allocate(kResource, {"GPU-0::0"}).ok());
}

TEST_F(PluginTest, ADiskThatRefuses) {
  StartBoth();
  const std::string block = places_.allocations.records_file + ".tmp";
  fs::create_directory(block);
  auto refused = kubelet_->Allocate(kResource, {"GPU-0::0"});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, base::ErrorCode::kUnavailable);
  EXPECT_EQ(Rejected(RejectReason::kRecordsFailed), 1u);
  fs::remove(block);
  EXPECT_TRUE(kubelet_->Allocate(kResource, {"GPU-0::0"}).ok());
  EXPECT_EQ(Records().size(), 1u);
}

TEST_F(PluginTest, ADiskThatHangs) {
  options_.allocate_budget_ns = 50 * base::kMillisecond;
  StartBoth();
  // Opening a pipe for writing waits for a reader, as a hanging disk waits for nothing.
  const std::string pipe = places_.allocations.records_file + ".tmp";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  auto refused = kubelet_->Allocate(kResource, {"GPU-0::0"});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, base::ErrorCode::kUnavailable);
  EXPECT_NE(refused.error().message.find("in time"), std::string::npos);
  // All else goes on.
  EXPECT_TRUE(kubelet_->Prefer(kResource, Slots(0, 0, 9), {}, 2).ok());
  SetGpus(MakeGpus(1));
  EXPECT_TRUE(Registered(10));
  {
    const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    ASSERT_GE(reader, 0);
    // The write now fails, and what could not be recorded is forgotten.
    EXPECT_TRUE(Eventually([&] { return plugin_->allocations().records().empty(); }));
    ::close(reader);
  }
  fs::remove(pipe);
  EXPECT_TRUE(Eventually([&] { return !fs::exists(pipe); }));
  auto given = kubelet_->Allocate(kResource, {"GPU-0::0"});
  EXPECT_TRUE(given.ok());
}

TEST_F(PluginTest, RemembersAcrossItsOwnRestart) {
  StartBoth();
  auto container = kubelet_->Admit("ns", "pod", "main", kResource, 3);
  ASSERT_TRUE(container.ok());
  const auto before = Records();
  OnLoop([&] { plugin_.reset(); });
  const std::string directory = MountAt(container->answer, "/run/rubato")->host_path();
  EXPECT_TRUE(fs::is_directory(directory));
  fs::remove(directory);
  StartPlugin();
  ASSERT_TRUE(Registered());
  EXPECT_EQ(Records(), before);
  EXPECT_TRUE(fs::is_directory(directory));
  OnLoop([&] {
    EXPECT_EQ(plugin_->allocations().opening().remade,
              (std::vector<std::string>{before.begin()->first}));
  });
}

TEST_F(PluginTest, AdviceOverTheWire) {
  StartBoth();
  auto ids = kubelet_->Prefer(kResource, Slots(0, 0, 9) + Slots(1, 7, 9), {}, 2);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*ids, Slots(1, 7, 8));
  OnLoop([&] {
    options_.packing = Packing::kSpread;
    EXPECT_TRUE(plugin_->SetOptions(options_).ok());
  });
  ids = kubelet_->Prefer(kResource, Slots(0, 0, 9) + Slots(1, 7, 9), {}, 2);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*ids, Slots(0, 0, 1));
  // Nothing that it is asked is an error: that would keep the pod from starting.
  EXPECT_TRUE(kubelet_->Prefer(kResource, {"x"}, {"y"}, -3).ok());
}

// ---- PreStartContainer.

TEST_F(PluginTest, AsksTheAgentBeforeAStart) {
  std::promise<std::vector<AllocationRecord>> asked;
  callbacks_.pre_start = [&](const std::vector<AllocationRecord>& records, auto reply) {
    asked.set_value(records);
    reply({});
  };
  StartBoth();
  ASSERT_TRUE(kubelet_->Admit("ns", "pod", "main", kResource, 3).ok());
  EXPECT_TRUE(kubelet_->PreStart("ns", "pod", "main").ok());
  const auto records = asked.get_future().get();
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0], Records().begin()->second);
  EXPECT_EQ(PreStarts(PreStartOutcome::kStarted), 1u);
}

TEST_F(PluginTest, TheNewestAllocationComesFirst) {
  std::promise<std::vector<AllocationRecord>> asked;
  callbacks_.pre_start = [&](const std::vector<AllocationRecord>& records, auto reply) {
    asked.set_value(records);
    reply({});
  };
  StartBoth();
  ASSERT_TRUE(kubelet_->Allocate(kResource, Slots(0, 0, 2)).ok());
  ASSERT_TRUE(kubelet_->Allocate(kResource, Slots(0, 0, 2)).ok());
  ASSERT_TRUE(kubelet_->Allocate(kResource, Slots(0, 0, 3)).ok());
  EXPECT_TRUE(kubelet_->PreStart(kResource, {"GPU-0::1", "GPU-0::0", "GPU-0::2"}).ok());
  const auto records = asked.get_future().get();
  ASSERT_EQ(records.size(), 2u);
  EXPECT_GT(records[0].serial, records[1].serial);
}

TEST_F(PluginTest, ARefusalStopsTheContainer) {
  callbacks_.pre_start = [](const auto&, auto reply) { reply({true, "demand 1.2 of 1.0"}); };
  StartBoth();
  ASSERT_TRUE(kubelet_->Admit("ns", "pod", "main", kResource, 3).ok());
  const auto refused = kubelet_->PreStart("ns", "pod", "main");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().message, "rubato: demand 1.2 of 1.0");
  EXPECT_EQ(PreStarts(PreStartOutcome::kRefused), 1u);
}

TEST_F(PluginTest, AnAgentThatIsSlowStopsNobody) {
  std::mutex mutex;
  std::vector<std::function<void(PreStartVerdict)>> replies;
  callbacks_.pre_start = [&](const auto&, auto reply) {
    const std::lock_guard<std::mutex> lock(mutex);
    replies.push_back(reply);
  };
  options_.pre_start_budget_ns = 20 * base::kMillisecond;
  StartBoth();
  ASSERT_TRUE(kubelet_->Admit("ns", "pod", "main", kResource, 3).ok());
  EXPECT_TRUE(kubelet_->PreStart("ns", "pod", "main").ok());
  EXPECT_EQ(PreStarts(PreStartOutcome::kTimeout), 1u);
  // Too late, and twice.
  OnLoop([&] {
    replies[0]({true, "no"});
    replies[0]({true, "no"});
  });
  EXPECT_EQ(PreStarts(PreStartOutcome::kRefused), 0u);
  EXPECT_EQ(PreStarts(PreStartOutcome::kTimeout), 1u);
  // And after the plugin's end.
  OnLoop([&] {
    plugin_.reset();
    replies[0]({true, "no"});
  });
}

TEST_F(PluginTest, WhatIsNotRecordedStarts) {
  callbacks_.pre_start = [](const auto&, auto reply) { reply({true, "no"}); };
  StartBoth();
  EXPECT_TRUE(kubelet_->PreStart(kResource, {"GPU-0::1"}).ok());
  EXPECT_TRUE(kubelet_->PreStart(kResource, std::vector<std::string>{}).ok());
  EXPECT_TRUE(kubelet_->PreStart(kResource, {std::string(1000, 'x')}).ok());
  EXPECT_EQ(PreStarts(PreStartOutcome::kUnknown), 3u);
}

// ---- The end.

TEST_F(PluginTest, ARestartSendsNoEmptyList) {
  StartBoth();
  Stop(StopKind::kRestart);
  EXPECT_TRUE(kubelet_->WaitFor(kResource, [](const auto& r) { return !r.connected; }));
  EXPECT_EQ(kubelet_->resource(kResource).shortest_list, 20u);
  EXPECT_EQ(kubelet_->resource(kResource).devices.size(), 20u);
  EXPECT_FALSE(fs::exists(OwnSocket()));
  EXPECT_FALSE(State().registered);
  OnLoop([&] { plugin_.reset(); });
  StartPlugin();
  EXPECT_TRUE(Registered());
}

TEST_F(PluginTest, AnUninstallSendsAnEmptyList) {
  StartBoth();
  Stop(StopKind::kUninstall);
  EXPECT_TRUE(kubelet_->WaitFor(kResource, [](const auto& r) { return !r.connected; }));
  EXPECT_EQ(kubelet_->resource(kResource).devices.size(), 0u);
  EXPECT_EQ(kubelet_->resource(kResource).shortest_list, 0u);
}

TEST_F(PluginTest, StopAnswersWhatWasAsked) {
  std::promise<void> asked;
  callbacks_.pre_start = [&](const auto&, auto) { asked.set_value(); };
  options_.pre_start_budget_ns = 20 * base::kSecond;
  StartBoth();
  ASSERT_TRUE(kubelet_->Admit("ns", "pod", "main", kResource, 3).ok());
  auto start =
      std::async(std::launch::async, [&] { return kubelet_->PreStart("ns", "pod", "main"); });
  asked.get_future().wait();
  Stop(StopKind::kRestart);
  EXPECT_TRUE(start.get().ok());
}

TEST_F(PluginTest, StopsWithoutEverHavingSeenAKubelet) {
  StartPlugin();
  Stop(StopKind::kUninstall);
  OnLoop([&] { plugin_.reset(); });
  StartPlugin({});
  Stop(StopKind::kRestart);
}

TEST_F(PluginTest, EndsAtOnceWithoutAStop) {
  std::promise<void> asked;
  callbacks_.pre_start = [&](const auto&, auto) { asked.set_value(); };
  options_.pre_start_budget_ns = 20 * base::kSecond;
  StartBoth();
  ASSERT_TRUE(kubelet_->Admit("ns", "pod", "main", kResource, 3).ok());
  auto start =
      std::async(std::launch::async, [&] { return kubelet_->PreStart("ns", "pod", "main"); });
  asked.get_future().wait();
  OnLoop([&] { plugin_.reset(); });
  EXPECT_EQ(start.get().error().code, base::ErrorCode::kUnavailable);
}

TEST_F(PluginTest, EndsInTheMiddleOfARegistration) {
  ASSERT_TRUE(kubelet_->Start().ok());
  kubelet_->HoldRegistrations(true);
  StartPlugin();
  EXPECT_TRUE(Eventually([&] { return plugin_->state().detail == "registering"; }));
  OnLoop([&] { plugin_.reset(); });
  kubelet_->HoldRegistrations(false);
}

// ---- All of it at once.

TEST_F(PluginTest, PodsComeAndGoWhileKubeletsDo) {
  callbacks_.pre_start = [](const auto&, auto reply) { reply({}); };
  // As the agent does: what a GPU's pod leaves behind is released when the next one comes.
  std::map<std::string, std::string> newest;  // Loop's thread.
  callbacks_.allocated = [&](const AllocationRecord& record) {
    std::string& token = newest[record.gpus.front()];
    if (!token.empty()) plugin_->allocations().Release(token, nullptr);
    token = record.token;
  };
  options_.self_check_interval_ns = 20 * base::kMillisecond;
  StartBoth(MakeGpus(4));

  std::atomic<bool> stop = false;
  std::atomic<uint64_t> given = 0;
  std::vector<std::thread> pods;
  const auto start_pods = [&] {
    stop = false;
    for (uint32_t gpu = 0; gpu < 4; gpu += 2) {
      pods.emplace_back([&, gpu] {
        for (uint32_t i = 0; !stop; ++i) {
          const auto ids = Slots(gpu, i % 5, i % 5 + 2);
          // Refused while there is no kubelet, no plugin, or no healthy GPU.
          if (kubelet_->Allocate(kResource, ids).ok()) {
            ++given;
            (void)kubelet_->PreStart(kResource, ids);
          }
          std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
      });
    }
  };
  const auto stop_pods = [&] {
    stop = true;
    for (auto& pod : pods) pod.join();
    pods.clear();
  };
  start_pods();
  for (size_t round = 0; round < 4; ++round) {
    const uint64_t before = given;
    EXPECT_TRUE(Eventually([&] { return given >= before + 10; }));
    auto gpus = MakeGpus(4);
    gpus[round].healthy = false;
    SetGpus(gpus);
    if (round % 2 == 0) {
      kubelet_->CancelStream(kResource);
    } else {
      stop_pods();  // They use the stand-in, which is not there for a moment.
      kubelet_->Stop();
      ASSERT_TRUE(kubelet_->Start().ok());
      start_pods();
    }
    SetGpus(MakeGpus(4));
    ASSERT_TRUE(Registered(40));
  }
  stop_pods();

  EXPECT_GE(State().allocations_total, given);
  // Of all that came and went, the last of each GPU is left.
  EXPECT_TRUE(Eventually([&] { return plugin_->allocations().records().size() == 2; }));
  const auto records = Records();
  OnLoop([&] {
    for (const auto& [gpu, token] : newest) EXPECT_TRUE(records.contains(token)) << gpu;
  });
}

}  // namespace
}  // namespace rubato::deviceplugin
