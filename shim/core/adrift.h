// A process that was promised a scheduler and found none when it started.
//
// Its socket was given to it, so it belongs to somebody who shares the GPU: it may not run freely,
// and nobody can tell it for what to wait. Until a scheduler takes it in, each op goes only once
// everything before it in its stream is done. Off the launch path: an attached process never comes
// here. Runs in the program's own threads; keeps no state of its own.
#pragma once

#include "shim/core/core.h"
#include "shim/core/driver.h"

namespace rubato::shim {

inline bool Adrift() {
  return abi::LoadRelaxed(g_state.adrift) != 0;
}

// Looks for a scheduler (once a second at most), then waits until `stream` is empty, at most 10 s.
// Where the driver cannot say, the op goes at once: better unguarded than stuck.
void HoldAdrift(const Driver& driver, Handle stream);

}  // namespace rubato::shim
