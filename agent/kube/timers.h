// When things happen, as something that can be handed in: the agent gives its event loop, tests a
// clock that moves only when told to.
//
// All of agent/kube waits through this, so back-off, rates and windows are tested in virtual time.
#pragma once

#include <cstdint>
#include <functional>

#include "base/clock.h"
#include "base/event_loop.h"
#include "base/time.h"

namespace rubato::kube {

class Timers {
 public:
  using TimerId = uint64_t;  // 0 is no timer.

  virtual ~Timers() = default;
  virtual base::Nanos NowNs() const = 0;  // CLOCK_MONOTONIC.
  // Seconds and below since 1970, for what the API server is told; it may jump.
  virtual base::Nanos UnixNs() const = 0;
  // Calls `callback` once at or after `at_ns`, never from within this call.
  virtual TimerId AddTimer(base::Nanos at_ns, std::function<void()> callback) = 0;
  virtual void RemoveTimer(TimerId timer) = 0;  // 0 and timers that have run are ignored.
};

class LoopTimers final : public Timers {
 public:
  explicit LoopTimers(base::EventLoop* loop) : loop_(loop) {}  // The loop outlives this.
  base::Nanos NowNs() const override { return base::MonotonicNow(); }
  base::Nanos UnixNs() const override;
  TimerId AddTimer(base::Nanos at_ns, std::function<void()> callback) override {
    return loop_->AddTimer(at_ns, std::move(callback));
  }
  void RemoveTimer(TimerId timer) override { loop_->RemoveTimer(timer); }

 private:
  base::EventLoop* loop_;
};

}  // namespace rubato::kube
