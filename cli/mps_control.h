// The MPS control daemon of a runtime directory: started before the scheduler, a process of its
// own.
//
// Apart from the scheduler so that the end of the one does not end the clients of the other. Which
// program it is (NVIDIA's, or the software GPU's stand-in) is found when it is started and written
// down in the runtime directory, so that `rubato down` asks the same one to quit.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "cli/install_layout.h"
#include "cli/runtime_dir.h"

namespace rubato::cli {

class MpsControl {
 public:
  // The command to use: RUBATO_MPS_CONTROL if set (words separated by blanks), the stand-in if the
  // driver that loads is the software GPU, else nvidia-cuda-mps-control from PATH. Forks; call
  // before threads exist.
  static base::Result<MpsControl> Find(const RuntimeDir& directory, const InstallLayout& layout);
  // The one that was started in `directory`; kNotFound if none was.
  static base::Result<MpsControl> Started(const RuntimeDir& directory);

  // True if the daemon answers.
  bool Answers() const;
  // Starts it unless it answers already, and waits until it does. Returns whether it was started.
  base::Result<bool> Start() const;
  // Asks it to quit and waits until it no longer answers.
  base::Result<void> Quit() const;

  const std::vector<std::string>& command() const { return command_; }

 private:
  MpsControl(RuntimeDir directory, std::vector<std::string> command);

  std::vector<std::string> Environment() const;
  std::string record_path() const { return directory_.path() + "/mps-control"; }

  RuntimeDir directory_;
  std::vector<std::string> command_;
};

}  // namespace rubato::cli
