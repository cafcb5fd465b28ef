#include "agent/kube/identity.h"

#include <algorithm>
#include <cstddef>

namespace rubato::kube {
namespace {

constexpr size_t kContainerIdDigits = 64;
constexpr size_t kStaticUidDigits = 32;
// 8-4-4-4-12
constexpr size_t kUuidLength = 36;

bool IsHex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

bool IsUuid(std::string_view text, char dash) {
  if (text.size() != kUuidLength) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool at_dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (at_dash ? text[i] != dash : !IsHex(text[i])) return false;
  }
  return true;
}

bool IsHexDigits(std::string_view text, size_t count) {
  return text.size() == count && std::all_of(text.begin(), text.end(), IsHex);
}

bool Cut(std::string_view* text, std::string_view suffix) {
  if (!text->ends_with(suffix)) return false;
  text->remove_suffix(suffix.size());
  return true;
}

// The uid in "pod<uid>" (cgroupfs) or "kubepods[-<class>]-pod<uid>" (systemd, without ".slice", its
// dashes as underscores, with the slice of another cgroup root before it); empty if there is none.
std::string PodUidOf(std::string_view name, QosClass* qos) {
  const size_t at = name.rfind("pod");
  if (at == std::string_view::npos) return {};
  const std::string_view uid = name.substr(at + 3);
  const std::string_view before = name.substr(0, at);
  const bool systemd = !before.empty();
  if (systemd) {
    if (before.ends_with("kubepods-burstable-")) {
      *qos = QosClass::kBurstable;
    } else if (before.ends_with("kubepods-besteffort-")) {
      *qos = QosClass::kBestEffort;
    } else if (before.ends_with("kubepods-")) {
      *qos = QosClass::kGuaranteed;
    } else {
      return {};
    }
  }
  if (IsHexDigits(uid, kStaticUidDigits)) return std::string(uid);
  if (!IsUuid(uid, systemd ? '_' : '-')) return {};
  std::string dashed(uid);
  std::replace(dashed.begin(), dashed.end(), '_', '-');
  return dashed;
}

// The id in "<id>", "cri-containerd-<id>.scope", "crio-<id>.scope", "docker-<id>.scope"; empty if
// there is none. The process that watches a container of CRI-O ("crio-conmon-<id>") is not in it.
std::string ContainerIdOf(std::string_view name) {
  if (Cut(&name, ".scope")) {
    const size_t dash = name.rfind('-');
    if (dash == std::string_view::npos) return {};
    if (name.substr(0, dash).ends_with("conmon")) return {};
    name = name.substr(dash + 1);
  }
  return IsHexDigits(name, kContainerIdDigits) ? std::string(name) : std::string();
}

CgroupIdentity ParsePath(std::string_view path) {
  CgroupIdentity found;
  QosClass folder_qos = QosClass::kUnknown;  // cgroupfs: by the folders passed.
  while (!path.empty()) {
    const size_t slash = path.find('/');
    std::string_view name = path.substr(0, slash);
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
    // Below it every user makes cgroups of any name.
    if (name == "user.slice") return {};
    // containerd with its own cgroupfs driver under a kubelet that uses systemd:
    // "<pod's slice>:cri-containerd:<id>" as one name.
    std::string_view tail;
    if (const size_t colon = name.find(':'); colon != std::string_view::npos) {
      tail = name.substr(name.rfind(':') + 1);
      name = name.substr(0, colon);
    }
    if (found.pod_uid.empty()) {
      if (name == "kubepods") folder_qos = QosClass::kGuaranteed;
      if (name == "burstable") folder_qos = QosClass::kBurstable;
      if (name == "besteffort") folder_qos = QosClass::kBestEffort;
      std::string_view slice = name;
      const bool systemd = Cut(&slice, ".slice");
      // From within another cgroup namespace the folders above may be out of sight, the one of the
      // pod is not; so "pod<uid>" counts without "kubepods" before it.
      QosClass qos = folder_qos;
      if (systemd || slice.starts_with("pod")) found.pod_uid = PodUidOf(slice, &qos);
      if (!found.pod_uid.empty()) {
        found.qos = qos;
        // An id before the pod was that of a container in which the whole node runs.
        found.container_id = ContainerIdOf(tail);
        if (!found.container_id.empty()) return found;
        continue;
      }
    }
    if (!found.container_id.empty()) continue;
    found.container_id = ContainerIdOf(name);
    // What lies below the pod's container is its own business.
    if (!found.pod_uid.empty() && !found.container_id.empty()) return found;
  }
  return found;
}

}  // namespace

CgroupIdentity ParseCgroup(std::string_view text) {
  CgroupIdentity identity;
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    std::string_view line = text.substr(0, newline);
    text = newline == std::string_view::npos ? std::string_view() : text.substr(newline + 1);
    // "<hierarchy>:<controllers>:<path>"; the path may contain colons.
    const size_t first = line.find(':');
    if (first == std::string_view::npos) continue;
    const size_t second = line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    std::string_view path = line.substr(second + 1);
    Cut(&path, " (deleted)");
    const CgroupIdentity found = ParsePath(path);
    if (found.pod_uid.empty() && found.container_id.empty()) continue;
    // v1: one line per hierarchy. One that says less is no contradiction, one that says something
    // else is.
    if (!found.pod_uid.empty()) {
      if (!identity.pod_uid.empty() && identity.pod_uid != found.pod_uid) return {};
      identity.pod_uid = found.pod_uid;
      if (found.qos != QosClass::kUnknown) identity.qos = found.qos;
    }
    if (!found.container_id.empty()) {
      if (!identity.container_id.empty() && identity.container_id != found.container_id) return {};
      identity.container_id = found.container_id;
    }
  }
  return identity;
}

}  // namespace rubato::kube
