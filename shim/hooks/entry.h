// What every entry point does around its action: get the real function, step aside where there is
// nothing to do, and keep calls that the vendor's library makes to itself from counting twice.
#pragma once

#include <errno.h>

#include "shim/core/attach.h"
#include "shim/core/core.h"
#include "shim/core/sys.h"
#include "shim/hooks/table.h"
#include "shim/hooks/vendor.h"

#define RUBATO_EXPORT __attribute__((visibility("default")))

namespace rubato::shim {

// True while this thread is inside a real call made by one of our entries. Vendors' libraries call
// their own exported functions (or a wrapper of another interposer calls us again): those calls
// belong to the one that is under way.
extern thread_local constinit bool t_inside;

class InsideReal {
 public:
  InsideReal() { t_inside = true; }
  ~InsideReal() { t_inside = false; }
  InsideReal(const InsideReal&) = delete;
  InsideReal& operator=(const InsideReal&) = delete;
};

// The table of driver calls that the core uses, with real functions in it; made at first need.
const Driver& VendorDriver();

#if defined(RUBATO_VENDOR_HIP)
// HIP has no call that all programs begin with: the first hooked one attaches. Not on the launch
// path after that: a process is fresh only once.
void AttachAtFirstCall();
#endif

// True if the call goes straight to the real function.
inline bool Bypass() {
  if (t_inside) [[unlikely]] {
    return true;
  }
#if defined(RUBATO_VENDOR_HIP)
  if (abi::LoadRelaxed(g_state.phase) == static_cast<uint32_t>(Phase::kFresh)) [[unlikely]] {
    AttachAtFirstCall();
  }
#endif
  return !Attached();
}

}  // namespace rubato::shim
