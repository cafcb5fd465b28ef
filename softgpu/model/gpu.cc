#include "softgpu/model/gpu.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace rubato::softgpu {

namespace {

constexpr int64_t kCopyWaveNs = 50'000;

struct SmUse {
  uint32_t threads = 0;
  uint32_t registers = 0;
  uint32_t shared_bytes = 0;
  uint32_t blocks = 0;
};

struct BlockDemand {
  uint32_t threads;
  uint32_t registers;
  uint32_t shared_bytes;
};

// Threads come in warps; a demand above what an SM has would never start, so it is cut to the SM.
BlockDemand DemandOf(const SmSpec& sm, const KernelShape& shape) {
  const uint32_t threads =
      std::max(32u, (std::min(shape.threads_per_block, sm.threads) + 31) / 32 * 32);
  const uint64_t registers = uint64_t{std::max(1u, shape.registers_per_thread)} * threads;
  return {threads, static_cast<uint32_t>(std::min<uint64_t>(registers, sm.registers)),
          std::min(shape.shared_bytes_per_block, sm.shared_bytes)};
}

uint32_t Fits(const SmSpec& sm, const SmUse& use, const BlockDemand& demand) {
  uint32_t n = sm.blocks - use.blocks;
  n = std::min(n, (sm.threads - use.threads) / demand.threads);
  n = std::min(n, (sm.registers - use.registers) / demand.registers);
  if (demand.shared_bytes > 0)
    n = std::min(n, (sm.shared_bytes - use.shared_bytes) / demand.shared_bytes);
  return n;
}

// A copy inside device memory, as the blocks that carry it out.
KernelShape CopyShape(const DeviceSpec& spec, uint64_t bytes) {
  KernelShape shape;
  const double per_sm = spec.device_bytes_per_ns / spec.sm_count;
  const double wave_bytes = per_sm * static_cast<double>(kCopyWaveNs);
  const double wanted = std::ceil(static_cast<double>(bytes) / wave_bytes);
  const double small = std::ceil(static_cast<double>(bytes) / (32.0 * 1024));
  shape.blocks = static_cast<uint32_t>(
      std::max(1.0, std::max(wanted, std::min(small, static_cast<double>(spec.sm_count)))));
  shape.threads_per_block = spec.sm.threads;
  shape.block_ns = std::max<int64_t>(
      1'500, static_cast<int64_t>(static_cast<double>(bytes) / shape.blocks / per_sm));
  shape.bytes_per_ns_per_block = per_sm;
  return shape;
}

}  // namespace

struct Gpu::LiveOp {
  OpId id = 0;
  uint32_t node = kWholeOp;
  uint64_t serial = 0;
  uint64_t order = 0;  // Of becoming ready; the tie-break in the block queue.
  Op op;
  Context* context = nullptr;
  StreamId stream = 0;
  SmRange sms;
  int priority = 0;
  int64_t submitted_ns = 0;
  uint32_t waiting = 0;
  bool waited = false;
  bool arriving = false;  // Ready, its start event is under way.
  bool started = false;
  bool released = false;
  bool queued = false;  // In its group's block queue.
  uint32_t to_place = 0;
  uint32_t running = 0;
  uint32_t open_nodes = 0;
  LiveOp* parent = nullptr;
  std::vector<LiveOp*> dependents;
  std::vector<std::unique_ptr<LiveOp>> nodes;
};

// Blocks of one operation that were placed together and end together.
struct Gpu::Cohort {
  uint64_t serial = 0;
  uint64_t generation = 0;
  LiveOp* op = nullptr;
  Group* group = nullptr;
  uint32_t blocks = 0;
  std::vector<std::pair<uint32_t, uint32_t>> sms;  // (SM, blocks); empty for a marker.
  int64_t remaining_ns = 0;
  int64_t since_ns = 0;  // Start of the present rate.
  int64_t resumed_ns = 0;
  double rate = 1.0;
  bool running = false;
  bool endless = false;
};

// Contexts that share the SMs with one another and take turns with everybody else.
struct Gpu::Group {
  uint32_t index = 0;
  uint64_t server = 0;
  uint32_t contexts = 0;
  uint32_t arriving = 0;
  std::vector<LiveOp*> queue;  // By priority, then order.
  std::vector<Cohort*> cohorts;
  std::vector<SmUse> use;
  bool cold = true;
};

struct Gpu::Context {
  ContextId id = 0;
  ContextDesc desc;
  Group* group = nullptr;
  std::vector<StreamId> streams;
};

struct Gpu::Stream {
  StreamId id = 0;
  Context* context = nullptr;
  StreamDesc desc;
  OpId last = 0;
};

Gpu::Gpu(const DeviceSpec& spec, GpuListener* listener) : spec_(spec), listener_(listener) {
  static GpuListener quiet;
  if (listener_ == nullptr) listener_ = &quiet;
  spec_.sm_count = std::max(1u, spec_.sm_count);
  contexts_.emplace_back();
  streams_.emplace_back();
}

Gpu::~Gpu() = default;

uint32_t Gpu::BlocksPerSm(const SmSpec& sm, const KernelShape& shape) {
  if (shape.threads_per_block > sm.threads || shape.shared_bytes_per_block > sm.shared_bytes)
    return 0;
  if (uint64_t{shape.registers_per_thread} * shape.threads_per_block > sm.registers) return 0;
  return Fits(sm, SmUse{}, DemandOf(sm, shape));
}

int64_t Gpu::busy_ns() const {
  return busy_ns_ + (running_cohorts_ > 0 ? now_ns_ - busy_since_ns_ : 0);
}

void Gpu::CountBusy() {
  if (running_cohorts_ > 0) busy_ns_ += now_ns_ - busy_since_ns_;
  busy_since_ns_ = now_ns_;
}

ContextId Gpu::CreateContext(const ContextDesc& desc) {
  auto context = std::make_unique<Context>();
  context->id = static_cast<ContextId>(contexts_.size());
  context->desc = desc;
  for (auto& group : groups_) {
    const bool same_server = desc.server != 0 && group->server == desc.server;
    const bool abandoned = group->contexts == 0 && group->cohorts.empty() && group->queue.empty() &&
                           group.get() != resident_ && group.get() != switching_to_;
    if (same_server) {
      context->group = group.get();
      break;
    }
    if (abandoned && context->group == nullptr && desc.server == 0) context->group = group.get();
  }
  if (context->group == nullptr) {
    groups_.push_back(std::make_unique<Group>());
    context->group = groups_.back().get();
    context->group->index = static_cast<uint32_t>(groups_.size() - 1);
    context->group->use.resize(spec_.sm_count);
  }
  if (context->group->contexts == 0) {
    context->group->server = desc.server;
    context->group->cold = true;
  }
  ++context->group->contexts;
  contexts_.push_back(std::move(context));
  return contexts_.back()->id;
}

StreamId Gpu::CreateStream(ContextId context, const StreamDesc& desc) {
  auto stream = std::make_unique<Stream>();
  stream->id = static_cast<StreamId>(streams_.size());
  stream->context = contexts_[context].get();
  stream->desc = desc;
  stream->context->streams.push_back(stream->id);
  streams_.push_back(std::move(stream));
  return streams_.back()->id;
}

void Gpu::DestroyStream(StreamId id) {
  Stream* stream = streams_[id].get();
  if (stream == nullptr) return;
  std::erase(stream->context->streams, id);
  streams_[id].reset();
}

OpRef Gpu::RefOf(const LiveOp& op) const {
  return {op.id, op.node, op.context->id, op.stream};
}

void Gpu::Push(int64_t at_ns, EventKind kind, uint64_t id, uint64_t generation) {
  events_.push({std::max(at_ns, now_ns_), next_order_++, kind, id, generation});
}

int64_t Gpu::NextEventAt() const {
  return events_.empty() ? INT64_MAX : events_.top().at_ns;
}

void Gpu::Advance(int64_t now_ns) {
  while (!events_.empty() && events_.top().at_ns <= now_ns) {
    const Event event = events_.top();
    events_.pop();
    now_ns_ = std::max(now_ns_, event.at_ns);
    Handle(event);
    DrainReady();
  }
  now_ns_ = std::max(now_ns_, now_ns);
}

void Gpu::Handle(const Event& event) {
  switch (event.kind) {
    case EventKind::kStart: {
      auto it = by_serial_.find(event.id);
      if (it != by_serial_.end()) Start(it->second);
      return;
    }
    case EventKind::kCohortEnd: {
      auto it = cohorts_.find(event.id);
      if (it != cohorts_.end() && it->second->generation == event.generation)
        EndCohort(it->second.get());
      return;
    }
    case EventKind::kTimedEnd: {
      auto it = by_serial_.find(event.id);
      if (it != by_serial_.end()) Finish(it->second, false);
      return;
    }
    case EventKind::kSwitchDone:
      if (event.generation == engine_generation_ && switching_to_ != nullptr)
        Acquire(switching_to_, true);
      return;
    case EventKind::kSliceEnd:
      if (event.generation != engine_generation_) return;
      slice_armed_ = false;
      if (resident_ == nullptr || switching_to_ != nullptr) return;
      if (Group* next = NextWaiting(resident_)) BeginSwitch(next);
      return;
  }
}

void Gpu::Submit(StreamId stream_id, OpId id, Op op, int64_t now_ns) {
  Advance(now_ns);
  Stream* stream = streams_[stream_id].get();
  auto owned = std::make_unique<LiveOp>();
  LiveOp* live = owned.get();
  live->id = id;
  live->serial = next_serial_++;
  live->op = std::move(op);
  live->context = stream->context;
  live->stream = stream_id;
  live->sms = stream->desc.sms;
  live->priority = stream->desc.priority;
  live->submitted_ns = now_ns_;
  by_serial_.emplace(live->serial, live);
  ops_[id] = std::move(owned);

  auto wait_for = [&](OpId other) {
    auto it = other == id ? ops_.end() : ops_.find(other);
    if (it == ops_.end()) return;
    it->second->dependents.push_back(live);
    ++live->waiting;
  };
  wait_for(stream->last);
  for (OpId other : live->op.after) wait_for(other);
  if (stream->desc.kind != StreamKind::kNonBlocking) {
    // The legacy stream and the blocking streams of its context wait for one another.
    const bool legacy = stream->desc.kind == StreamKind::kLegacy;
    for (StreamId other : stream->context->streams) {
      if (other == stream_id) continue;
      const StreamKind kind = streams_[other]->desc.kind;
      if (legacy ? kind == StreamKind::kBlocking : kind == StreamKind::kLegacy)
        wait_for(streams_[other]->last);
    }
  }
  stream->last = id;
  live->waited = live->waiting > 0;
  if (live->waiting == 0) Ready(live);
  DrainReady();
}

void Gpu::Ready(LiveOp* op) {
  ready_.push_back(op);
}

// Iterative, so that a long chain of operations that cost nothing does not nest.
void Gpu::DrainReady() {
  if (draining_) return;
  draining_ = true;
  while (!ready_.empty()) {
    LiveOp* op = ready_.front();
    ready_.pop_front();
    op->order = next_order_++;
    if (op->op.kind == OpKind::kEmpty) {
      listener_->OnStart(RefOf(*op), now_ns_);
      Finish(op, false);
      continue;
    }
    const bool in_graph = op->node != kWholeOp;
    int64_t at_ns = now_ns_;
    if (op->waited) at_ns += in_graph ? spec_.graph_node_gap_ns : spec_.kernel_gap_ns;
    if (!in_graph) at_ns = std::max(at_ns, op->submitted_ns + spec_.launch_latency_ns);
    op->arriving = true;
    // A wait leaves the SMs to others; so do bus copies, host calls.
    if (op->op.kind != OpKind::kWaitWord && op->op.kind != OpKind::kHostCall &&
        op->op.kind != OpKind::kHostToDevice && op->op.kind != OpKind::kDeviceToHost) {
      ++op->context->group->arriving;
    }
    if (at_ns <= now_ns_) {
      Start(op);
    } else {
      Push(at_ns, EventKind::kStart, op->serial, 0);
    }
  }
  draining_ = false;
  if (resident_ != nullptr) Settle(resident_);
}

void Gpu::Start(LiveOp* op) {
  Group* group = op->context->group;
  op->arriving = false;
  op->started = true;
  listener_->OnStart(RefOf(*op), now_ns_);
  switch (op->op.kind) {
    case OpKind::kEmpty:
      Finish(op, false);
      return;
    case OpKind::kHostToDevice:
    case OpKind::kDeviceToHost: {
      const uint32_t engine = op->op.kind == OpKind::kHostToDevice ? 0 : 1;
      copy_engines_[engine].queue.push_back(op);
      StartCopy(engine);
      return;
    }
    case OpKind::kWaitWord:
    case OpKind::kHostCall:
      if (op->released) Push(now_ns_ + spec_.marker_ns, EventKind::kTimedEnd, op->serial, 0);
      return;
    case OpKind::kGraph:
      --group->arriving;
      StartGraph(op);
      return;
    case OpKind::kDeviceCopy:
      op->op.kernel = CopyShape(spec_, op->op.bytes);
      [[fallthrough]];
    case OpKind::kKernel:
      op->to_place = std::max(1u, op->op.kernel.blocks);
      break;
    case OpKind::kWriteWord:
      op->to_place = 1;
      break;
  }
  --group->arriving;
  op->queued = true;
  const int client = group->server != 0 ? op->context->desc.client_priority : 0;
  auto before = [&](const LiveOp* a, const LiveOp* b) {
    const int a_client = group->server != 0 ? a->context->desc.client_priority : client;
    const int b_client = group->server != 0 ? b->context->desc.client_priority : client;
    if (a_client != b_client) return a_client < b_client;
    if (a->priority != b->priority) return a->priority < b->priority;
    return a->order < b->order;
  };
  group->queue.insert(std::upper_bound(group->queue.begin(), group->queue.end(), op, before), op);
  WantEngine(group);
}

void Gpu::StartGraph(LiveOp* op) {
  const auto shape = op->op.graph;
  if (shape == nullptr || shape->nodes.empty()) {
    Finish(op, false);
    return;
  }
  op->open_nodes = static_cast<uint32_t>(shape->nodes.size());
  op->nodes.reserve(shape->nodes.size());
  for (uint32_t i = 0; i < shape->nodes.size(); ++i) {
    const GraphNode& node = shape->nodes[i];
    auto live = std::make_unique<LiveOp>();
    live->id = op->id;
    live->node = i;
    live->serial = next_serial_++;
    live->op = node.op;
    live->context = op->context;
    live->stream = op->stream;
    live->sms = node.sms;
    live->priority = node.has_priority ? node.priority : op->priority;
    live->submitted_ns = now_ns_;
    live->parent = op;
    if (op->context->group->server != 0 && node.op.kind == OpKind::kKernel) {
      live->op.kernel.block_ns += spec_.mps_node_tax_ns;
    }
    by_serial_.emplace(live->serial, live.get());
    for (uint32_t need : node.needs) {
      if (need >= i) continue;
      op->nodes[need]->dependents.push_back(live.get());
      ++live->waiting;
    }
    live->waited = live->waiting > 0;
    op->nodes.push_back(std::move(live));
  }
  for (auto& node : op->nodes) {
    if (node->waiting == 0) Ready(node.get());
  }
  DrainReady();
}

void Gpu::Finish(LiveOp* op, bool cancelled) {
  listener_->OnFinish(RefOf(*op), now_ns_, cancelled);
  for (LiveOp* dependent : op->dependents) {
    if (--dependent->waiting == 0) Ready(dependent);
  }
  op->dependents.clear();
  by_serial_.erase(op->serial);
  for (uint32_t engine = 0; engine < 2; ++engine) {
    if (copy_engines_[engine].running != op) continue;
    copy_engines_[engine].running = nullptr;
    StartCopy(engine);
  }
  LiveOp* parent = op->parent;
  if (parent == nullptr) {
    ops_.erase(op->id);
  } else if (--parent->open_nodes == 0 && !cancelled) {
    Finish(parent, false);
  }
}

void Gpu::Release(OpId id, uint32_t node, int64_t now_ns) {
  Advance(now_ns);
  auto it = ops_.find(id);
  if (it == ops_.end()) return;
  LiveOp* op = it->second.get();
  if (node != kWholeOp) {
    if (node >= op->nodes.size()) return;
    op = op->nodes[node].get();
    if (by_serial_.find(op->serial) == by_serial_.end()) return;
  }
  if (op->released) return;
  op->released = true;
  if (op->op.kind == OpKind::kWaitWord || op->op.kind == OpKind::kHostCall) {
    if (op->started) Push(now_ns_ + spec_.marker_ns, EventKind::kTimedEnd, op->serial, 0);
    return;
  }
  for (Cohort* cohort : std::vector<Cohort*>(op->context->group->cohorts)) {
    if (cohort->op != op || !cohort->endless) continue;
    cohort->endless = false;
    cohort->remaining_ns = 0;
    if (cohort->running) {
      ++cohort->generation;
      Push(now_ns_, EventKind::kCohortEnd, cohort->serial, cohort->generation);
    }
  }
  Advance(now_ns_);
}

void Gpu::StartCopy(uint32_t engine) {
  CopyEngine& copy = copy_engines_[engine];
  if (copy.running != nullptr || copy.queue.empty()) return;
  copy.running = copy.queue.front();
  copy.queue.pop_front();
  const double ns = static_cast<double>(copy.running->op.bytes) / spec_.host_bytes_per_ns;
  Push(now_ns_ + spec_.copy_latency_ns + static_cast<int64_t>(ns), EventKind::kTimedEnd,
       copy.running->serial, 0);
}

bool Gpu::WantsEngine(const Group& group) const {
  return !group.queue.empty() || !group.cohorts.empty();
}
bool Gpu::HoldsEngine(const Group& group) const {
  return WantsEngine(group) || group.arriving > 0;
}

Gpu::Group* Gpu::NextWaiting(const Group* after) const {
  const size_t n = groups_.size();
  const size_t first = after == nullptr ? 0 : after->index + 1;
  for (size_t i = 0; i < n; ++i) {
    Group* group = groups_[(first + i) % n].get();
    if (group != after && WantsEngine(*group)) return group;
  }
  return nullptr;
}

// A group has blocks to place or resume.
void Gpu::WantEngine(Group* group) {
  if (switching_to_ != nullptr) return;  // Looked at again when the switch is done.
  if (resident_ == group) {
    Dispatch(group);
    return;
  }
  if (resident_ == nullptr || !HoldsEngine(*resident_)) {
    BeginSwitch(group);
    return;
  }
  if (slice_armed_) return;
  // The resident has been renewing its slice while it was alone.
  if (slice_end_ns_ <= now_ns_) {
    slice_end_ns_ += ((now_ns_ - slice_end_ns_) / spec_.time_slice_ns + 1) * spec_.time_slice_ns;
  }
  slice_armed_ = true;
  Push(slice_end_ns_, EventKind::kSliceEnd, 0, engine_generation_);
}

// Gives the SMs on if their holder has nothing left.
void Gpu::Settle(Group* group) {
  if (switching_to_ != nullptr || group != resident_ || HoldsEngine(*group)) return;
  if (Group* next = NextWaiting(group)) BeginSwitch(next);
}

void Gpu::BeginSwitch(Group* to) {
  ++engine_generation_;
  slice_armed_ = false;
  if (resident_ == nullptr) {
    Acquire(to, false);
    return;
  }
  for (Cohort* cohort : resident_->cohorts) Pause(cohort);
  switching_to_ = to;
  switch_began_ns_ = now_ns_;
  Push(now_ns_ + spec_.context_switch_ns, EventKind::kSwitchDone, 0, engine_generation_);
}

void Gpu::Acquire(Group* group, bool switched) {
  if (switched) listener_->OnSwitch(resident_->index, group->index, switch_began_ns_, now_ns_);
  switching_to_ = nullptr;
  resident_ = group;
  group->cold = true;
  slice_end_ns_ = now_ns_ + spec_.time_slice_ns;
  ++engine_generation_;
  slice_armed_ = false;
  for (Cohort* cohort : std::vector<Cohort*>(group->cohorts)) Resume(cohort);
  Dispatch(group);
  Group* next = NextWaiting(group);
  if (next == nullptr) return;
  if (!HoldsEngine(*group)) {
    BeginSwitch(next);
  } else {
    slice_armed_ = true;
    Push(slice_end_ns_, EventKind::kSliceEnd, 0, engine_generation_);
  }
}

void Gpu::Dispatch(Group* group) {
  if (group != resident_ || switching_to_ != nullptr || group->queue.empty()) return;
  std::vector<char> blocked(spec_.sm_count, 0);
  size_t kept = 0;
  for (size_t i = 0; i < group->queue.size(); ++i) {
    LiveOp* op = group->queue[i];
    Place(group, op, &blocked);
    if (op->to_place > 0) {
      group->queue[kept++] = op;
    } else {
      op->queued = false;
    }
  }
  group->queue.resize(kept);
  Reprice(group);
}

void Gpu::Place(Group* group, LiveOp* op, std::vector<char>* blocked) {
  auto cohort = std::make_unique<Cohort>();
  if (op->op.kind == OpKind::kWriteWord) {
    cohort->blocks = 1;
    cohort->remaining_ns = spec_.marker_ns;
  } else {
    const KernelShape& shape = op->op.kernel;
    const uint32_t limit = group->server != 0 ? op->context->desc.sm_limit : UINT32_MAX;
    const uint32_t first = std::min(op->sms.first, spec_.sm_count - 1);
    const uint32_t count = std::min({op->sms.count, spec_.sm_count - first, std::max(1u, limit)});
    const BlockDemand demand = DemandOf(spec_.sm, shape);
    // Least loaded SMs first; equal ones by number.
    std::vector<uint32_t> order;
    std::vector<uint32_t> room(count);
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; ++i) {
      if ((*blocked)[first + i]) continue;
      room[i] = Fits(spec_.sm, group->use[first + i], demand);
      if (room[i] == 0) continue;
      total += room[i];
      order.push_back(i);
    }
    const bool all_or_none = shape.together && total < op->to_place;
    if (total > 0 && !all_or_none) {
      std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
        return group->use[first + a].threads < group->use[first + b].threads;
      });
      uint32_t left = static_cast<uint32_t>(std::min<uint64_t>(total, op->to_place));
      cohort->blocks = left;
      std::vector<uint32_t> given(count, 0);
      while (left > 0) {
        for (uint32_t i : order) {
          if (left == 0) break;
          if (given[i] == room[i]) continue;
          ++given[i];
          --left;
        }
      }
      for (uint32_t i = 0; i < count; ++i) {
        if (given[i] == 0) continue;
        SmUse& use = group->use[first + i];
        use.threads += demand.threads * given[i];
        use.registers += demand.registers * given[i];
        use.shared_bytes += demand.shared_bytes * given[i];
        use.blocks += given[i];
        cohort->sms.emplace_back(first + i, given[i]);
      }
    }
    if (cohort->blocks < op->to_place) std::fill_n(blocked->begin() + first, count, 1);
    if (cohort->blocks == 0) return;
    cohort->endless = shape.until_released && !op->released;
    cohort->remaining_ns = shape.until_released ? 0 : std::max<int64_t>(0, shape.block_ns);
    if (group->cold) cohort->remaining_ns += spec_.cold_start_ns;
    group->cold = false;
  }
  op->to_place -= cohort->blocks;
  op->running += cohort->blocks;
  cohort->serial = next_serial_++;
  cohort->op = op;
  cohort->group = group;
  Cohort* placed = cohort.get();
  cohorts_.emplace(placed->serial, std::move(cohort));
  group->cohorts.push_back(placed);
  Resume(placed);
}

void Gpu::Resume(Cohort* cohort) {
  CountBusy();
  ++running_cohorts_;
  cohort->running = true;
  cohort->since_ns = cohort->resumed_ns = now_ns_;
  cohort->rate = 1.0;
  ++cohort->generation;
  if (!cohort->endless) {
    Push(now_ns_ + cohort->remaining_ns, EventKind::kCohortEnd, cohort->serial, cohort->generation);
  }
}

void Gpu::Report(Cohort* cohort) {
  if (cohort->sms.empty()) return;
  listener_->OnBlocks(RefOf(*cohort->op), cohort->resumed_ns, now_ns_, cohort->blocks,
                      cohort->sms.front().first, cohort->sms.back().first);
}

void Gpu::Pause(Cohort* cohort) {
  if (!cohort->running) return;
  CountBusy();
  --running_cohorts_;
  Report(cohort);
  const double done = static_cast<double>(now_ns_ - cohort->since_ns) * cohort->rate;
  cohort->remaining_ns = std::max<int64_t>(0, cohort->remaining_ns - std::llround(done));
  cohort->running = false;
  ++cohort->generation;
}

void Gpu::RemoveCohort(Cohort* cohort) {
  Group* group = cohort->group;
  if (cohort->running) {
    CountBusy();
    --running_cohorts_;
    Report(cohort);
  }
  if (!cohort->sms.empty()) {
    const BlockDemand demand = DemandOf(spec_.sm, cohort->op->op.kernel);
    for (auto [sm, n] : cohort->sms) {
      SmUse& use = group->use[sm];
      use.threads -= demand.threads * n;
      use.registers -= demand.registers * n;
      use.shared_bytes -= demand.shared_bytes * n;
      use.blocks -= n;
    }
  }
  std::erase(group->cohorts, cohort);
  cohorts_.erase(cohort->serial);
}

void Gpu::EndCohort(Cohort* cohort) {
  LiveOp* op = cohort->op;
  Group* group = cohort->group;
  op->running -= cohort->blocks;
  RemoveCohort(cohort);
  if (op->running == 0 && op->to_place == 0) Finish(op, false);
  DrainReady();
  if (group == resident_) Dispatch(group);
  if (group == resident_) Reprice(group);
  Settle(group);
}

// Spreads the clock that power allows and the memory bandwidth over what runs.
void Gpu::Reprice(Group* group) {
  double demand = 0;
  double watts = spec_.power.idle_watts;
  for (const Cohort* cohort : group->cohorts) {
    if (cohort->sms.empty()) continue;
    demand += cohort->op->op.kernel.bytes_per_ns_per_block * cohort->blocks;
    watts += cohort->op->op.kernel.watts_per_block * cohort->blocks;
  }
  const double share =
      demand > spec_.device_bytes_per_ns ? spec_.device_bytes_per_ns / demand : 1.0;
  clock_ = 1.0;
  if (spec_.power.limit_watts > 0 && watts > spec_.power.limit_watts) {
    clock_ = std::max(spec_.power.floor, spec_.power.limit_watts / watts);
  }
  for (Cohort* cohort : group->cohorts) {
    if (!cohort->running || cohort->sms.empty()) continue;
    const bool hungry = cohort->op->op.kernel.bytes_per_ns_per_block > 0;
    const double rate = clock_ * (hungry ? share : 1.0);
    if (std::abs(rate - cohort->rate) < 1e-3) continue;
    const double done = static_cast<double>(now_ns_ - cohort->since_ns) * cohort->rate;
    cohort->remaining_ns = std::max<int64_t>(0, cohort->remaining_ns - std::llround(done));
    cohort->since_ns = now_ns_;
    cohort->rate = rate;
    ++cohort->generation;
    if (cohort->endless) continue;
    const double left = static_cast<double>(cohort->remaining_ns) / rate;
    Push(now_ns_ + std::llround(left), EventKind::kCohortEnd, cohort->serial, cohort->generation);
  }
}

void Gpu::DestroyContext(ContextId id, int64_t now_ns) {
  Advance(now_ns);
  Context* context = contexts_[id].get();
  if (context == nullptr) return;
  Group* group = context->group;
  // Whatever is cancelled here may make other contexts' operations ready; they start once all is
  // gone.
  draining_ = true;
  for (Cohort* cohort : std::vector<Cohort*>(group->cohorts)) {
    if (cohort->op->context == context) RemoveCohort(cohort);
  }
  std::erase_if(group->queue, [&](LiveOp* op) { return op->context == context; });
  for (CopyEngine& engine : copy_engines_) {
    std::erase_if(engine.queue, [&](LiveOp* op) { return op->context == context; });
  }
  std::vector<LiveOp*> doomed;
  for (auto& [op_id, op] : ops_) {
    if (op->context == context) doomed.push_back(op.get());
  }
  std::sort(doomed.begin(), doomed.end(), [](auto* a, auto* b) { return a->serial < b->serial; });
  auto drop_arrival = [&](LiveOp* op) {
    const OpKind kind = op->op.kind;
    if (op->arriving && kind != OpKind::kWaitWord && kind != OpKind::kHostCall &&
        kind != OpKind::kHostToDevice && kind != OpKind::kDeviceToHost) {
      --group->arriving;
    }
  };
  for (LiveOp* op : doomed) {
    for (auto& node : op->nodes) {
      if (by_serial_.find(node->serial) == by_serial_.end()) continue;
      drop_arrival(node.get());
      by_serial_.erase(node->serial);
      for (CopyEngine& engine : copy_engines_) {
        if (engine.running == node.get()) engine.running = nullptr;
      }
    }
    drop_arrival(op);
    std::erase(ready_, op);
    for (LiveOp* dependent : std::exchange(op->dependents, {})) {
      if (--dependent->waiting == 0 && dependent->context != context) Ready(dependent);
    }
    Finish(op, true);
  }
  std::erase_if(ready_, [&](LiveOp* op) { return op->context == context; });
  for (StreamId stream : std::vector<StreamId>(context->streams)) streams_[stream].reset();
  --group->contexts;
  contexts_[id].reset();
  draining_ = false;
  for (uint32_t engine = 0; engine < 2; ++engine) StartCopy(engine);
  DrainReady();
  if (group == resident_) Dispatch(group);
  if (resident_ != nullptr) Settle(resident_);
}

}  // namespace rubato::softgpu
