// The daemon: everything of rubato-scheduler put together around one event loop.
//
// Owns the loop, the scheduler's state, its sockets and servers; decides when to poll (only while
// sessions are attached) and how to end.
#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/event_loop.h"
#include "base/result.h"
#include "scheduler/daemon/attach_server.h"
#include "scheduler/daemon/control_server.h"
#include "scheduler/daemon/metrics.h"
#include "scheduler/daemon/mps_watch.h"
#include "scheduler/daemon/options.h"
#include "scheduler/daemon/profile_store.h"
#include "scheduler/daemon/scheduler.h"

namespace rubato::sched {

class Daemon final : public ControlHandler {
 public:
  // Takes the lock of the runtime directory and listens. Fails if another scheduler runs there.
  static base::Result<std::unique_ptr<Daemon>> Start(const Options& options);
  ~Daemon() override;

  // Until SIGTERM, SIGINT or Shutdown().
  void Run();

  const std::string& metrics_address() const { return metrics_address_; }

  base::Result<RegisteredTenant> Register(const core::TenantSpec& spec,
                                          const std::string& attach_token,
                                          bool require_class) override;
  base::Result<AdmissionDecision> Update(TenantId id, const core::TenantSpec& spec) override;
  base::Result<AdmissionDecision> Check(const core::TenantSpec& spec, TenantId replaced) override;
  base::Result<void> Unregister(TenantId id) override;
  uint32_t SessionCount(TenantId id) const override;
  SchedulerStatus Picture() override;
  bool Draining() const override { return ending_ || scheduler_->draining(); }
  SchedulerIdentity Identity() const override;
  std::vector<ProfileRow> LongestProfiles(size_t limit) override;
  uint64_t ClearProfiles() override;
  void Drain() override;
  uint32_t Shutdown() override;

 private:
  explicit Daemon(const Options& options);
  base::Result<void> Begin();
  base::Result<void> TakeLock();
  void SchedulePoll();
  void Poll();
  void OpenProfiles();
  // Hands what was learnt to the store.
  void SaveProfiles();
  void LogState();
  // For the metrics' threads.
  std::optional<SchedulerStatus> PictureFromOtherThread();

  Options options_;
  base::SystemClock clock_;
  uint64_t epoch_ = 0;
  base::UniqueFd lock_;
  std::unique_ptr<base::EventLoop> loop_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<ProfileStore> profiles_;
  Nanos profiles_saved_ns_ = 0;
  std::unique_ptr<AttachServer> attach_;
  std::unique_ptr<MpsWatch> mps_;
  std::unique_ptr<ControlServer> control_;
  std::unique_ptr<MetricsServer> metrics_;
  std::string metrics_address_;
  base::EventLoop::TimerId poll_timer_ = 0;
  Nanos poll_due_ns_ = 0;
  bool ending_ = false;
};

}  // namespace rubato::sched
