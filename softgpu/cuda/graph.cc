// Graphs: building, reading, cloning, instantiating, updating and launching them.
#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "softgpu/cuda/driver.h"

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.
using wire::RecordType;

namespace rubato::softgpu {

CUgraph NewGraph(Entry& e) {
  CUgraph graph = e.driver().graphs.New(Magic::kGraph);
  graph->id = e.driver().next_id++;
  return graph;
}

void DeleteGraph(Driver& d, CUgraph graph) {
  for (CUgraphNode node : graph->nodes) {
    if (node->work.child != nullptr) DeleteGraph(d, node->work.child);
    d.nodes.Delete(node);
  }
  d.graphs.Delete(graph);
}

CUgraphNode AddNode(Entry& e, CUgraph graph, const std::vector<CUgraphNode>& needs, Work&& work) {
  CUgraphNode node = e.driver().nodes.New(Magic::kNode);
  node->graph = graph;
  node->serial = node->origin = e.driver().next_id++;
  node->work = std::move(work);
  node->needs = needs;
  node->edges.assign(needs.size(), CUgraphEdgeData{});
  graph->nodes.push_back(node);
  return node;
}

namespace {

// Pointers into a node's own parameter bytes do not survive a copy of the node.
Work CopyWork(Entry& e, const Work& from);

CUgraph CloneGraph(Entry& e, CUgraph from, bool keep_origin) {
  CUgraph to = NewGraph(e);
  std::map<CUgraphNode, CUgraphNode> twin;
  for (CUgraphNode node : from->nodes) {
    CUgraphNode copy = AddNode(e, to, {}, CopyWork(e, node->work));
    if (keep_origin) copy->origin = node->serial;
    twin[node] = copy;
  }
  for (CUgraphNode node : from->nodes) {
    for (CUgraphNode need : node->needs) twin[node]->needs.push_back(twin[need]);
    twin[node]->edges = node->edges;
  }
  return to;
}

Work CopyWork(Entry& e, const Work& from) {
  Work to = from;
  for (size_t i = 0; i < from.param_pointers.size(); ++i) {
    const auto offset =
        static_cast<unsigned char*>(from.param_pointers[i]) - from.param_bytes.data();
    to.param_pointers[i] = to.param_bytes.data() + offset;
  }
  if (from.child != nullptr) to.child = CloneGraph(e, from.child, true);
  return to;
}

bool Reaches(CUgraphNode from, CUgraphNode to) {
  std::set<CUgraphNode> seen;
  std::vector<CUgraphNode> todo{from};
  while (!todo.empty()) {
    CUgraphNode node = todo.back();
    todo.pop_back();
    if (node == to) return true;
    if (!seen.insert(node).second) continue;
    todo.insert(todo.end(), node->needs.begin(), node->needs.end());
  }
  return false;
}

CUresult CheckNeeds(CUgraph graph, const CUgraphNode* needs, size_t count) {
  if (!Is(graph) || (count > 0 && needs == nullptr)) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) {
    if (!Is(needs[i]) || needs[i]->graph != graph) return CUDA_ERROR_INVALID_VALUE;
    for (size_t j = 0; j < i; ++j) {
      if (needs[i] == needs[j]) return CUDA_ERROR_INVALID_VALUE;
    }
  }
  return CUDA_SUCCESS;
}

CUresult Add(Entry& e, CUgraphNode* out, CUgraph graph, const CUgraphNode* needs, size_t count,
             Work&& work) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = CheckNeeds(graph, needs, count)) return r;
  *out = AddNode(e, graph, std::vector<CUgraphNode>(needs, needs + count), std::move(work));
  return CUDA_SUCCESS;
}

// With `func` set the context field is ignored and the current context counts.
CUresult FromParams(Entry& e, const CUDA_KERNEL_NODE_PARAMS* params, Work* work) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUfunction function =
      params->func != nullptr ? params->func : reinterpret_cast<CUfunction>(params->kern);
  CUcontext context = e.context();
  if (params->func == nullptr && params->ctx != nullptr) {
    if (!Is(params->ctx)) return CUDA_ERROR_INVALID_CONTEXT;
    context = params->ctx;
  }
  const unsigned grid[3] = {params->gridDimX, params->gridDimY, params->gridDimZ};
  const unsigned block[3] = {params->blockDimX, params->blockDimY, params->blockDimZ};
  const KernelAttributes attributes = work->attributes;
  if (CUresult r = KernelWork(e, function, grid, block, params->sharedMemBytes,
                              params->kernelParams, params->extra, attributes, true, work)) {
    return r;
  }
  work->function_is_kernel = params->func == nullptr;
  work->context = context;
  return CUDA_SUCCESS;
}

CUresult FromParams(Entry& e, const CUDA_MEMCPY3D* params, Work* work) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  bool pageable_source, pageable_target;
  work->type = RecordType::kCopy;
  work->node_type = CU_GRAPH_NODE_TYPE_MEMCPY;
  work->memcpy3d = *params;
  return CopyBodyOf(e, *params, &work->body.copy, &pageable_source, &pageable_target);
}

CUresult FromParams(Entry& e, const CUDA_MEMSET_NODE_PARAMS* params, Work* work) {
  if (params == nullptr || params->width == 0) return CUDA_ERROR_INVALID_VALUE;
  if (params->elementSize != 1 && params->elementSize != 2 && params->elementSize != 4)
    return CUDA_ERROR_INVALID_VALUE;
  if (FindMemory(e.driver(), params->dst) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  work->type = RecordType::kFill;
  work->node_type = CU_GRAPH_NODE_TYPE_MEMSET;
  work->memset = *params;
  work->body.fill = {params->dst,
                     params->width,
                     std::max<size_t>(params->height, 1),
                     params->pitch != 0 ? params->pitch : params->width * params->elementSize,
                     params->value,
                     params->elementSize};
  return CUDA_SUCCESS;
}

CUresult FromParams(Entry&, const CUDA_HOST_NODE_PARAMS* params, Work* work) {
  if (params == nullptr || params->fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  work->type = RecordType::kHostCall;
  work->node_type = CU_GRAPH_NODE_TYPE_HOST;
  work->host = {};
  work->host.fn = params->fn;
  work->host.data = params->userData;
  return CUDA_SUCCESS;
}

CUresult FromEvent(CUevent event, bool record, Work* work) {
  if (!Is(event)) return CUDA_ERROR_INVALID_HANDLE;
  work->type = record ? RecordType::kEvent : RecordType::kJoin;
  work->node_type = record ? CU_GRAPH_NODE_TYPE_EVENT_RECORD : CU_GRAPH_NODE_TYPE_WAIT_EVENT;
  work->event_handle = event;
  if (record) work->body.event = {event->slot, 0};
  return CUDA_SUCCESS;
}

// One stored or awaited word a node; longer lists have no use here yet.
CUresult FromParams(Entry& e, const CUDA_BATCH_MEM_OP_NODE_PARAMS* params, Work* work) {
  if (params == nullptr || params->count != 1 || params->paramArray == nullptr)
    return CUDA_ERROR_NOT_SUPPORTED;
  const CUstreamBatchMemOpParams& op = params->paramArray[0];
  const bool wide = op.operation == CU_STREAM_MEM_OP_WRITE_VALUE_64 ||
                    op.operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
  const bool write = op.operation == CU_STREAM_MEM_OP_WRITE_VALUE_32 ||
                     op.operation == CU_STREAM_MEM_OP_WRITE_VALUE_64;
  if (FindMemory(e.driver(), op.writeValue.address) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  work->type = write ? RecordType::kWriteWord : RecordType::kWaitWord;
  work->node_type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP;
  work->memops = {op};
  work->body.word = {op.writeValue.address, wide ? op.writeValue.value64 : op.writeValue.value,
                     wide ? 64u : 32u, op.writeValue.flags & 3};
  return CUDA_SUCCESS;
}

// Nodes in an order in which everything comes after what it needs; false if there is a cycle.
bool Topological(CUgraph graph, std::vector<CUgraphNode>* out) {
  std::map<CUgraphNode, size_t> open;
  std::map<CUgraphNode, std::vector<CUgraphNode>> dependents;
  std::vector<CUgraphNode> ready;
  for (CUgraphNode node : graph->nodes) {
    open[node] = node->needs.size();
    for (CUgraphNode need : node->needs) dependents[need].push_back(node);
    if (node->needs.empty()) ready.push_back(node);
  }
  for (size_t i = 0; i < ready.size(); ++i) {
    for (CUgraphNode next : dependents[ready[i]]) {
      if (--open[next] == 0) ready.push_back(next);
    }
  }
  *out = ready;
  return ready.size() == graph->nodes.size();
}

// Appends the graph's nodes to the executable, child graphs in place; gives the indices that
// whoever waits for the whole graph must wait for.
CUresult Flatten(Entry& e, CUgraph graph, const std::vector<uint32_t>& roots, CUgraphExec exec,
                 std::vector<uint32_t>* ends) {
  std::vector<CUgraphNode> order;
  if (!Topological(graph, &order)) return CUDA_ERROR_INVALID_VALUE;
  std::map<CUgraphNode, std::vector<uint32_t>> ends_of;
  std::set<CUgraphNode> inner;
  for (CUgraphNode node : order) {
    std::vector<uint32_t> needs = node->needs.empty() ? roots : std::vector<uint32_t>{};
    for (CUgraphNode need : node->needs) {
      inner.insert(need);
      needs.insert(needs.end(), ends_of[need].begin(), ends_of[need].end());
    }
    std::sort(needs.begin(), needs.end());
    needs.erase(std::unique(needs.begin(), needs.end()), needs.end());
    const uint32_t index = static_cast<uint32_t>(exec->works.size());
    if (node->work.child != nullptr) {
      // An empty node ahead of the child keeps the edge even if the child is empty.
      exec->works.emplace_back();
      exec->needs.push_back(needs);
      exec->origins.push_back(node->origin);
      exec->enabled.push_back(true);
      exec->by_origin[node->origin].push_back(index);
      std::vector<uint32_t> child_ends;
      if (CUresult r = Flatten(e, node->work.child, {index}, exec, &child_ends)) return r;
      ends_of[node] = child_ends.empty() ? std::vector<uint32_t>{index} : child_ends;
      continue;
    }
    exec->works.push_back(CopyWork(e, node->work));
    exec->needs.push_back(std::move(needs));
    exec->origins.push_back(node->origin);
    exec->enabled.push_back(true);
    exec->by_origin[node->origin].push_back(index);
    // A clone answers for the nodes it was made from and for its own.
    if (node->serial != node->origin) exec->by_origin[node->serial].push_back(index);
    ends_of[node] = {index};
  }
  for (CUgraphNode node : order) {
    if (inner.count(node) == 0)
      ends->insert(ends->end(), ends_of[node].begin(), ends_of[node].end());
  }
  return CUDA_SUCCESS;
}

// Tells the device what the executable does now. Launches under way keep what they were launched
// with.
void Send(Entry& e, CUgraphExec exec) {
  e.device().Push(RecordType::kGraphBegin, 0, exec->id);
  exec->hosts = std::make_shared<std::vector<HostFunction>>(exec->works.size());
  exec->has_host = false;
  std::vector<unsigned char> tail;
  for (size_t i = 0; i < exec->works.size(); ++i) {
    const Work& work = exec->works[i];
    wire::GraphNodeBody body{};
    body.type = exec->enabled[i] ? work.type : RecordType::kJoin;
    body.has_priority = work.attributes.has_priority ? 1 : 0;
    body.priority = work.attributes.priority;
    CUgreenCtx green = work.context != nullptr ? work.context->green : nullptr;
    body.first_sm = green != nullptr ? green->first_sm : 0;
    body.sm_count = green != nullptr ? green->sm_count : UINT32_MAX;
    body.needs = static_cast<uint32_t>(exec->needs[i].size());
    body.body_bytes = static_cast<uint32_t>(work.BodyBytes());
    const size_t needs_bytes = (exec->needs[i].size() * 4 + 7) / 8 * 8;
    tail.assign(needs_bytes + body.body_bytes, 0);
    for (size_t n = 0; n < exec->needs[i].size(); ++n) {
      std::memcpy(tail.data() + n * 4, &exec->needs[i][n], 4);
    }
    if (body.body_bytes > 0) std::memcpy(tail.data() + needs_bytes, &work.body, body.body_bytes);
    e.device().Push(RecordType::kGraphNode, 0, exec->id, &body, sizeof body, tail.data(),
                    tail.size());
    if (work.type == RecordType::kHostCall) {
      (*exec->hosts)[i] = work.host;
      exec->has_host = true;
    }
  }
  exec->dirty = false;
}

CUresult Instantiate(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || !Is(graph)) return CUDA_ERROR_INVALID_VALUE;
  CUgraphExec exec = e.driver().execs.New(Magic::kExec);
  exec->id = e.driver().next_exec++;
  exec->context = e.context()->root;
  exec->flags = flags;
  std::vector<uint32_t> ends;
  if (CUresult r = Flatten(e, graph, {}, exec, &ends)) {
    e.driver().execs.Delete(exec);
    return r;
  }
  Send(e, exec);
  *out = exec;
  return CUDA_SUCCESS;
}

// The one place in the executable that stands for `node`.
Work* FindWork(CUgraphExec exec, CUgraphNode node, uint32_t* index = nullptr) {
  if (!Is(exec) || !Is(node)) return nullptr;
  auto it = exec->by_origin.find(node->serial);
  if (it == exec->by_origin.end()) it = exec->by_origin.find(node->origin);
  if (it == exec->by_origin.end()) return nullptr;
  if (index != nullptr) *index = it->second[0];
  return &exec->works[it->second[0]];
}

template <typename P>
CUresult SetExec(CUgraphExec exec, CUgraphNode node, CUgraphNodeType type, const P* params) {
  Entry e;
  if (e.failed()) return e.result();
  Work* work = FindWork(exec, node);
  if (work == nullptr || work->node_type != type) return CUDA_ERROR_INVALID_VALUE;
  Work changed = CopyWork(e, *work);
  if (CUresult r = FromParams(e, params, &changed)) return r;
  // An instantiated kernel stays in the context it was instantiated for.
  if (type == CU_GRAPH_NODE_TYPE_KERNEL && changed.context != work->context) {
    const bool named = changed.function_is_kernel;
    if (named) return CUDA_ERROR_INVALID_VALUE;
    changed.context = work->context;
  }
  *work = std::move(changed);
  exec->dirty = true;
  return CUDA_SUCCESS;
}

template <typename P>
CUresult SetNode(CUgraphNode node, CUgraphNodeType type, const P* params) {
  Entry e;
  if (e.failed()) return e.result();
  if (!Is(node) || node->work.node_type != type) return CUDA_ERROR_INVALID_VALUE;
  return FromParams(e, params, &node->work);
}

template <typename P>
CUresult AddWith(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs, size_t count,
                 const P* params) {
  Entry e;
  if (e.failed()) return e.result();
  Work work;
  if (CUresult r = FromParams(e, params, &work)) return r;
  return Add(e, out, graph, needs, count, std::move(work));
}

CUresult GiveNodes(const std::vector<CUgraphNode>& from, CUgraphNode* out, size_t* count) {
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (out == nullptr) {
    *count = from.size();
    return CUDA_SUCCESS;
  }
  for (size_t i = 0; i < *count; ++i) out[i] = i < from.size() ? from[i] : nullptr;
  *count = std::min(*count, from.size());
  return CUDA_SUCCESS;
}

std::vector<CUgraphNode> DependentsOf(CUgraphNode node, std::vector<CUgraphEdgeData>* edges) {
  std::vector<CUgraphNode> all;
  for (CUgraphNode other : node->graph->nodes) {
    for (size_t i = 0; i < other->needs.size(); ++i) {
      if (other->needs[i] != node) continue;
      all.push_back(other);
      edges->push_back(other->edges[i]);
    }
  }
  return all;
}

void GiveEdges(const std::vector<CUgraphEdgeData>& from, CUgraphEdgeData* out, size_t count) {
  if (out == nullptr) return;
  for (size_t i = 0; i < count && i < from.size(); ++i) out[i] = from[i];
}

void CopyEdges(CUgraphNode node, const CUgraphEdgeData* edges) {
  if (edges == nullptr) return;
  for (size_t i = 0; i < node->edges.size(); ++i) node->edges[i] = edges[i];
}

}  // namespace
}  // namespace rubato::softgpu

RUBATO_SOFTGPU_API cuGraphCreate(CUgraph* out, unsigned flags) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  *out = NewGraph(e);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphDestroy(CUgraph graph) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(graph)) return CUDA_ERROR_INVALID_VALUE;
  for (auto& capture : e.driver().captures) {
    if (capture->graph == graph) return CUDA_ERROR_INVALID_VALUE;
  }
  DeleteGraph(e.driver(), graph);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphClone(CUgraph* out, CUgraph graph) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr || !Is(graph)) return CUDA_ERROR_INVALID_VALUE;
  *out = CloneGraph(e, graph, true);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphNodeFindInClone(CUgraphNode* out, CUgraphNode original, CUgraph clone) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr || !Is(original) || !Is(clone)) return CUDA_ERROR_INVALID_VALUE;
  for (CUgraphNode node : clone->nodes) {
    if (node->origin == original->serial && node != original) {
      *out = node;
      return CUDA_SUCCESS;
    }
  }
  return CUDA_ERROR_INVALID_VALUE;
}

RUBATO_SOFTGPU_API cuGraphAddKernelNode_v2(CUgraphNode* out, CUgraph graph,
                                           const CUgraphNode* needs, size_t count,
                                           const CUDA_KERNEL_NODE_PARAMS* params) {
  return AddWith(out, graph, needs, count, params);
}

#undef cuGraphAddKernelNode
RUBATO_SOFTGPU_API cuGraphAddKernelNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs,
                                        size_t count, const CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUDA_KERNEL_NODE_PARAMS now{};
  std::memcpy(&now, params, sizeof *params);
  return AddWith(out, graph, needs, count, &now);
}

RUBATO_SOFTGPU_API cuGraphAddMemcpyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs,
                                        size_t count, const CUDA_MEMCPY3D* params, CUcontext) {
  return AddWith(out, graph, needs, count, params);
}

RUBATO_SOFTGPU_API cuGraphAddMemsetNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs,
                                        size_t count, const CUDA_MEMSET_NODE_PARAMS* params,
                                        CUcontext) {
  return AddWith(out, graph, needs, count, params);
}

RUBATO_SOFTGPU_API cuGraphAddHostNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs,
                                      size_t count, const CUDA_HOST_NODE_PARAMS* params) {
  return AddWith(out, graph, needs, count, params);
}

RUBATO_SOFTGPU_API cuGraphAddBatchMemOpNode(CUgraphNode* out, CUgraph graph,
                                            const CUgraphNode* needs, size_t count,
                                            const CUDA_BATCH_MEM_OP_NODE_PARAMS* params) {
  return AddWith(out, graph, needs, count, params);
}

RUBATO_SOFTGPU_API cuGraphAddEmptyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs,
                                       size_t count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  return Add(e, out, graph, needs, count, Work{});
}

RUBATO_SOFTGPU_API cuGraphAddEventRecordNode(CUgraphNode* out, CUgraph graph,
                                             const CUgraphNode* needs, size_t count,
                                             CUevent event) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  Work work;
  if (CUresult r = FromEvent(event, true, &work)) return r;
  return Add(e, out, graph, needs, count, std::move(work));
}

RUBATO_SOFTGPU_API cuGraphAddEventWaitNode(CUgraphNode* out, CUgraph graph,
                                           const CUgraphNode* needs, size_t count, CUevent event) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  Work work;
  if (CUresult r = FromEvent(event, false, &work)) return r;
  return Add(e, out, graph, needs, count, std::move(work));
}

RUBATO_SOFTGPU_API cuGraphEventRecordNodeGetEvent(CUgraphNode node, CUevent* event) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || event == nullptr || node->work.event_handle == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  *event = node->work.event_handle;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphEventWaitNodeGetEvent(CUgraphNode node, CUevent* event) {
  return cuGraphEventRecordNodeGetEvent(node, event);
}

RUBATO_SOFTGPU_API cuGraphAddChildGraphNode(CUgraphNode* out, CUgraph graph,
                                            const CUgraphNode* needs, size_t count, CUgraph child) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(child) || child == graph) return CUDA_ERROR_INVALID_VALUE;
  Work work;
  work.node_type = CU_GRAPH_NODE_TYPE_GRAPH;
  work.child = CloneGraph(e, child, false);
  const CUresult result = Add(e, out, graph, needs, count, std::move(work));
  if (result == CUDA_SUCCESS) (*out)->work.child->parent = *out;
  return result;
}

RUBATO_SOFTGPU_API cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph* out) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || out == nullptr || node->work.child == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *out = node->work.child;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphAddMemAllocNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs,
                                          size_t count, CUDA_MEM_ALLOC_NODE_PARAMS* params) {
  Entry e;
  if (e.failed()) return e.result();
  if (params == nullptr || params->bytesize == 0) return CUDA_ERROR_INVALID_VALUE;
  Memory memory;
  if (CUresult r =
          AllocateDevice(e, e.context()->device, params->bytesize, 0, MemoryKind::kDevice, &memory))
    return r;
  params->dptr = memory.address;
  Work work;
  work.node_type = CU_GRAPH_NODE_TYPE_MEM_ALLOC;
  work.memory = memory.address;
  work.alloc = *params;
  return Add(e, out, graph, needs, count, std::move(work));
}

RUBATO_SOFTGPU_API cuGraphMemAllocNodeGetParams(CUgraphNode node,
                                                CUDA_MEM_ALLOC_NODE_PARAMS* params) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || params == nullptr || node->work.node_type != CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *params = node->work.alloc;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphAddMemFreeNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs,
                                         size_t count, CUdeviceptr address) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  Work work;
  work.node_type = CU_GRAPH_NODE_TYPE_MEM_FREE;
  work.memory = address;
  return Add(e, out, graph, needs, count, std::move(work));
}

RUBATO_SOFTGPU_API cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr* address) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || address == nullptr || node->work.node_type != CU_GRAPH_NODE_TYPE_MEM_FREE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *address = node->work.memory;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphAddNode_v2(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs,
                                     const CUgraphEdgeData* edges, size_t count,
                                     CUgraphNodeParams* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult result;
  switch (params->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL: {
      CUDA_KERNEL_NODE_PARAMS kernel{};
      std::memcpy(&kernel, &params->kernel, sizeof kernel);
      result = AddWith(out, graph, needs, count, &kernel);
      break;
    }
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      result = AddWith(out, graph, needs, count, &params->memcpy.copyParams);
      break;
    case CU_GRAPH_NODE_TYPE_MEMSET: {
      CUDA_MEMSET_NODE_PARAMS memset{};
      std::memcpy(&memset, &params->memset, sizeof memset);
      result = AddWith(out, graph, needs, count, &memset);
      break;
    }
    case CU_GRAPH_NODE_TYPE_HOST: {
      CUDA_HOST_NODE_PARAMS host{};
      std::memcpy(&host, &params->host, sizeof host);
      result = AddWith(out, graph, needs, count, &host);
      break;
    }
    case CU_GRAPH_NODE_TYPE_EMPTY:
      result = cuGraphAddEmptyNode(out, graph, needs, count);
      break;
    case CU_GRAPH_NODE_TYPE_GRAPH:
      result = cuGraphAddChildGraphNode(out, graph, needs, count, params->graph.graph);
      break;
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      result = cuGraphAddEventRecordNode(out, graph, needs, count, params->eventRecord.event);
      break;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
      result = cuGraphAddEventWaitNode(out, graph, needs, count, params->eventWait.event);
      break;
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
  if (result == CUDA_SUCCESS) CopyEdges(*out, edges);
  return result;
}

RUBATO_SOFTGPU_API cuGraphKernelNodeGetParams_v2(CUgraphNode node,
                                                 CUDA_KERNEL_NODE_PARAMS* params) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || params == nullptr || node->work.node_type != CU_GRAPH_NODE_TYPE_KERNEL) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Work& work = node->work;
  *params = {};
  params->func = work.function;
  params->gridDimX = work.grid[0];
  params->gridDimY = work.grid[1];
  params->gridDimZ = work.grid[2];
  params->blockDimX = work.block[0];
  params->blockDimY = work.block[1];
  params->blockDimZ = work.block[2];
  params->sharedMemBytes = work.shared_bytes;
  params->kernelParams = work.param_pointers.empty() ? nullptr : work.param_pointers.data();
  params->kern = reinterpret_cast<CUkernel>(work.function);
  params->ctx = work.context;
  return CUDA_SUCCESS;
}

#undef cuGraphKernelNodeGetParams
RUBATO_SOFTGPU_API cuGraphKernelNodeGetParams(CUgraphNode node,
                                              CUDA_KERNEL_NODE_PARAMS_v1* params) {
  CUDA_KERNEL_NODE_PARAMS now;
  const CUresult result = cuGraphKernelNodeGetParams_v2(node, &now);
  if (result == CUDA_SUCCESS) std::memcpy(params, &now, sizeof *params);
  return result;
}

RUBATO_SOFTGPU_API cuGraphKernelNodeSetParams_v2(CUgraphNode node,
                                                 const CUDA_KERNEL_NODE_PARAMS* params) {
  return SetNode(node, CU_GRAPH_NODE_TYPE_KERNEL, params);
}

#undef cuGraphKernelNodeSetParams
RUBATO_SOFTGPU_API cuGraphKernelNodeSetParams(CUgraphNode node,
                                              const CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUDA_KERNEL_NODE_PARAMS now{};
  std::memcpy(&now, params, sizeof *params);
  return SetNode(node, CU_GRAPH_NODE_TYPE_KERNEL, &now);
}

RUBATO_SOFTGPU_API cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D* params) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || params == nullptr || node->work.node_type != CU_GRAPH_NODE_TYPE_MEMCPY) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *params = node->work.memcpy3d;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphMemcpyNodeSetParams(CUgraphNode node, const CUDA_MEMCPY3D* params) {
  return SetNode(node, CU_GRAPH_NODE_TYPE_MEMCPY, params);
}

RUBATO_SOFTGPU_API cuGraphMemsetNodeGetParams(CUgraphNode node, CUDA_MEMSET_NODE_PARAMS* params) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || params == nullptr || node->work.node_type != CU_GRAPH_NODE_TYPE_MEMSET) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *params = node->work.memset;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphMemsetNodeSetParams(CUgraphNode node,
                                              const CUDA_MEMSET_NODE_PARAMS* params) {
  return SetNode(node, CU_GRAPH_NODE_TYPE_MEMSET, params);
}

RUBATO_SOFTGPU_API cuGraphHostNodeGetParams(CUgraphNode node, CUDA_HOST_NODE_PARAMS* params) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || params == nullptr || node->work.node_type != CU_GRAPH_NODE_TYPE_HOST) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  params->fn = node->work.host.fn;
  params->userData = node->work.host.data;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphHostNodeSetParams(CUgraphNode node, const CUDA_HOST_NODE_PARAMS* params) {
  return SetNode(node, CU_GRAPH_NODE_TYPE_HOST, params);
}

RUBATO_SOFTGPU_API cuGraphBatchMemOpNodeGetParams(CUgraphNode node,
                                                  CUDA_BATCH_MEM_OP_NODE_PARAMS* params) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || params == nullptr || node->work.node_type != CU_GRAPH_NODE_TYPE_BATCH_MEM_OP) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *params = {};
  params->count = static_cast<unsigned>(node->work.memops.size());
  params->paramArray = node->work.memops.data();
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || type == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *type = node->work.node_type;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, size_t* count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(graph)) return CUDA_ERROR_INVALID_VALUE;
  return GiveNodes(graph->nodes, nodes, count);
}

RUBATO_SOFTGPU_API cuGraphGetRootNodes(CUgraph graph, CUgraphNode* nodes, size_t* count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(graph)) return CUDA_ERROR_INVALID_VALUE;
  std::vector<CUgraphNode> roots;
  for (CUgraphNode node : graph->nodes) {
    if (node->needs.empty()) roots.push_back(node);
  }
  return GiveNodes(roots, nodes, count);
}

RUBATO_SOFTGPU_API cuGraphGetEdges_v2(CUgraph graph, CUgraphNode* from, CUgraphNode* to,
                                      CUgraphEdgeData* edges, size_t* count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(graph) || count == nullptr || (from == nullptr) != (to == nullptr))
    return CUDA_ERROR_INVALID_VALUE;
  size_t n = 0;
  for (CUgraphNode node : graph->nodes) {
    for (size_t i = 0; i < node->needs.size(); ++i, ++n) {
      if (from == nullptr || n >= *count) continue;
      from[n] = node->needs[i];
      to[n] = node;
      if (edges != nullptr) edges[n] = node->edges[i];
    }
  }
  *count = from == nullptr ? n : std::min(*count, n);
  return CUDA_SUCCESS;
}

#undef cuGraphGetEdges
RUBATO_SOFTGPU_API cuGraphGetEdges(CUgraph graph, CUgraphNode* from, CUgraphNode* to,
                                   size_t* count) {
  return cuGraphGetEdges_v2(graph, from, to, nullptr, count);
}

RUBATO_SOFTGPU_API cuGraphNodeGetDependencies_v2(CUgraphNode node, CUgraphNode* nodes,
                                                 CUgraphEdgeData* edges, size_t* count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node)) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = GiveNodes(node->needs, nodes, count);
  if (result == CUDA_SUCCESS && nodes != nullptr) GiveEdges(node->edges, edges, *count);
  return result;
}

#undef cuGraphNodeGetDependencies
RUBATO_SOFTGPU_API cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode* nodes, size_t* count) {
  return cuGraphNodeGetDependencies_v2(node, nodes, nullptr, count);
}

RUBATO_SOFTGPU_API cuGraphNodeGetDependentNodes_v2(CUgraphNode node, CUgraphNode* nodes,
                                                   CUgraphEdgeData* edges, size_t* count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node)) return CUDA_ERROR_INVALID_VALUE;
  std::vector<CUgraphEdgeData> all;
  const CUresult result = GiveNodes(DependentsOf(node, &all), nodes, count);
  if (result == CUDA_SUCCESS && nodes != nullptr) GiveEdges(all, edges, *count);
  return result;
}

#undef cuGraphNodeGetDependentNodes
RUBATO_SOFTGPU_API cuGraphNodeGetDependentNodes(CUgraphNode node, CUgraphNode* nodes,
                                                size_t* count) {
  return cuGraphNodeGetDependentNodes_v2(node, nodes, nullptr, count);
}

RUBATO_SOFTGPU_API cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode* from,
                                             const CUgraphNode* to, const CUgraphEdgeData* edges,
                                             size_t count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(graph) || (count > 0 && (from == nullptr || to == nullptr)))
    return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) {
    if (!Is(from[i]) || !Is(to[i]) || from[i]->graph != graph || to[i]->graph != graph)
      return CUDA_ERROR_INVALID_VALUE;
    if (std::find(to[i]->needs.begin(), to[i]->needs.end(), from[i]) != to[i]->needs.end()) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (Reaches(from[i], to[i])) return CUDA_ERROR_INVALID_VALUE;  // It would close a cycle.
    to[i]->needs.push_back(from[i]);
    to[i]->edges.push_back(edges != nullptr ? edges[i] : CUgraphEdgeData{});
  }
  return CUDA_SUCCESS;
}

#undef cuGraphAddDependencies
RUBATO_SOFTGPU_API cuGraphAddDependencies(CUgraph graph, const CUgraphNode* from,
                                          const CUgraphNode* to, size_t count) {
  return cuGraphAddDependencies_v2(graph, from, to, nullptr, count);
}

RUBATO_SOFTGPU_API cuGraphRemoveDependencies_v2(CUgraph graph, const CUgraphNode* from,
                                                const CUgraphNode* to, const CUgraphEdgeData*,
                                                size_t count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(graph) || (count > 0 && (from == nullptr || to == nullptr)))
    return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) {
    if (!Is(to[i]) || to[i]->graph != graph) return CUDA_ERROR_INVALID_VALUE;
    auto it = std::find(to[i]->needs.begin(), to[i]->needs.end(), from[i]);
    if (it == to[i]->needs.end()) return CUDA_ERROR_INVALID_VALUE;
    to[i]->edges.erase(to[i]->edges.begin() + (it - to[i]->needs.begin()));
    to[i]->needs.erase(it);
  }
  return CUDA_SUCCESS;
}

#undef cuGraphRemoveDependencies
RUBATO_SOFTGPU_API cuGraphRemoveDependencies(CUgraph graph, const CUgraphNode* from,
                                             const CUgraphNode* to, size_t count) {
  return cuGraphRemoveDependencies_v2(graph, from, to, nullptr, count);
}

RUBATO_SOFTGPU_API cuGraphDestroyNode(CUgraphNode node) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node)) return CUDA_ERROR_INVALID_VALUE;
  for (CUgraphNode other : node->graph->nodes) {
    for (size_t i = 0; i < other->needs.size();) {
      if (other->needs[i] == node) {
        other->needs.erase(other->needs.begin() + static_cast<ptrdiff_t>(i));
        other->edges.erase(other->edges.begin() + static_cast<ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
  }
  std::erase(node->graph->nodes, node);
  if (node->work.child != nullptr) DeleteGraph(e.driver(), node->work.child);
  e.driver().nodes.Delete(node);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphKernelNodeGetAttribute(CUgraphNode node, CUkernelNodeAttrID id,
                                                 CUkernelNodeAttrValue* value) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || value == nullptr || node->work.node_type != CU_GRAPH_NODE_TYPE_KERNEL) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::memset(value, 0, sizeof *value);
  for (const CUlaunchAttribute& attribute : node->work.attributes.all) {
    if (attribute.id == id) *value = attribute.value;
  }
  if (id == CU_LAUNCH_ATTRIBUTE_PRIORITY) value->priority = node->work.attributes.priority;
  if (id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
    value->cooperative = node->work.attributes.cooperative ? 1 : 0;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphKernelNodeSetAttribute(CUgraphNode node, CUkernelNodeAttrID id,
                                                 const CUkernelNodeAttrValue* value) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(node) || value == nullptr || node->work.node_type != CU_GRAPH_NODE_TYPE_KERNEL) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  KernelAttributes& attributes = node->work.attributes;
  if (id == CU_LAUNCH_ATTRIBUTE_PRIORITY) {
    attributes.priority = std::clamp(value->priority, -5, 0);
    attributes.has_priority = true;
  } else if (id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) {
    attributes.cooperative = value->cooperative != 0;
    node->work.body.kernel.cooperative = attributes.cooperative ? 1 : 0;
  }
  std::erase_if(attributes.all, [&](const CUlaunchAttribute& a) { return a.id == id; });
  CUlaunchAttribute stored{};
  stored.id = id;
  stored.value = *value;
  attributes.all.push_back(stored);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphKernelNodeCopyAttributes(CUgraphNode dst, CUgraphNode src) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(dst) || !Is(src)) return CUDA_ERROR_INVALID_VALUE;
  dst->work.attributes = src->work.attributes;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph,
                                               unsigned long long flags) {
  return Instantiate(out, graph, flags);
}

#undef cuGraphInstantiate
RUBATO_SOFTGPU_API cuGraphInstantiate(CUgraphExec* out, CUgraph graph, CUgraphNode*, char*,
                                      size_t) {
  return Instantiate(out, graph, 0);
}

RUBATO_SOFTGPU_API cuGraphInstantiate_v2(CUgraphExec* out, CUgraph graph, CUgraphNode*, char*,
                                         size_t) {
  return Instantiate(out, graph, 0);
}

RUBATO_SOFTGPU_API cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph graph,
                                                CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = Instantiate(out, graph, params->flags);
  params->hErrNode_out = nullptr;
  params->result_out =
      result == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS : CUDA_GRAPH_INSTANTIATE_ERROR;
  return result;
}

RUBATO_SOFTGPU_API cuGraphExecGetFlags(CUgraphExec exec, cuuint64_t* flags) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(exec) || flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *flags = exec->flags;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphExecDestroy(CUgraphExec exec) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(exec)) return CUDA_ERROR_INVALID_VALUE;
  e.device().Push(RecordType::kGraphDrop, 0, exec->id);
  e.driver().execs.Delete(exec);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphUpload(CUgraphExec exec, CUstream handle) {
  Entry e;
  if (e.failed()) return e.result();
  if (!Is(exec)) return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  if (exec->dirty) Send(e, exec);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphLaunch(CUgraphExec exec, CUstream handle) {
  Entry e;
  if (e.failed()) return e.result();
  if (!Is(exec)) return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  if (stream->capture != nullptr) {
    Invalidate(stream->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  if (exec->context != stream->context->root) return CUDA_ERROR_INVALID_HANDLE;
  if (exec->has_host) StartCaller(e);
  if (exec->dirty) Send(e, exec);
  const auto hosts = exec->has_host ? exec->hosts : nullptr;
  const uint32_t id = exec->id;
  const std::atomic<uint64_t>& completed =
      e.device().shared()->streams[stream->slot].completed_count;
  while (stream->submitted - completed.load(std::memory_order_acquire) >= kQueueDepth) {
    const uint64_t enough = stream->submitted - kQueueDepth / 2;
    e.lock().unlock();
    const bool alive =
        e.device().WaitUntil([&] { return completed.load(std::memory_order_acquire) >= enough; });
    e.lock().lock();
    if (!alive) return CUDA_ERROR_DEVICE_UNAVAILABLE;
    if (!Is(stream) || !Is(exec)) return CUDA_ERROR_INVALID_HANDLE;
  }
  const uint64_t seq = e.device().next_seq();
  if (hosts != nullptr) {
    // Launches that have ended need their functions no more.
    std::erase_if(e.driver().graph_calls, [&](const auto& entry) {
      return e.device().Done(entry.second.stream_slot, entry.first);
    });
    e.driver().graph_calls[seq] = {hosts, stream->slot};
  }
  // Events that nodes record belong to this launch.
  for (const Work& work : exec->works) {
    if (work.type == RecordType::kEvent && Is(work.event_handle)) work.event_handle->seq = seq;
  }
  exec->last_seq = PushTo(e, stream, RecordType::kGraphLaunch, id, nullptr, 0);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                     const CUDA_KERNEL_NODE_PARAMS* params) {
  return SetExec(exec, node, CU_GRAPH_NODE_TYPE_KERNEL, params);
}

#undef cuGraphExecKernelNodeSetParams
RUBATO_SOFTGPU_API cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                  const CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUDA_KERNEL_NODE_PARAMS now{};
  std::memcpy(&now, params, sizeof *params);
  return SetExec(exec, node, CU_GRAPH_NODE_TYPE_KERNEL, &now);
}

RUBATO_SOFTGPU_API cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                  const CUDA_MEMCPY3D* params, CUcontext) {
  return SetExec(exec, node, CU_GRAPH_NODE_TYPE_MEMCPY, params);
}

RUBATO_SOFTGPU_API cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                  const CUDA_MEMSET_NODE_PARAMS* params,
                                                  CUcontext) {
  return SetExec(exec, node, CU_GRAPH_NODE_TYPE_MEMSET, params);
}

RUBATO_SOFTGPU_API cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                const CUDA_HOST_NODE_PARAMS* params) {
  return SetExec(exec, node, CU_GRAPH_NODE_TYPE_HOST, params);
}

RUBATO_SOFTGPU_API cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled) {
  Entry e;
  if (e.failed()) return e.result();
  uint32_t index = 0;
  const Work* work = FindWork(exec, node, &index);
  if (work == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUgraphNodeType type = work->node_type;
  if (type != CU_GRAPH_NODE_TYPE_KERNEL && type != CU_GRAPH_NODE_TYPE_MEMCPY &&
      type != CU_GRAPH_NODE_TYPE_MEMSET) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  exec->enabled[index] = enabled != 0;
  exec->dirty = true;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphNodeGetEnabled(CUgraphExec exec, CUgraphNode node, unsigned* enabled) {
  Entry e;
  if (e.failed()) return e.result();
  uint32_t index = 0;
  if (enabled == nullptr || FindWork(exec, node, &index) == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  *enabled = exec->enabled[index] ? 1 : 0;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph,
                                        CUgraphExecUpdateResultInfo* info) {
  Entry e;
  if (e.failed()) return e.result();
  if (!Is(exec) || !Is(graph) || info == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *info = {};
  CUgraphExec_st fresh{};
  std::vector<uint32_t> ends;
  if (CUresult r = Flatten(e, graph, {}, &fresh, &ends)) {
    info->result = CU_GRAPH_EXEC_UPDATE_ERROR;
    return r;
  }
  info->result = CU_GRAPH_EXEC_UPDATE_SUCCESS;
  if (fresh.needs != exec->needs) {
    info->result = CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
  } else {
    for (size_t i = 0; i < fresh.works.size(); ++i) {
      if (fresh.works[i].node_type != exec->works[i].node_type) {
        info->result = CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
      } else if (fresh.works[i].context != exec->works[i].context) {
        info->result = CU_GRAPH_EXEC_UPDATE_ERROR_UNSUPPORTED_FUNCTION_CHANGE;
      } else {
        continue;
      }
      for (CUgraphNode node : graph->nodes) {
        if (node->origin == fresh.origins[i]) info->errorNode = node;
      }
      break;
    }
  }
  if (info->result != CU_GRAPH_EXEC_UPDATE_SUCCESS) return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
  exec->works = std::move(fresh.works);
  // Nodes of both graphs name the executable's nodes from now on.
  for (auto& [origin, indices] : fresh.by_origin) exec->by_origin[origin] = indices;
  exec->dirty = true;
  return CUDA_SUCCESS;
}

#undef cuGraphExecUpdate
RUBATO_SOFTGPU_API cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode* node,
                                     CUgraphExecUpdateResult* result) {
  if (result == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUgraphExecUpdateResultInfo info;
  const CUresult status = cuGraphExecUpdate_v2(exec, graph, &info);
  *result = info.result;
  if (node != nullptr) *node = info.errorNode;
  return status;
}

RUBATO_SOFTGPU_API cuGraphDebugDotPrint(CUgraph graph, const char*, unsigned) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  return Is(graph) ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

RUBATO_SOFTGPU_API cuDeviceGraphMemTrim(CUdevice) {
  Entry e(Entry::Need::kInit);
  return e.result();
}

#undef cuGraphAddNode
RUBATO_SOFTGPU_API cuGraphAddNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* needs,
                                  size_t count, CUgraphNodeParams* params) {
  return cuGraphAddNode_v2(out, graph, needs, nullptr, count, params);
}
