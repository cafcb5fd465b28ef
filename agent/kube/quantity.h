// Kubernetes quantities ("8Gi", "1.5G", "3", "2e3"), exactly: no floating point on the way.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace rubato::kube {

// The whole number that `text` stands for, rounded up where it is none (as Kubernetes itself rounds
// amounts). Suffixes: n u m, none, k M G T P E, Ki Mi Gi Ti Pi Ei, or a decimal exponent. Negative
// amounts and those of 2^63 and more are errors.
base::Result<uint64_t> ParseQuantity(std::string_view text);

}  // namespace rubato::kube
