#include "agent/config/file_watch.h"

#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "base/clock.h"

namespace rubato::agent {
namespace {

// A writer's several steps, and the kubelet's, come closer together than this.
constexpr base::Nanos kSettle = 100 * base::kMillisecond;

}  // namespace

FileWatch::FileWatch(base::EventLoop* loop, std::function<void()> changed)
    : loop_(loop), changed_(std::move(changed)) {}

base::Result<std::unique_ptr<FileWatch>> FileWatch::Start(base::EventLoop* loop,
                                                          const std::string& path,
                                                          std::function<void()> changed) {
  std::unique_ptr<FileWatch> watch(new FileWatch(loop, std::move(changed)));
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "."
                             : slash == 0               ? "/"
                                                        : path.substr(0, slash);
  watch->name_ = slash == std::string::npos ? path : path.substr(slash + 1);
  watch->inotify_ = base::UniqueFd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!watch->inotify_.valid()) return base::SystemError("cannot watch " + folder);
  constexpr uint32_t kEvents = IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE | IN_ONLYDIR;
  if (::inotify_add_watch(watch->inotify_.get(), folder.c_str(), kEvents) < 0)
    return base::SystemError("cannot watch " + folder);
  FileWatch* self = watch.get();
  auto added = loop->AddFd(watch->inotify_.get(), EPOLLIN, [self](uint32_t) { self->Read(); });
  if (!added) return added.error();
  return watch;
}

FileWatch::~FileWatch() {
  loop_->RemoveTimer(settle_);
  if (inotify_.valid()) loop_->RemoveFd(inotify_.get());
}

void FileWatch::Read() {
  alignas(inotify_event) std::array<char, 4096> buffer;
  bool ours = false;
  for (;;) {
    const ssize_t got = ::read(inotify_.get(), buffer.data(), buffer.size());
    if (got <= 0) break;
    for (size_t at = 0; at + sizeof(inotify_event) <= static_cast<size_t>(got);) {
      inotify_event event;
      std::memcpy(&event, buffer.data() + at, sizeof(event));
      const char* name = buffer.data() + at + sizeof(event);
      const bool overflow = (event.mask & IN_Q_OVERFLOW) != 0;
      if (overflow || (event.len > 0 && (name_ == name || std::strcmp(name, "..data") == 0)))
        ours = true;
      at += sizeof(event) + event.len;
    }
  }
  if (!ours) return;
  loop_->RemoveTimer(settle_);
  settle_ = loop_->AddTimer(base::MonotonicNow() + kSettle, [this] {
    settle_ = 0;
    changed_();
  });
}

}  // namespace rubato::agent
