// Time as numbers: nanoseconds, how people write them, and how they are shown.
//
// Instants are CLOCK_MONOTONIC nanoseconds everywhere in the project. This header reads no clock
// (clock.h does), so pure code may include it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace rubato::base {

using Nanos = int64_t;

inline constexpr Nanos kMicrosecond = 1'000;
inline constexpr Nanos kMillisecond = 1'000'000;
inline constexpr Nanos kSecond = 1'000'000'000;

// Reads "250us", "10ms", "1.5s", "800ns": a decimal number and one of the units ns, us, ms, s.
// Negative numbers, a missing unit, and values beyond 10^15 ns (eleven days) are errors.
Result<Nanos> ParseDuration(std::string_view text);

// The shortest exact form with at most three decimals of the largest fitting unit: "10ms", "1.5s".
// Values with more digits are rounded to the nearest.
std::string FormatDuration(Nanos duration_ns);

}  // namespace rubato::base
