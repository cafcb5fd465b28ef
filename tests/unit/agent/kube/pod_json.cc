#include "tests/unit/agent/kube/pod_json.h"

#include <nlohmann/json.hpp>

namespace rubato::kube {

std::string PodJson(const PodText& pod) {
  // An ordered one: the server writes metadata, spec, status.
  nlohmann::ordered_json json = {
      {"kind", "Pod"},
      {"apiVersion", "v1"},
      {"metadata",
       {{"name", pod.name},
        {"generateName", "pod-7d9c-"},
        {"namespace", pod.name_space},
        {"uid", pod.uid},
        {"resourceVersion", std::to_string(pod.version)},
        {"creationTimestamp", "2026-01-01T00:00:00Z"},
        {"labels", {{"app", "render"}, {"pod-template-hash", "7d9c"}}},
        {"annotations", pod.annotations},
        {"ownerReferences",
         {{{"apiVersion", "apps/v1"},
           {"kind", "ReplicaSet"},
           {"name", "pod-7d9c"},
           {"uid", "00000000-0c4e-4a5b-9d6f-1e2a3b4c5d6e"},
           {"controller", true},
           {"blockOwnerDeletion", true}}}},
        {"managedFields", nlohmann::ordered_json::array()}}},
      {"spec",
       {{"volumes", {{{"name", "token"}, {"projected", {{"defaultMode", 420}}}}}},
        {"containers",
         {{{"name", "main"},
           {"image", "registry.example.org/render:1"},
           {"env", {{{"name", "A"}, {"value", "{\"quoted\": [\"json\"]}"}}}},
           {"resources", nlohmann::ordered_json::object()},
           {"volumeMounts",
            {{{"name", "token"}, {"mountPath", "/var/run"}, {"readOnly", true}}}}}}},
        {"restartPolicy", "Always"},
        {"nodeName", pod.node},
        {"tolerations", {{{"key", "k"}, {"tolerationSeconds", 300}}}}}},
      {"status",
       {{"phase", pod.phase},
        {"conditions", {{{"type", "Ready"}, {"status", "True"}, {"lastProbeTime", nullptr}}}},
        {"hostIP", "10.0.0.1"},
        {"containerStatuses",
         {{{"name", "main"},
           {"state", {{"running", {{"startedAt", "2026-01-01T00:00:01Z"}}}}},
           {"ready", true},
           {"restartCount", 0},
           {"containerID",
            pod.container_id.empty() ? std::string() : "containerd://" + pod.container_id},
           {"started", true}}}},
        {"qosClass", "Burstable"}}},
  };
  if (pod.annotations.empty()) json["metadata"].erase("annotations");
  if (pod.deleting) json["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z";
  if (pod.slots > 0) {
    json["spec"]["containers"][0]["resources"] = {
        {"limits", {{"cpu", "2"}, {"rubato.dev/gpu", std::to_string(pod.slots)}}},
        {"requests", {{"cpu", "2"}, {"rubato.dev/gpu", std::to_string(pod.slots)}}}};
  }
  // What makes real pods large is what field managers left behind.
  nlohmann::ordered_json managed = {{"manager", "kubelet"},
                                    {"operation", "Update"},
                                    {"apiVersion", "v1"},
                                    {"time", "2026-01-01T00:00:02Z"},
                                    {"fieldsType", "FieldsV1"},
                                    {"fieldsV1",
                                     {{"f:status",
                                       {{"f:conditions",
                                         {{"k:{\"type\":\"Ready\"}",
                                           {{".", nlohmann::ordered_json::object()},
                                            {"f:lastProbeTime", nlohmann::ordered_json::object()},
                                            {"f:status", nlohmann::ordered_json::object()}}}}}}}}}};
  const size_t one = managed.dump().size() + 1;
  size_t length = json.dump().size();
  while (length < pod.bytes) {
    json["metadata"]["managedFields"].push_back(managed);
    length += one;
  }
  return json.dump();
}

std::string EventJson(const std::string& type, const PodText& pod) {
  return R"({"type":")" + type + R"(","object":)" + PodJson(pod) + "}\n";
}

}  // namespace rubato::kube
