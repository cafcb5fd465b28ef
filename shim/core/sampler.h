// Measures how long ops take, on a sample of them, with event pairs around one op.
//
// Durations make the gate's promise possible, and nobody declares them: the first ops of an unknown
// key and one in `sample_every` of the others are measured, and the result goes into the slot's
// ring for the scheduler. A pair costs about two microseconds, so it is never on every op. Nothing
// waits for a result: pairs are asked about now and then, in passing. During captures nothing is
// measured (an event would be captured).
#pragma once

#include <cstdint>

#include "proto/abi/slot.h"
#include "shim/core/state.h"
#include "shim/core/streams.h"

namespace rubato::shim {

inline constexpr int kSamplePairs = 32;

struct SamplePair {
  uint32_t state;  // 0 free, 1 open (one event recorded), 2 pending, 3 being collected.
  uint32_t kind;   // abi::OpKind.
  Handle begin;
  Handle end;
  uint64_t key;
  uint64_t base_key;
  uint64_t submitted_ns;  // Host time of the submission.
  uint64_t expected_ns;
  uint64_t clean_until_ns;  // No neighbour was predicted to run before this.
};

struct Sampler {
  uint32_t pending;     // Pairs in state 2.
  uint32_t failed;      // 1: events do not work here; nothing is measured any more.
  uint32_t collecting;  // 1 while one thread moves results.
  uint32_t announcing;  // 1 while one thread announces a name.
  SamplePair pairs[kSamplePairs];
};

Sampler* NewSampler();

// Is this op of a known key one to measure? Long ops come up more often than short ones, since
// their durations matter more and two events are nothing beside them. The intervals are random:
// programs repeat themselves, and a fixed interval would meet the same op of a loop every time and
// the others never.
bool SampleDue(DeviceSession* session, StreamState* stream, uint64_t expected_ns);

// Records the first event. Returns the pair's index, or -1 if this op cannot be measured.
int BeginSample(const Driver& driver, DeviceSession* session, Handle stream, abi::OpKind kind,
                uint64_t key, uint64_t base_key, uint64_t expected_ns);
// Records the second event; `ok`: the driver accepted the op.
void EndSample(const Driver& driver, DeviceSession* session, int pair, Handle stream, bool ok);
// Moves finished measurements into the ring; asks about at most `most` pairs.
void CollectSamples(const Driver& driver, DeviceSession* session, int most);

// The context of the events is being destroyed: they are forgotten, and made anew when needed.
void DropEvents(Sampler* sampler);

// Announces the name behind a function hash in the slot.
void AnnounceName(DeviceSession* session, uint64_t name_hash, const char* name);

}  // namespace rubato::shim
