// How long a job stays open after its closing call returned.
//
// Frameworks read a scalar in the middle of a job: a synchronising call returns with nothing
// outstanding, and the next op follows at once. Without a think time best-effort work would be let
// in there. Every nanosecond of it is lost to the others at the end of each job, so it covers the
// gaps that were seen inside jobs lately, and no more; where splits are rare it is zero. While
// releases are predicted, a gap is inside a job if what follows does not begin at a release.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "scheduler/policies/constants.h"

namespace rubato::policies {

enum class GapPlace : uint8_t {
  kUnknown,  // Releases are not predicted.
  kInside,   // What follows belongs to the same release.
  kBetween,  // What follows begins at a release, or nowhere near one.
};

class ThinkTime {
 public:
  void OnGap(Nanos gap_ns, GapPlace place);
  // What was seen says nothing about what will be: the program has begun something else.
  void Forget() { count_ = next_ = 0; }

  // `period_ns` of the predicted releases, or 0. 0 until enough gaps were seen.
  Nanos ValueNs(Nanos period_ns, const Constants& constants) const;

 private:
  struct Gap {
    Nanos gap_ns;
    GapPlace place;
  };
  static constexpr size_t kGaps = 64;
  static constexpr size_t kFewest = 8;

  Nanos Predicted(Nanos limit_ns, const Constants& constants) const;
  Nanos Blind(const Constants& constants) const;

  std::array<Gap, kGaps> gaps_{};
  size_t count_ = 0;
  size_t next_ = 0;
};

}  // namespace rubato::policies
