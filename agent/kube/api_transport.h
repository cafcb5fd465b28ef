// One request to the Kubernetes API server, and who carries it.
//
// An interface because the pod watch, the events and the labels are tested against a stand-in that
// answers in virtual time; the real carrier is CurlTransport.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/time.h"

namespace rubato::kube {

enum class Method : uint8_t { kGet, kPost, kPatch };

struct ApiRequest {
  Method method = Method::kGet;
  std::string path;  // From the root with its query, escaped: "/api/v1/pods?limit=100".
  std::string body;
  std::string content_type;  // Of `body`.
  // From now to the last byte of the answer; a watch gives the time that it asked the server for
  // and some more. Always positive.
  base::Nanos timeout_ns = 10 * base::kSecond;
  // An answer longer than this ends the request with kTooLong; for streams (below) no limit.
  size_t max_answer_bytes = size_t{1} << 20;
  // If set, the body of a 2xx answer is handed over piece by piece as it arrives instead of being
  // kept. Returns false to end the request.
  std::function<bool(std::string_view)> on_data;
};

struct ApiAnswer {
  enum class End : uint8_t {
    kAnswered,  // Whole answer; `status` says which.
    kNoAnswer,  // No connection, TLS refused, cut off in the middle, or out of time.
    kTooLong,   // max_answer_bytes.
    kStopped,   // on_data returned false.
  };
  End end = End::kNoAnswer;
  int status = 0;  // HTTP; 0: none arrived.
  std::string body;
  std::optional<base::Nanos> retry_after_ns;
  std::string error;  // One line for people, where end is not kAnswered.

  bool ok() const { return end == End::kAnswered && status >= 200 && status < 300; }
  // The same request may succeed later: no answer, 429, or the server's own fault.
  bool passing() const {
    return end == End::kNoAnswer || (end == End::kAnswered && (status == 429 || status >= 500));
  }
};

class ApiTransport {
 public:
  using RequestId = uint64_t;  // 0 is none.
  using OnDone = std::function<void(ApiAnswer)>;

  virtual ~ApiTransport() = default;
  // Never blocks and never calls back from within this call. `on_done` is called exactly once,
  // unless the request is cancelled.
  virtual RequestId Start(ApiRequest request, OnDone on_done) = 0;
  // No callback of the request runs after this. Ids that are done, and 0, are ignored.
  virtual void Cancel(RequestId request) = 0;
};

// `text` for use inside a path or a query value: all but letters, digits and -._~ as %XX.
std::string UrlEscape(std::string_view text);

}  // namespace rubato::kube
