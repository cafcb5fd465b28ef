#include "agent/gpu/gpu_watch.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/clock.h"

namespace rubato::agent {
namespace {

using base::Nanos;

std::atomic<bool> g_left_behind{false};

}  // namespace

struct GpuWatch::Shared {
  GpuLibraryOpener opener;
  Nanos poll_interval_ns = 0;
  std::atomic<Nanos> call_began_ns{0};  // 0: in no call.

  std::mutex mutex;  // Guards all below.
  std::condition_variable changed;
  bool ending = false;
  bool ended = false;
  base::EventLoop* loop = nullptr;  // Null once the watch is gone.
  std::function<void(const GpuReport&)> report;

  void Tell(GpuReport report_now) {
    const std::lock_guard lock(mutex);
    if (loop == nullptr) return;
    // The loop may run this after the watch's end; `report` is emptied then.
    loop->Post([self = weak_self.lock(), told = std::move(report_now)] {
      if (self == nullptr) return;
      std::function<void(const GpuReport&)> callback;
      {
        const std::lock_guard inner(self->mutex);
        callback = self->report;
      }
      if (callback) callback(told);
    });
  }

  void Run() {
    std::unique_ptr<GpuLibrary> library;
    std::string trouble;
    for (;;) {
      GpuReport told;
      const Nanos began_ns = base::MonotonicNow();
      call_began_ns.store(began_ns, std::memory_order_relaxed);
      if (library == nullptr) {
        auto opened = opener();
        if (opened) {
          library = std::move(*opened);
        } else {
          told.trouble = opened.error().message;
        }
      }
      if (library != nullptr) {
        auto snapshot = library->Read();
        if (snapshot) {
          told.snapshot = std::move(*snapshot);
        } else {
          told.trouble = snapshot.error().message;
          library.reset();
        }
      }
      told.read_ns = base::MonotonicNow() - began_ns;
      call_began_ns.store(0, std::memory_order_relaxed);
      Tell(std::move(told));
      std::unique_lock lock(mutex);
      changed.wait_for(lock, std::chrono::nanoseconds(poll_interval_ns), [this] { return ending; });
      if (ending) break;
    }
    call_began_ns.store(base::MonotonicNow(), std::memory_order_relaxed);
    library.reset();
    const std::lock_guard lock(mutex);
    ended = true;
    changed.notify_all();
  }

  std::weak_ptr<Shared> weak_self;
};

GpuWatch::GpuWatch(base::EventLoop* loop, GpuLibraryOpener opener, Options options,
                   std::function<void(const GpuReport&)> report)
    : loop_(loop), options_(options), shared_(std::make_shared<Shared>()) {
  shared_->opener = std::move(opener);
  shared_->poll_interval_ns = options.poll_interval_ns;
  shared_->loop = loop;
  shared_->report = std::move(report);
  shared_->weak_self = shared_;
  std::thread([shared = shared_] {
    (void)::pthread_setname_np(::pthread_self(), "gpu-library");
    shared->Run();
  }).detach();
  Look();
}

GpuWatch::~GpuWatch() {
  loop_->RemoveTimer(timer_);
  std::unique_lock lock(shared_->mutex);
  shared_->ending = true;
  shared_->loop = nullptr;
  shared_->report = nullptr;
  shared_->changed.notify_all();
  const bool ended = shared_->changed.wait_for(lock, std::chrono::milliseconds(500),
                                               [this] { return shared_->ended; });
  if (!ended) g_left_behind.store(true);
}

bool GpuWatch::ThreadLeftBehind() {
  return g_left_behind.load();
}

void GpuWatch::Look() {
  const Nanos now_ns = base::MonotonicNow();
  const Nanos began_ns = shared_->call_began_ns.load(std::memory_order_relaxed);
  const bool hung = began_ns != 0 && now_ns - began_ns >= options_.hang_limit_ns;
  if (hung && !hung_) {
    GpuReport told;
    told.hung = true;
    told.trouble =
        "the driver has not answered for " + base::FormatDuration(options_.hang_limit_ns);
    told.read_ns = now_ns - began_ns;
    // Through the same queue as the thread's reports, so that they stay in order.
    shared_->Tell(std::move(told));
  }
  hung_ = hung;
  const Nanos pause_ns =
      std::clamp<Nanos>(options_.hang_limit_ns / 4, 10 * base::kMillisecond, base::kSecond);
  timer_ = loop_->AddTimer(now_ns + pause_ns, [this] { Look(); });
}

}  // namespace rubato::agent
