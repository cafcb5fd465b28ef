// Kubernetes events about pods: what `kubectl describe pod` shows.
//
// core/v1, not events.k8s.io/v1: both are one kind of object to the server, but every kubectl shows
// count and age of a repeated event from core/v1's fields, it needs no action or series to be made
// up, and its rule in the chart is one line (events: create, patch).
//
// Never blocks and never fails its caller: a repetition within a window raises the count of the
// event that exists (PATCH), rates are limited per pod and in all, the queue is bounded, and what
// is lost is counted. On the loop's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <tuple>

#include "agent/kube/api_transport.h"
#include "agent/kube/timers.h"
#include "agent/kube/token_bucket.h"

namespace rubato::kube {

struct PodEvent {
  enum class Type : uint8_t { kNormal, kWarning };
  std::string name_space;
  std::string pod;
  std::string pod_uid;
  std::string container;  // Empty: the pod as a whole.
  Type type = Type::kNormal;
  std::string reason;   // UpperCamel, one word, stable: "RealtimeAdmitted".
  std::string message;  // One line; what is longer than 1024 bytes is cut.
};

class EventRecorder {
 public:
  struct Options {
    std::string node_name;
    std::string component = "rubato-agent";
    TokenBucket::Rate per_pod = {.burst = 10, .interval_ns = 30 * base::kSecond};
    TokenBucket::Rate in_all = {.burst = 50, .interval_ns = 200 * base::kMillisecond};
    base::Nanos repeat_window_ns = 600 * base::kSecond;
    // At least so long between two PATCHes of one event; repetitions are summed up meanwhile.
    base::Nanos repeat_interval_ns = 30 * base::kSecond;
    size_t queue_limit = 256;   // Events that wait to be sent.
    size_t known_limit = 1024;  // Events whose repetitions are recognised, and pods with a rate.
  };

  struct Counts {
    uint64_t recorded = 0;  // Calls of Record().
    uint64_t sent = 0;      // POSTs that the server accepted.
    uint64_t repeated = 0;  // Joined to an event that exists or waits.
    uint64_t patched = 0;
    uint64_t lost_rate = 0;    // Above the pod's rate.
    uint64_t lost_queue = 0;   // The queue was full.
    uint64_t lost_server = 0;  // The server refused, or could not be reached for too long.
    uint64_t lost() const { return lost_rate + lost_queue + lost_server; }
  };

  // `client` repeats what fails for a while (an ApiClient); both outlive this.
  EventRecorder(ApiTransport* client, Timers* timers, Options options);
  ~EventRecorder();
  EventRecorder(const EventRecorder&) = delete;
  EventRecorder& operator=(const EventRecorder&) = delete;

  void Record(PodEvent event);
  // Nothing waits to be sent and nothing is under way: a daemon that ends may go.
  bool idle() const { return queue_.empty() && request_ == 0; }
  const Counts& counts() const { return counts_; }

 private:
  using Key = std::tuple<std::string, std::string, PodEvent::Type, std::string, std::string>;
  struct Known {
    PodEvent event;
    std::string name;         // Of the object; empty until one was sent.
    bool exists = false;      // The server has accepted it.
    uint64_t count = 0;       // What happened.
    uint64_t sent_count = 0;  // What the server knows of it.
    base::Nanos first_unix_ns = 0;
    base::Nanos last_unix_ns = 0;
    base::Nanos last_ns = 0;  // The newest repetition.
    base::Nanos sent_ns = 0;
    bool queued = false;
    bool sending = false;
  };

  void Pump();
  void Send(const Key& key);
  void Done(const Key& key, bool patch, uint64_t count, const ApiAnswer& answer);
  void Enqueue(const Key& key, Known* known);
  void QueueRepeats();
  void MakeRoom();
  std::string NewName(const PodEvent& event);

  ApiTransport* client_;
  Timers* timers_;
  Options options_;
  Counts counts_;
  TokenBucket in_all_;
  std::map<std::string, TokenBucket> per_pod_;  // By uid.
  std::map<Key, Known> known_;
  std::deque<Key> queue_;
  base::Nanos named_unix_ns_ = 0;  // In the newest object's name.
  ApiTransport::RequestId request_ = 0;
  Timers::TimerId pump_timer_ = 0;    // Until the next token.
  Timers::TimerId repeat_timer_ = 0;  // Until repetitions may be told.
};

}  // namespace rubato::kube
