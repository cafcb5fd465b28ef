#include "tests/fakes/kubelet.h"

#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "proto/kubelet/deviceplugin_v1beta1.grpc.pb.h"
#include "proto/kubelet/podresources_v1.grpc.pb.h"

namespace rubato::testing {
namespace {

namespace api = ::v1beta1;
namespace fs = std::filesystem;
using Lock = std::unique_lock<std::mutex>;

constexpr auto kPatience = std::chrono::seconds(30);

base::Error ToError(const grpc::Status& status) {
  base::ErrorCode code = base::ErrorCode::kSystem;
  switch (status.error_code()) {
    case grpc::StatusCode::INVALID_ARGUMENT:
      code = base::ErrorCode::kInvalid;
      break;
    case grpc::StatusCode::NOT_FOUND:
      code = base::ErrorCode::kNotFound;
      break;
    case grpc::StatusCode::FAILED_PRECONDITION:
      code = base::ErrorCode::kNotAllowed;
      break;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      code = base::ErrorCode::kFull;
      break;
    case grpc::StatusCode::UNAVAILABLE:
      code = base::ErrorCode::kUnavailable;
      break;
    default:
      break;
  }
  return {code, status.error_message()};
}

std::shared_ptr<grpc::Channel> Dial(const std::string& path) {
  grpc::ChannelArguments arguments;
  arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, "localhost");
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel("unix:" + path, grpc::InsecureChannelCredentials(), arguments);
}

void RemoveSockets(const std::string& directory, bool all) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (name == "kubelet_internal_checkpoint" || (!all && name == "kubelet.sock")) continue;
    fs::remove_all(entry.path(), error);
  }
}

// A connection to a plugin, and the thread that reads its list.
struct Client {
  std::string resource;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<api::DevicePlugin::Stub> stub;
  grpc::ClientContext stream_context;
  std::thread reader;
};

}  // namespace

size_t FakeResource::healthy() const {
  return static_cast<size_t>(std::count_if(devices.begin(), devices.end(),
                                           [](const auto& item) { return item.second.healthy; }));
}

class FakeKubelet::State final : public api::Registration::Service,
                                 public ::v1::PodResourcesLister::Service {
 public:
  explicit State(std::string root) : root_(std::move(root)) {}

  std::string plugin_directory() const { return root_ + "/device-plugins"; }
  std::string pod_resources_socket() const { return root_ + "/pod-resources/kubelet.sock"; }

  base::Result<void> Start(Arrival arrival) {
    std::error_code error;
    fs::create_directories(plugin_directory(), error);
    fs::create_directories(root_ + "/pod-resources", error);
    RemoveSockets(plugin_directory(), true);
    const std::string socket = plugin_directory() + "/kubelet.sock";
    const std::string first = arrival == Arrival::kMoved ? root_ + "/arriving.sock" : socket;
    {
      const Lock lock(mutex_);
      stopping_ = false;
      for (auto& [name, resource] : resources_) resource = FakeResource{};
    }
    grpc::ServerBuilder registry;
    registry.AddListeningPort("unix:" + first, grpc::InsecureServerCredentials());
    registry.RegisterService(static_cast<api::Registration::Service*>(this));
    registry_ = registry.BuildAndStart();
    grpc::ServerBuilder pods;
    pods.AddListeningPort("unix:" + pod_resources_socket(), grpc::InsecureServerCredentials());
    pods.RegisterService(static_cast<::v1::PodResourcesLister::Service*>(this));
    pods_ = pods.BuildAndStart();
    if (registry_ == nullptr || pods_ == nullptr)
      return base::Error{base::ErrorCode::kSystem, "the stand-in kubelet cannot listen"};
    if (first != socket && ::rename(first.c_str(), socket.c_str()) != 0)
      return base::SystemError("cannot move the stand-in kubelet's socket");
    return {};
  }

  void Stop() {
    std::vector<std::shared_ptr<Client>> all;
    {
      const Lock lock(mutex_);
      stopping_ = true;
      all = all_clients_;
      clients_.clear();
      for (auto& [name, resource] : resources_) resource.connected = false;
    }
    changed_.notify_all();
    for (const auto& client : all) client->stream_context.TryCancel();
    if (registry_ != nullptr) registry_->Shutdown(std::chrono::system_clock::now());
    if (pods_ != nullptr) pods_->Shutdown(std::chrono::system_clock::now());
    // No handler runs any more, so nobody adds to them.
    {
      const Lock lock(mutex_);
      all = std::exchange(all_clients_, {});
    }
    for (const auto& client : all) {
      client->stream_context.TryCancel();
      if (client->reader.joinable()) client->reader.join();
    }
    registry_.reset();
    pods_.reset();
    ::unlink((plugin_directory() + "/kubelet.sock").c_str());
  }

  bool running() const { return registry_ != nullptr; }

  // ---- Registration.
  grpc::Status Register(grpc::ServerContext*, const api::RegisterRequest* request,
                        api::Empty*) override {
    Lock lock(mutex_);
    changed_.wait(lock, [this] { return stopping_ || !hold_registrations_; });
    if (stopping_) return {grpc::StatusCode::UNAVAILABLE, "the kubelet is gone"};
    if (!refuse_registrations_.empty()) return {grpc::StatusCode::UNKNOWN, refuse_registrations_};
    if (request->version() != "v1beta1")
      return {grpc::StatusCode::UNKNOWN, "requested API version is not supported"};
    if (request->resource_name().find('/') == std::string::npos)
      return {grpc::StatusCode::UNKNOWN, "the resource name is invalid"};
    const bool ignore = ignore_lists_;
    auto client = std::make_shared<Client>();
    client->resource = request->resource_name();
    client->channel = Dial(plugin_directory() + "/" + request->endpoint());
    client->stub = api::DevicePlugin::NewStub(client->channel);
    clients_[client->resource] = client;
    all_clients_.push_back(client);
    lock.unlock();

    // As the kubelet does: dial, options, and only then an answer.
    api::DevicePluginOptions options;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    const grpc::Status asked = client->stub->GetDevicePluginOptions(&context, {}, &options);
    lock.lock();
    if (!asked.ok()) {
      clients_.erase(client->resource);
      return {grpc::StatusCode::UNKNOWN, "cannot dial the plugin: " + asked.error_message()};
    }
    if (stopping_) return {grpc::StatusCode::UNAVAILABLE, "the kubelet is gone"};
    FakeResource& resource = resources_[client->resource];
    resource.endpoint = request->endpoint();
    resource.options = options;
    ++resource.registrations;
    if (!ignore) client->reader = std::thread([this, client] { Read(client); });
    lock.unlock();
    changed_.notify_all();
    return grpc::Status::OK;
  }

  // ---- PodResources.
  grpc::Status List(grpc::ServerContext*, const ::v1::ListPodResourcesRequest*,
                    ::v1::ListPodResourcesResponse* response) override {
    Lock lock(mutex_);
    if (grpc::Status ready = PodResourcesReady(&lock); !ready.ok()) return ready;
    std::map<std::pair<std::string, std::string>, ::v1::PodResources*> pods;
    for (const FakeContainer& container : containers_) {
      ::v1::PodResources*& pod = pods[{container.name_space, container.pod}];
      if (pod == nullptr) {
        pod = response->add_pod_resources();
        pod->set_namespace_(container.name_space);
        pod->set_name(container.pod);
      }
      AddContainer(container, pod);
    }
    return grpc::Status::OK;
  }

  grpc::Status GetAllocatableResources(grpc::ServerContext*,
                                       const ::v1::AllocatableResourcesRequest*,
                                       ::v1::AllocatableResourcesResponse* response) override {
    Lock lock(mutex_);
    if (grpc::Status ready = PodResourcesReady(&lock); !ready.ok()) return ready;
    for (const auto& [name, resource] : resources_) {
      if (forget_devices_) continue;
      // One entry per device, as the kubelet has them where they have NUMA nodes.
      for (const auto& [id, device] : resource.devices) {
        if (!device.healthy && !count_unhealthy_) continue;
        ::v1::ContainerDevices* devices = response->add_devices();
        devices->set_resource_name(name);
        devices->add_device_ids(id);
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status Get(grpc::ServerContext*, const ::v1::GetPodResourcesRequest* request,
                   ::v1::GetPodResourcesResponse* response) override {
    Lock lock(mutex_);
    if (grpc::Status ready = PodResourcesReady(&lock); !ready.ok()) return ready;
    bool found = false;
    for (const FakeContainer& container : containers_) {
      if (container.pod != request->pod_name() || container.name_space != request->pod_namespace())
        continue;
      found = true;
      response->mutable_pod_resources()->set_name(container.pod);
      response->mutable_pod_resources()->set_namespace_(container.name_space);
      AddContainer(container, response->mutable_pod_resources());
    }
    if (found) return grpc::Status::OK;
    return {grpc::StatusCode::UNKNOWN, "pod " + request->pod_name() + " in namespace " +
                                           request->pod_namespace() + " not found"};
  }

  // ---- For the tests.
  template <typename Change>
  void Set(Change change) {
    {
      const Lock lock(mutex_);
      change();
    }
    changed_.notify_all();
  }

  void CancelStream(const std::string& name) {
    const auto client = ClientOf(name);
    if (client != nullptr) client->stream_context.TryCancel();
  }

  FakeResource resource(const std::string& name) const {
    const Lock lock(mutex_);
    const auto found = resources_.find(name);
    return found == resources_.end() ? FakeResource{} : found->second;
  }

  bool WaitFor(const std::string& name,
               const std::function<bool(const FakeResource&)>& done) const {
    Lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] {
      const auto found = resources_.find(name);
      return done(found == resources_.end() ? FakeResource{} : found->second);
    });
  }

  std::vector<FakeContainer> containers() const {
    const Lock lock(mutex_);
    return containers_;
  }

  base::Result<FakeContainer> Admit(const std::string& name_space, const std::string& pod,
                                    const std::string& container, const std::string& name,
                                    size_t count) {
    std::vector<std::string> available;
    bool ask = false;
    {
      const Lock lock(mutex_);
      std::set<std::string> taken;
      for (const FakeContainer& other : containers_) {
        if (other.resource == name) taken.insert(other.ids.begin(), other.ids.end());
      }
      const FakeResource& resource = resources_[name];
      for (const auto& [id, device] : resource.devices) {
        if (device.healthy && !taken.contains(id)) available.push_back(id);
      }
      ask = resource.options.get_preferred_allocation_available();
    }
    if (available.size() < count)
      return base::Error{base::ErrorCode::kFull,
                         "requested number of devices unavailable for " + name};
    std::vector<std::string> ids;
    if (ask) {
      auto preferred = Prefer(name, available, {}, static_cast<int32_t>(count));
      if (!preferred) return preferred.error();
      for (const std::string& id : *preferred) {
        if (ids.size() < count && std::count(available.begin(), available.end(), id) > 0)
          ids.push_back(id);
      }
    }
    for (const std::string& id : available) {
      if (ids.size() < count && std::count(ids.begin(), ids.end(), id) == 0) ids.push_back(id);
    }
    auto answer = Allocate(name, ids);
    if (!answer) return answer.error();
    if (answer->container_responses_size() != 1)
      return base::Error{base::ErrorCode::kSystem, "no containers return in allocation response"};
    FakeContainer made{name_space, pod, container, name, ids, answer->container_responses(0)};
    const Lock lock(mutex_);
    containers_.push_back(made);
    return made;
  }

  base::Result<api::AllocateResponse> Allocate(const std::string& name,
                                               const std::vector<std::string>& ids) {
    api::AllocateRequest request;
    auto* container = request.add_container_requests();
    for (const std::string& id : ids) container->add_devices_ids(id);
    api::AllocateResponse response;
    auto called = Call(name, [&](api::DevicePlugin::Stub* stub, grpc::ClientContext* context) {
      return stub->Allocate(context, request, &response);
    });
    if (!called) return called.error();
    return response;
  }

  base::Result<std::vector<std::string>> Prefer(const std::string& name,
                                                const std::vector<std::string>& available,
                                                const std::vector<std::string>& must_include,
                                                int32_t size) {
    api::PreferredAllocationRequest request;
    auto* container = request.add_container_requests();
    for (const std::string& id : available) container->add_available_deviceids(id);
    for (const std::string& id : must_include) container->add_must_include_deviceids(id);
    container->set_allocation_size(size);
    api::PreferredAllocationResponse response;
    auto called = Call(name, [&](api::DevicePlugin::Stub* stub, grpc::ClientContext* context) {
      return stub->GetPreferredAllocation(context, request, &response);
    });
    if (!called) return called.error();
    std::vector<std::string> ids;
    if (response.container_responses_size() > 0)
      ids.assign(response.container_responses(0).deviceids().begin(),
                 response.container_responses(0).deviceids().end());
    return ids;
  }

  base::Result<void> PreStart(const std::string& name, const std::vector<std::string>& ids) {
    api::PreStartContainerRequest request;
    for (const std::string& id : ids) request.add_devices_ids(id);
    api::PreStartContainerResponse response;
    return Call(name, [&](api::DevicePlugin::Stub* stub, grpc::ClientContext* context) {
      return stub->PreStartContainer(context, request, &response);
    });
  }

  base::Result<void> PreStart(const std::string& name_space, const std::string& pod,
                              const std::string& container) {
    std::optional<FakeContainer> found;
    {
      const Lock lock(mutex_);
      for (const FakeContainer& item : containers_) {
        if (item.name_space == name_space && item.pod == pod && item.container == container)
          found = item;
      }
    }
    if (!found.has_value())
      return base::Error{base::ErrorCode::kNotFound,
                         "no devices found allocated for the container"};
    return PreStart(found->resource, found->ids);
  }

  void RemovePod(const std::string& name_space, const std::string& pod) {
    const Lock lock(mutex_);
    std::erase_if(containers_, [&](const FakeContainer& container) {
      return container.name_space == name_space && container.pod == pod;
    });
  }

  // Guarded by mutex_.
  bool hold_registrations_ = false;
  std::string refuse_registrations_;
  bool ignore_lists_ = false;
  bool forget_devices_ = false;
  bool count_unhealthy_ = false;
  bool hold_pod_resources_ = false;
  std::string refuse_pod_resources_;

 private:
  void Read(const std::shared_ptr<Client>& client) {
    const auto stream = client->stub->ListAndWatch(&client->stream_context, {});
    api::ListAndWatchResponse list;
    while (stream->Read(&list)) {
      const Lock lock(mutex_);
      if (stopping_) break;
      FakeResource& resource = resources_[client->resource];
      resource.connected = true;
      const auto size = static_cast<size_t>(list.devices_size());
      resource.shortest_list = resource.lists == 0 ? size : std::min(resource.shortest_list, size);
      ++resource.lists;
      resource.devices.clear();
      for (const api::Device& device : list.devices()) {
        resource.devices[device.id()] = {
            device.health() == "Healthy",
            device.topology().nodes_size() > 0 ? device.topology().nodes(0).id() : -1};
      }
      changed_.notify_all();
    }
    (void)stream->Finish();
    const Lock lock(mutex_);
    if (stopping_) return;
    // The kubelet looks its client up by name: it may drop one that came after this.
    const auto found = clients_.find(client->resource);
    if (found != clients_.end()) {
      found->second->stream_context.TryCancel();
      clients_.erase(found);
      FakeResource& resource = resources_[client->resource];
      resource.connected = false;
      for (auto& [id, device] : resource.devices) device.healthy = false;
    }
    changed_.notify_all();
  }

  static void AddContainer(const FakeContainer& container, ::v1::PodResources* pod) {
    ::v1::ContainerResources* item = nullptr;
    for (auto& other : *pod->mutable_containers()) {
      if (other.name() == container.container) item = &other;
    }
    if (item == nullptr) {
      item = pod->add_containers();
      item->set_name(container.container);
    }
    ::v1::ContainerDevices* devices = item->add_devices();
    devices->set_resource_name(container.resource);
    for (const std::string& id : container.ids) devices->add_device_ids(id);
  }

  grpc::Status PodResourcesReady(Lock* lock) {
    changed_.wait(*lock, [this] { return stopping_ || !hold_pod_resources_; });
    if (stopping_) return {grpc::StatusCode::UNAVAILABLE, "the kubelet is gone"};
    if (!refuse_pod_resources_.empty()) return {grpc::StatusCode::UNKNOWN, refuse_pod_resources_};
    return grpc::Status::OK;
  }

  std::shared_ptr<Client> ClientOf(const std::string& name) const {
    const Lock lock(mutex_);
    const auto found = clients_.find(name);
    return found == clients_.end() ? nullptr : found->second;
  }

  base::Result<void> Call(
      const std::string& name,
      const std::function<grpc::Status(api::DevicePlugin::Stub*, grpc::ClientContext*)>& call) {
    const auto client = ClientOf(name);
    if (client == nullptr)
      return base::Error{base::ErrorCode::kUnavailable, "no plugin is registered for " + name};
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    const grpc::Status status = call(client->stub.get(), &context);
    if (!status.ok()) return ToError(status);
    return {};
  }

  const std::string root_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool stopping_ = false;
  std::map<std::string, FakeResource> resources_;
  std::map<std::string, std::shared_ptr<Client>> clients_;  // The newest of each resource.
  std::vector<std::shared_ptr<Client>> all_clients_;
  std::vector<FakeContainer> containers_;
  std::unique_ptr<grpc::Server> registry_;
  std::unique_ptr<grpc::Server> pods_;
};

FakeKubelet::FakeKubelet(std::string root) : state_(std::make_shared<State>(std::move(root))) {}
FakeKubelet::~FakeKubelet() {
  Stop();
}
std::string FakeKubelet::plugin_directory() const {
  return state_->plugin_directory();
}
std::string FakeKubelet::pod_resources_socket() const {
  return state_->pod_resources_socket();
}
base::Result<void> FakeKubelet::Start(Arrival arrival) {
  return state_->Start(arrival);
}
void FakeKubelet::Stop() {
  if (state_->running()) state_->Stop();
}
bool FakeKubelet::running() const {
  return state_->running();
}
void FakeKubelet::HoldRegistrations(bool hold) {
  state_->Set([&] { state_->hold_registrations_ = hold; });
}
void FakeKubelet::RefuseRegistrations(std::string error) {
  state_->Set([&] { state_->refuse_registrations_ = std::move(error); });
}
void FakeKubelet::IgnoreLists(bool ignore) {
  state_->Set([&] { state_->ignore_lists_ = ignore; });
}
void FakeKubelet::ForgetDevices(bool forget) {
  state_->Set([&] { state_->forget_devices_ = forget; });
}
void FakeKubelet::CountUnhealthy(bool count) {
  state_->Set([&] { state_->count_unhealthy_ = count; });
}
void FakeKubelet::HoldPodResources(bool hold) {
  state_->Set([&] { state_->hold_pod_resources_ = hold; });
}
void FakeKubelet::RefusePodResources(std::string error) {
  state_->Set([&] { state_->refuse_pod_resources_ = std::move(error); });
}
void FakeKubelet::CancelStream(const std::string& resource) {
  state_->CancelStream(resource);
}
void FakeKubelet::WipeSockets() {
  RemoveSockets(plugin_directory(), false);
}
FakeResource FakeKubelet::resource(const std::string& name) const {
  return state_->resource(name);
}
bool FakeKubelet::WaitFor(const std::string& name,
                          const std::function<bool(const FakeResource&)>& done) const {
  return state_->WaitFor(name, done);
}
std::vector<FakeContainer> FakeKubelet::containers() const {
  return state_->containers();
}
base::Result<FakeContainer> FakeKubelet::Admit(const std::string& name_space,
                                               const std::string& pod, const std::string& container,
                                               const std::string& resource, size_t count) {
  return state_->Admit(name_space, pod, container, resource, count);
}
base::Result<::v1beta1::AllocateResponse> FakeKubelet::Allocate(
    const std::string& resource, const std::vector<std::string>& ids) {
  return state_->Allocate(resource, ids);
}
base::Result<std::vector<std::string>> FakeKubelet::Prefer(
    const std::string& resource, const std::vector<std::string>& available,
    const std::vector<std::string>& must_include, int32_t size) {
  return state_->Prefer(resource, available, must_include, size);
}
base::Result<void> FakeKubelet::PreStart(const std::string& resource,
                                         const std::vector<std::string>& ids) {
  return state_->PreStart(resource, ids);
}
base::Result<void> FakeKubelet::PreStart(const std::string& name_space, const std::string& pod,
                                         const std::string& container) {
  return state_->PreStart(name_space, pod, container);
}
void FakeKubelet::RemovePod(const std::string& name_space, const std::string& pod) {
  state_->RemovePod(name_space, pod);
}

}  // namespace rubato::testing
