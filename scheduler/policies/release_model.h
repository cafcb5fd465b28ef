// When will the next job of a real-time tenant be released? A line through its past releases.
//
// The times of jobs' first ops are taken for releases that come a little late. They are put on a
// grid of the declared period, or, where none was declared or the program does not keep it, of a
// period learnt from regular gaps. Over the last releases a line is fitted by medians (slope: Theil
// and Sen's median of pairwise slopes; phase: median of the residuals), so a few late jobs move
// nothing; the spread of the residuals says how early and how late a release may come. Missed
// releases leave holes, which a grid does not mind; drift is the slope; a jump of the phase shows
// as three releases that agree with each other and not with the line, which then begins anew from
// them.
//
// Pure and deterministic: integers, and the time as an argument. One per tenant and device.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "proto/abi/device.h"
#include "scheduler/policies/constants.h"

namespace rubato::policies {

enum class ReleaseKind : uint8_t {
  kAperiodic,  // Nothing regular is known.
  kLearning,   // A period is known, the phase is not, or was lost.
  kLocked,     // Releases are predicted.
};

struct ReleasePrediction {
  ReleaseKind kind = ReleaseKind::kAperiodic;
  bool period_declared = false;
  Nanos period_ns = 0;  // 0: unknown.
  Nanos phase_ns = 0;   // The latest release that the model was fitted to.
  Nanos early_ns = 0;
  Nanos late_ns = 0;
  Nanos valid_until_ns = 0;
};

class ReleaseModel {
 public:
  // `declared_period_ns` 0: to be learnt.
  ReleaseModel(Nanos declared_period_ns, const Constants& constants);

  // One job, in order of first ops; one that is not later than the last is ignored.
  void OnJob(Nanos first_op_ns, Nanos end_ns);

  // Fits what came since the last call and lets go of what was not confirmed. Called at every poll.
  void Update(Nanos now_ns);

  const ReleasePrediction& prediction() const { return prediction_; }

  // True if releases are predicted and this is the time of none: a first op here goes on with a
  // job, or begins one that was not predicted.
  bool BetweenReleases(Nanos first_op_ns) const;

  // The release that a job with this first op answers: on the grid if one is locked, else the first
  // op itself. Never later than it.
  Nanos ReleaseOf(Nanos first_op_ns) const;

  uint64_t relocks() const { return relocks_; }

 private:
  struct Arrival {
    Nanos at_ns;
    int64_t index;  // Of the release on the grid, relative to the others in the window.
  };
  struct Start {
    Nanos first_op_ns;
    Nanos end_ns;
  };

  bool Hopeless(bool on_line);
  void Accept(Nanos first_op_ns, int64_t index);
  void Restart(const std::vector<Nanos>& starts, bool keep_spread);
  void Unlock();
  bool TryLearnPeriod();
  void Fit();
  bool Agrees(Nanos spread_ns) const;
  void CutAtJump();
  Nanos Guard() const;

  Constants constants_;
  Nanos declared_ns_;
  Nanos nominal_ns_;             // The period of the grid; 0: not known.
  bool learnt_ = false;          // `nominal_ns_` was learnt.
  std::vector<Start> starts_;    // The last jobs, for learning the period.
  std::vector<Arrival> window_;  // The releases that the line is fitted to.
  std::vector<Nanos> strays_;    // Jobs in a row that do not lie on the line.
  uint32_t misses_ = 0;    // Of the last 32 jobs since the lock, one bit each: not on the line.
  uint32_t judged_ = 0;    // Jobs since the lock, up to 32.
  bool unfitted_ = false;  // Arrivals came since the last fit.
  bool locked_ = false;
  bool resting_ = false;         // No job for so long that none is expected.
  Nanos floor_early_ns_ = 0;     // Spread known from before a jump, until the window is full
  Nanos floor_late_ns_ = 0;      // enough to tell by itself.
  Nanos last_job_ns_ = 0;        // First op of the last job.
  Nanos last_confirmed_ns_ = 0;  // First op of the last job on the line.
  uint64_t relocks_ = 0;
  ReleasePrediction prediction_;
};

}  // namespace rubato::policies
