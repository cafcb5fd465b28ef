// How long an Allocate takes, at a node full of slots: JSON on standard output.
//
//   bench_deviceplugin_allocate [--gpus 10] [--slots 10] [--requests 2000] [--directory DIR]
//
// A registry stands in for the kubelet; the calls go through gRPC and the socket as the kubelet's
// do, one after the other. DIR holds the records (default: /tmp). A second round keeps them in
// memory (/dev/shm), where fsync costs nothing. The number of records stays at one per slot: each
// allocation's predecessor is released, as the agent does.
#include <grpcpp/grpcpp.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <iostream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/event_loop.h"
#include "deviceplugin/allocation.h"
#include "deviceplugin/answer.h"
#include "deviceplugin/plugin.h"
#include "deviceplugin/slot.h"
#include "proto/kubelet/deviceplugin_v1beta1.grpc.pb.h"

namespace rubato::deviceplugin {
namespace {

using nlohmann::json;

struct Setting {
  uint32_t gpus = 10;
  uint32_t slots = 10;
  int requests = 2000;
  std::string directory = "/tmp";
};

json Summary(std::vector<base::Nanos> values) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return static_cast<double>(
               values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))]) /
           1e3;
  };
  return {{"p50_us", at(0.5)}, {"p99_us", at(0.99)}, {"max_us", at(1)}};
}

std::vector<Gpu> MakeGpus(uint32_t count) {
  std::vector<Gpu> gpus(count);
  for (uint32_t i = 0; i < count; ++i) {
    char uuid[64];
    std::snprintf(uuid, sizeof(uuid), "GPU-00000000-0000-4000-8000-%012x", i);
    gpus[i].uuid = uuid;
    gpus[i].index = i;
  }
  return gpus;
}

// Dials nobody: it says yes, and a thread of the bench reads the list.
class Registry final : public ::v1beta1::Registration::Service {
 public:
  explicit Registry(std::function<void()> registered) : registered_(std::move(registered)) {}
  grpc::Status Register(grpc::ServerContext*, const ::v1beta1::RegisterRequest*,
                        ::v1beta1::Empty*) override {
    registered_();
    return grpc::Status::OK;
  }

 private:
  std::function<void()> registered_;
};

json Measure(const Setting& setting, const std::string& parent) {
  std::string directory = parent + "/rubato-bench-XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr) return {{"error", "cannot write " + parent}};
  auto loop = std::move(*base::EventLoop::Make());
  std::thread thread([&] { loop->Run(); });
  const auto on_loop = [&](const std::function<void()>& work) {
    std::promise<void> done;
    loop->Post([&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  };

  std::promise<void> registered;
  std::once_flag once;
  Registry registry([&] { std::call_once(once, [&] { registered.set_value(); }); });
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + directory + "/kubelet.sock",
                           grpc::InsecureServerCredentials());
  builder.RegisterService(&registry);
  const auto server = builder.BuildAndStart();

  PluginPlaces places;
  places.kubelet_directory = directory;
  places.pod_resources_socket = directory + "/none.sock";
  places.allocations = {directory + "/alloc", directory + "/allocations.json"};
  PluginOptions options;
  options.slots_per_gpu = setting.slots;
  options.self_check_interval_ns = 0;
  options.answer.shim_directory = "/var/lib/rubato/shim/0011223344556677";
  std::map<std::string, std::string> token_of;  // By slot. Loop's thread.
  std::unique_ptr<DevicePlugin> plugin;
  PluginCallbacks callbacks;
  callbacks.allocated = [&](const AllocationRecord& record) {
    std::string& token = token_of[record.slots.front()];
    if (!token.empty()) plugin->allocations().Release(token, nullptr);
    token = record.token;
  };
  const std::vector<Gpu> gpus = MakeGpus(setting.gpus);
  on_loop([&] {
    auto started = DevicePlugin::Start(loop.get(), places, options, callbacks);
    if (!started) return;
    plugin = std::move(*started);
    (void)plugin->SetGpus(gpus);
  });
  registered.get_future().wait();

  const auto stub = ::v1beta1::DevicePlugin::NewStub(grpc::CreateChannel(
      "unix:" + directory + "/rubato-gpu.sock", grpc::InsecureChannelCredentials()));
  std::vector<base::Nanos> calls, plugin_all, plugin_without_disk, disk;
  uint64_t failed = 0;
  const int all = static_cast<int>(setting.gpus * setting.slots);
  // The first round over all slots fills the books.
  for (int i = 0; i < all + setting.requests; ++i) {
    const auto slot = static_cast<uint32_t>(i % all);
    ::v1beta1::AllocateRequest request;
    request.add_container_requests()->add_devices_ids(
        FormatSlotId(gpus[slot / setting.slots].uuid, slot % setting.slots));
    ::v1beta1::AllocateResponse response;
    grpc::ClientContext context;
    const base::Nanos before_ns = base::MonotonicNow();
    const bool ok = stub->Allocate(&context, request, &response).ok();
    const base::Nanos after_ns = base::MonotonicNow();
    failed += ok ? 0 : 1;
    if (i < all) continue;
    on_loop([&] {
      const PluginState& state = plugin->state();
      plugin_all.push_back(state.last_allocate_ns);
      disk.push_back(state.last_allocate_disk_ns);
      plugin_without_disk.push_back(state.last_allocate_ns - state.last_allocate_disk_ns);
    });
    calls.push_back(after_ns - before_ns);
  }
  size_t records = 0;
  on_loop([&] {
    records = plugin->allocations().records().size();
    plugin.reset();
    loop->Stop();
  });
  thread.join();
  server->Shutdown();
  std::filesystem::remove_all(directory);
  return {{"failed", failed},
          {"records", records},
          {"call", Summary(calls)},
          {"plugin", Summary(plugin_all)},
          {"plugin_disk", Summary(disk)},
          {"plugin_without_disk", Summary(plugin_without_disk)}};
}

// Judging and composing alone, of the largest request: all slots of the node.
json MeasurePure(const Setting& setting) {
  const std::vector<Gpu> gpus = MakeGpus(setting.gpus);
  std::vector<std::string> ids;
  for (const Gpu& gpu : gpus) {
    for (uint32_t n = 0; n < setting.slots; ++n) ids.push_back(FormatSlotId(gpu.uuid, n));
  }
  AnswerOptions options;
  options.shim_directory = "/shim";
  std::vector<base::Nanos> values;
  for (int i = 0; i < setting.requests; ++i) {
    const base::Nanos before_ns = base::MonotonicNow();
    const auto judged = JudgeAllocation(ids, gpus, setting.slots);
    const Answer answer = BuildAnswer(std::get<Grant>(judged), "token", "/directory", options);
    values.push_back(base::MonotonicNow() - before_ns);
    if (answer.mounts.empty()) std::abort();
  }
  return Summary(values);
}

}  // namespace
}  // namespace rubato::deviceplugin

int main(int argc, char** argv) try {
  rubato::deviceplugin::Setting setting;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--gpus") setting.gpus = static_cast<uint32_t>(std::atoi(argv[i + 1]));
    if (name == "--slots") setting.slots = static_cast<uint32_t>(std::atoi(argv[i + 1]));
    if (name == "--requests") setting.requests = std::atoi(argv[i + 1]);
    if (name == "--directory") setting.directory = argv[i + 1];
  }
  if (argc % 2 == 0 || setting.gpus < 1 || setting.gpus > 64 || setting.slots < 1 ||
      setting.slots > rubato::deviceplugin::kMostSlotsPerGpu || setting.requests < 1) {
    std::cerr << "usage: bench_deviceplugin_allocate [--gpus N] [--slots N] [--requests N] "
                 "[--directory DIR]\n";
    return 2;
  }
  const nlohmann::json result = {
      {"gpus", setting.gpus},
      {"slots_per_gpu", setting.slots},
      {"requests", setting.requests},
      {"judge_and_compose_all_slots", rubato::deviceplugin::MeasurePure(setting)},
      {"on_disk", rubato::deviceplugin::Measure(setting, setting.directory)},
      {"in_memory", rubato::deviceplugin::Measure(setting, "/dev/shm")},
  };
  std::cout << result.dump(2) << std::endl;
  return 0;
} catch (const std::exception& error) {
  std::cerr << "bench_deviceplugin_allocate: " << error.what() << '\n';
  return 1;
}
