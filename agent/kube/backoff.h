// How long to wait before the next attempt: doubling, with jitter, so that the agents of a thousand
// nodes do not return to a restarted API server in one instant.
//
// Pure: the random numbers come from a generator that is handed in.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "base/time.h"

namespace rubato::kube {

// Uniform 64-bit numbers. std::mt19937_64 seeded by std::random_device in the agent.
using RandomSource = std::function<uint64_t()>;

class Backoff {
 public:
  struct Limits {
    base::Nanos first_ns = 500 * base::kMillisecond;
    base::Nanos longest_ns = 30 * base::kSecond;
  };

  Backoff(Limits limits, RandomSource random) : limits_(limits), random_(std::move(random)) {}

  // The wait before the next attempt: half of the current step and a random part of the other
  // half; the step doubles each time. Never less than `retry_after_ns`, which the server asked
  // for (taken up to five minutes).
  base::Nanos Next(std::optional<base::Nanos> retry_after_ns = std::nullopt);
  void Reset() { step_ns_ = 0; }

 private:
  Limits limits_;
  RandomSource random_;
  base::Nanos step_ns_ = 0;  // 0: no failure yet.
};

}  // namespace rubato::kube
