// The entry points that work in every process, attached or not: the driver's start and its own
// look-up functions.

#include "shim/hooks/entry.h"
#include "shim/hooks/lookup.h"

using namespace rubato::shim;

extern "C" RUBATO_EXPORT CUresult cuInit(unsigned flags) {
  using Real = CUresult (*)(unsigned);
  const auto real = RealOf<Real>(Row::k_cuInit);
  if (real == nullptr) return kMissingLibrary;
  if (!t_inside) {
    const ErrnoGuard guard;
    // Before the driver reads its environment: whether this process uses MPS is decided here.
    AttachProcess(VendorDriver());
  }
  return real(flags);
}

extern "C" RUBATO_EXPORT CUresult cuGetProcAddress(const char* symbol, void** function, int version,
                                                   cuuint64_t flags) {
  using Real = CUresult (*)(const char*, void**, int, cuuint64_t);
  const auto real = RealOf<Real>(Row::k_cuGetProcAddress);
  if (real == nullptr) return kMissingLibrary;
  const CUresult status = real(symbol, function, version, flags);
  if (status == CUDA_SUCCESS && function != nullptr) *function = Substitute(symbol, *function);
  return status;
}

extern "C" RUBATO_EXPORT CUresult cuGetProcAddress_v2(const char* symbol, void** function,
                                                      int version, cuuint64_t flags,
                                                      CUdriverProcAddressQueryResult* result) {
  using Real = CUresult (*)(const char*, void**, int, cuuint64_t, CUdriverProcAddressQueryResult*);
  const auto real = RealOf<Real>(Row::k_cuGetProcAddress_v2);
  if (real == nullptr) return kMissingLibrary;
  const CUresult status = real(symbol, function, version, flags, result);
  if (status == CUDA_SUCCESS && function != nullptr) *function = Substitute(symbol, *function);
  return status;
}
