// The names in the runtime directory that the command line alone uses, and the check that the
// directory can hold them. Which directory it is, and who may enter it: base/runtime_dir.h.
#pragma once

#include <string>
#include <utility>

#include "base/result.h"
#include "base/runtime_dir.h"

namespace rubato::cli {

class RuntimeDir {
 public:
  // Chooses the path from the environment; creates nothing. Fails if it is not absolute or too long
  // for the sockets below it.
  static base::Result<RuntimeDir> Locate();
  static base::Result<RuntimeDir> At(std::string path);

  // Makes the folder, and its parent where that is missing too (mode 0700), and checks that it is
  // ours alone.
  base::Result<void> Create() const;
  bool Exists() const;

  const std::string& path() const { return path_; }
  std::string control_socket() const { return path_ + "/" + base::kControlSocketName; }
  std::string start_lock() const { return path_ + "/start.lock"; }
  std::string scheduler_log() const { return path_ + "/scheduler.log"; }
  std::string mps_pipe_dir() const { return path_ + "/" + base::kMpsDirectoryName; }
  std::string mps_log_dir() const { return path_ + "/mps-log"; }

 private:
  explicit RuntimeDir(std::string path) : path_(std::move(path)) {}

  std::string path_;
};

}  // namespace rubato::cli
