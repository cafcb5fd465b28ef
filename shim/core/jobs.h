// Real-time jobs: when one begins, when the host waits for it, when it is over.
//
// A job is one activation of a real-time program, from its first op (a host-to-device copy counts)
// to the completion of its last. Frameworks synchronise all the time, so neither an event nor a
// read-back ends a job by itself: it is over for the host when a synchronising call returns with
// nothing outstanding, and for the neighbours once the GPU has reached every stream word too
// (abi::JobState, proto/abi/window.h). Nothing here waits; the path of an op is two loads and, for
// the first op of a job or of a stream after a marker, a few stores.
#pragma once

#include <cstdint>

#include "shim/core/core.h"
#include "shim/core/state.h"
#include "shim/core/streams.h"

namespace rubato::shim {

// An op of a real-time process on `stream`.
void JobOp(DeviceSession* session, StreamState* stream);

// The program is about to wait for (or asks about) something on this device: every dirty stream
// gets a marker, and the job drains.
void JobDrain(const Driver& driver, DeviceSession* session, Handle context);

// The wait is over. `reached`: the stream that is known to be done; null: it was the whole context
// (`everything`), or an event, of which only the GPU's words tell.
void JobWaited(DeviceSession* session, StreamState* reached, bool everything, uint64_t waited_ns);

// A program that only asks and never waits learns nothing new by asking: true if the job is open
// and its streams have markers already.
bool JobDraining(const DeviceSession* session);

}  // namespace rubato::shim
