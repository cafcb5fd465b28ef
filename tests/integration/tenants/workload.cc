// One program that uses the driver in many ways and says what came out: values that depend on the
// order in which everything ran.
//
//   workload [--rounds N] [--threads N]
//
// Says "NAME CHECKSUM" for each way and "done" at the end. The same lines must come out without
// Rubato and under it, in either class.
#include <cinttypes>
#include <cstdio>
#include <thread>
#include <vector>

#include "tests/integration/tenants/gpu.h"

namespace rubato::test_tenant {
namespace {

constexpr size_t kWords = 64;
constexpr uint64_t kBlockNs = 20'000;

void Say(const char* name, uint64_t checksum) {
  std::printf("%s %016" PRIx64 "\n", name, checksum);
}

CUstream NewStream(const Gpu& gpu, unsigned flags = CU_STREAM_NON_BLOCKING) {
  CUstream stream = nullptr;
  Check(gpu.call().StreamCreate(&stream, flags), "cuStreamCreate");
  return stream;
}

CUevent NewEvent(const Gpu& gpu) {
  CUevent event = nullptr;
  Check(gpu.call().EventCreate(&event, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
  return event;
}

// A chain of kernels, copies and sets in one stream.
uint64_t OneStream(const Gpu& gpu, int64_t rounds) {
  const CUdeviceptr a = gpu.Words(kWords);
  const CUdeviceptr b = gpu.Words(kWords);
  CUstream stream = NewStream(gpu);
  std::vector<uint32_t> host(kWords, 7);
  for (int64_t i = 0; i < rounds; ++i) {
    gpu.Hash(stream, a, kWords, static_cast<uint64_t>(i), kBlockNs);
    Check(gpu.call().MemcpyDtoDAsync(b, a, kWords * 2, stream), "cuMemcpyDtoDAsync");
    gpu.Hash(stream, b, kWords, static_cast<uint64_t>(i), kBlockNs);
    Check(gpu.call().MemsetD32Async(a, static_cast<unsigned>(i), 3, stream), "cuMemsetD32Async");
    if (i % 3 == 0) {
      Check(gpu.call().MemcpyDtoHAsync(host.data(), b, kWords * 4, stream), "cuMemcpyDtoHAsync");
      Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
      Check(gpu.call().MemcpyHtoDAsync(a, host.data(), kWords, stream), "cuMemcpyHtoDAsync");
    }
  }
  Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
  const uint64_t sum = Checksum(gpu.Read(a, kWords)) ^ (Checksum(gpu.Read(b, kWords)) << 1);
  Check(gpu.call().StreamDestroy(stream), "cuStreamDestroy");
  Check(gpu.call().MemFree(a), "cuMemFree");
  Check(gpu.call().MemFree(b), "cuMemFree");
  return sum;
}

// Two streams that hand one buffer to and fro by events.
uint64_t EventOrder(const Gpu& gpu, int64_t rounds) {
  const CUdeviceptr data = gpu.Words(kWords);
  CUstream streams[2] = {NewStream(gpu), NewStream(gpu)};
  CUevent events[2] = {NewEvent(gpu), NewEvent(gpu)};
  for (int64_t i = 0; i < rounds; ++i) {
    const int me = static_cast<int>(i % 2);
    if (i > 0) {
      Check(gpu.call().StreamWaitEvent(streams[me], events[1 - me], 0), "cuStreamWaitEvent");
    }
    // Uneven lengths: without the events the shorter ones would come first.
    gpu.Hash(streams[me], data, kWords, static_cast<uint64_t>(i), kBlockNs * (me == 0 ? 4 : 1));
    Check(gpu.call().EventRecord(events[me], streams[me]), "cuEventRecord");
  }
  Check(gpu.call().EventSynchronize(events[(rounds - 1) % 2]), "cuEventSynchronize");
  const uint64_t sum = Checksum(gpu.Read(data, kWords));
  for (int i = 0; i < 2; ++i) {
    Check(gpu.call().EventDestroy(events[i]), "cuEventDestroy");
    Check(gpu.call().StreamDestroy(streams[i]), "cuStreamDestroy");
  }
  Check(gpu.call().MemFree(data), "cuMemFree");
  return sum;
}

// The default stream waits for blocking streams, and they for it.
uint64_t LegacyBarrier(const Gpu& gpu, int64_t rounds) {
  const CUdeviceptr data = gpu.Words(kWords);
  CUstream blocking = NewStream(gpu, CU_STREAM_DEFAULT);
  for (int64_t i = 0; i < rounds; ++i) {
    gpu.Hash(blocking, data, kWords, static_cast<uint64_t>(2 * i), kBlockNs * 3);
    gpu.Hash(nullptr, data, kWords, static_cast<uint64_t>(2 * i + 1), kBlockNs);
  }
  Check(gpu.call().CtxSynchronize(), "cuCtxSynchronize");
  const uint64_t sum = Checksum(gpu.Read(data, kWords));
  Check(gpu.call().StreamDestroy(blocking), "cuStreamDestroy");
  Check(gpu.call().MemFree(data), "cuMemFree");
  return sum;
}

// Kernels captured from two streams into one graph, launched again and again.
uint64_t CapturedGraph(const Gpu& gpu, int64_t rounds) {
  const CUdeviceptr data = gpu.Words(kWords);
  CUstream main = NewStream(gpu);
  CUstream side = NewStream(gpu);
  CUevent fork = NewEvent(gpu);
  CUevent join = NewEvent(gpu);
  Check(gpu.call().StreamBeginCapture(main, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
        "cuStreamBeginCapture");
  gpu.Hash(main, data, kWords / 2, 1, kBlockNs);
  Check(gpu.call().EventRecord(fork, main), "cuEventRecord");
  Check(gpu.call().StreamWaitEvent(side, fork, 0), "cuStreamWaitEvent");
  gpu.Hash(side, data + kWords * 2, kWords / 2, 2, kBlockNs);
  gpu.Hash(main, data, kWords / 2, 3, kBlockNs);
  Check(gpu.call().EventRecord(join, side), "cuEventRecord");
  Check(gpu.call().StreamWaitEvent(main, join, 0), "cuStreamWaitEvent");
  gpu.Hash(main, data, kWords, 4, kBlockNs);
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  Check(gpu.call().StreamIsCapturing(main, &status), "cuStreamIsCapturing");
  if (status != CU_STREAM_CAPTURE_STATUS_ACTIVE) Check(CUDA_ERROR_UNKNOWN, "an active capture");
  CUgraph graph = nullptr;
  Check(gpu.call().StreamEndCapture(main, &graph), "cuStreamEndCapture");
  // A marker that slipped into the capture would be one node too many in the values below only by
  // luck; what it does break is a second executable of the same graph.
  CUgraphExec first = nullptr;
  CUgraphExec second = nullptr;
  Check(gpu.call().GraphInstantiateWithFlags(&first, graph, 0), "cuGraphInstantiateWithFlags");
  Check(gpu.call().GraphInstantiateWithFlags(&second, graph, 0), "cuGraphInstantiateWithFlags");
  for (int64_t i = 0; i < rounds; ++i) {
    Check(gpu.call().GraphLaunch(i % 2 == 0 ? first : second, main), "cuGraphLaunch");
    gpu.Hash(main, data, kWords, static_cast<uint64_t>(10 + i), kBlockNs);
  }
  Check(gpu.call().StreamSynchronize(main), "cuStreamSynchronize");
  const uint64_t sum = Checksum(gpu.Read(data, kWords));
  Check(gpu.call().GraphExecDestroy(first), "cuGraphExecDestroy");
  Check(gpu.call().GraphExecDestroy(second), "cuGraphExecDestroy");
  Check(gpu.call().GraphDestroy(graph), "cuGraphDestroy");
  Check(gpu.call().EventDestroy(fork), "cuEventDestroy");
  Check(gpu.call().EventDestroy(join), "cuEventDestroy");
  Check(gpu.call().StreamDestroy(side), "cuStreamDestroy");
  Check(gpu.call().StreamDestroy(main), "cuStreamDestroy");
  Check(gpu.call().MemFree(data), "cuMemFree");
  return sum;
}

// A graph made by hand: a chain of kernel nodes.
uint64_t BuiltGraph(const Gpu& gpu, int64_t rounds) {
  const CUdeviceptr data = gpu.Words(kWords);
  CUstream stream = NewStream(gpu);
  CUgraph graph = nullptr;
  Check(gpu.call().GraphCreate(&graph, 0), "cuGraphCreate");
  CUgraphNode previous = nullptr;
  for (uint64_t i = 0; i < 5; ++i) {
    CUdeviceptr target = data;
    uint64_t words = kWords;
    uint64_t key = i;
    uint64_t block_ns = kBlockNs;
    void* parameters[] = {&target, &words, &key, &block_ns};
    CUDA_KERNEL_NODE_PARAMS node = {};
    node.func = gpu.hash();
    node.gridDimX = node.gridDimY = node.gridDimZ = 1;
    node.blockDimX = 32;
    node.blockDimY = node.blockDimZ = 1;
    node.kernelParams = parameters;
    CUgraphNode added = nullptr;
    Check(gpu.call().GraphAddKernelNode(&added, graph, i == 0 ? nullptr : &previous, i == 0 ? 0 : 1,
                                        &node),
          "cuGraphAddKernelNode");
    previous = added;
  }
  CUgraphExec executable = nullptr;
  Check(gpu.call().GraphInstantiateWithFlags(&executable, graph, 0), "cuGraphInstantiateWithFlags");
  for (int64_t i = 0; i < rounds; ++i) {
    Check(gpu.call().GraphLaunch(executable, stream), "cuGraphLaunch");
  }
  Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
  const uint64_t sum = Checksum(gpu.Read(data, kWords));
  Check(gpu.call().GraphExecDestroy(executable), "cuGraphExecDestroy");
  Check(gpu.call().GraphDestroy(graph), "cuGraphDestroy");
  Check(gpu.call().StreamDestroy(stream), "cuStreamDestroy");
  Check(gpu.call().MemFree(data), "cuMemFree");
  return sum;
}

// Streams that come and go: their handles are used again for others.
uint64_t RecycledStreams(const Gpu& gpu, int64_t rounds) {
  const CUdeviceptr data = gpu.Words(kWords);
  for (int64_t i = 0; i < rounds; ++i) {
    CUstream stream = NewStream(gpu);
    gpu.Hash(stream, data, kWords, static_cast<uint64_t>(i), kBlockNs);
    Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
    Check(gpu.call().StreamDestroy(stream), "cuStreamDestroy");
  }
  const uint64_t sum = Checksum(gpu.Read(data, kWords));
  Check(gpu.call().MemFree(data), "cuMemFree");
  return sum;
}

// cuLaunchKernelEx, as the vendor's libraries launch.
uint64_t LaunchEx(const Gpu& gpu, int64_t rounds) {
  CUdeviceptr data = gpu.Words(kWords);
  CUstream stream = NewStream(gpu);
  for (int64_t i = 0; i < rounds; ++i) {
    uint64_t words = kWords;
    uint64_t key = static_cast<uint64_t>(i);
    uint64_t block_ns = kBlockNs;
    void* parameters[] = {&data, &words, &key, &block_ns};
    CUlaunchConfig config = {};
    config.gridDimX = config.gridDimY = config.gridDimZ = 1;
    config.blockDimX = 32;
    config.blockDimY = config.blockDimZ = 1;
    config.hStream = stream;
    Check(gpu.call().LaunchKernelEx(&config, gpu.hash(), parameters, nullptr), "cuLaunchKernelEx");
  }
  Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
  const uint64_t sum = Checksum(gpu.Read(data, kWords));
  Check(gpu.call().StreamDestroy(stream), "cuStreamDestroy");
  Check(gpu.call().MemFree(data), "cuMemFree");
  return sum;
}

// Threads at once, each with a buffer and a stream, or with its own default stream.
uint64_t Threads(const Gpu& gpu, int64_t rounds, int64_t count, bool own_default) {
  std::vector<uint64_t> sums(static_cast<size_t>(count));
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < count; ++t) {
    threads.emplace_back([&gpu, &sums, rounds, t, own_default] {
      gpu.MakeCurrent();
      const CUdeviceptr data = gpu.Words(kWords);
      CUstream stream = own_default ? nullptr : NewStream(gpu);
      for (int64_t i = 0; i < rounds; ++i) {
        gpu.Hash(stream, data, kWords, static_cast<uint64_t>(t * 1000 + i), kBlockNs);
        if (i % 4 == 3) Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
      }
      Check(gpu.call().StreamSynchronize(stream), "cuStreamSynchronize");
      sums[static_cast<size_t>(t)] = Checksum(gpu.Read(data, kWords));
      if (!own_default) Check(gpu.call().StreamDestroy(stream), "cuStreamDestroy");
      Check(gpu.call().MemFree(data), "cuMemFree");
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t sum = 0;
  for (const uint64_t value : sums) sum = sum * 31 + value;
  return sum;
}

}  // namespace

int Workload(int argc, char** argv) {
  const int64_t rounds = Option(argc, argv, "--rounds", 12);
  const int64_t threads = Option(argc, argv, "--threads", 4);
  const Gpu& gpu = Gpu::Open();
  Say("one-stream", OneStream(gpu, rounds));
  Say("event-order", EventOrder(gpu, rounds));
  Say("legacy-barrier", LegacyBarrier(gpu, rounds));
  Say("captured-graph", CapturedGraph(gpu, rounds));
  Say("built-graph", BuiltGraph(gpu, rounds));
  Say("recycled-streams", RecycledStreams(gpu, rounds));
  Say("launch-ex", LaunchEx(gpu, rounds));
  Say("threads", Threads(gpu, rounds, threads, false));
  Say("per-thread-streams", Threads(Gpu::Open(/*per_thread=*/true), rounds, threads, true));
  std::puts("done");
  return 0;
}

}  // namespace rubato::test_tenant
