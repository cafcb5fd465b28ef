#include "tests/unit/shim/hooks/fake_core.h"

#include <errno.h>

#include "shim/core/attach.h"

namespace rubato::shim {

constinit ProcessState g_state = {};
FakeCore g_core;

namespace {

DeviceSession g_session;
const Driver* g_driver;

CoreEvent& Note(const char* what) {
  errno = g_core.spoil_errno;
  return g_core.events.emplace_back(CoreEvent{.what = what});
}

}  // namespace

std::string Story() {
  std::string story;
  for (const CoreEvent& event : g_core.events) {
    if (!story.empty()) story += ", ";
    story += event.what;
  }
  return story;
}

void SetDriver(const Driver* driver) {
  g_driver = driver;
}
const Driver* GetDriver() {
  return g_driver;
}

void AttachProcess(const Driver&) {
  errno = g_core.spoil_errno;
  ++g_core.attaches;
  g_state.phase =
      static_cast<uint32_t>(g_core.attach_succeeds ? Phase::kAttached : Phase::kDetached);
}

DeviceSession* OpenSession(const Driver&, int ordinal) {
  errno = g_core.spoil_errno;
  return ordinal >= 0 && ordinal < kMaxDevices ? &g_session : nullptr;
}

uint64_t CopyPartBytes(const Op&) {
  return g_core.copy_part_bytes;
}

void BeforeOpSlow(const Op& op, OpToken* token) {
  Note("before op").op = op;
  token->session = &g_session;
}
void AfterOpSlow(const Op& op, OpToken*, bool ok) {
  CoreEvent& event = Note("after op");
  event.op = op;
  event.ok = ok;
}

void BeforeSync(SyncScope scope, Handle handle, bool per_thread) {
  CoreEvent& event = Note("before sync");
  event.scope = scope;
  event.handle = handle;
  event.per_thread = per_thread;
}
void AfterSync(SyncScope scope, Handle handle, bool per_thread, bool ok) {
  CoreEvent& event = Note("after sync");
  event.scope = scope;
  event.handle = handle;
  event.per_thread = per_thread;
  event.ok = ok;
}
void BeforeQuery(SyncScope scope, Handle handle, bool per_thread) {
  CoreEvent& event = Note("before query");
  event.scope = scope;
  event.handle = handle;
  event.per_thread = per_thread;
}
void AfterQuery(SyncScope scope, Handle handle, bool per_thread, bool done) {
  CoreEvent& event = Note("after query");
  event.scope = scope;
  event.handle = handle;
  event.per_thread = per_thread;
  event.ok = done;
}

void OnEventRecorded(Handle event, Handle, bool per_thread) {
  CoreEvent& noted = Note("event recorded");
  noted.handle = event;
  noted.per_thread = per_thread;
}
void OnEventDestroyed(Handle event) {
  Note("event forgotten").handle = event;
}
void OnStreamDestroyed(Handle stream) {
  Note("stream destroyed").handle = stream;
}
void OnContextDestroying(Handle context) {
  Note("context destroying").handle = context;
}
void OnFunctionsUnloaded() {
  Note("functions unloaded");
}
void OnGraphInstantiated(Handle executable, uint64_t, uint32_t) {
  Note("graph instantiated").handle = executable;
}
void OnGraphDestroyed(Handle executable) {
  Note("graph destroyed").handle = executable;
}
void OnCaptureBegun() {
  Note("capture begun");
}
void OnCaptureEnded() {
  Note("capture ended");
}
void OnUnknownSymbol(const char* name) {
  g_core.unknown.emplace_back(name);
}

bool ReserveMemory(DeviceSession*, uint64_t bytes) {
  Note("reserve").bytes = bytes;
  if (g_core.refuse_memory) return false;
  g_core.charged_bytes += bytes;
  return true;
}
void CancelMemory(DeviceSession*, uint64_t bytes) {
  Note("cancel").bytes = bytes;
  g_core.charged_bytes -= bytes;
}
void CommitMemory(DeviceSession*, AllocationKind kind, Handle handle, uint64_t bytes) {
  CoreEvent& event = Note("commit");
  event.kind = kind;
  event.handle = handle;
  event.bytes = bytes;
}
void ReleaseMemory(AllocationKind kind, Handle handle) {
  CoreEvent& event = Note("release");
  event.kind = kind;
  event.handle = handle;
}
void ForgetMemory(DeviceSession*) {
  Note("forget memory");
}
void ShowMemory(DeviceSession*, uint64_t* free_bytes, uint64_t* total_bytes) {
  errno = g_core.spoil_errno;
  *free_bytes = g_core.shown_free;
  *total_bytes = g_core.shown_total;
}

}  // namespace rubato::shim
