#include "agent/kube/backoff.h"

#include <algorithm>

namespace rubato::kube {
namespace {

// What a server may ask for; more is a mistake on its side.
constexpr base::Nanos kLongestRetryAfter = 300 * base::kSecond;

}  // namespace

base::Nanos Backoff::Next(std::optional<base::Nanos> retry_after_ns) {
  step_ns_ = step_ns_ == 0 ? limits_.first_ns : std::min(step_ns_ * 2, limits_.longest_ns);
  const base::Nanos half = step_ns_ / 2;
  const base::Nanos random =
      half > 0 ? static_cast<base::Nanos>(random_() % (static_cast<uint64_t>(half) + 1)) : 0;
  const base::Nanos wait_ns = step_ns_ - half + random;
  if (!retry_after_ns.has_value()) return wait_ns;
  // Jitter on top of what the server says, or all clients return at once again.
  return std::max(wait_ns,
                  std::clamp<base::Nanos>(*retry_after_ns, 0, kLongestRetryAfter) + random);
}

}  // namespace rubato::kube
