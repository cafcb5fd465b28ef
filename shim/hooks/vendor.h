// The vendor's types under our names, for the table and its actions.
#pragma once

#if defined(RUBATO_VENDOR_CUDA)
#include "shim/cuda/types.h"
#elif defined(RUBATO_VENDOR_HIP)
#include "shim/hip/types.h"
#else
#error "Define RUBATO_VENDOR_CUDA or RUBATO_VENDOR_HIP."
#endif
