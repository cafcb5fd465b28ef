// The libcuda stand-in and the device process, as programs see them: values, order, rules and
// refusals.
#include <cuda.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "softgpu/programs/programs.h"
#include "tests/unit/softgpu/device_fixture.h"

namespace rubato::softgpu {
namespace {

constexpr uint32_t kWords = 64;
constexpr uint64_t kUs = 1'000;

uint32_t Mix(uint32_t x, uint32_t key, uint32_t index) {
  x ^= key;
  x *= 0x9E3779B1u;
  x ^= x >> 15;
  x *= 0x85EBCA77u;
  x ^= x >> 13;
  return x + index;
}

std::vector<uint32_t> Hashed(std::vector<uint32_t> v, uint32_t key) {
  for (uint32_t i = 0; i < v.size(); ++i) v[i] = Mix(v[i], key, i);
  return v;
}

#define OK(call) ASSERT_EQ(call, CUDA_SUCCESS)

// A context with the program loaded.
struct Cuda {
  Cuda() {
    EXPECT_EQ(cuInit(0), CUDA_SUCCESS);
    EXPECT_EQ(cuDeviceGet(&device, 0), CUDA_SUCCESS);
    EXPECT_EQ(cuDevicePrimaryCtxRetain(&context, device), CUDA_SUCCESS);
    EXPECT_EQ(cuCtxSetCurrent(context), CUDA_SUCCESS);
    EXPECT_EQ(cuModuleLoadData(&module, kProgram), CUDA_SUCCESS);
  }
  CUfunction Function(const char* name) {
    CUfunction f = nullptr;
    EXPECT_EQ(cuModuleGetFunction(&f, module, name), CUDA_SUCCESS);
    return f;
  }
  CUstream Stream(unsigned flags = CU_STREAM_NON_BLOCKING) {
    CUstream s = nullptr;
    EXPECT_EQ(cuStreamCreate(&s, flags), CUDA_SUCCESS);
    return s;
  }
  CUdeviceptr Buffer(uint32_t words = kWords) {
    CUdeviceptr p = 0;
    EXPECT_EQ(cuMemAlloc(&p, size_t{words} * 4), CUDA_SUCCESS);
    EXPECT_EQ(cuMemsetD32(p, 7, words), CUDA_SUCCESS);
    EXPECT_EQ(cuCtxSynchronize(), CUDA_SUCCESS);
    return p;
  }
  CUresult Hash(CUstream s, CUdeviceptr out, CUdeviceptr in, uint32_t key, uint64_t ns = 5 * kUs,
                uint32_t blocks = 1) {
    uint32_t count = kWords;
    void* args[] = {&out, &in, &count, &key, &ns};
    return cuLaunchKernel(Function("rb_hash"), blocks, 1, 1, 64, 1, 1, 0, s, args, nullptr);
  }
  CUresult Spin(CUstream s, uint64_t ns, uint32_t blocks = 1, uint32_t threads = 32) {
    void* args[] = {&ns};
    return cuLaunchKernel(Function("rb_spin"), blocks, 1, 1, threads, 1, 1, 0, s, args, nullptr);
  }
  std::vector<uint32_t> Read(CUdeviceptr p, uint32_t words = kWords) {
    std::vector<uint32_t> v(words);
    EXPECT_EQ(cuMemcpyDtoH(v.data(), p, size_t{words} * 4), CUDA_SUCCESS);
    return v;
  }
  CUdevice device = 0;
  CUcontext context = nullptr;
  CUmodule module = nullptr;
};

// A word in a shared file that the GPU may write.
struct SharedWord {
  SharedWord() {
    fd = memfd_create("word", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT_EQ(ftruncate(fd, 4096), 0);
    word = static_cast<volatile uint32_t*>(
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  }
  CUdeviceptr Register() {
    EXPECT_EQ(cuMemHostRegister(const_cast<uint32_t*>(word), 4096, CU_MEMHOSTREGISTER_DEVICEMAP),
              CUDA_SUCCESS);
    CUdeviceptr p = 0;
    EXPECT_EQ(cuMemHostGetDevicePointer(&p, const_cast<uint32_t*>(word), 0), CUDA_SUCCESS);
    return p;
  }
  int fd;
  volatile uint32_t* word;
};

class DriverTest : public DeviceTest {};

TEST_F(DriverTest, ValuesProveTheOrderAcrossStreamsAndEvents) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream a = cuda.Stream(), b = cuda.Stream();
    CUdeviceptr p = cuda.Buffer();
    CUevent event;
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    std::vector<uint32_t> expect(kWords, 7);
    for (uint32_t i = 0; i < 50; ++i) {
      CUstream from = i % 2 ? a : b, to = i % 2 ? b : a;
      OK(cuda.Hash(from, p, p, i, (50 - i) * kUs));
      OK(cuEventRecord(event, from));
      OK(cuStreamWaitEvent(to, event, 0));
      expect = Hashed(expect, i);
    }
    OK(cuCtxSynchronize());
    EXPECT_EQ(cuda.Read(p), expect);
  });
}

TEST_F(DriverTest, EveryWayOfCopyingMovesTheSameBytes) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream s = cuda.Stream();
    const size_t n = 300'000;  // Larger than what is staged.
    std::vector<unsigned char> in(n), out(n);
    for (size_t i = 0; i < n; ++i) in[i] = static_cast<unsigned char>(i * 31 + i / 256);
    CUdeviceptr a, b, managed;
    void* pinned;
    OK(cuMemAlloc(&a, n));
    OK(cuMemAlloc(&b, n));
    OK(cuMemAllocManaged(&managed, n, CU_MEM_ATTACH_GLOBAL));
    OK(cuMemHostAlloc(&pinned, n, 0));
    OK(cuMemcpyHtoDAsync(a, in.data(), n, s));
    OK(cuMemcpyDtoDAsync(b, a, n, s));
    OK(cuMemcpyAsync(managed, b, n, s));
    OK(cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(pinned), managed, n, s));
    OK(cuStreamSynchronize(s));
    EXPECT_EQ(std::memcmp(pinned, in.data(), n), 0);
    EXPECT_EQ(std::memcmp(reinterpret_cast<void*>(managed), in.data(), n), 0);
    OK(cuMemcpyDtoHAsync(out.data(), b, n, s));
    EXPECT_EQ(out, in);
    // Staged sources may change at once.
    unsigned char small[64];
    std::memset(small, 1, sizeof small);
    OK(cuda.Spin(s, 500 * kUs));
    OK(cuMemcpyHtoDAsync(a, small, sizeof small, s));
    std::memset(small, 2, sizeof small);
    OK(cuMemcpyDtoH(small, a, 0));
    OK(cuStreamSynchronize(s));
    OK(cuMemcpyDtoH(out.data(), a, sizeof small));
    EXPECT_EQ(out[0], 1);
    EXPECT_EQ(out[63], 1);
    // A box inside a pitched allocation, and an array.
    CUdeviceptr pitched;
    size_t pitch;
    OK(cuMemAllocPitch(&pitched, &pitch, 100, 50, 4));
    OK(cuMemsetD2D8(pitched, pitch, 9, 100, 50));
    CUDA_MEMCPY2D box{};
    box.srcMemoryType = CU_MEMORYTYPE_HOST;
    box.srcHost = in.data();
    box.srcPitch = 20;
    box.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    box.dstDevice = pitched;
    box.dstPitch = pitch;
    box.dstXInBytes = 8;
    box.dstY = 3;
    box.WidthInBytes = 20;
    box.Height = 10;
    OK(cuMemcpy2D(&box));
    CUarray array;
    CUDA_ARRAY_DESCRIPTOR shape{100, 50, CU_AD_FORMAT_UNSIGNED_INT8, 1};
    OK(cuArrayCreate(&array, &shape));
    CUDA_MEMCPY2D to_array{};
    to_array.srcMemoryType = CU_MEMORYTYPE_DEVICE;
    to_array.srcDevice = pitched;
    to_array.srcPitch = pitch;
    to_array.dstMemoryType = CU_MEMORYTYPE_ARRAY;
    to_array.dstArray = array;
    to_array.WidthInBytes = 100;
    to_array.Height = 50;
    OK(cuMemcpy2D(&to_array));
    std::vector<unsigned char> rows(100 * 50);
    CUDA_MEMCPY2D back{};
    back.srcMemoryType = CU_MEMORYTYPE_ARRAY;
    back.srcArray = array;
    back.dstMemoryType = CU_MEMORYTYPE_HOST;
    back.dstHost = rows.data();
    back.dstPitch = 100;
    back.WidthInBytes = 100;
    back.Height = 50;
    OK(cuMemcpy2D(&back));
    for (size_t y = 0; y < 50; ++y) {
      for (size_t x = 0; x < 100; ++x) {
        const bool inside = x >= 8 && x < 28 && y >= 3 && y < 13;
        ASSERT_EQ(rows[y * 100 + x], inside ? in[(y - 3) * 20 + (x - 8)] : 9) << x << "," << y;
      }
    }
    OK(cuArrayDestroy(array));
  });
}

TEST_F(DriverTest, MemoryIsOneForAllProgramsAndRunsOutCleanly) {
  Set("MEMORY_BYTES", "67108864");
  StartDevice();
  int ready[2], go[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(go), 0);
  const pid_t holder = Start([&] {
    Cuda cuda;
    CUdeviceptr p;
    OK(cuMemAlloc(&p, 40 << 20));
    char byte = 0;
    EXPECT_EQ(write(ready[1], &byte, 1), 1);
    EXPECT_EQ(read(go[0], &byte, 1), 1);
  });
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  Run([] {
    Cuda cuda;
    size_t free_bytes, total;
    OK(cuMemGetInfo(&free_bytes, &total));
    EXPECT_EQ(total, 64u << 20);
    EXPECT_EQ(free_bytes, 24u << 20);
    CUdeviceptr p;
    EXPECT_EQ(cuMemAlloc(&p, 25 << 20), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc(&p, 24 << 20));
    OK(cuMemFree(p));
    CUstream s = cuda.Stream();
    // Stream-ordered memory is freed when the stream gets there.
    for (int i = 0; i < 10; ++i) {
      OK(cuMemAllocAsync(&p, 20 << 20, s));
      OK(cuda.Spin(s, 20 * kUs));
      OK(cuMemFreeAsync(p, s));
    }
    OK(cuStreamSynchronize(s));
    OK(cuMemGetInfo(&free_bytes, &total));
    EXPECT_EQ(free_bytes, 24u << 20);
  });
  ASSERT_EQ(write(go[1], &byte, 1), 1);
  EXPECT_EQ(Wait(holder), 0);
  Run([] {
    Cuda cuda;
    EXPECT_TRUE(Eventually([] {
      size_t free_bytes, total;
      return cuMemGetInfo(&free_bytes, &total) == CUDA_SUCCESS && free_bytes == total;
    }));
  });
}

TEST_F(DriverTest, VirtualMemoryIsMappedWhereItIsReserved) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUmemAllocationProp prop{};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location = {CU_MEM_LOCATION_TYPE_DEVICE, {0}};
    size_t grain;
    OK(cuMemGetAllocationGranularity(&grain, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    CUdeviceptr va;
    OK(cuMemAddressReserve(&va, 2 * grain, 0, 0, 0));
    CUmemGenericAllocationHandle one, two;
    OK(cuMemCreate(&one, grain, &prop, 0));
    OK(cuMemCreate(&two, grain, &prop, 0));
    OK(cuMemMap(va, grain, 0, one, 0));
    OK(cuMemMap(va + grain, grain, 0, two, 0));
    CUmemAccessDesc access{prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    OK(cuMemSetAccess(va, 2 * grain, &access, 1));
    // A copy across the seam.
    std::vector<uint32_t> in(1000), out(1000);
    for (uint32_t i = 0; i < in.size(); ++i) in[i] = i * i;
    OK(cuMemcpyHtoD(va + grain - 2000, in.data(), 4000));
    OK(cuMemcpyDtoH(out.data(), va + grain - 2000, 4000));
    EXPECT_EQ(in, out);
    OK(cuMemRelease(one));
    OK(cuMemUnmap(va, 2 * grain));
    OK(cuMemRelease(two));
    OK(cuMemAddressFree(va, 2 * grain));
    size_t free_bytes, total;
    OK(cuMemGetInfo(&free_bytes, &total));
    EXPECT_EQ(free_bytes, total);
  });
}

TEST_F(DriverTest, LegacyStreamWaitsForBlockingStreamsOnly) {
  StartDevice();
  Run([] {
    Cuda cuda;
    SharedWord shared;
    CUdeviceptr gate = shared.Register();
    CUstream blocking = cuda.Stream(CU_STREAM_DEFAULT), free_stream = cuda.Stream();
    CUdeviceptr p = cuda.Buffer();
    OK(cuStreamWaitValue32(blocking, gate, 1, CU_STREAM_WAIT_VALUE_GEQ));
    OK(cuda.Hash(blocking, p, p, 1));
    OK(cuda.Hash(nullptr, p, p, 2));
    OK(cuda.Spin(free_stream, 10 * kUs));
    OK(cuStreamSynchronize(free_stream));
    EXPECT_EQ(cuStreamQuery(blocking), CUDA_ERROR_NOT_READY);
    EXPECT_EQ(cuStreamQuery(nullptr), CUDA_ERROR_NOT_READY);
    shared.word[0] = 1;
    OK(cuStreamSynchronize(nullptr));
    EXPECT_EQ(cuda.Read(p), Hashed(Hashed(std::vector<uint32_t>(kWords, 7), 1), 2));
  });
}

TEST_F(DriverTest, PerThreadEntryPointsUseTheThreadsOwnStream) {
  StartDevice();
  Run([] {
    Cuda cuda;
    SharedWord shared;
    CUdeviceptr gate = shared.Register();
    using Synchronize = CUresult (*)(CUstream);
    using WaitValue = CUresult (*)(CUstream, CUdeviceptr, cuuint32_t, unsigned);
    Synchronize synchronize = nullptr;
    WaitValue wait_value = nullptr;
    const cuuint64_t per_thread = CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    OK(cuGetProcAddress("cuStreamSynchronize", reinterpret_cast<void**>(&synchronize), 13000,
                        per_thread, nullptr));
    OK(cuGetProcAddress("cuStreamWaitValue32", reinterpret_cast<void**>(&wait_value), 13000,
                        per_thread, nullptr));
    // The main thread's stream is held; another thread's is not.
    OK(wait_value(nullptr, gate, 1, CU_STREAM_WAIT_VALUE_GEQ));
    std::thread([&] {
      OK(cuCtxSetCurrent(cuda.context));
      OK(cuda.Spin(CU_STREAM_PER_THREAD, 10 * kUs));
      OK(synchronize(nullptr));
    }).join();
    EXPECT_EQ(cuStreamQuery(CU_STREAM_PER_THREAD), CUDA_ERROR_NOT_READY);
    shared.word[0] = 1;
    OK(synchronize(nullptr));
  });
}

TEST_F(DriverTest, ProcAddressKnowsVersionsAndForms) {
  StartDevice();
  Run([] {
    Cuda cuda;
    void *newest = nullptr, *old = nullptr, *none = nullptr;
    CUdriverProcAddressQueryResult status;
    OK(cuGetProcAddress_v2("cuCtxCreate", &newest, 13000, 0, &status));
    OK(cuGetProcAddress_v2("cuCtxCreate", &old, 11000, 0, &status));
    EXPECT_NE(newest, old);
    EXPECT_EQ(cuGetProcAddress_v2("cuCtxCreate", &none, 2000, 0, &status), CUDA_ERROR_NOT_FOUND);
    EXPECT_EQ(status, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);
    EXPECT_EQ(cuGetProcAddress_v2("cuNoSuchCall", &none, 13000, 0, &status), CUDA_ERROR_NOT_FOUND);
    EXPECT_EQ(status, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    EXPECT_EQ(none, nullptr);
  });
}

TEST_F(DriverTest, GlobalCaptureRefusesUnsafeCallsAndIsSpoiled) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream s = cuda.Stream();
    CUgraph graph;
    CUdeviceptr p;
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuda.Spin(s, kUs));
    std::thread([&] {
      OK(cuCtxSetCurrent(cuda.context));
      EXPECT_EQ(cuMemAlloc(&p, 4096), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }).join();
    EXPECT_EQ(cuda.Spin(s, kUs), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    EXPECT_EQ(cuStreamEndCapture(s, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // Thread-local: only the capturing thread is bound. Relaxed: nobody.
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    std::thread([&] {
      OK(cuCtxSetCurrent(cuda.context));
      OK(cuMemAlloc(&p, 4096));
      OK(cuMemFree(p));
    }).join();
    OK(cuStreamEndCapture(s, &graph));
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuMemAlloc(&p, 4096));
    OK(cuStreamEndCapture(s, &graph));
    // A thread may opt out for itself.
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    OK(cuMemFree(p));
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    OK(cuStreamEndCapture(s, &graph));
  });
}

TEST_F(DriverTest, CaptureRulesOfStreams) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream s = cuda.Stream(), blocking = cuda.Stream(CU_STREAM_DEFAULT), other = cuda.Stream();
    CUgraph graph = nullptr;
    CUevent event;
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    // The legacy stream would wait for the capturing blocking stream.
    OK(cuStreamBeginCapture(blocking, CU_STREAM_CAPTURE_MODE_GLOBAL));
    EXPECT_EQ(cuda.Spin(nullptr, kUs), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    EXPECT_EQ(cuStreamEndCapture(blocking, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    EXPECT_EQ(cuStreamBeginCapture(nullptr, CU_STREAM_CAPTURE_MODE_GLOBAL),
              CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    // Synchronising with, or asking, a capturing stream spoils it.
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    EXPECT_EQ(cuStreamSynchronize(s), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    EXPECT_EQ(cuStreamEndCapture(s, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // A forked stream must be joined.
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuda.Spin(s, kUs));
    OK(cuEventRecord(event, s));
    OK(cuStreamWaitEvent(other, event, 0));
    OK(cuda.Spin(other, kUs));
    CUstreamCaptureStatus status;
    OK(cuStreamIsCapturing(other, &status));
    EXPECT_EQ(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
    EXPECT_EQ(cuStreamEndCapture(s, &graph), CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    OK(cuStreamIsCapturing(other, &status));
    EXPECT_EQ(status, CU_STREAM_CAPTURE_STATUS_NONE);
    // A captured event cannot be asked for.
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuEventRecord(event, s));
    EXPECT_EQ(cuEventQuery(event), CUDA_ERROR_CAPTURED_EVENT);
    EXPECT_EQ(cuStreamEndCapture(s, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // An event from outside isolates.
    OK(cuEventRecord(event, other));
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    EXPECT_EQ(cuStreamWaitEvent(s, event, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    EXPECT_EQ(cuStreamEndCapture(s, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // Another thread may not end it.
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    std::thread([&] {
      OK(cuCtxSetCurrent(cuda.context));
      EXPECT_EQ(cuStreamEndCapture(s, &graph), CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    }).join();
    OK(cuStreamEndCapture(s, &graph));
  });
}

TEST_F(DriverTest, GraphsDoWhatWasCaptured) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream a = cuda.Stream(), b = cuda.Stream();
    CUdeviceptr p = cuda.Buffer(), q = cuda.Buffer();
    CUevent fork, join;
    OK(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
    OK(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
    std::atomic<int> calls{0};
    OK(cuStreamBeginCapture(a, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuda.Hash(a, p, p, 1));
    OK(cuEventRecord(fork, a));
    OK(cuStreamWaitEvent(b, fork, 0));
    OK(cuda.Hash(b, q, p, 2, 80 * kUs));
    OK(cuda.Spin(a, kUs));
    OK(cuEventRecord(join, b));
    OK(cuStreamWaitEvent(a, join, 0));
    OK(cuda.Hash(a, p, q, 3));
    OK(cuMemcpyDtoDAsync(q, p, 4, a));
    OK(cuMemsetD32Async(p, 5, 1, a));
    OK(cuLaunchHostFunc(
        a, [](void* n) { ++*static_cast<std::atomic<int>*>(n); }, &calls));
    CUgraph graph;
    OK(cuStreamEndCapture(a, &graph));
    size_t nodes = 0, edges = 0;
    OK(cuGraphGetNodes(graph, nullptr, &nodes));
    OK(cuGraphGetEdges(graph, nullptr, nullptr, nullptr, &edges));
    EXPECT_EQ(nodes, 7u);
    EXPECT_EQ(edges, 7u);
    CUgraphExec exec;
    OK(cuGraphInstantiate(&exec, graph, 0));
    std::vector<uint32_t> vp(kWords, 7), vq;
    // Nothing ran yet; two launches in two streams are ordered behind one another.
    EXPECT_EQ(cuda.Read(p), vp);
    OK(cuGraphLaunch(exec, a));
    OK(cuGraphLaunch(exec, b));
    OK(cuCtxSynchronize());
    for (int launch = 0; launch < 2; ++launch) {
      vp = Hashed(vp, 1);
      vq = Hashed(vp, 2);
      vp = Hashed(vq, 3);
      vq[0] = vp[0];
      vp[0] = 5;
    }
    EXPECT_EQ(cuda.Read(p), vp);
    EXPECT_EQ(cuda.Read(q), vq);
    EXPECT_EQ(calls.load(), 2);
  });
}

TEST_F(DriverTest, GraphsCanBeReadClonedCutAndUpdated) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream s = cuda.Stream();
    CUdeviceptr p = cuda.Buffer();
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    for (uint32_t i = 0; i < 6; ++i) OK(cuda.Hash(s, p, p, i));
    CUgraph graph, head, tail;
    OK(cuStreamEndCapture(s, &graph));
    OK(cuGraphClone(&head, graph));
    OK(cuGraphClone(&tail, graph));
    std::vector<CUgraphNode> nodes(6);
    size_t count = 6;
    OK(cuGraphGetNodes(graph, nodes.data(), &count));
    for (size_t i = 0; i < 6; ++i) {
      CUgraphNode twin;
      OK(cuGraphNodeFindInClone(&twin, nodes[i], i < 3 ? tail : head));
      OK(cuGraphDestroyNode(twin));
    }
    CUgraphExec first, second, whole;
    OK(cuGraphInstantiate(&first, head, 0));
    OK(cuGraphInstantiate(&second, tail, 0));
    OK(cuGraphInstantiate(&whole, graph, 0));
    std::vector<uint32_t> expect(kWords, 7);
    OK(cuGraphLaunch(first, s));
    OK(cuGraphLaunch(second, s));
    for (uint32_t i = 0; i < 6; ++i) expect = Hashed(expect, i);
    EXPECT_EQ((cuStreamSynchronize(s), cuda.Read(p)), expect);
    // The key of one node changes in the executable and not in the graph.
    CUDA_KERNEL_NODE_PARAMS params;
    OK(cuGraphKernelNodeGetParams(nodes[2], &params));
    EXPECT_EQ(*static_cast<uint32_t*>(params.kernelParams[3]), 2u);
    uint32_t key = 99;
    std::vector<void*> args(params.kernelParams, params.kernelParams + 5);
    args[3] = &key;
    params.kernelParams = args.data();
    OK(cuGraphExecKernelNodeSetParams(whole, nodes[2], &params));
    OK(cuGraphLaunch(whole, s));
    for (uint32_t i = 0; i < 6; ++i) expect = Hashed(expect, i == 2 ? 99 : i);
    EXPECT_EQ((cuStreamSynchronize(s), cuda.Read(p)), expect);
    // A graph of the same shape replaces its parameters; one of another shape does not.
    CUgraph other;
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
    for (uint32_t i = 0; i < 6; ++i) OK(cuda.Hash(s, p, p, 10 + i));
    OK(cuStreamEndCapture(s, &other));
    CUgraphExecUpdateResultInfo info;
    OK(cuGraphExecUpdate(whole, other, &info));
    OK(cuGraphLaunch(whole, s));
    for (uint32_t i = 0; i < 6; ++i) expect = Hashed(expect, 10 + i);
    EXPECT_EQ((cuStreamSynchronize(s), cuda.Read(p)), expect);
    EXPECT_EQ(cuGraphExecUpdate(whole, head, &info), CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
    EXPECT_EQ(info.result, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);
  });
}

TEST_F(DriverTest, GraphNodesKeepTheirPartitionUnlessRebuilt) {
  Set("SMS", "32");
  StartDevice();
  Run([] {
    Cuda cuda;
    CUdevResource all, part, rest;
    unsigned groups = 1;
    OK(cuDeviceGetDevResource(cuda.device, &all, CU_DEV_RESOURCE_TYPE_SM));
    EXPECT_EQ(all.sm.smCount, 32u);
    OK(cuDevSmResourceSplitByCount(&part, &groups, &all, &rest, 0, 8));
    EXPECT_EQ(part.sm.smCount, 8u);
    EXPECT_EQ(rest.sm.smCount, 24u);
    CUdevResourceDesc desc;
    OK(cuDevResourceGenerateDesc(&desc, &rest, 1));
    CUgreenCtx green;
    OK(cuGreenCtxCreate(&green, desc, cuda.device, CU_GREEN_CTX_DEFAULT_STREAM));
    CUstream gs, s = cuda.Stream();
    EXPECT_EQ(cuGreenCtxStreamCreate(&gs, green, CU_STREAM_DEFAULT, 0), CUDA_ERROR_INVALID_VALUE);
    OK(cuGreenCtxStreamCreate(&gs, green, CU_STREAM_NON_BLOCKING, 0));
    // A function and events of the primary context work on green streams.
    CUevent event;
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    CUdeviceptr p = cuda.Buffer();
    OK(cuda.Hash(gs, p, p, 1, 10 * kUs, 200));
    OK(cuEventRecord(event, gs));
    OK(cuStreamWaitEvent(s, event, 0));
    OK(cuda.Spin(s, 10 * kUs, 64));
    // Captured on all SMs, launched into the green stream: still all SMs.
    OK(cuStreamSynchronize(s));
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(cuda.Spin(s, 10 * kUs, 64));
    CUgraph graph;
    OK(cuStreamEndCapture(s, &graph));
    CUgraphExec exec;
    OK(cuGraphInstantiate(&exec, graph, 0));
    OK(cuGraphLaunch(exec, gs));
    OK(cuStreamSynchronize(gs));
    // Rebuilt for the green context: there from any stream. The executable itself cannot be moved.
    CUgraphNode node;
    size_t one = 1;
    OK(cuGraphGetNodes(graph, &node, &one));
    CUDA_KERNEL_NODE_PARAMS params;
    OK(cuGraphKernelNodeGetParams(node, &params));
    params.func = nullptr;
    OK(cuCtxFromGreenCtx(&params.ctx, green));
    EXPECT_EQ(cuGraphExecKernelNodeSetParams(exec, node, &params), CUDA_ERROR_INVALID_VALUE);
    CUgraph moved;
    OK(cuGraphCreate(&moved, 0));
    OK(cuGraphAddKernelNode(&node, moved, nullptr, 0, &params));
    CUgraphExec there;
    OK(cuGraphInstantiate(&there, moved, 0));
    OK(cuGraphLaunch(there, s));
    OK(cuStreamSynchronize(s));
  });
  std::vector<std::pair<long long, long long>> spans;
  for (const LogLine& line : ReadLog()) {
    if (line.kind == "blocks" && line.type == "kernel")
      spans.emplace_back(line.first_sm, line.last_sm);
  }
  ASSERT_EQ(spans.size(), 4u);
  EXPECT_EQ(spans[0], std::make_pair(8ll, 31ll));
  EXPECT_EQ(spans[1], std::make_pair(0ll, 31ll));
  EXPECT_EQ(spans[2], std::make_pair(0ll, 31ll));
  EXPECT_EQ(spans[3], std::make_pair(8ll, 31ll));
}

TEST_F(DriverTest, HostFunctionsRunInOrderAndMayNotCallTheDriver) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream s = cuda.Stream();
    static std::vector<int> seen;
    static CUresult inside;
    static int values[100];
    for (int i = 0; i < 100; ++i) {
      values[i] = i;
      OK(cuda.Spin(s, kUs));
      OK(cuLaunchHostFunc(
          s,
          [](void* v) {
            seen.push_back(*static_cast<int*>(v));
            CUdeviceptr p;
            inside = cuMemAlloc(&p, 64);
          },
          &values[i]));
    }
    OK(cuStreamSynchronize(s));
    ASSERT_EQ(seen.size(), 100u);
    for (int i = 0; i < 100; ++i) EXPECT_EQ(seen[static_cast<size_t>(i)], i);
    EXPECT_EQ(inside, CUDA_ERROR_NOT_PERMITTED);
  });
}

TEST_F(DriverTest, HandlesAreRecycledAndStaleOnesAreRefused) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream s = cuda.Stream();
    OK(cuStreamDestroy(s));
    EXPECT_EQ(cuda.Spin(s, kUs), CUDA_ERROR_INVALID_HANDLE);
    EXPECT_EQ(cuda.Stream(), s);
    CUevent event, again;
    OK(cuEventCreate(&event, 0));
    OK(cuEventDestroy(event));
    EXPECT_EQ(cuEventQuery(event), CUDA_ERROR_INVALID_HANDLE);
    OK(cuEventCreate(&again, 0));
    EXPECT_EQ(again, event);
    // An event belongs to one context.
    CUcontext second;
    OK(cuCtxCreate(&second, nullptr, 0, cuda.device));
    CUstream there = cuda.Stream();
    EXPECT_EQ(cuEventRecord(again, there), CUDA_ERROR_INVALID_HANDLE);
    // A destroyed context poisons what was in it.
    OK(cuCtxDestroy(second));
    OK(cuCtxPushCurrent(cuda.context));
    EXPECT_EQ(cuStreamQuery(there), CUDA_ERROR_INVALID_HANDLE);
    std::thread([&] {
      CUcontext third;
      OK(cuCtxCreate(&third, nullptr, 0, cuda.device));
      std::thread([&] { OK(cuCtxDestroy(third)); }).join();
      EXPECT_EQ(cuCtxSynchronize(), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    }).join();
  });
}

TEST_F(DriverTest, AFaultSticksToItsContextAlone) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream s = cuda.Stream();
    CUdeviceptr p = cuda.Buffer();
    OK(cuMemFree(p));
    OK(cuda.Hash(s, p, p, 1));
    EXPECT_EQ(cuStreamSynchronize(s), CUDA_ERROR_ILLEGAL_ADDRESS);
    EXPECT_EQ(cuMemAlloc(&p, 64), CUDA_ERROR_ILLEGAL_ADDRESS);
    CUcontext second;
    OK(cuCtxCreate(&second, nullptr, 0, cuda.device));
    OK(cuMemAlloc(&p, 64));
  });
  Run([] {
    Cuda cuda;
    OK(cuCtxSynchronize());
  });
}

TEST_F(DriverTest, ImpossibleLaunchesAreRefused) {
  Set("SMS", "4");
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream s = cuda.Stream();
    uint64_t ns = kUs;
    void* args[] = {&ns};
    CUfunction spin = cuda.Function("rb_spin");
    EXPECT_EQ(cuLaunchKernel(spin, 0, 1, 1, 32, 1, 1, 0, s, args, nullptr),
              CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuLaunchKernel(spin, 1, 1, 1, 2048, 1, 1, 0, s, args, nullptr),
              CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuLaunchKernel(spin, 1, 1, 1, 32, 1, 1, 100 << 10, s, args, nullptr),
              CUDA_ERROR_INVALID_VALUE);
    int per_sm;
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, spin, 1024, 0));
    EXPECT_EQ(per_sm, 2);
    OK(cuLaunchCooperativeKernel(spin, 8, 1, 1, 1024, 1, 1, 0, s, args));
    EXPECT_EQ(cuLaunchCooperativeKernel(spin, 9, 1, 1, 1024, 1, 1, 0, s, args),
              CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    OK(cuStreamSynchronize(s));
  });
}

TEST_F(DriverTest, TheGpuWritesAfterItsOwnerWasKilled) {
  Set("TEARDOWN_US", "1000000");
  StartDevice();
  SharedWord shared;
  const pid_t owner = Start([&] {
    Cuda cuda;
    CUstream s = cuda.Stream();
    CUdeviceptr word = shared.Register();
    // Sealed as the slot page is, once the driver knows it.
    EXPECT_EQ(fcntl(shared.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), 0);
    OK(cuda.Spin(s, 20'000 * kUs));
    OK(cuStreamWriteValue32(s, word, 42, 0));
    kill(getpid(), SIGKILL);
  });
  const int status = Wait(owner);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(shared.word[0], 0u);
  EXPECT_TRUE(Eventually([&] { return shared.word[0] == 42; }));
}

TEST_F(DriverTest, APageThatWasSealedBeforeIsReachedWhileItsOwnerLives) {
  StartDevice();
  Run([] {
    Cuda cuda;
    SharedWord shared;
    EXPECT_EQ(fcntl(shared.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), 0);
    CUstream s = cuda.Stream();
    CUdeviceptr word = shared.Register();
    OK(cuStreamWriteValue32(s, word, 42, 0));
    OK(cuStreamSynchronize(s));
    EXPECT_EQ(shared.word[0], 42u);
  });
}

TEST_F(DriverTest, LateWritesKeepTheOrderOfTheirStream) {
  Set("LATE_WRITES", "2000");
  StartDevice();
  Run([] {
    Cuda cuda;
    SharedWord shared;
    CUdeviceptr word = shared.Register();
    CUstream s = cuda.Stream();
    for (uint32_t i = 1; i <= 200; ++i) OK(cuStreamWriteValue32(s, word, i, 0));
    OK(cuStreamSynchronize(s));
    uint32_t last = 0;
    EXPECT_TRUE(Eventually([&] {
      const uint32_t now = shared.word[0];
      EXPECT_GE(now, last);
      last = now;
      return now == 200;
    }));
  });
}

TEST_F(DriverTest, MissingFeaturesAreReportedAndRefused) {
  Set("NO_MEMOPS", "1");
  Set("NO_GREEN", "1");
  Set("FAIL_REGISTER", "1");
  StartDevice();
  Run([] {
    Cuda cuda;
    int value = 1;
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS_V1,
                            cuda.device));
    EXPECT_EQ(value, 0);
    CUdeviceptr p = cuda.Buffer();
    EXPECT_EQ(cuStreamWriteValue32(nullptr, p, 1, 0), CUDA_ERROR_NOT_SUPPORTED);
    CUdevResource all;
    EXPECT_EQ(cuDeviceGetDevResource(cuda.device, &all, CU_DEV_RESOURCE_TYPE_SM),
              CUDA_ERROR_NOT_SUPPORTED);
    alignas(4096) static char page[4096];
    EXPECT_EQ(cuMemHostRegister(page, 4096, 0), CUDA_ERROR_NOT_SUPPORTED);
  });
}

TEST_F(DriverTest, AForkedChildHasNoGpuAndHarmsNobody) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream s = cuda.Stream();
    OK(cuda.Spin(s, 1000 * kUs));
    const pid_t child = fork();
    if (child == 0) {
      const bool refused =
          cuInit(0) == CUDA_ERROR_NOT_INITIALIZED && cuStreamQuery(s) == CUDA_ERROR_NOT_INITIALIZED;
      _exit(refused ? 0 : 1);
    }
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    OK(cuStreamSynchronize(s));
    OK(cuda.Spin(s, kUs));
    OK(cuStreamSynchronize(s));
  });
}

TEST_F(DriverTest, MemoryIsSharedBetweenProcesses) {
  StartDevice();
  int to_reader[2], to_owner[2];
  ASSERT_EQ(pipe(to_reader), 0);
  ASSERT_EQ(pipe(to_owner), 0);
  const pid_t owner = Start([&] {
    Cuda cuda;
    CUdeviceptr p = cuda.Buffer();
    OK(cuda.Hash(nullptr, p, p, 5));
    OK(cuCtxSynchronize());
    CUipcMemHandle handle;
    OK(cuIpcGetMemHandle(&handle, p));
    EXPECT_EQ(write(to_reader[1], &handle, sizeof handle), static_cast<ssize_t>(sizeof handle));
    char byte;
    EXPECT_EQ(read(to_owner[0], &byte, 1), 1);
    EXPECT_EQ(cuda.Read(p), Hashed(Hashed(std::vector<uint32_t>(kWords, 7), 5), 6));
  });
  Run([&] {
    Cuda cuda;
    CUipcMemHandle handle;
    ASSERT_EQ(read(to_reader[0], &handle, sizeof handle), static_cast<ssize_t>(sizeof handle));
    CUdeviceptr p;
    OK(cuIpcOpenMemHandle(&p, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
    EXPECT_EQ(cuda.Read(p), Hashed(std::vector<uint32_t>(kWords, 7), 5));
    OK(cuda.Hash(nullptr, p, p, 6));
    OK(cuIpcCloseMemHandle(p));
    char byte = 0;
    EXPECT_EQ(write(to_owner[1], &byte, 1), 1);
  });
  EXPECT_EQ(Wait(owner), 0);
}

// Both programs hold the SMs for a long time; whether their blocks ever overlap tells how they
// share.
void Compete(DeviceTest*, int ready_fd, int go_fd) {
  Cuda cuda;
  CUstream s = cuda.Stream();
  OK(cuda.Spin(s, kUs));
  OK(cuStreamSynchronize(s));
  char byte = 0;
  EXPECT_EQ(write(ready_fd, &byte, 1), 1);
  EXPECT_EQ(read(go_fd, &byte, 1), 1);
  for (int i = 0; i < 4; ++i) OK(cuda.Spin(s, 20'000 * kUs, 8));
  OK(cuStreamSynchronize(s));
}

class SharingTest : public DeviceTest {
 protected:
  void RunBoth() {
    int ready[2], go[2];
    ASSERT_EQ(pipe(ready), 0);
    ASSERT_EQ(pipe(go), 0);
    const pid_t a = Start([&] { Compete(this, ready[1], go[0]); });
    const pid_t b = Start([&] { Compete(this, ready[1], go[0]); });
    char bytes[2] = {};
    for (int i = 0; i < 2; ++i) ASSERT_EQ(read(ready[0], bytes, 1), 1);
    ASSERT_EQ(write(go[1], bytes, 2), 2);
    EXPECT_EQ(Wait(a), 0);
    EXPECT_EQ(Wait(b), 0);
  }
  // How many pairs of intervals of different processes overlap, and how many switches there were.
  void Count(size_t* overlaps, size_t* switches) {
    *overlaps = *switches = 0;
    const std::vector<LogLine> lines = ReadLog();
    for (const LogLine& x : lines) {
      if (x.kind == "switch") ++*switches;
      for (const LogLine& y : lines) {
        if (x.kind == "blocks" && y.kind == "blocks" && x.pid < y.pid && x.from < y.to &&
            y.from < x.to)
          ++*overlaps;
      }
    }
  }
};

TEST_F(SharingTest, ProgramsTakeTurnsAndNeverOverlap) {
  StartDevice();
  RunBoth();
  size_t overlaps, switches;
  Count(&overlaps, &switches);
  EXPECT_EQ(overlaps, 0u);
  EXPECT_GT(switches, 4u);
}

TEST_F(SharingTest, UnderMpsTheyRunSideBySide) {
  StartDevice();
  const std::string control = RUBATO_BUILD_DIR "/lib/softgpu/bin/nvidia-cuda-mps-control";
  ASSERT_EQ(system((control + " -d").c_str()), 0);
  RunBoth();
  ASSERT_EQ(system(("echo quit | " + control).c_str()), 0);
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/mps/control"));
  size_t overlaps, switches;
  Count(&overlaps, &switches);
  EXPECT_GT(overlaps, 0u);
  EXPECT_EQ(switches, 0u);
}

TEST_F(DriverTest, StartsByItselfAndLeavesWhenNobodyIsLeft) {
  Set("IDLE_EXIT_MS", "100");
  // Two programs at once make one device.
  const pid_t a = Start([] { Cuda cuda; });
  const pid_t b = Start([] { Cuda cuda; });
  EXPECT_EQ(Wait(a), 0);
  EXPECT_EQ(Wait(b), 0);
  EXPECT_TRUE(Eventually([&] { return !std::filesystem::exists(dir_ + "/gpu/device.sock"); }));
  Run([] { Cuda cuda; });
  EXPECT_TRUE(Eventually([&] { return !std::filesystem::exists(dir_ + "/gpu/device.sock"); }));
}

TEST_F(DriverTest, ManyThreadsLaunchAtOnce) {
  StartDevice();
  Run([] {
    Cuda cuda;
    constexpr int kThreads = 8, kOps = 500;
    std::vector<CUdeviceptr> buffers;
    for (int t = 0; t < kThreads; ++t) buffers.push_back(cuda.Buffer());
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        OK(cuCtxSetCurrent(cuda.context));
        CUstream s = cuda.Stream();
        for (uint32_t i = 0; i < kOps; ++i) {
          OK(cuda.Hash(s, buffers[static_cast<size_t>(t)], buffers[static_cast<size_t>(t)], i, 0));
        }
        OK(cuStreamSynchronize(s));
        OK(cuStreamDestroy(s));
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<uint32_t> expect(kWords, 7);
    for (uint32_t i = 0; i < kOps; ++i) expect = Hashed(expect, i);
    for (CUdeviceptr p : buffers) EXPECT_EQ(cuda.Read(p), expect);
  });
}

TEST_F(DriverTest, KernelsThatWaitForAPeerOfAnotherStreamEnd) {
  StartDevice();
  Run([] {
    Cuda cuda;
    CUstream a = cuda.Stream(), b = cuda.Stream();
    CUdeviceptr flag = cuda.Buffer();
    uint32_t value = 100, zero = 0;
    uint64_t ns = kUs;
    void* wait_args[] = {&flag, &value};
    void* store_args[] = {&flag, &value, &ns};
    OK(cuMemsetD32(flag, zero, 1));
    OK(cuLaunchKernel(cuda.Function("rb_wait"), 4, 1, 1, 32, 1, 1, 0, a, wait_args, nullptr));
    OK(cuda.Spin(b, 200 * kUs));
    EXPECT_EQ(cuStreamQuery(a), CUDA_ERROR_NOT_READY);
    OK(cuLaunchKernel(cuda.Function("rb_store"), 1, 1, 1, 32, 1, 1, 0, b, store_args, nullptr));
    OK(cuStreamSynchronize(a));
  });
}

}  // namespace
}  // namespace rubato::softgpu
