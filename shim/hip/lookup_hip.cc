// The entry points that work in every process, attached or not: HIP's start and its own look-up
// function.

#include "shim/hooks/entry.h"
#include "shim/hooks/lookup.h"

using namespace rubato::shim;

namespace rubato::shim {

[[gnu::cold, gnu::noinline]] void AttachAtFirstCall() {
  const ErrnoGuard guard;
  AttachProcess(VendorDriver());
}

}  // namespace rubato::shim

extern "C" RUBATO_EXPORT hipError_t hipInit(unsigned flags) {
  using Real = hipError_t (*)(unsigned);
  const auto real = RealOf<Real>(Row::k_hipInit);
  if (real == nullptr) return kMissingLibrary;
  Bypass();  // Attaches where this is the first call.
  return real(flags);
}

extern "C" RUBATO_EXPORT hipError_t hipGetProcAddress(const char* symbol, void** function,
                                                      int version, uint64_t flags,
                                                      ProcAddressResult* result) {
  using Real = hipError_t (*)(const char*, void**, int, uint64_t, ProcAddressResult*);
  const auto real = RealOf<Real>(Row::k_hipGetProcAddress);
  if (real == nullptr) return kMissingCall;
  const hipError_t status = real(symbol, function, version, flags, result);
  if (status == hipSuccess && function != nullptr) *function = Substitute(symbol, *function);
  return status;
}
