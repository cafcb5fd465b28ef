#include "agent/gpu/gpu_watch.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <vector>

#include "base/clock.h"

namespace rubato::agent {
namespace {

using base::kMillisecond;
using base::Nanos;

// What the library does next; shared with the thread that calls it.
struct Script {
  std::mutex mutex;
  std::condition_variable changed;
  bool hang = false;
  bool fail = false;
  bool open_fails = false;
  int opened = 0;
  int closed = 0;

  void Set(bool Script::*flag, bool value) {
    const std::lock_guard lock(mutex);
    this->*flag = value;
    changed.notify_all();
  }
};

class ScriptedLibrary final : public GpuLibrary {
 public:
  explicit ScriptedLibrary(std::shared_ptr<Script> script) : script_(std::move(script)) {}
  ~ScriptedLibrary() override {
    const std::lock_guard lock(script_->mutex);
    ++script_->closed;
  }
  base::Result<GpuSnapshot> Read() override {
    std::unique_lock lock(script_->mutex);
    script_->changed.wait(lock, [this] { return !script_->hang; });
    if (script_->fail) return base::Error{base::ErrorCode::kUnavailable, "no driver"};
    GpuSnapshot snapshot;
    snapshot.gpus.push_back({});
    return snapshot;
  }

 private:
  const std::shared_ptr<Script> script_;
};

class GpuWatchTest : public ::testing::Test {
 protected:
  GpuWatchTest() : loop_(std::move(*base::EventLoop::Make())) {}

  void Start() {
    watch_ = std::make_unique<GpuWatch>(
        loop_.get(),
        [script = script_]() -> base::Result<std::unique_ptr<GpuLibrary>> {
          const std::lock_guard lock(script->mutex);
          if (script->open_fails) return base::Error{base::ErrorCode::kNotFound, "no library"};
          ++script->opened;
          return std::unique_ptr<GpuLibrary>(std::make_unique<ScriptedLibrary>(script));
        },
        GpuWatch::Options{kMillisecond, 50 * kMillisecond},
        [this](const GpuReport& report) { reports_.push_back(report); });
  }
  // Runs the loop until a report is as wanted.
  template <typename Condition>
  bool Until(Condition condition) {
    const Nanos end_ns = base::MonotonicNow() + 60 * base::kSecond;
    size_t looked = 0;
    while (base::MonotonicNow() < end_ns) {
      for (; looked < reports_.size(); ++looked) {
        if (condition(reports_[looked])) {
          reports_.clear();
          return true;
        }
      }
      loop_->RunOnce(end_ns);
    }
    return false;
  }

  std::shared_ptr<Script> script_ = std::make_shared<Script>();
  std::unique_ptr<base::EventLoop> loop_;
  std::unique_ptr<GpuWatch> watch_;
  std::vector<GpuReport> reports_;
};

TEST_F(GpuWatchTest, ReportsWhatTheLibrarySays) {
  Start();
  EXPECT_TRUE(Until([](const GpuReport& r) { return r.snapshot && r.snapshot->gpus.size() == 1; }));
}

TEST_F(GpuWatchTest, OpensAgainUntilTheLibraryIsThere) {
  script_->open_fails = true;
  Start();
  EXPECT_TRUE(Until([](const GpuReport& r) { return r.trouble == "no library"; }));
  script_->Set(&Script::open_fails, false);
  EXPECT_TRUE(Until([](const GpuReport& r) { return r.snapshot.has_value(); }));
}

TEST_F(GpuWatchTest, AnErrorClosesTheLibraryAndOpensItAgain) {
  Start();
  ASSERT_TRUE(Until([](const GpuReport& r) { return r.snapshot.has_value(); }));
  script_->Set(&Script::fail, true);
  EXPECT_TRUE(Until([](const GpuReport& r) { return r.trouble == "no driver"; }));
  script_->Set(&Script::fail, false);
  EXPECT_TRUE(Until([](const GpuReport& r) { return r.snapshot.has_value(); }));
  const std::lock_guard lock(script_->mutex);
  EXPECT_GE(script_->opened, 2);
  EXPECT_GE(script_->closed, 1);
}

TEST_F(GpuWatchTest, AHungCallIsReportedOnceAndItsReturnAsWell) {
  Start();
  ASSERT_TRUE(Until([](const GpuReport& r) { return r.snapshot.has_value(); }));
  script_->Set(&Script::hang, true);
  EXPECT_TRUE(Until([](const GpuReport& r) { return r.hung; }));
  // The loop turns; nothing more comes while the call hangs.
  const Nanos end_ns = base::MonotonicNow() + 200 * kMillisecond;
  while (base::MonotonicNow() < end_ns) loop_->RunOnce(end_ns);
  EXPECT_TRUE(reports_.empty());
  script_->Set(&Script::hang, false);
  EXPECT_TRUE(Until([](const GpuReport& r) { return !r.hung && r.snapshot.has_value(); }));
}

TEST_F(GpuWatchTest, AThreadThatHangsIsLeftBehind) {
  Start();
  ASSERT_TRUE(Until([](const GpuReport& r) { return r.snapshot.has_value(); }));
  script_->Set(&Script::hang, true);
  ASSERT_TRUE(Until([](const GpuReport& r) { return r.hung; }));
  watch_.reset();
  EXPECT_TRUE(GpuWatch::ThreadLeftBehind());
  script_->Set(&Script::hang, false);
  // It ends by itself, and tells nobody.
  const Nanos end_ns = base::MonotonicNow() + 60 * base::kSecond;
  for (;;) {
    {
      const std::lock_guard lock(script_->mutex);
      if (script_->closed == script_->opened) break;
    }
    ASSERT_LT(base::MonotonicNow(), end_ns);
    loop_->RunOnce(base::MonotonicNow() + kMillisecond);
  }
  EXPECT_TRUE(reports_.empty());
}

}  // namespace
}  // namespace rubato::agent
