// CUDA's entry points: the rows of hooks.def, compiled.

#include "shim/hooks/entries.h"

#include "shim/cuda/actions.h"

using namespace rubato::shim;

#include "shim/hooks/hooks.def"

#undef ENTRY
#undef ENTRY_BY_HAND

namespace rubato::shim {

thread_local constinit bool t_inside = false;

void* const kEntries[kRowCount] = {
#define ENTRY(name, ...) reinterpret_cast<void*>(&::name),
#define ENTRY_BY_HAND(name, ...) reinterpret_cast<void*>(&::name),
#include "shim/hooks/hooks.def"
#undef ENTRY
#undef ENTRY_BY_HAND
};

}  // namespace rubato::shim
