// The objects behind the CUDA handles and the state that all entry points of the stand-in share.
//
// A handle is a pointer to one of the structs below. They come from pools that never give memory
// back and hand the last freed object out first, as drivers do: a stale handle is noticed by its
// `magic` until it is recycled, and then names something else. One mutex guards everything; no
// entry point holds it while it waits for the device.
#ifndef SOFTGPU_CUDA_DRIVER_H_
#define SOFTGPU_CUDA_DRIVER_H_

#include <cuda.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "softgpu/client/connection.h"
#include "softgpu/client/program.h"
#include "softgpu/device/settings.h"

#define RUBATO_SOFTGPU_API extern "C" __attribute__((visibility("default"))) CUresult

namespace rubato::softgpu {

enum class Magic : uint32_t {
  kFree = 0,
  kContext = 0x43747831,
  kStream = 0x53747231,
  kEvent = 0x45767431,
  kModule = 0x4d6f6431,
  kFunction = 0x466e6331,
  kGraph = 0x47726831,
  kNode = 0x4e6f6431,
  kExec = 0x45786331,
  kPool = 0x506f6f31,
  kArray = 0x41727231,
  kMipmap = 0x4d697031,
  kGreen = 0x47726e31,
};

inline constexpr uint32_t kInlineCopyBytes = 64u << 10;  // Pageable sources up to this are staged.
inline constexpr uint64_t kQueueDepth =
    1024;  // Unfinished operations of one stream before a call waits.
inline constexpr uint32_t kSmGranule = 8;  // Green contexts come in multiples of so many SMs.

struct KernelAttributes {
  int priority = 0;
  bool has_priority = false;
  bool cooperative = false;
  std::vector<CUlaunchAttribute> all;  // As given, for reading back.
};

struct HostFunction {
  CUhostFn fn = nullptr;
  CUstreamCallback callback = nullptr;
  CUstream stream = nullptr;
  void* data = nullptr;
};

// What one stream operation or graph node does. The bodies are ready to be sent; the rest is what
// the API gives back.
struct Work {
  wire::RecordType type = wire::RecordType::kJoin;
  union {
    wire::KernelBody kernel;
    wire::CopyBody copy;
    wire::FillBody fill;
    wire::WordBody word;
    wire::EventBody event;
  } body{};
  // Kernel nodes.
  CUfunction function = nullptr;
  bool function_is_kernel = false;  // Given as CUkernel.
  CUcontext context = nullptr;
  unsigned grid[3] = {1, 1, 1};
  unsigned block[3] = {1, 1, 1};
  unsigned shared_bytes = 0;
  std::vector<unsigned char> param_bytes;
  std::vector<void*> param_pointers;
  KernelAttributes attributes;
  // Others.
  HostFunction host;
  CUDA_MEMCPY3D memcpy3d{};
  CUDA_MEMSET_NODE_PARAMS memset{};
  CUevent event_handle = nullptr;
  std::vector<CUstreamBatchMemOpParams> memops;
  CUgraph child = nullptr;
  CUgraphNodeType node_type = CU_GRAPH_NODE_TYPE_EMPTY;
  CUdeviceptr memory = 0;
  CUDA_MEM_ALLOC_NODE_PARAMS alloc{};

  size_t BodyBytes() const;
};

struct Capture;

}  // namespace rubato::softgpu

struct CUstream_st {
  rubato::softgpu::Magic magic;
  CUcontext context = nullptr;  // The root context's, or the green one's.
  uint32_t slot = 0;
  unsigned flags = 0;
  int priority = 0;
  uint64_t id = 0;
  bool is_default = false;  // Legacy or per-thread.
  bool legacy = false;
  uint64_t last_seq = 0;
  uint64_t submitted = 0;  // Compares with completed_count.
  std::shared_ptr<rubato::softgpu::Capture> capture;
  std::vector<CUgraphNode> capture_tail;
  CUstreamAttrValue access_policy{};
  int sync_policy = 0;
};

struct CUevent_st {
  rubato::softgpu::Magic magic;
  CUcontext context = nullptr;
  uint32_t slot = 0;
  unsigned flags = 0;
  uint64_t seq = 0;      // 0: never recorded.
  uint64_t foreign = 0;  // An imported event's client and seq.
  std::shared_ptr<rubato::softgpu::Capture>
      capture;  // Recorded in a capture: what it stands for there.
  std::vector<CUgraphNode> capture_nodes;
};

struct CUctx_st {
  rubato::softgpu::Magic magic;
  CUdevice device = 0;
  uint32_t slot = 0;
  unsigned flags = 0;
  uint64_t id = 0;
  bool primary = false;
  CUcontext root = nullptr;  // Itself unless it belongs to a green context.
  CUgreenCtx green = nullptr;
  std::set<CUcontext> parts;  // Those of its green contexts.
  CUstream legacy = nullptr;
  std::set<CUstream> streams;
  std::set<CUevent> events;
  std::set<CUmodule> modules;
  std::vector<std::shared_ptr<rubato::softgpu::Capture>> captures;
  std::map<CUlimit, size_t> limits;
  CUfunc_cache cache = CU_FUNC_CACHE_PREFER_NONE;
};

struct CUfunc_st {
  rubato::softgpu::Magic magic;
  const rubato::softgpu::KernelText* text = nullptr;
  CUmodule module = nullptr;
  uint32_t name_id = 0;
  bool loaded = false;
  int max_dynamic_shared = 48 * 1024;
  std::map<int, int> attributes;
};

struct CUmod_st {
  rubato::softgpu::Magic magic;
  CUcontext context = nullptr;  // Null for a library that no context has used yet.
  bool library = false;
  rubato::softgpu::ProgramText text;
  std::vector<CUfunction> functions;
  std::map<std::string, std::pair<CUdeviceptr, size_t>> globals;
};

struct CUgraphNode_st {
  rubato::softgpu::Magic magic;
  CUgraph graph = nullptr;
  uint64_t serial = 0;
  uint64_t origin = 0;  // Serial of the node this is a clone of, or its own.
  rubato::softgpu::Work work;
  std::vector<CUgraphNode> needs;
  std::vector<CUgraphEdgeData> edges;  // One for each need.
  bool enabled = true;
};

struct CUgraph_st {
  rubato::softgpu::Magic magic;
  uint64_t id = 0;
  std::vector<CUgraphNode> nodes;  // In order of creation.
  CUgraphNode parent = nullptr;    // Of a child graph.
};

struct CUgraphExec_st {
  rubato::softgpu::Magic magic;
  uint32_t id = 0;
  CUcontext context = nullptr;
  unsigned long long flags = 0;
  std::shared_ptr<std::vector<rubato::softgpu::HostFunction>>
      hosts;  // By index of the flattened node.
  bool has_host = false;
  bool dirty = false;                        // To be sent before the next launch.
  std::vector<rubato::softgpu::Work> works;  // Flattened.
  std::vector<std::vector<uint32_t>> needs;
  std::unordered_map<uint64_t, std::vector<uint32_t>>
      by_origin;  // Node origin -> flattened indices.
  std::vector<uint64_t> origins;
  std::vector<bool> enabled;
  uint64_t last_seq = 0;
};

struct CUmemPoolHandle_st {
  rubato::softgpu::Magic magic;
  CUdevice device = 0;
  bool is_default = false;
  uint64_t release_threshold = 0;
  std::map<int, int> flags;
  uint64_t used = 0, used_high = 0;
};

struct CUarray_st {
  rubato::softgpu::Magic magic;
  CUDA_ARRAY3D_DESCRIPTOR descriptor{};
  CUdeviceptr memory = 0;
  size_t element_bytes = 0, pitch = 0, slice = 0;
  bool borrowed = false;  // A level of a mipmapped array.
};

struct CUmipmappedArray_st {
  rubato::softgpu::Magic magic;
  std::vector<CUarray> levels;
};

struct CUgreenCtx_st {
  rubato::softgpu::Magic magic;
  CUcontext context = nullptr;  // Its own CUctx_st, whose root is the primary context.
  uint32_t first_sm = 0, sm_count = 0;
};

namespace rubato::softgpu {

struct Capture {
  uint64_t id = 0;
  CUgraph graph = nullptr;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  uint64_t thread = 0;
  CUstream origin = nullptr;
  bool invalid = false;
  bool borrowed_graph = false;  // cuStreamBeginCaptureToGraph.
  std::set<CUstream> streams;
};

enum class MemoryKind : uint8_t { kDevice, kManaged, kPinned, kRegistered, kMapped, kImported };

struct Memory {
  CUdeviceptr address = 0;
  size_t bytes = 0;
  MemoryKind kind = MemoryKind::kDevice;
  CUdevice device = 0;
  uint64_t offset = 0;
  CUcontext context = nullptr;
  unsigned flags = 0;
  CUmemoryPool pool = nullptr;
  uint64_t id = 0;
};

// A physical allocation of cuMemCreate.
struct Physical {
  CUdevice device;
  uint64_t offset;
  size_t bytes;
  uint32_t owners;  // The handle itself and each mapping.
  bool handle_open;
};

template <typename T>
class Pool {
 public:
  T* New(Magic magic) {
    T* object;
    if (free_.empty()) {
      object = new T{};
    } else {
      object = free_.back();
      free_.pop_back();
      *object = T{};
    }
    object->magic = magic;
    return object;
  }
  void Delete(T* object) {
    *object = T{};
    object->magic = Magic::kFree;
    free_.push_back(object);
  }

 private:
  std::vector<T*> free_;
};

struct PrimaryContext {
  CUcontext context = nullptr;
  unsigned references = 0;
  unsigned flags = 0;
};

struct Driver {
  std::mutex mutex;
  bool initialized = false;
  std::atomic<bool> forked{false};
  Settings settings;
  std::unique_ptr<Connection> device;
  CUdeviceptr window[wire::kMaxDevices] =
      {};  // Where device memory would be if the host could see it.
  PrimaryContext primary[wire::kMaxDevices];
  uint64_t next_id = 1;

  Pool<CUctx_st> contexts;
  Pool<CUstream_st> streams;
  Pool<CUevent_st> events;
  Pool<CUmod_st> modules;
  Pool<CUfunc_st> functions;
  Pool<CUgraph_st> graphs;
  Pool<CUgraphNode_st> nodes;
  Pool<CUgraphExec_st> execs;
  Pool<CUmemPoolHandle_st> pools;
  Pool<CUarray_st> arrays;
  Pool<CUmipmappedArray_st> mipmaps;
  Pool<CUgreenCtx_st> greens;

  std::deque<uint32_t> free_stream_slots;
  uint32_t next_stream_slot = 0;
  std::vector<uint32_t> free_event_slots;
  uint32_t next_event_slot = 0;
  std::unordered_map<std::string, uint32_t> names;
  uint32_t next_exec = 1;

  std::map<CUdeviceptr, Memory> memory;
  std::map<CUdeviceptr, size_t> reserved;  // cuMemAddressReserve.
  std::map<uint64_t, Physical> physical;
  std::map<CUdeviceptr, uint64_t> mapped;  // Address -> physical.
  CUmemoryPool default_pool[wire::kMaxDevices] = {};
  CUmemoryPool current_pool[wire::kMaxDevices] = {};

  std::vector<std::shared_ptr<Capture>> captures;  // Those under way.

  // Host functions under way: by sequence number; a graph's by that of its launch.
  std::unordered_map<uint64_t, HostFunction> calls;
  struct GraphCalls {
    std::shared_ptr<std::vector<HostFunction>> functions;
    uint32_t stream_slot;
  };
  std::unordered_map<uint64_t, GraphCalls> graph_calls;
  bool caller_started = false;
};

Driver& TheDriver();

// What a thread has current.
struct ThreadState {
  std::vector<CUcontext> stack;
  bool per_thread_default = false;  // Inside a _ptsz or _ptds entry.
  bool in_callback = false;
  CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  uint64_t id = 0;
  struct Default {
    CUcontext context;
    uint64_t context_id;
    CUstream stream;
  };
  std::vector<Default> streams;
};
ThreadState& ThisThread();

// Every entry point starts with one: it takes the lock and refuses what cannot go on.
class Entry {
 public:
  enum class Need { kInit, kContext };
  explicit Entry(Need need = Need::kContext);
  bool failed() const { return result_ != CUDA_SUCCESS; }
  CUresult result() const { return result_; }
  CUcontext context() const { return context_; }
  Driver& driver() const { return driver_; }
  Connection& device() const { return *driver_.device; }
  std::unique_lock<std::mutex>& lock() { return lock_; }

 private:
  Driver& driver_;
  std::unique_lock<std::mutex> lock_;
  CUcontext context_ = nullptr;
  CUresult result_ = CUDA_SUCCESS;
};

// Sets the meaning of stream 0 for the length of a per-thread entry point.
class PerThreadDefault {
 public:
  PerThreadDefault() : before_(ThisThread().per_thread_default) {
    ThisThread().per_thread_default = true;
  }
  ~PerThreadDefault() { ThisThread().per_thread_default = before_; }
  PerThreadDefault(const PerThreadDefault&) = delete;
  PerThreadDefault& operator=(const PerThreadDefault&) = delete;

 private:
  bool before_;
};

bool Is(CUcontext handle);
bool Is(CUstream handle);
bool Is(CUevent handle);
bool Is(CUmodule handle);
bool Is(CUfunction handle);
bool Is(CUgraph handle);
bool Is(CUgraphNode handle);
bool Is(CUgraphExec handle);

CUresult ContextStatus(CUcontext context);
CUresult NewContext(Entry& e, CUdevice device, unsigned flags, bool primary, CUcontext* out);
void DeleteContext(Entry& e, CUcontext context);
// The context of a green context, and the green context with it.
void DeletePart(Entry& e, CUcontext part);
CUresult NewStream(Entry& e, CUcontext context, unsigned flags, int priority, bool is_default,
                   bool legacy, CUstream* out);
void DeleteStream(Entry& e, CUstream stream);

// Streams as calls name them, 0 and the special handles included.
CUresult FindStream(Entry& e, CUstream handle, CUstream* out);
// The stream that an operation is about to enter: checks what capture forbids.
CUresult OpenStream(Entry& e, CUstream handle, CUstream* out);

// Queues `work`, or adds it to the graph that the stream is capturing.
CUresult Enqueue(Entry& e, CUstream stream, Work&& work, uint64_t* seq = nullptr);
// Queues a record without looking at captures, waiting first while the stream is full.
uint64_t PushTo(Entry& e, CUstream stream, wire::RecordType type, uint32_t extra, const void* body,
                size_t bytes, const void* tail = nullptr, size_t tail_bytes = 0);
// Both let go of the lock while they wait.
CUresult WaitForSeq(Entry& e, CUstream stream, uint64_t seq);
CUresult WaitForContext(Entry& e, CUcontext context);

// For calls that may not be made while something captures; such a call also spoils the capture.
CUresult RefuseInCapture(Entry& e);
void Invalidate(const std::shared_ptr<Capture>& capture);
CUgraphNode AddNode(Entry& e, CUgraph graph, const std::vector<CUgraphNode>& needs, Work&& work);
CUgraph NewGraph(Entry& e);
void DeleteGraph(Driver& d, CUgraph graph);

uint32_t NameId(Entry& e, const std::string& name);
CUresult FillKernel(Entry& e, CUfunction function, Work* work, void* const* values);
// Checks and fills everything of a kernel node from API parameters.
CUresult KernelWork(Entry& e, CUfunction function, const unsigned grid[3], const unsigned block[3],
                    unsigned shared_bytes, void** params, void** extra,
                    const KernelAttributes& attributes, bool keep, Work* work);

const Memory* FindMemory(const Driver& d, CUdeviceptr address);
CUresult AllocateDevice(Entry& e, CUdevice device, size_t bytes, size_t alignment, MemoryKind kind,
                        Memory* out);
CUresult ReleaseMemory(Entry& e, CUdeviceptr address);
void ForgetContextMemory(Entry& e, CUcontext context);

CUresult CopyBox(Entry& e, const CUDA_MEMCPY3D& box, CUstream stream_handle, bool async);
CUresult CopyFlat(Entry& e, CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream_handle,
                  bool async);
CUresult FillRows(Entry& e, CUdeviceptr dst, size_t pitch, unsigned value, unsigned element_bytes,
                  size_t width, size_t height, CUstream stream_handle);
CUresult CopyBodyOf(Entry& e, const CUDA_MEMCPY3D& box, wire::CopyBody* body, bool* pageable_source,
                    bool* pageable_target);

void StartCaller(Entry& e);

}  // namespace rubato::softgpu

#endif  // SOFTGPU_CUDA_DRIVER_H_
