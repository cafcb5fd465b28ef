// What is in a HIP graph, as one number: the same for the same graph in every process.
//
// An executable graph is launched as one op, so its duration is learnt under one key. Handles
// differ between processes and runs; kinds of nodes, kernels' names and shapes, and sizes do not.

#include <sys/mman.h>

#include "shim/hip/actions.h"
#include "shim/hip/runtime.h"

namespace rubato::shim {

namespace {

// Beyond these, nodes count but are not looked at: instantiation must not become slow.
constexpr size_t kMaxNodes = 4096;
constexpr unsigned kMaxDepth = 4;

struct Calls {
  hipError_t (*get_nodes)(hipGraph_t, hipGraphNode_t*, size_t*);
  hipError_t (*get_type)(hipGraphNode_t, hipGraphNodeType*);
  hipError_t (*get_kernel)(hipGraphNode_t, hipKernelNodeParams*);
  hipError_t (*get_memset)(hipGraphNode_t, hipMemsetParams*);
  hipError_t (*get_child)(hipGraphNode_t, hipGraph_t*);
};

template <typename T>
void Take(T* field, const char* name) {
  *field = reinterpret_cast<T>(VendorSymbol(name));
}

uint64_t KernelHash(const Calls& calls, hipGraphNode_t node) {
  hipKernelNodeParams params{};
  if (calls.get_kernel == nullptr || calls.get_kernel(node, &params) != hipSuccess) return 0;
  // A node may name its kernel either way, and does not say which: its shape must do.
  return abi::KernelKey(0, params.gridDim.x, params.gridDim.y, params.gridDim.z, params.blockDim.x,
                        params.blockDim.y, params.blockDim.z, params.sharedMemBytes);
}

uint64_t MemsetHash(const Calls& calls, hipGraphNode_t node) {
  hipMemsetParams set{};
  if (calls.get_memset == nullptr || calls.get_memset(node, &set) != hipSuccess) return 0;
  return uint64_t{set.elementSize} * set.width * set.height;
}

// The numbers of the kinds of nodes that are looked into. They changed during ROCm 5, and asking a
// node for what it is not may end the program: where they are not known for certain, none is asked.
struct Kinds {
  int kernel;
  int memset;
  int graph;
};

Kinds KindsOf(int version) {
  if (version >= 600) return {0, 2, 4};
  if (version == RUBATO_HIP_HEADER) {
    return {hipGraphNodeTypeKernel, hipGraphNodeTypeMemset, hipGraphNodeTypeGraph};
  }
  return {-1, -1, -1};
}

GraphContent Read(const Calls& calls, const Kinds& kinds, hipGraph_t graph, unsigned depth) {
  GraphContent content{};
  size_t count = 0;
  if (calls.get_nodes(graph, nullptr, &count) != hipSuccess || count == 0) return content;
  content.nodes = static_cast<uint32_t>(count);
  content.hash = abi::Mix(count, 0);
  size_t read = count;
  const size_t bytes = count * sizeof(hipGraphNode_t);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return content;
  auto* nodes = static_cast<hipGraphNode_t*>(memory);
  if (calls.get_nodes(graph, nodes, &read) != hipSuccess) read = 0;
  for (size_t i = 0; i < read && i < count && i < kMaxNodes; ++i) {
    hipGraphNodeType type = hipGraphNodeTypeEmpty;
    if (calls.get_type(nodes[i], &type) != hipSuccess) continue;
    uint64_t node = 0;
    const int kind = static_cast<int>(type);
    if (kind == kinds.kernel) {
      node = KernelHash(calls, nodes[i]);
    } else if (kind == kinds.memset) {
      node = MemsetHash(calls, nodes[i]);
    } else if (kind == kinds.graph && depth < kMaxDepth) {
      hipGraph_t child = nullptr;
      if (calls.get_child != nullptr && calls.get_child(nodes[i], &child) == hipSuccess) {
        const GraphContent inner = Read(calls, kinds, child, depth + 1);
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
  Take(&calls.get_nodes, "hipGraphGetNodes");
  Take(&calls.get_type, "hipGraphNodeGetType");
  Take(&calls.get_kernel, "hipGraphKernelNodeGetParams");
  Take(&calls.get_memset, "hipGraphMemsetNodeGetParams");
  Take(&calls.get_child, "hipGraphChildGraphNodeGetGraph");
  if (calls.get_nodes == nullptr || calls.get_type == nullptr) return {};
  return Read(calls, KindsOf(RuntimeVersion()), graph, 0);
}

}  // namespace rubato::shim
