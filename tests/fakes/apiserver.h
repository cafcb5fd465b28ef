// A stand-in for the Kubernetes API server: what the agent asks of it, and its bad days.
//
// Real in what matters to a client: resource versions, a list in pages, watches that resume from a
// version with events of pods that enter and leave the selector, bookmarks, 410 for what is
// compacted, bearer tokens, TLS, HTTP/1.1 with chunks; events and nodes are stored and patched.
// One thread per connection. All functions may be called from any thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "base/unique_fd.h"

struct ssl_ctx_st;

namespace rubato::testing {

class ApiServer {
 public:
  struct Options {
    std::string address = "127.0.0.1";  // Or "::1".
    uint16_t port = 0;                  // 0: any that is free.
    std::string certificate_file;       // Empty: plain HTTP.
    std::string key_file;
    std::string token;  // That requests must carry; empty: any, or none.
  };

  // An answer that takes the place of the right one.
  struct Fault {
    std::string method;       // Empty: every one.
    std::string path_prefix;  // Empty: every one.
    uint32_t count = 1;       // So many requests.
    int status = 0;           // 0: the right answer, after the delay.
    std::string body;
    int retry_after_s = 0;
    base::Nanos delay_ns = 0;
    bool drop = false;  // Close the connection instead of answering, after the delay.
    bool hang = false;  // Never answer.
    bool cut = false;   // Send half of the right answer and close.
  };

  struct Request {
    std::string method;
    std::string target;  // With its query.
    std::string body;
    std::string authorization;
    std::string content_type;
    std::string user_agent;
  };

  static base::Result<std::unique_ptr<ApiServer>> Start(const Options& options);
  ~ApiServer();
  ApiServer(const ApiServer&) = delete;
  ApiServer& operator=(const ApiServer&) = delete;

  const std::string& url() const { return url_; }
  uint16_t port() const { return port_; }

  // Adds or replaces the pod of its namespace and name; a uid is made up if it has none. Returns
  // the new resource version.
  uint64_t PutPod(nlohmann::json pod);
  // Merges into the pod (RFC 7386). 0: there is none.
  uint64_t PatchPod(const std::string& name_space, const std::string& name,
                    const nlohmann::json& patch);
  bool DeletePod(const std::string& name_space, const std::string& name);
  void PutNode(const std::string& name);

  // To all watches that are open:
  void Bookmark();
  void SendRaw(std::string bytes);  // As part of the stream.
  void ExpireWatches();             // ERROR 410, and the end.
  void EndWatches();                // In peace.
  void DropWatches();               // Without a last chunk.
  void DropWatchesMidLine();        // After half of an event.
  // Versions up to now, and tokens of pages, are forgotten: whoever resumes from them gets 410.
  void Compact();
  // Frees what was told so far (for long runs). Watches that have not read it yet get 410.
  void Forget();

  void AddFault(Fault fault);
  void ClearFaults();
  void SetToken(std::string token);
  // Bodies leave in chunks of so many bytes, each written by itself; 0: as they are.
  void SetChunkBytes(size_t bytes);
  // Pages of a list hold at most so many items, whatever was asked; 0: as asked.
  void SetPageLimit(size_t items);

  nlohmann::json events() const;                       // An array, in the order of their creation.
  nlohmann::json node(const std::string& name) const;  // null: there is none.
  std::vector<Request> requests() const;
  size_t open_watches() const;
  uint64_t connections() const;

  // Waits until `condition` holds, looking whenever something happened here.
  bool WaitFor(const std::function<bool()>& condition, base::Nanos limit_ns = 30 * base::kSecond);

 private:
  class Connection;

  // What watches are told, in order.
  struct Entry {
    enum class Kind : uint8_t { kPod, kBookmark, kRaw, kExpired, kEnd, kDrop, kDropMidLine };
    Kind kind = Kind::kPod;
    uint64_t version = 0;
    nlohmann::json pod;
    std::string node;         // After the change; empty: none, or deleted.
    std::string former_node;  // Before it.
    bool existed = false;     // Before it.
    bool gone = false;        // After it.
    std::string raw;
  };

  ApiServer() = default;
  base::Result<void> Listen(const Options& options);
  void Accept();
  bool Stopping() const;
  std::optional<Fault> Note(const Request& request);
  bool Authorized(const Request& request) const;
  uint64_t ChangePod(const std::pair<std::string, std::string>& key, nlohmann::json pod);
  void Tell(Entry entry);
  void TellKind(Entry::Kind kind, std::string raw = {});
  void Changed();
  void Wake();

  std::string url_;
  uint16_t port_ = 0;
  base::UniqueFd listener_;
  base::UniqueFd stop_;  // eventfd, readable once the server ends.
  ssl_ctx_st* tls_ = nullptr;
  std::thread accepting_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool stopping_ = false;
  std::string token_;
  std::list<std::unique_ptr<Connection>> live_;
  uint64_t connections_ = 0;
  uint64_t version_ = 1000;
  uint64_t compacted_ = 0;
  std::map<std::pair<std::string, std::string>, nlohmann::json> pods_;
  std::map<std::string, nlohmann::json> nodes_;
  std::vector<nlohmann::json> events_;
  std::deque<std::shared_ptr<const Entry>> log_;
  uint64_t log_begin_ = 0;  // Entries that were there before log_[0].
  uint64_t changes_ = 0;
  std::vector<Fault> faults_;
  std::vector<Request> requests_;
  size_t chunk_bytes_ = 0;
  size_t page_limit_ = 0;
  size_t open_watches_ = 0;
};

}  // namespace rubato::testing
