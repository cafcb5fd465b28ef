// A pod, as far as the agent needs it, and how one is read from the API server's JSON.
//
// The JSON is read by events, never as a tree: of 10 KiB only a few hundred bytes are kept. Its
// frame comes from the API server, much of its text from tenants: every length, count and depth
// is bounded here, and unknown fields of any shape are passed over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace rubato::kube {

enum class PodPhase : uint8_t { kUnknown, kPending, kRunning, kSucceeded, kFailed };

enum class ContainerKind : uint8_t {
  kMain,
  kInit,     // Runs to its end before the main ones; its slots are handed on to them.
  kSidecar,  // An init container that restarts always: lives beside the main ones.
};

struct PodContainer {
  std::string name;
  ContainerKind kind = ContainerKind::kMain;
  uint64_t slots = 0;  // Limit of the resource; 0: asks for none.
  // From the status, without the runtime's scheme; empty until the container was made. Of the
  // newest start.
  std::string container_id;

  bool operator==(const PodContainer&) const = default;
};

struct PodOwner {  // The owner that controls the pod; empty for a bare pod.
  std::string kind;
  std::string name;

  bool operator==(const PodOwner&) const = default;
};

struct Pod {
  // Of our own domain only: "rubato.dev/..." and "<container>.rubato.dev/...". A value longer than
  // kMaxAnnotationBytes is kept cut to one byte more, which no reader accepts.
  using Annotations = std::map<std::string, std::string, std::less<>>;

  std::string name_space;
  std::string name;
  std::string uid;
  // Of a static pod: what its cgroup and the kubelet call it (the API server's uid is the
  // mirror's).
  std::string static_uid;
  std::string node;
  PodPhase phase = PodPhase::kUnknown;
  bool deleting = false;                 // A deletion was asked for; its containers may still run.
  std::vector<PodContainer> containers;  // All of them, init containers first.
  Annotations annotations;
  PodOwner owner;

  bool operator==(const Pod&) const = default;

  bool finished() const { return phase == PodPhase::kSucceeded || phase == PodPhase::kFailed; }
  bool asks() const;  // Some container asks for the resource.
  const PodContainer* Find(std::string_view container) const;  // nullptr: has none of that name.
};

inline constexpr size_t kMaxAnnotationBytes = 256;

// What makes a pod one of ours.
struct PodSelection {
  std::string resource = "rubato.dev/gpu";
  std::string annotation_domain = "rubato.dev";
};

// What one JSON object of a watch stream, or one item of a list, says.
struct PodObject {
  enum class Type : uint8_t { kAdded, kModified, kDeleted, kBookmark, kError, kOther };
  Type type = Type::kOther;  // Of items of a list: kAdded.
  std::string resource_version;
  // Complete if the pod asks for the resource. Otherwise names and uid are there, and the rest may
  // be missing: reading stops as soon as it is clear that the pod does not concern us.
  Pod pod;
  // kError: the code and reason of the Status object.
  int error_code = 0;
  std::string error_reason;
  std::string error_message;
};

// {"type": "ADDED", "object": {...}}
base::Result<PodObject> ReadWatchEvent(std::string_view json, const PodSelection& selection);
// {"metadata": {...}, "spec": {...}, "status": {...}}
base::Result<PodObject> ReadPod(std::string_view json, const PodSelection& selection);

}  // namespace rubato::kube
