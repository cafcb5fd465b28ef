#include "agent/kube/node_labels.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace rubato::kube {
namespace {

constexpr size_t kMaxValue = 63;

bool IsAlphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

}  // namespace

std::string LabelValue(std::string_view text) {
  std::string value;
  for (const char c : text) {
    if (value.size() == kMaxValue) break;
    const bool allowed = IsAlphanumeric(c) || c == '-' || c == '_' || c == '.';
    if (value.empty() && !IsAlphanumeric(c)) continue;
    value.push_back(allowed ? c : '-');
  }
  while (!value.empty() && !IsAlphanumeric(value.back())) value.pop_back();
  return value;
}

NodeLabels::NodeLabels(ApiTransport* client, Timers* timers, std::string node_name,
                       base::Nanos retry_ns)
    : client_(client), timers_(timers), node_name_(std::move(node_name)), retry_ns_(retry_ns) {}

NodeLabels::~NodeLabels() {
  client_->Cancel(request_);
  timers_->RemoveTimer(timer_);
}

void NodeLabels::Set(const Labels& labels) {
  wanted_ = labels;
  if (request_ == 0 && timer_ == 0 && !current()) Send();
}

void NodeLabels::Send() {
  nlohmann::json values = nlohmann::json::object();
  for (const auto& [name, value] : wanted_) {
    values[name] = value ? nlohmann::json(*value) : nlohmann::json(nullptr);
  }
  ApiRequest request;
  request.method = Method::kPatch;
  request.path = "/api/v1/nodes/" + UrlEscape(node_name_);
  request.content_type = "application/merge-patch+json";
  const nlohmann::json patch = {{"metadata", {{"labels", std::move(values)}}}};
  request.body = patch.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  request_ = client_->Start(std::move(request), [this, sent = wanted_](const ApiAnswer& answer) {
    request_ = 0;
    if (answer.ok()) {
      accepted_ = sent;
      trouble_.clear();
      if (!current()) Send();
      return;
    }
    trouble_ = "cannot label node " + node_name_ + ": " +
               (answer.end == ApiAnswer::End::kAnswered
                    ? "HTTP status " + std::to_string(answer.status) +
                          (answer.status == 403 ? " (the right to patch nodes is missing)" : "")
                    : answer.error);
    timer_ = timers_->AddTimer(timers_->NowNs() + retry_ns_, [this] {
      timer_ = 0;
      if (!current()) Send();
    });
  });
}

}  // namespace rubato::kube
