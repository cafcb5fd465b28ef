// What a program that loaded a stand-in and the device process say to one another.
//
// Two ways: a page of shared memory per client for everything that is queued (a ring of records, no
// system call while the device is awake) and a SOCK_SEQPACKET socket for what needs an answer. The
// device handles a client's ring before its requests, so both together keep one order. Private to
// softgpu: both ends are built together and refuse another kVersion. The device checks lengths and
// indices of what it reads, and copies before it checks.
#ifndef SOFTGPU_DEVICE_WIRE_H_
#define SOFTGPU_DEVICE_WIRE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace rubato::softgpu::wire {

inline constexpr uint32_t kVersion = 1;
inline constexpr uint64_t kRingBytes = 4u << 20;
inline constexpr uint32_t kMaxRecordBytes = 256u << 10;
inline constexpr uint32_t kStreamSlots = 16384;
inline constexpr uint32_t kEventSlots = 65536;
inline constexpr uint32_t kContextSlots = 1024;
inline constexpr uint32_t kCallSlots = 4096;
inline constexpr uint32_t kMaxDevices = 8;
inline constexpr uint32_t kMaxEffectArgs = 8;

struct StreamSlot {
  std::atomic<uint64_t> completed_seq;    // Of the last finished operation; never falls.
  std::atomic<uint64_t> completed_count;  // Finished operations.
};

struct EventSlot {
  std::atomic<uint64_t> done_seq;  // Of the record operation that finished last.
  std::atomic<int64_t> at_ns;      // CLOCK_MONOTONIC of that.
};

struct HostCall {
  uint64_t seq;
  uint32_t node;
  uint32_t reserved;
};

// One mapping per client, made by the device.
struct Shared {
  alignas(64) std::atomic<uint64_t> tail;           // Written by the client: bytes ever queued.
  alignas(64) std::atomic<uint64_t> head;           // Written by the device: bytes ever taken.
  alignas(64) std::atomic<uint32_t> device_sleeps;  // The client rings the bell if set.
  alignas(64) std::atomic<uint32_t> progress;       // Futex word, rises with every completion.
  std::atomic<uint32_t> waiters;
  alignas(64) std::atomic<uint32_t> call_tail;  // Written by the device: host calls that are due.
  std::atomic<uint32_t> call_head;              // Written by the client.
  alignas(64) std::atomic<uint32_t> context_fault[kContextSlots];  // Sticky; a Fault.
  HostCall calls[kCallSlots];
  StreamSlot streams[kStreamSlots];
  EventSlot events[kEventSlots];
  alignas(64) unsigned char ring[kRingBytes];
};

enum class Fault : uint32_t { kNone, kIllegalAddress, kServerLost };

enum class RecordType : uint16_t {
  kPad,  // Skips to the start of the ring.
  kKernel,
  kCopy,
  kFill,
  kWriteWord,
  kWaitWord,
  kEvent,
  kJoin,
  kHostCall,
  kHostDone,
  kFree,  // Stream-ordered.
  kGraphLaunch,
  kGraphBegin,
  kGraphNode,
  kGraphDrop,
  kStreamCreate,
  kStreamDestroy,
  kName,
  kMap,
  kUnmap,
};

struct Record {
  uint32_t bytes;  // With this header, a multiple of 8.
  RecordType type;
  uint16_t reserved;
  uint32_t stream;
  uint32_t extra;    // Graph id, or count; by type.
  uint64_t seq;      // Unique and rising within the client.
  int64_t stamp_ns;  // CLOCK_MONOTONIC of the call.
};
static_assert(sizeof(Record) == 32);

// What a kernel does to memory when it completes; see softgpu/programs/README.md.
enum class Effect : uint32_t { kNone, kHash, kCopy, kAxpy, kStore, kAdd, kWait };

struct KernelBody {
  uint32_t blocks;
  uint32_t threads_per_block;
  uint32_t registers_per_thread;
  uint32_t shared_bytes_per_block;
  int64_t block_ns;
  float watts_per_block;
  float bytes_per_ns_per_block;
  uint32_t cooperative;
  Effect effect;
  uint32_t name;
  uint32_t reserved;
  uint64_t args[kMaxEffectArgs];  // By effect: out, in, count, key.
};

enum class CopyRoute : uint32_t { kHostToDevice, kDeviceToHost, kInside };

// A box of rows and slices. With inline_bytes the source follows the body.
struct CopyBody {
  uint64_t dst, src;
  uint64_t width, height, depth;
  uint64_t dst_pitch, src_pitch;
  uint64_t dst_slice, src_slice;
  CopyRoute route;
  uint32_t inline_bytes;
};

struct FillBody {
  uint64_t dst;
  uint64_t width, height;  // Elements, rows.
  uint64_t pitch;          // Bytes.
  uint32_t value;
  uint32_t element_bytes;
};

struct WordBody {
  uint64_t address;
  uint64_t value;
  uint32_t bits;
  uint32_t compare;  // CUstreamWaitValue_flags: 0 GEQ, 1 EQ, 2 AND, 3 NOR.
};

struct EventBody {
  uint32_t slot;
  uint32_t reserved;
};

// `extra` operation ids follow. An id of another process (from an IPC event) has its client in the
// high bits.
struct HostDoneBody {
  uint64_t seq;
  uint32_t node;
  uint32_t reserved;
};

struct GraphNodeBody {
  RecordType type;  // kKernel, kCopy, kFill, kHostCall, kWriteWord, kWaitWord, kEvent, kJoin (an
                    // empty node).
  uint16_t has_priority;
  int32_t priority;
  uint32_t first_sm;
  uint32_t sm_count;
  uint32_t needs;  // Indices (uint32_t, padded to 8 bytes) follow, then the body.
  uint32_t body_bytes;
};

struct StreamBody {
  uint32_t context;
  uint32_t kind;  // StreamKind.
  int32_t priority;
  uint32_t first_sm;
  uint32_t sm_count;
  uint32_t reserved;
};

struct MapBody {
  uint64_t address;
  uint64_t bytes;
  uint64_t offset;
  uint32_t device;
  uint32_t reserved;
};

enum class RequestType : uint32_t {
  kHello,    // a: version, pid, MPS server (0 none), client priority, thread percentage. Answer:
             // HelloReply.
  kObserve,  // a: version. For NVML: a client without contexts; same answer.
  kCreateContext,   // device; a: server-wide no use. v: context slot.
  kDestroyContext,  // a: context slot.
  kAllocate,        // device; a: bytes, alignment, window base (0: do not map). v: offset, mapped
                    // address.
  kFree,            // device; a: offset, address to unmap (0: none).
  kShare,           // device; a: offset. Adds an owner (IPC). v: bytes.
  kMemoryInfo,      // device. v: free, total.
  kRegister,        // a: address, bytes, offset in the file. fd: a shared mapping, or none.
  kUnregister,      // a: address.
  kBarrier,         // Answered once the ring has been taken.
  kUsage,  // device; a: first process. v: busy_ns (model), now_ns (model), clock in ppm, processes,
           // then pairs of (pid, bytes) of processes from `first` on.
};

struct Request {
  RequestType type;
  uint32_t device;
  uint64_t a[6];
};

enum class Status : int32_t { kOk, kOtherVersion, kInvalid, kOutOfMemory, kLost };

struct Reply {
  Status status;
  uint32_t reserved;
  uint64_t v[30];
};

struct DeviceInfo {
  char name[64];
  unsigned char uuid[16];
  uint32_t sm_count;
  uint32_t threads_per_sm;
  uint32_t registers_per_sm;
  uint32_t shared_bytes_per_sm;
  uint32_t blocks_per_sm;
  uint32_t pci_bus;
  uint64_t memory_bytes;
};

// Sent with the fds: shared page, doorbell, then the memory of each device.
struct HelloReply {
  Status status;
  uint32_t devices;
  uint64_t client;  // Serial; the high bits of this client's operation ids.
  double dilation;
  int64_t base_ns;  // CLOCK_MONOTONIC of model time zero.
  DeviceInfo info[kMaxDevices];
};

inline constexpr uint32_t kClientShift = 40;

}  // namespace rubato::softgpu::wire

#endif  // SOFTGPU_DEVICE_WIRE_H_
