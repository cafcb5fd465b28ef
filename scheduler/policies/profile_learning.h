// What a measurement does to a duration: an average that rises fast and falls slowly.
//
// A prediction that is too short lets a kernel run into a release; one that is too long wastes a
// little of a window. Clocks fall when the power limit bites, within a second, and recover slowly:
// measured, 0.3 up and 0.05 down kept a gate exact where a fixed profile missed by a whole kernel.
// The longest of the last five measurements is kept beside it, as DARIS does for its execution
// times (MRET). Until there are five, the expectation is their median, since the first are cold.
#pragma once

#include "scheduler/core/profile_table.h"
#include "scheduler/core/slot_reader.h"
#include "scheduler/policies/constants.h"

namespace rubato::policies {

// Includes one measurement in `profile`.
void LearnDuration(const core::Sample& sample, Nanos now_ns, core::KernelProfile* profile);

// Includes a sample under its key with history and under its key without, and publishes both. The
// latter keeps the longer expectation of all histories: it answers for those not seen yet.
void LearnSample(const core::Sample& sample, Nanos now_ns, core::ProfileTable* table);

}  // namespace rubato::policies
