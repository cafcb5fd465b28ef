// What a measurement does to a duration: an average that rises fast and falls slowly.
//
// A prediction that is too short lets a kernel run into a release; one that is too long wastes a
// little of a window. Clocks fall when the power limit bites, within a second, and recover slowly:
// measured, 0.3 up and 0.05 down kept a gate exact where a fixed profile missed by a whole kernel.
// The longest of the last five measurements is kept beside it, as DARIS does for its execution
// times (MRET). Until there are five, the expectation is their median, since the first are cold.
// What an earlier run has learnt is believed until three measurements agree that it is wrong.
#pragma once

#include "scheduler/core/profile_table.h"
#include "scheduler/core/slot_reader.h"
#include "scheduler/policies/constants.h"

namespace rubato::policies {

// Shims measure an op whenever it comes until it has this many measurements.
inline constexpr uint32_t kSettledSamples = 5;
// So many measurements judge what an earlier run has learnt.
inline constexpr uint32_t kTrialSamples = 3;

// What an earlier run has learnt about `key`, on trial: good for predictions at once, and measured
// again at its first launches. `max_ns` and `duration_ns` are not 0.
core::KernelProfile Remembered(uint64_t key, abi::OpKind kind, Nanos duration_ns, uint32_t max_ns,
                               Nanos spread_ns, uint64_t measured, bool clean);

// Includes one measurement in `profile`.
void LearnDuration(const core::Sample& sample, Nanos now_ns, core::KernelProfile* profile);

// Includes a sample under its key with history and under its key without, and publishes both. The
// latter keeps the longer expectation of all histories: it answers for those not seen yet.
void LearnSample(const core::Sample& sample, Nanos now_ns, core::ProfileTable* table);

}  // namespace rubato::policies
