// The operations a stream of the model carries.
//
// An Op says what the hardware has to do and for how long, never what the bytes mean: values belong
// to whoever drives the model and acts on its listener. Ops are values; the model copies what it is
// given.
#ifndef SOFTGPU_MODEL_OP_H_
#define SOFTGPU_MODEL_OP_H_

#include <cstdint>
#include <memory>
#include <vector>

namespace rubato::softgpu {

// Chosen by the caller, unique for the life of a Gpu. An id the model does not know counts as
// finished, so an event recorded long ago needs no bookkeeping.
using OpId = uint64_t;
using ContextId = uint32_t;
using StreamId = uint32_t;
inline constexpr ContextId kNoContext = 0;

// A half-open range of SMs a stream or graph node may use: a green context, or all of the device.
struct SmRange {
  uint32_t first = 0;
  uint32_t count = UINT32_MAX;  // Cut to the device's size.
};

enum class OpKind : uint8_t {
  kEmpty,       // Joins and event records: costs nothing.
  kKernel,      // Blocks on SMs.
  kDeviceCopy,  // Copies and fills inside device memory: blocks on SMs, limited by memory
                // bandwidth.
  kHostToDevice,
  kDeviceToHost,
  kWriteWord,  // A stream memory operation that stores.
  kWaitWord,   // One that waits; the driver of the model says when it is satisfied (Gpu::Release).
  kHostCall,   // A function on the host; the driver of the model says when it has returned
               // (Gpu::Release).
  kGraph,      // All nodes of `graph`.
};

struct KernelShape {
  uint32_t blocks = 1;
  uint32_t threads_per_block = 32;
  uint32_t registers_per_thread = 16;
  uint32_t shared_bytes_per_block = 0;
  int64_t block_ns = 0;
  bool until_released = false;  // A block that spins until Gpu::Release, for any time.
  bool together = false;        // Cooperative: starts only when all blocks fit at once.
  double watts_per_block = 0;
  double bytes_per_ns_per_block =
      0;  // Demand on device memory; over the limit the block slows down.
};

struct GraphShape;

struct Op {
  OpKind kind = OpKind::kEmpty;
  KernelShape kernel;                       // kKernel.
  uint64_t bytes = 0;                       // The copy kinds.
  std::vector<OpId> after;                  // Waited for besides the order of the stream.
  std::shared_ptr<const GraphShape> graph;  // kGraph.
};

struct GraphNode {
  Op op;                        // Its `after` is ignored; never kGraph itself.
  std::vector<uint32_t> needs;  // Indices of earlier nodes.
  SmRange sms;
  int priority = 0;  // Used if has_priority, else the launching stream's.
  bool has_priority = false;
};

// Nodes in topological order.
struct GraphShape {
  std::vector<GraphNode> nodes;
};

}  // namespace rubato::softgpu

#endif  // SOFTGPU_MODEL_OP_H_
