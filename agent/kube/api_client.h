// Requests that are repeated until they are answered: a transport with patience.
//
// No answer, 429 and 5xx are tried again after a back-off with jitter, not before the server's
// Retry-After, and until the request's deadline. Streams (on_data) are started once: who reads a
// stream knows best where to resume. Everything else passes through.
#pragma once

#include <cstdint>
#include <map>

#include "agent/kube/api_transport.h"
#include "agent/kube/backoff.h"
#include "agent/kube/timers.h"

namespace rubato::kube {

class ApiClient final : public ApiTransport {
 public:
  struct Limits {
    Backoff::Limits backoff;
    // From Start() to the end of the last attempt; an attempt's own limit is
    // ApiRequest::timeout_ns.
    base::Nanos deadline_ns = 60 * base::kSecond;
  };

  // Both outlive the client.
  ApiClient(ApiTransport* transport, Timers* timers, RandomSource random, Limits limits);
  ~ApiClient() override;

  RequestId Start(ApiRequest request, OnDone on_done) override;
  void Cancel(RequestId request) override;

  uint64_t repeated() const { return repeated_; }  // Attempts beyond the first of each request.

 private:
  struct Call {
    ApiRequest request;
    OnDone on_done;
    Backoff backoff;
    base::Nanos deadline_ns;
    RequestId attempt = 0;
    Timers::TimerId timer = 0;
  };
  void Attempt(RequestId id);
  void Finish(RequestId id, ApiAnswer answer);

  ApiTransport* transport_;
  Timers* timers_;
  RandomSource random_;
  Limits limits_;
  std::map<RequestId, Call> calls_;
  RequestId next_id_ = 1;
  uint64_t repeated_ = 0;
};

}  // namespace rubato::kube
