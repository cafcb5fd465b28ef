#include "shim/core/gate.h"

#include "shim/core/attach.h"
#include "shim/core/launch_clock.h"
#include "shim/core/streams.h"
#include "shim/core/sys.h"

namespace rubato::shim {

namespace {

// A neighbour's claim of work in flight counts for at most this long: it can lie about itself only.
constexpr uint64_t kLongestClaimNs = 50'000'000;
// Without a predicted job length a closed gate is looked at again this soon.
constexpr uint64_t kBlindRetryNs = 50'000;
// A job that nothing predicts is looked at this often.
constexpr uint64_t kUnpredictedLookNs = 200'000;
// A thread spins for at most this many spin times past the predicted moment, then naps.
constexpr uint64_t kSpinBudget = 8;
constexpr uint64_t kOverdueNapNs = 100'000;
// A queue that was predicted too long is noticed within this.
constexpr uint64_t kQueueNapNs = 500'000;
// A queue, or the room behind it, has about this many markers in it: they cost the GPU a pause as
// well as the host a call.
constexpr uint64_t kQueueParts = 8;
// A thread that lost its core has it back within this, mostly: a time slice of the host's.
constexpr uint64_t kPreemptionNs = 2'000'000;

// What the policy says of one tenant. Policies change some times a second and are read at every
// launch: a thread keeps its last copy of one tenant and takes it as long as the lines' sequences
// are what they were.
struct Policy {
  const abi::TenantEntry* entry;
  uint32_t sequences[3];
  abi::RealtimeView view;  // The tenant's lines in it are kept; the rest is filled in at each look.
  uint64_t job_ns;
};

thread_local Policy t_policy;

// Null if the scheduler died while it wrote.
Policy* ReadPolicy(const abi::TenantEntry& entry) {
  const uint32_t sequences[3] = {abi::LoadAcquire(entry.tenant.sequence),
                                 abi::LoadAcquire(entry.release.sequence),
                                 abi::LoadAcquire(entry.space.sequence)};
  if (t_policy.entry == &entry && sequences[0] == t_policy.sequences[0] &&
      sequences[1] == t_policy.sequences[1] && sequences[2] == t_policy.sequences[2]) {
    return &t_policy;
  }
  t_policy.entry = nullptr;
  abi::SpaceLine space;
  if (!abi::ReadLine(entry.tenant, &t_policy.view.tenant) ||
      !abi::ReadLine(entry.release, &t_policy.view.release) ||
      !abi::ReadLine(entry.space, &space)) {
    return nullptr;
  }
  // Of the copies, not of the look before: a line that changed in between is then read again.
  t_policy.sequences[0] = t_policy.view.tenant.sequence;
  t_policy.sequences[1] = t_policy.view.release.sequence;
  t_policy.sequences[2] = space.sequence;
  t_policy.job_ns = space.job_ns;
  t_policy.entry = &entry;
  return &t_policy;
}

void Bound(uint64_t bound_ns, GateView* view) {
  view->bounded = true;
  if (bound_ns < view->bound_ns) view->bound_ns = bound_ns;
}

// `slot` null: the session is in the directory, but has not been fetched yet.
void AddRealtime(const abi::DeviceRegion& page, uint32_t tenant_index, const abi::SlotRegion* slot,
                 uint64_t siblings_first_op_ns, uint64_t now_ns, GateView* view) {
  Policy* policy = ReadPolicy(page.tenants[tenant_index]);
  if (policy == nullptr) {
    // The safe reading of a line that nobody will finish is a neighbour of whom nothing is known.
    Bound(page.constants.fallback_bound_ns, view);
    return;
  }
  if (slot == nullptr) {
    Bound(policy->view.tenant.bound_ns, view);
    return;
  }
  abi::RealtimeView& seen = policy->view;
  seen.siblings_first_op_ns = siblings_first_op_ns;
  seen.job.state = abi::LoadAcquire(slot->job.state);
  seen.job.first_op_ns = abi::LoadRelaxed(slot->job.first_op_ns);
  seen.job.last_end_ns = abi::LoadRelaxed(slot->job.last_end_ns);
  seen.words_reached =
      seen.job.state != static_cast<uint32_t>(abi::JobState::kOpen) && AllWordsReached(*slot);
  const abi::Window window = abi::WindowOf(seen, now_ns);
  const uint64_t job_ns = policy->job_ns < seen.tenant.max_hold_ns ? policy->job_ns : 0;
  switch (window.state) {
    case abi::WindowState::kJob: {
      // A job is as long as predicted from its release on. What comes after that in the same period
      // (a read-back, a last small kernel) ends soon; and a job without a release may be of any
      // length, so it is looked at now and then.
      const bool predicted = abi::ReleaseUsable(seen.release, now_ns);
      uint64_t end_ns = seen.job.first_op_ns;
      if (predicted) {
        end_ns = abi::ReleaseAtOrBefore(seen.release, seen.job.first_op_ns + seen.release.early_ns);
      }
      end_ns += job_ns;
      if (!predicted && end_ns > now_ns + kUnpredictedLookNs) end_ns = now_ns + kUnpredictedLookNs;
      if (job_ns == 0 || end_ns < now_ns) end_ns = now_ns + kBlindRetryNs;
      if (window.retry_ns < end_ns) end_ns = window.retry_ns;
      if (!view->closed || end_ns > view->retry_ns) view->retry_ns = end_ns;
      view->closed = true;
      return;
    }
    case abi::WindowState::kRelease: {
      // The job that is due will run for its length; if it does not come, the window opens at
      // retry_ns. Look at whichever is first.
      const uint64_t due_ns = window.retry_ns - seen.release.late_ns;
      uint64_t end_ns = due_ns + job_ns;
      if (job_ns == 0 || end_ns > window.retry_ns) end_ns = window.retry_ns;
      if (!view->closed || end_ns > view->retry_ns) view->retry_ns = end_ns;
      view->closed = true;
      return;
    }
    case abi::WindowState::kEnding: {
      const uint64_t begin_ns =
          abi::ReleaseAtOrBefore(seen.release, seen.job.first_op_ns + seen.release.early_ns);
      // A job that is longer than most will end soon, but not at once.
      const uint64_t end_ns = begin_ns + job_ns;
      const uint64_t left_ns = end_ns > now_ns ? end_ns - now_ns : job_ns / 8;
      if (left_ns > view->ahead_ns) view->ahead_ns = left_ns;
      break;
    }
    case abi::WindowState::kHoldIgnored:
      view->holds_ignored++;
      break;
    case abi::WindowState::kOpen:
      break;
  }
  if (window.bounded) {
    // Once the scheduler is lost nobody learns or renews models any more: there is less to protect,
    // and more to lose.
    Bound(abi::LoadRelaxed(g_state.lost) != 0 ? page.constants.fallback_bound_ns
                                              : seen.tenant.bound_ns,
          view);
  }
  if (window.until_ns < view->until_ns) {
    view->until_ns = window.until_ns;
    view->reopen_ns = window.until_ns + seen.release.early_ns + seen.release.margin_ns + job_ns;
  }
}

void AddBestEffort(const abi::SlotRegion& slot, uint64_t now_ns, GateView* view) {
  const uint64_t until_ns = abi::LoadRelaxed(slot.work.inflight_until_ns);
  if (until_ns <= now_ns || AllWordsReached(slot)) return;
  const uint64_t left_ns = until_ns - now_ns;
  view->others_ns += left_ns < kLongestClaimNs ? left_ns : kLongestClaimNs;
}

// When the latest job began in the live sessions of `tenant` other than `session`.
uint64_t SiblingsFirstOp(const DeviceView& view, uint32_t tenant, uint32_t session, uint32_t high) {
  uint64_t latest_ns = 0;
  for (uint32_t i = 0; i < high; ++i) {
    const abi::SessionEntry& entry = view.page->sessions[i];
    const uint32_t generation = abi::LoadAcquire(entry.generation);
    if (i == session || (generation & 1u) == 0 || abi::LoadRelaxed(entry.tenant) != tenant)
      continue;
    const abi::SlotRegion* slot = PeerSlot(view.peers[i], generation);
    if (slot == nullptr) continue;
    const uint64_t first_op_ns = abi::LoadRelaxed(slot->job.first_op_ns);
    if (first_op_ns > latest_ns) latest_ns = first_op_ns;
  }
  return latest_ns;
}

void AddView(const DeviceView& view, uint64_t now_ns, GateView* result) {
  const abi::DeviceRegion& page = *view.page;
  uint32_t high = abi::LoadAcquire(page.state.session_high_water);
  if (high > abi::kMaxSessions) high = abi::kMaxSessions;
  const bool several = abi::LoadRelaxed(page.state.realtime_sessions) > 1;
  for (uint32_t i = 0; i < high; ++i) {
    if (i == view.session) continue;
    const abi::SessionEntry& entry = page.sessions[i];
    const uint32_t generation = abi::LoadAcquire(entry.generation);
    if ((generation & 1u) == 0) continue;
    const abi::SlotRegion* slot = PeerSlot(view.peers[i], generation);
    const uint32_t tenant = abi::LoadRelaxed(entry.tenant);
    if (tenant >= abi::kMaxTenants) continue;
    const uint32_t tenant_class = abi::LoadRelaxed(entry.tenant_class);
    if (tenant_class == static_cast<uint32_t>(abi::TenantClass::kRealtime)) {
      if ((abi::LoadRelaxed(entry.flags) & abi::kSessionMayHold) != 0) {
        const uint64_t siblings_first_op_ns = several ? SiblingsFirstOp(view, tenant, i, high) : 0;
        AddRealtime(page, tenant, slot, siblings_first_op_ns, now_ns, result);
      }
    } else if (slot != nullptr) {
      AddBestEffort(*slot, now_ns, result);
    }
  }
}

}  // namespace

GateView ReadNeighbours(const DeviceSession& session, uint64_t now_ns) {
  GateView result{};
  result.until_ns = abi::kNever;
  result.bound_ns = abi::kNever;
  const DeviceView* view = abi::LoadAcquire(session.view);
  if (view != nullptr) AddView(*view, now_ns, &result);
  // After a restart of the scheduler, real-time tenants come back one by one: until the lease of
  // the earlier view ends, what it says holds too.
  const DeviceView* previous = abi::LoadAcquire(session.previous);
  if (previous != nullptr && now_ns < abi::LoadRelaxed(previous->until_ns)) {
    AddView(*previous, now_ns, &result);
  }
  return result;
}

uint64_t OwnInflightNs(const Driver& driver, DeviceSession* session, uint64_t now_ns) {
  uint64_t most_ns = 0;
  uint64_t least_ns = 0;
  const auto add = [&](const Outstanding& stream) {
    most_ns += stream.most_ns;
    // Streams run side by side: together they take at least what the longest of them takes.
    if (stream.least_ns > least_ns) least_ns = stream.least_ns;
  };
  const uint32_t high = abi::LoadRelaxed(session->slot->work.stream_high_water);
  for (uint32_t i = 0; i < high; ++i) {
    add(OutstandingOf(driver, session, &session->streams->states[i]));
  }
  add(OutstandingOf(driver, session, &session->streams->overflow));
  if (most_ns == 0) return 0;
  const uint64_t until_ns = abi::LoadRelaxed(session->slot->work.inflight_until_ns);
  // Work that is overdue will end soon, but not at once.
  const uint64_t left_ns = until_ns > now_ns ? until_ns - now_ns : most_ns / 4 + 1;
  if (left_ns < least_ns) return least_ns;
  return left_ns < most_ns ? left_ns : most_ns;
}

namespace {

// Publishes an op behind what is in flight. Threads that race may each shorten the other's claim
// for one op.
void Publish(DeviceSession* session, uint64_t begin_ns, uint64_t queue_ns, uint64_t op_ns) {
  abi::WorkLine& work = session->slot->work;
  abi::StoreRelease(work.inflight_until_ns, begin_ns + queue_ns + op_ns);
  const uint64_t longest_ns = abi::LoadRelaxed(work.longest_op_ns);
  if (op_ns > longest_ns || (queue_ns == 0 && op_ns != longest_ns)) {
    abi::StoreRelaxed(work.longest_op_ns, op_ns);
  }
}

// OwnInflightNs without a look at the other threads' streams, whose lines change with every op of
// theirs: what was published, and at least what this op's own stream has behind its next marker. 0:
// not known this way.
uint64_t ClaimedInflightNs(const Driver& driver, DeviceSession* session, StreamState* stream,
                           uint64_t now_ns) {
  // Right behind a marker all streams are looked at, so that a claim which grew too long is mended.
  if (abi::LoadRelaxed(stream->ops_since_mark) == 0) return 0;
  const uint64_t until_ns = abi::LoadRelaxed(session->slot->work.inflight_until_ns);
  if (until_ns <= now_ns) return 0;
  const uint64_t left_ns = until_ns - now_ns;
  const uint64_t least_ns = OutstandingOf(driver, session, stream).least_ns;
  return left_ns < least_ns ? least_ns : left_ns;
}

}  // namespace

namespace {

// Two readings of the launch clock may stand the wrong way round by some nanoseconds.
uint64_t Elapsed(uint64_t from_ns, uint64_t to_ns) {
  return to_ns > from_ns ? to_ns - from_ns : 0;
}

struct Look {
  uint64_t now_ns;
  const DeviceView* view;
  bool neighbours;  // Real-time ones.
  bool shared;      // Other best-effort ones.
};

Look LookAround(DeviceSession* session) {
  Look look;
  look.now_ns = LaunchNowNs();
  look.view = abi::LoadAcquire(session->view);
  const abi::DeviceState& state = look.view->page->state;
  if (abi::LoadRelaxed(state.generation) != abi::LoadRelaxed(look.view->generation)) {
    RefreshPeers(session);
  }
  look.neighbours = abi::LoadRelaxed(state.realtime_sessions) != 0 ||
                    abi::LoadRelaxed(session->previous) != nullptr;
  look.shared = abi::LoadRelaxed(state.besteffort_sessions) > 1;
  return look;
}

// Sleeps or spins until a closed gate is worth another look.
void Pause(uint64_t now_ns, uint64_t wake_ns, uint64_t spin_ns, uint64_t sleep_floor_ns,
           uint64_t* spun_ns) {
  if (wake_ns > now_ns + spin_ns + sleep_floor_ns) {
    SleepUntil(wake_ns - spin_ns);
    *spun_ns = 0;
    return;
  }
  if (*spun_ns < kSpinBudget * spin_ns) {
    for (int i = 0; i < 32; ++i) CpuRelax();
    *spun_ns += Elapsed(now_ns, LaunchNowNs());
    return;
  }
  // The prediction was wrong by more than it is worth to burn a core for.
  SleepUntil(now_ns + kOverdueNapNs);
}

}  // namespace

uint64_t PassGate(const Driver& driver, DeviceSession* session, StreamState* stream,
                  uint64_t op_ns) {
  Look look = LookAround(session);
  if (!look.neighbours) {
    // Nobody to wait for; but a real-time tenant that arrives next wants to know what is in flight.
    const uint64_t until_ns = abi::LoadRelaxed(session->slot->work.inflight_until_ns);
    const uint64_t queue_ns = until_ns > look.now_ns ? until_ns - look.now_ns : 0;
    Publish(session, look.now_ns, queue_ns, op_ns);
    return queue_ns / kQueueParts;
  }
  const uint64_t begin_ns = look.now_ns;
  const abi::DeviceConstants& constants = look.view->page->constants;
  const uint64_t spin_ns = constants.spin_ns;
  const uint64_t sleep_floor_ns = constants.sleep_floor_ns;
  uint64_t expire_ns = op_ns * constants.expire_factor;
  if (expire_ns < constants.expire_floor_ns) expire_ns = constants.expire_floor_ns;
  bool waiting = false;
  bool marked = false;
  uint64_t spun_ns = 0;
  uint64_t unmarked_ns = 0;
  for (;;) {
    GateView view = ReadNeighbours(*session, look.now_ns);
    uint64_t own_ns = ClaimedInflightNs(driver, session, stream, look.now_ns);
    GateAnswer answer = Decide(view, op_ns, own_ns, look.now_ns);
    if (own_ns == 0 || answer != GateAnswer::kGo) {
      own_ns = OwnInflightNs(driver, session, look.now_ns);
      answer = Decide(view, op_ns, own_ns, look.now_ns);
    }
    const uint64_t waited_ns = Elapsed(begin_ns, look.now_ns);
    if (answer != GateAnswer::kGo && waited_ns >= expire_ns) {
      // An op that no window will ever fit goes right after a job, alone; and if no job ends, at
      // twice the time anyway: nobody is starved for ever.
      if ((!view.closed && own_ns + view.others_ns == 0) || waited_ns >= 2 * expire_ns) {
        Count(session, abi::Counter::kGateExpired);
        answer = GateAnswer::kGo;
        view.until_ns = abi::kNever;
      }
    }
    if (answer == GateAnswer::kGo) {
      Publish(session, look.now_ns + view.ahead_ns, own_ns, op_ns);
      bool retract = false;
      if (look.shared) {
        // Two sessions may have read each other before either had published. After the fence at
        // least one of them sees the other; it takes its claim back and looks again.
        abi::FenceSeqCst();
        const GateView again = ReadNeighbours(*session, look.now_ns);
        retract = again.others_ns > view.others_ns && waited_ns < expire_ns &&
                  Decide(again, op_ns, own_ns, look.now_ns) != GateAnswer::kGo;
      }
      // The thread may have lost its core since it looked at the clock. Worth another look only
      // where that could matter.
      const uint64_t end_ns = look.now_ns + own_ns + view.others_ns + view.ahead_ns + op_ns;
      if (!retract && view.until_ns != abi::kNever && view.until_ns - end_ns < kPreemptionNs) {
        retract = Elapsed(look.now_ns, LaunchNowNs()) > view.until_ns - end_ns;
      }
      if (!retract) {
        const uint64_t room_ns = view.until_ns > end_ns ? view.until_ns - end_ns : 0;
        unmarked_ns = (view.until_ns != abi::kNever ? room_ns : own_ns) / kQueueParts;
        if (view.holds_ignored != 0) {
          Count(session, abi::Counter::kHoldsIgnored, view.holds_ignored);
        }
        break;
      }
      abi::StoreRelease(session->slot->work.inflight_until_ns,
                        look.now_ns + view.ahead_ns + own_ns);
      CpuRelax();
      look = LookAround(session);
      continue;
    }
    if (!waiting) {
      waiting = true;
      __atomic_fetch_add(&session->slot->work.waiting, 1u, __ATOMIC_RELAXED);
      Count(session, abi::Counter::kGateWaits);
    }
    // Ops that no marker covers yet would look like work in flight for as long as this thread
    // waits, and so might keep it waiting. Not while a job runs or is due: a marker is work of this
    // context, and would take the GPU from the real-time one for two switches.
    if (!marked && answer != GateAnswer::kWaitClosed && own_ns != 0 &&
        abi::LoadRelaxed(g_state.active_captures) == 0) {
      marked = true;
      Handle context = 0;
      driver.current_context(&context);
      EnqueueMarkers(driver, session, context);
    }
    uint64_t wake_ns = begin_ns + 2 * expire_ns;
    if (answer == GateAnswer::kWaitClosed && view.retry_ns < wake_ns) wake_ns = view.retry_ns;
    if (answer == GateAnswer::kWaitWindow && view.reopen_ns < wake_ns) wake_ns = view.reopen_ns;
    // The queue must shrink by what is missing; markers may show that it did so earlier.
    if (answer == GateAnswer::kWaitQueue) {
      const uint64_t half_ns = (own_ns + view.others_ns) / 2;
      const uint64_t nap_ns = half_ns < kQueueNapNs ? half_ns : kQueueNapNs;
      if (look.now_ns + nap_ns < wake_ns) wake_ns = look.now_ns + nap_ns;
    }
    Pause(look.now_ns, wake_ns, spin_ns, sleep_floor_ns, &spun_ns);
    look = LookAround(session);
    if (!Attached()) break;
  }
  if (!waiting) return unmarked_ns;
  __atomic_fetch_sub(&session->slot->work.waiting, 1u, __ATOMIC_RELAXED);
  Count(session, abi::Counter::kGateWaitNs, Elapsed(begin_ns, NowNs()));
  return unmarked_ns;
}

}  // namespace rubato::shim
