// What the fields of the other headers mean to a best-effort session: until when may its work run?
//
// The rule is part of the contract. Every session on a GPU evaluates it by itself, from copies of
// its neighbours' lines, and two versions of the shim that disagreed about it would break each
// other's promise; so it stands here, as pure functions of copied fields and a time, for the shim,
// the scheduler and the simulator alike. Everything copied from a slot is hostile: times from the
// future or the far past must do no more harm than a job that holds for `max_hold_ns`.
#pragma once

#include <cstdint>

#include "proto/abi/device.h"
#include "proto/abi/slot.h"

namespace rubato::abi {

inline constexpr uint64_t kNever = ~uint64_t{0};

// What a session knows of one real-time session, copied out of shared memory.
struct RealtimeView {
  TenantLine tenant;
  ReleaseLine release;
  JobLine job;
  bool words_reached;  // Every stream word of the session is reached.
  // Beginning of the latest job in the tenant's other sessions (0: none): a release is answered
  // once, by whichever of the tenant's processes serves it.
  uint64_t siblings_first_op_ns = 0;
};

enum class WindowState : uint8_t {
  kOpen = 0,         // Work that finishes by `until_ns` may go.
  kJob = 1,          // A job runs; look at the slot again, it ends without notice.
  kRelease = 2,      // A release is due or overdue and its job has not been seen yet; look again by
                     // `retry_ns`.
  kHoldIgnored = 3,  // Open, although a job is open: it has been for longer than its limit.
  kEnding = 4,       // Open, behind a job whose last work is on the GPU already.
};

struct Window {
  WindowState state;
  bool bounded;  // No valid release model: work in flight must also stay under the tenant's bound.
  uint64_t until_ns;  // Open: work must be done by then. kNever if nothing is predicted.
  uint64_t retry_ns;  // Closed: nothing changes before this time unless the slot does. kNever: only
                      // the slot can.
  uint64_t from_ns;   // Open: since when, as far as the slot tells (0: unknown).
};

// How long ago a neighbour's `time_ns` was. A time ahead of `now_ns` was written after this side
// had looked at the clock (it may have lost its core since): no time has passed. One that is ahead
// by more than `limit_ns` cannot be true and counts as long past.
inline uint64_t Since(uint64_t time_ns, uint64_t now_ns, uint64_t limit_ns) {
  if (time_ns <= now_ns) return now_ns - time_ns;
  return time_ns - now_ns <= limit_ns ? 0 : kNever;
}

// True if `release` may be extrapolated to `now_ns`.
inline bool ReleaseUsable(const ReleaseLine& release, uint64_t now_ns) {
  return (release.flags & kReleaseValid) != 0 && release.period_ns >= 1000 &&
         now_ns < release.valid_until_ns && release.period_ns < (uint64_t{1} << 40) &&
         release.phase_ns < (uint64_t{1} << 62) && release.early_ns < release.period_ns &&
         release.late_ns < release.period_ns && release.margin_ns < release.period_ns;
}

// The latest predicted release at or before `time_ns`. Releases extend without end in both
// directions.
inline uint64_t ReleaseAtOrBefore(const ReleaseLine& release, uint64_t time_ns) {
  if (time_ns >= release.phase_ns)
    return time_ns - (time_ns - release.phase_ns) % release.period_ns;
  const uint64_t behind = release.phase_ns - time_ns;
  const uint64_t periods = (behind + release.period_ns - 1) / release.period_ns;
  const uint64_t back = periods * release.period_ns;
  return back > release.phase_ns ? 0 : release.phase_ns - back;
}

// Is a job of this session under way, as far as its slot tells?
inline WindowState JobStateAt(const RealtimeView& view, uint64_t now_ns) {
  const JobLine& job = view.job;
  const uint64_t think_ns = view.tenant.think_ns < view.tenant.max_hold_ns
                                ? view.tenant.think_ns
                                : view.tenant.max_hold_ns;
  bool busy = false;
  if (job.state == static_cast<uint32_t>(JobState::kOpen)) {
    busy = true;
  } else if (job.state == static_cast<uint32_t>(JobState::kDraining)) {
    busy = !view.words_reached || think_ns != 0;
  } else {
    busy =
        !view.words_reached || Since(job.last_end_ns, now_ns, view.tenant.max_hold_ns) < think_ns;
  }
  if (!busy) return WindowState::kOpen;
  const bool held_too_long =
      Since(job.first_op_ns, now_ns, view.tenant.max_hold_ns) >= view.tenant.max_hold_ns;
  return held_too_long ? WindowState::kHoldIgnored : WindowState::kJob;
}

// The window that one real-time session leaves at `now_ns`.
inline Window WindowOf(const RealtimeView& view, uint64_t now_ns) {
  Window window{WindowState::kOpen, true, kNever, kNever, 0};
  window.state = JobStateAt(view, now_ns);
  const ReleaseLine& release = view.release;
  if (window.state == WindowState::kJob) {
    const bool ending = view.job.state == static_cast<uint32_t>(JobState::kDraining) &&
                        (view.tenant.flags & kTenantQueueBehind) != 0 &&
                        ReleaseUsable(release, now_ns);
    if (!ending) {
      window.retry_ns = view.job.first_op_ns + view.tenant.max_hold_ns;
      return window;
    }
    window.state = WindowState::kEnding;
  } else if (view.job.last_end_ns <= now_ns) {
    window.from_ns = view.job.last_end_ns;
  }
  if (!ReleaseUsable(release, now_ns)) return window;
  window.bounded = false;
  // The release whose earliest instant, less the margin, lies at or before now: its job has come,
  // or is still awaited.
  const uint64_t lead_ns = release.early_ns + release.margin_ns;
  const uint64_t due_ns = ReleaseAtOrBefore(release, now_ns + lead_ns);
  const uint64_t next_ns = due_ns + release.period_ns;
  // A job answers the release it is nearest to: one that began less than half a period before it is
  // it already.
  const auto answers = [&](uint64_t first_op_ns) {
    return Since(first_op_ns, now_ns, view.tenant.max_hold_ns) != kNever &&
           first_op_ns + release.period_ns / 2 >= due_ns;
  };
  const bool answered = answers(view.job.first_op_ns) || answers(view.siblings_first_op_ns);
  if (!answered && now_ns < due_ns + release.late_ns && window.state != WindowState::kHoldIgnored) {
    window.state = WindowState::kRelease;
    window.until_ns = 0;
    window.retry_ns = due_ns + release.late_ns;
    return window;
  }
  window.until_ns = next_ns > lead_ns ? next_ns - lead_ns : 0;
  return window;
}

}  // namespace rubato::abi
