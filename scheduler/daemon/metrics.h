// The metrics: a picture of the scheduler in Prometheus's words, and the HTTP server that shows it.
//
// The server has threads of its own; at each scrape one of them asks the loop for a picture and
// turns it into text. Nothing is kept twice, so nothing can disagree.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "scheduler/daemon/status.h"

namespace rubato::sched {

struct MetricsInfo {
  std::string version;
  std::string mode;
  std::string abi;
};

// The text of one scrape; for tests, and for whoever has no HTTP.
std::string MetricsText(const SchedulerStatus& status, const MetricsInfo& info);

class MetricsServer {
 public:
  // Asks for a picture, from any thread; nullopt: not now.
  using Source = std::function<std::optional<SchedulerStatus>()>;

  virtual ~MetricsServer() = default;
  // `address`: host:port, port 0 for a free one. `source` is called until the destructor returns.
  static base::Result<std::unique_ptr<MetricsServer>> Start(const std::string& address,
                                                            MetricsInfo info, Source source);
  // host:port that was bound.
  virtual const std::string& address() const = 0;
};

}  // namespace rubato::sched
