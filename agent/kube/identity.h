// Which pod and container a process belongs to, read from its /proc/PID/cgroup.
//
// Pure. Knows cgroup v1 and v2, the kubelet's systemd and cgroupfs drivers, containerd, CRI-O and
// Docker, other cgroup roots, static pods, and paths as seen from within another cgroup namespace
// ("/../.."). A process can nest cgroups below its own and choose their names, so the outermost pod
// counts, and lines that contradict each other tell nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace rubato::kube {

enum class QosClass : uint8_t { kUnknown, kGuaranteed, kBurstable, kBestEffort };

struct CgroupIdentity {
  // As the kubelet knows it: with dashes, or the 32 digits of a static pod. Empty: not visible (no
  // pod's process, or a reader in the same pod's cgroup namespace).
  std::string pod_uid;
  std::string container_id;  // 64 hexadecimal digits; empty: not visible.
  QosClass qos = QosClass::kUnknown;

  bool known() const { return !pod_uid.empty() && !container_id.empty(); }
  bool operator==(const CgroupIdentity&) const = default;
};

// `text` is the whole file.
CgroupIdentity ParseCgroup(std::string_view text);

}  // namespace rubato::kube
