#include "agent/kube/api_client.h"

#include <algorithm>
#include <utility>

namespace rubato::kube {

ApiClient::ApiClient(ApiTransport* transport, Timers* timers, RandomSource random, Limits limits)
    : transport_(transport), timers_(timers), random_(std::move(random)), limits_(limits) {}

ApiClient::~ApiClient() {
  for (auto& [id, call] : calls_) {
    transport_->Cancel(call.attempt);
    timers_->RemoveTimer(call.timer);
  }
}

ApiTransport::RequestId ApiClient::Start(ApiRequest request, OnDone on_done) {
  const RequestId id = next_id_++;
  calls_.emplace(id, Call{std::move(request), std::move(on_done), Backoff(limits_.backoff, random_),
                          timers_->NowNs() + limits_.deadline_ns});
  Attempt(id);
  return id;
}

void ApiClient::Cancel(RequestId request) {
  const auto found = calls_.find(request);
  if (found == calls_.end()) return;
  transport_->Cancel(found->second.attempt);
  timers_->RemoveTimer(found->second.timer);
  calls_.erase(found);
}

void ApiClient::Attempt(RequestId id) {
  Call& call = calls_.at(id);
  call.timer = 0;
  ApiRequest request = call.request;
  const base::Nanos left_ns = call.deadline_ns - timers_->NowNs();
  request.timeout_ns = std::clamp<base::Nanos>(left_ns, 1, request.timeout_ns);
  call.attempt = transport_->Start(std::move(request),
                                   [this, id](ApiAnswer answer) { Finish(id, std::move(answer)); });
}

void ApiClient::Finish(RequestId id, ApiAnswer answer) {
  const auto found = calls_.find(id);
  if (found == calls_.end()) return;
  Call& call = found->second;
  call.attempt = 0;
  if (answer.passing() && !call.request.on_data) {
    const base::Nanos at_ns = timers_->NowNs() + call.backoff.Next(answer.retry_after_ns);
    if (at_ns < call.deadline_ns) {
      ++repeated_;
      call.timer = timers_->AddTimer(at_ns, [this, id] { Attempt(id); });
      return;
    }
  }
  const OnDone on_done = std::move(call.on_done);
  calls_.erase(found);
  on_done(std::move(answer));
}

}  // namespace rubato::kube
