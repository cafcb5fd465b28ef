#include "agent/kube/pod.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "agent/kube/quantity.h"

namespace rubato::kube {
namespace {

// Far above what the API server lets through; a server that sends more is not obeyed.
constexpr size_t kMaxDepth = 100;
constexpr size_t kMaxName = 253;
constexpr size_t kMaxUid = 128;
constexpr size_t kMaxContainers = 512;
constexpr size_t kMaxAnnotations = 512;
constexpr size_t kMaxMessage = 256;

constexpr std::string_view kMirrorAnnotation = "kubernetes.io/config.hash";

// Where in the document the reader is. Everything that is not named here is passed over.
enum class Place : uint8_t {
  kRoot,
  kEvent,
  kObject,
  kMetadata,
  kAnnotations,
  kOwners,
  kOwner,
  kSpec,
  kContainers,
  kInitContainers,
  kContainer,
  kInitContainer,
  kResources,
  kLimits,
  kStatus,
  kContainerStatuses,
  kContainerStatus,
};

struct Step {
  Place from;
  std::string_view key;  // Of elements of an array: empty.
  Place to;
  bool array;
};
constexpr std::array<Step, 14> kSteps = {{
    {Place::kEvent, "object", Place::kObject, false},
    {Place::kObject, "metadata", Place::kMetadata, false},
    {Place::kMetadata, "annotations", Place::kAnnotations, false},
    {Place::kMetadata, "ownerReferences", Place::kOwners, true},
    {Place::kOwners, "", Place::kOwner, false},
    {Place::kObject, "spec", Place::kSpec, false},
    {Place::kSpec, "containers", Place::kContainers, true},
    {Place::kSpec, "initContainers", Place::kInitContainers, true},
    {Place::kContainers, "", Place::kContainer, false},
    {Place::kInitContainers, "", Place::kInitContainer, false},
    {Place::kContainer, "resources", Place::kResources, false},
    {Place::kInitContainer, "resources", Place::kResources, false},
    {Place::kResources, "limits", Place::kLimits, false},
    {Place::kObject, "status", Place::kStatus, false},
}};
// Both lists of the status are read alike.
constexpr std::array<std::string_view, 2> kStatusLists = {"containerStatuses",
                                                          "initContainerStatuses"};

PodPhase PhaseOf(std::string_view text) {
  if (text == "Pending") return PodPhase::kPending;
  if (text == "Running") return PodPhase::kRunning;
  if (text == "Succeeded") return PodPhase::kSucceeded;
  if (text == "Failed") return PodPhase::kFailed;
  return PodPhase::kUnknown;
}

PodObject::Type TypeOf(std::string_view text) {
  if (text == "ADDED") return PodObject::Type::kAdded;
  if (text == "MODIFIED") return PodObject::Type::kModified;
  if (text == "DELETED") return PodObject::Type::kDeleted;
  if (text == "BOOKMARK") return PodObject::Type::kBookmark;
  if (text == "ERROR") return PodObject::Type::kError;
  return PodObject::Type::kOther;
}

// Receives the parser's events. A return of false ends the parsing; `done_` tells whether that is
// because all is known.
class PodSax final : public nlohmann::json_sax<nlohmann::json> {
 public:
  PodSax(const PodSelection& selection, bool event, PodObject* out)
      : selection_(selection), event_(event), out_(out) {}

  bool done() const { return done_; }
  bool have_type() const { return have_type_; }
  const std::string& fault() const { return fault_; }
  std::vector<std::pair<std::string, std::string>> TakeStatuses() { return std::move(statuses_); }

  bool null() override { return Scalar(); }
  bool boolean(bool value) override {
    if (depth_ == known_ && place() == Place::kOwner && key_ == "controller")
      owner_controls_ = value;
    return Scalar();
  }
  bool number_integer(number_integer_t value) override {
    if (value >= 0) return number_unsigned(static_cast<number_unsigned_t>(value));
    return Scalar();
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ == known_) {
      if (place() == Place::kObject && key_ == "code" && value < 1000)
        out_->error_code = static_cast<int>(value);
      if (place() == Place::kLimits && key_ == selection_.resource) slots_ = value;
    }
    return Scalar();
  }
  bool number_float(number_float_t, const string_t&) override { return Scalar(); }
  bool binary(binary_t&) override { return Scalar(); }

  bool string(string_t& value) override {
    if (depth_ != known_) return true;
    Pod& pod = out_->pod;
    switch (place()) {
      case Place::kEvent:
        if (key_ == "type") {
          out_->type = TypeOf(value);
          have_type_ = true;
        }
        break;
      case Place::kObject:
        if (key_ == "reason") out_->error_reason = value.substr(0, kMaxMessage);
        if (key_ == "message") out_->error_message = value.substr(0, kMaxMessage);
        break;
      case Place::kMetadata:
        if (key_ == "name") return Keep(value, kMaxName, "metadata.name", &pod.name);
        if (key_ == "namespace")
          return Keep(value, kMaxName, "metadata.namespace", &pod.name_space);
        if (key_ == "uid") return Keep(value, kMaxUid, "metadata.uid", &pod.uid);
        if (key_ == "resourceVersion")
          return Keep(value, kMaxUid, "metadata.resourceVersion", &out_->resource_version);
        if (key_ == "deletionTimestamp") pod.deleting = true;
        break;
      case Place::kAnnotations:
        return Annotation(value);
      case Place::kOwner:
        if (key_ == "kind") owner_.kind = value.substr(0, kMaxName);
        if (key_ == "name") owner_.name = value.substr(0, kMaxName);
        break;
      case Place::kSpec:
        if (key_ == "nodeName") return Keep(value, kMaxName, "spec.nodeName", &pod.node);
        break;
      case Place::kContainer:
      case Place::kInitContainer:
        if (key_ == "name") return Keep(value, kMaxName, "a container's name", &container_.name);
        if (key_ == "restartPolicy" && place() == Place::kInitContainer && value == "Always")
          container_.kind = ContainerKind::kSidecar;
        break;
      case Place::kLimits:
        if (key_ == selection_.resource) {
          const auto slots = ParseQuantity(value);
          if (!slots) return Fault("the limit of " + selection_.resource + " is no number");
          slots_ = *slots;
        }
        break;
      case Place::kStatus:
        if (key_ == "phase") pod.phase = PhaseOf(value);
        break;
      case Place::kContainerStatus:
        if (key_ == "name") status_name_ = value.substr(0, kMaxName);
        if (key_ == "containerID") {
          const size_t scheme = value.find("://");
          status_id_ =
              value.substr(scheme == std::string::npos ? 0 : scheme + 3).substr(0, kMaxUid);
        }
        break;
      case Place::kRoot:
      case Place::kOwners:
      case Place::kContainers:
      case Place::kInitContainers:
      case Place::kResources:
      case Place::kContainerStatuses:
        break;
    }
    return true;
  }

  bool start_object(std::size_t) override { return Enter(false); }
  bool start_array(std::size_t) override { return Enter(true); }
  bool key(string_t& value) override {
    if (depth_ == known_) key_.swap(value);
    return true;
  }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fault("not JSON at byte " + std::to_string(position));
  }

 private:
  Place place() const { return places_[known_]; }
  bool Scalar() { return true; }

  bool Fault(std::string what) {
    fault_ = std::move(what);
    return false;
  }

  bool Keep(const std::string& value, size_t limit, const char* what, std::string* out) {
    if (value.size() > limit) return Fault(std::string(what) + " is too long");
    *out = value;
    return true;
  }

  bool Annotation(const std::string& value) {
    Pod& pod = out_->pod;
    if (key_ == kMirrorAnnotation) {
      if (value.size() <= kMaxUid) pod.static_uid = value;
      return true;
    }
    const std::string_view name = key_;
    const std::string_view domain = selection_.annotation_domain;
    const size_t slash = name.find('/');
    if (slash == std::string_view::npos || slash < domain.size() ||
        name.substr(slash - domain.size(), domain.size()) != domain ||
        (slash > domain.size() && name[slash - domain.size() - 1] != '.'))
      return true;
    if (key_.size() > 2 * kMaxName || pod.annotations.size() >= kMaxAnnotations) return true;
    pod.annotations.insert_or_assign(key_, value.substr(0, kMaxAnnotationBytes + 1));
    return true;
  }

  bool Enter(bool array) {
    if (++depth_ > kMaxDepth) return Fault("nested too deeply");
    if (depth_ != known_ + 1) return true;  // Below something that is passed over.
    Place next = Place::kRoot;
    bool found = false;
    if (known_ == 0) {
      found = !array;
      next = event_ ? Place::kEvent : Place::kObject;
    } else if (place() == Place::kStatus) {
      found = array && (key_ == kStatusLists[0] || key_ == kStatusLists[1]);
      next = Place::kContainerStatuses;
    } else if (place() == Place::kContainerStatuses) {
      found = !array;
      next = Place::kContainerStatus;
    } else {
      for (const Step& step : kSteps) {
        if (step.from != place() || step.array != array) continue;
        if (!step.key.empty() && step.key != key_) continue;
        next = step.to;
        found = true;
        break;
      }
    }
    if (!found) return known_ > 0 || Fault("no object");
    places_[++known_] = next;
    key_.clear();
    Begin(next);
    return true;
  }

  void Begin(Place next) {
    if (next == Place::kOwner) {
      owner_ = {};
      owner_controls_ = false;
    }
    if (next == Place::kContainer || next == Place::kInitContainer) {
      container_ = {};
      if (next == Place::kInitContainer) container_.kind = ContainerKind::kInit;
      slots_ = 0;
    }
    if (next == Place::kContainerStatus) {
      status_name_.clear();
      status_id_.clear();
    }
  }

  bool Leave() {
    if (depth_-- != known_) return true;
    const Place left = place();
    --known_;
    key_.clear();
    Pod& pod = out_->pod;
    switch (left) {
      case Place::kOwner:
        if (owner_controls_) pod.owner = std::move(owner_);
        break;
      case Place::kContainer:
      case Place::kInitContainer:
        if (pod.containers.size() >= kMaxContainers) return Fault("too many containers");
        container_.slots = slots_;
        pod.containers.push_back(std::move(container_));
        break;
      case Place::kContainerStatus:
        if (statuses_.size() < kMaxContainers)
          statuses_.emplace_back(std::move(status_name_), std::move(status_id_));
        break;
      case Place::kMetadata:
        have_metadata_ = true;
        return !NothingMore();
      case Place::kSpec:
        have_spec_ = true;
        return !NothingMore();
      default:
        break;
    }
    return true;
  }

  // A pod that does not ask for the resource: the rest of it is not worth reading. The type of an
  // event comes before its object from every server that there is, but no rule says so.
  bool NothingMore() {
    if (!have_metadata_ || !have_spec_ || out_->pod.asks()) return false;
    if (event_ && !have_type_) return false;
    done_ = true;
    return true;
  }

  const PodSelection& selection_;
  const bool event_;
  PodObject* const out_;

  // places_[1..known_] is the known part of the path; depth_ counts all of it.
  std::array<Place, 16> places_{};
  size_t known_ = 0;
  size_t depth_ = 0;
  std::string key_;  // The newest key of the innermost known object.

  PodContainer container_;
  uint64_t slots_ = 0;
  PodOwner owner_;
  bool owner_controls_ = false;
  std::string status_name_;
  std::string status_id_;
  std::vector<std::pair<std::string, std::string>> statuses_;
  bool have_type_ = false;
  bool have_metadata_ = false;
  bool have_spec_ = false;
  bool done_ = false;
  std::string fault_;
};

base::Result<PodObject> Read(std::string_view json, const PodSelection& selection, bool event) {
  PodObject object;
  if (!event) object.type = PodObject::Type::kAdded;
  PodSax sax(selection, event, &object);
  try {
    if (!nlohmann::json::sax_parse(json.data(), json.data() + json.size(), &sax) && !sax.done())
      return base::Error{base::ErrorCode::kInvalid, "not a pod: " + sax.fault()};
  } catch (const std::exception& error) {
    return base::Error{base::ErrorCode::kInvalid, std::string("not a pod: ") + error.what()};
  }
  if (event && !sax.have_type())
    return base::Error{base::ErrorCode::kInvalid, "not an event: it has no type"};
  Pod& pod = object.pod;
  for (auto& [name, id] : sax.TakeStatuses()) {
    for (PodContainer& container : pod.containers) {
      if (container.name == name) container.container_id = id;
    }
  }
  // Init containers first, each kind in its order.
  std::stable_partition(
      pod.containers.begin(), pod.containers.end(),
      [](const PodContainer& container) { return container.kind != ContainerKind::kMain; });
  if (object.type == PodObject::Type::kError || object.type == PodObject::Type::kBookmark ||
      object.type == PodObject::Type::kOther)
    return object;
  if (pod.name_space.empty() || pod.name.empty() || pod.uid.empty())
    return base::Error{base::ErrorCode::kInvalid, "not a pod: it has no name, namespace or uid"};
  return object;
}

}  // namespace

bool Pod::asks() const {
  return std::any_of(containers.begin(), containers.end(),
                     [](const PodContainer& container) { return container.slots > 0; });
}

const PodContainer* Pod::Find(std::string_view container) const {
  const auto found = std::find_if(containers.begin(), containers.end(),
                                  [&](const PodContainer& own) { return own.name == container; });
  return found == containers.end() ? nullptr : &*found;
}

base::Result<PodObject> ReadWatchEvent(std::string_view json, const PodSelection& selection) {
  return Read(json, selection, true);
}

base::Result<PodObject> ReadPod(std::string_view json, const PodSelection& selection) {
  return Read(json, selection, false);
}

}  // namespace rubato::kube
