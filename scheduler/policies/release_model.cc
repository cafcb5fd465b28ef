#include "scheduler/policies/release_model.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

namespace rubato::policies {
namespace {

constexpr size_t kWindow = 48;        // Releases that a line is fitted to.
constexpr size_t kLockJobs = 4;       // So many must agree before anything is predicted.
constexpr size_t kJumpJobs = 3;       // So many in a row make a jump of the phase.
constexpr size_t kGiveUpStrays = 8;   // So many in a row without a line: the period does not hold.
constexpr uint32_t kJudgedJobs = 16;  // Nor does it if, of so many, more than half miss the line.
constexpr size_t kLearnGaps = 16;
constexpr size_t kLearnRegular = 14;      // So many of the gaps must be alike.
constexpr size_t kTrustSpreadAfter = 16;  // Releases after which a window's spread stands alone.
constexpr int64_t kRestPeriods = 16;      // Releases in a row without a job: the tenant rests.
constexpr Nanos kShortestLearntNs = 500 * kMicrosecond;

Nanos MedianOf(std::vector<Nanos>* values) {
  const auto middle = values->begin() + static_cast<std::ptrdiff_t>(values->size() / 2);
  std::nth_element(values->begin(), middle, values->end());
  return *middle;
}

int64_t DivideRounded(Nanos value, Nanos by) {
  return value >= 0 ? (value + by / 2) / by : -((-value + by / 2) / by);
}

int64_t DivideFloor(Nanos value, Nanos by) {
  return value >= 0 ? value / by : -((-value + by - 1) / by);
}

}  // namespace

ReleaseModel::ReleaseModel(Nanos declared_period_ns, const Constants& constants)
    : constants_(constants), declared_ns_(declared_period_ns), nominal_ns_(declared_period_ns) {
  prediction_.period_declared = declared_ns_ != 0;
  prediction_.period_ns = declared_ns_;
  prediction_.kind = declared_ns_ != 0 ? ReleaseKind::kLearning : ReleaseKind::kAperiodic;
}

Nanos ReleaseModel::Guard() const {
  return std::max(constants_.jitter_guard_ns, (prediction_.early_ns + prediction_.late_ns) / 8);
}

void ReleaseModel::OnJob(Nanos first_op_ns, Nanos end_ns) {
  if (first_op_ns <= last_job_ns_) return;
  last_job_ns_ = first_op_ns;
  if (starts_.size() == kLearnGaps + 1) starts_.erase(starts_.begin());
  starts_.push_back(Start{first_op_ns, end_ns});
  if (nominal_ns_ == 0) return;

  if (window_.empty()) {
    Accept(first_op_ns, 0);
    return;
  }
  const Nanos period_ns = locked_ ? prediction_.period_ns : nominal_ns_;
  const Arrival& last = window_.back();
  if (!locked_) {
    // No line yet: the job must lie on the grid through the one before it.
    const int64_t steps = DivideRounded(first_op_ns - last.at_ns, period_ns);
    const Nanos off_ns = first_op_ns - last.at_ns - steps * period_ns;
    if (steps == 0) return;  // A second job in one period tells nothing about the next release.
    if (std::abs(off_ns) <= period_ns / 4) {
      Accept(first_op_ns, last.index + steps);
      return;
    }
    strays_.push_back(first_op_ns);
    if (strays_.size() >= kJumpJobs) Restart({strays_.back()}, false);
    return;
  }
  const int64_t steps = DivideRounded(first_op_ns - prediction_.phase_ns, period_ns);
  const Nanos off_ns = first_op_ns - prediction_.phase_ns - steps * period_ns;
  const Nanos tolerance_ns =
      std::min(std::max(prediction_.early_ns, prediction_.late_ns) + period_ns / 16, period_ns / 4);
  // A second job so soon answers no release; a piece of a job that was taken for a job, say.
  if (first_op_ns - last.at_ns < period_ns / 2) return;
  const int64_t index = last.index + DivideRounded(first_op_ns - last.at_ns, period_ns);
  const bool on_line = std::abs(off_ns) <= tolerance_ns;
  if (Hopeless(on_line)) {
    Unlock();
    return;
  }
  if (on_line) {
    if (index > last.index) Accept(first_op_ns, index);
    return;
  }
  strays_.push_back(first_op_ns);
  if (strays_.size() < kJumpJobs) return;
  // Three in a row off the line: if they agree among themselves, the phase has jumped.
  bool agree = true;
  for (size_t i = strays_.size() - kJumpJobs + 1; i < strays_.size(); ++i) {
    const Nanos gap_ns = strays_[i] - strays_[i - 1];
    const int64_t gap_steps = DivideRounded(gap_ns, period_ns);
    if (gap_steps == 0 || std::abs(gap_ns - gap_steps * period_ns) > tolerance_ns) agree = false;
  }
  if (agree) {
    Restart({strays_.end() - kJumpJobs, strays_.end()}, true);
    ++relocks_;
  } else if (strays_.size() >= kGiveUpStrays) {
    Unlock();
  }
}

// Any two periods have common multiples, so some jobs of another period always lie on the line.
bool ReleaseModel::Hopeless(bool on_line) {
  misses_ = (misses_ << 1) | (on_line ? 0u : 1u);
  judged_ = std::min(judged_ + 1, 32u);
  const uint32_t last = misses_ & ((1u << kJudgedJobs) - 1);
  return judged_ >= kJudgedJobs && static_cast<uint32_t>(std::popcount(last)) > kJudgedJobs / 2;
}

void ReleaseModel::Accept(Nanos first_op_ns, int64_t index) {
  if (window_.size() == kWindow) window_.erase(window_.begin());
  window_.push_back(Arrival{first_op_ns, index});
  strays_.clear();
  last_confirmed_ns_ = first_op_ns;
  resting_ = false;
  unfitted_ = true;
}

// Begins a new line with `starts`, no part of this model, which lie on one grid. `keep_spread`: the
// tenant is as punctual as it was, only the phase is another.
void ReleaseModel::Restart(const std::vector<Nanos>& starts, bool keep_spread) {
  floor_early_ns_ = keep_spread ? prediction_.early_ns : 0;
  floor_late_ns_ = keep_spread ? prediction_.late_ns : 0;
  const Nanos period_ns = locked_ ? prediction_.period_ns : nominal_ns_;
  locked_ = locked_ && keep_spread;
  misses_ = judged_ = 0;
  window_.clear();
  int64_t index = 0;
  for (size_t i = 0; i < starts.size(); ++i) {
    if (i > 0) index += DivideRounded(starts[i] - starts[i - 1], period_ns);
    Accept(starts[i], index);
  }
}

void ReleaseModel::Unlock() {
  window_.clear();
  strays_.clear();
  locked_ = false;
  misses_ = judged_ = 0;
  unfitted_ = false;
  floor_early_ns_ = floor_late_ns_ = 0;
  // A declared period is tried again; a learnt one has to be learnt again.
  nominal_ns_ = declared_ns_;
  learnt_ = false;
}

// Is the tenant regular, whatever it declared? All of the last gaps but two must be alike, and
// there must be room between jobs: a closed loop is regular too, but its jobs follow each other
// because they end, not because time has come.
bool ReleaseModel::TryLearnPeriod() {
  if (starts_.size() < kLearnGaps + 1) return false;
  std::vector<Nanos> gaps;
  std::vector<Nanos> idle;
  for (size_t i = 1; i < starts_.size(); ++i) {
    gaps.push_back(starts_[i].first_op_ns - starts_[i - 1].first_op_ns);
    idle.push_back(starts_[i].first_op_ns - starts_[i - 1].end_ns);
  }
  std::vector<Nanos> sorted = gaps;
  const Nanos median_ns = MedianOf(&sorted);
  if (median_ns < kShortestLearntNs || MedianOf(&idle) < median_ns / 8) return false;
  const Nanos tolerance_ns = std::max(median_ns / 10, 5 * constants_.jitter_guard_ns);
  size_t regular = 0;
  Nanos sum_ns = 0;
  for (const Nanos gap_ns : gaps) {
    if (std::abs(gap_ns - median_ns) > tolerance_ns) continue;
    ++regular;
    sum_ns += gap_ns;
  }
  if (regular < kLearnRegular) return false;
  nominal_ns_ = sum_ns / static_cast<Nanos>(regular);
  learnt_ = true;
  window_.clear();
  int64_t index = 0;
  const std::vector<Start> starts = starts_;
  for (size_t i = 0; i < starts.size(); ++i) {
    if (i > 0) {
      const int64_t steps =
          DivideRounded(starts[i].first_op_ns - starts[i - 1].first_op_ns, nominal_ns_);
      if (steps == 0) continue;
      index += steps;
    }
    Accept(starts[i].first_op_ns, index);
  }
  return true;
}

// Looks for a jump that is smaller than the tolerance: the last releases all lie outside the
// predicted spread, on one side, close to each other. The line goes on from them alone.
void ReleaseModel::CutAtJump() {
  if (!locked_ || window_.size() < 2 * kJumpJobs) return;
  Nanos least_ns = 0;
  Nanos most_ns = 0;
  const Nanos period_ns = prediction_.period_ns;
  for (size_t i = window_.size() - kJumpJobs; i < window_.size(); ++i) {
    const Nanos from_phase_ns = window_[i].at_ns - prediction_.phase_ns;
    const Nanos off_ns = from_phase_ns - DivideRounded(from_phase_ns, period_ns) * period_ns;
    const bool first = i == window_.size() - kJumpJobs;
    least_ns = first ? off_ns : std::min(least_ns, off_ns);
    most_ns = first ? off_ns : std::max(most_ns, off_ns);
  }
  const Nanos spread_ns = prediction_.early_ns + prediction_.late_ns;
  const bool outside = least_ns > prediction_.late_ns || most_ns < -prediction_.early_ns;
  if (!outside || most_ns - least_ns > std::max(spread_ns, Guard())) return;
  floor_early_ns_ = prediction_.early_ns;
  floor_late_ns_ = prediction_.late_ns;
  window_.erase(window_.begin(), window_.end() - kJumpJobs);
  ++relocks_;
}

// Do the releases in the window lie close enough to a line for it to be more than chance? The more
// there are, the less close they need to be.
bool ReleaseModel::Agrees(Nanos spread_ns) const {
  const size_t count = window_.size();
  const Nanos part = count < 8 ? 16 : count < 16 ? 8 : 4;
  return spread_ns <= nominal_ns_ / part;
}

void ReleaseModel::Fit() {
  const size_t count = window_.size();
  const Arrival origin = window_.front();
  const int64_t span = window_.back().index - origin.index;
  std::vector<Nanos> offsets(count);
  for (size_t i = 0; i < count; ++i)
    offsets[i] = window_[i].at_ns - origin.at_ns - (window_[i].index - origin.index) * nominal_ns_;

  // Slope per period against the grid. Below the noise it is none: a timer does not drift.
  Nanos slope_ns = 0;
  std::vector<Nanos> scratch;
  if (count >= kLockJobs * 2 || (count >= kLockJobs && !learnt_ && span > 0)) {
    scratch.reserve(count * (count - 1) / 2);
    for (size_t i = 0; i < count; ++i) {
      for (size_t j = i + 1; j < count; ++j) {
        const int64_t steps = window_[j].index - window_[i].index;
        if (steps > 0) scratch.push_back(DivideRounded(offsets[j] - offsets[i], steps));
      }
    }
    if (!scratch.empty()) slope_ns = MedianOf(&scratch);
    scratch.clear();
    for (size_t i = 0; i < count; ++i)
      scratch.push_back(offsets[i] - (window_[i].index - origin.index) * slope_ns);
    std::vector<Nanos> residuals = scratch;
    const Nanos middle_ns = MedianOf(&residuals);
    for (Nanos& residual_ns : scratch) residual_ns = std::abs(residual_ns - middle_ns);
    const Nanos deviation_ns = MedianOf(&scratch);
    const Nanos noise_ns = std::max(2 * deviation_ns, constants_.jitter_guard_ns / 2);
    if (std::abs(slope_ns) * span <= noise_ns) slope_ns = 0;
  }
  slope_ns = std::clamp(slope_ns, -nominal_ns_ / 8, nominal_ns_ / 8);

  scratch.clear();
  for (size_t i = 0; i < count; ++i)
    scratch.push_back(offsets[i] - (window_[i].index - origin.index) * slope_ns);
  std::vector<Nanos> sorted = scratch;
  const Nanos middle_ns = MedianOf(&sorted);
  std::sort(sorted.begin(), sorted.end());
  // One odd release in 24 may be left out at either end, if it is far from the others.
  const size_t odd = count / 24;
  Nanos least_ns = sorted.front();
  Nanos most_ns = sorted.back();
  if (odd > 0) {
    const Nanos inner_least_ns = sorted[odd];
    const Nanos inner_most_ns = sorted[count - 1 - odd];
    const Nanos far_ns = 2 * (inner_most_ns - inner_least_ns) + constants_.jitter_guard_ns;
    if (inner_least_ns - least_ns > far_ns) least_ns = inner_least_ns;
    if (most_ns - inner_most_ns > far_ns) most_ns = inner_most_ns;
  }

  if (!locked_ && !Agrees(most_ns - least_ns)) {
    // Not a grid, or not yet: the older half may be from before the program settled.
    if (count == kWindow) window_.erase(window_.begin(), window_.begin() + kWindow / 2);
    return;
  }
  const Nanos period_ns = nominal_ns_ + slope_ns;
  Nanos early_ns = middle_ns - least_ns;
  Nanos late_ns = most_ns - middle_ns;
  // What a few releases did not show, the next may. Early costs every window; late only where a
  // release is missed.
  const Nanos guard_ns = std::max(constants_.jitter_guard_ns, (early_ns + late_ns) / 8);
  early_ns += guard_ns;
  late_ns += std::max({guard_ns, late_ns / 2, period_ns / 16});
  if (count < kTrustSpreadAfter) {
    early_ns = std::max(early_ns, floor_early_ns_);
    late_ns = std::max(late_ns, floor_late_ns_);
  }
  prediction_.period_ns = period_ns;
  prediction_.phase_ns = origin.at_ns + middle_ns + span * period_ns;
  prediction_.early_ns = std::min(early_ns, period_ns / 4);
  prediction_.late_ns = std::min(late_ns, period_ns / 2);
  locked_ = true;
}

void ReleaseModel::Update(Nanos now_ns) {
  if (!locked_ && (nominal_ns_ == 0 || window_.size() < kLockJobs)) {
    // Not there yet: nothing declared, or the declared period is not what the program does.
    if (nominal_ns_ == 0 || !learnt_) TryLearnPeriod();
  }
  if (unfitted_) {
    CutAtJump();
    if (window_.size() >= (locked_ ? kJumpJobs : kLockJobs)) Fit();
    unfitted_ = false;
  }
  prediction_.period_declared = declared_ns_ != 0 && !learnt_;
  if (!locked_) {
    prediction_.kind = nominal_ns_ == 0 ? ReleaseKind::kAperiodic : ReleaseKind::kLearning;
    prediction_.period_ns = nominal_ns_;
    prediction_.valid_until_ns = 0;
    return;
  }
  const Nanos period_ns = prediction_.period_ns;
  if (now_ns - last_confirmed_ns_ > kRestPeriods * period_ns) resting_ = true;
  if (resting_) {
    // The phase is kept: a program on a timer comes back to it, one job on the line is enough.
    prediction_.kind = ReleaseKind::kLearning;
    prediction_.valid_until_ns = 0;
    return;
  }
  prediction_.kind = ReleaseKind::kLocked;
  const Nanos validity_ns = std::clamp(64 * period_ns, constants_.validity_floor_ns,
                                       std::max(constants_.validity_limit_ns, 4 * period_ns));
  prediction_.valid_until_ns = last_confirmed_ns_ + validity_ns;
}

bool ReleaseModel::BetweenReleases(Nanos first_op_ns) const {
  if (prediction_.kind != ReleaseKind::kLocked) return false;
  const Nanos from_phase_ns = first_op_ns - prediction_.phase_ns;
  const Nanos off_ns =
      from_phase_ns - DivideRounded(from_phase_ns, prediction_.period_ns) * prediction_.period_ns;
  return off_ns < -prediction_.early_ns || off_ns > prediction_.late_ns;
}

Nanos ReleaseModel::ReleaseOf(Nanos first_op_ns) const {
  if (!locked_ || resting_) return first_op_ns;
  const Nanos from_phase_ns = first_op_ns + prediction_.early_ns - prediction_.phase_ns;
  const Nanos release_ns =
      prediction_.phase_ns +
      DivideFloor(from_phase_ns, prediction_.period_ns) * prediction_.period_ns;
  return std::min(release_ns, first_op_ns);
}

}  // namespace rubato::policies
