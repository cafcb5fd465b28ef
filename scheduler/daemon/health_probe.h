// Is the scheduler that runs at a control socket well? The other end of its health service, for
// `rubato-scheduler --health` and `--alive`: what a container's probes run, so that none needs a
// port.
#pragma once

#include <string>

#include "base/result.h"
#include "base/time.h"

namespace rubato::sched {

// An error says why it is not: nobody listens, no answer in time, or it drains, unless that will do
// too.
base::Result<void> ProbeHealth(const std::string& socket_path, bool drains_too,
                               base::Nanos time_limit = 5 * base::kSecond);

}  // namespace rubato::sched
