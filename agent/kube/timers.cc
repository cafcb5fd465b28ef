#include "agent/kube/timers.h"

#include <time.h>

namespace rubato::kube {

base::Nanos LoopTimers::UnixNs() const {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<base::Nanos>(now.tv_sec) * base::kSecond + now.tv_nsec;
}

}  // namespace rubato::kube
