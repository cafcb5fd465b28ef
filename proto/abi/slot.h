// The slot: the region on which one session says how far its streams have come and what it has in
// flight.
//
// A session is one attached process on one device. The session writes its slot, through its own
// mapping and through the GPU; the scheduler and all other sessions of the device read it. Readers
// treat everything here as hostile: copy a field, check the copy, use the copy. A slot can at worst
// lie about its own session. Each cache line has one writer (the session's threads count as one
// where the comment says so). Words that the GPU writes have a line of their own, on pages that
// hold nothing else, because the page is registered with the driver and must stay mapped for as
// long as a GPU may still write it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "proto/abi/region.h"

namespace rubato::abi {

// ---- Stream words
// ---------------------------------------------------------------------------------------------------
// A word is {generation:8, sequence:24}. The generation says which stream of this process uses the
// line; a late write by the GPU for an earlier stream of the line carries the earlier generation
// and is ignored. Sequences wrap; they are compared as distances, which is right while fewer than
// 2^23 markers of one stream are outstanding (the shim's ops per marker and the driver's queue
// depth keep it below 2^14).
inline constexpr uint32_t kWordSequenceBits = 24;
inline constexpr uint32_t kWordSequenceMask = (1u << kWordSequenceBits) - 1;

inline constexpr uint32_t MakeWord(uint32_t generation, uint32_t sequence) {
  return (generation << kWordSequenceBits) | (sequence & kWordSequenceMask);
}
inline constexpr uint32_t WordGeneration(uint32_t word) {
  return word >> kWordSequenceBits;
}
inline constexpr uint32_t WordSequence(uint32_t word) {
  return word & kWordSequenceMask;
}

// True if everything up to `submitted` is done, given what the GPU wrote last. A line whose
// `submitted` has sequence 0 has had no op in this generation.
inline constexpr bool WordReached(uint32_t completed, uint32_t submitted) {
  if (WordSequence(submitted) == 0) return true;
  if (WordGeneration(completed) != WordGeneration(submitted)) return false;
  return ((completed - submitted) & kWordSequenceMask) < (1u << (kWordSequenceBits - 1));
}

// The sequence after `word`'s, skipping 0 (which means "no op yet").
inline constexpr uint32_t NextWord(uint32_t word) {
  uint32_t sequence = (WordSequence(word) + 1) & kWordSequenceMask;
  return MakeWord(WordGeneration(word), sequence == 0 ? 1 : sequence);
}

inline constexpr uint32_t kMaxStreams =
    128;  // Streams beyond share no line: the session counts them in `unlined_ops`
          // and stays busy until a context-wide synchronisation.

struct alignas(64) StreamLine {  // Written by the session.
  uint32_t submitted;  // Word of the marker that covers (or will cover) the last op of this stream.
  uint32_t flags;      // Bit 0: ops follow the last marker that was enqueued ("dirty").
  uint64_t op_count;   // Ops ever submitted through this line, all generations.
  uint8_t reserved[48];
};
static_assert(sizeof(StreamLine) == 64);
inline constexpr uint32_t kStreamDirty = 1u << 0;

struct alignas(64) GpuWordLine {  // `completed` is written by the GPU on behalf of the session (or
                                  // by the session's
  uint32_t completed;  // host after a synchronising call, where stream memory operations are
                       // unsupported).
  uint8_t reserved[60];
};
static_assert(sizeof(GpuWordLine) == 64);

// ---- Jobs
// -----------------------------------------------------------------------------------------------------------
enum class JobState : uint32_t {
  kIdle = 0,      // No real-time job. Entered by the thread whose synchronising call returned with
                  // nothing outstanding.
  kOpen = 1,      // A job has begun and the host may submit more. Entered by any op.
  kDraining = 2,  // The host waits in a synchronising call and every dirty stream has a marker: the
                  // job is over on the GPU once all stream words are reached. Left by the return of
                  // the call or by another thread's op.
};

struct alignas(64) JobLine {  // Written by the session (real-time sessions only).
  uint32_t state;             // JobState.
  uint32_t sequence;          // Counts jobs; wraps.
  uint64_t first_op_ns;       // When the current or last job began: its earliest sign.
  uint64_t last_end_ns;       // When the last synchronising call with nothing outstanding returned.
  uint64_t touched_ns;        // When the last pre-touch kernel was submitted.
  uint8_t reserved[32];
};
static_assert(sizeof(JobLine) == 64);

// ---- Work in flight
// -------------------------------------------------------------------------------------------------
struct alignas(64) WorkLine {  // Written by the session (best-effort sessions only).
  uint64_t inflight_until_ns;  // Predicted CLOCK_MONOTONIC end of all work submitted or about to
                               // be. Published before the driver call, so it includes the op whose
                               // thread may have lost the CPU in between.
  uint64_t longest_op_ns;  // Longest single op in flight: what a wrong prediction can cost at once.
  uint32_t stream_high_water;  // Lines [0, this) of `streams` have been used. At most kMaxStreams.
  uint32_t waiting;            // Threads that wait at the gate now.
  uint32_t
      unlined_ops;  // Ops on streams without a line since the last context-wide synchronisation.
  uint32_t reserved0;
  uint8_t reserved[24];
};
static_assert(sizeof(WorkLine) == 64);
static_assert(offsetof(WorkLine, stream_high_water) == 16);

// ---- Memory
// ---------------------------------------------------------------------------------------------------------
// The processes of a tenant share one ledger without a lock: each adds its reservation here first,
// fences, sums the slots of its tenant, and takes the reservation back if the sum is above the
// limit. Two that race may both be refused; they can never both pass. A process that dies leaves
// the directory, and its bytes leave the sum with it.
struct alignas(64) MemoryLine {  // Written by the session.
  uint64_t used_bytes;           // Allocated and reserved on this device through the driver API.
  uint64_t peak_bytes;
  uint64_t refused;  // Allocations answered with out-of-memory because of the limit.
  uint8_t reserved[40];
};
static_assert(sizeof(MemoryLine) == 64);

// ---- Counters
// -------------------------------------------------------------------------------------------------------
// Monotone, written by the session without read-modify-write: a rare lost increment under
// contention is accepted.
enum class Counter : uint32_t {
  kOps = 0,  // Launch-like calls that reached the core.
  kKernels,
  kGraphs,
  kCopies,
  kMemsets,
  kJobs,              // Real-time jobs begun.
  kGateWaits,         // Best-effort ops that had to wait.
  kGateWaitNs,        // Time spent waiting.
  kGateExpired,       // Waits that ended because the op could never be fitted in time.
  kUnknownOps,        // Ops admitted without a known duration.
  kMarkers,           // Stream words enqueued.
  kMarkerFailures,    // Stream memory operations the driver refused; completion fell back to the
                      // host.
  kSamples,           // Durations measured.
  kSamplesDiscarded,  // Measurements thrown away: a neighbour ran in between.
  kSamplesLost,       // Measurements lost because the ring was full.
  kTouches,           // Pre-touch kernels submitted.
  kTouchesLate,       // Pre-touches that came after the release they were meant for.
  kTouchesWasted,     // Pre-touches whose job did not come.
  kUnknownSymbols,    // cu* / hip* names asked for that the hook table does not know.
  kCaptureOps,        // Ops inside a stream capture: passed ungated.
  kUncutGraphs,       // Graphs launched whole although longer than the bound.
  kUnlinedOps,        // Ops on streams beyond kMaxStreams.
  kReattaches,
  kHoldsIgnored,  // Real-time jobs of others that were open for longer than their limit, and were
                  // passed over.
  kAllocations,
  kFrees,
  kGateBusyNs,  // Predicted GPU time of the best-effort ops admitted.
  kCount,
};
inline constexpr uint32_t kMaxCounters = 64;
static_assert(static_cast<uint32_t>(Counter::kCount) <= kMaxCounters);

struct alignas(64) CounterLines {
  uint64_t value[kMaxCounters];  // Indexed by Counter.
};
static_assert(sizeof(CounterLines) == 512);

enum class DetachReason : uint32_t {
  kNone = 0,
  kNoScheduler,  // Nobody listened at the attach socket within the time allowed.
  kVersion,      // Other major version.
  kRefused,      // The scheduler refused this process.
  kClock,        // The scheduler's CLOCK_MONOTONIC is not ours (another time namespace).
  kBadRegion,    // A region was too small, unsealed or had a wrong header.
  kMapFailed,
  kNoDirectory,  // The device has no free session entry.
  kForked,       // Child of fork without exec.
  kSurprise,     // The driver behaved in a way the shim does not understand.
  kDisabled,     // RUBATO_DISABLE was set.
  kCount,
};

struct alignas(64) SessionLine {  // Written by the session.
  uint32_t detached;              // DetachReason; kNone while attached.
  uint32_t shim_build;        // First 32 bits of the shim's build hash: tells two versions apart.
  uint32_t vendor;            // 1 CUDA, 2 HIP.
  uint32_t pid_in_namespace;  // For people only; identity comes from the socket.
  uint8_t reserved[48];
};
static_assert(sizeof(SessionLine) == 64);

// ---- Rings
// ----------------------------------------------------------------------------------------------------------
// Single consumer (the scheduler), which keeps its own tail: the session never waits for it. `head`
// counts records ever written; record i lies at i % size. The session writes the record, then
// `head` with release order. The consumer copies records, reads `head` again and drops the copies
// that may have been overwritten meanwhile.
struct alignas(64) RingHeads {  // Written by the session.
  uint64_t job_head;
  uint64_t sample_head;
  uint64_t name_head;
  uint8_t reserved[40];
};
static_assert(sizeof(RingHeads) == 64);

struct JobRecord {
  uint64_t first_op_ns;  // Earliest sign of the job.
  uint64_t end_ns;       // Return of the synchronising call that closed it.
  uint32_t sequence;
  uint32_t flags;         // kJobContinued.
  uint32_t op_count;      // Ops of the job; saturates.
  uint32_t host_wait_ns;  // Time spent in the closing call; saturates at 2^32 - 1.
};
static_assert(sizeof(JobRecord) == 32);
// The first op came within the think time of the previous record's end: this record continues that
// job, whose end is this one's.
inline constexpr uint32_t kJobContinued = 1u << 0;
inline constexpr uint32_t kJobRing = 256;

// How an op was measured, and which op it was.
struct SampleRecord {
  uint64_t key;          // Kernel key with history (profile.h).
  uint64_t base_key;     // The same without history.
  uint32_t duration_ns;  // Saturates at 2^32 - 1 (4.29 s), here and everywhere durations are 32
                         // bits wide.
  uint32_t sm_permille;  // Share of the SMs the op had: 1000 outside partitions.
  uint32_t kind;         // OpKind of profile.h.
  uint32_t flags;
};
static_assert(sizeof(SampleRecord) == 32);
// A neighbour may have run between the two ends of the measurement: it may be too long.
inline constexpr uint32_t kSampleDisturbed = 1u << 0;
inline constexpr uint32_t kSampleRing = 1024;

struct NameRecord {  // Announces the name behind a kernel key's function hash, once per process.
  uint64_t name_hash;
  char name[120];  // Truncated, always NUL-terminated by the writer; the reader terminates its copy
                   // itself.
};
static_assert(sizeof(NameRecord) == 128);
inline constexpr uint32_t kNameRing = 64;

// ---- The region
// -----------------------------------------------------------------------------------------------------
struct alignas(4096) SlotRegion {
  RegionHeader header;    // 0x0000
  SessionLine session;    // 0x0040
  JobLine job;            // 0x0080
  WorkLine work;          // 0x00C0
  MemoryLine memory;      // 0x0100
  RingHeads heads;        // 0x0140
  CounterLines counters;  // 0x0180 .. 0x0380
  uint8_t reserved0[0x1000 - 0x380];
  StreamLine streams[kMaxStreams];  // 0x1000 .. 0x3000
  GpuWordLine
      gpu_words[kMaxStreams];   // 0x3000 .. 0x5000: the only pages registered with the driver.
  JobRecord jobs[kJobRing];     // 0x5000 .. 0x7000
  NameRecord names[kNameRing];  // 0x7000 .. 0x9000
  SampleRecord samples[kSampleRing];  // 0x9000 .. 0x11000
};
static_assert(offsetof(SlotRegion, counters) == 0x180);
static_assert(offsetof(SlotRegion, streams) == 0x1000);
static_assert(offsetof(SlotRegion, gpu_words) == 0x3000);
static_assert(offsetof(SlotRegion, jobs) == 0x5000);
static_assert(offsetof(SlotRegion, names) == 0x7000);
static_assert(offsetof(SlotRegion, samples) == 0x9000);
static_assert(sizeof(SlotRegion) == 0x11000);

}  // namespace rubato::abi
