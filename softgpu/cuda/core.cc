// Shared state and the way every operation takes into the device's queue.
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "softgpu/cuda/driver.h"

namespace rubato::softgpu {

Driver& TheDriver() {
  static Driver* const driver =
      new Driver;  // Never destroyed: threads may call until the very end.
  return *driver;
}

ThreadState& ThisThread() {
  static std::atomic<uint64_t> next{1};
  thread_local ThreadState state;
  if (state.id == 0) state.id = next.fetch_add(1);
  return state;
}

Entry::Entry(Need need) : driver_(TheDriver()), lock_(driver_.mutex, std::defer_lock) {
  if (driver_.forked.load(std::memory_order_relaxed)) {
    // Only the thread that forked lives here and the mutex may be held for ever by another.
    result_ = CUDA_ERROR_NOT_INITIALIZED;
    return;
  }
  lock_.lock();
  if (!driver_.initialized) {
    result_ = CUDA_ERROR_NOT_INITIALIZED;
  } else if (driver_.device->lost()) {
    result_ = CUDA_ERROR_DEVICE_UNAVAILABLE;
  } else if (need == Need::kContext) {
    ThreadState& thread = ThisThread();
    if (thread.in_callback) {
      result_ = CUDA_ERROR_NOT_PERMITTED;
      return;
    }
    context_ = thread.stack.empty() ? nullptr : thread.stack.back();
    if (context_ == nullptr) {
      result_ = CUDA_ERROR_INVALID_CONTEXT;
    } else {
      result_ = ContextStatus(context_);
    }
  }
}

bool Is(CUcontext h) {
  return h != nullptr && h->magic == Magic::kContext;
}
bool Is(CUstream h) {
  return h != nullptr && h->magic == Magic::kStream;
}
bool Is(CUevent h) {
  return h != nullptr && h->magic == Magic::kEvent;
}
bool Is(CUmodule h) {
  return h != nullptr && h->magic == Magic::kModule;
}
bool Is(CUfunction h) {
  return h != nullptr && h->magic == Magic::kFunction;
}
bool Is(CUgraph h) {
  return h != nullptr && h->magic == Magic::kGraph;
}
bool Is(CUgraphNode h) {
  return h != nullptr && h->magic == Magic::kNode;
}
bool Is(CUgraphExec h) {
  return h != nullptr && h->magic == Magic::kExec;
}

CUresult ContextStatus(CUcontext context) {
  if (!Is(context)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  const uint32_t fault = TheDriver().device->shared()->context_fault[context->root->slot].load(
      std::memory_order_acquire);
  switch (static_cast<wire::Fault>(fault)) {
    case wire::Fault::kNone:
      return CUDA_SUCCESS;
    case wire::Fault::kIllegalAddress:
      return CUDA_ERROR_ILLEGAL_ADDRESS;
    case wire::Fault::kServerLost:
      return CUDA_ERROR_MPS_CLIENT_TERMINATED;
  }
  return CUDA_ERROR_UNKNOWN;
}

size_t Work::BodyBytes() const {
  switch (type) {
    case wire::RecordType::kKernel:
      return sizeof body.kernel;
    case wire::RecordType::kCopy:
      return sizeof body.copy;
    case wire::RecordType::kFill:
      return sizeof body.fill;
    case wire::RecordType::kWriteWord:
    case wire::RecordType::kWaitWord:
      return sizeof body.word;
    case wire::RecordType::kEvent:
      return sizeof body.event;
    default:
      return 0;
  }
}

CUresult NewContext(Entry& e, CUdevice device, unsigned flags, bool primary, CUcontext* out) {
  const wire::Reply reply =
      e.device().Call(wire::RequestType::kCreateContext, static_cast<uint32_t>(device), {});
  if (reply.status != wire::Status::kOk) {
    return reply.status == wire::Status::kOutOfMemory ? CUDA_ERROR_OUT_OF_MEMORY
                                                      : CUDA_ERROR_DEVICE_UNAVAILABLE;
  }
  Driver& d = e.driver();
  CUcontext context = d.contexts.New(Magic::kContext);
  context->device = device;
  context->slot = static_cast<uint32_t>(reply.v[0]);
  context->flags = flags;
  context->id = d.next_id++;
  context->primary = primary;
  context->root = context;
  const CUresult result = NewStream(e, context, 0, 0, true, true, &context->legacy);
  if (result != CUDA_SUCCESS) {
    DeleteContext(e, context);
    return result;
  }
  *out = context;
  return CUDA_SUCCESS;
}

namespace {

void EmptyContext(Entry& e, CUcontext context) {
  Driver& d = e.driver();
  for (CUstream stream : std::set<CUstream>(context->streams)) DeleteStream(e, stream);
  for (CUevent event : context->events) {
    d.free_event_slots.push_back(event->slot);
    d.events.Delete(event);
  }
}

}  // namespace

void DeletePart(Entry& e, CUcontext part) {
  EmptyContext(e, part);
  part->root->parts.erase(part);
  e.driver().greens.Delete(part->green);
  e.driver().contexts.Delete(part);
}

void DeleteContext(Entry& e, CUcontext context) {
  Driver& d = e.driver();
  e.device().Call(wire::RequestType::kDestroyContext, 0, {context->slot});
  for (auto& capture : d.captures) {
    for (CUstream stream : capture->streams) {
      if (stream->context == context) capture->invalid = true;
    }
  }
  for (CUcontext part : std::set<CUcontext>(context->parts)) DeletePart(e, part);
  EmptyContext(e, context);
  for (CUmodule module : context->modules) {
    for (CUfunction function : module->functions) d.functions.Delete(function);
    d.modules.Delete(module);
  }
  ForgetContextMemory(e, context);
  d.contexts.Delete(context);
}

CUresult NewStream(Entry& e, CUcontext context, unsigned flags, int priority, bool is_default,
                   bool legacy, CUstream* out) {
  Driver& d = e.driver();
  uint32_t slot;
  if (d.next_stream_slot < wire::kStreamSlots) {
    slot = d.next_stream_slot++;
  } else if (!d.free_stream_slots.empty()) {
    slot = d.free_stream_slots.front();
    d.free_stream_slots.pop_front();
  } else {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  CUstream stream = d.streams.New(Magic::kStream);
  stream->context = context;
  stream->slot = slot;
  stream->flags = flags;
  stream->priority = std::clamp(priority, -5, 0);
  stream->id = d.next_id++;
  stream->is_default = is_default;
  stream->legacy = legacy;
  stream->submitted = e.device().shared()->streams[slot].completed_count.load();
  context->streams.insert(stream);
  wire::StreamBody body{};
  body.context = context->root->slot;
  // The default stream of a green context is no barrier for anybody.
  body.kind = legacy                                  ? (context->green != nullptr ? 0 : 2)
              : (flags & CU_STREAM_NON_BLOCKING) != 0 ? 0
                                                      : 1;
  body.priority = stream->priority;
  body.first_sm = context->green != nullptr ? context->green->first_sm : 0;
  body.sm_count = context->green != nullptr ? context->green->sm_count : UINT32_MAX;
  e.device().Push(wire::RecordType::kStreamCreate, slot, 0, &body, sizeof body);
  *out = stream;
  return CUDA_SUCCESS;
}

void DeleteStream(Entry& e, CUstream stream) {
  Driver& d = e.driver();
  if (stream->capture != nullptr) Invalidate(stream->capture);
  e.device().Push(wire::RecordType::kStreamDestroy, stream->slot, 0);
  // The oldest slot is used again first, so that whatever still runs has long finished by then.
  d.free_stream_slots.push_back(stream->slot);
  stream->context->streams.erase(stream);
  d.streams.Delete(stream);
}

CUresult FindStream(Entry& e, CUstream handle, CUstream* out) {
  CUcontext context = e.context();
  ThreadState& thread = ThisThread();
  const bool zero = handle == nullptr;
  if (handle == CU_STREAM_PER_THREAD || (zero && thread.per_thread_default)) {
    for (auto& entry : thread.streams) {
      if (entry.context == context && entry.context_id == context->id && Is(entry.stream)) {
        *out = entry.stream;
        return CUDA_SUCCESS;
      }
    }
    CUstream stream = nullptr;
    const CUresult result = NewStream(e, context, 0, 0, true, false, &stream);
    if (result != CUDA_SUCCESS) return result;
    std::erase_if(thread.streams, [&](auto& entry) { return entry.context == context; });
    thread.streams.push_back({context, context->id, stream});
    *out = stream;
    return CUDA_SUCCESS;
  }
  if (zero || handle == CU_STREAM_LEGACY) {
    *out = context->legacy;
    return CUDA_SUCCESS;
  }
  if (!Is(handle)) return CUDA_ERROR_INVALID_HANDLE;
  *out = handle;
  return ContextStatus(handle->context);
}

void Invalidate(const std::shared_ptr<Capture>& capture) {
  capture->invalid = true;
}

CUresult RefuseInCapture(Entry& e) {
  const ThreadState& thread = ThisThread();
  if (thread.capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  bool refused = false;
  for (auto& capture : e.driver().captures) {
    if (capture->invalid || capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    const bool mine = capture->thread == thread.id;
    const bool global = capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                        thread.capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (!mine && !global) continue;
    Invalidate(capture);
    refused = true;
  }
  return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult OpenStream(Entry& e, CUstream handle, CUstream* out) {
  const CUresult result = FindStream(e, handle, out);
  if (result != CUDA_SUCCESS) return result;
  CUstream stream = *out;
  if (stream->capture != nullptr) {
    return stream->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
  }
  if (!stream->legacy) return CUDA_SUCCESS;
  // Work on the legacy stream would wait for a blocking stream whose work is only being recorded.
  bool implicit = false;
  for (auto& capture : e.driver().captures) {
    if (capture->invalid || capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    for (CUstream other : capture->streams) {
      if (other->context->root == stream->context->root &&
          (other->flags & CU_STREAM_NON_BLOCKING) == 0) {
        Invalidate(capture);
        implicit = true;
        break;
      }
    }
  }
  return implicit ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_SUCCESS;
}

uint64_t PushTo(Entry& e, CUstream stream, wire::RecordType type, uint32_t extra, const void* body,
                size_t bytes, const void* tail, size_t tail_bytes) {
  const std::atomic<uint64_t>& completed =
      e.device().shared()->streams[stream->slot].completed_count;
  if (stream->submitted - completed.load(std::memory_order_acquire) >= kQueueDepth) {
    const uint64_t enough = stream->submitted - kQueueDepth / 2;
    e.lock().unlock();
    e.device().WaitUntil([&] { return completed.load(std::memory_order_acquire) >= enough; });
    e.lock().lock();
    if (!Is(stream)) return 0;  // Destroyed by another thread in the meantime.
  }
  ++stream->submitted;
  return stream->last_seq =
             e.device().Push(type, stream->slot, extra, body, bytes, tail, tail_bytes);
}

CUresult WaitForSeq(Entry& e, CUstream stream, uint64_t seq) {
  CUcontext context = stream->context;
  const uint32_t slot = stream->slot;
  Connection& device = e.device();
  if (!device.Done(slot, seq)) {
    e.lock().unlock();
    const bool alive = device.WaitUntil([&] { return device.Done(slot, seq); });
    e.lock().lock();
    if (!alive) return CUDA_ERROR_DEVICE_UNAVAILABLE;
  }
  return ContextStatus(context);
}

CUresult WaitForContext(Entry& e, CUcontext context) {
  std::vector<std::pair<uint32_t, uint64_t>> all;
  auto collect = [&](CUcontext c) {
    for (CUstream stream : c->streams) {
      if (stream->last_seq != 0 && !e.device().Done(stream->slot, stream->last_seq)) {
        all.emplace_back(stream->slot, stream->last_seq);
      }
    }
  };
  collect(context);
  for (CUcontext part : context->parts) collect(part);
  Connection& device = e.device();
  bool alive = true;
  if (!all.empty()) {
    e.lock().unlock();
    for (auto [slot, seq] : all) {
      alive = device.WaitUntil([&device, slot = slot, seq = seq] {
        return device.Done(slot, seq);
      }) && alive;
    }
    e.lock().lock();
  }
  return alive ? ContextStatus(context) : CUDA_ERROR_DEVICE_UNAVAILABLE;
}

CUresult Enqueue(Entry& e, CUstream stream, Work&& work, uint64_t* seq) {
  if (stream->capture != nullptr) {
    CUgraphNode node = AddNode(e, stream->capture->graph, stream->capture_tail, std::move(work));
    stream->capture_tail = {node};
    if (seq != nullptr) *seq = 0;
    return CUDA_SUCCESS;
  }
  if (work.type == wire::RecordType::kHostCall) {
    StartCaller(e);
    const HostFunction host = work.host;
    // The device may call back before PushTo returns, so the function is filed under its number
    // first. Waiting for room lets other threads push, so the number is only known afterwards; room
    // is made beforehand.
    const std::atomic<uint64_t>& completed =
        e.device().shared()->streams[stream->slot].completed_count;
    while (stream->submitted - completed.load(std::memory_order_acquire) >= kQueueDepth) {
      const uint64_t enough = stream->submitted - kQueueDepth / 2;
      e.lock().unlock();
      const bool alive =
          e.device().WaitUntil([&] { return completed.load(std::memory_order_acquire) >= enough; });
      e.lock().lock();
      if (!alive) return CUDA_ERROR_DEVICE_UNAVAILABLE;
      if (!Is(stream)) return CUDA_ERROR_INVALID_HANDLE;
    }
    e.driver().calls[e.device().next_seq()] = host;
  }
  const uint64_t pushed = PushTo(e, stream, work.type, 0, &work.body, work.BodyBytes());
  if (seq != nullptr) *seq = pushed;
  return CUDA_SUCCESS;
}

uint32_t NameId(Entry& e, const std::string& name) {
  auto [it, added] =
      e.driver().names.emplace(name, static_cast<uint32_t>(e.driver().names.size() + 1));
  if (added)
    e.device().Push(wire::RecordType::kName, 0, it->second, name.c_str(),
                    std::min<size_t>(name.size() + 1, 1024));
  return it->second;
}

namespace {

// Runs host functions in order of the device's calls, as drivers do from a thread of their own.
void CallerMain() {
  Driver& d = TheDriver();
  Connection& device = *d.device;
  wire::Shared* shared = device.shared();
  ThisThread().in_callback = true;
  uint32_t head = shared->call_head.load();
  while (
      device.WaitUntil([&] { return shared->call_tail.load(std::memory_order_acquire) != head; })) {
    const wire::HostCall call = shared->calls[head % wire::kCallSlots];
    HostFunction host;
    {
      std::lock_guard<std::mutex> guard(d.mutex);
      if (call.node == UINT32_MAX) {
        auto it = d.calls.find(call.seq);
        if (it != d.calls.end()) {
          host = it->second;
          d.calls.erase(it);
        }
      } else {
        auto it = d.graph_calls.find(call.seq);
        if (it != d.graph_calls.end() && call.node < it->second.functions->size()) {
          host = (*it->second.functions)[call.node];
        }
      }
    }
    if (host.fn != nullptr) host.fn(host.data);
    if (host.callback != nullptr) host.callback(host.stream, CUDA_SUCCESS, host.data);
    std::lock_guard<std::mutex> guard(d.mutex);
    shared->call_head.store(++head, std::memory_order_release);
    const wire::HostDoneBody done{call.seq, call.node, 0};
    device.Push(wire::RecordType::kHostDone, 0, 0, &done, sizeof done);
  }
}

}  // namespace

void StartCaller(Entry& e) {
  if (e.driver().caller_started) return;
  e.driver().caller_started = true;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread(CallerMain).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace rubato::softgpu

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.

RUBATO_SOFTGPU_API cuInit(unsigned flags) {
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  Driver& d = TheDriver();
  if (d.forked.load()) return CUDA_ERROR_NOT_INITIALIZED;
  std::lock_guard<std::mutex> guard(d.mutex);
  if (d.initialized) return CUDA_SUCCESS;
  d.device = Connection::Open(false);
  if (d.device == nullptr || d.device->hello().devices == 0) return CUDA_ERROR_NO_DEVICE;
  d.settings = ReadSettings();
  for (uint32_t i = 0; i < d.device->hello().devices; ++i) {
    // Device pointers are addresses no host object can have.
    void* window = mmap(nullptr, d.device->hello().info[i].memory_bytes, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (window == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    d.window[i] = reinterpret_cast<CUdeviceptr>(window);
  }
  pthread_atfork(nullptr, nullptr, [] {
    Driver& child = TheDriver();
    if (child.forked.exchange(true)) return;
    if (child.device != nullptr) child.device->AbandonInChild();
  });
  d.initialized = true;
  return CUDA_SUCCESS;
}
