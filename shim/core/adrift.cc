#include "shim/core/adrift.h"

#include "shim/core/attach.h"
#include "shim/core/sys.h"

namespace rubato::shim {

namespace {

constexpr uint64_t kLongestHoldNs = 10'000'000'000;
// Between two looks: at first about as long as a short kernel, then longer and longer.
constexpr uint64_t kShortestNapNs = 20'000;
constexpr uint64_t kLongestNapNs = 1'000'000;

}  // namespace

void HoldAdrift(const Driver& driver, Handle stream) {
  MaintainConnection(driver, NowNs());
  if (!Adrift()) return;
  if (driver.event_create == nullptr || driver.event_record == nullptr ||
      driver.event_query == nullptr || driver.event_destroy == nullptr) {
    return;
  }
  const ErrnoGuard guard;
  Handle event = 0;
  if (driver.event_create(&event) != 0) return;
  if (driver.event_record(event, stream) == 0) {
    const uint64_t deadline_ns = NowNs() + kLongestHoldNs;
    uint64_t nap_ns = kShortestNapNs;
    while (driver.event_query(event) == kNotReady && NowNs() < deadline_ns) {
      SleepFor(nap_ns);
      if (nap_ns < kLongestNapNs) nap_ns += nap_ns / 2;
    }
  }
  driver.event_destroy(event);
}

}  // namespace rubato::shim
