// The gate: may this best-effort op go now, and if not, when to look again?
//
// The gate waits in the program's own thread before the real driver call, so nothing is queued,
// reordered or handed to another thread. It reads the neighbours' slots and the release models of
// the device page (proto/abi/window.h has the rule) and never asks anybody. Open, it costs a few
// cache lines; closed, it sleeps until shortly before the predicted end and then spins, because a
// store by the GPU wakes nobody.
#pragma once

#include <cstdint>

#include "proto/abi/window.h"
#include "shim/core/state.h"
#include "shim/core/streams.h"

namespace rubato::shim {

// What all neighbours together allow at one instant.
struct GateView {
  bool closed;             // A job runs or is due.
  bool bounded;            // Some real-time neighbour is not predicted: `bound_ns` applies.
  uint64_t until_ns;       // Open: work must be done by then; abi::kNever if nothing is predicted.
  uint64_t bound_ns;       // Work in flight allowed while bounded.
  uint64_t retry_ns;       // Closed: when the state is likely to change (a predicted job end).
  uint64_t reopen_ns;      // Open: predicted start of the window after this one.
  uint64_t others_ns;      // Work in flight of the other best-effort sessions.
  uint64_t ahead_ns;       // What is left of a job behind which work may be queued.
  uint64_t holds_ignored;  // Jobs of others that were open for too long.
};

// Reads all neighbours of `session` at `now_ns`.
GateView ReadNeighbours(const DeviceSession& session, uint64_t now_ns);

enum class GateAnswer : uint8_t {
  kGo = 0,
  kWaitClosed = 1,  // A neighbour's job runs or is due.
  kWaitQueue = 2,   // It would fit if less were in flight.
  kWaitWindow = 3,  // It does not fit into what is left of this window.
};

// The decision, as a pure function of what was read. `op_ns`: the longest the op is known to take;
// `own_ns`: this session's work in flight.
inline GateAnswer Decide(const GateView& view, uint64_t op_ns, uint64_t own_ns, uint64_t now_ns) {
  if (view.closed) return GateAnswer::kWaitClosed;
  const uint64_t queue_ns = own_ns + view.others_ns + view.ahead_ns;
  if (view.until_ns != abi::kNever) {
    if (now_ns + op_ns > view.until_ns) return GateAnswer::kWaitWindow;
    if (now_ns + queue_ns + op_ns > view.until_ns) return GateAnswer::kWaitQueue;
  }
  // Against a neighbour that nothing predicts, one op may always go when the queue is empty: it is
  // the residual that the promise names.
  if (view.bounded && queue_ns != 0 && queue_ns + op_ns > view.bound_ns) {
    return GateAnswer::kWaitQueue;
  }
  return GateAnswer::kGo;
}

// Waits until an op of `op_ns` may go and publishes it as in flight; the caller takes it back if
// the driver refuses the op. Returns how much work may follow the stream's last marker before it
// needs another: little where the window ends soon after the op, because there the queue must be
// known closely.
uint64_t PassGate(const Driver& driver, DeviceSession* session, StreamState* stream,
                  uint64_t op_ns);

// Predicted work of this session that is not done: what was predicted, within what the markers say.
// Predictions err by some per cent, which is half a millisecond in a queue of a whole window.
uint64_t OwnInflightNs(const Driver& driver, DeviceSession* session, uint64_t now_ns);

}  // namespace rubato::shim
