// The client of the kubelet's PodResources API: which container holds which slots.
//
// It knows pods by namespace and name, no UIDs; finished pods may still be in it and init
// containers are not, so the agent joins it with its watch of the pods. Calls are asynchronous,
// each with its deadline; answers come on the loop's thread. Reconnects by itself, at most a second
// after the kubelet is back.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/result.h"
#include "base/time.h"

namespace rubato::deviceplugin {

struct HeldDevices {
  std::string resource_name;
  std::vector<std::string> ids;
};
struct ContainerDevicesHeld {
  std::string container;
  std::vector<HeldDevices> devices;
};
struct PodDevicesHeld {
  std::string name_space;
  std::string pod;
  std::vector<ContainerDevicesHeld> containers;
};

class PodResources {
 public:
  using Listed = std::function<void(base::Result<std::vector<PodDevicesHeld>>)>;
  using Allocatable = std::function<void(base::Result<std::vector<HeldDevices>>)>;
  using Got = std::function<void(base::Result<PodDevicesHeld>)>;

  // `loop` outlives the client. Nothing is called back after the client's end.
  static std::unique_ptr<PodResources> Make(
      base::EventLoop* loop,
      const std::string& socket_path = "/var/lib/kubelet/pod-resources/kubelet.sock");
  virtual ~PodResources() = default;

  // Errors of all three: kUnavailable (no kubelet, its deadline passed, it is too busy),
  // kNotAllowed (a kubelet without this call, or with it switched off), kNotFound (Get: no such
  // pod), kSystem (an answer that makes no sense or is beyond 16 MiB).
  virtual void List(base::Nanos timeout_ns, Listed listed) = 0;
  virtual void GetAllocatable(base::Nanos timeout_ns, Allocatable allocatable) = 0;
  virtual void Get(const std::string& name_space, const std::string& pod, base::Nanos timeout_ns,
                   Got got) = 0;
};

}  // namespace rubato::deviceplugin
