// Pods as the API server writes them, with all that ours do not need: managed fields, volumes,
// conditions. Filled up to a size where one is asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace rubato::kube {

struct PodText {
  std::string name = "pod";
  std::string name_space = "default";
  std::string uid = "7a3bd1f2-0c4e-4a5b-9d6f-1e2a3b4c5d6e";
  std::string node = "node-1";
  std::string phase = "Running";
  uint64_t version = 1;
  uint64_t slots = 1;  // 0: asks for none.
  std::map<std::string, std::string> annotations;
  bool deleting = false;
  std::string container_id;
  size_t bytes = 0;  // At least so long.
};

std::string PodJson(const PodText& pod);
// With "type", as a line of a watch, and its newline.
std::string EventJson(const std::string& type, const PodText& pod);

}  // namespace rubato::kube
