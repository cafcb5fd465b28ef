// One GPU in model time: contexts that take turns, streams, blocks on SMs, copy engines.
//
// Event-driven and deterministic: the same calls give the same history. Nothing here reads a clock,
// starts a thread or does I/O; time is an argument that never goes back. The device process feeds
// it dilated real time, the simulator virtual time. Not thread-safe: one owner. Arguments are
// trusted; the owner checks what tenants sent.
//
// What it reproduces, because scheduling rests on it: contexts that are not under one server never
// run together but take slices with a switch between; a block is never preempted but by its
// context's slice; kernels of one context are served by priority, then in order, and one that does
// not fit holds back those behind it on the same SMs.
#ifndef SOFTGPU_MODEL_GPU_H_
#define SOFTGPU_MODEL_GPU_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <queue>
#include <unordered_map>
#include <vector>

#include "softgpu/model/device_spec.h"
#include "softgpu/model/op.h"

namespace rubato::softgpu {

inline constexpr uint32_t kWholeOp = UINT32_MAX;

// An operation, or one node of a graph launch, as the listener sees it.
struct OpRef {
  OpId op = 0;
  uint32_t node = kWholeOp;
  ContextId context = kNoContext;
  StreamId stream = 0;
};

// Told of everything in time order, from within Advance, Submit, Release and DestroyContext. May
// not call back into the Gpu; what it wants to do there it does after the outer call has returned.
class GpuListener {
 public:
  virtual ~GpuListener() = default;
  // All that it waited for is done; for a wait or host call this is when Release may be called.
  virtual void OnStart(const OpRef& /*op*/, int64_t /*at_ns*/) {}
  // Its effects happen now, before anything that waited for it starts. Cancelled: its context was
  // destroyed.
  virtual void OnFinish(const OpRef& /*op*/, int64_t /*at_ns*/, bool /*cancelled*/) {}
  // `blocks` blocks were on SMs without a break in this span, on SMs [first_sm, last_sm].
  virtual void OnBlocks(const OpRef& /*op*/, int64_t /*from_ns*/, int64_t /*to_ns*/,
                        uint32_t /*blocks*/, uint32_t /*first_sm*/, uint32_t /*last_sm*/) {}
  // The SMs went from one group of contexts to another; neither ran in this span.
  virtual void OnSwitch(uint32_t /*from_group*/, uint32_t /*to_group*/, int64_t /*from_ns*/,
                        int64_t /*to_ns*/) {}
};

enum class StreamKind : uint8_t {
  kNonBlocking,
  kBlocking,  // Waits for the context's legacy stream and is waited for by it.
  kLegacy,
};

struct ContextDesc {
  // Contexts with the same nonzero server run side by side; 0: a time-slice group of its own.
  uint64_t server = 0;
  int client_priority = 0;  // Under a server; lower goes first, as CUDA_MPS_CLIENT_PRIORITY.
  uint32_t sm_limit = UINT32_MAX;
};

struct StreamDesc {
  StreamKind kind = StreamKind::kNonBlocking;
  int priority = 0;  // Lower goes first, as in CUDA: 0 is the least, -5 the greatest.
  SmRange sms;
};

class Gpu {
 public:
  // `listener` may be null and must outlive the Gpu.
  Gpu(const DeviceSpec& spec, GpuListener* listener);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  ContextId CreateContext(const ContextDesc& desc);
  // Cancels what the context has queued or running.
  void DestroyContext(ContextId context, int64_t now_ns);
  StreamId CreateStream(ContextId context, const StreamDesc& desc);
  // What is queued still runs.
  void DestroyStream(StreamId stream);

  // Queues `op` behind what `stream` holds. `now_ns` may not lie before an earlier call's.
  void Submit(StreamId stream, OpId id, Op op, int64_t now_ns);

  // Ends a wait, a host call or an `until_released` kernel, from now on. Unknown ids are ignored.
  void Release(OpId id, uint32_t node, int64_t now_ns);

  // Lets time pass up to and including `now_ns`.
  void Advance(int64_t now_ns);

  // The next instant at which something happens by itself; INT64_MAX if nothing will.
  int64_t NextEventAt() const;

  int64_t now_ns() const { return now_ns_; }
  const DeviceSpec& spec() const { return spec_; }
  bool Finished(OpId id) const { return ops_.find(id) == ops_.end(); }
  bool Idle() const { return ops_.empty(); }
  // Time in which at least one block was on an SM, up to now.
  int64_t busy_ns() const;
  // The SM clock as a share of its maximum.
  double clock() const { return clock_; }
  // How many blocks of this shape fit on one empty SM; 0: it can never run.
  static uint32_t BlocksPerSm(const SmSpec& sm, const KernelShape& shape);

 private:
  struct LiveOp;
  struct Cohort;
  struct Group;
  struct Context;
  struct Stream;
  enum class EventKind : uint8_t { kStart, kCohortEnd, kTimedEnd, kSwitchDone, kSliceEnd };
  struct Event {
    int64_t at_ns;
    uint64_t order;
    EventKind kind;
    uint64_t id;
    uint64_t generation;
    bool operator>(const Event& o) const {
      return at_ns != o.at_ns ? at_ns > o.at_ns : order > o.order;
    }
  };

  void Push(int64_t at_ns, EventKind kind, uint64_t id, uint64_t generation);
  void Handle(const Event& event);
  OpRef RefOf(const LiveOp& op) const;

  void Ready(LiveOp* op);
  void DrainReady();
  void Start(LiveOp* op);
  void StartGraph(LiveOp* op);
  void Finish(LiveOp* op, bool cancelled);

  void WantEngine(Group* group);
  void Settle(Group* group);
  bool HoldsEngine(const Group& group) const;
  bool WantsEngine(const Group& group) const;
  Group* NextWaiting(const Group* after) const;
  void BeginSwitch(Group* to);
  void Acquire(Group* group, bool switched);
  void Dispatch(Group* group);
  void Place(Group* group, LiveOp* op, std::vector<char>* blocked);
  void Resume(Cohort* cohort);
  void Pause(Cohort* cohort);
  void Report(Cohort* cohort);
  void EndCohort(Cohort* cohort);
  void RemoveCohort(Cohort* cohort);
  void Reprice(Group* group);
  void StartCopy(uint32_t engine);
  void CountBusy();

  DeviceSpec spec_;
  GpuListener* listener_;
  int64_t now_ns_ = 0;
  uint64_t next_order_ = 1;
  uint64_t next_serial_ = 1;
  std::priority_queue<Event, std::vector<Event>, std::greater<Event>> events_;

  std::vector<std::unique_ptr<Context>> contexts_;  // Index = id; null once destroyed.
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::unordered_map<OpId, std::unique_ptr<LiveOp>> ops_;
  std::unordered_map<uint64_t, LiveOp*> by_serial_;
  std::unordered_map<uint64_t, std::unique_ptr<Cohort>> cohorts_;
  std::deque<LiveOp*> ready_;
  bool draining_ = false;

  Group* resident_ = nullptr;      // Whose blocks are, or were last, on the SMs.
  Group* switching_to_ = nullptr;  // Set during a switch; nothing runs then.
  uint64_t engine_generation_ = 0;
  int64_t switch_began_ns_ = 0;
  int64_t slice_end_ns_ = 0;
  bool slice_armed_ = false;

  struct CopyEngine {
    std::deque<LiveOp*> queue;
    LiveOp* running = nullptr;
  };
  CopyEngine copy_engines_[2];

  uint32_t running_cohorts_ = 0;
  int64_t busy_since_ns_ = 0;
  int64_t busy_ns_ = 0;
  double clock_ = 1.0;
};

}  // namespace rubato::softgpu

#endif  // SOFTGPU_MODEL_GPU_H_
