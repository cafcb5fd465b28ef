#include "scheduler/policies/realtime_task.h"

#include <algorithm>

namespace rubato::policies {
namespace {

// A leader without a job for so long gives its place to another session that has jobs.
constexpr Nanos kLeaderRestNs = kSecond;
// A tenant that declared a period and has not kept it for so many jobs is judged as an aperiodic
// one. Before that it warms up: it loads, captures, tunes, and nobody waits for a response.
constexpr uint64_t kWarmUpJobs = 64;

}  // namespace

RealtimeTask::RealtimeTask(const core::TenantSpec& spec, core::Mode mode,
                           const Constants& constants)
    : spec_(spec),
      mode_(mode),
      constants_(constants),
      release_(spec.period_ns, constants),
      hold_(spec.period_ns, constants) {}

void RealtimeTask::Respecify(const core::TenantSpec& spec) {
  if (spec.period_ns != spec_.period_ns) {
    relocks_before_ += release_.relocks();
    revocations_before_ += hold_.revocations();
    release_ = ReleaseModel(spec.period_ns, constants_);
    think_.Forget();
    locked_ = false;
    unlocked_jobs_ = 0;
    hold_ = HoldLimit(spec.period_ns, constants_);
    last_release_ns_ = 0;
  }
  spec_ = spec;
}

void RealtimeTask::OnLeaderJob(const core::Job& job) {
  const ReleasePrediction& prediction = release_.prediction();
  const Nanos previous_end_ns = last_end_ns_;
  last_end_ns_ = job.end_ns;
  const Nanos deadline_ns = core::EffectiveDeadline(spec_);
  if (prediction.kind != ReleaseKind::kLocked) {
    last_release_ns_ = 0;
    ++unlocked_jobs_;
    if (prediction.kind == ReleaseKind::kAperiodic || unlocked_jobs_ > kWarmUpJobs) {
      ledger_.OnJob(job, job.first_op_ns, deadline_ns);
    } else {
      ledger_.OnUnpromisedJob(job);
    }
    return;
  }
  Nanos release_ns = release_.ReleaseOf(job.first_op_ns);
  if (last_release_ns_ != 0) {
    const Nanos period_ns = prediction.period_ns;
    const bool at_once = job.first_op_ns - previous_end_ns < period_ns / 16;
    // A job that begins right after the one before it was late: it answers the release after that
    // one's, not the one it happens to begin near.
    const Nanos next_ns = last_release_ns_ + period_ns;
    if (at_once && next_ns < release_ns &&
        release_ns - next_ns < constants_.hold_limit_ns + period_ns)
      release_ns = next_ns;
    if (release_ns <= last_release_ns_ + period_ns / 2) {
      // The second for one release: a piece of the first, or a job that nobody predicted.
      if (job.first_op_ns - previous_end_ns >= period_ns / 4) ledger_.OnUnpromisedJob(job);
      return;
    }
  }
  last_release_ns_ = release_ns;
  ledger_.OnJob(job, release_ns, deadline_ns);
}

void RealtimeTask::OnReading(SessionKey session, const core::SlotReading& reading, Nanos now_ns) {
  SessionJobs& jobs = sessions_[session];
  jobs.open_since_ns = reading.job_open ? reading.job_first_op_ns : 0;
  jobs.assembler.Take(reading.jobs, jobs.open_since_ns, jobs_.think_ns, now_ns, &assembled_);
  open_ended_ns_ += assembled_.open_ns;
  if (leader_ == 0 || leader_ == session) {
    for (const core::JobGap& gap : assembled_.gaps) {
      GapPlace place = GapPlace::kUnknown;
      if (release_.prediction().kind == ReleaseKind::kLocked) {
        const bool inside = gap.gap_ns < PeriodNs() / 4 && release_.BetweenReleases(gap.at_ns);
        place = inside ? GapPlace::kInside : GapPlace::kBetween;
      }
      think_.OnGap(gap.gap_ns, place);
    }
  }
  if (assembled_.jobs.empty()) return;

  jobs.last_job_ns = assembled_.jobs.back().first_op_ns;
  if (leader_ != session) {
    const auto leader = sessions_.find(leader_);
    const Nanos rest_ns = std::max(kLeaderRestNs, 16 * PeriodNs());
    if (leader == sessions_.end() || jobs.last_job_ns - leader->second.last_job_ns > rest_ns) {
      leader_ = session;
      last_release_ns_ = 0;
    }
  }
  for (const core::Job& job : assembled_.jobs) {
    if (leader_ == session) {
      OnLeaderJob(job);
      release_.OnJob(job.first_op_ns, job.end_ns);
    } else {
      ledger_.OnJob(job, job.first_op_ns, core::EffectiveDeadline(spec_));
    }
    lengths_[length_count_ % kLengths] = job.end_ns - job.first_op_ns;
    ++length_count_;
  }
}

void RealtimeTask::OnSessionEnd(SessionKey session) {
  sessions_.erase(session);
  if (leader_ == session) leader_ = 0;
}

Nanos RealtimeTask::PeriodNs() const {
  const ReleasePrediction& prediction = release_.prediction();
  return prediction.period_ns != 0 ? prediction.period_ns : spec_.period_ns;
}

void RealtimeTask::OnLockChange() {
  const bool locked = release_.prediction().kind == ReleaseKind::kLocked;
  if (locked == locked_) return;
  locked_ = locked;
  think_.Forget();
  if (!locked) return;
  // What came before was a warm-up, and says nothing about the promise.
  if (unlocked_jobs_ > 0) ledger_.ForgetRecent();
  unlocked_jobs_ = 0;
}

void RealtimeTask::Update(Nanos now_ns) {
  release_.Update(now_ns);
  OnLockChange();
  jobs_.mret_ns = ledger_.mret_ns();
  // Between the lock and the first jobs that it judges there is nothing to go by.
  jobs_.think_ns = prediction().kind == ReleaseKind::kLearning
                       ? 0
                       : think_.ValueNs(locked_ ? prediction().period_ns : 0, constants_);
  const size_t known = std::min(length_count_, kLengths);
  if (known > 0) {
    // The lower quarter: whoever waits for a job's end wakes up by this and then looks closely.
    std::array<Nanos, kLengths> sorted = lengths_;
    std::sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(known));
    jobs_.typical_ns = sorted[known / 4];
  }
  // The jobs that are open now count too, so that one job without end is seen as well. Processes
  // count once each: a tenant gets no more of the others' time by having more of them.
  Nanos open_ns = open_ended_ns_;
  for (const auto& [key, session] : sessions_) {
    if (session.open_since_ns != 0) open_ns += now_ns - session.open_since_ns;
  }
  hold_.Update(open_ns, now_ns);
}

abi::TenantLine RealtimeTask::tenant_line() const {
  return TenantLineFor(spec_, mode_, jobs_, PeriodNs(), constants_);
}

abi::ReleaseLine RealtimeTask::release_line() const {
  return ReleaseLineFor(release_.prediction(), PreTouches(spec_, mode_), constants_);
}

abi::SpaceLine RealtimeTask::space_line() const {
  return SpaceLineFor(jobs_);
}

}  // namespace rubato::policies
