// Another tool's preloaded library: wraps one call and reaches the next by RTLD_NEXT, as such tools
// do. Its wrapper adds a mark to the status so that a test sees who was passed through.

#include <dlfcn.h>

#define TOOL_API extern "C" __attribute__((visibility("default")))

using Real = int (*)(unsigned long long*, unsigned long);

TOOL_API int cuMemAlloc_v2(unsigned long long* out, unsigned long bytes) {
  const auto real = reinterpret_cast<Real>(dlsym(RTLD_NEXT, "cuMemAlloc_v2"));
  return real == nullptr ? 999 : 10'000 + real(out, bytes);
}

TOOL_API void* InterposerNext(const char* name) {
  return dlsym(RTLD_NEXT, name);
}
