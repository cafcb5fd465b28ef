#include "deviceplugin/directory_watch.h"

#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/unique_fd.h"

namespace rubato::deviceplugin {
namespace {

constexpr uint32_t kMask = IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_DELETE_SELF |
                           IN_MOVE_SELF | IN_ONLYDIR;
constexpr base::Nanos kLookAgainNs = 200 * base::kMillisecond;

class InotifyWatch final : public DirectoryWatch {
 public:
  InotifyWatch(base::EventLoop* loop, std::string path, std::function<void()> changed)
      : loop_(loop), path_(std::move(path)), changed_(std::move(changed)) {}

  ~InotifyWatch() override {
    loop_->RemoveTimer(timer_);
    loop_->RemoveTimer(look_timer_);
    if (inotify_.valid()) loop_->RemoveFd(inotify_.get());
  }

  base::Result<void> Begin() {
    inotify_ = base::UniqueFd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    if (!inotify_.valid())
      return base::SystemError("cannot watch directories (fs.inotify.max_user_instances)");
    auto added = loop_->AddFd(inotify_.get(), EPOLLIN, [this](uint32_t) { Read(); });
    if (!added) return added;
    Look();
    Happened();
    return {};
  }

  bool watching() const override { return watch_ >= 0; }

  void Check() override {
    struct stat status {};
    if (watch_ < 0 || (::stat(path_.c_str(), &status) == 0 && status.st_dev == device_ &&
                       status.st_ino == inode_))
      return;
    Lose();
    Happened();
  }

 private:
  void Look() {
    look_timer_ = 0;
    watch_ = ::inotify_add_watch(inotify_.get(), path_.c_str(), kMask);
    struct stat status {};
    if (watch_ >= 0 && ::stat(path_.c_str(), &status) == 0) {
      device_ = status.st_dev;
      inode_ = status.st_ino;
      Happened();  // Whatever came before the watch did.
      return;
    }
    Forget();
    look_timer_ = loop_->AddTimer(base::MonotonicNow() + kLookAgainNs, [this] { Look(); });
  }

  void Read() {
    alignas(inotify_event) char buffer[16 * 1024];
    bool lost = false;
    for (;;) {
      const ssize_t bytes = ::read(inotify_.get(), buffer, sizeof(buffer));
      if (bytes <= 0) break;
      for (ssize_t at = 0; at < bytes;) {
        inotify_event event;
        std::memcpy(&event, buffer + at, sizeof(event));
        at += static_cast<ssize_t>(sizeof(event) + event.len);
        // Events of a watch that was replaced since do not count.
        if (event.wd == watch_ && (event.mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED)) != 0)
          lost = true;
      }
    }
    if (lost) Lose();
    Happened();
  }

  void Forget() {
    if (watch_ < 0) return;
    ::inotify_rm_watch(inotify_.get(), watch_);
    watch_ = -1;
  }

  void Lose() {
    Forget();
    if (look_timer_ == 0) look_timer_ = loop_->AddTimer(base::MonotonicNow(), [this] { Look(); });
  }

  void Happened() {
    const base::Nanos now_ns = base::MonotonicNow();
    if (timer_ == 0) {
      latest_ns_ = now_ns + kLongestNs;
    } else {
      loop_->RemoveTimer(timer_);
    }
    timer_ = loop_->AddTimer(std::min(now_ns + kQuietNs, latest_ns_), [this] {
      timer_ = 0;
      changed_();
    });
  }

  base::EventLoop* loop_;
  const std::string path_;
  std::function<void()> changed_;
  base::UniqueFd inotify_;
  int watch_ = -1;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  base::Nanos latest_ns_ = 0;
  base::EventLoop::TimerId timer_ = 0;
  base::EventLoop::TimerId look_timer_ = 0;
};

}  // namespace

base::Result<std::unique_ptr<DirectoryWatch>> DirectoryWatch::Start(base::EventLoop* loop,
                                                                    const std::string& path,
                                                                    std::function<void()> changed) {
  auto watch = std::make_unique<InotifyWatch>(loop, path, std::move(changed));
  if (auto begun = watch->Begin(); !begun) return begun.error();
  return std::unique_ptr<DirectoryWatch>(std::move(watch));
}

}  // namespace rubato::deviceplugin
