// The GPU model in virtual time: every number here is exact.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "softgpu/model/gpu.h"

namespace rubato::softgpu {
namespace {

constexpr int64_t kUs = 1'000;
constexpr int64_t kMs = 1'000'000;

struct Recorder : GpuListener {
  struct Span {
    OpId op;
    ContextId context;
    int64_t from, to;
    uint32_t blocks;
  };
  void OnStart(const OpRef& op, int64_t at_ns) override { started[{op.op, op.node}] = at_ns; }
  void OnFinish(const OpRef& op, int64_t at_ns, bool was_cancelled) override {
    finished[{op.op, op.node}] = at_ns;
    order.push_back(op.op);
    if (was_cancelled) cancelled.push_back(op.op);
  }
  void OnBlocks(const OpRef& op, int64_t from, int64_t to, uint32_t blocks, uint32_t,
                uint32_t) override {
    spans.push_back({op.op, op.context, from, to, blocks});
  }
  void OnSwitch(uint32_t, uint32_t, int64_t from, int64_t to) override {
    switches.emplace_back(from, to);
  }
  int64_t End(OpId op, uint32_t node = kWholeOp) const {
    auto it = finished.find({op, node});
    return it == finished.end() ? -1 : it->second;
  }
  std::map<std::pair<OpId, uint32_t>, int64_t> started, finished;
  std::vector<OpId> order, cancelled;
  std::vector<Span> spans;
  std::vector<std::pair<int64_t, int64_t>> switches;
};

Op Kernel(uint32_t blocks, int64_t block_ns, uint32_t threads = 1024) {
  Op op;
  op.kind = OpKind::kKernel;
  op.kernel.blocks = blocks;
  op.kernel.threads_per_block = threads;
  op.kernel.block_ns = block_ns;
  return op;
}

// No fixed costs, so that tests of order and placement read plainly.
DeviceSpec Free() {
  DeviceSpec spec;
  spec.sm_count = 4;
  spec.launch_latency_ns = 0;
  spec.kernel_gap_ns = 0;
  spec.graph_node_gap_ns = 0;
  return spec;
}

class ModelTest : public testing::Test {
 protected:
  void Use(const DeviceSpec& spec) { gpu_ = std::make_unique<Gpu>(spec, &log_); }
  void RunOut() {
    while (gpu_->NextEventAt() != INT64_MAX && gpu_->NextEventAt() < 1'000'000 * kMs)
      gpu_->Advance(gpu_->NextEventAt());
  }
  StreamId Stream(ContextId context, StreamKind kind = StreamKind::kNonBlocking, int priority = 0,
                  SmRange sms = {}) {
    return gpu_->CreateStream(context, {kind, priority, sms});
  }
  Recorder log_;
  std::unique_ptr<Gpu> gpu_;
};

TEST_F(ModelTest, BlocksFillTheSmsInWaves) {
  Use(Free());
  const StreamId s = Stream(gpu_->CreateContext({}));
  // Two blocks of 1024 threads fit on each of four SMs: 20 blocks are three waves.
  gpu_->Submit(s, 1, Kernel(20, 100 * kUs), 0);
  RunOut();
  EXPECT_EQ(log_.End(1), 300 * kUs);
  EXPECT_TRUE(gpu_->Idle());
  EXPECT_EQ(gpu_->busy_ns(), 300 * kUs);
}

TEST_F(ModelTest, EveryResourceLimitsPlacement) {
  const SmSpec sm;
  KernelShape shape;
  shape.threads_per_block = 32;
  EXPECT_EQ(Gpu::BlocksPerSm(sm, shape), 32u);
  shape.shared_bytes_per_block = 100 * 1024;
  EXPECT_EQ(Gpu::BlocksPerSm(sm, shape), 2u);
  shape.registers_per_thread = 255;
  shape.threads_per_block = 256;
  shape.shared_bytes_per_block = 0;
  EXPECT_EQ(Gpu::BlocksPerSm(sm, shape), 1u);
  shape.shared_bytes_per_block = 300 * 1024;
  EXPECT_EQ(Gpu::BlocksPerSm(sm, shape), 0u);
}

TEST_F(ModelTest, StreamsAreInOrderAndConcurrentWithOneAnother) {
  Use(Free());
  const ContextId c = gpu_->CreateContext({});
  const StreamId a = Stream(c), b = Stream(c);
  gpu_->Submit(a, 1, Kernel(4, 100), 0);
  gpu_->Submit(a, 2, Kernel(4, 100), 0);
  gpu_->Submit(b, 3, Kernel(4, 150), 0);
  RunOut();
  EXPECT_EQ(log_.End(1), 100);
  EXPECT_EQ(log_.End(2), 200);
  EXPECT_EQ(log_.End(3), 150);
}

TEST_F(ModelTest, PriorityGoesFirstButPreemptsNoBlock) {
  Use(Free());
  const ContextId c = gpu_->CreateContext({});
  const StreamId low = Stream(c), high = Stream(c, StreamKind::kNonBlocking, -5);
  gpu_->Submit(low, 1, Kernel(80, 100 * kUs), 0);  // Ten waves.
  gpu_->Submit(high, 2, Kernel(8, 10 * kUs), 150 * kUs);
  RunOut();
  EXPECT_EQ(log_.started.at({2, kWholeOp}), 150 * kUs);
  EXPECT_EQ(log_.End(2), 210 * kUs);  // Waits for the wave in flight only.
  EXPECT_EQ(log_.End(1), 1010 * kUs);
}

TEST_F(ModelTest, EqualPriorityWaitsForAllBlocksAhead) {
  Use(Free());
  const ContextId c = gpu_->CreateContext({});
  const StreamId a = Stream(c), b = Stream(c);
  gpu_->Submit(a, 1, Kernel(80, 100 * kUs), 0);
  gpu_->Submit(b, 2, Kernel(8, 10 * kUs), 150 * kUs);
  RunOut();
  EXPECT_EQ(log_.End(2), 1010 * kUs);
}

TEST_F(ModelTest, PartitionsRunSideBySide) {
  Use(Free());
  const ContextId c = gpu_->CreateContext({});
  const StreamId a = Stream(c, StreamKind::kNonBlocking, 0, {0, 2}),
                 b = Stream(c, StreamKind::kNonBlocking, 0, {2, 2});
  gpu_->Submit(a, 1, Kernel(40, 100 * kUs), 0);
  gpu_->Submit(b, 2, Kernel(8, 100 * kUs), 0);
  RunOut();
  EXPECT_EQ(log_.End(1), 1000 * kUs);
  EXPECT_EQ(log_.End(2), 200 * kUs);
}

TEST_F(ModelTest, ContextsTakeSlicesAndNeverOverlap) {
  Use(Free());
  const StreamId a = Stream(gpu_->CreateContext({})), b = Stream(gpu_->CreateContext({}));
  gpu_->Submit(a, 1, Kernel(4, 5 * kMs), 0);
  gpu_->Submit(b, 2, Kernel(4, 1 * kMs), 500 * kUs);
  RunOut();
  // b waits for the rest of the slice and a switch; a resumes with what it had done.
  EXPECT_EQ(log_.End(2), 2 * kMs + 140 * kUs + 1 * kMs);
  EXPECT_EQ(log_.End(1), 5 * kMs + 1 * kMs + 2 * 140 * kUs);
  for (const auto& x : log_.spans) {
    for (const auto& y : log_.spans) {
      const bool apart = x.to <= y.from || y.to <= x.from;
      EXPECT_TRUE(x.context == y.context || apart);
    }
  }
  ASSERT_EQ(log_.switches.size(), 2u);
  EXPECT_EQ(log_.switches[0].second - log_.switches[0].first, 140 * kUs);
}

TEST_F(ModelTest, AnIdleContextGivesTheSmsOnAtOnce) {
  Use(Free());
  const StreamId a = Stream(gpu_->CreateContext({})), b = Stream(gpu_->CreateContext({}));
  gpu_->Submit(a, 1, Kernel(4, 300 * kUs), 0);
  gpu_->Submit(b, 2, Kernel(4, 100 * kUs), 100 * kUs);
  RunOut();
  EXPECT_EQ(log_.End(2), (300 + 140 + 100) * kUs);
}

TEST_F(ModelTest, OneServerRunsItsContextsSideBySide) {
  Use(Free());
  const StreamId a = Stream(gpu_->CreateContext({7, 0, UINT32_MAX}));
  const StreamId b = Stream(gpu_->CreateContext({7, 0, UINT32_MAX}));
  gpu_->Submit(a, 1, Kernel(4, 5 * kMs), 0);
  gpu_->Submit(b, 2, Kernel(4, 1 * kMs), 0);
  RunOut();
  EXPECT_EQ(log_.End(1), 5 * kMs);
  EXPECT_EQ(log_.End(2), 1 * kMs);
  EXPECT_TRUE(log_.switches.empty());
}

TEST_F(ModelTest, LegacyStreamIsABarrierForBlockingStreamsOnly) {
  Use(Free());
  const ContextId c = gpu_->CreateContext({});
  const StreamId legacy = Stream(c, StreamKind::kLegacy),
                 blocking = Stream(c, StreamKind::kBlocking);
  const StreamId free_stream = Stream(c);
  gpu_->Submit(blocking, 1, Kernel(1, 100), 0);
  gpu_->Submit(legacy, 2, Kernel(1, 100), 0);
  gpu_->Submit(blocking, 3, Kernel(1, 100), 0);
  gpu_->Submit(free_stream, 4, Kernel(1, 100), 0);
  RunOut();
  EXPECT_EQ(log_.End(2), 200);
  EXPECT_EQ(log_.End(3), 300);
  EXPECT_EQ(log_.End(4), 100);
}

TEST_F(ModelTest, AfterJoinsStreams) {
  Use(Free());
  const ContextId c = gpu_->CreateContext({});
  const StreamId a = Stream(c), b = Stream(c);
  gpu_->Submit(a, 1, Kernel(1, 100), 0);
  Op join;
  join.after = {1, 999};  // An unknown id counts as finished.
  gpu_->Submit(b, 2, join, 0);
  gpu_->Submit(b, 3, Kernel(1, 50), 0);
  RunOut();
  EXPECT_EQ(log_.End(3), 150);
}

TEST_F(ModelTest, GraphsRunTheirNodesByDependency) {
  Use(Free());
  const StreamId s = Stream(gpu_->CreateContext({}));
  auto shape = std::make_shared<GraphShape>();
  auto add = [&](int64_t ns, std::vector<uint32_t> needs) {
    GraphNode node;
    node.op = Kernel(1, ns);
    node.needs = std::move(needs);
    shape->nodes.push_back(node);
  };
  add(100, {});
  add(200, {0});
  add(300, {0});
  add(50, {1, 2});
  Op op;
  op.kind = OpKind::kGraph;
  op.graph = shape;
  gpu_->Submit(s, 1, op, 0);
  gpu_->Submit(s, 2, Kernel(1, 10), 0);
  RunOut();
  EXPECT_EQ(log_.End(1, 1), 300);
  EXPECT_EQ(log_.End(1, 2), 400);
  EXPECT_EQ(log_.End(1), 450);
  EXPECT_EQ(log_.End(2), 460);
}

TEST_F(ModelTest, WaitsHoldTheirStreamButNotTheSms) {
  DeviceSpec spec = Free();
  Use(spec);
  const ContextId c = gpu_->CreateContext({});
  const StreamId a = Stream(c), b = Stream(c);
  Op wait;
  wait.kind = OpKind::kWaitWord;
  gpu_->Submit(a, 1, wait, 0);
  gpu_->Submit(a, 2, Kernel(1, 100), 0);
  gpu_->Submit(b, 3, Kernel(8, 100), 0);
  gpu_->Advance(1000);
  EXPECT_EQ(log_.End(3), 100);
  EXPECT_EQ(log_.End(1), -1);
  gpu_->Release(1, kWholeOp, 2000);
  RunOut();
  EXPECT_EQ(log_.End(1), 2000 + spec.marker_ns);
  EXPECT_EQ(log_.End(2), 2000 + spec.marker_ns + 100);
}

TEST_F(ModelTest, ASpinningKernelHoldsItsSmsUntilReleasedEvenAcrossSlices) {
  Use(Free());
  const StreamId a = Stream(gpu_->CreateContext({})), b = Stream(gpu_->CreateContext({}));
  Op spin = Kernel(8, 0);
  spin.kernel.until_released = true;
  gpu_->Submit(a, 1, spin, 0);
  gpu_->Submit(b, 2, Kernel(4, 3 * kMs), 0);
  gpu_->Advance(3 * kMs);  // b has the SMs.
  gpu_->Release(1, kWholeOp, 3 * kMs);
  EXPECT_EQ(log_.End(1), -1);
  RunOut();
  // a gets the SMs back after b's slice and only then sees what it waited for.
  EXPECT_EQ(log_.End(1), 2 * kMs + 140 * kUs + 2 * kMs + 140 * kUs);
}

TEST_F(ModelTest, CooperativeKernelsStartWhole) {
  Use(Free());
  const ContextId c = gpu_->CreateContext({});
  const StreamId a = Stream(c), b = Stream(c);
  gpu_->Submit(a, 1, Kernel(1, 100), 0);
  Op together = Kernel(8, 50);
  together.kernel.together = true;
  gpu_->Submit(b, 2, together, 0);
  RunOut();
  EXPECT_EQ(log_.End(2), 150);
}

TEST_F(ModelTest, BusCopiesRunBesideKernelsAndQueueByDirection) {
  DeviceSpec spec = Free();
  spec.host_bytes_per_ns = 10;
  spec.copy_latency_ns = 0;
  Use(spec);
  const ContextId c = gpu_->CreateContext({});
  const StreamId a = Stream(c), b = Stream(c), d = Stream(c);
  Op up;
  up.kind = OpKind::kHostToDevice;
  up.bytes = 1000;
  Op down = up;
  down.kind = OpKind::kDeviceToHost;
  gpu_->Submit(a, 1, up, 0);
  gpu_->Submit(b, 2, up, 0);
  gpu_->Submit(d, 3, down, 0);
  RunOut();
  EXPECT_EQ(log_.End(1), 100);
  EXPECT_EQ(log_.End(2), 200);
  EXPECT_EQ(log_.End(3), 100);
}

TEST_F(ModelTest, TwoHungryKernelsShareTheBandwidth) {
  DeviceSpec spec = Free();
  spec.device_bytes_per_ns = 100;
  Use(spec);
  const ContextId c = gpu_->CreateContext({});
  Op op = Kernel(1, 1000);
  op.kernel.bytes_per_ns_per_block = 100;
  gpu_->Submit(Stream(c), 1, op, 0);
  gpu_->Submit(Stream(c), 2, op, 500);
  RunOut();
  EXPECT_EQ(log_.End(1), 1500);
  EXPECT_EQ(log_.End(2), 2000);
}

TEST_F(ModelTest, TheClockFallsWithThePower) {
  DeviceSpec spec = Free();
  spec.power = {.limit_watts = 400, .idle_watts = 100, .floor = 0.1};
  Use(spec);
  const StreamId s = Stream(gpu_->CreateContext({}));
  Op op = Kernel(4, 1000);
  op.kernel.watts_per_block = 175;  // 800 W in all: half the clock.
  gpu_->Submit(s, 1, op, 0);
  RunOut();
  EXPECT_EQ(log_.End(1), 2000);
}

TEST_F(ModelTest, DestroyingAContextFreesItsSmsAndReleasesItsWaiters) {
  Use(Free());
  const ContextId dead = gpu_->CreateContext({}), alive = gpu_->CreateContext({});
  const StreamId a = Stream(dead), b = Stream(alive);
  gpu_->Submit(a, 1, Kernel(8, 50 * kMs), 0);
  gpu_->Submit(a, 2, Kernel(8, 50 * kMs), 0);
  Op join;
  join.after = {2};
  gpu_->Submit(b, 3, join, 0);
  gpu_->Submit(b, 4, Kernel(8, 100), 0);
  gpu_->DestroyContext(dead, 1 * kMs);
  RunOut();
  EXPECT_EQ(log_.cancelled, (std::vector<OpId>{1, 2}));
  EXPECT_EQ(log_.End(4), 1 * kMs + 140 * kUs + 100);
  EXPECT_TRUE(gpu_->Idle());
}

TEST_F(ModelTest, DestroyingAContextInsideAGraphLeavesNothingBehind) {
  Use(DeviceSpec{});
  const ContextId dead = gpu_->CreateContext({}), alive = gpu_->CreateContext({});
  auto shape = std::make_shared<GraphShape>();
  for (uint32_t i = 0; i < 20; ++i) {
    GraphNode node;
    node.op = Kernel(500, 30 * kUs);
    if (i > 0) node.needs = {i - 1};
    shape->nodes.push_back(node);
  }
  Op graph;
  graph.kind = OpKind::kGraph;
  graph.graph = shape;
  // At every phase of a launch: arriving, placed, paused, between nodes.
  StreamId b = Stream(alive);
  OpId id = 1;
  ContextId victim = dead;
  for (int64_t at = 1 * kMs; at < 100 * kMs; at += 1'337 * kUs) {
    StreamId a = Stream(victim);
    gpu_->Submit(a, id++, graph, at);
    gpu_->Submit(b, id++, Kernel(132, 700 * kUs), at);
    gpu_->DestroyContext(victim, at + id % 977 * kUs);
    victim = gpu_->CreateContext({});
  }
  RunOut();
  EXPECT_TRUE(gpu_->Idle());
}

// A job of many small kernels beside a flood of long ones from another process: the tail that time
// slices give.
TEST_F(ModelTest, ShowsTheTailOfTimeSlices) {
  Use(DeviceSpec{});
  const StreamId rt = Stream(gpu_->CreateContext({})), flood = Stream(gpu_->CreateContext({}));
  auto shape = std::make_shared<GraphShape>();
  for (uint32_t i = 0; i < 40; ++i) {
    GraphNode node;
    node.op = Kernel(100, 20 * kUs);
    if (i > 0) node.needs = {i - 1};
    shape->nodes.push_back(node);
  }
  Op job;
  job.kind = OpKind::kGraph;
  job.graph = shape;
  gpu_->Submit(rt, 1, job, 0);
  RunOut();
  const int64_t alone = log_.End(1);
  OpId id = 1000;
  for (int i = 0; i < 2000; ++i) gpu_->Submit(flood, id++, Kernel(132, 1'650 * kUs), 2 * kMs);
  int64_t worst = 0;
  for (int i = 1; i <= 50; ++i) {
    const int64_t release = 10 * kMs * i + 73 * kUs * i;
    gpu_->Submit(rt, 1 + static_cast<OpId>(i), job, release);
    gpu_->Advance(release + 9 * kMs);
    worst = std::max(worst, log_.End(1 + static_cast<OpId>(i)) - release);
  }
  EXPECT_GT(worst, 3 * alone);
  EXPECT_LT(worst, 4 * alone);
}

// The same under one server and without priorities: each small kernel waits for a long one, jobs
// pile up.
TEST_F(ModelTest, ShowsTheCollapseUnderOneServer) {
  Use(DeviceSpec{});
  const StreamId rt = Stream(gpu_->CreateContext({1, 0, UINT32_MAX}));
  const StreamId flood = Stream(gpu_->CreateContext({1, 0, UINT32_MAX}));
  OpId id = 1;
  for (int i = 0; i < 500; ++i) gpu_->Submit(flood, id++, Kernel(264, 1'650 * kUs), 0);
  const OpId first = id;
  for (int i = 0; i < 40; ++i) gpu_->Submit(rt, id++, Kernel(100, 20 * kUs), 1 * kMs);
  gpu_->Advance(1 * kMs + 40 * 20 * kUs * 20);
  EXPECT_FALSE(gpu_->Finished(id - 1));
  RunOut();
  EXPECT_GT(log_.End(id - 1) - log_.started.at({first, kWholeOp}), 40 * 1'500 * kUs);
}

TEST_F(ModelTest, TheSameCallsGiveTheSameHistory) {
  auto history = [] {
    Recorder log;
    Gpu gpu(DeviceSpec{}, &log);
    std::vector<StreamId> streams;
    for (uint64_t i = 0; i < 6; ++i) {
      streams.push_back(gpu.CreateStream(gpu.CreateContext({i % 3, 0, UINT32_MAX}), {}));
    }
    uint32_t seed = 12345;
    for (OpId id = 1; id < 3000; ++id) {
      seed = seed * 1664525 + 1013904223;
      gpu.Submit(streams[seed % streams.size()], id,
                 Kernel(1 + seed % 700, 1 + (seed >> 8) % 400'000),
                 static_cast<int64_t>(id) * 20'000);
    }
    while (gpu.NextEventAt() != INT64_MAX) gpu.Advance(gpu.NextEventAt());
    EXPECT_TRUE(gpu.Idle());
    return log.finished;
  };
  EXPECT_EQ(history(), history());
}

}  // namespace
}  // namespace rubato::softgpu
