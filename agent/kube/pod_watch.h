// The pods of this node that ask for the resource, kept up to date by list and watch.
//
// A paginated list, then a watch from its resource version with bookmarks; a watch that ends is
// resumed where it was, and only 410 (as an answer or as an event) brings a new list. Bytes are
// read as they come: a page and a stream are cut into objects on the way, so memory holds one
// object (bounded) and the pods that concern us. On the loop's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "agent/kube/api_transport.h"
#include "agent/kube/backoff.h"
#include "agent/kube/object_splitter.h"
#include "agent/kube/pod.h"
#include "agent/kube/timers.h"

namespace rubato::kube {

class PodWatch {
 public:
  enum class Change : uint8_t { kAdded, kChanged, kDeleted };
  // The pod as it is now; for kDeleted as it last was. A pod that takes the name of another is
  // deleted and added. May look at the watch, but not stop or destroy it.
  using OnChange = std::function<void(Change, const Pod&)>;

  struct Options {
    std::string node_name;
    PodSelection selection;
    uint32_t page_limit = 100;
    base::Nanos watch_ns = 300 * base::kSecond;  // Asked of the server; up to a fifth is added.
    base::Nanos list_timeout_ns = 60 * base::kSecond;
    Backoff::Limits backoff;
    size_t max_object_bytes = size_t{2} << 20;
  };

  struct Counts {
    uint64_t lists = 0;  // Complete ones.
    uint64_t watches = 0;
    uint64_t events = 0;
    uint64_t bookmarks = 0;
    uint64_t expired = 0;           // 410 of any kind.
    uint64_t disconnects = 0;       // Watches and lists that ended in any other way than in peace.
    uint64_t oversize_objects = 0;  // Passed over.
    uint64_t malformed_objects = 0;
    uint64_t bytes = 0;
    // Pods of this node that do not ask for the resource, now.
    uint64_t other_pods = 0;
  };

  // `transport` makes one attempt per request (not an ApiClient); both outlive this.
  PodWatch(ApiTransport* transport, Timers* timers, RandomSource random, Options options,
           OnChange on_change, std::function<void()> on_synced = nullptr);
  ~PodWatch();
  PodWatch(const PodWatch&) = delete;
  PodWatch& operator=(const PodWatch&) = delete;

  void Start();
  void Stop();  // Pods stay as they were last seen.

  // A whole list has been read since Start(). Pods that were missing from it are gone for sure.
  bool synced() const { return synced_; }
  // When the server was last heard of (an object, a bookmark, a whole list or the end of a watch);
  // 0: never. What pods() says is at least this new.
  base::Nanos heard_ns() const { return heard_ns_; }
  // Why the last attempt failed, one line; empty once the server is heard again.
  const std::string& trouble() const { return trouble_; }
  const Counts& counts() const { return counts_; }

  const Pod* Find(std::string_view name_space, std::string_view name) const;
  // By the API server's uid, or a static pod's own.
  const Pod* FindUid(std::string_view uid) const;
  // Keyed by namespace and name.
  using Pods = std::map<std::pair<std::string, std::string>, Pod, std::less<>>;
  const Pods& pods() const { return pods_; }

 private:
  enum class State : uint8_t { kStopped, kWaiting, kListing, kWatching };

  void List();
  bool ListObject(std::string_view json);
  void ListDone(const ApiAnswer& answer);
  void Watch();
  bool WatchObject(std::string_view json);
  void WatchDone(const ApiAnswer& answer);
  // List() or Watch(), as the resource version says, after `wait_ns`.
  void Again(base::Nanos wait_ns);
  void Expired();
  void Fail(const char* what, const ApiAnswer& answer);
  void Heard();
  void Put(Pod pod);
  void Remove(const std::pair<std::string, std::string>& key);
  void Replace();

  ApiTransport* transport_;
  Timers* timers_;
  RandomSource random_;
  Options options_;
  OnChange on_change_;
  std::function<void()> on_synced_;
  Backoff backoff_;

  State state_ = State::kStopped;
  bool synced_ = false;
  base::Nanos heard_ns_ = 0;
  std::string trouble_;
  Counts counts_;
  Pods pods_;

  ApiTransport::RequestId request_ = 0;
  Timers::TimerId timer_ = 0;
  ObjectSplitter splitter_;
  std::string resource_version_;  // To watch from; empty: list first.

  // The list under way.
  std::string continue_;  // Its next page.
  Pods listed_;
  uint64_t listed_others_ = 0;
  bool listed_all_ = true;      // No object was passed over.
  uint32_t page_expiries_ = 0;  // Lists in a row that expired between two pages.

  // The watch under way.
  base::Nanos watch_started_ns_ = 0;
  bool watch_spoke_ = false;  // It has brought something good.
  bool gone_ = false;         // It has said 410.
  uint32_t bad_watches_ = 0;  // Refused or garbled ones in a row.
};

}  // namespace rubato::kube
