// Every entry point of the table, one by one: what it forwards, what it returns, and what it tells
// the core around the real call. Compiled once for each vendor, against a fake library made from
// the same table.

#include <dlfcn.h>
#include <errno.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "shim/hooks/table.h"
#include "shim/hooks/vendor.h"
#include "tests/unit/shim/hooks/fake_core.h"
#include "tests/unit/shim/hooks/fake_vendor.h"

namespace rubato::shim {
namespace {

constexpr int kProgramErrno = 4242;  // What the real call leaves.

FakeVendor* g_fake;
#if defined(RUBATO_VENDOR_CUDA)
FakeManagement* g_management;
#endif

// Pointers given to entries point here: some are read, some are written through.
alignas(64) std::array<unsigned char, 4 << 20> g_scratch;

template <typename T>
T MakeArgument(size_t index) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(g_scratch.data() + 4096 * index);
  } else if constexpr (std::is_enum_v<T>) {
    return static_cast<T>(index % 3);
  } else if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(3 + index);
  } else {
    T value;
    std::memset(static_cast<void*>(&value), static_cast<int>(index + 1), sizeof(value));
    return value;
  }
}

template <typename... Arguments>
struct Invocation {
  std::tuple<Arguments...> arguments;

  explicit Invocation() : Invocation(std::index_sequence_for<Arguments...>()) {}
  template <size_t... I>
  explicit Invocation(std::index_sequence<I...>) : arguments(MakeArgument<Arguments>(I)...) {}

  int Run(Status (*entry)(Arguments...)) { return static_cast<int>(std::apply(entry, arguments)); }

  void ExpectForwarded(const char* name) {
    EXPECT_EQ(g_fake->calls, 1u) << name;
    EXPECT_STREQ(g_fake->last.name, name);
    EXPECT_EQ(g_fake->last.count, sizeof...(Arguments)) << name;
    std::apply(
        [&](const auto&... argument) {
          const std::vector<uint64_t> given = {DigestOf(argument)...};
          for (size_t i = 0; i < given.size(); ++i) {
            EXPECT_EQ(g_fake->last.digests[i], given[i]) << name << ", argument " << i;
          }
        },
        arguments);
  }
};

struct Case {
  const char* name;
  const char* kind;
  bool per_thread;
  // Calls the entry with arguments of its own, checks what arrived, and returns the answer.
  int (*call)(const char* name, bool reaches_real);
};

template <auto Entry>
struct Caller;
template <typename... Arguments, Status (*Entry)(Arguments...)>
struct Caller<Entry> {
  static int Call(const char* name, bool reaches_real) {
    Invocation<Arguments...> invocation;
    const int status = invocation.Run(Entry);
    if (reaches_real) {
      invocation.ExpectForwarded(name);
    } else {
      EXPECT_EQ(g_fake->calls, 0u) << name;
    }
    return status;
  }
};

const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = {
#define ENTRY(name, is_per_thread, kind, params, ...) \
  {#name, #kind, is_per_thread != 0, &Caller<static_cast<Status(*) params>(&::name)>::Call},
#define ENTRY_BY_HAND(name, kind, params)
#include "shim/hooks/hooks.def"
#undef ENTRY
#undef ENTRY_BY_HAND
  };
  return cases;
}

class EntriesTest : public testing::Test {
 protected:
  void SetUp() override {
    g_core = FakeCore{};
    g_core.spoil_errno = 1111;
    *g_fake = FakeVendor{};
    g_fake->leave_errno = kProgramErrno;
    g_fake->during = [](const char* name) {
      g_core.events.push_back(CoreEvent{.what = std::string("real"), .op = {}});
      static_cast<void>(name);
    };
    g_scratch.fill(0);
    SetPhase(Phase::kAttached);
  }

  static void SetPhase(Phase phase) { g_state.phase = static_cast<uint32_t>(phase); }

  // The first call resolves the real functions, which is no part of what is tested here.
  static void ResetCalls() {
    g_core.events.clear();
    g_fake->calls = 0;
  }
};

TEST_F(EntriesTest, DetachedProcessForwardsEverythingAndTellsNobody) {
  SetPhase(Phase::kDetached);
  ASSERT_GT(Cases().size(), 100u);
  for (const Case& entry : Cases()) {
    SCOPED_TRACE(entry.name);
    for (const int status : {0, 1, 2, 400, 600, 719}) {
      ResetCalls();
      g_fake->status = status;
      errno = 0;
      EXPECT_EQ(entry.call(entry.name, true), status);
      EXPECT_EQ(errno, kProgramErrno);
      EXPECT_EQ(Story(), "real");
    }
  }
}

TEST_F(EntriesTest, AttachedProcessForwardsArgumentsStatusAndErrno) {
  for (const Case& entry : Cases()) {
    SCOPED_TRACE(entry.name);
    for (const int status : {0, 2, 600, 719}) {
      ResetCalls();
      g_fake->status = status;
      errno = 0;
      EXPECT_EQ(entry.call(entry.name, true), status);
      EXPECT_EQ(errno, kProgramErrno);
    }
  }
}

TEST_F(EntriesTest, OpsSurroundTheRealCall) {
  for (const Case& entry : Cases()) {
    const std::string kind = entry.kind;
    if (kind != "launch" && kind != "graph_launch" && kind != "copy" && kind != "memset") continue;
    SCOPED_TRACE(entry.name);
    for (const int status : {0, 1}) {
      ResetCalls();
      g_fake->status = status;
      entry.call(entry.name, true);
      ASSERT_EQ(Story(), "before op, real, after op");
      const Op& op = g_core.events[0].op;
      EXPECT_EQ(g_core.events[2].ok, status == 0);
      EXPECT_EQ(op.per_thread, entry.per_thread);
      switch (op.kind) {
        case abi::OpKind::kKernel:
          EXPECT_EQ(kind, "launch");
          break;
        case abi::OpKind::kGraph:
          EXPECT_EQ(kind, "graph_launch");
          EXPECT_NE(op.function, 0u);
          break;
        case abi::OpKind::kMemset:
          EXPECT_EQ(kind, "memset");
          EXPECT_NE(op.bytes, 0u);
          EXPECT_FALSE(op.synchronous);
          break;
        default:
          EXPECT_EQ(kind, "copy");
          break;
      }
      const bool async = std::strstr(entry.name, "Async") != nullptr;
      if (async) {
        EXPECT_FALSE(op.synchronous);
      }
      if (async && kind != "launch") {
        EXPECT_NE(op.stream, 0u);
      }
    }
  }
}

TEST_F(EntriesTest, PerThreadTwinsAreTheOnesThatSaySo) {
  for (const Case& entry : Cases()) {
    const std::string name = entry.name;
    const bool twin = name.ends_with("_ptsz") || name.ends_with("_ptds") || name.ends_with("_spt");
    EXPECT_EQ(entry.per_thread, twin) << name;
  }
}

TEST_F(EntriesTest, WaitsSurroundTheRealCallAndSayWhetherTheySucceeded) {
  for (const Case& entry : Cases()) {
    const std::string kind = entry.kind;
    if (kind != "sync" && kind != "query") continue;
    SCOPED_TRACE(entry.name);
    for (const int status : {0, 600}) {
      ResetCalls();
      g_fake->status = status;
      entry.call(entry.name, true);
      ASSERT_EQ(Story(), kind == "sync" ? "before sync, real, after sync"
                                        : "before query, real, after query");
      EXPECT_EQ(g_core.events[0].per_thread, entry.per_thread);
      EXPECT_EQ(g_core.events[0].scope, g_core.events[2].scope);
      EXPECT_EQ(g_core.events[0].handle, g_core.events[2].handle);
      if (status != 0) {
        EXPECT_FALSE(g_core.events[2].ok);
      }
    }
  }
}

TEST_F(EntriesTest, AllocationsAreReservedThenKept) {
  for (const Case& entry : Cases()) {
    if (std::string(entry.kind) != "alloc") continue;
    SCOPED_TRACE(entry.name);
    if (std::strstr(entry.name, "MemCreate") != nullptr) continue;  // Tested with its properties.
    ResetCalls();
    g_core.charged_bytes = 0;
    entry.call(entry.name, true);
    ASSERT_GE(g_core.events.size(), 3u);
    EXPECT_EQ(g_core.events.front().what, "reserve");
    EXPECT_EQ(g_core.events[1].what, "real");
    EXPECT_EQ(g_core.events.back().what, "commit");
    EXPECT_EQ(g_core.events.back().bytes, g_core.charged_bytes);
  }
}

TEST_F(EntriesTest, RefusedAllocationsAreGivenBack) {
  for (const Case& entry : Cases()) {
    if (std::string(entry.kind) != "alloc") continue;
    SCOPED_TRACE(entry.name);
    if (std::strstr(entry.name, "MemCreate") != nullptr) continue;
    ResetCalls();
    g_core.charged_bytes = 0;
    g_fake->status = 2;
    entry.call(entry.name, true);
    EXPECT_EQ(Story(), "reserve, real, cancel");
    EXPECT_EQ(g_core.charged_bytes, 0u);
  }
}

TEST_F(EntriesTest, AllocationsOverTheLimitNeverReachTheDriver) {
  g_core.refuse_memory = true;
  for (const Case& entry : Cases()) {
    if (std::string(entry.kind) != "alloc") continue;
    SCOPED_TRACE(entry.name);
    if (std::strstr(entry.name, "MemCreate") != nullptr) continue;
    ResetCalls();
    EXPECT_EQ(entry.call(entry.name, false), static_cast<int>(kOutOfMemory));
    EXPECT_EQ(Story(), "reserve");
  }
}

TEST_F(EntriesTest, AllocationsWhileCapturingAreNodesAndNotCharged) {
  g_state.active_captures = 1;
  g_fake->capturing = 1;
  for (const Case& entry : Cases()) {
    const std::string name = entry.name;
    if (std::string(entry.kind) != "alloc" || name.find("Async") == std::string::npos) continue;
    SCOPED_TRACE(name);
    ResetCalls();
    entry.call(entry.name, true);
    EXPECT_EQ(Story(), "real");
  }
  g_state.active_captures = 0;
}

TEST_F(EntriesTest, FreesReleaseOnlyAfterTheDriverTookThem) {
  for (const Case& entry : Cases()) {
    if (std::string(entry.kind) != "free") continue;
    SCOPED_TRACE(entry.name);
    ResetCalls();
    g_fake->status = 1;
    entry.call(entry.name, true);
    EXPECT_EQ(Story().find("release"), std::string::npos);
  }
}

TEST_F(EntriesTest, CallsTheLibraryMakesToItselfBelongToTheFirst) {
  g_fake->during = [](const char*) {
    static bool inside = false;
    if (inside) return;
    inside = true;
    // Whatever is called from within is forwarded and not told.
    const size_t events = g_core.events.size();
    for (const Case& entry : Cases()) {
      g_fake->calls = 0;
      entry.call(entry.name, true);
    }
    EXPECT_EQ(g_core.events.size(), events);
    g_fake->calls = 1;
    inside = false;
  };
  const Case& launch = Cases().front();
  ResetCalls();
  launch.call(launch.name, true);
  EXPECT_EQ(Story(), "before op, after op");
}

TEST_F(EntriesTest, EveryRowHasItsNameItsEntryAndItsRealFunction) {
  ASSERT_TRUE(ResolveReal(Load::kNow));
  void* library = dlopen(RUBATO_FAKE_LIBRARY, RTLD_LAZY | RTLD_NOLOAD);
  ASSERT_NE(library, nullptr);
  for (size_t row = 0; row < kRowCount; ++row) {
    SCOPED_TRACE(kRowNames[row]);
    EXPECT_EQ(FindRowByName(kRowNames[row]), static_cast<int>(row));
    const bool management = std::string(kRowNames[row]).starts_with("nvml");
    if (management) continue;
    EXPECT_NE(g_real[row], nullptr);
    EXPECT_NE(g_real[row], kEntries[row]);
    const Known known = FindAddress(g_real[row]);
    EXPECT_TRUE(known.known);
    EXPECT_EQ(known.row, static_cast<int>(row));
    EXPECT_TRUE(IsVendorName(kRowNames[row]) || kRowNames[row][0] == '_');
  }
  EXPECT_EQ(FindRowByName("no such call"), -1);
  EXPECT_FALSE(FindAddress(&library).known);
}

#if defined(RUBATO_VENDOR_CUDA)

TEST_F(EntriesTest, KernelLaunchSaysWhatItLaunches) {
  ResetCalls();
  const auto f = reinterpret_cast<CUfunction>(0x1234);
  const auto stream = reinterpret_cast<CUstream>(0x5678);
  cuLaunchKernel(f, 1, 2, 3, 4, 5, 6, 7, stream, nullptr, nullptr);
  const Op op = g_core.events[0].op;
  EXPECT_EQ(op.function, 0x1234u);
  EXPECT_EQ(op.stream, 0x5678u);
  EXPECT_EQ(std::vector<uint32_t>(op.grid, op.grid + 3), (std::vector<uint32_t>{1, 2, 3}));
  EXPECT_EQ(std::vector<uint32_t>(op.block, op.block + 3), (std::vector<uint32_t>{4, 5, 6}));
  EXPECT_EQ(op.shared_bytes, 7u);

  ResetCalls();
  CUlaunchConfig config{};
  config.gridDimX = 9;
  config.blockDimZ = 8;
  config.sharedMemBytes = 77;
  config.hStream = stream;
  cuLaunchKernelEx_ptsz(&config, f, nullptr, nullptr);
  EXPECT_EQ(g_core.events[0].op.grid[0], 9u);
  EXPECT_EQ(g_core.events[0].op.block[2], 8u);
  EXPECT_EQ(g_core.events[0].op.shared_bytes, 77u);
  EXPECT_TRUE(g_core.events[0].op.per_thread);

  // The driver says what is wrong with a missing configuration.
  ResetCalls();
  g_fake->status = 1;
  EXPECT_EQ(cuLaunchKernelEx(nullptr, f, nullptr, nullptr), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(Story(), "real");
}

TEST_F(EntriesTest, CopiesSayDirectionBytesAndWhetherTheyWait) {
  struct Expected {
    abi::OpKind kind;
    uint64_t bytes;
    bool synchronous;
  };
  const auto check = [&](CUresult status, Expected expected, const char* what) {
    EXPECT_EQ(status, CUDA_SUCCESS);
    const Op& op = g_core.events[0].op;
    EXPECT_EQ(op.kind, expected.kind) << what;
    EXPECT_EQ(op.bytes, expected.bytes) << what;
    EXPECT_EQ(op.synchronous, expected.synchronous) << what;
    ResetCalls();
  };
  using abi::OpKind;
  ResetCalls();
  check(cuMemcpyHtoD_v2(1, &g_scratch, 10), {OpKind::kCopyHostToDevice, 10, true}, "HtoD");
  check(cuMemcpyDtoH_v2(&g_scratch, 1, 11), {OpKind::kCopyDeviceToHost, 11, true}, "DtoH");
  check(cuMemcpyDtoD_v2(1, 2, 12), {OpKind::kCopyDevice, 12, false}, "DtoD");
  check(cuMemcpyHtoDAsync_v2(1, &g_scratch, 13, nullptr), {OpKind::kCopyHostToDevice, 13, false},
        "HtoDAsync");
  g_fake->memory_type = CU_MEMORYTYPE_DEVICE;
  check(cuMemcpy(1, 2, 14), {OpKind::kCopyDevice, 14, false}, "unified, both on devices");
  g_fake->memory_type = 0;
  check(cuMemcpy(1, 2, 15), {OpKind::kCopyOther, 15, true}, "unified, both unknown to CUDA");
  CUDA_MEMCPY2D flat{};
  flat.srcMemoryType = CU_MEMORYTYPE_HOST;
  flat.dstMemoryType = CU_MEMORYTYPE_DEVICE;
  flat.WidthInBytes = 16;
  flat.Height = 3;
  check(cuMemcpy2D_v2(&flat), {OpKind::kCopyHostToDevice, 48, true}, "2D");
  check(cuMemcpy2DAsync_v2(&flat, nullptr), {OpKind::kCopyHostToDevice, 48, false}, "2DAsync");
  CUDA_MEMCPY3D deep{};
  deep.srcMemoryType = CU_MEMORYTYPE_ARRAY;
  deep.dstMemoryType = CU_MEMORYTYPE_DEVICE;
  deep.WidthInBytes = 16;
  deep.Height = 3;
  deep.Depth = 2;
  check(cuMemcpy3D_v2(&deep), {OpKind::kCopyDevice, 96, false}, "3D");
  size_t sizes[] = {5, 6, 7};
  check(cuMemcpyBatchAsync_v2(nullptr, nullptr, sizes, 3, nullptr, nullptr, 0, nullptr),
        {OpKind::kCopyOther, 18, false}, "batch");
  check(cuMemsetD32Async(1, 0, 100, nullptr), {OpKind::kMemset, 400, false}, "memset");
  check(cuMemsetD2D16_v2(1, 64, 0, 8, 4), {OpKind::kMemset, 64, false}, "memset 2D");
}

TEST_F(EntriesTest, LongCopiesGoInPartsThatAddUp) {
  struct Part {
    uint64_t dst;
    uint64_t src;
    uint64_t bytes;
  };
  static std::vector<Part> parts;
  parts.clear();
  g_core.copy_part_bytes = 1000;
  g_fake->during = [](const char*) {
    const uint64_t* arguments = g_fake->last.arguments;
    parts.push_back({arguments[0], arguments[1], arguments[2]});
    EXPECT_EQ(arguments[3], 0x77u);
  };
  const auto stream = reinterpret_cast<CUstream>(0x77);
  ResetCalls();
  EXPECT_EQ(cuMemcpyDtoDAsync_v2(0x10000, 0x90000, 4300, stream), CUDA_SUCCESS);
  uint64_t done = 0;
  for (const Part& part : parts) {
    EXPECT_EQ(part.dst, 0x10000 + done);
    EXPECT_EQ(part.src, 0x90000 + done);
    EXPECT_GE(part.bytes, 1000u);
    EXPECT_LT(part.bytes, 2000u);
    done += part.bytes;
  }
  EXPECT_EQ(done, 4300u);
  EXPECT_EQ(g_core.events.size(), 2 * parts.size());
  // A short one goes whole; one that fails goes no further.
  parts.clear();
  cuMemcpyDtoDAsync_v2(0x10000, 0x90000, 1500, stream);
  EXPECT_EQ(parts.size(), 1u);
  parts.clear();
  g_fake->status = 700;
  EXPECT_EQ(static_cast<int>(cuMemcpyDtoDAsync_v2(0x10000, 0x90000, 4300, stream)), 700);
  EXPECT_EQ(parts.size(), 1u);
}

TEST_F(EntriesTest, PhysicalMemoryIsChargedToItsDeviceAndTheHostsIsNot) {
  CUmemGenericAllocationHandle handle = 77;
  CUmemAllocationProp properties{};
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  ResetCalls();
  cuMemCreate(&handle, 4096, &properties, 0);
  EXPECT_EQ(Story(), "reserve, real, commit");
  EXPECT_EQ(g_core.events[2].kind, AllocationKind::kPhysical);
  EXPECT_EQ(g_core.events[2].handle, 77u);
  ResetCalls();
  properties.location.type = CU_MEM_LOCATION_TYPE_HOST;
  cuMemCreate(&handle, 4096, &properties, 0);
  EXPECT_EQ(Story(), "real");
}

TEST_F(EntriesTest, PitchedMemoryIsChargedAsTheDriverPaddedIt) {
  CUdeviceptr address = 0x7000;
  size_t pitch = 2048;  // What the fake leaves as the answer.
  ResetCalls();
  g_core.charged_bytes = 0;
  cuMemAllocPitch_v2(&address, &pitch, 1000, 10, 4);
  EXPECT_EQ(g_core.charged_bytes, 20480u);
  EXPECT_EQ(g_core.events.back().what, "commit");
  EXPECT_EQ(g_core.events.back().bytes, 20480u);
  EXPECT_EQ(g_core.events.back().handle, 0x7000u);
  pitch = 1000;
  g_core.charged_bytes = 0;
  ResetCalls();
  cuMemAllocPitch_v2(&address, &pitch, 1000, 10, 4);
  EXPECT_EQ(g_core.charged_bytes, 10000u);
}

TEST_F(EntriesTest, ArraysAreChargedByTheirDescriptor) {
  CUarray array = nullptr;
  const auto charged = [&](const CUDA_ARRAY3D_DESCRIPTOR& descriptor) {
    ResetCalls();
    g_core.charged_bytes = 0;
    cuArray3DCreate_v2(&array, &descriptor);
    return g_core.charged_bytes;
  };
  EXPECT_EQ(charged({10, 20, 0, CU_AD_FORMAT_FLOAT, 4, 0}), 10u * 20 * 16);
  EXPECT_EQ(charged({10, 20, 6, CU_AD_FORMAT_HALF, 1, CUDA_ARRAY3D_LAYERED}), 10u * 20 * 6 * 2);
  EXPECT_EQ(charged({10, 0, 0, CU_AD_FORMAT_UNORM_INT8X4, 4, 0}), 40u);
  EXPECT_EQ(charged({10, 20, 0, CU_AD_FORMAT_FLOAT, 4, CUDA_ARRAY3D_SPARSE}), 0u);
  CUmipmappedArray mipmap = nullptr;
  const CUDA_ARRAY3D_DESCRIPTOR base = {8, 8, 0, CU_AD_FORMAT_UNSIGNED_INT8, 1, 0};
  ResetCalls();
  g_core.charged_bytes = 0;
  cuMipmappedArrayCreate(&mipmap, &base, 4);
  EXPECT_EQ(g_core.charged_bytes, 64u + 16 + 4 + 1);
}

TEST_F(EntriesTest, FreeWaitsForTheContextButFreeOfNothingDoesNot) {
  ResetCalls();
  cuMemFree_v2(0x1000);
  EXPECT_EQ(Story(), "before sync, real, after sync, release");
  EXPECT_EQ(g_core.events[0].scope, SyncScope::kContext);
  EXPECT_TRUE(g_core.events[2].ok);
  ResetCalls();
  cuMemFree_v2(0);
  EXPECT_EQ(Story(), "real");
  // May wait, but promises nothing.
  ResetCalls();
  cuMemFreeHost(nullptr);
  EXPECT_EQ(Story(), "before sync, real, after sync");
  EXPECT_FALSE(g_core.events[2].ok);
  ResetCalls();
  cuMemFreeAsync(0x1000, nullptr);
  EXPECT_EQ(Story(), "real, release");
}

TEST_F(EntriesTest, MemoryInfoShowsTheTenants) {
  g_core.shown_free = 30;
  g_core.shown_total = 50;
  size_t free_bytes = 1000;
  size_t total_bytes = 2000;
  ResetCalls();
  cuMemGetInfo_v2(&free_bytes, &total_bytes);
  EXPECT_EQ(free_bytes, 30u);
  EXPECT_EQ(total_bytes, 50u);
  g_fake->status = 1;
  free_bytes = 1;
  cuMemGetInfo_v2(&free_bytes, &total_bytes);
  EXPECT_EQ(free_bytes, 1u);
}

TEST_F(EntriesTest, CaptureIsCountedUntilItIsOver) {
  const auto stream = reinterpret_cast<CUstream>(0x99);
  CUgraph graph = nullptr;
  ResetCalls();
  cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
  EXPECT_EQ(Story(), "capture begun, real");
  ResetCalls();
  g_fake->status = 1;
  cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
  EXPECT_EQ(Story(), "capture begun, real, capture ended");
  // Not capturing: the failing end ends nothing.
  ResetCalls();
  cuStreamEndCapture(stream, &graph);
  EXPECT_EQ(Story(), "real");
  // Capturing and still so after a failed end (another thread's, say).
  ResetCalls();
  g_fake->capturing = 1;
  cuStreamEndCapture(stream, &graph);
  EXPECT_EQ(Story(), "real");
  // An invalid capture ends with an error.
  ResetCalls();
  g_fake->during = [](const char*) { g_fake->capturing = 0; };
  cuStreamEndCapture(stream, &graph);
  EXPECT_EQ(Story(), "capture ended");
  ResetCalls();
  g_fake->status = 0;
  g_fake->capturing = 1;
  cuStreamEndCapture_ptsz(stream, &graph);
  EXPECT_EQ(Story(), "capture ended");
  // A stream that is destroyed takes its capture with it.
  g_state.active_captures = 1;
  ResetCalls();
  g_fake->during = nullptr;
  g_fake->capturing = 1;
  cuStreamDestroy_v2(stream);
  EXPECT_EQ(Story(), "stream destroyed, capture ended");
  ResetCalls();
  g_fake->capturing = 0;
  cuStreamDestroy_v2(stream);
  EXPECT_EQ(Story(), "stream destroyed");
  g_state.active_captures = 0;
}

TEST_F(EntriesTest, ObjectsAreForgottenBeforeTheirHandlesCanComeBack) {
  ResetCalls();
  cuStreamDestroy_v2(reinterpret_cast<CUstream>(0x11));
  EXPECT_EQ(Story(), "stream destroyed, real");
  ResetCalls();
  cuEventDestroy_v2(reinterpret_cast<CUevent>(0x12));
  EXPECT_EQ(Story(), "event forgotten, real");
  ResetCalls();
  cuGraphExecDestroy(reinterpret_cast<CUgraphExec>(0x13));
  EXPECT_EQ(Story(), "graph destroyed, real");
  ResetCalls();
  cuCtxDestroy_v2(reinterpret_cast<CUcontext>(0x14));
  EXPECT_EQ(Story(), "context destroying, real");
  EXPECT_EQ(g_core.events[0].handle, 0x14u);
  ResetCalls();
  cuModuleUnload(reinterpret_cast<CUmodule>(0x15));
  EXPECT_EQ(Story(), "before sync, real, after sync, functions unloaded");
  ResetCalls();
  cuGreenCtxDestroy(reinterpret_cast<CUgreenCtx>(0x16));
  EXPECT_EQ(Story(), "context destroying, real");
  EXPECT_EQ(g_core.events[0].handle, 0x16u);
}

TEST_F(EntriesTest, PrimaryContextEndsWithItsLastReference) {
  CUcontext context = reinterpret_cast<CUcontext>(0x77);
  constexpr CUdevice kDevice = 5;
  cuDevicePrimaryCtxRetain(&context, kDevice);
  cuDevicePrimaryCtxRetain(&context, kDevice);
  ResetCalls();
  cuDevicePrimaryCtxRelease_v2(kDevice);
  EXPECT_EQ(Story(), "real");
  ResetCalls();
  cuDevicePrimaryCtxRelease_v2(kDevice);
  EXPECT_EQ(Story(), "context destroying, real");
  EXPECT_EQ(g_core.events[0].handle, 0x77u);
  cuDevicePrimaryCtxRetain(&context, kDevice);
  ResetCalls();
  cuDevicePrimaryCtxReset_v2(kDevice);
  EXPECT_EQ(g_core.events[0].what, "context destroying");
}

TEST_F(EntriesTest, InitAttachesBeforeTheDriverStarts) {
  SetPhase(Phase::kFresh);
  g_fake->during = [](const char*) { EXPECT_EQ(g_core.attaches, 1); };
  g_fake->status = 100;
  EXPECT_EQ(cuInit(0), CUDA_ERROR_NO_DEVICE);
  EXPECT_EQ(g_core.attaches, 1);
}

TEST_F(EntriesTest, GetProcAddressAnswersTheEntryOfExactlyThatVariant) {
  struct Question {
    const char* symbol;
    int version;
    cuuint64_t flags;
    void* entry;
  };
  const Question questions[] = {
      {"cuMemcpyHtoD", 2000, 0, reinterpret_cast<void*>(&cuMemcpyHtoD)},
      {"cuMemcpyHtoD", 12000, 0, reinterpret_cast<void*>(&cuMemcpyHtoD_v2)},
      {"cuMemcpyHtoD", 12000, 1, reinterpret_cast<void*>(&cuMemcpyHtoD_v2)},
      {"cuMemcpyHtoD", 12000, 2, reinterpret_cast<void*>(&cuMemcpyHtoD_v2_ptds)},
      {"cuLaunchKernel", 12000, 0, reinterpret_cast<void*>(&cuLaunchKernel)},
      {"cuLaunchKernel", 12000, 2, reinterpret_cast<void*>(&cuLaunchKernel_ptsz)},
      {"cuMemAlloc", 12000, 2, reinterpret_cast<void*>(&cuMemAlloc_v2)},
      {"cuGetProcAddress", 11030, 0, reinterpret_cast<void*>(&cuGetProcAddress)},
      {"cuGetProcAddress", 12000, 0, reinterpret_cast<void*>(&cuGetProcAddress_v2)},
  };
  for (const Question& question : questions) {
    SCOPED_TRACE(std::string(question.symbol) + " " + std::to_string(question.version));
    void* answer = nullptr;
    CUdriverProcAddressQueryResult result{};
    EXPECT_EQ(
        cuGetProcAddress_v2(question.symbol, &answer, question.version, question.flags, &result),
        CUDA_SUCCESS);
    EXPECT_EQ(answer, question.entry);
    answer = nullptr;
    EXPECT_EQ(cuGetProcAddress(question.symbol, &answer, question.version, question.flags),
              CUDA_SUCCESS);
    EXPECT_EQ(answer, question.entry);
  }
  EXPECT_TRUE(g_core.unknown.empty());
  void* answer = &answer;
  EXPECT_EQ(cuGetProcAddress_v2("cuNoSuchCall", &answer, 12000, 0, nullptr), CUDA_ERROR_NOT_FOUND);
  EXPECT_EQ(answer, nullptr);
}

// ---- The management library ---------------------------------------------------------------------

constexpr char kOurUuid[] = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f";
constexpr char kForeignUuid[] = "GPU-ffffffff-0405-0607-0809-0a0b0c0d0e0f";

class ManagementTest : public EntriesTest {
 protected:
  void SetUp() override {
    EntriesTest::SetUp();
    *g_management = FakeManagement{};
    std::strcpy(g_management->uuid, kOurUuid);
    g_state.limit_bytes = 20'000;
    g_state.devices[0] = nullptr;
    g_core.shown_free = 1'500;
    g_core.shown_total = 20'000;
  }
  void TearDown() override {
    g_state.limit_bytes = 0;
    g_state.devices[0] = nullptr;
  }

  NvmlMemory Ask() {
    NvmlMemory memory{};
    status_ = nvmlDeviceGetMemoryInfo(device_, &memory);
    return memory;
  }

  NvmlStatus status_ = -1;
  NvmlDevice device_ = reinterpret_cast<NvmlDevice>(0x4321);
};

TEST_F(ManagementTest, ShowsTheLimitBeforeCudaHasStartedAndAttachesForIt) {
  SetPhase(Phase::kFresh);
  g_fake->not_started = CUDA_ERROR_NOT_INITIALIZED;
  errno = kProgramErrno;
  const NvmlMemory memory = Ask();
  EXPECT_EQ(status_, 0);
  EXPECT_EQ(errno, kProgramErrno);
  EXPECT_EQ(g_core.attaches, 1);
  EXPECT_EQ(g_management->device, device_);
  EXPECT_EQ(memory.total, 20'000u);
  EXPECT_EQ(memory.free, 20'000u);
  EXPECT_EQ(memory.used, 0u);
}

TEST_F(ManagementTest, ShowsTheTenantsUseOnceItsDeviceIsOpen) {
  static DeviceSession session;
  g_state.devices[0] = &session;
  const NvmlMemory memory = Ask();
  EXPECT_EQ(memory.total, 20'000u);
  EXPECT_EQ(memory.free, 1'500u);
  EXPECT_EQ(memory.used, 18'500u);
  NvmlMemoryV2 second{};
  second.version = 0x02000028;
  EXPECT_EQ(nvmlDeviceGetMemoryInfo_v2(device_, &second), 0);
  EXPECT_EQ(second.version, 0x02000028u);
  EXPECT_EQ(second.total, 20'000u);
  EXPECT_EQ(second.free + second.used + second.reserved, second.total);
}

TEST_F(ManagementTest, LeavesDevicesAloneThatCudaDoesNotShow) {
  std::strcpy(g_management->uuid, kForeignUuid);
  const NvmlMemory memory = Ask();
  EXPECT_EQ(memory.total, 80'000u);
  EXPECT_EQ(memory.free, 70'000u);
  EXPECT_EQ(memory.used, 10'000u);
}

TEST_F(ManagementTest, LeavesErrorsAndUnmanagedProcessesAlone) {
  g_management->status = 15;
  EXPECT_EQ(Ask().total, 80'000u);
  EXPECT_EQ(status_, 15);
  g_management->status = 0;
  SetPhase(Phase::kDetached);
  EXPECT_EQ(Ask().total, 80'000u);
  SetPhase(Phase::kAttached);
  g_state.limit_bytes = 0;
  const NvmlMemory memory = Ask();
  EXPECT_EQ(memory.total, 80'000u);
  EXPECT_EQ(memory.used, 10'000u);
}

TEST_F(EntriesTest, CallsOutsideBothListsPassAndAreCounted) {
  void* answer = nullptr;
  EXPECT_EQ(cuGetProcAddress_v2("cuDriverGetVersion", &answer, 12000, 0, nullptr), CUDA_SUCCESS);
  EXPECT_NE(answer, nullptr);
  EXPECT_TRUE(g_core.unknown.empty());
  EXPECT_EQ(cuGetProcAddress_v2("cuBrandNewCall", &answer, 14000, 0, nullptr), CUDA_SUCCESS);
  EXPECT_NE(answer, nullptr);
  EXPECT_EQ(g_core.unknown, std::vector<std::string>{"cuBrandNewCall"});
}

#else

TEST_F(EntriesTest, RuntimeKernelsAreMarkedAsHostFunctions) {
  ResetCalls();
  const void* kernel = &g_scratch;
  EXPECT_EQ(hipLaunchKernel(kernel, dim3(1, 2, 3), dim3(4, 5, 6), nullptr, 7, nullptr), hipSuccess);
  const Op& op = g_core.events[0].op;
  EXPECT_EQ(op.function, reinterpret_cast<Handle>(kernel) | (Handle{1} << 63));
  EXPECT_EQ(op.grid[2], 3u);
  EXPECT_EQ(op.block[0], 4u);
}

TEST_F(EntriesTest, CopiesSayDirectionBytesAndWhetherTheyWait) {
  ResetCalls();
  EXPECT_EQ(hipMemcpy(&g_scratch, &g_scratch, 9, hipMemcpyHostToDevice), hipSuccess);
  EXPECT_EQ(g_core.events[0].op.kind, abi::OpKind::kCopyHostToDevice);
  EXPECT_TRUE(g_core.events[0].op.synchronous);
  ResetCalls();
  EXPECT_EQ(hipMemcpy(&g_scratch, &g_scratch, 9, hipMemcpyDeviceToDevice), hipSuccess);
  EXPECT_EQ(g_core.events[0].op.kind, abi::OpKind::kCopyDevice);
  EXPECT_FALSE(g_core.events[0].op.synchronous);
  ResetCalls();
  EXPECT_EQ(hipMemcpyAsync(&g_scratch, &g_scratch, 9, hipMemcpyDeviceToHost, nullptr), hipSuccess);
  EXPECT_EQ(g_core.events[0].op.kind, abi::OpKind::kCopyDeviceToHost);
  EXPECT_FALSE(g_core.events[0].op.synchronous);
  ResetCalls();
  hipMemcpy3DParms deep{};
  deep.extent = {8, 4, 2};
  deep.kind = hipMemcpyHostToDevice;
  EXPECT_EQ(hipMemcpy3D(&deep), hipSuccess);
  EXPECT_EQ(g_core.events[0].op.bytes, 64u);
}

TEST_F(EntriesTest, TheFirstCallOfAFreshProcessAttaches) {
  SetPhase(Phase::kFresh);
  g_core.attach_succeeds = false;
  ResetCalls();
  EXPECT_EQ(hipDeviceSynchronize(), hipSuccess);
  EXPECT_EQ(g_core.attaches, 1);
  EXPECT_EQ(Story(), "real");
  EXPECT_EQ(hipDeviceSynchronize(), hipSuccess);
  EXPECT_EQ(g_core.attaches, 1);
}

TEST_F(EntriesTest, ResetEndsTheDevicesContextAndMemory) {
  g_state.devices[0] = nullptr;
  ResetCalls();
  EXPECT_EQ(hipDeviceReset(), hipSuccess);
  EXPECT_EQ(Story(), "context destroying, real");
  EXPECT_EQ(g_core.events[0].handle, 1u);
}

TEST_F(EntriesTest, GetProcAddressAnswersOurs) {
  void* answer = nullptr;
  EXPECT_EQ(hipGetProcAddress("hipMemcpyAsync", &answer, 60200000, 0, nullptr), hipSuccess);
  EXPECT_EQ(answer, kEntries[static_cast<size_t>(Row::k_hipMemcpyAsync)]);
  EXPECT_EQ(hipGetProcAddress("hipMemcpyAsync", &answer, 60200000, 1, nullptr), hipSuccess);
  EXPECT_EQ(answer, kEntries[static_cast<size_t>(Row::k_hipMemcpyAsync_spt)]);
}

#endif

}  // namespace
}  // namespace rubato::shim

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  // Loaded by its path once, the fake is found by its soname from then on.
  void* library = dlopen(RUBATO_FAKE_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const auto state = reinterpret_cast<FakeVendorStateFunction>(dlsym(library, "FakeVendorState"));
  if (state == nullptr) return 1;
  rubato::shim::g_fake = state();
#if defined(RUBATO_VENDOR_CUDA)
  void* management = dlopen(RUBATO_FAKE_MANAGEMENT, RTLD_NOW | RTLD_LOCAL);
  if (management == nullptr) return 1;
  rubato::shim::g_management =
      reinterpret_cast<FakeManagementStateFunction>(dlsym(management, "FakeManagementState"))();
#endif
  return RUN_ALL_TESTS();
}
