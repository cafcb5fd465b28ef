#include "tests/fakes/apiserver.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <limits>
#include <optional>
#include <utility>

#include "base/clock.h"

namespace rubato::testing {
namespace {

using nlohmann::json;

constexpr size_t kMaxRequestBytes = size_t{4} << 20;

std::string Unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      plain.push_back(static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16)));
      i += 2;
    } else {
      plain.push_back(text[i] == '+' ? ' ' : text[i]);
    }
  }
  return plain;
}

std::map<std::string, std::string> ParseQuery(const std::string& query) {
  std::map<std::string, std::string> values;
  size_t at = 0;
  while (at < query.size()) {
    const size_t end = std::min(query.find('&', at), query.size());
    const std::string pair = query.substr(at, end - at);
    const size_t equals = pair.find('=');
    values[Unescape(pair.substr(0, equals))] =
        equals == std::string::npos ? "" : Unescape(pair.substr(equals + 1));
    at = end + 1;
  }
  return values;
}

std::vector<std::string> SplitPath(const std::string& path) {
  std::vector<std::string> parts;
  size_t at = 0;
  while (at < path.size()) {
    const size_t end = std::min(path.find('/', at), path.size());
    if (end > at) parts.push_back(Unescape(path.substr(at, end - at)));
    at = end + 1;
  }
  return parts;
}

const char* ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 401:
      return "Unauthorized";
    case 404:
      return "Not Found";
    case 410:
      return "Gone";
    default:
      return "Status";
  }
}

const char* StatusReason(int code) {
  switch (code) {
    case 400:
      return "BadRequest";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "NotFound";
    case 409:
      return "AlreadyExists";
    case 410:
      return "Expired";
    case 415:
      return "UnsupportedMediaType";
    case 422:
      return "Invalid";
    case 429:
      return "TooManyRequests";
    case 503:
      return "ServiceUnavailable";
    default:
      return "InternalError";
  }
}

json StatusObject(int code, const std::string& message) {
  return {{"kind", "Status"},    {"apiVersion", "v1"}, {"metadata", json::object()},
          {"status", "Failure"}, {"message", message}, {"reason", StatusReason(code)},
          {"code", code}};
}

std::string NodeOf(const json& pod) {
  return pod.value("/spec/nodeName"_json_pointer, std::string());
}

// What resource versions and page sizes are in a query; nullopt: no number.
std::optional<uint64_t> Number(const std::string& text) {
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos)
    return std::nullopt;
  return std::stoull(text);
}

}  // namespace

class ApiServer::Connection {
 public:
  Connection(ApiServer* server, base::UniqueFd socket)
      : server_(server),
        socket_(std::move(socket)),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  ~Connection() {
    if (thread_.joinable()) thread_.join();
    if (tls_ != nullptr) SSL_free(tls_);
  }

  void Start() {
    thread_ = std::thread([this] {
      Serve();
      ::shutdown(socket_.get(), SHUT_RDWR);
      done_.store(true);
      server_->Wake();
    });
  }
  bool done() const { return done_.load(); }
  void Wake() {
    const uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
  }
  // Ends blocking calls of its thread.
  void ShutDown() {
    ::shutdown(socket_.get(), SHUT_RDWR);
    Wake();
  }

 private:
  struct Answer {
    int status = 200;
    std::string body;
    int retry_after_s = 0;
  };

  void Serve() {
    if (server_->tls_ != nullptr) {
      tls_ = SSL_new(server_->tls_);
      SSL_set_fd(tls_, socket_.get());
      if (SSL_accept(tls_) != 1) return;
    }
    Request request;
    while (ReadRequest(&request)) {
      if (!Handle(request)) return;
    }
  }

  // 0 at the end of the connection and after an error.
  size_t ReadSome(char* buffer, size_t bytes) {
    const ssize_t count = tls_ != nullptr ? SSL_read(tls_, buffer, static_cast<int>(bytes))
                                          : ::recv(socket_.get(), buffer, bytes, 0);
    return count > 0 ? static_cast<size_t>(count) : 0;
  }

  bool WriteAll(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = tls_ != nullptr
                                ? SSL_write(tls_, bytes.data(), static_cast<int>(bytes.size()))
                                : ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return true;
  }

  // Waits for the peer to close, the server to end, or (with `or_wake`) something new. False: the
  // connection is over.
  bool Wait(base::Nanos until_ns, bool or_wake) {
    for (;;) {
      const base::Nanos left_ns = until_ns - base::MonotonicNow();
      if (left_ns <= 0) return true;
      pollfd fds[2] = {{socket_.get(), POLLIN | POLLRDHUP, 0}, {wake_.get(), POLLIN, 0}};
      const int timeout_ms =
          static_cast<int>(std::min<base::Nanos>(left_ns / base::kMillisecond + 1, 3'600'000));
      ::poll(fds, 2, timeout_ms);
      // A client says nothing while it waits for an answer: what arrives is its end.
      if (fds[0].revents != 0) return false;
      if (fds[1].revents != 0) {
        uint64_t count = 0;
        (void)!::read(wake_.get(), &count, sizeof(count));
        if (server_->Stopping()) return false;
        if (or_wake) return true;
      }
    }
  }

  bool ReadRequest(Request* request) {
    *request = {};
    size_t end = 0;
    while ((end = input_.find("\r\n\r\n")) == std::string::npos) {
      char buffer[16384];
      const size_t count = ReadSome(buffer, sizeof(buffer));
      if (count == 0 || input_.size() > kMaxRequestBytes) return false;
      input_.append(buffer, count);
    }
    std::string head = input_.substr(0, end + 2);
    input_.erase(0, end + 4);
    size_t at = head.find("\r\n");
    const std::string first = head.substr(0, at);
    const size_t space = first.find(' ');
    const size_t second = first.rfind(' ');
    if (space == std::string::npos || second <= space) return false;
    request->method = first.substr(0, space);
    request->target = first.substr(space + 1, second - space - 1);
    size_t length = 0;
    while ((at += 2) < head.size()) {
      const size_t next = head.find("\r\n", at);
      const std::string line = head.substr(at, next - at);
      at = next;
      const size_t colon = line.find(": ");
      if (colon == std::string::npos) continue;
      std::string name = line.substr(0, colon);
      std::transform(name.begin(), name.end(), name.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      const std::string value = line.substr(colon + 2);
      if (name == "authorization") request->authorization = value;
      if (name == "content-type") request->content_type = value;
      if (name == "user-agent") request->user_agent = value;
      if (name == "content-length") length = Number(value).value_or(kMaxRequestBytes + 1);
    }
    if (length > kMaxRequestBytes) return false;
    while (input_.size() < length) {
      char buffer[16384];
      const size_t count = ReadSome(buffer, sizeof(buffer));
      if (count == 0) return false;
      input_.append(buffer, count);
    }
    request->body = input_.substr(0, length);
    input_.erase(0, length);
    return true;
  }

  // False: the connection is over.
  bool Handle(const Request& request) {
    std::optional<Fault> fault = server_->Note(request);
    if (fault) {
      if (fault->hang) {
        Wait(std::numeric_limits<base::Nanos>::max(), false);
        return false;
      }
      if (fault->delay_ns > 0 && !Wait(base::MonotonicNow() + fault->delay_ns, false)) return false;
      if (fault->drop) return false;
      if (fault->status != 0) {
        const std::string body = fault->body.empty()
                                     ? StatusObject(fault->status, "scripted fault").dump()
                                     : fault->body;
        return Send({fault->status, body, fault->retry_after_s}, false);
      }
    }
    const bool cut = fault && fault->cut;
    if (!server_->Authorized(request)) return Send(Status(401, "Unauthorized"), cut);
    const size_t question = std::min(request.target.find('?'), request.target.size());
    const std::string path = request.target.substr(0, question);
    const auto query =
        ParseQuery(request.target.substr(std::min(question + 1, request.target.size())));
    if (request.method == "GET" && path == "/api/v1/pods" && query.contains("watch"))
      return Watch(query, cut);
    return Send(Respond(request, path, query), cut);
  }

  static Answer Status(int code, const std::string& message) {
    return {code, StatusObject(code, message).dump(), 0};
  }

  Answer Respond(const Request& request, const std::string& path,
                 const std::map<std::string, std::string>& query) {
    const std::vector<std::string> parts = SplitPath(path);
    const std::lock_guard<std::mutex> lock(server_->mutex_);
    if (request.method == "GET" && (path == "/healthz" || path == "/readyz" || path == "/livez"))
      return {200, "ok", 0};
    if (request.method == "GET" && path == "/version")
      return {200, R"({"major":"1","minor":"34","gitVersion":"v1.34.0"})", 0};
    if (request.method == "GET" && path == "/api/v1/pods") return List(query);
    const bool core = parts.size() >= 4 && parts[0] == "api" && parts[1] == "v1";
    if (core && parts[2] == "nodes" && parts.size() == 4) return Node(request, parts[3]);
    if (core && parts[2] == "namespaces" && parts.size() >= 5) {
      if (parts[4] == "events") return Events(request, parts);
      if (parts[4] == "pods" && parts.size() == 6 && request.method == "GET") {
        const auto found = server_->pods_.find({parts[3], parts[5]});
        if (found == server_->pods_.end()) return Status(404, "pods not found");
        return {200, found->second.dump(), 0};
      }
    }
    return Status(404, "the server could not find the requested resource");
  }

  Answer List(const std::map<std::string, std::string>& query) {
    const std::optional<std::string> node = Selected(query);
    if (!node) return Status(400, "field label not supported");
    uint64_t version = server_->version_;
    std::pair<std::string, std::string> after;
    const auto given = query.find("continue");
    if (given != query.end() && !given->second.empty()) {
      if (query.contains("resourceVersion"))
        return Status(400, "specifying resource version is not allowed when using continue");
      const std::string& token = given->second;
      const size_t colon = token.find(':');
      const size_t slash = token.find('/');
      const auto number = Number(token.substr(0, colon));
      if (!number || colon == std::string::npos || slash == std::string::npos)
        return Status(400, "continue key is not valid");
      if (*number <= server_->compacted_)
        return Status(410, "The provided continue parameter is too old");
      version = *number;
      after = {token.substr(colon + 1, slash - colon - 1), token.substr(slash + 1)};
    }
    size_t limit = 0;
    if (const auto asked = query.find("limit"); asked != query.end())
      limit = Number(asked->second).value_or(0);
    if (server_->page_limit_ > 0 && limit > 0) limit = std::min(limit, server_->page_limit_);
    std::string items;
    std::string next;
    size_t count = 0;
    for (auto it = server_->pods_.upper_bound(after); it != server_->pods_.end(); ++it) {
      if (!node->empty() && NodeOf(it->second) != *node) continue;
      if (limit > 0 && count == limit) {
        next = std::to_string(version) + ":" + last_listed_;
        break;
      }
      items += (count > 0 ? "," : "") + it->second.dump();
      last_listed_ = it->first.first + "/" + it->first.second;
      ++count;
    }
    json metadata = {{"resourceVersion", std::to_string(version)}};
    if (!next.empty()) metadata["continue"] = next;
    // In the real server's order.
    return {200,
            R"({"kind":"PodList","apiVersion":"v1","metadata":)" + metadata.dump() +
                R"(,"items":[)" + items + "]}\n",
            0};
  }

  // The node that is asked for; empty: all. nullopt: another selector.
  static std::optional<std::string> Selected(const std::map<std::string, std::string>& query) {
    const auto found = query.find("fieldSelector");
    if (found == query.end() || found->second.empty()) return std::string();
    constexpr std::string_view kLabel = "spec.nodeName=";
    if (found->second.rfind(kLabel, 0) != 0) return std::nullopt;
    return found->second.substr(kLabel.size());
  }

  static bool IsMergePatch(const Request& request) {
    return request.content_type == "application/merge-patch+json" ||
           request.content_type == "application/strategic-merge-patch+json";
  }

  Answer Node(const Request& request, const std::string& name) {
    const auto found = server_->nodes_.find(name);
    if (found == server_->nodes_.end()) return Status(404, "nodes \"" + name + "\" not found");
    if (request.method == "PATCH") {
      if (!IsMergePatch(request)) return Status(415, "unsupported patch type");
      const json patch = json::parse(request.body, nullptr, false);
      if (!patch.is_object()) return Status(400, "the body is no JSON object");
      found->second.merge_patch(patch);
      server_->Changed();
    } else if (request.method != "GET") {
      return Status(405, "method not allowed");
    }
    return {200, found->second.dump(), 0};
  }

  Answer Events(const Request& request, const std::vector<std::string>& parts) {
    std::vector<json>& events = server_->events_;
    const auto find = [&](const std::string& name) {
      return std::find_if(events.begin(), events.end(), [&](const json& event) {
        return event["metadata"]["namespace"] == parts[3] && event["metadata"]["name"] == name;
      });
    };
    const json body = json::parse(request.body, nullptr, false);
    if (request.method == "POST" && parts.size() == 5) {
      if (!body.is_object() || request.content_type != "application/json")
        return Status(400, "the body is no event");
      // What the real server's validation asks for.
      const std::string name = body.value("/metadata/name"_json_pointer, std::string());
      if (name.empty() || body.value("/metadata/namespace"_json_pointer, parts[3]) != parts[3] ||
          body.value("/involvedObject/namespace"_json_pointer, std::string()) != parts[3] ||
          body.value("message", std::string()).size() > 1024 ||
          body.value("reason", std::string()).empty() ||
          (body.value("type", "") != "Normal" && body.value("type", "") != "Warning"))
        return Status(422, "Event is invalid");
      if (find(name) != events.end()) return Status(409, "events already exists");
      events.push_back(body);
      server_->Changed();
      return {201, body.dump(), 0};
    }
    if (request.method == "PATCH" && parts.size() == 6) {
      const auto found = find(parts[5]);
      if (found == events.end()) return Status(404, "events not found");
      if (!IsMergePatch(request)) return Status(415, "unsupported patch type");
      if (!body.is_object()) return Status(400, "the body is no JSON object");
      found->merge_patch(body);
      server_->Changed();
      return {200, found->dump(), 0};
    }
    if (request.method == "GET" && parts.size() == 5) {
      json items = json::array();
      for (const json& event : events) {
        if (event["metadata"]["namespace"] == parts[3]) items.push_back(event);
      }
      return {200, json{{"kind", "EventList"}, {"apiVersion", "v1"}, {"items", items}}.dump(), 0};
    }
    return Status(405, "method not allowed");
  }

  bool Send(const Answer& answer, bool cut) {
    size_t chunk_bytes = 0;
    {
      const std::lock_guard<std::mutex> lock(server_->mutex_);
      chunk_bytes = server_->chunk_bytes_;
    }
    std::string head = "HTTP/1.1 " + std::to_string(answer.status) + " " +
                       ReasonPhrase(answer.status) + "\r\nContent-Type: application/json\r\n";
    if (answer.retry_after_s > 0)
      head += "Retry-After: " + std::to_string(answer.retry_after_s) + "\r\n";
    head += chunk_bytes > 0 ? "Transfer-Encoding: chunked\r\n\r\n"
                            : "Content-Length: " + std::to_string(answer.body.size()) + "\r\n\r\n";
    if (!WriteAll(head)) return false;
    if (cut) {
      WriteAll(chunk_bytes > 0 ? "5\r\n{\"ki" : answer.body.substr(0, answer.body.size() / 2));
      return false;
    }
    if (chunk_bytes == 0) return WriteAll(answer.body);
    return WriteChunks(answer.body, chunk_bytes) && WriteAll("0\r\n\r\n");
  }

  bool WriteChunks(std::string_view bytes, size_t chunk_bytes) {
    if (chunk_bytes == 0) chunk_bytes = bytes.size();
    while (!bytes.empty()) {
      const std::string_view piece = bytes.substr(0, chunk_bytes);
      bytes.remove_prefix(piece.size());
      char size[32];
      std::snprintf(size, sizeof(size), "%zx\r\n", piece.size());
      if (!WriteAll(size + std::string(piece) + "\r\n")) return false;
    }
    return true;
  }

  static std::string Line(const char* type, const std::string& object) {
    return std::string(R"({"type":")") + type + R"(","object":)" + object + "}\n";
  }

  // What an entry is to who watches `node`; empty: nothing.
  static std::string PodLine(const Entry& entry, const std::string& node) {
    const bool now = node.empty() ? !entry.node.empty() || !entry.gone : entry.node == node;
    const bool before = node.empty() ? entry.existed : entry.former_node == node;
    if (entry.gone) return before ? Line("DELETED", entry.pod.dump()) : std::string();
    if (!now) return before ? Line("DELETED", entry.pod.dump()) : std::string();
    return Line(before ? "MODIFIED" : "ADDED", entry.pod.dump());
  }

  bool Watch(const std::map<std::string, std::string>& query, bool cut) {
    const std::optional<std::string> node = Selected(query);
    if (!node) return Send(Status(400, "field label not supported"), false);
    const auto version_text = query.find("resourceVersion");
    const auto version = version_text == query.end() || version_text->second.empty()
                             ? std::optional<uint64_t>(0)
                             : Number(version_text->second);
    if (!version) return Send(Status(400, "invalid resource version"), false);
    const auto bookmarks = query.find("allowWatchBookmarks");
    const bool wants_bookmarks = bookmarks != query.end() && bookmarks->second == "true";
    base::Nanos end_ns = std::numeric_limits<base::Nanos>::max();
    if (const auto seconds = query.find("timeoutSeconds"); seconds != query.end()) {
      const auto number = Number(seconds->second);
      if (number) end_ns = base::MonotonicNow() + static_cast<base::Nanos>(*number) * base::kSecond;
    }
    std::string begin;
    uint64_t position = 0;
    uint64_t live_from = 0;
    {
      const std::lock_guard<std::mutex> lock(server_->mutex_);
      if (*version != 0 && *version < server_->compacted_) {
        // Sent below, without the lock.
        position = std::numeric_limits<uint64_t>::max();
      } else {
        position = server_->log_begin_;
        live_from = server_->log_begin_ + server_->log_.size();
        if (*version == 0) {
          for (const auto& [key, pod] : server_->pods_) {
            if (node->empty() || NodeOf(pod) == *node) begin += Line("ADDED", pod.dump());
          }
          position = live_from;
        }
        ++server_->open_watches_;
        server_->Changed();
      }
    }
    if (position == std::numeric_limits<uint64_t>::max())
      return Send(Status(410, "too old resource version: " + version_text->second), false);
    const bool go_on =
        Stream(*node, *version, wants_bookmarks, position, live_from, end_ns, begin, cut);
    const std::lock_guard<std::mutex> lock(server_->mutex_);
    --server_->open_watches_;
    server_->Changed();
    return go_on;
  }

  bool Stream(const std::string& node, uint64_t version, bool wants_bookmarks, uint64_t position,
              uint64_t live_from, base::Nanos end_ns, const std::string& begin, bool cut) {
    if (!WriteAll("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                  "Transfer-Encoding: chunked\r\n\r\n") ||
        !WriteChunks(begin, 0))
      return false;
    if (cut) return false;
    for (;;) {
      std::vector<std::shared_ptr<const Entry>> entries;
      size_t chunk_bytes = 0;
      bool behind = false;
      {
        const std::lock_guard<std::mutex> lock(server_->mutex_);
        chunk_bytes = server_->chunk_bytes_;
        behind = position < server_->log_begin_;
        if (!behind) {
          entries.assign(
              server_->log_.begin() + static_cast<ptrdiff_t>(position - server_->log_begin_),
              server_->log_.end());
        }
      }
      if (behind) {
        WriteChunks(Line("ERROR", StatusObject(410, "The resourceVersion is too old").dump()),
                    chunk_bytes);
        return WriteAll("0\r\n\r\n");
      }
      for (const auto& entry : entries) {
        const bool live = position++ >= live_from;
        std::string line;
        switch (entry->kind) {
          case Entry::Kind::kPod:
            if (live || entry->version > version) line = PodLine(*entry, node);
            break;
          case Entry::Kind::kBookmark:
            if (live && wants_bookmarks) {
              line = Line("BOOKMARK", json{{"kind", "Pod"},
                                           {"apiVersion", "v1"},
                                           {"metadata",
                                            {{"resourceVersion", std::to_string(entry->version)},
                                             {"creationTimestamp", nullptr}}},
                                           {"spec", {{"containers", nullptr}}},
                                           {"status", json::object()}}
                                          .dump());
            }
            break;
          case Entry::Kind::kRaw:
            if (live) line = entry->raw;
            break;
          case Entry::Kind::kExpired:
            if (!live) break;
            WriteChunks(Line("ERROR", StatusObject(410, "The resourceVersion is too old").dump()),
                        chunk_bytes);
            return WriteAll("0\r\n\r\n");
          case Entry::Kind::kEnd:
            if (live) return WriteAll("0\r\n\r\n");
            break;
          case Entry::Kind::kDrop:
            if (live) return false;
            break;
          case Entry::Kind::kDropMidLine:
            if (!live) break;
            WriteChunks(R"({"type":"MODIFIED","object":{"kind":"Pod","metadata":{"na)",
                        chunk_bytes);
            return false;
        }
        if (!line.empty() && !WriteChunks(line, chunk_bytes)) return false;
      }
      if (!entries.empty()) continue;
      if (!Wait(end_ns, true)) return false;
      if (base::MonotonicNow() >= end_ns) return WriteAll("0\r\n\r\n");
    }
  }

  ApiServer* server_;
  base::UniqueFd socket_;
  base::UniqueFd wake_;
  ssl_st* tls_ = nullptr;
  std::string input_;
  std::string last_listed_;
  std::thread thread_;
  std::atomic<bool> done_{false};
};

base::Result<std::unique_ptr<ApiServer>> ApiServer::Start(const Options& options) {
  // OpenSSL writes to sockets that the peer has closed.
  ::signal(SIGPIPE, SIG_IGN);
  std::unique_ptr<ApiServer> server(new ApiServer());
  if (auto listening = server->Listen(options); !listening) return listening.error();
  server->accepting_ = std::thread([raw = server.get()] { raw->Accept(); });
  return server;
}

base::Result<void> ApiServer::Listen(const Options& options) {
  token_ = options.token;
  stop_ = base::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const bool v6 = options.address.find(':') != std::string::npos;
  const bool secure = !options.certificate_file.empty();
  if (secure) {
    tls_ = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(tls_, options.certificate_file.c_str()) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls_, options.key_file.c_str(), SSL_FILETYPE_PEM) != 1)
      return base::Error{base::ErrorCode::kInvalid,
                         "cannot use the certificate " + options.certificate_file};
  }
  listener_ = base::UniqueFd(
      ::socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_.valid()) return base::SystemError("cannot make a socket");
  const int on = 1;
  ::setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_storage address{};
  socklen_t length = 0;
  if (v6) {
    auto* in = reinterpret_cast<sockaddr_in6*>(&address);
    in->sin6_family = AF_INET6;
    in->sin6_port = htons(options.port);
    ::inet_pton(AF_INET6, options.address.c_str(), &in->sin6_addr);
    length = sizeof(*in);
  } else {
    auto* in = reinterpret_cast<sockaddr_in*>(&address);
    in->sin_family = AF_INET;
    in->sin_port = htons(options.port);
    ::inet_pton(AF_INET, options.address.c_str(), &in->sin_addr);
    length = sizeof(*in);
  }
  if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      ::listen(listener_.get(), 64) != 0)
    return base::SystemError("cannot listen on " + options.address);
  length = sizeof(address);
  ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length);
  port_ = ntohs(v6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                   : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
  url_ = std::string(secure ? "https://" : "http://") +
         (v6 ? "[" + options.address + "]" : options.address) + ":" + std::to_string(port_);
  return {};
}

ApiServer::~ApiServer() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    for (const auto& connection : live_) connection->ShutDown();
  }
  const uint64_t one = 1;
  if (stop_.valid()) (void)!::write(stop_.get(), &one, sizeof(one));
  if (accepting_.joinable()) accepting_.join();
  live_.clear();  // Joins their threads.
  if (tls_ != nullptr) SSL_CTX_free(tls_);
}

void ApiServer::Accept() {
  for (;;) {
    pollfd fds[2] = {{listener_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    ::poll(fds, 2, -1);
    if (fds[1].revents != 0) return;
    base::UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket.valid()) continue;
    const int on = 1;
    ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    std::list<std::unique_ptr<Connection>> ended;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return;
      for (auto it = live_.begin(); it != live_.end();) {
        const auto next = std::next(it);
        if ((*it)->done()) ended.splice(ended.end(), live_, it);
        it = next;
      }
      ++connections_;
      live_.push_back(std::make_unique<Connection>(this, std::move(socket)));
      live_.back()->Start();
    }
  }
}

void ApiServer::Wake() {
  const std::lock_guard<std::mutex> lock(mutex_);
  Changed();
}

bool ApiServer::Stopping() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stopping_;
}

std::optional<ApiServer::Fault> ApiServer::Note(const Request& request) {
  const std::lock_guard<std::mutex> lock(mutex_);
  requests_.push_back(request);
  Changed();
  for (auto it = faults_.begin(); it != faults_.end(); ++it) {
    if (!it->method.empty() && it->method != request.method) continue;
    if (request.target.rfind(it->path_prefix, 0) != 0) continue;
    Fault fault = *it;
    if (--it->count == 0) faults_.erase(it);
    return fault;
  }
  return std::nullopt;
}

bool ApiServer::Authorized(const Request& request) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return token_.empty() || request.authorization == "Bearer " + token_;
}

// Under the lock.
void ApiServer::Tell(Entry entry) {
  log_.push_back(std::make_shared<const Entry>(std::move(entry)));
  for (const auto& connection : live_) connection->Wake();
  Changed();
}

// Under the lock. A pod that is null is deleted.
uint64_t ApiServer::ChangePod(const std::pair<std::string, std::string>& key, json pod) {
  const auto found = pods_.find(key);
  Entry entry;
  entry.existed = found != pods_.end();
  if (entry.existed) entry.former_node = NodeOf(found->second);
  entry.version = ++version_;
  entry.gone = pod.is_null();
  if (entry.gone) {
    pod = std::move(found->second);
    pods_.erase(found);
  } else {
    entry.node = NodeOf(pod);
  }
  pod["metadata"]["resourceVersion"] = std::to_string(version_);
  if (!entry.gone) pods_[key] = pod;
  entry.pod = std::move(pod);
  Tell(std::move(entry));
  return version_;
}

uint64_t ApiServer::PutPod(json pod) {
  const std::lock_guard<std::mutex> lock(mutex_);
  json& metadata = pod["metadata"];
  const std::pair key(metadata.value("namespace", "default"), metadata.value("name", "pod"));
  metadata["namespace"] = key.first;
  metadata["name"] = key.second;
  if (!metadata.contains("uid")) {
    const auto former = pods_.find(key);
    if (former != pods_.end()) {
      metadata["uid"] = former->second["metadata"]["uid"];
    } else {
      char uid[40];
      std::snprintf(uid, sizeof(uid), "%08llx-0000-4000-8000-%012llx",
                    static_cast<unsigned long long>(version_ & 0xffffffff),  // NOLINT
                    static_cast<unsigned long long>(version_));              // NOLINT
      metadata["uid"] = uid;
    }
  }
  return ChangePod(key, std::move(pod));
}

uint64_t ApiServer::PatchPod(const std::string& name_space, const std::string& name,
                             const json& patch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = pods_.find({name_space, name});
  if (found == pods_.end()) return 0;
  json pod = found->second;
  pod.merge_patch(patch);
  return ChangePod(found->first, std::move(pod));
}

bool ApiServer::DeletePod(const std::string& name_space, const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!pods_.contains({name_space, name})) return false;
  ChangePod({name_space, name}, nullptr);
  return true;
}

void ApiServer::PutNode(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  nodes_[name] = {{"kind", "Node"},
                  {"apiVersion", "v1"},
                  {"metadata", {{"name", name}, {"labels", {{"kubernetes.io/hostname", name}}}}}};
}

void ApiServer::TellKind(Entry::Kind kind, std::string raw) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Entry entry;
  entry.kind = kind;
  entry.version = version_;
  entry.raw = std::move(raw);
  Tell(std::move(entry));
}

void ApiServer::Bookmark() {
  TellKind(Entry::Kind::kBookmark);
}
void ApiServer::SendRaw(std::string bytes) {
  TellKind(Entry::Kind::kRaw, std::move(bytes));
}
void ApiServer::ExpireWatches() {
  TellKind(Entry::Kind::kExpired);
}
void ApiServer::EndWatches() {
  TellKind(Entry::Kind::kEnd);
}
void ApiServer::DropWatches() {
  TellKind(Entry::Kind::kDrop);
}
void ApiServer::DropWatchesMidLine() {
  TellKind(Entry::Kind::kDropMidLine);
}

void ApiServer::Compact() {
  const std::lock_guard<std::mutex> lock(mutex_);
  // A version of its own, so that what was told last is old as well.
  compacted_ = ++version_;
}

void ApiServer::Forget() {
  const std::lock_guard<std::mutex> lock(mutex_);
  log_begin_ += log_.size();
  log_.clear();
  compacted_ = version_;
}

void ApiServer::AddFault(Fault fault) {
  const std::lock_guard<std::mutex> lock(mutex_);
  faults_.push_back(std::move(fault));
}

void ApiServer::ClearFaults() {
  const std::lock_guard<std::mutex> lock(mutex_);
  faults_.clear();
}

void ApiServer::SetToken(std::string token) {
  const std::lock_guard<std::mutex> lock(mutex_);
  token_ = std::move(token);
}

void ApiServer::SetChunkBytes(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  chunk_bytes_ = bytes;
}

void ApiServer::SetPageLimit(size_t items) {
  const std::lock_guard<std::mutex> lock(mutex_);
  page_limit_ = items;
}

json ApiServer::events() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return events_;
}

json ApiServer::node(const std::string& name) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = nodes_.find(name);
  return found == nodes_.end() ? json(nullptr) : found->second;
}

std::vector<ApiServer::Request> ApiServer::requests() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return requests_;
}

size_t ApiServer::open_watches() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return open_watches_;
}

uint64_t ApiServer::connections() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return connections_;
}

bool ApiServer::WaitFor(const std::function<bool()>& condition, base::Nanos limit_ns) {
  const base::Nanos end_ns = base::MonotonicNow() + limit_ns;
  for (;;) {
    // Read before the condition is looked at, so that no change is missed in between.
    uint64_t seen = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      seen = changes_;
    }
    if (condition()) return true;
    std::unique_lock<std::mutex> lock(mutex_);
    const base::Nanos left_ns = end_ns - base::MonotonicNow();
    if (left_ns <= 0) return false;
    changed_.wait_for(lock, std::chrono::nanoseconds(left_ns), [&] { return changes_ != seen; });
  }
}

void ApiServer::Changed() {
  ++changes_;
  changed_.notify_all();
}

}  // namespace rubato::testing
