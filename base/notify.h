// How a daemon tells whoever started it that it is ready: a line to the descriptor named by
// RUBATO_NOTIFY_FD (the command line waits for it), and systemd's notify socket where there is one.
#pragma once

#include <string_view>

namespace rubato::base {

// Writes "READY=1\n" (or `state` and a newline) to both, closes the descriptor after the first
// call, and forgets about failures: nobody may be listening.
void NotifyReady();
// Writes "ERROR=<line>\n" to RUBATO_NOTIFY_FD, so that the starter can say why it failed.
void NotifyFailed(std::string_view line);
// Tells systemd that the daemon is ending.
void NotifyStopping();

}  // namespace rubato::base
