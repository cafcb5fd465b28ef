// What is in a CUDA graph, as one number: the same for the same graph in every process.
//
// An executable graph is launched as one op, so its duration is learnt under one key. Handles
// differ between processes and runs; kinds of nodes, kernels' names and shapes, and sizes of copies
// do not.

#include <sys/mman.h>

#include "shim/hooks/actions.h"

namespace rubato::shim {

namespace {

// Beyond these, nodes count but are not looked at: instantiation must not become slow.
constexpr size_t kMaxNodes = 4096;
constexpr unsigned kMaxDepth = 4;

struct Calls {
  decltype(&::cuGraphGetNodes) get_nodes;
  decltype(&::cuGraphNodeGetType) get_type;
  decltype(&::cuGraphKernelNodeGetParams_v2) get_kernel;
  decltype(&::cuGraphMemcpyNodeGetParams) get_copy;
  decltype(&::cuGraphMemsetNodeGetParams) get_memset;
  decltype(&::cuGraphChildGraphNodeGetGraph) get_child;
};

template <typename T>
void Take(T* field, const char* name) {
  *field = reinterpret_cast<T>(VendorSymbol(name));
}

uint64_t KernelHash(const Calls& calls, CUgraphNode node) {
  CUDA_KERNEL_NODE_PARAMS params{};
  if (calls.get_kernel == nullptr || calls.get_kernel(node, &params) != CUDA_SUCCESS) return 0;
  const Driver& driver = VendorDriver();
  const Handle function = params.func != nullptr ? AsHandle(params.func) : AsHandle(params.kern);
  const char* name = nullptr;
  uint64_t name_hash = 0;
  if (function != 0 && driver.function_name != nullptr &&
      driver.function_name(function, &name) == 0 && name != nullptr) {
    name_hash = abi::HashName(name);
  }
  return abi::KernelKey(name_hash, params.gridDimX, params.gridDimY, params.gridDimZ,
                        params.blockDimX, params.blockDimY, params.blockDimZ,
                        params.sharedMemBytes);
}

uint64_t CopyHash(const Calls& calls, CUgraphNode node) {
  CUDA_MEMCPY3D copy{};
  if (calls.get_copy == nullptr || calls.get_copy(node, &copy) != CUDA_SUCCESS) return 0;
  const uint64_t bytes = uint64_t{copy.WidthInBytes} * copy.Height * copy.Depth;
  return abi::Mix(abi::Mix(bytes, copy.srcMemoryType), copy.dstMemoryType);
}

uint64_t MemsetHash(const Calls& calls, CUgraphNode node) {
  CUDA_MEMSET_NODE_PARAMS set{};
  if (calls.get_memset == nullptr || calls.get_memset(node, &set) != CUDA_SUCCESS) return 0;
  return uint64_t{set.elementSize} * set.width * set.height;
}

GraphContent Read(const Calls& calls, CUgraph graph, unsigned depth) {
  GraphContent content{};
  size_t count = 0;
  if (calls.get_nodes(graph, nullptr, &count) != CUDA_SUCCESS || count == 0) return content;
  content.nodes = static_cast<uint32_t>(count);
  content.hash = abi::Mix(count, 0);
  size_t read = count < kMaxNodes ? count : kMaxNodes;
  const size_t bytes = read * sizeof(CUgraphNode);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return content;
  auto* nodes = static_cast<CUgraphNode*>(memory);
  if (calls.get_nodes(graph, nodes, &read) != CUDA_SUCCESS) read = 0;
  for (size_t i = 0; i < read && i < kMaxNodes; ++i) {
    CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
    if (calls.get_type(nodes[i], &type) != CUDA_SUCCESS) continue;
    uint64_t node = 0;
    if (type == CU_GRAPH_NODE_TYPE_KERNEL) {
      node = KernelHash(calls, nodes[i]);
    } else if (type == CU_GRAPH_NODE_TYPE_MEMCPY) {
      node = CopyHash(calls, nodes[i]);
    } else if (type == CU_GRAPH_NODE_TYPE_MEMSET) {
      node = MemsetHash(calls, nodes[i]);
    } else if (type == CU_GRAPH_NODE_TYPE_GRAPH && depth < kMaxDepth) {
      CUgraph child = nullptr;
      if (calls.get_child != nullptr && calls.get_child(nodes[i], &child) == CUDA_SUCCESS) {
        const GraphContent inner = Read(calls, child, depth + 1);
        node = inner.hash;
        content.nodes += inner.nodes;
      }
    }
    content.hash = abi::Mix(abi::Mix(content.hash, static_cast<uint64_t>(type)), node);
  }
  munmap(memory, bytes);
  return content;
}

}  // namespace

GraphContent ReadGraph(Graph graph) {
  Calls calls{};
  Take(&calls.get_nodes, "cuGraphGetNodes");
  Take(&calls.get_type, "cuGraphNodeGetType");
  Take(&calls.get_kernel, "cuGraphKernelNodeGetParams_v2");
  Take(&calls.get_copy, "cuGraphMemcpyNodeGetParams");
  Take(&calls.get_memset, "cuGraphMemsetNodeGetParams");
  Take(&calls.get_child, "cuGraphChildGraphNodeGetGraph");
  if (calls.get_nodes == nullptr || calls.get_type == nullptr) return {};
  return Read(calls, graph, 0);
}

}  // namespace rubato::shim
