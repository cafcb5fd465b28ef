// Asks a vendor's library at an interval on a thread of its own, and notices when it hangs.
//
// A driver in trouble blocks inside a call, for minutes or for ever: then the loop goes on, learns
// of it by its own timer, and hears again when the call returns. A thread that hangs at the end is
// left behind with what it uses.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "agent/gpu/gpu_library.h"
#include "base/event_loop.h"
#include "base/time.h"

namespace rubato::agent {

struct GpuReport {
  std::optional<GpuSnapshot> snapshot;  // Absent: `trouble` says why.
  std::string trouble;
  bool hung = false;        // The call under way takes longer than the limit.
  base::Nanos read_ns = 0;  // How long the last call took.
};

class GpuWatch {
 public:
  struct Options {
    base::Nanos poll_interval_ns = base::kSecond;
    base::Nanos hang_limit_ns = 10 * base::kSecond;
  };
  // `report` is called on the loop: after each question, and once when a call is found to hang.
  // Starts the thread. `opener` runs there, again and again until it succeeds.
  GpuWatch(base::EventLoop* loop, GpuLibraryOpener opener, Options options,
           std::function<void(const GpuReport&)> report);
  // Waits for the thread, for half a second at most.
  ~GpuWatch();
  GpuWatch(const GpuWatch&) = delete;
  GpuWatch& operator=(const GpuWatch&) = delete;

  // True if the thread was left behind inside a call: then no exit handlers may run, since they
  // would take away what it uses.
  static bool ThreadLeftBehind();

 private:
  struct Shared;
  void Look();

  base::EventLoop* const loop_;
  const Options options_;
  const std::shared_ptr<Shared> shared_;
  base::EventLoop::TimerId timer_ = 0;
  bool hung_ = false;
};

}  // namespace rubato::agent
