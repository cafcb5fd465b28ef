#include "agent/kube/curl_transport.h"

#include <curl/curl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace rubato::kube {
namespace {

constexpr base::Nanos kConnectTimeout = 5 * base::kSecond;
// A peer that acknowledges nothing for so long is gone (a node's network that was cut off).
constexpr unsigned kUnansweredMs = 30'000;
// Of the body of an answer that is an error; it ends up in one line of text.
constexpr size_t kMaxErrorBody = size_t{64} << 10;
constexpr long kIdleConnections = 4;  // NOLINT: libcurl's type.

bool GlobalInit() {
  static const bool ready = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
  return ready;
}

// libcurl leaves SIGPIPE to the program when it is told to install no handlers, and OpenSSL writes
// to sockets without MSG_NOSIGNAL.
void IgnoreBrokenPipes() {
  struct sigaction action {};
  if (::sigaction(SIGPIPE, nullptr, &action) != 0 || action.sa_handler != SIG_DFL) return;
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, nullptr);
}

curl_socket_t OpenSocket(void*, curlsocktype, curl_sockaddr* address) {
  const int fd = ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  if (fd >= 0) {
    const unsigned limit_ms = kUnansweredMs;
    ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit_ms, sizeof(limit_ms));
  }
  return fd;
}

long Milliseconds(base::Nanos time_ns) {             // NOLINT: libcurl's type.
  return static_cast<long>(std::clamp<base::Nanos>(  // NOLINT
      (time_ns + base::kMillisecond - 1) / base::kMillisecond, 1, 86'400'000));
}

}  // namespace

class CurlTransport::Session {
 public:
  Session(base::EventLoop* loop, ApiEndpoint endpoint, std::string user_agent)
      : loop_(loop),
        endpoint_(std::move(endpoint)),
        user_agent_(std::move(user_agent)),
        token_(endpoint_.token_file) {}

  ~Session() {
    for (auto& [id, transfer] : transfers_) Detach(transfer.get());
    transfers_.clear();
    if (multi_ != nullptr) curl_multi_cleanup(multi_);
    loop_->RemoveTimer(timer_);
    for (const auto& [fd, events] : sockets_) loop_->RemoveFd(fd);
  }

  base::Result<void> Init() {
    if (!GlobalInit() || (multi_ = curl_multi_init()) == nullptr)
      return base::Error{base::ErrorCode::kSystem, "cannot start libcurl"};
    curl_multi_setopt(multi_, CURLMOPT_SOCKETFUNCTION, &Session::SocketChanged);
    curl_multi_setopt(multi_, CURLMOPT_SOCKETDATA, this);
    curl_multi_setopt(multi_, CURLMOPT_TIMERFUNCTION, &Session::TimerChanged);
    curl_multi_setopt(multi_, CURLMOPT_TIMERDATA, this);
    curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, kIdleConnections);
    return {};
  }

  RequestId Start(ApiRequest request, OnDone on_done) {
    const RequestId id = next_id_++;
    auto transfer = std::make_unique<Transfer>();
    transfer->session = this;
    transfer->id = id;
    transfer->deadline_ns = base::MonotonicNow() + request.timeout_ns;
    transfer->request = std::move(request);
    transfer->on_done = std::move(on_done);
    transfers_.emplace(id, std::move(transfer));
    ++counts_.requests;
    // Within one of libcurl's callbacks nothing may be added to it.
    if (in_curl_) {
      to_begin_.push_back(id);
    } else {
      Begin(id);
    }
    return id;
  }

  void Cancel(RequestId id) {
    const auto found = transfers_.find(id);
    if (found == transfers_.end()) return;
    if (in_curl_) {
      found->second->cancelled = true;
      to_cancel_.push_back(id);
      return;
    }
    Detach(found->second.get());
    transfers_.erase(found);
  }

  Counts counts_;

 private:
  struct Transfer {
    Session* session = nullptr;
    RequestId id = 0;
    ApiRequest request;
    OnDone on_done;
    base::Nanos deadline_ns = 0;
    CURL* easy = nullptr;
    curl_slist* headers = nullptr;
    ApiAnswer answer;
    base::EventLoop::TimerId timer = 0;  // To report what failed before it began.
    bool repeated = false;               // After a 401.
    bool cancelled = false;
    bool stopped = false;
    bool too_long = false;
    std::array<char, CURL_ERROR_SIZE> error{};
  };

  // Takes the transfer out of libcurl and the loop.
  void Detach(Transfer* transfer) {
    if (transfer->easy != nullptr) {
      curl_multi_remove_handle(multi_, transfer->easy);
      curl_easy_cleanup(transfer->easy);
      transfer->easy = nullptr;
    }
    curl_slist_free_all(transfer->headers);
    transfer->headers = nullptr;
    loop_->RemoveTimer(transfer->timer);
    transfer->timer = 0;
  }

  void FailLater(Transfer* transfer, std::string why) {
    transfer->answer.error = std::move(why);
    transfer->timer = loop_->AddTimer(0, [this, id = transfer->id] {
      const auto found = transfers_.find(id);
      if (found == transfers_.end()) return;
      found->second->timer = 0;
      Finish(id);
    });
  }

  void Begin(RequestId id) {
    const auto found = transfers_.find(id);
    if (found == transfers_.end()) return;
    Transfer* transfer = found->second.get();
    auto token = token_.Token();
    if (!token) {
      FailLater(transfer, token.error().message);
      return;
    }
    transfer->easy = curl_easy_init();
    if (transfer->easy == nullptr || !SetOptions(transfer, *token)) {
      FailLater(transfer, "libcurl lacks what is needed to ask the API server");
      return;
    }
    const bool outer = std::exchange(in_curl_, true);
    const CURLMcode added = curl_multi_add_handle(multi_, transfer->easy);
    in_curl_ = outer;
    if (added != CURLM_OK) FailLater(transfer, curl_multi_strerror(added));
  }

  bool AddHeader(Transfer* transfer, const std::string& line) {
    curl_slist* longer = curl_slist_append(transfer->headers, line.c_str());
    if (longer == nullptr) return false;
    transfer->headers = longer;
    return true;
  }

  bool SetOptions(Transfer* transfer, const std::string& token) {
    CURL* easy = transfer->easy;
    const ApiRequest& request = transfer->request;
    bool ok = AddHeader(transfer, "Accept: application/json");
    if (!token.empty()) ok = ok && AddHeader(transfer, "Authorization: Bearer " + token);
    if (request.method != Method::kGet) {
      ok = ok && AddHeader(transfer, "Content-Type: " + request.content_type);
      ok = ok && AddHeader(transfer, "Expect:");  // No round trip before the body.
    }
    const auto set = [&](CURLoption option, auto value) {
      ok = ok && curl_easy_setopt(easy, option, value) == CURLE_OK;
    };
    const std::string url = endpoint_.url + request.path;
    set(CURLOPT_URL, url.c_str());
    set(CURLOPT_PATH_AS_IS, 1L);
    set(CURLOPT_HTTPHEADER, transfer->headers);
    set(CURLOPT_USERAGENT, user_agent_.c_str());
    if (request.method != Method::kGet) {
      set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
      set(CURLOPT_POSTFIELDS, request.body.data());
      if (request.method == Method::kPatch) set(CURLOPT_CUSTOMREQUEST, "PATCH");
    }
    set(CURLOPT_PROTOCOLS_STR, "http,https");
    set(CURLOPT_FOLLOWLOCATION, 0L);
    set(CURLOPT_PROXY, "");
    set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));  // NOLINT
    set(CURLOPT_SSL_VERIFYPEER, 1L);
    set(CURLOPT_SSL_VERIFYHOST, 2L);
    set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));  // NOLINT
    if (!endpoint_.ca_file.empty()) set(CURLOPT_CAINFO, endpoint_.ca_file.c_str());
    // The folder of the system's certificates, which libcurl would trust as well.
    set(CURLOPT_CAPATH, static_cast<const char*>(nullptr));
    // A cluster's CA may be replaced; connections are few.
    set(CURLOPT_CA_CACHE_TIMEOUT, 0L);
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_CONNECTTIMEOUT_MS, Milliseconds(kConnectTimeout));
    set(CURLOPT_TIMEOUT_MS, Milliseconds(transfer->deadline_ns - base::MonotonicNow()));
    set(CURLOPT_TCP_KEEPALIVE, 1L);
    set(CURLOPT_TCP_KEEPIDLE, 15L);
    set(CURLOPT_TCP_KEEPINTVL, 5L);
    set(CURLOPT_BUFFERSIZE, 65536L);
    set(CURLOPT_OPENSOCKETFUNCTION, &OpenSocket);
    set(CURLOPT_ERRORBUFFER, transfer->error.data());
    set(CURLOPT_PRIVATE, transfer);
    set(CURLOPT_WRITEFUNCTION, &Session::BodyArrived);
    set(CURLOPT_WRITEDATA, transfer);
    return ok;
  }

  static size_t BodyArrived(char* bytes, size_t, size_t count, void* context) {
    auto* transfer = static_cast<Transfer*>(context);
    return transfer->session->TakeBody(transfer, std::string_view(bytes, count)) ? count : 0;
  }

  bool TakeBody(Transfer* transfer, std::string_view bytes) {
    if (transfer->cancelled) return false;
    counts_.received_bytes += bytes.size();
    long status = 0;  // NOLINT: libcurl's type.
    curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
    const bool success = status >= 200 && status < 300;
    // libcurl is C: nothing may be thrown through it.
    try {
      if (success && transfer->request.on_data) {
        transfer->stopped = !transfer->request.on_data(bytes);
        return !transfer->stopped && !transfer->cancelled;
      }
      std::string& body = transfer->answer.body;
      if (!success) {
        body.append(bytes.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, body.size())));
        return true;
      }
      if (body.size() + bytes.size() > transfer->request.max_answer_bytes) {
        transfer->too_long = true;
        return false;
      }
      body.append(bytes);
      return true;
    } catch (const std::exception& error) {
      transfer->stopped = true;
      transfer->answer.error = error.what();
      return false;
    }
  }

  static int SocketChanged(CURL*, curl_socket_t fd, int what, void* context, void*) {
    static_cast<Session*>(context)->WatchSocket(fd, what);
    return 0;
  }

  void WatchSocket(int fd, int what) {
    uint32_t events = 0;
    if (what == CURL_POLL_IN || what == CURL_POLL_INOUT) events |= EPOLLIN;
    if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT) events |= EPOLLOUT;
    const auto known = sockets_.find(fd);
    if (known != sockets_.end()) {
      if (known->second == events) return;
      loop_->RemoveFd(fd);
      sockets_.erase(known);
    }
    if (what == CURL_POLL_REMOVE || events == 0) return;
    // A socket that cannot be watched never becomes ready: its transfer ends by its deadline.
    if (loop_->AddFd(fd, events, [this, fd](uint32_t ready) { SocketReady(fd, ready); }))
      sockets_.emplace(fd, events);
  }

  void SocketReady(int fd, uint32_t ready) {
    int what = 0;
    if ((ready & (EPOLLIN | EPOLLHUP | EPOLLRDHUP)) != 0) what |= CURL_CSELECT_IN;
    if ((ready & EPOLLOUT) != 0) what |= CURL_CSELECT_OUT;
    if ((ready & EPOLLERR) != 0) what |= CURL_CSELECT_ERR;
    Act(fd, what);
  }

  static int TimerChanged(CURLM*, long timeout_ms, void* context) {  // NOLINT: libcurl's type.
    auto* self = static_cast<Session*>(context);
    self->loop_->RemoveTimer(self->timer_);
    self->timer_ = 0;
    if (timeout_ms >= 0) {
      self->timer_ =
          self->loop_->AddTimer(base::MonotonicNow() + timeout_ms * base::kMillisecond, [self] {
            self->timer_ = 0;
            self->Act(CURL_SOCKET_TIMEOUT, 0);
          });
    }
    return 0;
  }

  void Act(curl_socket_t fd, int what) {
    int running = 0;
    in_curl_ = true;
    curl_multi_socket_action(multi_, fd, what, &running);
    in_curl_ = false;
    for (const RequestId id : std::exchange(to_cancel_, {})) Cancel(id);
    // Messages are pointers into libcurl that the next call may take away: read them all first.
    std::vector<std::pair<RequestId, CURLcode>> ended;
    int left = 0;
    while (const CURLMsg* message = curl_multi_info_read(multi_, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      Transfer* transfer = nullptr;
      curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
      if (transfer != nullptr) ended.emplace_back(transfer->id, message->data.result);
    }
    for (const RequestId id : std::exchange(to_begin_, {})) Begin(id);
    for (const auto& [id, result] : ended) Ended(id, result);
  }

  void Ended(RequestId id, CURLcode result) {
    const auto found = transfers_.find(id);
    if (found == transfers_.end()) return;
    Transfer* transfer = found->second.get();
    ApiAnswer& answer = transfer->answer;
    long status = 0;  // NOLINT: libcurl's type.
    curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
    answer.status = static_cast<int>(status);
    curl_off_t retry_after_s = 0;
    if (curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER, &retry_after_s) == CURLE_OK &&
        retry_after_s > 0)
      answer.retry_after_ns = std::min<curl_off_t>(retry_after_s, 86'400) * base::kSecond;
    if (result == CURLE_OK) {
      answer.end = ApiAnswer::End::kAnswered;
    } else if (transfer->stopped) {
      answer.end = ApiAnswer::End::kStopped;
    } else if (transfer->too_long) {
      answer.end = ApiAnswer::End::kTooLong;
      answer.error = "the API server's answer is too long";
    } else {
      answer.end = ApiAnswer::End::kNoAnswer;
      const char* detail =
          transfer->error[0] != '\0' ? transfer->error.data() : curl_easy_strerror(result);
      answer.error = "no answer from " + endpoint_.url + ": " + detail;
      ++counts_.no_answers;
    }
    Detach(transfer);
    if (status == 401) {
      ++counts_.unauthorized;
      if (!transfer->repeated && answer.end == ApiAnswer::End::kAnswered && token_.Refresh()) {
        transfer->repeated = true;
        answer = {};
        transfer->error[0] = '\0';
        Begin(id);
        return;
      }
    }
    Finish(id);
  }

  void Finish(RequestId id) {
    auto node = transfers_.extract(id);
    Detach(node.mapped().get());
    const OnDone on_done = std::move(node.mapped()->on_done);
    ApiAnswer answer = std::move(node.mapped()->answer);
    on_done(std::move(answer));
  }

  base::EventLoop* loop_;
  ApiEndpoint endpoint_;
  std::string user_agent_;
  TokenFile token_;
  CURLM* multi_ = nullptr;
  base::EventLoop::TimerId timer_ = 0;
  std::unordered_map<int, uint32_t> sockets_;
  std::map<RequestId, std::unique_ptr<Transfer>> transfers_;
  RequestId next_id_ = 1;
  bool in_curl_ = false;
  std::vector<RequestId> to_begin_;
  std::vector<RequestId> to_cancel_;
};

base::Result<std::unique_ptr<CurlTransport>> CurlTransport::Make(base::EventLoop* loop,
                                                                 ApiEndpoint endpoint,
                                                                 std::string user_agent) {
  auto checked = CheckEndpoint(std::move(endpoint));
  if (!checked) return checked.error();
  IgnoreBrokenPipes();
  auto session = std::make_unique<Session>(loop, std::move(*checked), std::move(user_agent));
  if (auto ready = session->Init(); !ready) return ready.error();
  return std::unique_ptr<CurlTransport>(new CurlTransport(std::move(session)));
}

CurlTransport::CurlTransport(std::unique_ptr<Session> session) : session_(std::move(session)) {}

CurlTransport::~CurlTransport() = default;

ApiTransport::RequestId CurlTransport::Start(ApiRequest request, OnDone on_done) {
  return session_->Start(std::move(request), std::move(on_done));
}

void CurlTransport::Cancel(RequestId request) {
  session_->Cancel(request);
}

const CurlTransport::Counts& CurlTransport::counts() const {
  return session_->counts_;
}

}  // namespace rubato::kube
