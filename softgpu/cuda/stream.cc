// Streams, events, host functions and stream memory operations.
#include <algorithm>
#include <utility>

#include "softgpu/cuda/driver.h"

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.
using wire::RecordType;

namespace rubato::softgpu {
namespace {

// Events and queries ask about a stream without putting anything into it.
CUresult QueryStream(Entry& e, CUstream stream) {
  if (stream->capture != nullptr) {
    Invalidate(stream->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  if (stream->last_seq != 0 && !e.device().Done(stream->slot, stream->last_seq))
    return CUDA_ERROR_NOT_READY;
  return ContextStatus(stream->context);
}

bool EventDone(const Entry& e, CUevent event) {
  if (event->seq == 0) return true;
  return e.device().shared()->events[event->slot].done_seq.load(std::memory_order_acquire) >=
         event->seq;
}

CUresult NewEvent(Entry& e, unsigned flags, CUevent* out) {
  Driver& d = e.driver();
  uint32_t slot;
  if (!d.free_event_slots.empty()) {
    slot = d.free_event_slots.back();
    d.free_event_slots.pop_back();
  } else if (d.next_event_slot < wire::kEventSlots) {
    slot = d.next_event_slot++;
  } else {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  CUevent event = d.events.New(Magic::kEvent);
  event->context = e.context();
  event->slot = slot;
  event->flags = flags;
  e.context()->events.insert(event);
  *out = event;
  return CUDA_SUCCESS;
}

CUresult RecordEvent(CUevent event, CUstream handle, unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (!Is(event)) return CUDA_ERROR_INVALID_HANDLE;
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  if (event->context->root != stream->context->root) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture != nullptr) {
    if ((flags & CU_EVENT_RECORD_EXTERNAL) != 0) {
      Work work;
      work.type = RecordType::kEvent;
      work.body.event.slot = event->slot;
      work.event_handle = event;
      work.node_type = CU_GRAPH_NODE_TYPE_EVENT_RECORD;
      return Enqueue(e, stream, std::move(work));
    }
    event->capture = stream->capture;
    event->capture_nodes = stream->capture_tail;
    return CUDA_SUCCESS;
  }
  event->capture.reset();
  event->capture_nodes.clear();
  wire::EventBody body{event->slot, 0};
  const uint64_t seq = PushTo(e, stream, RecordType::kEvent, 0, &body, sizeof body);
  if (!Is(event)) return CUDA_ERROR_INVALID_HANDLE;
  event->seq = seq;
  return CUDA_SUCCESS;
}

CUresult WordOperation(CUstream handle, RecordType type, CUdeviceptr address, uint64_t value,
                       uint32_t bits, unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (e.driver().settings.no_memops) return CUDA_ERROR_NOT_SUPPORTED;
  if (address == 0 || address % (bits / 8) != 0) return CUDA_ERROR_INVALID_VALUE;
  // Host memory must have been registered; the device cannot know any other.
  if (FindMemory(e.driver(), address) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  Work work;
  work.type = type;
  work.body.word = {address, value, bits, flags & 3};
  work.node_type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP;
  if (stream->capture != nullptr) {
    CUstreamBatchMemOpParams op{};
    op.writeValue.operation =
        type == RecordType::kWriteWord
            ? (bits == 32 ? CU_STREAM_MEM_OP_WRITE_VALUE_32 : CU_STREAM_MEM_OP_WRITE_VALUE_64)
            : (bits == 32 ? CU_STREAM_MEM_OP_WAIT_VALUE_32 : CU_STREAM_MEM_OP_WAIT_VALUE_64);
    op.writeValue.address = address;
    op.writeValue.value64 = value;
    op.writeValue.flags = flags;
    work.memops = {op};
  }
  return Enqueue(e, stream, std::move(work));
}

}  // namespace
}  // namespace rubato::softgpu

RUBATO_SOFTGPU_API cuStreamCreateWithPriority(CUstream* out, unsigned flags, int priority) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || (flags & ~unsigned{CU_STREAM_NON_BLOCKING}) != 0)
    return CUDA_ERROR_INVALID_VALUE;
  return NewStream(e, e.context(), flags, priority, false, false, out);
}

RUBATO_SOFTGPU_API cuStreamCreate(CUstream* out, unsigned flags) {
  return cuStreamCreateWithPriority(out, flags, 0);
}

RUBATO_SOFTGPU_API cuStreamDestroy_v2(CUstream stream) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(stream)) return stream == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
  if (stream->is_default) return CUDA_ERROR_INVALID_HANDLE;
  DeleteStream(e, stream);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamSynchronize(CUstream handle) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  if (stream->capture != nullptr) {
    Invalidate(stream->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  if (CUresult r = stream->legacy ? OpenStream(e, handle, &stream) : CUDA_SUCCESS) return r;
  if (!stream->legacy) return WaitForSeq(e, stream, stream->last_seq);
  // The legacy stream stands for every blocking stream too.
  const uint64_t seq = PushTo(e, stream, RecordType::kJoin, 0, nullptr, 0);
  return WaitForSeq(e, stream, seq);
}

RUBATO_SOFTGPU_API cuStreamQuery(CUstream handle) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  if (!stream->legacy) return QueryStream(e, stream);
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  for (CUstream other : stream->context->streams) {
    if ((other->flags & CU_STREAM_NON_BLOCKING) != 0 || other->capture != nullptr) continue;
    if (CUresult r = QueryStream(e, other)) return r;
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamGetPriority(CUstream handle, int* priority) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (priority == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  *priority = stream->priority;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamGetFlags(CUstream handle, unsigned* flags) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  *flags = stream->flags;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamGetId(CUstream handle, unsigned long long* id) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  *id = stream->id;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamGetDevice(CUstream handle, CUdevice* device) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  *device = stream->context->device;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamGetCtx(CUstream handle, CUcontext* context) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  *context = stream->context->root;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamGetCtx_v2(CUstream handle, CUcontext* context, CUgreenCtx* green) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (context == nullptr || green == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  *green = stream->context->green;
  *context = stream->context->green != nullptr ? nullptr : stream->context;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamGetGreenCtx(CUstream handle, CUgreenCtx* green) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (green == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  *green = stream->context->green;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamGetAttribute(CUstream handle, CUstreamAttrID attribute,
                                        CUstreamAttrValue* value) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  switch (static_cast<int>(attribute)) {
    case CU_LAUNCH_ATTRIBUTE_PRIORITY:
      value->priority = stream->priority;
      return CUDA_SUCCESS;
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
      *value = stream->access_policy;
      return CUDA_SUCCESS;
    case CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY:
      value->syncPolicy = static_cast<CUsynchronizationPolicy>(stream->sync_policy);
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

RUBATO_SOFTGPU_API cuStreamSetAttribute(CUstream handle, CUstreamAttrID attribute,
                                        const CUstreamAttrValue* value) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  switch (static_cast<int>(attribute)) {
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
      stream->access_policy = *value;
      return CUDA_SUCCESS;
    case CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY:
      stream->sync_policy = value->syncPolicy;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

RUBATO_SOFTGPU_API cuStreamCopyAttributes(CUstream to_handle, CUstream from_handle) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream to, from;
  if (CUresult r = FindStream(e, to_handle, &to)) return r;
  if (CUresult r = FindStream(e, from_handle, &from)) return r;
  to->access_policy = from->access_policy;
  to->sync_policy = from->sync_policy;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamAttachMemAsync(CUstream handle, CUdeviceptr address, size_t, unsigned) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (FindMemory(e.driver(), address) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  return Enqueue(e, stream, Work{});
}

RUBATO_SOFTGPU_API cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (!Is(event)) return CUDA_ERROR_INVALID_HANDLE;
  CUstream stream;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  if (event->capture != nullptr) {
    // The event stands for a point of a capture; waiting for it draws this stream into the capture.
    const std::shared_ptr<Capture> capture = event->capture;
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream->capture != nullptr && stream->capture != capture) {
      Invalidate(stream->capture);
      Invalidate(capture);
      return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (stream->legacy) {
      Invalidate(capture);
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->capture == nullptr) {
      stream->capture = capture;
      capture->streams.insert(stream);
      stream->capture_tail.clear();
    }
    for (CUgraphNode node : event->capture_nodes) {
      if (std::find(stream->capture_tail.begin(), stream->capture_tail.end(), node) ==
          stream->capture_tail.end()) {
        stream->capture_tail.push_back(node);
      }
    }
    return CUDA_SUCCESS;
  }
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  if (stream->capture != nullptr) {
    if ((flags & CU_EVENT_WAIT_EXTERNAL) == 0) {
      Invalidate(stream->capture);
      return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    Work work;
    work.event_handle = event;
    work.node_type = CU_GRAPH_NODE_TYPE_WAIT_EVENT;
    return Enqueue(e, stream, std::move(work));
  }
  if (event->foreign != 0) {
    PushTo(e, stream, RecordType::kJoin, 1, &event->foreign, sizeof event->foreign);
    return CUDA_SUCCESS;
  }
  if (event->seq == 0 || EventDone(e, event)) return CUDA_SUCCESS;
  const uint64_t seq = event->seq;
  PushTo(e, stream, RecordType::kJoin, 1, &seq, sizeof seq);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuLaunchHostFunc(CUstream handle, CUhostFn fn, void* data) {
  Entry e;
  if (e.failed()) return e.result();
  if (fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  Work work;
  work.type = RecordType::kHostCall;
  work.host.fn = fn;
  work.host.data = data;
  work.node_type = CU_GRAPH_NODE_TYPE_HOST;
  return Enqueue(e, stream, std::move(work));
}

RUBATO_SOFTGPU_API cuStreamAddCallback(CUstream handle, CUstreamCallback callback, void* data,
                                       unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (callback == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  if (stream->capture != nullptr) {
    Invalidate(stream->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  Work work;
  work.type = RecordType::kHostCall;
  work.host.callback = callback;
  work.host.stream = handle;
  work.host.data = data;
  return Enqueue(e, stream, std::move(work));
}

RUBATO_SOFTGPU_API cuEventCreate(CUevent* out, unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  const unsigned known = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
  if (out == nullptr || (flags & ~known) != 0) return CUDA_ERROR_INVALID_VALUE;
  if ((flags & CU_EVENT_INTERPROCESS) != 0 && (flags & CU_EVENT_DISABLE_TIMING) == 0)
    return CUDA_ERROR_INVALID_VALUE;
  return NewEvent(e, flags, out);
}

RUBATO_SOFTGPU_API cuEventDestroy_v2(CUevent event) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(event)) return CUDA_ERROR_INVALID_HANDLE;
  event->context->events.erase(event);
  e.driver().free_event_slots.push_back(event->slot);
  e.driver().events.Delete(event);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuEventRecord(CUevent event, CUstream stream) {
  return RecordEvent(event, stream, 0);
}

RUBATO_SOFTGPU_API cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
  if ((flags & ~unsigned{CU_EVENT_RECORD_EXTERNAL}) != 0) return CUDA_ERROR_INVALID_VALUE;
  return RecordEvent(event, stream, flags);
}

RUBATO_SOFTGPU_API cuEventQuery(CUevent event) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(event)) return CUDA_ERROR_INVALID_HANDLE;
  if (event->capture != nullptr) {
    Invalidate(event->capture);
    return CUDA_ERROR_CAPTURED_EVENT;
  }
  if (CUresult r = ContextStatus(event->context)) return r;
  return EventDone(e, event) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

RUBATO_SOFTGPU_API cuEventSynchronize(CUevent event) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(event)) return CUDA_ERROR_INVALID_HANDLE;
  if (event->capture != nullptr) {
    Invalidate(event->capture);
    return CUDA_ERROR_CAPTURED_EVENT;
  }
  CUcontext context = event->context;
  if (!EventDone(e, event)) {
    const uint32_t slot = event->slot;
    const uint64_t seq = event->seq;
    Connection& device = e.device();
    e.lock().unlock();
    const bool alive = device.WaitUntil([&] {
      return device.shared()->events[slot].done_seq.load(std::memory_order_acquire) >= seq;
    });
    e.lock().lock();
    if (!alive) return CUDA_ERROR_DEVICE_UNAVAILABLE;
  }
  return ContextStatus(context);
}

RUBATO_SOFTGPU_API cuEventElapsedTime_v2(float* ms, CUevent start, CUevent end) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (ms == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(start) || !Is(end)) return CUDA_ERROR_INVALID_HANDLE;
  for (CUevent event : {start, end}) {
    if (event->seq == 0 || (event->flags & CU_EVENT_DISABLE_TIMING) != 0)
      return CUDA_ERROR_INVALID_HANDLE;
    if (event->context->root != start->context->root) return CUDA_ERROR_INVALID_HANDLE;
    if (!EventDone(e, event)) return CUDA_ERROR_NOT_READY;
  }
  const auto& events = e.device().shared()->events;
  *ms = static_cast<float>(
      static_cast<double>(events[end->slot].at_ns.load() - events[start->slot].at_ns.load()) / 1e6);
  return CUDA_SUCCESS;
}

#undef cuEventElapsedTime
RUBATO_SOFTGPU_API cuEventElapsedTime(float* ms, CUevent start, CUevent end) {
  return cuEventElapsedTime_v2(ms, start, end);
}

RUBATO_SOFTGPU_API cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value,
                                           unsigned flags) {
  return WordOperation(stream, RecordType::kWriteWord, address, value, 32, flags);
}

RUBATO_SOFTGPU_API cuStreamWriteValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value,
                                           unsigned flags) {
  return WordOperation(stream, RecordType::kWriteWord, address, value, 64, flags);
}

RUBATO_SOFTGPU_API cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value,
                                          unsigned flags) {
  return WordOperation(stream, RecordType::kWaitWord, address, value, 32, flags);
}

RUBATO_SOFTGPU_API cuStreamWaitValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value,
                                          unsigned flags) {
  return WordOperation(stream, RecordType::kWaitWord, address, value, 64, flags);
}

RUBATO_SOFTGPU_API cuStreamBatchMemOp_v2(CUstream stream, unsigned count,
                                         CUstreamBatchMemOpParams* ops, unsigned) {
  if (ops == nullptr || count > 256) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned i = 0; i < count; ++i) {
    CUresult r = CUDA_SUCCESS;
    const CUstreamBatchMemOpParams& op = ops[i];
    switch (op.operation) {
      case CU_STREAM_MEM_OP_WRITE_VALUE_32:
        r = cuStreamWriteValue32_v2(stream, op.writeValue.address, op.writeValue.value,
                                    op.writeValue.flags);
        break;
      case CU_STREAM_MEM_OP_WRITE_VALUE_64:
        r = cuStreamWriteValue64_v2(stream, op.writeValue.address, op.writeValue.value64,
                                    op.writeValue.flags);
        break;
      case CU_STREAM_MEM_OP_WAIT_VALUE_32:
        r = cuStreamWaitValue32_v2(stream, op.waitValue.address, op.waitValue.value,
                                   op.waitValue.flags);
        break;
      case CU_STREAM_MEM_OP_WAIT_VALUE_64:
        r = cuStreamWaitValue64_v2(stream, op.waitValue.address, op.waitValue.value64,
                                   op.waitValue.flags);
        break;
      case CU_STREAM_MEM_OP_BARRIER:
      case CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES:
        break;
      default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (r != CUDA_SUCCESS) return r;
  }
  return CUDA_SUCCESS;
}

#undef cuStreamWriteValue32
#undef cuStreamWriteValue64
#undef cuStreamWaitValue32
#undef cuStreamWaitValue64
#undef cuStreamBatchMemOp
RUBATO_SOFTGPU_API cuStreamWriteValue32(CUstream stream, CUdeviceptr address, cuuint32_t value,
                                        unsigned flags) {
  return WordOperation(stream, RecordType::kWriteWord, address, value, 32, flags);
}
RUBATO_SOFTGPU_API cuStreamWriteValue64(CUstream stream, CUdeviceptr address, cuuint64_t value,
                                        unsigned flags) {
  return WordOperation(stream, RecordType::kWriteWord, address, value, 64, flags);
}
RUBATO_SOFTGPU_API cuStreamWaitValue32(CUstream stream, CUdeviceptr address, cuuint32_t value,
                                       unsigned flags) {
  return WordOperation(stream, RecordType::kWaitWord, address, value, 32, flags);
}
RUBATO_SOFTGPU_API cuStreamWaitValue64(CUstream stream, CUdeviceptr address, cuuint64_t value,
                                       unsigned flags) {
  return WordOperation(stream, RecordType::kWaitWord, address, value, 64, flags);
}
RUBATO_SOFTGPU_API cuStreamBatchMemOp(CUstream stream, unsigned count,
                                      CUstreamBatchMemOpParams* ops, unsigned flags) {
  return cuStreamBatchMemOp_v2(stream, count, ops, flags);
}
