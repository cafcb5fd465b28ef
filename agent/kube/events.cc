#include "agent/kube/events.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

namespace rubato::kube {
namespace {

constexpr size_t kMaxMessage = 1024;
constexpr size_t kMaxReason = 128;
constexpr size_t kMaxName = 253;
constexpr int kConflict = 409;
constexpr int kNotFound = 404;

// "2026-01-31T12:00:00Z"
std::string Timestamp(base::Nanos unix_ns) {
  const auto seconds = static_cast<time_t>(unix_ns / base::kSecond);
  tm parts{};
  gmtime_r(&seconds, &parts);
  std::array<char, 32> text{};
  const size_t length = strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return {text.data(), length};
}

// At most `limit` bytes, not ending within a character, without line breaks and control characters.
std::string OneLine(std::string_view text, size_t limit) {
  if (text.size() > limit) {
    text = text.substr(0, limit);
    while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80)
      text.remove_suffix(1);
    if (!text.empty() && static_cast<unsigned char>(text.back()) >= 0xC0) text.remove_suffix(1);
  }
  std::string line(text);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7F) c = ' ';
  }
  return line;
}

std::string Dump(const nlohmann::json& json) {
  // Text that is no UTF-8 is mended rather than thrown about.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

const char* TypeName(PodEvent::Type type) {
  return type == PodEvent::Type::kWarning ? "Warning" : "Normal";
}

}  // namespace

EventRecorder::EventRecorder(ApiTransport* client, Timers* timers, Options options)
    : client_(client), timers_(timers), options_(std::move(options)), in_all_(options_.in_all) {}

EventRecorder::~EventRecorder() {
  client_->Cancel(request_);
  timers_->RemoveTimer(pump_timer_);
  timers_->RemoveTimer(repeat_timer_);
}

void EventRecorder::Record(PodEvent event) {
  ++counts_.recorded;
  event.message = OneLine(event.message, kMaxMessage);
  event.reason = OneLine(event.reason, kMaxReason);
  const base::Nanos now_ns = timers_->NowNs();
  Key key(event.pod_uid, event.container, event.type, event.reason, event.message);
  if (const auto found = known_.find(key); found != known_.end()) {
    Known& known = found->second;
    if (known.queued || known.sending || now_ns - known.last_ns <= options_.repeat_window_ns) {
      ++counts_.repeated;
      ++known.count;
      known.last_ns = now_ns;
      known.last_unix_ns = timers_->UnixNs();
      QueueRepeats();
      return;
    }
    // So long ago that it is news again, as an object of its own.
    known_.erase(found);
  }
  const auto bucket = per_pod_.try_emplace(event.pod_uid, options_.per_pod).first;
  if (!bucket->second.Take(now_ns)) {
    ++counts_.lost_rate;
    return;
  }
  if (queue_.size() >= options_.queue_limit) {
    ++counts_.lost_queue;
    return;
  }
  MakeRoom();
  Known& known = known_[key];
  known.event = std::move(event);
  known.count = 1;
  known.first_unix_ns = known.last_unix_ns = timers_->UnixNs();
  known.last_ns = now_ns;
  Enqueue(key, &known);
  Pump();
}

void EventRecorder::Enqueue(const Key& key, Known* known) {
  known->queued = true;
  queue_.push_back(key);
}

// Events with repetitions that the server has not heard of, where the interval is over.
void EventRecorder::QueueRepeats() {
  timers_->RemoveTimer(std::exchange(repeat_timer_, 0));
  const base::Nanos now_ns = timers_->NowNs();
  base::Nanos next_ns = 0;
  for (auto& [key, known] : known_) {
    if (!known.exists || known.queued || known.sending || known.count == known.sent_count) continue;
    const base::Nanos due_ns = known.sent_ns + options_.repeat_interval_ns;
    if (due_ns > now_ns) {
      next_ns = next_ns == 0 ? due_ns : std::min(next_ns, due_ns);
    } else if (queue_.size() < options_.queue_limit) {
      Enqueue(key, &known);
    } else {
      next_ns = now_ns + options_.repeat_interval_ns;
    }
  }
  if (next_ns != 0) {
    repeat_timer_ = timers_->AddTimer(next_ns, [this] {
      repeat_timer_ = 0;
      QueueRepeats();
    });
  }
  Pump();
}

// Forgets the oldest where there are too many; their repetitions become new events.
void EventRecorder::MakeRoom() {
  const base::Nanos now_ns = timers_->NowNs();
  if (known_.size() >= options_.known_limit) {
    auto oldest = known_.end();
    for (auto it = known_.begin(); it != known_.end(); ++it) {
      if (it->second.queued || it->second.sending || it->second.count != it->second.sent_count)
        continue;
      if (oldest == known_.end() || it->second.last_ns < oldest->second.last_ns) oldest = it;
    }
    if (oldest != known_.end()) known_.erase(oldest);
  }
  if (per_pod_.size() > options_.known_limit) {
    // A full bucket is as good as a new one.
    std::erase_if(per_pod_, [&](auto& entry) { return entry.second.full(now_ns); });
  }
}

void EventRecorder::Pump() {
  if (request_ != 0 || queue_.empty()) return;
  const base::Nanos now_ns = timers_->NowNs();
  if (!in_all_.Take(now_ns)) {
    if (pump_timer_ == 0) {
      pump_timer_ = timers_->AddTimer(in_all_.NextNs(now_ns), [this] {
        pump_timer_ = 0;
        Pump();
      });
    }
    return;
  }
  const Key key = std::move(queue_.front());
  queue_.pop_front();
  Send(key);
}

// In the form that Kubernetes' own events have: the pod's name and an instant, no two alike.
std::string EventRecorder::NewName(const PodEvent& event) {
  named_unix_ns_ = std::max(timers_->UnixNs(), named_unix_ns_ + 1);
  std::array<char, 24> suffix{};
  std::snprintf(suffix.data(), suffix.size(), ".%llx",
                static_cast<unsigned long long>(named_unix_ns_));  // NOLINT
  std::string name = event.pod.substr(0, kMaxName - suffix.size());
  while (!name.empty() && (name.back() == '-' || name.back() == '.')) name.pop_back();
  return name + suffix.data();
}

void EventRecorder::Send(const Key& key) {
  Known& known = known_.at(key);
  known.queued = false;
  known.sending = true;
  const PodEvent& event = known.event;
  ApiRequest request;
  const std::string folder = "/api/v1/namespaces/" + UrlEscape(event.name_space) + "/events";
  const bool patch = known.exists;
  const uint64_t count = known.count;
  if (patch) {
    request.method = Method::kPatch;
    request.path = folder + "/" + UrlEscape(known.name);
    request.content_type = "application/merge-patch+json";
    request.body = Dump({{"count", count}, {"lastTimestamp", Timestamp(known.last_unix_ns)}});
  } else {
    known.name = NewName(event);
    nlohmann::json object = {
        {"apiVersion", "v1"},
        {"kind", "Event"},
        {"metadata", {{"name", known.name}, {"namespace", event.name_space}}},
        {"involvedObject",
         {{"apiVersion", "v1"},
          {"kind", "Pod"},
          {"namespace", event.name_space},
          {"name", event.pod},
          {"uid", event.pod_uid}}},
        {"reason", event.reason},
        {"message", event.message},
        {"type", TypeName(event.type)},
        {"count", count},
        {"firstTimestamp", Timestamp(known.first_unix_ns)},
        {"lastTimestamp", Timestamp(known.last_unix_ns)},
        {"source", {{"component", options_.component}, {"host", options_.node_name}}},
        {"reportingComponent", options_.component},
        {"reportingInstance", options_.node_name},
    };
    if (!event.container.empty())
      object["involvedObject"]["fieldPath"] = "spec.containers{" + event.container + "}";
    request.method = Method::kPost;
    request.path = folder;
    request.content_type = "application/json";
    request.body = Dump(object);
  }
  request_ = client_->Start(std::move(request), [this, key, patch, count](const ApiAnswer& answer) {
    request_ = 0;
    Done(key, patch, count, answer);
  });
}

void EventRecorder::Done(const Key& key, bool patch, uint64_t count, const ApiAnswer& answer) {
  const auto found = known_.find(key);
  if (found != known_.end()) {
    Known& known = found->second;
    known.sending = false;
    const bool answered = answer.end == ApiAnswer::End::kAnswered;
    // An attempt whose answer was lost had been accepted.
    const bool accepted = answer.ok() || (!patch && answered && answer.status == kConflict);
    known.sent_ns = timers_->NowNs();
    if (accepted) {
      ++(patch ? counts_.patched : counts_.sent);
      known.exists = true;
      known.sent_count = count;
    } else if (patch && answered && answer.status == kNotFound) {
      // The server keeps events for an hour. The rest is told by a new one.
      known.exists = false;
      known.count -= known.sent_count;
      known.sent_count = 0;
      known.first_unix_ns = known.last_unix_ns;
      if (!known.queued) Enqueue(key, &known);
    } else {
      counts_.lost_server += known.count - known.sent_count;
      known_.erase(found);
    }
  }
  QueueRepeats();
}

}  // namespace rubato::kube
