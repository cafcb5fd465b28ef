// What the launch path may not do, in the preloaded library as it is shipped: use the heap, take a
// lock, make a system call. A program launches under a filter that ends it at the first one.

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "tests/unit/shim/fake_scheduler.h"

namespace rubato::shim::testing {
namespace {

using abi::Counter;
using abi::TenantClass;

constexpr uint64_t kMicrosecond = 1000;
constexpr uint64_t kSecond = 1'000'000'000;
// Threads times launches of launch_probe.cc, and what its warm-up adds.
constexpr uint64_t kLeastOps = 3ull * 100'000 * 3;

class LaunchCostTest : public ::testing::Test {
 protected:
  // The status of waitpid.
  int Probe(FakeScheduler& scheduler, const char* fault = "", const char* disable = "0") {
    ChildProcess child([&] {
      scheduler.CloseInChild();
      setenv("LD_PRELOAD", RUBATO_BUILD_DIR "/lib/librubato-cuda.so", 1);
      setenv("LD_LIBRARY_PATH", RUBATO_BUILD_DIR "/lib/bare", 1);
      setenv("RUBATO_SOCKET", scheduler.path().c_str(), 1);
      setenv("RUBATO_DISABLE", disable, 1);
      execl(RUBATO_BUILD_DIR "/bin/tests/shim_launch_probe", "shim_launch_probe", fault, nullptr);
      ADD_FAILURE() << "the probe was not built";
    });
    scheduler.Start();
    const int status = child.Wait();
    EXPECT_TRUE(FakeScheduler::Eventually([&] { return scheduler.SessionCount() == 0; }));
    for (const std::string& complaint : scheduler.Complaints()) ADD_FAILURE() << complaint;
    scheduler.Stop();
    return status;
  }

  void ExpectClean(int status) {
    ASSERT_TRUE(WIFEXITED(status))
        << (WTERMSIG(status) == SIGSYS ? "a system call on the launch path"
                                       : "killed by another signal");
    if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "the kernel has no system call filters";
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }

  // Constants as a scheduler would give them: samples, markers and an unknown duration.
  static void SetConstants(FakeScheduler& scheduler) {
    abi::DeviceConstants& constants = scheduler.page().constants;
    constants.spin_ns = 20 * kMicrosecond;
    constants.sleep_floor_ns = 50 * kMicrosecond;
    constants.unknown_op_ns = 1;
    constants.marker_work_ns = 200 * kMicrosecond;
    constants.marker_ops = 8;
    constants.sample_every = 64;
    constants.fallback_bound_ns = kSecond;
    constants.expire_factor = 3;
    constants.expire_floor_ns = kSecond;
  }

  TemporaryFolder folder_;
};

TEST_F(LaunchCostTest, Realtime) {
  FakeScheduler scheduler(folder_.path(), {.tenant_class = TenantClass::kRealtime});
  SetConstants(scheduler);
  ExpectClean(Probe(scheduler));
  ASSERT_EQ(scheduler.Ended().size(), 1u);
  EXPECT_GE(scheduler.Ended()[0].value[static_cast<uint32_t>(Counter::kJobs)], 1u);
}

TEST_F(LaunchCostTest, BestEffortAlone) {
  FakeScheduler scheduler(folder_.path(), {.tenant_class = TenantClass::kBestEffort});
  SetConstants(scheduler);
  ExpectClean(Probe(scheduler));
  ASSERT_EQ(scheduler.Ended().size(), 1u);
  // Threads may lose increments to each other; most must be there.
  EXPECT_GE(scheduler.Ended()[0].value[static_cast<uint32_t>(Counter::kOps)], kLeastOps / 3);
}

TEST_F(LaunchCostTest, BestEffortBesideAQuietRealtimeTenant) {
  FakeScheduler scheduler(folder_.path(), {.tenant_class = TenantClass::kBestEffort});
  SetConstants(scheduler);
  constexpr uint32_t kTenant = 4;
  abi::TenantLine line = {};
  line.tenant_class = static_cast<uint32_t>(TenantClass::kRealtime);
  line.bound_ns = 1000 * kSecond;  // The gate stays open.
  line.max_hold_ns = kSecond;
  abi::WriteLine(scheduler.page().tenants[kTenant].tenant, line);
  scheduler.AddPeer(kTenant, TenantClass::kRealtime);
  scheduler.page().state.realtime_sessions = 1;
  ExpectClean(Probe(scheduler));
  ASSERT_EQ(scheduler.Ended().size(), 1u);
  EXPECT_GE(scheduler.Ended()[0].value[static_cast<uint32_t>(Counter::kMarkers)], 1u);
  EXPECT_GE(scheduler.Ended()[0].value[static_cast<uint32_t>(Counter::kSamples)], 1u);
  EXPECT_EQ(scheduler.Ended()[0].value[static_cast<uint32_t>(Counter::kGateWaits)], 0u)
      << "a closed gate sleeps, which is not what this test is about";
}

TEST_F(LaunchCostTest, PassThrough) {
  FakeScheduler scheduler(folder_.path(), {});
  ExpectClean(Probe(scheduler, "", /*disable=*/"1"));
  EXPECT_EQ(scheduler.Hellos(), 0u);
}

TEST_F(LaunchCostTest, TheProbeSeesWhatItIsFor) {
  {
    FakeScheduler scheduler(folder_.path(), {});
    const int status = Probe(scheduler, "--system-call");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << "no system call filters";
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), SIGSYS);
  }
  for (const char* fault : {"--heap", "--lock"}) {
    FakeScheduler scheduler(folder_.path(), {});
    const int status = Probe(scheduler, fault);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 1) << fault;
  }
}

}  // namespace
}  // namespace rubato::shim::testing
