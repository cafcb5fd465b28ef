#include "agent/kube/pod_watch.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace rubato::kube {
namespace {

// Beyond what the watch asked the server for.
constexpr base::Nanos kWatchGrace = 30 * base::kSecond;
// A watch that ends sooner without a word is not worth being asked for again at once.
constexpr base::Nanos kShortWatch = base::kSecond;
constexpr int kGone = 410;
constexpr int kBadRequest = 400;
// Then a list is tried: a server restored from a backup knows no later version for a long time.
constexpr uint32_t kMaxBadWatches = 5;
constexpr uint32_t kMaxPageExpiries = 2;

struct ListMetadata {
  std::string resource_version;
  std::string next;
};

// From the document of a list without its items.
base::Result<ListMetadata> ReadListFrame(const std::string& frame) {
  const nlohmann::json document = nlohmann::json::parse(frame, nullptr, false);
  if (!document.is_object()) return base::Error{base::ErrorCode::kInvalid, "not JSON"};
  const auto metadata = document.find("metadata");
  if (metadata == document.end() || !metadata->is_object())
    return base::Error{base::ErrorCode::kInvalid, "no list"};
  ListMetadata read;
  for (const auto& [key, out] :
       {std::pair("resourceVersion", &read.resource_version), std::pair("continue", &read.next)}) {
    const auto value = metadata->find(key);
    if (value != metadata->end() && value->is_string()) *out = value->get<std::string>();
  }
  if (read.resource_version.empty())
    return base::Error{base::ErrorCode::kInvalid, "a list without a resource version"};
  return read;
}

// What an answer that is no success says, in one line.
std::string Describe(const ApiAnswer& answer) {
  if (answer.end != ApiAnswer::End::kAnswered) {
    return answer.error.empty() ? "the answer cannot be read" : answer.error;
  }
  std::string text = "HTTP status " + std::to_string(answer.status);
  const nlohmann::json status = nlohmann::json::parse(answer.body, nullptr, false);
  if (status.is_object()) {
    const auto message = status.find("message");
    if (message != status.end() && message->is_string())
      text += ": " + message->get<std::string>().substr(0, 256);
  }
  return text;
}

}  // namespace

PodWatch::PodWatch(ApiTransport* transport, Timers* timers, RandomSource random, Options options,
                   OnChange on_change, std::function<void()> on_synced)
    : transport_(transport),
      timers_(timers),
      random_(std::move(random)),
      options_(std::move(options)),
      on_change_(std::move(on_change)),
      on_synced_(std::move(on_synced)),
      backoff_(options_.backoff, random_),
      splitter_(options_.max_object_bytes) {}

PodWatch::~PodWatch() {
  Stop();
}

void PodWatch::Start() {
  if (state_ != State::kStopped) return;
  backoff_.Reset();
  Again(0);
}

void PodWatch::Stop() {
  transport_->Cancel(std::exchange(request_, 0));
  timers_->RemoveTimer(std::exchange(timer_, 0));
  continue_.clear();
  listed_.clear();
  state_ = State::kStopped;
}

const Pod* PodWatch::Find(std::string_view name_space, std::string_view name) const {
  const auto found = pods_.find(std::pair(std::string(name_space), std::string(name)));
  return found == pods_.end() ? nullptr : &found->second;
}

const Pod* PodWatch::FindUid(std::string_view uid) const {
  if (uid.empty()) return nullptr;
  for (const auto& [key, pod] : pods_) {
    if (pod.uid == uid || pod.static_uid == uid) return &pod;
  }
  return nullptr;
}

void PodWatch::Again(base::Nanos wait_ns) {
  state_ = State::kWaiting;
  timer_ = timers_->AddTimer(timers_->NowNs() + wait_ns, [this] {
    timer_ = 0;
    if (resource_version_.empty()) {
      List();
    } else {
      Watch();
    }
  });
}

void PodWatch::Heard() {
  heard_ns_ = timers_->NowNs();
  trouble_.clear();
}

void PodWatch::Fail(const char* what, const ApiAnswer& answer) {
  trouble_ = std::string(what) + ": " + Describe(answer);
  ++counts_.disconnects;
  Again(backoff_.Next(answer.retry_after_ns));
}

void PodWatch::Expired() {
  ++counts_.expired;
  resource_version_.clear();
  continue_.clear();
  Again(backoff_.Next());
}

void PodWatch::List() {
  state_ = State::kListing;
  std::string path =
      "/api/v1/pods?fieldSelector=" + UrlEscape("spec.nodeName=" + options_.node_name);
  if (continue_.empty()) {
    listed_.clear();
    listed_others_ = 0;
    listed_all_ = true;
    // The first list comes from the server's cache, as the kubelet's does: a thousand agents that
    // start together must not read all pods of the cluster from its database. It may be old, and
    // the watch from there brings it up to date; but a later list must not go back in time.
    if (!synced_ && counts_.expired == 0) path += "&resourceVersion=0";
  }
  if (page_expiries_ < kMaxPageExpiries) path += "&limit=" + std::to_string(options_.page_limit);
  if (!continue_.empty()) path += "&continue=" + UrlEscape(continue_);
  splitter_.Start(ObjectSplitter::Shape::kItems,
                  [this](std::string_view json) { return ListObject(json); });
  ApiRequest request;
  request.path = std::move(path);
  request.timeout_ns = options_.list_timeout_ns;
  request.on_data = [this](std::string_view bytes) {
    counts_.bytes += bytes.size();
    return splitter_.Feed(bytes);
  };
  request_ = transport_->Start(std::move(request), [this](const ApiAnswer& answer) {
    request_ = 0;
    ListDone(answer);
  });
}

bool PodWatch::ListObject(std::string_view json) {
  auto object = ReadPod(json, options_.selection);
  if (!object) {
    ++counts_.malformed_objects;
    listed_all_ = false;
    return true;
  }
  Pod& pod = object->pod;
  if (!pod.asks() || pod.node != options_.node_name) {
    ++listed_others_;
    return true;
  }
  std::pair key(pod.name_space, pod.name);
  listed_.insert_or_assign(std::move(key), std::move(pod));
  return true;
}

void PodWatch::ListDone(const ApiAnswer& answer) {
  if (answer.end == ApiAnswer::End::kAnswered && answer.status == kGone) {
    if (!continue_.empty()) ++page_expiries_;
    Expired();
    return;
  }
  if (splitter_.oversize() > 0) {
    counts_.oversize_objects += splitter_.oversize();
    listed_all_ = false;
  }
  if (!answer.ok() || !splitter_.complete()) {
    continue_.clear();
    Fail("cannot list the node's pods", answer);
    return;
  }
  auto metadata = ReadListFrame(splitter_.frame());
  if (!metadata) {
    continue_.clear();
    ApiAnswer broken;
    broken.error = metadata.error().message;
    Fail("cannot list the node's pods", broken);
    return;
  }
  Heard();
  if (!metadata->next.empty()) {
    continue_ = std::move(metadata->next);
    List();
    return;
  }
  continue_.clear();
  page_expiries_ = 0;
  resource_version_ = std::move(metadata->resource_version);
  ++counts_.lists;
  Replace();
  if (!std::exchange(synced_, true) && on_synced_) on_synced_();
  Watch();
}

// What was listed takes the place of what was known.
void PodWatch::Replace() {
  counts_.other_pods = listed_others_;
  std::vector<std::pair<std::string, std::string>> gone;
  for (const auto& [key, pod] : pods_) {
    // After an object that could not be read nobody knows whether it was this pod.
    if (listed_all_ && !listed_.contains(key)) gone.push_back(key);
  }
  for (const auto& key : gone) Remove(key);
  Pods listed = std::exchange(listed_, {});
  for (auto& [key, pod] : listed) Put(std::move(pod));
}

void PodWatch::Put(Pod pod) {
  std::pair key(pod.name_space, pod.name);
  auto found = pods_.find(key);
  if (found != pods_.end() && found->second.uid != pod.uid) {
    Remove(key);
    found = pods_.end();
  }
  if (found == pods_.end()) {
    found = pods_.emplace(std::move(key), std::move(pod)).first;
    on_change_(Change::kAdded, found->second);
    return;
  }
  if (found->second == pod) return;
  found->second = std::move(pod);
  on_change_(Change::kChanged, found->second);
}

void PodWatch::Remove(const std::pair<std::string, std::string>& key) {
  auto node = pods_.extract(key);
  if (!node.empty()) on_change_(Change::kDeleted, node.mapped());
}

void PodWatch::Watch() {
  state_ = State::kWatching;
  ++counts_.watches;
  // Spread, so that not all nodes' watches end together forever after they began together.
  const auto seconds =
      static_cast<uint64_t>(std::max<base::Nanos>(1, options_.watch_ns / base::kSecond));
  const uint64_t asked = seconds + random_() % (seconds / 5 + 1);
  splitter_.Start(ObjectSplitter::Shape::kLines,
                  [this](std::string_view json) { return WatchObject(json); });
  watch_started_ns_ = timers_->NowNs();
  watch_spoke_ = false;
  gone_ = false;
  ApiRequest request;
  request.path = "/api/v1/pods?watch=1&allowWatchBookmarks=true&fieldSelector=" +
                 UrlEscape("spec.nodeName=" + options_.node_name) +
                 "&resourceVersion=" + UrlEscape(resource_version_) +
                 "&timeoutSeconds=" + std::to_string(asked);
  request.timeout_ns = static_cast<base::Nanos>(asked) * base::kSecond + kWatchGrace;
  request.on_data = [this](std::string_view bytes) {
    counts_.bytes += bytes.size();
    return splitter_.Feed(bytes);
  };
  request_ = transport_->Start(std::move(request), [this](const ApiAnswer& answer) {
    request_ = 0;
    WatchDone(answer);
  });
}

bool PodWatch::WatchObject(std::string_view json) {
  auto object = ReadWatchEvent(json, options_.selection);
  if (!object) {
    // Not an object that is too strange, but a stream that cannot be trusted: from the last good
    // version again.
    ++counts_.malformed_objects;
    trouble_ = "cannot read the watch of the node's pods: " + object.error().message;
    return false;
  }
  if (object->type == PodObject::Type::kError) {
    gone_ = object->error_code == kGone || object->error_reason == "Expired" ||
            object->error_reason == "Gone";
    trouble_ =
        "the watch of the node's pods ended: " + object->error_reason + " " + object->error_message;
    return false;
  }
  watch_spoke_ = true;
  bad_watches_ = 0;
  backoff_.Reset();
  Heard();
  Pod& pod = object->pod;
  const bool ours = pod.asks() && pod.node == options_.node_name;
  std::pair key(pod.name_space, pod.name);
  switch (object->type) {
    case PodObject::Type::kAdded:
    case PodObject::Type::kModified:
      ++counts_.events;
      if (ours) {
        Put(std::move(pod));
      } else {
        Remove(key);
        if (object->type == PodObject::Type::kAdded) ++counts_.other_pods;
      }
      break;
    case PodObject::Type::kDeleted: {
      ++counts_.events;
      const auto known = pods_.find(key);
      if (known == pods_.end()) {
        if (!ours && counts_.other_pods > 0) --counts_.other_pods;
      } else if (known->second.uid == pod.uid) {
        Remove(key);
      }
      break;
    }
    case PodObject::Type::kBookmark:
      ++counts_.bookmarks;
      break;
    case PodObject::Type::kError:
    case PodObject::Type::kOther:
      break;
  }
  if (!object->resource_version.empty()) resource_version_ = std::move(object->resource_version);
  return true;
}

void PodWatch::WatchDone(const ApiAnswer& answer) {
  counts_.oversize_objects += splitter_.oversize();
  const bool answered = answer.end == ApiAnswer::End::kAnswered;
  if (gone_ || (answered && (answer.status == kGone || answer.status == kBadRequest))) {
    Expired();
    return;
  }
  if (answer.ok()) {
    Heard();
    const bool shortly = timers_->NowNs() - watch_started_ns_ < kShortWatch;
    Again(shortly && !watch_spoke_ ? backoff_.Next() : 0);
    return;
  }
  // Cut off is not refused: then nothing speaks against the version.
  if (answer.end != ApiAnswer::End::kNoAnswer && !watch_spoke_ &&
      ++bad_watches_ >= kMaxBadWatches) {
    bad_watches_ = 0;
    resource_version_.clear();
  }
  if (answer.end == ApiAnswer::End::kStopped) {
    ++counts_.disconnects;  // `trouble_` says why.
    Again(backoff_.Next());
    return;
  }
  Fail("cannot watch the node's pods", answer);
}

}  // namespace rubato::kube
