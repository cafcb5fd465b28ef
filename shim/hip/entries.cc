// HIP's entry points: the rows of hooks.def, compiled.

#include "shim/hooks/entries.h"

#include "shim/hip/actions.h"

using namespace rubato::shim;

// HIP keeps calls that it advises against; programs that use them are hooked like others.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#include "shim/hooks/hooks.def"

#undef ENTRY
#undef ENTRY_BY_HAND

namespace rubato::shim {

thread_local constinit bool t_inside = false;

// The casts pick the C function among the overloads that HIP's headers add for C++.
#define ENTRY(name, is_per_thread, kind, params, ...) \
  reinterpret_cast<void*>(static_cast<Status(*) params>(&::name)),
#define ENTRY_BY_HAND(name, kind, params) \
  reinterpret_cast<void*>(static_cast<Status(*) params>(&::name)),
void* const kEntries[kRowCount] = {
#include "shim/hooks/hooks.def"
};
#undef ENTRY
#undef ENTRY_BY_HAND

}  // namespace rubato::shim
