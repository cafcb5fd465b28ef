// What the scheduler knows, as text and as JSON: pure functions of its answers.
//
// The JSON is a contract (docs/cli.md): keys are only ever added, and "schema" counts the times
// that was not enough. Instants and durations are nanoseconds, sizes are bytes.
#pragma once

#include <string>

#include "proto/control/v1/control.pb.h"

namespace rubato::cli {

namespace control = rubato::control::v1;

inline constexpr int kStatusSchema = 1;

std::string StatusTable(const control::GetStatusResponse& status);

// Ends with a newline.
std::string StatusJson(const control::GetStatusResponse& status);
// The same document where no scheduler runs: "scheduler" is null, the lists are empty.
std::string NoSchedulerJson();

// One screen of `rubato top`. Rates are taken between the two; where `before` is of another
// scheduler or does not know a tenant, they show as "-".
std::string TopTable(const control::GetStatusResponse& before,
                     const control::GetStatusResponse& now);

}  // namespace rubato::cli
