// A job: one activation of a real-time tenant, from its first sign to the return of the call that
// closed it.
#pragma once

#include <cstdint>

#include "base/time.h"

namespace rubato::core {

struct Job {
  base::Nanos first_op_ns = 0;
  base::Nanos end_ns = 0;
  uint32_t op_count = 0;
  uint32_t pieces = 1;  // Records that make it up: frameworks synchronise in the middle of jobs.
};

}  // namespace rubato::core
