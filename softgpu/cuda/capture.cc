// Stream capture: work that is written into a graph instead of a queue.
#include <algorithm>
#include <utility>

#include "softgpu/cuda/driver.h"

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.

namespace rubato::softgpu {
namespace {

CUresult Begin(Entry& e, CUstream handle, CUstreamCaptureMode mode, CUgraph graph,
               const std::vector<CUgraphNode>& tail) {
  if (mode != CU_STREAM_CAPTURE_MODE_GLOBAL && mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL &&
      mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  CUstream stream;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  auto capture = std::make_shared<Capture>();
  capture->id = e.driver().next_id++;
  capture->borrowed_graph = graph != nullptr;
  capture->graph = graph != nullptr ? graph : NewGraph(e);
  capture->mode = mode;
  capture->thread = ThisThread().id;
  capture->origin = stream;
  capture->streams.insert(stream);
  stream->capture = capture;
  stream->capture_tail = tail;
  e.driver().captures.push_back(capture);
  return CUDA_SUCCESS;
}

// Whether every captured node of the graph leads to what the origin stream holds at its end.
bool Joined(const Capture& capture) {
  for (CUstream stream : capture.streams) {
    if (stream == capture.origin) continue;
    for (CUgraphNode tail : stream->capture_tail) {
      std::set<CUgraphNode> seen;
      std::vector<CUgraphNode> todo(capture.origin->capture_tail);
      bool found = false;
      while (!todo.empty() && !found) {
        CUgraphNode node = todo.back();
        todo.pop_back();
        if (!seen.insert(node).second) continue;
        found = node == tail;
        todo.insert(todo.end(), node->needs.begin(), node->needs.end());
      }
      if (!found) return false;
    }
  }
  return true;
}

CUresult Info(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
              const CUgraphNode** dependencies, const CUgraphEdgeData** edges, size_t* count) {
  Entry e;
  if (e.failed()) return e.result();
  if (status == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  if (stream->legacy) {
    // Asking about the legacy stream is an implicit synchronisation with what captures.
    CUstream same;
    if (CUresult r = OpenStream(e, handle, &same)) return r;
  }
  if (edges != nullptr) *edges = nullptr;
  if (stream->capture == nullptr) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
  }
  *status = stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                     : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  if (stream->capture->invalid) return CUDA_SUCCESS;
  if (id != nullptr) *id = stream->capture->id;
  if (graph != nullptr) *graph = stream->capture->graph;
  if (dependencies != nullptr) *dependencies = stream->capture_tail.data();
  if (count != nullptr) *count = stream->capture_tail.size();
  return CUDA_SUCCESS;
}

CUresult UpdateTail(CUstream handle, CUgraphNode* nodes, size_t count, unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (count > 0 && nodes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  if (stream->capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  for (size_t i = 0; i < count; ++i) {
    if (!Is(nodes[i]) || nodes[i]->graph != stream->capture->graph) return CUDA_ERROR_INVALID_VALUE;
  }
  if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES) stream->capture_tail.clear();
  for (size_t i = 0; i < count; ++i) {
    if (std::find(stream->capture_tail.begin(), stream->capture_tail.end(), nodes[i]) ==
        stream->capture_tail.end()) {
      stream->capture_tail.push_back(nodes[i]);
    }
  }
  return CUDA_SUCCESS;
}

}  // namespace
}  // namespace rubato::softgpu

#undef cuStreamBeginCapture
RUBATO_SOFTGPU_API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  Entry e;
  if (e.failed()) return e.result();
  return Begin(e, handle, mode, nullptr, {});
}

RUBATO_SOFTGPU_API cuStreamBeginCapture(CUstream handle) {
  return cuStreamBeginCapture_v2(handle, CU_STREAM_CAPTURE_MODE_GLOBAL);
}

RUBATO_SOFTGPU_API cuStreamBeginCaptureToGraph(CUstream handle, CUgraph graph,
                                               const CUgraphNode* nodes, const CUgraphEdgeData*,
                                               size_t count, CUstreamCaptureMode mode) {
  Entry e;
  if (e.failed()) return e.result();
  if (!Is(graph) || (count > 0 && nodes == nullptr)) return CUDA_ERROR_INVALID_VALUE;
  return Begin(e, handle, mode, graph, std::vector<CUgraphNode>(nodes, nodes + count));
}

RUBATO_SOFTGPU_API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  if (mode == nullptr || *mode < CU_STREAM_CAPTURE_MODE_GLOBAL ||
      *mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::swap(*mode, ThisThread().capture_mode);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuStreamEndCapture(CUstream handle, CUgraph* out) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = FindStream(e, handle, &stream)) return r;
  const std::shared_ptr<Capture> capture = stream->capture;
  *out = nullptr;
  if (capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  if (capture->origin != stream) {
    Invalidate(capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  }
  if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != ThisThread().id) {
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  }
  CUresult result = CUDA_SUCCESS;
  if (capture->invalid) {
    result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  } else if (!Joined(*capture)) {
    result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  }
  for (CUstream other : capture->streams) {
    other->capture.reset();
    other->capture_tail.clear();
  }
  std::erase(e.driver().captures, capture);
  if (result == CUDA_SUCCESS) {
    *out = capture->graph;
  } else if (!capture->borrowed_graph) {
    DeleteGraph(e.driver(), capture->graph);
  }
  return result;
}

RUBATO_SOFTGPU_API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  return Info(handle, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}

#undef cuStreamGetCaptureInfo
RUBATO_SOFTGPU_API cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus* status,
                                          cuuint64_t* id) {
  return Info(handle, status, id, nullptr, nullptr, nullptr, nullptr);
}

RUBATO_SOFTGPU_API cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus* status,
                                             cuuint64_t* id, CUgraph* graph,
                                             const CUgraphNode** dependencies, size_t* count) {
  return Info(handle, status, id, graph, dependencies, nullptr, count);
}

RUBATO_SOFTGPU_API cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus* status,
                                             cuuint64_t* id, CUgraph* graph,
                                             const CUgraphNode** dependencies,
                                             const CUgraphEdgeData** edges, size_t* count) {
  return Info(handle, status, id, graph, dependencies, edges, count);
}

#undef cuStreamUpdateCaptureDependencies
RUBATO_SOFTGPU_API cuStreamUpdateCaptureDependencies_v2(CUstream handle, CUgraphNode* nodes,
                                                        const CUgraphEdgeData*, size_t count,
                                                        unsigned flags) {
  return UpdateTail(handle, nodes, count, flags);
}

RUBATO_SOFTGPU_API cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode* nodes,
                                                     size_t count, unsigned flags) {
  return UpdateTail(handle, nodes, count, flags);
}
