// The small texts that the agent reads: /proc/PID/cgroup, amounts, and annotations that need not
// have come through JSON.
//
// Input: the text; for annotations, lines of key=value.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "agent/kube/identity.h"
#include "agent/kube/node_labels.h"
#include "agent/kube/promise.h"
#include "agent/kube/quantity.h"

namespace {

using namespace rubato::kube;  // NOLINT: a fuzz target is a program of one file.

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

bool IsHexOrDash(const std::string& text) {
  return text.find_first_not_of("0123456789abcdef-") == std::string::npos;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);

  const CgroupIdentity identity = ParseCgroup(text);
  Require(
      identity.pod_uid.empty() || identity.pod_uid.size() == 36 || identity.pod_uid.size() == 32,
      "uids have one of two forms");
  Require(IsHexOrDash(identity.pod_uid) && IsHexOrDash(identity.container_id),
          "ids are hexadecimal");
  Require(identity.container_id.empty() || identity.container_id.size() == 64,
          "container ids have 64 digits");

  (void)ParseQuantity(text);
  const std::string label = LabelValue(text);
  Require(label.size() <= 63 && LabelValue(label) == label, "a label's value is one already");

  Pod pod;
  pod.containers = {{.name = "main", .slots = 1}, {.name = "side", .slots = 2}, {.name = "log"}};
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const size_t equals = line.find('=');
    if (equals != std::string_view::npos)
      pod.annotations[std::string(line.substr(0, equals))] = line.substr(equals + 1);
  }
  const PodPromises promises = ReadPromises(pod, PodSelection{});
  Require(promises.containers.size() == 2, "who asks has a promise");
  Require(promises == ReadPromises(pod, PodSelection{}), "the same text promises the same");
  return 0;
}
