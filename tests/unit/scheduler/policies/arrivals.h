// Made-up activations of a real-time program, in virtual time, from a seed.
#pragma once

#include <cstdint>

#include "scheduler/policies/release_model.h"

namespace rubato::policies::testing {

// splitmix64 (public domain).
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t x = (state_ += 0x9e3779b97f4a7c15ull);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }
  Nanos Below(Nanos limit_ns) {
    return limit_ns <= 0 ? 0 : static_cast<Nanos>(Next() % static_cast<uint64_t>(limit_ns));
  }

 private:
  uint64_t state_;
};

inline constexpr Nanos kStart = 5'000 * kSecond;  // A host that has been up for a while.

// Feeds jobs released every `period_ns` with up to `jitter_ns` of lateness and tells the model what
// time it is after each.
class Loop {
 public:
  Loop(ReleaseModel* model, Nanos period_ns, Nanos jitter_ns, Nanos job_ns, uint64_t seed = 1)
      : model_(model), period_ns_(period_ns), jitter_ns_(jitter_ns), job_ns_(job_ns), dice_(seed) {}

  // Runs `count` jobs; the n-th release is at release().
  void Run(int count) {
    for (int i = 0; i < count; ++i) {
      release_ns_ += period_ns_;
      const Nanos first_op_ns = release_ns_ + dice_.Below(jitter_ns_);
      model_->OnJob(first_op_ns, first_op_ns + job_ns_);
      model_->Update(first_op_ns + job_ns_ + kMillisecond);
      last_first_op_ns_ = first_op_ns;
    }
  }
  void Skip(int releases) { release_ns_ += releases * period_ns_; }
  void Shift(Nanos by_ns) { release_ns_ += by_ns; }
  void Rest(Nanos for_ns) {
    const Nanos until_ns = release_ns_ + for_ns;
    while (release_ns_ + period_ns_ < until_ns) release_ns_ += period_ns_;
    model_->Update(until_ns);
  }
  void SetPeriod(Nanos period_ns) { period_ns_ = period_ns; }

  Nanos release_ns() const { return release_ns_; }
  Nanos last_first_op_ns() const { return last_first_op_ns_; }

 private:
  ReleaseModel* model_;
  Nanos period_ns_;
  Nanos jitter_ns_;
  Nanos job_ns_;
  Dice dice_;
  Nanos release_ns_ = kStart;
  Nanos last_first_op_ns_ = 0;
};

// How far the next predicted release is from `actual_ns`: positive if the prediction is later.
inline Nanos ErrorAt(const ReleasePrediction& prediction, Nanos actual_ns) {
  const Nanos from_phase_ns = actual_ns - prediction.phase_ns;
  Nanos steps = from_phase_ns / prediction.period_ns;
  if (from_phase_ns < 0) --steps;
  const Nanos before_ns = prediction.phase_ns + steps * prediction.period_ns;
  const Nanos error_ns = before_ns - actual_ns;
  return -error_ns * 2 > prediction.period_ns ? error_ns + prediction.period_ns : error_ns;
}

// True if a job at `first_op_ns` comes within the predicted spread.
inline bool Covers(const ReleasePrediction& prediction, Nanos first_op_ns) {
  const Nanos error_ns = ErrorAt(prediction, first_op_ns);
  return error_ns <= prediction.early_ns && -error_ns <= prediction.late_ns;
}

}  // namespace rubato::policies::testing
