// How long a job stays open after its closing call returned.
//
// Frameworks read a scalar in the middle of a job: a synchronising call returns with nothing
// outstanding, and the next op follows at once. Without a think time best-effort work would be let
// in there. The gaps between calls have two kinds then, short ones inside jobs and long ones
// between them; the think time covers the short ones. Where all gaps are alike there is nothing to
// cover.
#pragma once

#include <array>
#include <cstddef>

#include "scheduler/core/job_assembler.h"
#include "scheduler/policies/constants.h"

namespace rubato::policies {

class ThinkTime {
 public:
  // `period_ns`: declared, or 0. With a period, a gap between two activations is never taken for
  // one inside a job, however short a busy program makes it.
  explicit ThinkTime(Nanos period_ns) : period_ns_(period_ns) {}

  void OnGap(const core::JobGap& gap);

  // 0 until enough gaps were seen. At most think_limit_ns and an eighth of the period.
  Nanos ValueNs(const Constants& constants) const;

 private:
  static constexpr size_t kGaps = 64;
  static constexpr size_t kFewest = 8;

  Nanos period_ns_;
  std::array<Nanos, kGaps> gaps_{};
  size_t count_ = 0;
  size_t next_ = 0;
};

}  // namespace rubato::policies
