#include "scheduler/policies/profile_learning.h"

#include <algorithm>
#include <array>
#include <limits>

namespace rubato::policies {
namespace {

Nanos Follow(Nanos average_ns, Nanos measured_ns) {
  if (average_ns == 0) return measured_ns;
  const Nanos difference_ns = measured_ns - average_ns;
  if (difference_ns >= 0) return average_ns + (difference_ns * 3 + 9) / 10;
  return average_ns + difference_ns / 20;
}

// The middle of the first `count` values: the one with half of the others before it.
Nanos MedianOf(const std::array<uint32_t, 5>& values, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    size_t before = 0;
    for (size_t j = 0; j < count; ++j) {
      if (values[j] < values[i] || (values[j] == values[i] && j < i)) ++before;
    }
    if (before == count / 2) return values[i];
  }
  return 0;
}

// The slot of by_share_ns that `permille` of the SMs is nearest to; -1: the whole device.
int ShareSlot(uint32_t permille) {
  if (permille >= 875) return -1;
  if (permille >= 625) return 3;
  if (permille >= 375) return 2;
  if (permille >= 188) return 1;
  return 0;
}

void Learn(uint64_t key, const core::Sample& sample, Nanos now_ns, core::ProfileTable* table) {
  core::KernelProfile* profile = table->Find(key);
  if (profile == nullptr) profile = table->Insert(key, sample.kind);
  LearnDuration(sample, now_ns, profile);
  table->Publish(*profile);
}

// One measurement of a duration that an earlier run has left. It stands until there are enough to
// judge it; then it goes if each of them says the same: too short, or too long. The first launches
// of a program are cold, so one that is longer says nothing yet.
void Try(Nanos measured_ns, core::KernelProfile* profile) {
  const size_t ring = profile->recent_ns.size();
  profile->recent_ns[profile->sample_count % ring] = core::SaturateTo32(measured_ns);
  ++profile->sample_count;
  if (--profile->trial != 0) return;
  std::array<uint32_t, 5> fresh{};
  for (uint32_t i = 0; i < kTrialSamples; ++i)
    fresh[i] = profile->recent_ns[(profile->sample_count - 1 - i) % ring];
  const auto [shortest, longest] =
      std::minmax_element(fresh.begin(), fresh.begin() + kTrialSamples);
  const bool too_short = Nanos{*shortest} > profile->duration_ns + profile->duration_ns / 4;
  const bool too_long = Nanos{*longest} < profile->duration_ns - profile->duration_ns / 4;
  if (!too_short && !too_long) return;
  profile->spread_ns = Nanos{*longest} - Nanos{*shortest};
  profile->duration_ns = MedianOf(fresh, kTrialSamples);
  profile->recent_ns = fresh;
  profile->sample_count = kTrialSamples;
}

}  // namespace

core::KernelProfile Remembered(uint64_t key, abi::OpKind kind, Nanos duration_ns, uint32_t max_ns,
                               Nanos spread_ns, uint64_t measured, bool clean) {
  core::KernelProfile profile;
  profile.key = key;
  profile.kind = kind;
  profile.duration_ns = duration_ns;
  profile.spread_ns = spread_ns;
  profile.recent_ns[0] = max_ns;
  profile.recent_ns[1] = core::SaturateTo32(duration_ns);
  profile.sample_count = kSettledSamples - kTrialSamples;
  profile.trial = kTrialSamples;
  profile.measured = measured;
  profile.clean = clean;
  return profile;
}

void LearnDuration(const core::Sample& sample, Nanos now_ns, core::KernelProfile* profile) {
  const auto measured_ns = static_cast<Nanos>(sample.duration_ns);
  profile->last_sample_ns = now_ns;
  ++profile->measured;
  const int share = ShareSlot(sample.sm_permille);
  Nanos& average_ns =
      share < 0 ? profile->duration_ns : profile->by_share_ns[static_cast<size_t>(share)];
  if (sample.disturbed && average_ns != 0 && measured_ns >= average_ns) {
    // With a neighbour in between a measurement says "at most this". It still counts a little:
    // where there always is a neighbour, nothing else would show that the clock has fallen.
    if (measured_ns > 4 * average_ns) return;
    average_ns += (measured_ns - average_ns) / 20;
    return;
  }
  if (!sample.disturbed && !profile->clean) {
    // The first clean measurement ends whatever the others led to.
    profile->clean = true;
    average_ns = 0;
    profile->recent_ns = {};
    profile->sample_count = 0;
    profile->trial = 0;
  }
  if (share >= 0) {
    average_ns = Follow(average_ns, measured_ns);
    return;
  }
  const Nanos deviation_ns = average_ns == 0 ? 0 : std::abs(measured_ns - average_ns);
  profile->spread_ns += (deviation_ns - profile->spread_ns) / 8;
  if (profile->trial != 0) return Try(measured_ns, profile);
  const size_t ring = profile->recent_ns.size();
  profile->recent_ns[profile->sample_count % ring] = sample.duration_ns;
  // The ring's position must go on when the count is full.
  if (profile->sample_count == std::numeric_limits<uint32_t>::max())
    profile->sample_count -= 5 * 1000;
  ++profile->sample_count;
  if (profile->sample_count <= ring) {
    // A first launch loads code and finds caches cold: the middle of the first few is not misled.
    average_ns = MedianOf(profile->recent_ns, profile->sample_count);
  } else {
    // One measurement that was held up by something else moves the average by little.
    average_ns = Follow(average_ns, std::min(measured_ns, 2 * average_ns));
  }
}

void LearnSample(const core::Sample& sample, Nanos now_ns, core::ProfileTable* table) {
  Learn(sample.key, sample, now_ns, table);
  if (sample.base_key != sample.key) Learn(sample.base_key, sample, now_ns, table);
}

}  // namespace rubato::policies
