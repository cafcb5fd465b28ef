// A stand-in for the kubelet: registry, client of the plugin, PodResources, and its bad days.
//
// It does what the kubelet's device manager does, in its order: at its start it deletes what lies
// in the plugin directory, then listens; at a registration it dials back (authority "localhost"),
// asks for the options and reads the list; when a stream ends it drops whichever client has the
// name, and its devices count as unhealthy; it chooses slots as the kubelet chooses, asks for
// advice, and keeps the answer of Allocate per container. All functions may be called from any
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "proto/kubelet/deviceplugin_v1beta1.pb.h"

namespace rubato::testing {

struct FakeDevice {
  bool healthy = false;
  int64_t numa_node = -1;
};

// What it knows of one resource.
struct FakeResource {
  std::string endpoint;
  ::v1beta1::DevicePluginOptions options;
  bool connected = false;
  uint64_t registrations = 0;
  uint64_t lists = 0;        // Since the kubelet's start.
  size_t shortest_list = 0;  // Of those, in devices.
  std::map<std::string, FakeDevice> devices;
  size_t healthy() const;
};

struct FakeContainer {
  std::string name_space;
  std::string pod;
  std::string container;
  std::string resource;
  std::vector<std::string> ids;
  ::v1beta1::ContainerAllocateResponse answer;
};

class FakeKubelet {
 public:
  // Directories: <root>/device-plugins and <root>/pod-resources.
  explicit FakeKubelet(std::string root);
  ~FakeKubelet();
  FakeKubelet(const FakeKubelet&) = delete;
  FakeKubelet& operator=(const FakeKubelet&) = delete;

  std::string plugin_directory() const;
  std::string pod_resources_socket() const;

  // How its socket comes into being: made at its name, or moved there.
  enum class Arrival : uint8_t { kCreated, kMoved };
  base::Result<void> Start(Arrival arrival = Arrival::kCreated);
  // Ends all connections, as a kubelet's death does. Containers stay known, as in its checkpoint.
  void Stop();
  bool running() const;

  // ---- Bad days. All of them last until changed.
  void HoldRegistrations(bool hold);            // Answers wait until it is false.
  void RefuseRegistrations(std::string error);  // Empty: no longer.
  void IgnoreLists(bool ignore);                // Registers, but never reads the list.
  void ForgetDevices(bool forget);              // PodResources counts none of the devices.
  void CountUnhealthy(bool count);              // PodResources counts them in, as older kubelets.
  void HoldPodResources(bool hold);
  void RefusePodResources(std::string error);
  // Once: ends the stream of a resource, but keeps running.
  void CancelStream(const std::string& resource);
  // Once: deletes all sockets of plugins.
  void WipeSockets();

  // ---- What has happened.
  FakeResource resource(const std::string& name) const;
  // Waits until `done` says so; false after half a minute.
  bool WaitFor(const std::string& name, const std::function<bool(const FakeResource&)>& done) const;
  std::vector<FakeContainer> containers() const;

  // ---- Pods.
  // Gives a container `count` devices, as the kubelet does at the admission of a pod. The error is
  // the plugin's.
  base::Result<FakeContainer> Admit(const std::string& name_space, const std::string& pod,
                                    const std::string& container, const std::string& resource,
                                    size_t count);
  // The plugin's calls, with anything in them.
  base::Result<::v1beta1::AllocateResponse> Allocate(const std::string& resource,
                                                     const std::vector<std::string>& ids);
  base::Result<std::vector<std::string>> Prefer(const std::string& resource,
                                                const std::vector<std::string>& available,
                                                const std::vector<std::string>& must_include,
                                                int32_t size);
  base::Result<void> PreStart(const std::string& resource, const std::vector<std::string>& ids);
  // Before each start of a container that was admitted.
  base::Result<void> PreStart(const std::string& name_space, const std::string& pod,
                              const std::string& container);
  void RemovePod(const std::string& name_space, const std::string& pod);

 private:
  class State;
  std::shared_ptr<State> state_;
};

}  // namespace rubato::testing
