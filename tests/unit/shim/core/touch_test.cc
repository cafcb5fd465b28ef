// Pre-touch: when the helper thread runs its kernel, and that it stays out of a dying context.

#include "shim/core/touch.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "shim/core/sys.h"
#include "tests/unit/shim/core/neighbourhood.h"

namespace rubato::shim::testing {
namespace {

constexpr uint64_t kPeriodNs = 20'000'000;
constexpr uint64_t kLeadNs = 5'000'000;

struct TouchLog {
  std::atomic<int> prepared{0};
  std::atomic<int> launched{0};
  std::atomic<uint64_t> last_ns{0};
  std::atomic<int> result{0};
};

TouchLog& Log() {
  static TouchLog log;
  return log;
}

const Driver& TouchingDriver() {
  static const Driver driver = [] {
    Driver d = FakeDriver();
    d.set_context = [](Handle) { return 0; };
    d.touch_prepare = [](Handle* touch) {
      *touch = 7;
      Log().prepared++;
      return 0;
    };
    d.touch_launch = [](Handle touch) {
      Log().last_ns = NowNs();
      Log().launched++;
      return touch == 7 ? Log().result.load() : 1;
    };
    d.touch_release = [](Handle) { return 0; };
    d.find_symbol = [](const char* name) { return dlsym(RTLD_DEFAULT, name); };
    return d;
  }();
  return driver;
}

class TouchTest : public ::testing::Test {
 protected:
  TouchTest() {
    Log().prepared = 0;
    Log().launched = 0;
    Log().result = 0;
    SetDriver(&TouchingDriver());
    world.AddPeer(1, abi::TenantClass::kBestEffort);
    abi::TenantLine tenant{};
    tenant.flags = abi::kTenantTouch;
    abi::WriteLine(world.page->tenants[Neighbourhood::kOwnTenant].tenant, tenant);
    abi::ReleaseLine release{};
    release.flags = abi::kReleaseValid;
    release.phase_ns = NowNs();
    release.period_ns = kPeriodNs;
    release.touch_lead_ns = kLeadNs;
    release.margin_ns = kLeadNs;
    release.valid_until_ns = abi::kNever;
    world.SetRelease(Neighbourhood::kOwnTenant, release);
    phase_ns = release.phase_ns;
  }

  ~TouchTest() override {
    StopTouch(&world.session, 0);
    // The thread uses the world until it has seen the request.
    while (abi::LoadAcquire(world.session.touch->started) != 0) std::this_thread::yield();
  }

  static void WaitForTouches(int count) {
    while (Log().launched < count) std::this_thread::yield();
  }

  Neighbourhood world{abi::TenantClass::kRealtime};
  uint64_t phase_ns = 0;
};

TEST_F(TouchTest, TouchesWithinTheLeadOfARelease) {
  EnsureTouch(TouchingDriver(), &world.session, FakeGpu::Get().context);
  WaitForTouches(3);
  EXPECT_EQ(Log().prepared, 1);
  const uint64_t last_ns = Log().last_ns;
  const uint64_t into_period_ns = (last_ns - phase_ns) % kPeriodNs;
  EXPECT_GE(into_period_ns, kPeriodNs - kLeadNs) << "never earlier than the lead";
  EXPECT_GE(world.Counted(abi::Counter::kTouches), 2u);
  // No job came: each touch after the first was for nothing.
  EXPECT_GE(world.Counted(abi::Counter::kTouchesWasted), 1u);
}

TEST_F(TouchTest, OneThreadHoweverOftenAsked) {
  for (int i = 0; i < 10; ++i) {
    EnsureTouch(TouchingDriver(), &world.session, FakeGpu::Get().context);
  }
  WaitForTouches(1);
  EXPECT_EQ(Log().prepared, 1);
}

TEST_F(TouchTest, StaysOutsideADyingContext) {
  EnsureTouch(TouchingDriver(), &world.session, FakeGpu::Get().context);
  WaitForTouches(1);
  OnContextDestroying(FakeGpu::Get().context);
  EXPECT_EQ(abi::LoadAcquire(world.session.touch->calling), 0u);
  while (abi::LoadAcquire(world.session.touch->started) != 0) std::this_thread::yield();
  const int launched = Log().launched;
  // The next context gets a thread of its own.
  EnsureTouch(TouchingDriver(), &world.session, 0x2000);
  WaitForTouches(launched + 1);
  EXPECT_EQ(Log().prepared, 2);
}

TEST_F(TouchTest, ADriverThatRefusesIsLeftAlone) {
  Log().result = 4;
  EnsureTouch(TouchingDriver(), &world.session, FakeGpu::Get().context);
  WaitForTouches(1);
  while (abi::LoadAcquire(world.session.touch->started) != 0) std::this_thread::yield();
  EXPECT_EQ(world.session.touch->failed, 1u);
  EnsureTouch(TouchingDriver(), &world.session, FakeGpu::Get().context);
  EXPECT_EQ(world.session.touch->started, 0u);
}

TEST_F(TouchTest, NotAskedForNoThread) {
  abi::TenantLine tenant{};
  abi::WriteLine(world.page->tenants[Neighbourhood::kOwnTenant].tenant, tenant);
  EnsureTouch(TouchingDriver(), &world.session, FakeGpu::Get().context);
  EXPECT_EQ(world.session.touch->started, 0u);
}

}  // namespace
}  // namespace rubato::shim::testing
