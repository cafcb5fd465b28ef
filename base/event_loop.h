// The event loop of a daemon: descriptors, timers, signals and posted work, all on one thread.
//
// Every object of a daemon belongs to its loop's thread; other threads reach it by Post() alone.
// Callbacks must not block. A callback may add and remove anything, itself included. At rest, with
// no timer due, the thread sleeps in epoll_wait and uses no CPU.
#pragma once

#include <signal.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "base/unique_fd.h"

namespace rubato::base {

class EventLoop {
 public:
  using Callback = std::function<void()>;
  using FdCallback = std::function<void(uint32_t epoll_events)>;
  using TimerId = uint64_t;  // 0 is no timer.

  static Result<std::unique_ptr<EventLoop>> Make();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Calls `callback` while `fd` has one of `epoll_events` (level-triggered). The fd stays the
  // caller's, who removes it before closing it.
  Result<void> AddFd(int fd, uint32_t epoll_events, FdCallback callback);
  void RemoveFd(int fd);

  // Calls `callback` once, at or after `at_ns` (CLOCK_MONOTONIC). Timers of the same instant run in
  // the order in which they were added.
  TimerId AddTimer(Nanos at_ns, Callback callback);
  void RemoveTimer(TimerId timer);  // 0 and timers that have run are ignored.

  // Delivers `signal_number` here instead of to a handler. Blocks it for the calling thread (and
  // threads it makes later); call before other threads start.
  Result<void> AddSignal(int signal_number, Callback callback);

  // Runs `callback` on the loop's thread, soon. Safe from any thread. Callbacks posted after the
  // loop has ended are dropped at its destruction.
  void Post(Callback callback);

  // Runs until Stop(), which is called on the loop's thread (a callback); other threads post it.
  void Run();
  void Stop() { stopping_ = true; }

  // One turn: waits at most until `until_ns` for something to happen, handles what did. For tests
  // and for programs with a loop of their own.
  void RunOnce(Nanos until_ns);

 private:
  struct Timer {
    Nanos at_ns;
    TimerId id;
    bool operator<(const Timer& other) const {
      return at_ns != other.at_ns ? at_ns < other.at_ns : id < other.id;
    }
  };

  EventLoop() = default;
  void RunPosted();
  void RunTimers();
  void ReadSignals();

  UniqueFd epoll_;
  UniqueFd wake_;     // eventfd that Post() rings.
  UniqueFd signals_;  // signalfd, once a signal was added.
  sigset_t signal_set_{};
  bool stopping_ = false;

  struct Watched {
    uint32_t serial;  // Tells two uses of one descriptor number apart.
    std::shared_ptr<FdCallback> callback;
  };
  std::unordered_map<int, Watched> fds_;
  uint32_t next_serial_ = 1;
  std::set<Timer> timers_;
  std::unordered_map<TimerId, std::pair<Nanos, Callback>> timer_callbacks_;
  TimerId next_timer_ = 1;
  std::unordered_map<int, Callback> signal_callbacks_;

  std::mutex posted_mutex_;
  std::vector<Callback> posted_;  // Guarded by posted_mutex_.
};

}  // namespace rubato::base
