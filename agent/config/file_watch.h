// Tells when a configuration file may have changed: written in place, replaced by a rename, or, as
// the kubelet updates a ConfigMap, by the swap of the link `..data` beside it.
//
// Watches the folder, not the file, since the file's inode is what changes. Belongs to the loop.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/event_loop.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace rubato::agent {

class FileWatch {
 public:
  // `changed` is called once a burst of changes in the file's folder has settled.
  static base::Result<std::unique_ptr<FileWatch>> Start(base::EventLoop* loop,
                                                        const std::string& path,
                                                        std::function<void()> changed);
  ~FileWatch();
  FileWatch(const FileWatch&) = delete;
  FileWatch& operator=(const FileWatch&) = delete;

 private:
  FileWatch(base::EventLoop* loop, std::function<void()> changed);
  void Read();

  base::EventLoop* const loop_;
  const std::function<void()> changed_;
  base::UniqueFd inotify_;
  std::string name_;  // The file's within its folder.
  base::EventLoop::TimerId settle_ = 0;
};

}  // namespace rubato::agent
