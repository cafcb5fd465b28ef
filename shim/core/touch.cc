#include "shim/core/touch.h"

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto/abi/window.h"
#include "shim/core/attach.h"
#include "shim/core/core.h"
#include "shim/core/sys.h"

namespace rubato::shim {

namespace {

// Without a usable model the thread looks for one this often.
constexpr uint64_t kIdleLookNs = 50'000'000;
// A sleeping thread is woken by the kernel up to this late; the rest is spun.
constexpr uint64_t kWakeSlackNs = 30'000;

using ThreadEntry = void* (*)(void*);
using CreateThread = int (*)(unsigned long*, const void*, ThreadEntry, void*);
using DetachThread = int (*)(unsigned long);

// The kernel's signal set, through the system call: the library's own call leaves out the signals
// that the library uses itself, and the host's handlers must never run on this thread.
void BlockSignals(uint64_t* previous) {
  const uint64_t all = ~uint64_t{0};
  syscall(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, previous, sizeof(all));
}
void RestoreSignals(uint64_t previous) {
  syscall(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, &previous, nullptr, sizeof(previous));
}

struct Plan {
  bool touch;         // A release is predicted, and somebody else may hold the GPU before it.
  uint64_t touch_ns;  // When to touch.
  uint64_t release_ns;
};

Plan PlanNext(DeviceSession* session, uint64_t now_ns) {
  Plan plan{false, 0, 0};
  const DeviceView* view = abi::LoadAcquire(session->view);
  const abi::TenantEntry& entry = view->page->tenants[view->tenant];
  abi::TenantLine tenant;
  abi::ReleaseLine release;
  if (abi::LoadRelaxed(view->page->state.besteffort_sessions) != 0 &&
      abi::ReadLine(entry.tenant, &tenant) && abi::ReadLine(entry.release, &release) &&
      (tenant.flags & abi::kTenantTouch) != 0 && abi::ReleaseUsable(release, now_ns) &&
      release.touch_lead_ns < release.period_ns) {
    plan.release_ns =
        abi::ReleaseAtOrBefore(release, now_ns + release.touch_lead_ns) + release.period_ns;
    plan.touch_ns = plan.release_ns - release.touch_lead_ns;
    plan.touch = true;
  }
  return plan;
}

void* TouchLoop(void* argument) {
  auto* touch = static_cast<Touch*>(argument);
  DeviceSession* session = touch->session;
  const Driver& driver = *GetDriver();
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  Handle handle = 0;
  abi::StoreRelease(touch->calling, 1u);
  bool alive = abi::LoadAcquire(touch->stop) == 0 && driver.set_context(touch->context) == 0;
  if (alive) {
    int mode = 0;
    // Another thread's capture in global mode would forbid loading a module here.
    const bool relaxed = driver.relax_capture != nullptr && driver.relax_capture(&mode) == 0;
    alive = relaxed && driver.touch_prepare(&handle) == 0;
  }
  abi::StoreRelease(touch->calling, 0u);
  while (alive && Attached() && abi::LoadAcquire(touch->stop) == 0) {
    uint64_t now_ns = NowNs();
    const Plan plan = PlanNext(session, now_ns);
    if (!plan.touch || plan.touch_ns > now_ns + kIdleLookNs) {
      // Arrivals, departures and new models are noticed here; nobody has to wake this thread.
      SleepUntil(now_ns + kIdleLookNs / 2);
      continue;
    }
    if (plan.touch_ns > now_ns + kWakeSlackNs) SleepUntil(plan.touch_ns - kWakeSlackNs);
    while ((now_ns = NowNs()) < plan.touch_ns) CpuRelax();
    if (now_ns >= plan.release_ns) {
      Count(session, abi::Counter::kTouchesLate);
      continue;
    }
    // A job that runs holds the GPU already.
    if (abi::LoadAcquire(session->slot->job.state) != static_cast<uint32_t>(abi::JobState::kIdle)) {
      SleepUntil(plan.release_ns);
      continue;
    }
    const uint64_t jobs =
        abi::LoadRelaxed(session->slot->counters.value[static_cast<uint32_t>(abi::Counter::kJobs)]);
    if (touch->jobs_seen == jobs) Count(session, abi::Counter::kTouchesWasted);
    touch->jobs_seen = jobs;
    abi::StoreRelease(touch->calling, 1u);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (abi::LoadAcquire(touch->stop) == 0) {
      alive = driver.touch_launch(handle) == 0;
      if (alive) {
        abi::StoreRelaxed(session->slot->job.touched_ns, now_ns);
        Count(session, abi::Counter::kTouches);
      }
    }
    abi::StoreRelease(touch->calling, 0u);
    SleepUntil(plan.release_ns);
  }
  if (!alive) abi::StoreRelaxed(touch->failed, 1u);
  abi::StoreRelease(touch->started, 0u);
  return nullptr;
}

}  // namespace

Touch* NewTouch() {
  return static_cast<Touch*>(MapZeroed(sizeof(Touch)));
}

void EnsureTouch(const Driver& driver, DeviceSession* session, Handle context) {
  Touch* touch = session->touch;
  if (touch == nullptr || abi::LoadRelaxed(touch->started) != 0 ||
      abi::LoadRelaxed(touch->failed) != 0) {
    return;
  }
  if (context == 0 || driver.touch_prepare == nullptr || driver.touch_launch == nullptr ||
      driver.set_context == nullptr || driver.find_symbol == nullptr) {
    return;
  }
  if (abi::LoadRelaxed(g_state.active_captures) != 0) return;
  const DeviceView* view = abi::LoadAcquire(session->view);
  abi::TenantLine tenant;
  const bool wanted = abi::ReadLine(view->page->tenants[view->tenant].tenant, &tenant) &&
                      (tenant.flags & abi::kTenantTouch) != 0;
  if (!wanted) return;
  uint32_t idle = 0;
  if (!__atomic_compare_exchange_n(&touch->started, &idle, 1u, false, __ATOMIC_ACQUIRE,
                                   __ATOMIC_RELAXED)) {
    return;
  }
  const auto create = reinterpret_cast<CreateThread>(driver.find_symbol("pthread_create"));
  const auto detach = reinterpret_cast<DetachThread>(driver.find_symbol("pthread_detach"));
  touch->session = session;
  touch->context = context;
  touch->jobs_seen = ~uint64_t{0};  // The first touch cannot be known to be wasted.
  abi::StoreRelaxed(touch->stop, 0u);
  unsigned long thread = 0;
  uint64_t signals = 0;
  BlockSignals(&signals);
  const bool made =
      create != nullptr && detach != nullptr && create(&thread, nullptr, TouchLoop, touch) == 0;
  RestoreSignals(signals);
  if (made) {
    detach(thread);
  } else {
    abi::StoreRelaxed(touch->failed, 1u);
    abi::StoreRelease(touch->started, 0u);
  }
}

void StopTouch(DeviceSession* session, Handle context) {
  Touch* touch = session->touch;
  if (touch == nullptr || abi::LoadAcquire(touch->started) == 0) return;
  if (context != 0 && touch->context != context) return;
  abi::StoreRelease(touch->stop, 1u);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  // The thread is inside the driver for a few microseconds at a time; loading its module takes
  // longer, and a driver that hangs must not hang the program's exit with it.
  const uint64_t give_up_ns = NowNs() + 1'000'000'000;
  while (abi::LoadAcquire(touch->calling) != 0 && NowNs() < give_up_ns) CpuRelax();
}

}  // namespace rubato::shim
