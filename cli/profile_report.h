// What is known about durations, as text and JSON. Pure: the answers of the control API in, text
// out.
#pragma once

#include <cstdint>
#include <string>

#include "proto/control/v1/control.pb.h"

namespace rubato::cli {

namespace control = rubato::control::v1;

// `now_s` is the time of day in seconds of Unix time: rows say how long ago they were seen.
std::string ProfileTable(const control::ListProfilesResponse& profiles, int64_t now_s);
std::string ProfileJson(const control::ListProfilesResponse& profiles);

// One line about what `rubato profile` has learnt from the tenant with this socket.
std::string ProfileSummary(const control::GetStatusResponse& status,
                           const std::string& attach_socket_path);

// The name of a tenant whose programs run now; empty: there is none.
std::string ProgramsOn(const control::GetStatusResponse& status);

}  // namespace rubato::cli
