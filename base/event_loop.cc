#include "base/event_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>

#include "base/clock.h"

namespace rubato::base {

Result<std::unique_ptr<EventLoop>> EventLoop::Make() {
  std::unique_ptr<EventLoop> loop(new EventLoop());
  loop->epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!loop->epoll_.valid()) return SystemError("cannot make an epoll descriptor");
  loop->wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!loop->wake_.valid()) return SystemError("cannot make an event descriptor");
  sigemptyset(&loop->signal_set_);
  EventLoop* self = loop.get();
  auto added = loop->AddFd(loop->wake_.get(), EPOLLIN, [self](uint32_t) {
    uint64_t count;
    (void)!::read(self->wake_.get(), &count, sizeof(count));
    self->RunPosted();
  });
  if (!added) return added.error();
  return loop;
}

EventLoop::~EventLoop() = default;

Result<void> EventLoop::AddFd(int fd, uint32_t epoll_events, FdCallback callback) {
  epoll_event event{};
  event.events = epoll_events;
  const uint32_t serial = next_serial_++;
  event.data.u64 = (static_cast<uint64_t>(serial) << 32) | static_cast<uint32_t>(fd);
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    return SystemError("cannot watch a descriptor");
  fds_[fd] = Watched{serial, std::make_shared<FdCallback>(std::move(callback))};
  return {};
}

void EventLoop::RemoveFd(int fd) {
  if (fds_.erase(fd) == 0) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

EventLoop::TimerId EventLoop::AddTimer(Nanos at_ns, Callback callback) {
  const TimerId id = next_timer_++;
  timers_.insert({at_ns, id});
  timer_callbacks_.emplace(id, std::make_pair(at_ns, std::move(callback)));
  return id;
}

void EventLoop::RemoveTimer(TimerId timer) {
  const auto found = timer_callbacks_.find(timer);
  if (found == timer_callbacks_.end()) return;
  timers_.erase({found->second.first, timer});
  timer_callbacks_.erase(found);
}

Result<void> EventLoop::AddSignal(int signal_number, Callback callback) {
  sigaddset(&signal_set_, signal_number);
  if (const int error = ::pthread_sigmask(SIG_BLOCK, &signal_set_, nullptr); error != 0)
    return SystemError("cannot block a signal", error);
  const int fd =
      ::signalfd(signals_.valid() ? signals_.get() : -1, &signal_set_, SFD_CLOEXEC | SFD_NONBLOCK);
  if (fd < 0) return SystemError("cannot make a signal descriptor");
  if (!signals_.valid()) {
    signals_ = UniqueFd(fd);
    auto added = AddFd(fd, EPOLLIN, [this](uint32_t) { ReadSignals(); });
    if (!added) return added;
  }
  signal_callbacks_[signal_number] = std::move(callback);
  return {};
}

void EventLoop::ReadSignals() {
  signalfd_siginfo info{};
  while (::read(signals_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    const auto found = signal_callbacks_.find(static_cast<int>(info.ssi_signo));
    if (found == signal_callbacks_.end()) continue;
    const Callback callback = found->second;
    callback();
  }
}

void EventLoop::Post(Callback callback) {
  {
    const std::lock_guard<std::mutex> lock(posted_mutex_);
    posted_.push_back(std::move(callback));
  }
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
}

void EventLoop::RunPosted() {
  std::vector<Callback> work;
  {
    const std::lock_guard<std::mutex> lock(posted_mutex_);
    work.swap(posted_);
  }
  for (Callback& callback : work) callback();
}

void EventLoop::RunTimers() {
  // Those due now, not those that they add: a timer that adds itself for the past must not starve
  // the descriptors.
  const Nanos now_ns = MonotonicNow();
  const TimerId newest = next_timer_;
  while (!timers_.empty()) {
    const auto due = std::find_if(timers_.begin(), timers_.end(), [&](const Timer& timer) {
      return timer.at_ns > now_ns || timer.id < newest;
    });
    if (due == timers_.end() || due->at_ns > now_ns) return;
    const TimerId id = due->id;
    timers_.erase(due);
    auto node = timer_callbacks_.extract(id);
    node.mapped().second();
  }
}

void EventLoop::RunOnce(Nanos until_ns) {
  Nanos wake_ns = until_ns;
  if (!timers_.empty()) wake_ns = std::min(wake_ns, timers_.begin()->at_ns);
  int timeout_ms = -1;
  if (wake_ns != std::numeric_limits<Nanos>::max()) {
    // Rounded up: to wake a little late is better than to spin through the last millisecond.
    const Nanos left_ns = std::max<Nanos>(0, wake_ns - MonotonicNow());
    timeout_ms =
        static_cast<int>(std::min<Nanos>((left_ns + kMillisecond - 1) / kMillisecond, 60 * 1000));
  }
  std::array<epoll_event, 64> events;
  const int count =
      ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout_ms);
  for (int i = 0; i < count; ++i) {
    const uint64_t data = events[static_cast<size_t>(i)].data.u64;
    const auto found = fds_.find(static_cast<int>(static_cast<uint32_t>(data)));
    // Removed by an earlier callback of this turn, and perhaps given to another descriptor since.
    if (found == fds_.end() || found->second.serial != static_cast<uint32_t>(data >> 32)) continue;
    const std::shared_ptr<FdCallback> callback = found->second.callback;
    (*callback)(events[static_cast<size_t>(i)].events);
  }
  RunTimers();
}

void EventLoop::Run() {
  stopping_ = false;
  while (!stopping_) RunOnce(std::numeric_limits<Nanos>::max());
}

}  // namespace rubato::base
