// From what is known about a real-time tenant to the lines of the device page that describe it.
//
// The release model says when a job comes, the ledger how long jobs take; here margins are put
// around them. Pure functions.
#pragma once

#include "proto/abi/device.h"
#include "scheduler/core/tenant.h"
#include "scheduler/policies/constants.h"
#include "scheduler/policies/release_model.h"

namespace rubato::policies {

struct JobKnowledge {
  Nanos mret_ns = 0;     // Longest of the last few executions; 0: unknown.
  Nanos typical_ns = 0;  // A length that most jobs reach; 0: unknown.
  Nanos think_ns = 0;
};

// A real-time tenant that has a context of its own pays a context switch at its first kernel;
// pre-touching pays it in advance.
bool PreTouches(const core::TenantSpec& spec, core::Mode mode);

// How long an open job may hold the others.
Nanos MaxHoldNs(const JobKnowledge& jobs, Nanos period_ns, const Constants& constants);

abi::TenantLine TenantLineFor(const core::TenantSpec& spec, core::Mode mode,
                              const JobKnowledge& jobs, Nanos period_ns,
                              const Constants& constants);

// Invalid (no flag) unless the prediction is locked. Every time in it is below the period, as
// window.h demands.
abi::ReleaseLine ReleaseLineFor(const ReleasePrediction& prediction, bool touches,
                                const Constants& constants);

abi::SpaceLine SpaceLineFor(const JobKnowledge& jobs);

}  // namespace rubato::policies
