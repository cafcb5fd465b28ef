#include "shim/core/streams.h"

#include "shim/core/sys.h"

namespace rubato::shim {

namespace {

// Destroying a stream waits for another thread's marker in it for at most this long.
constexpr uint64_t kLongestMarkerNs = 100'000'000;

}  // namespace

uint64_t ThreadMark() {
  static thread_local char mark;
  return reinterpret_cast<uintptr_t>(&mark);
}

uint64_t StreamKey(const Driver& driver, Handle stream, bool per_thread, Handle context,
                   uint64_t* owner) {
  *owner = 0;
  if (stream == driver.per_thread_stream || (stream == 0 && per_thread)) {
    *owner = ThreadMark();
    return abi::Mix(context, *owner) | 3u;
  }
  if (stream == 0 || stream == driver.legacy_stream) return abi::Mix(context, 1) | 1u;
  return stream;
}

StreamTable* NewStreamTable() {
  // mmap gives zeros, which is the empty table.
  void* memory = MapZeroed(sizeof(StreamTable));
  if (memory == nullptr) return nullptr;
  auto* table = static_cast<StreamTable*>(memory);
  table->overflow.line = kNoLine;
  return table;
}

StreamState* FindStream(DeviceSession* session, uint64_t key) {
  uint64_t line = 0;
  if (!session->streams->by_key.Find(key, &line)) return nullptr;
  if (line == 0 || line > abi::kMaxStreams) return nullptr;
  return &session->streams->states[line - 1];
}

namespace {

// After every change of the ring, under `marking`.
void NoteAwaited(StreamState* state) {
  abi::StoreRelaxed(state->awaited_ns, state->tail == state->head
                                           ? uint64_t{0}
                                           : state->ring[state->tail % kMarkRing].submitted_ns);
}

bool LineReached(const abi::SlotRegion& slot, uint32_t line) {
  return abi::WordReached(abi::LoadAcquire(slot.gpu_words[line].completed),
                          abi::LoadRelaxed(slot.streams[line].submitted));
}

// A line may be used again if its stream is gone and the GPU is done with it. Lines of threads' own
// default streams are never destroyed by a call; they are taken over when lines run short.
bool Reusable(const DeviceSession* session, const StreamState& state, bool scarce) {
  if (abi::LoadAcquire(state.key) != kRetiredStream &&
      !(scarce && abi::LoadRelaxed(state.owner) != 0)) {
    return false;
  }
  const uint32_t line = abi::LoadRelaxed(state.line);
  if ((abi::LoadRelaxed(session->slot->streams[line].flags) & abi::kStreamDirty) != 0) {
    return false;
  }
  return LineReached(*session->slot, line);
}

}  // namespace

StreamState* FindOrAddStream(DeviceSession* session, uint64_t key, Handle handle, Handle context,
                             uint64_t owner) {
  StreamTable* table = session->streams;
  if (StreamState* known = FindStream(session, key)) return known;
  // Twice over the lines: only where none is free, lines of threads' default streams are taken
  // over.
  for (uint32_t at = 0; at < 2 * abi::kMaxStreams; ++at) {
    const bool scarce = at >= abi::kMaxStreams;
    const uint32_t i = at % abi::kMaxStreams;
    StreamState& state = table->states[i];
    uint64_t seen = abi::LoadAcquire(state.key);
    const bool fresh = seen == 0;
    if (!fresh && !Reusable(session, state, scarce)) continue;
    uint32_t idle = 0;
    if (!__atomic_compare_exchange_n(&state.marking, &idle, 1u, false, __ATOMIC_ACQUIRE,
                                     __ATOMIC_RELAXED)) {
      continue;
    }
    if (!__atomic_compare_exchange_n(&state.key, &seen, key, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED)) {
      abi::StoreRelease(state.marking, 0u);
      continue;
    }
    if (!fresh && seen != kRetiredStream) table->by_key.Erase(seen);
    abi::StreamLine& line = session->slot->streams[i];
    // A new generation: what the GPU still writes for the line's earlier stream is void.
    const uint32_t generation = abi::WordGeneration(abi::LoadRelaxed(line.submitted)) + 1;
    // Other threads may be scanning the states meanwhile.
    abi::StoreRelaxed(state.handle, handle);
    abi::StoreRelaxed(state.context, context);
    abi::StoreRelaxed(state.owner, owner);
    abi::StoreRelaxed(state.line, i);
    abi::StoreRelaxed(state.history, uint64_t{0});
    abi::StoreRelaxed(state.submitted_ns, uint64_t{0});
    abi::StoreRelaxed(state.reached_ns, uint64_t{0});
    abi::StoreRelaxed(state.marked_ns, uint64_t{0});
    abi::StoreRelaxed(state.ops_since_mark, 0u);
    state.head = state.tail = 0;
    NoteAwaited(&state);
    // Whatever the line's GPU word holds now is of an earlier stream.
    abi::StoreRelaxed(state.seen, abi::LoadRelaxed(session->slot->gpu_words[i].completed));
    abi::StoreRelaxed(line.submitted, abi::MakeWord(generation & 0xffu, 0));
    abi::StoreRelease(line.flags, 0u);
    uint32_t high = abi::LoadRelaxed(session->slot->work.stream_high_water);
    while (high < i + 1 &&
           !__atomic_compare_exchange_n(&session->slot->work.stream_high_water, &high, i + 1, false,
                                        __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    }
    abi::StoreRelease(state.marking, 0u);
    // Two threads that met the same new stream made two lines: the map decides which one lives.
    uint64_t kept = i + 1;
    if (!table->by_key.InsertIfAbsent(key, &kept) || kept == 0 || kept > abi::kMaxStreams) {
      abi::StoreRelease(state.key, kRetiredStream);
      return &table->overflow;
    }
    if (kept != i + 1) abi::StoreRelease(state.key, kRetiredStream);
    return &table->states[kept - 1];
  }
  return &table->overflow;
}

void RetireStream(DeviceSession* session, uint64_t key) {
  StreamState* state = FindStream(session, key);
  session->streams->by_key.Erase(key);
  __atomic_fetch_add(&session->streams->epoch, 1u, __ATOMIC_RELEASE);
  if (state == nullptr) return;
  uint64_t expected = key;
  __atomic_compare_exchange_n(&state->key, &expected, kRetiredStream, false, __ATOMIC_SEQ_CST,
                              __ATOMIC_RELAXED);
  // Another thread may be giving the stream a marker. Its handle must live until that call is over;
  // the next one sees that the stream is retired.
  const uint64_t deadline_ns = NowNs() + kLongestMarkerNs;
  while (__atomic_load_n(&state->marking, __ATOMIC_SEQ_CST) != 0 && NowNs() < deadline_ns) {
    CpuRelax();
  }
}

void EnsureWords(const Driver& driver, DeviceSession* session, Handle context) {
  if (abi::LoadRelaxed(session->words_failed) != 0 || driver.register_host == nullptr ||
      driver.write_word == nullptr) {
    return;
  }
  if (abi::LoadRelaxed(g_state.active_captures) != 0) return;  // Registering would break a capture.
  uint32_t idle = 0;
  if (!__atomic_compare_exchange_n(&session->registering, &idle, 1u, false, __ATOMIC_ACQUIRE,
                                   __ATOMIC_RELAXED)) {
    return;
  }
  if (abi::LoadAcquire(session->words_address) == 0) {
    int mode = 0;
    const bool relaxed = driver.relax_capture != nullptr && driver.relax_capture(&mode) == 0;
    uint64_t address = 0;
    const int result =
        driver.register_host(session->slot->gpu_words, sizeof(session->slot->gpu_words), &address);
    if (relaxed) driver.restore_capture(mode);
    if (result == 0 && address != 0) {
      session->words_context = context;
      abi::StoreRelease(session->words_address, address);
    } else {
      abi::StoreRelaxed(session->words_failed, 1u);
      Count(session, abi::Counter::kMarkerFailures);
    }
  }
  abi::StoreRelease(session->registering, 0u);
}

namespace {

// Without stream memory operations an event stands for the word: recorded here, asked in
// OutstandingOf, and the host writes the word.
bool RecordMarkerEvent(const Driver& driver, StreamState* state) {
  if (driver.event_record == nullptr || driver.event_create == nullptr) return false;
  if (state->event == 0) {
    if (abi::LoadRelaxed(g_state.active_captures) != 0) return false;
    if (driver.event_create(&state->event) != 0) {
      state->event = 0;
      return false;
    }
  }
  if (driver.event_record(state->event, state->handle) != 0) return false;
  abi::StoreRelaxed(state->event_pending, 1u);
  return true;
}

}  // namespace

bool EnqueueMarker(const Driver& driver, DeviceSession* session, StreamState* state,
                   Handle context) {
  if (abi::LoadRelaxed(state->line) == kNoLine) return false;
  if (abi::LoadAcquire(session->words_address) == 0) EnsureWords(driver, session, context);
  uint32_t idle = 0;
  if (!__atomic_compare_exchange_n(&state->marking, &idle, 1u, false, __ATOMIC_SEQ_CST,
                                   __ATOMIC_RELAXED)) {
    return false;
  }
  // Asked only now: before, the line might have gone to another stream.
  if ((state->context != 0 && state->context != context) ||
      (state->owner != 0 && state->owner != ThreadMark())) {
    abi::StoreRelease(state->marking, 0u);
    return false;
  }
  abi::StreamLine& line = session->slot->streams[state->line];
  bool marked = false;
  const bool dirty = (abi::LoadAcquire(line.flags) & abi::kStreamDirty) != 0;
  if (dirty && __atomic_load_n(&state->key, __ATOMIC_SEQ_CST) != kRetiredStream) {
    const uint32_t word = abi::LoadRelaxed(line.submitted);
    const uint64_t submitted_ns = abi::LoadRelaxed(state->submitted_ns);
    // Clean before the driver is asked: an op that another thread submits meanwhile makes the line
    // dirty again, under the next word.
    abi::StoreRelaxed(line.flags, 0u);
    const uint64_t words = abi::LoadAcquire(session->words_address);
    if (words != 0 && abi::LoadRelaxed(session->words_failed) == 0) {
      const uint64_t address = words + state->line * sizeof(abi::GpuWordLine);
      marked = driver.write_word(state->handle, address, word) == 0;
      if (!marked) {
        Count(session, abi::Counter::kMarkerFailures);
        abi::StoreRelaxed(session->words_failed, 1u);
      }
    }
    if (!marked && abi::LoadRelaxed(session->words_failed) != 0) {
      marked = RecordMarkerEvent(driver, state);
    }
    if (marked) {
      Count(session, abi::Counter::kMarkers);
      if (state->head - state->tail == kMarkRing) {
        // The oldest marker is forgotten: its work counts as outstanding until the next is seen.
        state->tail++;
      }
      state->ring[state->head % kMarkRing] = {word, 0, submitted_ns};
      state->head++;
      NoteAwaited(state);
      abi::StoreRelaxed(state->marked_ns, submitted_ns);
      abi::StoreRelaxed(state->ops_since_mark, 0u);
    } else {
      if (abi::LoadRelaxed(line.submitted) == word)
        abi::StoreRelaxed(line.flags, abi::kStreamDirty);
    }
  }
  abi::StoreRelease(state->marking, 0u);
  return marked || !dirty;
}

bool EnqueueMarkers(const Driver& driver, DeviceSession* session, Handle context) {
  bool all = abi::LoadRelaxed(session->slot->work.unlined_ops) == 0;
  const uint32_t high = abi::LoadRelaxed(session->slot->work.stream_high_water);
  for (uint32_t i = 0; i < high; ++i) {
    if ((abi::LoadAcquire(session->slot->streams[i].flags) & abi::kStreamDirty) == 0) continue;
    if (!EnqueueMarker(driver, session, &session->streams->states[i], context)) all = false;
  }
  return all;
}

namespace {

// Ops of one stream between two updates of the slot's counters.
constexpr uint32_t kCountTogether = 64;

constexpr abi::Counter kCounterOf[kOpKinds] = {
    abi::Counter::kKernels, abi::Counter::kGraphs, abi::Counter::kCopies,  abi::Counter::kCopies,
    abi::Counter::kCopies,  abi::Counter::kCopies, abi::Counter::kMemsets, abi::Counter::kGraphs};

void FlushCountsOf(DeviceSession* session, StreamState* state) {
  abi::StoreRelaxed(state->uncounted, 0u);
  if (abi::LoadRelaxed(state->busy_ns) != 0) {
    Count(session, abi::Counter::kGateBusyNs,
          __atomic_exchange_n(&state->busy_ns, 0, __ATOMIC_RELAXED));
  }
  for (uint32_t kind = 0; kind < kOpKinds; ++kind) {
    // Taken in one piece: two threads that flush at once must not count an op twice.
    if (abi::LoadRelaxed(state->counted[kind]) == 0) continue;
    const uint64_t count = __atomic_exchange_n(&state->counted[kind], 0, __ATOMIC_RELAXED);
    Count(session, kCounterOf[kind], count);
    Count(session, abi::Counter::kOps, count);
  }
}

}  // namespace

void CountOp(DeviceSession* session, StreamState* state, abi::OpKind kind) {
  const uint32_t at = static_cast<uint32_t>(kind);
  if (at >= kOpKinds) return;
  abi::CountRelaxed(state->counted[at]);
  const uint32_t uncounted = abi::LoadRelaxed(state->uncounted) + 1;
  abi::StoreRelaxed(state->uncounted, uncounted);
  if (uncounted >= kCountTogether) FlushCountsOf(session, state);
}

void FlushCounts(DeviceSession* session) {
  const uint32_t high = abi::LoadRelaxed(session->slot->work.stream_high_water);
  for (uint32_t i = 0; i < high; ++i) {
    StreamState& state = session->streams->states[i];
    if (abi::LoadRelaxed(state.uncounted) != 0) FlushCountsOf(session, &state);
  }
  StreamState& overflow = session->streams->overflow;
  if (abi::LoadRelaxed(overflow.uncounted) != 0) FlushCountsOf(session, &overflow);
}

void MarkReached(DeviceSession* session, StreamState* state) {
  if (abi::LoadRelaxed(state->line) == kNoLine) return;
  uint32_t idle = 0;
  if (!__atomic_compare_exchange_n(&state->marking, &idle, 1u, false, __ATOMIC_ACQUIRE,
                                   __ATOMIC_RELAXED)) {
    return;
  }
  abi::StreamLine& line = session->slot->streams[state->line];
  const uint32_t word = abi::LoadRelaxed(line.submitted);
  // Everything the stream was given is done, so no write by the GPU is still on its way that could
  // overtake this one.
  abi::StoreRelaxed(line.flags, 0u);
  if (!LineReached(*session->slot, state->line)) {
    abi::StoreRelease(session->slot->gpu_words[state->line].completed, word);
  }
  state->tail = state->head;
  NoteAwaited(state);
  abi::StoreRelaxed(state->event_pending, 0u);
  const uint64_t submitted_ns = abi::LoadRelaxed(state->submitted_ns);
  abi::StoreRelaxed(state->reached_ns, submitted_ns);
  abi::StoreRelaxed(state->marked_ns, submitted_ns);
  abi::StoreRelaxed(state->ops_since_mark, 0u);
  abi::StoreRelease(state->marking, 0u);
}

void MarkAllReached(DeviceSession* session) {
  const uint32_t high = abi::LoadRelaxed(session->slot->work.stream_high_water);
  for (uint32_t i = 0; i < high; ++i) MarkReached(session, &session->streams->states[i]);
  StreamState& overflow = session->streams->overflow;
  abi::StoreRelaxed(overflow.reached_ns, abi::LoadRelaxed(overflow.submitted_ns));
  abi::StoreRelaxed(session->slot->work.unlined_ops, 0u);
}

Outstanding OutstandingOf(const Driver& driver, DeviceSession* session, StreamState* state) {
  const uint64_t submitted_ns = abi::LoadRelaxed(state->submitted_ns);
  uint64_t reached_ns = abi::LoadRelaxed(state->reached_ns);
  if (submitted_ns == reached_ns) return {0, 0};
  if (abi::LoadRelaxed(state->line) == kNoLine) return {submitted_ns - reached_ns, 0};
  abi::GpuWordLine& gpu = session->slot->gpu_words[abi::LoadRelaxed(state->line)];
  // As long as the GPU has written nothing new, there is nothing to note.
  const bool news = abi::LoadRelaxed(gpu.completed) != abi::LoadRelaxed(state->seen) ||
                    abi::LoadRelaxed(state->event_pending) != 0;
  uint32_t idle = 0;
  if (news && __atomic_compare_exchange_n(&state->marking, &idle, 1u, false, __ATOMIC_ACQUIRE,
                                          __ATOMIC_RELAXED)) {
    if (state->event_pending != 0 && state->head != state->tail &&
        abi::LoadRelaxed(g_state.active_captures) == 0 && driver.event_query(state->event) == 0) {
      abi::StoreRelaxed(state->event_pending, 0u);
      abi::StoreRelease(gpu.completed, state->ring[(state->head - 1) % kMarkRing].word);
    }
    const uint32_t completed = abi::LoadAcquire(gpu.completed);
    abi::StoreRelaxed(state->seen, completed);
    while (state->tail != state->head) {
      const Mark& mark = state->ring[state->tail % kMarkRing];
      if (!abi::WordReached(completed, mark.word)) break;
      abi::StoreRelaxed(state->reached_ns, mark.submitted_ns);
      state->tail++;
    }
    NoteAwaited(state);
    abi::StoreRelease(state->marking, 0u);
  }
  reached_ns = abi::LoadRelaxed(state->reached_ns);
  const uint64_t awaited_ns = abi::LoadRelaxed(state->awaited_ns);
  Outstanding result{};
  if (submitted_ns > reached_ns) result.most_ns = submitted_ns - reached_ns;
  if (awaited_ns != 0 && submitted_ns > awaited_ns) result.least_ns = submitted_ns - awaited_ns;
  return result;
}

bool AllWordsReached(const abi::SlotRegion& slot) {
  if (abi::LoadRelaxed(slot.work.unlined_ops) != 0) return false;
  uint32_t high = abi::LoadAcquire(slot.work.stream_high_water);
  if (high > abi::kMaxStreams) high = abi::kMaxStreams;
  for (uint32_t i = 0; i < high; ++i) {
    if (!LineReached(slot, i)) return false;
  }
  return true;
}

}  // namespace rubato::shim
