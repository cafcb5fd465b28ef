// fake-kubelet DIRECTORY: the stand-in kubelet as a process, driven by JSON lines.
//
// Each line on standard input is an object with "do"; each is answered by one line on standard
// output: {"ok": true, ...} or {"ok": false, "error": "...", "code": "..."}. It ends with its
// input. The directories are DIRECTORY/device-plugins and DIRECTORY/pod-resources.
//   start [moved]; stop; restart; wipe-sockets; cancel-stream resource
//   hold-registrations on; refuse-registrations error; ignore-lists on
//   forget-devices on; count-unhealthy on; hold-pod-resources on; refuse-pod-resources error
//   wait resource [registrations] [healthy] [listed] [connected]: until all are so; 30 s at most
//   state resource; containers
//   admit namespace pod container resource count; allocate resource ids;
//   prefer resource available must_include size
//   prestart namespace pod container | prestart resource ids; remove-pod namespace pod
#include <csignal>
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/fakes/kubelet.h"

namespace rubato::testing {
namespace {

using nlohmann::json;

const char* CodeName(base::ErrorCode code) {
  switch (code) {
    case base::ErrorCode::kInvalid:
      return "invalid";
    case base::ErrorCode::kNotFound:
      return "not-found";
    case base::ErrorCode::kExists:
      return "exists";
    case base::ErrorCode::kFull:
      return "full";
    case base::ErrorCode::kNotAllowed:
      return "not-allowed";
    case base::ErrorCode::kUnavailable:
      return "unavailable";
    case base::ErrorCode::kSystem:
      break;
  }
  return "system";
}

json Fault(const base::Error& error) {
  return {{"ok", false}, {"error", error.message}, {"code", CodeName(error.code)}};
}

json Outcome(const base::Result<void>& result) {
  if (!result) return Fault(result.error());
  return {{"ok", true}};
}

json Shown(const ::v1beta1::ContainerAllocateResponse& answer) {
  json out = {{"envs", json::object()},
              {"annotations", json::object()},
              {"mounts", json::array()},
              {"devices", json::array()},
              {"cdi_devices", json::array()}};
  for (const auto& [name, value] : answer.envs()) out["envs"][name] = value;
  for (const auto& [name, value] : answer.annotations()) out["annotations"][name] = value;
  for (const auto& mount : answer.mounts())
    out["mounts"].push_back({{"container_path", mount.container_path()},
                             {"host_path", mount.host_path()},
                             {"read_only", mount.read_only()}});
  for (const auto& device : answer.devices())
    out["devices"].push_back({{"container_path", device.container_path()},
                              {"host_path", device.host_path()},
                              {"permissions", device.permissions()}});
  for (const auto& device : answer.cdi_devices()) out["cdi_devices"].push_back(device.name());
  return out;
}

json Shown(const FakeContainer& container) {
  return {{"namespace", container.name_space},
          {"pod", container.pod},
          {"container", container.container},
          {"resource", container.resource},
          {"ids", container.ids},
          {"answer", Shown(container.answer)}};
}

json Shown(const FakeResource& resource) {
  json devices = json::object();
  for (const auto& [id, device] : resource.devices)
    devices[id] = {{"healthy", device.healthy}, {"numa_node", device.numa_node}};
  return {{"ok", true},
          {"endpoint", resource.endpoint},
          {"connected", resource.connected},
          {"registrations", resource.registrations},
          {"lists", resource.lists},
          {"shortest_list", resource.shortest_list},
          {"healthy", resource.healthy()},
          {"pre_start_required", resource.options.pre_start_required()},
          {"devices", std::move(devices)}};
}

json Wait(FakeKubelet* kubelet, const json& line) {
  const std::string name = line.at("resource");
  const bool came = kubelet->WaitFor(name, [&](const FakeResource& resource) {
    return (!line.contains("registrations") ||
            resource.registrations >= line["registrations"].get<uint64_t>()) &&
           (!line.contains("healthy") || resource.healthy() == line["healthy"].get<size_t>()) &&
           (!line.contains("listed") || resource.devices.size() == line["listed"].get<size_t>()) &&
           (!line.contains("connected") || resource.connected == line["connected"].get<bool>());
  });
  json shown = Shown(kubelet->resource(name));
  shown["ok"] = came;
  if (!came) shown["error"] = "it did not come to that";
  return shown;
}

json Do(FakeKubelet* kubelet, const json& line) {
  const std::string what = line.at("do");
  const auto on = [&] { return line.value("on", true); };
  const auto text = [&](const char* key) { return line.at(key).get<std::string>(); };
  const auto arrival =
      line.value("moved", false) ? FakeKubelet::Arrival::kMoved : FakeKubelet::Arrival::kCreated;
  if (what == "start") return Outcome(kubelet->Start(arrival));
  if (what == "restart") {
    kubelet->Stop();
    return Outcome(kubelet->Start(arrival));
  }
  if (what == "wait") return Wait(kubelet, line);
  if (what == "state") return Shown(kubelet->resource(text("resource")));
  if (what == "containers") {
    json all = json::array();
    for (const FakeContainer& container : kubelet->containers()) all.push_back(Shown(container));
    return {{"ok", true}, {"containers", std::move(all)}};
  }
  if (what == "admit") {
    auto made = kubelet->Admit(text("namespace"), text("pod"), text("container"), text("resource"),
                               line.at("count").get<size_t>());
    if (!made) return Fault(made.error());
    json shown = Shown(*made);
    shown["ok"] = true;
    return shown;
  }
  if (what == "allocate") {
    auto answer =
        kubelet->Allocate(text("resource"), line.at("ids").get<std::vector<std::string>>());
    if (!answer) return Fault(answer.error());
    json all = json::array();
    for (const auto& container : answer->container_responses()) all.push_back(Shown(container));
    return {{"ok", true}, {"answers", std::move(all)}};
  }
  if (what == "prefer") {
    auto ids = kubelet->Prefer(
        text("resource"), line.at("available").get<std::vector<std::string>>(),
        line.value("must_include", std::vector<std::string>{}), line.at("size").get<int32_t>());
    if (!ids) return Fault(ids.error());
    return {{"ok", true}, {"ids", *ids}};
  }
  if (what == "prestart") {
    if (line.contains("ids"))
      return Outcome(
          kubelet->PreStart(text("resource"), line.at("ids").get<std::vector<std::string>>()));
    return Outcome(kubelet->PreStart(text("namespace"), text("pod"), text("container")));
  }

  if (what == "stop") {
    kubelet->Stop();
  } else if (what == "wipe-sockets") {
    kubelet->WipeSockets();
  } else if (what == "cancel-stream") {
    kubelet->CancelStream(text("resource"));
  } else if (what == "hold-registrations") {
    kubelet->HoldRegistrations(on());
  } else if (what == "refuse-registrations") {
    kubelet->RefuseRegistrations(line.value("error", ""));
  } else if (what == "ignore-lists") {
    kubelet->IgnoreLists(on());
  } else if (what == "forget-devices") {
    kubelet->ForgetDevices(on());
  } else if (what == "count-unhealthy") {
    kubelet->CountUnhealthy(on());
  } else if (what == "hold-pod-resources") {
    kubelet->HoldPodResources(on());
  } else if (what == "refuse-pod-resources") {
    kubelet->RefusePodResources(line.value("error", ""));
  } else if (what == "remove-pod") {
    kubelet->RemovePod(text("namespace"), text("pod"));
  } else {
    return {{"ok", false}, {"error", "unknown: " + what}, {"code", "invalid"}};
  }
  return {{"ok", true}};
}

}  // namespace
}  // namespace rubato::testing

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::cerr << "usage: fake-kubelet DIRECTORY\n";
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  rubato::testing::FakeKubelet kubelet(argv[1]);
  std::string line;
  while (std::getline(std::cin, line)) {
    nlohmann::json answer;
    try {
      answer = rubato::testing::Do(&kubelet, nlohmann::json::parse(line));
    } catch (const nlohmann::json::exception& error) {
      answer = {{"ok", false}, {"error", error.what()}, {"code", "invalid"}};
    }
    std::cout << answer.dump() << std::endl;
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "fake-kubelet: " << error.what() << '\n';
  return 1;
}
