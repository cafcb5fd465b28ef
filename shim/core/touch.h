// Pre-touch: pays the GPU's context switch before the job instead of inside it.
//
// Without MPS the first kernel of a real-time job waits for a context switch of some 140 us,
// however early the gate closed. A tiny kernel of the real-time process, launched shortly before
// each predicted release and after the gate has closed, moves the switch out of the job. This is
// the one thread the shim may have; it exists only in a real-time process whose policy asks for it,
// runs with all signals blocked, and ends at the first call that the driver refuses.
#pragma once

#include <cstdint>

#include "shim/core/driver.h"
#include "shim/core/state.h"

namespace rubato::shim {

struct Touch {
  uint32_t started;  // 1 once a thread was asked for.
  uint32_t stop;     // 1: the thread ends at its next look.
  uint32_t calling;  // 1 while the thread is inside the driver.
  uint32_t failed;   // 1: this driver or process cannot; do not try again.
  Handle context;    // Current in the real-time thread that started it.
  DeviceSession* session;
  uint64_t jobs_seen;  // Jobs begun when the last touch was made: tells a wasted one.
};

Touch* NewTouch();

// Starts the thread if the tenant's policy asks for pre-touch and none runs. Called at the end of
// jobs, never inside one.
void EnsureTouch(const Driver& driver, DeviceSession* session, Handle context);

// `context` is about to be destroyed: returns once the thread is outside the driver and will not
// enter it again with that context.
void StopTouch(DeviceSession* session, Handle context);

}  // namespace rubato::shim
