#include "shim/core/jobs.h"

#include "shim/core/sys.h"

namespace rubato::shim {

namespace {

using abi::JobState;

uint32_t StateOf(const DeviceSession* session) {
  return abi::LoadRelaxed(session->slot->job.state);
}

void BeginJob(DeviceSession* session) {
  abi::JobLine& job = session->slot->job;
  const uint64_t now_ns = NowNs();
  uint32_t idle = static_cast<uint32_t>(JobState::kIdle);
  // The times first: a neighbour that sees the open state must not read those of the job before.
  // Several threads may begin the same job; their times differ by less than anybody resolves.
  abi::StoreRelaxed(job.first_op_ns, now_ns);
  if (__atomic_compare_exchange_n(&job.state, &idle, static_cast<uint32_t>(JobState::kOpen), false,
                                  __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    abi::StoreRelaxed(job.sequence, abi::LoadRelaxed(job.sequence) + 1);
    Count(session, abi::Counter::kJobs);
  }
}

bool AnyDirty(const DeviceSession* session) {
  const abi::SlotRegion& slot = *session->slot;
  if (abi::LoadRelaxed(slot.work.unlined_ops) != 0) return true;
  const uint32_t high = abi::LoadRelaxed(slot.work.stream_high_water);
  for (uint32_t i = 0; i < high; ++i) {
    if ((abi::LoadRelaxed(slot.streams[i].flags) & abi::kStreamDirty) != 0) return true;
  }
  return false;
}

void EndJob(DeviceSession* session, uint64_t waited_ns) {
  abi::SlotRegion& slot = *session->slot;
  const uint64_t now_ns = NowNs();
  uint32_t state = abi::LoadRelaxed(slot.job.state);
  if (state == static_cast<uint32_t>(JobState::kIdle)) return;
  abi::JobRecord record{};
  record.first_op_ns = abi::LoadRelaxed(slot.job.first_op_ns);
  record.end_ns = now_ns;
  record.sequence = abi::LoadRelaxed(slot.job.sequence);
  record.host_wait_ns = waited_ns > 0xffffffffu ? 0xffffffffu : static_cast<uint32_t>(waited_ns);
  const uint64_t previous_end_ns = abi::LoadRelaxed(slot.job.last_end_ns);
  abi::StoreRelaxed(slot.job.last_end_ns, now_ns);
  if (!__atomic_compare_exchange_n(&slot.job.state, &state, static_cast<uint32_t>(JobState::kIdle),
                                   false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    return;  // Another thread ended it, or went on with it.
  }
  const DeviceView* view = abi::LoadAcquire(session->view);
  const uint64_t think_ns =
      view != nullptr ? abi::LoadRelaxed(view->page->tenants[view->tenant].tenant.think_ns) : 0;
  if (previous_end_ns != 0 && record.first_op_ns >= previous_end_ns &&
      record.first_op_ns - previous_end_ns < think_ns) {
    record.flags |= abi::kJobContinued;
  }
  // The next job may have ended while this thread was on its way here: the ring has one writer at a
  // time, and a record is not worth a wait.
  if (__atomic_exchange_n(&session->recording, 1u, __ATOMIC_ACQUIRE) != 0) return;
  const uint64_t head = abi::LoadRelaxed(slot.heads.job_head);
  slot.jobs[head % abi::kJobRing] = record;
  abi::StoreRelease(slot.heads.job_head, head + 1);
  abi::StoreRelease(session->recording, 0u);
}

}  // namespace

void JobOp(DeviceSession* session, StreamState* stream) {
  SetDirty(session, stream);
  const uint32_t state = StateOf(session);
  if (state == static_cast<uint32_t>(JobState::kOpen)) return;
  if (state == static_cast<uint32_t>(JobState::kIdle)) {
    BeginJob(session);
  } else {
    // Another thread waits, or asked about something, while this one goes on with the job.
    uint32_t draining = state;
    __atomic_compare_exchange_n(&session->slot->job.state, &draining,
                                static_cast<uint32_t>(JobState::kOpen), false, __ATOMIC_RELEASE,
                                __ATOMIC_RELAXED);
  }
}

void JobDrain(const Driver& driver, DeviceSession* session, Handle context) {
  if (StateOf(session) != static_cast<uint32_t>(JobState::kOpen)) return;
  const DeviceView* view = abi::LoadAcquire(session->view);
  // Alone on the GPU nobody reads the words: the return of the wait tells the host the same.
  const bool watched =
      view != nullptr && abi::LoadRelaxed(view->page->state.besteffort_sessions) != 0;
  if (!watched) return;
  if (!EnqueueMarkers(driver, session, context)) return;
  uint32_t open = static_cast<uint32_t>(JobState::kOpen);
  __atomic_compare_exchange_n(&session->slot->job.state, &open,
                              static_cast<uint32_t>(JobState::kDraining), false, __ATOMIC_RELEASE,
                              __ATOMIC_RELAXED);
}

void JobWaited(DeviceSession* session, StreamState* reached, bool everything, uint64_t waited_ns) {
  if (StateOf(session) == static_cast<uint32_t>(JobState::kIdle)) return;
  if (reached != nullptr) MarkReached(session, reached);
  if (everything) MarkAllReached(session);
  if (AnyDirty(session)) return;
  EndJob(session, waited_ns);
}

bool JobDraining(const DeviceSession* session) {
  return StateOf(session) == static_cast<uint32_t>(JobState::kDraining);
}

}  // namespace rubato::shim
