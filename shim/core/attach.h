// Attaching this process to the scheduler, opening devices, following arrivals and departures,
// re-attaching.
//
// Everything that talks on the attach socket is here; nothing here is on the launch path of a
// program that is attached and whose neighbours do not change. No function blocks for longer than
// it says; none fails: when attaching does not work the process is detached with a reason, and runs
// as without the shim (or, for a best-effort process that had been attached, goes on under the
// views it has).
#pragma once

#include "shim/core/state.h"

namespace rubato::shim {

// Called before the vendor's init call is forwarded, by whichever thread comes first; others wait
// for it. Sends Hello, receives Welcome, sets the MPS environment for this process. Waits at most 2
// s for a scheduler that does not answer.
void AttachProcess(const Driver& driver);

// The session of the device `ordinal`, opening it if this is its first use (a few ms, once). Null
// if the process is not attached or the device cannot be opened. Never during a capture of the
// calling thread: then null unless open already.
DeviceSession* OpenSession(const Driver& driver, int ordinal);

// Brings view->peers up to date with the directory; at most one thread does it, others go on with
// what is there.
void RefreshPeers(DeviceSession* session);

// The same for the ledger, which must not miss a session of its own tenant: waits at most 100 ms.
void AwaitPeers(DeviceSession* session);

// Called from synchronising calls: once a second at most, notices that the scheduler is gone and
// tries to re-attach.
void MaintainConnection(const Driver& driver, uint64_t now_ns);

}  // namespace rubato::shim
