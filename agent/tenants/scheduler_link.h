// The agent's line to rubato-scheduler: the control API, asynchronously.
//
// Calls are made from the loop's thread and answered on it; gRPC's threads only parse and post. The
// line holds a status stream open: its first message says that a scheduler is there and which one,
// its end that the scheduler is gone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/event_loop.h"
#include "base/result.h"
#include "base/time.h"
#include "proto/control/v1/control.pb.h"

namespace rubato::agent {

namespace control = rubato::control::v1;

struct RegisterAnswer {
  uint64_t tenant_id = 0;
  control::AdmissionDecision decision;
  bool class_refused = false;  // require_class, and it does not fit: there is no tenant.
};

class SchedulerLink {
 public:
  virtual ~SchedulerLink() = default;
  // The stream's messages and its end. Set before Start().
  struct Callbacks {
    std::function<void(const control::GetStatusResponse&)> status;
    std::function<void(const std::string& why)> lost;
  };
  virtual void Start(Callbacks callbacks) = 0;

  using Registered = std::function<void(base::Result<RegisterAnswer>)>;
  using Updated = std::function<void(base::Result<control::AdmissionDecision>)>;
  using Done = std::function<void(base::Result<void>)>;
  virtual void Register(const std::string& token, const control::TenantSpec& spec,
                        bool require_class, Registered registered) = 0;
  virtual void Update(uint64_t tenant_id, const control::TenantSpec& spec, Updated updated) = 0;
  virtual void Unregister(uint64_t tenant_id, Done done) = 0;

  // `socket_path` is the scheduler's control socket; it need not exist yet. `loop` outlives the
  // link; nothing is called back after its end.
  static std::unique_ptr<SchedulerLink> Make(base::EventLoop* loop, const std::string& socket_path,
                                             base::Nanos status_interval_ns);
};

}  // namespace rubato::agent
