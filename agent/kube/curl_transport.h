// The carrier of requests to the API server: libcurl, driven by the event loop.
//
// No thread of its own (curl_multi_socket_action; an address by name would make libcurl resolve it
// in a thread, in a pod the address is a number). HTTP/1.1 on purpose: the watch has a connection
// of its own, so a slow reader of it holds up nothing else. Only the endpoint's CA is trusted, no
// proxy of the environment is used, no redirect is followed.
//
// A 401 reads the token file again and repeats the request once; every other answer is the
// caller's (ApiClient repeats). Runs on the loop's thread; destroyed outside its callbacks.
#pragma once

#include <cstdint>
#include <memory>

#include "agent/kube/api_transport.h"
#include "agent/kube/endpoint.h"
#include "base/event_loop.h"
#include "base/result.h"

namespace rubato::kube {

class CurlTransport final : public ApiTransport {
 public:
  struct Counts {
    uint64_t requests = 0;
    uint64_t unauthorized = 0;  // Answers with 401.
    uint64_t no_answers = 0;
    uint64_t received_bytes = 0;  // Of bodies.
  };

  // `loop` outlives the transport.
  static base::Result<std::unique_ptr<CurlTransport>> Make(base::EventLoop* loop,
                                                           ApiEndpoint endpoint,
                                                           std::string user_agent);
  ~CurlTransport() override;  // Cancels what is under way.

  RequestId Start(ApiRequest request, OnDone on_done) override;
  void Cancel(RequestId request) override;
  const Counts& counts() const;

 private:
  class Session;
  explicit CurlTransport(std::unique_ptr<Session> session);
  std::unique_ptr<Session> session_;
};

}  // namespace rubato::kube
