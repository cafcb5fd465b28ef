// The control API (proto/control/v1) and gRPC's health service on their unix socket.
//
// gRPC has threads of its own; they only parse. Every call is posted to the loop's thread, where
// the handler owns all state, and answered from there, so no client, however slow, holds the loop
// up. The loop accepts the connections itself, checks who the peer is, and gives them to gRPC.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/event_loop.h"
#include "base/result.h"
#include "scheduler/core/tenant.h"
#include "scheduler/daemon/status.h"

namespace rubato::sched {

struct RegisteredTenant {
  TenantId id = 0;  // 0: refused, for the reason in `admission`.
  std::string attach_socket_path;
  std::string attach_token;
  AdmissionDecision admission;
};

struct SchedulerIdentity {
  std::string version;
  core::Mode mode = core::Mode::kTimeslice;
  uint64_t epoch = 0;
  std::string metrics_address;
  std::string runtime_directory;
  std::string mps_directory;
  uint32_t time_dilation = 1;
};

// What the control API asks for. All calls come on the loop's thread.
class ControlHandler {
 public:
  virtual ~ControlHandler() = default;
  virtual base::Result<RegisteredTenant> Register(const core::TenantSpec& spec,
                                                  const std::string& attach_token,
                                                  bool require_class) = 0;
  virtual base::Result<AdmissionDecision> Update(TenantId id, const core::TenantSpec& spec) = 0;
  // What would be decided, were the spec in the place of `replaced` (0: of nobody).
  virtual base::Result<AdmissionDecision> Check(const core::TenantSpec& spec,
                                                TenantId replaced) = 0;
  virtual base::Result<void> Unregister(TenantId id) = 0;
  virtual uint32_t SessionCount(TenantId id) const = 0;
  virtual SchedulerStatus Picture() = 0;
  virtual bool Draining() const = 0;
  virtual SchedulerIdentity Identity() const = 0;
  virtual std::vector<ProfileRow> LongestProfiles(size_t limit) = 0;
  virtual uint64_t ClearProfiles() = 0;  // Returns how many there were.
  virtual void Drain() = 0;
  virtual uint32_t Shutdown() = 0;  // Returns at once, with the number of live sessions.
};

class ControlServer {
 public:
  virtual ~ControlServer() = default;

  // Listens at `socket_path` (mode 0600). `loop` and `handler` outlive the server.
  static base::Result<std::unique_ptr<ControlServer>> Start(base::EventLoop* loop,
                                                            ControlHandler* handler,
                                                            const std::string& socket_path);

  // For the callers who hold a tenant.
  virtual void SessionsChanged(TenantId tenant, uint32_t sessions) = 0;
  virtual void TenantRemoved(TenantId tenant) = 0;
  // For the watchers of the health service.
  virtual void DrainingChanged() = 0;

  // Ends the streams and the server; `done` is posted to the loop, which must go on running until
  // then.
  virtual void Shutdown(std::function<void()> done) = 0;
};

}  // namespace rubato::sched
