// Watches the MPS control daemon, which is a process of its own and none of the scheduler's.
//
// Every few seconds, in the modes that use MPS, asks it for its servers through its command-line
// client in a child process with a time limit; the loop never waits for it. Only reports: who
// starts and ends the daemon is `rubato up` and `rubato down`, or the unit that runs it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/event_loop.h"
#include "base/unique_fd.h"
#include "scheduler/daemon/status.h"

namespace rubato::sched {

class MpsWatch {
 public:
  // `command`: the client and its arguments.
  MpsWatch(base::EventLoop* loop, const base::Clock* clock, std::vector<std::string> command,
           std::string pipe_directory);
  ~MpsWatch();
  MpsWatch(const MpsWatch&) = delete;
  MpsWatch& operator=(const MpsWatch&) = delete;

  void Start();
  // To be called when SIGCHLD came.
  void ReapChild();
  const MpsHealth& health() const { return health_; }

 private:
  void Ask();
  void Read();
  void Conclude(bool healthy, std::string detail);

  base::EventLoop* loop_;
  const base::Clock* clock_;
  std::vector<std::string> command_;
  std::string pipe_directory_;
  MpsHealth health_;
  pid_t child_ = 0;
  base::UniqueFd output_;
  std::string answer_;
  bool output_ended_ = false;
  bool timed_out_ = false;
  base::EventLoop::TimerId timer_ = 0;
};

// RUBATO_MPS_CONTROL (words separated by blanks), else what `rubato up` wrote down in
// `runtime_dir`, else NVIDIA's.
std::vector<std::string> MpsControlCommand(const std::string& runtime_dir);

}  // namespace rubato::sched
