#include "deviceplugin/pod_resources.h"

#include <utility>

#include "deviceplugin/async_calls.h"
#include "proto/kubelet/podresources_v1.grpc.pb.h"

namespace rubato::deviceplugin {
namespace {

using Lister = ::v1::PodResourcesLister;

// The kubelet returns plain errors for what it does not do, which arrive as UNKNOWN with a text.
base::Error ToError(const std::string& call, const grpc::Status& status) {
  const std::string& text = status.error_message();
  const auto says = [&](const char* words) { return text.find(words) != std::string::npos; };
  base::ErrorCode code = base::ErrorCode::kSystem;
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::CANCELLED:
      code = base::ErrorCode::kUnavailable;
      break;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      // The kubelet's limit of calls per second, or our own limit of an answer's size.
      if (!says("larger than max")) code = base::ErrorCode::kUnavailable;
      break;
    case grpc::StatusCode::UNIMPLEMENTED:
      code = base::ErrorCode::kNotAllowed;
      break;
    case grpc::StatusCode::NOT_FOUND:
      code = base::ErrorCode::kNotFound;
      break;
    case grpc::StatusCode::UNKNOWN:
      if (says("disabled")) code = base::ErrorCode::kNotAllowed;
      if (says("not found")) code = base::ErrorCode::kNotFound;
      break;
    default:
      break;
  }
  return {code, "PodResources " + call + ": " + text};
}

HeldDevices Convert(const ::v1::ContainerDevices& in) {
  return {in.resource_name(), {in.device_ids().begin(), in.device_ids().end()}};
}

PodDevicesHeld Convert(const ::v1::PodResources& in) {
  PodDevicesHeld pod;
  pod.name_space = in.namespace_();
  pod.pod = in.name();
  for (const ::v1::ContainerResources& container : in.containers()) {
    ContainerDevicesHeld held;
    held.container = container.name();
    for (const ::v1::ContainerDevices& devices : container.devices())
      held.devices.push_back(Convert(devices));
    pod.containers.push_back(std::move(held));
  }
  return pod;
}

class GrpcPodResources final : public PodResources {
 public:
  GrpcPodResources(base::EventLoop* loop, const std::string& socket_path)
      : stub_(Lister::NewStub(UnixChannel(socket_path))), calls_(loop) {}

  void List(base::Nanos timeout_ns, Listed listed) override {
    using Value = std::vector<PodDevicesHeld>;
    calls_.Call<::v1::ListPodResourcesRequest, ::v1::ListPodResourcesResponse, Value>(
        timeout_ns, {}, [this](auto... call) { stub_->async()->List(std::move(call)...); },
        [](const ::v1::ListPodResourcesResponse& response) {
          Value pods;
          for (const ::v1::PodResources& pod : response.pod_resources())
            pods.push_back(Convert(pod));
          return pods;
        },
        [listed = std::move(listed)](const grpc::Status& status, Value pods) {
          if (!status.ok()) return listed(ToError("List", status));
          listed(std::move(pods));
        });
  }

  void GetAllocatable(base::Nanos timeout_ns, Allocatable allocatable) override {
    using Value = std::vector<HeldDevices>;
    calls_.Call<::v1::AllocatableResourcesRequest, ::v1::AllocatableResourcesResponse, Value>(
        timeout_ns, {},
        [this](auto... call) { stub_->async()->GetAllocatableResources(std::move(call)...); },
        [](const ::v1::AllocatableResourcesResponse& response) {
          Value all;
          for (const ::v1::ContainerDevices& devices : response.devices())
            all.push_back(Convert(devices));
          return all;
        },
        [allocatable = std::move(allocatable)](const grpc::Status& status, Value all) {
          if (!status.ok()) return allocatable(ToError("GetAllocatableResources", status));
          allocatable(std::move(all));
        });
  }

  void Get(const std::string& name_space, const std::string& pod, base::Nanos timeout_ns,
           Got got) override {
    ::v1::GetPodResourcesRequest request;
    request.set_pod_name(pod);
    request.set_pod_namespace(name_space);
    calls_.Call<::v1::GetPodResourcesRequest, ::v1::GetPodResourcesResponse, PodDevicesHeld>(
        timeout_ns, std::move(request),
        [this](auto... call) { stub_->async()->Get(std::move(call)...); },
        [](const ::v1::GetPodResourcesResponse& response) {
          return Convert(response.pod_resources());
        },
        [got = std::move(got)](const grpc::Status& status, PodDevicesHeld held) {
          if (!status.ok()) return got(ToError("Get", status));
          got(std::move(held));
        });
  }

 private:
  std::unique_ptr<Lister::Stub> stub_;
  AsyncCalls calls_;  // Ends before the stub does.
};

}  // namespace

std::unique_ptr<PodResources> PodResources::Make(base::EventLoop* loop,
                                                 const std::string& socket_path) {
  return std::make_unique<GrpcPodResources>(loop, socket_path);
}

}  // namespace rubato::deviceplugin
