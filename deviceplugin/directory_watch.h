// Tells when something in a directory came, went or was replaced, and when the directory itself
// did.
//
// What happened is not told, only that one should look: events may be lost or merged, and a
// kubelet's start makes a handful of them. They are gathered until it is quiet for a moment. Loop's
// thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/event_loop.h"
#include "base/result.h"
#include "base/time.h"

namespace rubato::deviceplugin {

class DirectoryWatch {
 public:
  static constexpr base::Nanos kQuietNs = 50 * base::kMillisecond;
  static constexpr base::Nanos kLongestNs = 300 * base::kMillisecond;

  // `changed` is called from the loop, first soon after the start. A directory that does not exist
  // is looked for several times a second. Error: no inotify instance is to be had.
  static base::Result<std::unique_ptr<DirectoryWatch>> Start(base::EventLoop* loop,
                                                             const std::string& path,
                                                             std::function<void()> changed);
  virtual ~DirectoryWatch() = default;

  // The directory is there and watched.
  virtual bool watching() const = 0;

  // Looks whether the directory at the path is still the one that is watched. The kernel does not
  // tell that one was removed while anything in it is open, a socket's connections included.
  virtual void Check() = 0;
};

}  // namespace rubato::deviceplugin
