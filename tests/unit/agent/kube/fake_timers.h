// Time that moves when a test says so, and timers that run on it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "agent/kube/timers.h"

namespace rubato::kube {

class FakeTimers final : public Timers {
 public:
  base::Nanos NowNs() const override { return now_ns_; }
  base::Nanos UnixNs() const override { return unix_offset_ns_ + now_ns_; }
  TimerId AddTimer(base::Nanos at_ns, std::function<void()> callback) override {
    timers_.emplace(std::pair(at_ns, next_), std::move(callback));
    return next_++;
  }
  void RemoveTimer(TimerId timer) override {
    std::erase_if(timers_, [&](const auto& entry) { return entry.first.second == timer; });
  }

  // Runs what is due until `span_ns` have passed, each timer at its own time.
  void Advance(base::Nanos span_ns) {
    const base::Nanos end_ns = now_ns_ + span_ns;
    while (!timers_.empty() && timers_.begin()->first.first <= end_ns) {
      auto node = timers_.extract(timers_.begin());
      now_ns_ = std::max(now_ns_, node.key().first);
      node.mapped()();
    }
    now_ns_ = end_ns;
  }
  size_t pending() const { return timers_.size(); }
  // Until the next timer; -1: there is none.
  base::Nanos next_in_ns() const {
    return timers_.empty() ? -1 : std::max<base::Nanos>(0, timers_.begin()->first.first - now_ns_);
  }

 private:
  base::Nanos now_ns_ = 1000 * base::kSecond;
  base::Nanos unix_offset_ns_ = 1'767'225'600 * base::kSecond;  // 2026-01-01, less the above.
  TimerId next_ = 1;
  std::map<std::pair<base::Nanos, TimerId>, std::function<void()>> timers_;
};

}  // namespace rubato::kube
