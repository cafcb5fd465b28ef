// The streams of this process on one device: their lines in the slot, and how far each has come.
//
// A stream gets a line at its first op and gives it back once it is destroyed and its work is done.
// A StreamState is the private side of the line: predicted work submitted and known to be done, and
// the markers in between. Many threads may look; one thread at a time advances a stream's marks
// (`marking` is tried, never waited for: who does not get it goes on with older knowledge).
// Trusts the driver only to write the word it was asked to write, at some time or never.
#pragma once

#include <cstdint>

#include "proto/abi/profile.h"
#include "proto/abi/slot.h"
#include "shim/core/driver.h"
#include "shim/core/handle_map.h"
#include "shim/core/state.h"

namespace rubato::shim {

inline constexpr uint32_t kNoLine = 0xffffffffu;
inline constexpr uint32_t kMarkRing = 64;  // Markers of one stream that are remembered at a time.

inline constexpr uint32_t kOpKinds = 8;  // Of abi::OpKind.

struct Mark {
  uint32_t word;
  uint32_t reserved;
  uint64_t submitted_ns;  // Predicted work up to this marker.
};

struct alignas(64) StreamState {
  uint64_t key;      // 0: free; kRetiredStream: destroyed, its work may still run.
  Handle handle;     // As the driver wants it.
  Handle context;    // For default streams: the context whose default stream it is. Else 0.
  uint64_t owner;    // For per-thread default streams: the thread (ThreadMark()). Else 0.
  uint32_t line;     // Index in the slot; kNoLine for the state that all further streams share.
  uint32_t marking;  // 1 while one thread advances the marks or enqueues a marker.
  uint64_t history;  // abi::PushHistory.
  uint64_t submitted_ns;  // Predicted work ever submitted, each op at the longest it takes.
  uint64_t reached_ns;    // Predicted work known to be done.
  uint64_t marked_ns;     // Predicted work covered by enqueued markers.
  uint64_t awaited_ns;    // Predicted work up to the first marker that is not reached; 0: none.
  uint32_t ops_since_mark;
  uint32_t head;  // Markers enqueued and not yet seen: ring[tail, head).
  uint32_t tail;
  uint32_t event_pending;  // 1: `event` was recorded behind the last marker (no stream memory ops).
  Handle event;
  uint32_t seen;          // What the GPU's word was when the marks were advanced last.
  uint32_t uncounted;     // Ops in `counted` that are not in the slot's counters yet.
  uint64_t busy_ns;       // Predicted GPU time admitted that is not in the slot's counters yet.
  uint32_t until_sample;  // What is left until an op of a known key is measured: sampler.h.
  uint32_t random;
  uint64_t counted[kOpKinds];  // By abi::OpKind; this stream's own, so that threads on different
                               // streams do not share a line for every launch.
  Mark ring[kMarkRing];
};

inline constexpr uint64_t kRetiredStream = ~uint64_t{0};

struct StreamTable {
  HandleMap by_key;  // Stream key -> line + 1.
  uint32_t epoch;    // Changes when a stream is destroyed: what threads cached is void.
  StreamState states[abi::kMaxStreams];
  StreamState overflow;  // Streams beyond the lines.
};

// Names the calling thread among the live threads of this process.
uint64_t ThreadMark();

// The key under which a stream is known: the handle itself, or, for the default streams, one made
// of the context (and thread). `*stream` is replaced by the handle the driver wants.
uint64_t StreamKey(const Driver& driver, Handle stream, bool per_thread, Handle context,
                   uint64_t* owner);

// The state of a stream, made at first sight. Never null: the overflow state when lines run out.
StreamState* FindOrAddStream(DeviceSession* session, uint64_t key, Handle handle, Handle context,
                             uint64_t owner);
// Null if the stream has had no op.
StreamState* FindStream(DeviceSession* session, uint64_t key);
void RetireStream(DeviceSession* session, uint64_t key);

StreamTable* NewStreamTable();

// ---- The public line
// ---------------------------------------------------------------------------------

// Ops were submitted that no marker covers yet: `submitted` names the marker that will cover them.
inline void SetDirty(DeviceSession* session, StreamState* state) {
  if (state->line == kNoLine) {
    abi::CountRelaxed(
        session->slot->counters.value[static_cast<uint32_t>(abi::Counter::kUnlinedOps)]);
    abi::StoreRelaxed(session->slot->work.unlined_ops, 1u);
    return;
  }
  abi::StreamLine& line = session->slot->streams[state->line];
  abi::CountRelaxed(line.op_count);
  if ((abi::LoadRelaxed(line.flags) & abi::kStreamDirty) != 0) return;
  abi::StoreRelaxed(line.submitted, abi::NextWord(abi::LoadRelaxed(line.submitted)));
  abi::StoreRelease(line.flags, abi::kStreamDirty);
}

// Asks the GPU to write this stream's word once everything before is done. False if it could not be
// asked (a default stream of another thread or context, no registration, driver refused): the line
// stays dirty. `context` is the calling thread's.
bool EnqueueMarker(const Driver& driver, DeviceSession* session, StreamState* state,
                   Handle context);

// The same for every stream with ops that no marker covers. True if all of them are covered now.
bool EnqueueMarkers(const Driver& driver, DeviceSession* session, Handle context);

// Counts one op. It reaches the slot's counters after some more of them, or at the next wait.
void CountOp(DeviceSession* session, StreamState* state, abi::OpKind kind);
// Brings the slot's counters up to date.
void FlushCounts(DeviceSession* session);

// The host knows that everything in this stream is done.
void MarkReached(DeviceSession* session, StreamState* state);
// The same of every stream of the session.
void MarkAllReached(DeviceSession* session);

// Predicted work of a stream that is not done, as closely as its markers tell.
struct Outstanding {
  uint64_t most_ns;   // Everything behind the last marker that was reached.
  uint64_t least_ns;  // Everything behind the first one that was not.
};

// Takes note of what the GPU wrote.
Outstanding OutstandingOf(const Driver& driver, DeviceSession* session, StreamState* state);

// Every line of the slot is reached. For any slot, also a peer's: reads are bounded and copied.
bool AllWordsReached(const abi::SlotRegion& slot);

// Registers the slot's GPU words with the driver, once per device; not during captures.
void EnsureWords(const Driver& driver, DeviceSession* session, Handle context);

}  // namespace rubato::shim
