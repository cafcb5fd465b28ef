// Everything that is learnt about one real-time tenant on one device, and the lines that follow.
//
// Takes what the sessions of the tenant did since the last poll and turns it into the ledger, the
// release model, the think time, the length of jobs and the right to hold. Several processes of a
// tenant may run jobs; the release model follows one of them, the leader, until it rests: two
// interleaved grids are no grid. Pure; one per real-time tenant and device.
#pragma once

#include <map>

#include "scheduler/core/job_assembler.h"
#include "scheduler/core/job_ledger.h"
#include "scheduler/core/slot_reader.h"
#include "scheduler/core/tenant.h"
#include "scheduler/policies/bounds.h"
#include "scheduler/policies/hold_limit.h"
#include "scheduler/policies/release_model.h"
#include "scheduler/policies/think_time.h"

namespace rubato::policies {

class RealtimeTask {
 public:
  using SessionKey = uint64_t;  // Unique among the tenant's sessions, ever; not 0.

  RealtimeTask(const core::TenantSpec& spec, core::Mode mode, const Constants& constants);

  // What one session did. Call for each session, then Update once.
  void OnReading(SessionKey session, const core::SlotReading& reading, Nanos now_ns);
  void OnSessionEnd(SessionKey session);
  void Update(Nanos now_ns);

  // The spec may change while sessions live; a new period starts the release model anew.
  void Respecify(const core::TenantSpec& spec);

  abi::TenantLine tenant_line() const;
  abi::ReleaseLine release_line() const;
  abi::SpaceLine space_line() const;
  bool may_hold() const { return hold_.may_hold(); }

  const core::JobLedger& ledger() const { return ledger_; }
  const ReleasePrediction& prediction() const { return release_.prediction(); }
  uint64_t relocks() const { return relocks_before_ + release_.relocks(); }
  uint64_t hold_revocations() const { return revocations_before_ + hold_.revocations(); }
  const JobKnowledge& jobs() const { return jobs_; }

 private:
  struct SessionJobs {
    core::JobAssembler assembler;
    Nanos last_job_ns = 0;
    Nanos open_since_ns = 0;
  };
  static constexpr size_t kLengths = 16;

  Nanos PeriodNs() const;
  void OnLeaderJob(const core::Job& job);
  void OnLockChange();

  core::TenantSpec spec_;
  core::Mode mode_;
  Constants constants_;
  core::JobLedger ledger_;
  ReleaseModel release_;
  ThinkTime think_;
  HoldLimit hold_;
  uint64_t relocks_before_ = 0;  // Of earlier models, before the spec changed.
  uint64_t revocations_before_ = 0;
  JobKnowledge jobs_;
  std::array<Nanos, kLengths> lengths_{};
  size_t length_count_ = 0;
  std::map<SessionKey, SessionJobs> sessions_;
  SessionKey leader_ = 0;
  Nanos open_ended_ns_ = 0;     // Open time of all pieces that have ended.
  bool locked_ = false;         // At the last update.
  uint64_t unlocked_jobs_ = 0;  // Of the leader, since releases were predicted last.
  Nanos last_release_ns_ = 0;   // That the leader's last job answered.
  Nanos last_end_ns_ = 0;       // Of the leader's last job.
  core::AssembledJobs assembled_;
};

}  // namespace rubato::policies
