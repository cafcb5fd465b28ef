// Labels of this node's own Node object: model of the GPU, mode, slots.
//
// Only where the configuration asks for it, because the right to patch a node is a strong one
// (nodes: patch, which cannot be narrowed to labels or to one name in a DaemonSet). A merge patch
// that names our labels alone. On the loop's thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "agent/kube/api_transport.h"
#include "agent/kube/timers.h"

namespace rubato::kube {

// `text` made into a label's value: other characters than letters, digits, '-', '_', '.' become
// '-', the ends are letters or digits, at most 63 characters. "NVIDIA H200" -> "NVIDIA-H200".
std::string LabelValue(std::string_view text);

class NodeLabels {
 public:
  // nullopt removes the label.
  using Labels = std::map<std::string, std::optional<std::string>>;

  // `client` repeats what fails for a while (an ApiClient); both outlive this. After a refusal the
  // next attempt comes after `retry_ns`.
  NodeLabels(ApiTransport* client, Timers* timers, std::string node_name,
             base::Nanos retry_ns = 300 * base::kSecond);
  ~NodeLabels();
  NodeLabels(const NodeLabels&) = delete;
  NodeLabels& operator=(const NodeLabels&) = delete;

  // What the labels shall be from now on; sent if it differs from what the server has accepted.
  // Labels that an earlier call named and this one does not are left as they are.
  void Set(const Labels& labels);

  bool current() const { return wanted_ == accepted_; }
  const std::string& trouble() const { return trouble_; }  // Empty: none.

 private:
  void Send();

  ApiTransport* client_;
  Timers* timers_;
  std::string node_name_;
  base::Nanos retry_ns_;
  Labels wanted_;
  Labels accepted_;
  std::string trouble_;
  ApiTransport::RequestId request_ = 0;
  Timers::TimerId timer_ = 0;
};

}  // namespace rubato::kube
