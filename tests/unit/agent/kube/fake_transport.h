// A transport whose answers are the test's: it holds what was asked until the test answers.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "agent/kube/api_transport.h"

namespace rubato::kube {

class FakeTransport final : public ApiTransport {
 public:
  RequestId Start(ApiRequest request, OnDone on_done) override {
    paths_.push_back(request.path);
    open_.emplace(next_, std::pair(std::move(request), std::move(on_done)));
    return next_++;
  }
  void Cancel(RequestId request) override { open_.erase(request); }

  size_t open() const { return open_.size(); }
  size_t started() const { return paths_.size(); }
  const std::vector<std::string>& paths() const { return paths_; }
  // The oldest request that has no answer yet. Precondition: open() > 0.
  const ApiRequest& request() const { return open_.begin()->second.first; }

  // A piece of the body of the oldest request's 2xx answer. False: it wants no more.
  bool Data(std::string_view bytes) {
    const RequestId id = open_.begin()->first;
    const auto on_data = open_.begin()->second.first.on_data;
    const bool more = on_data(bytes);
    if (!more && open_.contains(id)) Answer({.end = ApiAnswer::End::kStopped, .status = 200});
    return more;
  }
  void Answer(ApiAnswer answer) {
    ASSERT_FALSE(open_.empty());
    auto node = open_.extract(open_.begin());
    node.mapped().second(std::move(answer));
  }
  void AnswerStatus(int status, std::string body = {}) {
    Answer({.end = ApiAnswer::End::kAnswered, .status = status, .body = std::move(body)});
  }
  // A stream's whole body and its end.
  void AnswerData(std::string_view bytes) {
    if (Data(bytes)) AnswerStatus(200);
  }
  void CutOff(int status = 0) {
    Answer({.end = ApiAnswer::End::kNoAnswer, .status = status, .error = "connection reset"});
  }

 private:
  std::map<RequestId, std::pair<ApiRequest, OnDone>> open_;
  std::vector<std::string> paths_;
  RequestId next_ = 1;
};

}  // namespace rubato::kube
