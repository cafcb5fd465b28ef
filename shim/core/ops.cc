// The calls of core.h: which session and stream an event belongs to, and what follows from it for a
// process of its class. Everything with a policy in it is in gate.cc, jobs.cc, sampler.cc,
// touch.cc.
//
// On the launch path. A thread remembers the last stream it used, so that most ops find their
// session, stream and line without a look-up. The program may call from any thread; the caches are
// thread-local and are void once a stream was destroyed anywhere (StreamTable::epoch).

#include <string.h>

#include "shim/core/adrift.h"
#include "shim/core/attach.h"
#include "shim/core/core.h"
#include "shim/core/gate.h"
#include "shim/core/handle_map.h"
#include "shim/core/jobs.h"
#include "shim/core/sampler.h"
#include "shim/core/streams.h"
#include "shim/core/sys.h"
#include "shim/core/touch.h"

namespace rubato::shim {

namespace {

const Driver* g_driver = nullptr;

struct StreamCache {
  Handle stream;   // As the program gave it.
  Handle context;  // For default streams; else 0.
  StreamState* state;
  DeviceSession* session;
  uint64_t serial;  // ProcessState::serial.
  uint32_t epoch;   // StreamTable::epoch.
  bool per_thread;
};

// What a kernel key is made of, but for the name.
struct Shape {
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t shared_bytes;
  uint32_t epoch;  // ProcessState::functions_epoch.
};

// A loop launches a function with the same shape again and again.
struct KeyCache {
  Handle function;
  uint64_t name_hash;
  uint64_t key;  // Of `shape`.
  Shape shape;
};
constexpr unsigned kKeyCache = 64;  // Direct-mapped.

thread_local StreamCache t_stream;
thread_local KeyCache t_keys[kKeyCache];

bool IsDefaultStream(const Driver& driver, Handle stream) {
  return stream == 0 || stream == driver.legacy_stream || stream == driver.per_thread_stream;
}

DeviceSession* CurrentSession(const Driver& driver) {
  int ordinal = -1;
  if (driver.current_device(&ordinal) != 0 || ordinal < 0 || ordinal >= kMaxDevices) return nullptr;
  DeviceSession* session = abi::LoadAcquire(g_state.devices[ordinal]);
  return session != nullptr ? session : OpenSession(driver, ordinal);
}

// A session that exists already; opens nothing.
DeviceSession* KnownSession(const Driver& driver) {
  int ordinal = -1;
  if (driver.current_device(&ordinal) != 0 || ordinal < 0 || ordinal >= kMaxDevices) return nullptr;
  return abi::LoadAcquire(g_state.devices[ordinal]);
}

struct Place {
  DeviceSession* session;
  StreamState* stream;
  Handle context;  // 0 if it was not needed.
};

bool CacheHit(const StreamCache& cache, Handle stream, bool per_thread, Handle context) {
  return cache.state != nullptr && cache.stream == stream && cache.per_thread == per_thread &&
         cache.context == context && cache.serial == abi::LoadRelaxed(g_state.serial) &&
         cache.epoch == abi::LoadAcquire(cache.session->streams->epoch);
}

Place FindPlace(const Driver& driver, Handle stream, bool per_thread) {
  Place place{nullptr, nullptr, 0};
  Handle context = 0;
  if (IsDefaultStream(driver, stream) && (driver.current_context(&context) != 0 || context == 0)) {
    return place;
  }
  if (CacheHit(t_stream, stream, per_thread, context)) {
    return {t_stream.session, t_stream.state, context};
  }
  DeviceSession* session = CurrentSession(driver);
  if (session == nullptr) return place;
  uint64_t owner = 0;
  const uint64_t key = StreamKey(driver, stream, per_thread, context, &owner);
  const uint32_t epoch = abi::LoadAcquire(session->streams->epoch);
  const Handle handle = owner != 0 ? driver.per_thread_stream : stream;
  StreamState* state = FindOrAddStream(session, key, handle, context, owner);
  t_stream = {stream, context, state, session, abi::LoadRelaxed(g_state.serial), epoch, per_thread};
  return {session, state, context};
}

uint64_t NameHash(const Driver& driver, DeviceSession* session, Handle function) {
  uint64_t hash = 0;
  if (g_state.functions.Find(function, &hash)) return hash;
  const char* name = nullptr;
  // Loading may take a while and synchronise the context. It happens here, outside the gate, so
  // that a closed gate never holds a lock of the driver; the duration is unknown anyway.
  if (driver.load_function != nullptr) driver.load_function(function);
  if (driver.function_name != nullptr && driver.function_name(function, &name) == 0 &&
      name != nullptr) {
    hash = abi::HashName(name);
    AnnounceName(session, hash, name);
  } else {
    hash = abi::Mix(function, 0);
  }
  g_state.functions.Insert(function, hash);
  return hash;
}

uint64_t KernelKeyOf(const Driver& driver, DeviceSession* session, const Op& op) {
  KeyCache& cache = t_keys[(op.function >> 4) % kKeyCache];
  const Shape shape = {{op.grid[0], op.grid[1], op.grid[2]},
                       {op.block[0], op.block[1], op.block[2]},
                       op.shared_bytes,
                       abi::LoadAcquire(g_state.functions_epoch)};
  const bool known = cache.function == op.function && cache.shape.epoch == shape.epoch;
  if (known && memcmp(&cache.shape, &shape, sizeof(shape)) == 0) return cache.key;
  const uint64_t name_hash = known ? cache.name_hash : NameHash(driver, session, op.function);
  const uint64_t key =
      abi::KernelKey(name_hash, shape.grid[0], shape.grid[1], shape.grid[2], shape.block[0],
                     shape.block[1], shape.block[2], shape.shared_bytes);
  cache = {op.function, name_hash, key, shape};
  return key;
}

uint64_t BaseKey(const Driver& driver, DeviceSession* session, const Op& op) {
  switch (op.kind) {
    case abi::OpKind::kKernel:
      return KernelKeyOf(driver, session, op);
    case abi::OpKind::kGraph: {
      uint64_t hash = 0;
      if (!g_state.graphs.Find(op.function, &hash)) hash = op.function;
      return abi::Mix(hash, static_cast<uint64_t>(op.kind)) | 1u;
    }
    default:
      return abi::CopyKey(op.kind, op.bytes);
  }
}

// A key with fewer measurements is measured whenever it comes.
constexpr uint32_t kSettledSamples = 5;

constexpr uint32_t kTokenBestEffort = 1u << 0;

struct Prediction {
  uint64_t expected_ns;
  uint64_t longest_ns;  // What must fit into a window. At least expected_ns.
  uint64_t key;
  uint64_t base_key;
  bool known;
};

Prediction Predict(const Driver& driver, DeviceSession* session, StreamState* stream,
                   const Op& op) {
  Prediction result{};
  result.base_key = BaseKey(driver, session, op);
  const uint64_t history = abi::LoadRelaxed(stream->history);
  result.key =
      op.kind == abi::OpKind::kKernel ? abi::HistoryKey(result.base_key, history) : result.base_key;
  abi::StoreRelaxed(stream->history, abi::PushHistory(history, result.base_key));
  const DeviceView* view = abi::LoadAcquire(session->view);
  const abi::ProfileEntry* entry = abi::FindProfile(*view->profile, result.key);
  if (entry == nullptr && result.key != result.base_key) {
    entry = abi::FindProfile(*view->profile, result.base_key);
  } else {
    // The first few measurements of a key are cold, or beside somebody: a few more are worth it.
    result.known = entry != nullptr && abi::LoadRelaxed(entry->sample_count) >= kSettledSamples;
  }
  uint64_t expected_ns = view->page->constants.unknown_op_ns;
  uint64_t longest_ns = expected_ns;
  if (entry != nullptr) {
    expected_ns = abi::LoadRelaxed(entry->duration_ns);
    longest_ns = abi::LoadRelaxed(entry->max_ns);
    if (longest_ns < expected_ns) longest_ns = expected_ns;
  } else {
    Count(session, abi::Counter::kUnknownOps);
  }
  if (expected_ns == 0) expected_ns = 1;
  if (longest_ns < expected_ns) longest_ns = expected_ns;
  result.expected_ns = expected_ns;
  result.longest_ns = longest_ns;
  return result;
}

// A marker after so much work or so many ops, while somebody is there who reads it; less often
// where nothing is decided by the place in the queue.
void MarkIfDue(const Driver& driver, DeviceSession* session, StreamState* stream,
               const OpToken& token) {
  const abi::DeviceRegion& page = *abi::LoadAcquire(session->view)->page;
  const uint32_t since = abi::LoadRelaxed(stream->ops_since_mark) + 1;
  abi::StoreRelaxed(stream->ops_since_mark, since);
  if (abi::LoadRelaxed(page.state.realtime_sessions) == 0) return;
  const uint64_t unmarked_ns =
      abi::LoadRelaxed(stream->submitted_ns) - abi::LoadRelaxed(stream->marked_ns);
  if (unmarked_ns < token.unmarked_ns) return;
  if (since < page.constants.marker_ops && unmarked_ns < page.constants.marker_work_ns) return;
  Handle context = token.context;
  if (context == 0 && abi::LoadRelaxed(session->words_address) == 0) {
    driver.current_context(&context);
  }
  EnqueueMarker(driver, session, stream, context);
}

// The op's stream, for calls without a twin for per-thread streams.
Handle AsDriverWants(const Driver& driver, const Op& op) {
  return op.stream == 0 && op.per_thread ? driver.per_thread_stream : op.stream;
}

bool InCapture(const Driver& driver, Handle stream, bool per_thread) {
  if (abi::LoadRelaxed(g_state.active_captures) == 0) return false;
  if (driver.is_capturing == nullptr) return true;
  const Handle asked = stream == 0 && per_thread ? driver.per_thread_stream : stream;
  int capturing = 0;
  // A driver that cannot say is one in whose capture nothing may be added.
  return driver.is_capturing(asked, &capturing) != 0 || capturing != 0;
}

}  // namespace

void SetDriver(const Driver* driver) {
  g_driver = driver;
}
const Driver* GetDriver() {
  return g_driver;
}

bool EquipSession(DeviceSession* session) {
  if (abi::LoadRelaxed(g_state.serial) == 0) abi::StoreRelaxed(g_state.serial, NowNs());
  session->streams = NewStreamTable();
  session->sampler = NewSampler();
  session->touch = NewTouch();
  return session->streams != nullptr && session->sampler != nullptr && session->touch != nullptr;
}

void BeforeOpSlow(const Op& op, OpToken* token) {
  const Driver& driver = *g_driver;
  token->sample = -1;
  token->flags = 0;
  if (InCapture(driver, op.stream, op.per_thread)) {
    DeviceSession* known = KnownSession(driver);
    if (known != nullptr) Count(known, abi::Counter::kCaptureOps);
    return;
  }
  const Place place = FindPlace(driver, op.stream, op.per_thread);
  if (place.session == nullptr) {
    if (Adrift()) HoldAdrift(driver, AsDriverWants(driver, op));
    return;
  }
  DeviceSession* session = place.session;
  CountOp(session, place.stream, op.kind);
  token->session = session;
  token->stream = place.stream;
  token->context = place.context;
  if (IsRealtime()) {
    JobOp(session, place.stream);
    // Nothing is left to do afterwards unless the call itself waits.
    if (!op.synchronous) token->session = nullptr;
    return;
  }
  const Prediction prediction = Predict(driver, session, place.stream, op);
  token->flags = kTokenBestEffort;
  token->expected_ns = prediction.expected_ns;
  token->claimed_ns = prediction.longest_ns;
  token->unmarked_ns = PassGate(driver, session, place.stream, token->claimed_ns);
  SetDirty(session, place.stream);
  __atomic_fetch_add(&place.stream->submitted_ns, token->claimed_ns, __ATOMIC_RELAXED);
  if (!prediction.known || SampleDue(session, place.stream, token->expected_ns)) {
    token->sample = BeginSample(driver, session, AsDriverWants(driver, op), op.kind, prediction.key,
                                prediction.base_key, token->expected_ns);
  }
}

uint64_t CopyPartBytes(const Op& op) {
  if (!Attached() || IsRealtime() || abi::LoadRelaxed(g_state.active_captures) != 0) return 0;
  const DeviceSession* session = KnownSession(*g_driver);
  if (session == nullptr) return 0;
  const abi::DeviceRegion& page = *abi::LoadAcquire(session->view)->page;
  if (abi::LoadRelaxed(page.state.realtime_sessions) == 0) return 0;
  return op.kind == abi::OpKind::kCopyDevice ? page.constants.copy_part_device_bytes
                                             : page.constants.copy_part_host_bytes;
}

void AfterOpSlow(const Op& op, OpToken* token, bool ok) {
  const Driver& driver = *g_driver;
  DeviceSession* session = token->session;
  auto* stream = static_cast<StreamState*>(token->stream);
  if ((token->flags & kTokenBestEffort) != 0) {
    if (token->sample >= 0) {
      EndSample(driver, session, token->sample, AsDriverWants(driver, op), ok);
    }
    if (ok) {
      abi::CountRelaxed(stream->busy_ns, token->expected_ns);
      MarkIfDue(driver, session, stream, *token);
    } else {
      __atomic_fetch_sub(&stream->submitted_ns, token->claimed_ns, __ATOMIC_RELAXED);
    }
    CollectSamples(driver, session, 1);
    if (ok && op.synchronous) {
      FlushCounts(session);
      MarkReached(session, stream);
    }
    return;
  }
  if (ok && op.synchronous) {
    FlushCounts(session);
    JobWaited(session, stream, false, 0);
    MaintainConnection(driver, NowNs());
  }
}

namespace {

// The stream that a wait or query is about; null for events, contexts and streams without ops.
StreamState* ScopeStream(const Driver& driver, DeviceSession* session, SyncScope scope,
                         Handle handle, bool per_thread, Handle context) {
  if (scope != SyncScope::kStream) return nullptr;
  uint64_t owner = 0;
  return FindStream(session, StreamKey(driver, handle, per_thread, context, &owner));
}

thread_local uint64_t t_wait_begin_ns;

}  // namespace

void BeforeSync(SyncScope scope, Handle handle, bool per_thread) {
  (void)scope;
  (void)handle;
  (void)per_thread;
  if (!Attached() || !IsRealtime()) return;
  const Driver& driver = *g_driver;
  DeviceSession* session = KnownSession(driver);
  if (session == nullptr || abi::LoadRelaxed(g_state.active_captures) != 0) return;
  Handle context = 0;
  driver.current_context(&context);
  t_wait_begin_ns = NowNs();
  JobDrain(driver, session, context);
}

void AfterSync(SyncScope scope, Handle handle, bool per_thread, bool ok) {
  if (!Attached()) return;
  const Driver& driver = *g_driver;
  DeviceSession* session = KnownSession(driver);
  if (session == nullptr) return;
  const uint64_t now_ns = NowNs();
  FlushCounts(session);
  if (ok) {
    Handle context = 0;
    driver.current_context(&context);
    StreamState* reached = ScopeStream(driver, session, scope, handle, per_thread, context);
    if (IsRealtime()) {
      JobWaited(session, reached, scope == SyncScope::kContext, now_ns - t_wait_begin_ns);
      EnsureTouch(driver, session, context);
    } else {
      if (reached != nullptr) MarkReached(session, reached);
      if (scope == SyncScope::kContext) MarkAllReached(session);
      CollectSamples(driver, session, kSamplePairs);
    }
  }
  MaintainConnection(driver, now_ns);
}

void BeforeQuery(SyncScope scope, Handle handle, bool per_thread) {
  (void)scope;
  (void)handle;
  (void)per_thread;
  if (!Attached() || !IsRealtime()) return;
  const Driver& driver = *g_driver;
  DeviceSession* session = KnownSession(driver);
  if (session == nullptr || JobDraining(session) ||
      abi::LoadRelaxed(g_state.active_captures) != 0) {
    return;
  }
  Handle context = 0;
  driver.current_context(&context);
  JobDrain(driver, session, context);
}

void AfterQuery(SyncScope scope, Handle handle, bool per_thread, bool done) {
  if (!done) return;
  if (!Attached()) return;
  const Driver& driver = *g_driver;
  DeviceSession* session = KnownSession(driver);
  if (session == nullptr) return;
  Handle context = 0;
  driver.current_context(&context);
  StreamState* reached = ScopeStream(driver, session, scope, handle, per_thread, context);
  if (IsRealtime()) {
    JobWaited(session, reached, false, 0);
  } else if (reached != nullptr) {
    MarkReached(session, reached);
  }
}

void OnEventRecorded(Handle event, Handle stream, bool per_thread) {
  // An event ends no job by itself; a wait for it does (BeforeSync marks every dirty stream).
  (void)event;
  (void)stream;
  (void)per_thread;
}

void OnEventDestroyed(Handle event) {
  (void)event;
}

void OnStreamDestroyed(Handle stream) {
  if (!Attached()) return;
  const Driver& driver = *g_driver;
  DeviceSession* session = KnownSession(driver);
  if (session == nullptr || IsDefaultStream(driver, stream)) return;
  StreamState* state = FindStream(session, stream);
  if (state == nullptr) return;
  // The work goes on after the handle is gone: a last marker tells when it is done.
  if (abi::LoadRelaxed(g_state.active_captures) == 0) {
    Handle context = 0;
    driver.current_context(&context);
    EnqueueMarker(driver, session, state, context);
  }
  FlushCounts(session);
  RetireStream(session, stream);
}

void OnContextDestroying(Handle context) {
  if (!Attached()) return;
  const Driver& driver = *g_driver;
  for (DeviceSession* const& entry : g_state.devices) {
    DeviceSession* session = abi::LoadAcquire(entry);
    if (session == nullptr) continue;
    StopTouch(session, context);
    // Everything of a context dies with it: words registered in it, its streams, its events. What
    // belongs to others is registered and found again at their next op.
    if (context == 0 || session->words_context == context) {
      const uint64_t words = abi::LoadAcquire(session->words_address);
      abi::StoreRelease(session->words_address, uint64_t{0});
      if (words != 0 && driver.unregister_host != nullptr &&
          abi::LoadRelaxed(g_state.active_captures) == 0) {
        driver.unregister_host(session->slot->gpu_words);
      }
    }
    for (uint32_t i = 0; i < abi::kMaxStreams; ++i) {
      StreamState& state = session->streams->states[i];
      const uint64_t key = abi::LoadRelaxed(state.key);
      if (key == 0 || key == kRetiredStream) continue;
      if (context != 0 && state.context != 0 && state.context != context) continue;
      MarkReached(session, &state);
      RetireStream(session, key);
    }
    Sampler* sampler = session->sampler;
    if (sampler != nullptr) DropEvents(sampler);
  }
}

void OnFunctionsUnloaded() {
  if (!Attached()) return;
  g_state.functions.Clear();
  __atomic_fetch_add(&g_state.functions_epoch, 1u, __ATOMIC_RELEASE);
}

void OnGraphInstantiated(Handle executable, uint64_t content_hash, uint32_t node_count) {
  (void)node_count;
  if (!Attached() || executable == 0) return;
  g_state.graphs.Insert(executable, content_hash);
}

void OnGraphDestroyed(Handle executable) {
  if (Attached()) g_state.graphs.Erase(executable);
}

void OnCaptureBegun() {
  __atomic_fetch_add(&g_state.active_captures, 1u, __ATOMIC_ACQ_REL);
}

void OnCaptureEnded() {
  uint32_t active = abi::LoadRelaxed(g_state.active_captures);
  while (active != 0 && !__atomic_compare_exchange_n(&g_state.active_captures, &active, active - 1,
                                                     false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
  }
}

void OnUnknownSymbol(const char* name) {
  (void)name;
  // Asked for before the first device is open, most of the time: kept here, and added to the slot
  // of the first device when there is one.
  const uint32_t unknown = __atomic_add_fetch(&g_state.unknown_symbols, 1u, __ATOMIC_RELAXED);
  for (DeviceSession* const& entry : g_state.devices) {
    DeviceSession* session = abi::LoadAcquire(entry);
    if (session == nullptr) continue;
    abi::StoreRelaxed(
        session->slot->counters.value[static_cast<uint32_t>(abi::Counter::kUnknownSymbols)],
        static_cast<uint64_t>(unknown));
    return;
  }
}

}  // namespace rubato::shim
