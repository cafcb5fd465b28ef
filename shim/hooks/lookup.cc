#include "shim/hooks/lookup.h"

#include <dlfcn.h>

#include <cstdint>

#include "shim/core/core.h"
#include "shim/hooks/libc_symbols.h"
#include "shim/hooks/table.h"

#define RUBATO_HIDDEN __attribute__((visibility("hidden")))

extern "C" {
// Read by the routines of dlsym.cc. Set once, never changed.
RUBATO_HIDDEN void* rubato_next_dlsym;
RUBATO_HIDDEN void* rubato_next_dlvsym;
// The answer to a look-up: null, go on to the next dlsym; kNothing, answer null; else the address.
RUBATO_HIDDEN const void* rubato_answer_dlsym(void* handle, const char* name);
RUBATO_HIDDEN const void* rubato_answer_dlvsym(void* handle, const char* name, const char* version);
}

namespace rubato::shim {

namespace {

using LookUp = void* (*)(void*, const char*);
using VersionedLookUp = void* (*)(void*, const char*, const char*);

const void* const kGoOn = nullptr;
const void* const kNothing = reinterpret_cast<const void*>(1);

// Finds the dlsym and dlvsym behind us: another interposer's if one comes next, else the C
// library's. Idempotent; threads may race.
bool FindNext() {
  if (__atomic_load_n(&rubato_next_dlvsym, __ATOMIC_ACQUIRE) != nullptr) return true;
  const auto look_up = reinterpret_cast<LookUp>(LibcSymbol("dlsym"));
  if (look_up == nullptr) return false;
  // Without a version: another interposer's have none, and a look-up by version passes over them.
  void* symbol = look_up(RTLD_NEXT, "dlsym");
  void* versioned = look_up(RTLD_NEXT, "dlvsym");
  if (symbol == nullptr || versioned == nullptr) return false;
  __atomic_store_n(&rubato_next_dlsym, symbol, __ATOMIC_RELEASE);
  __atomic_store_n(&rubato_next_dlvsym, versioned, __ATOMIC_RELEASE);
  return true;
}

// What to answer when the next look-up function found `found` for a name of the vendor's.
const void* Answer(const char* name, void* found) {
  const int row = FindRowByName(name);
  if (found == nullptr) return kGoOn;  // It says so itself, with its own dlerror message.
  if (row >= 0 && found == kEntries[row]) {
    // The search began in the global scope, where we stand in front. Without us it would have found
    // nothing unless somebody has loaded the real library.
    if (ResolveRow(static_cast<Row>(row), Load::kIfPresent) != nullptr) return kGoOn;
    NextSymbol(RTLD_NEXT, name);  // Fails, and leaves the message that the program expects.
    return kNothing;
  }
  if (row >= 0) {
    return found == ResolveRow(static_cast<Row>(row), Load::kIfPresent) ? kEntries[row] : kGoOn;
  }
  if (VendorSymbol(name) == found) Substitute(name, found);  // Counts what neither list has.
  return kGoOn;
}

}  // namespace

void* NextSymbol(void* handle, const char* name) {
  if (!FindNext()) return nullptr;
  return reinterpret_cast<LookUp>(rubato_next_dlsym)(handle, name);
}

void* Substitute(const char* symbol, void* real) {
  if (real == nullptr || !ResolveReal(Load::kIfPresent)) return real;
  const Known known = FindAddress(real);
  if (known.row >= 0) return kEntries[known.row];
  if (!known.known) OnUnknownSymbol(symbol);
  return real;
}

}  // namespace rubato::shim

const void* rubato_answer_dlsym(void* handle, const char* name) {
  using namespace rubato::shim;
  if (!FindNext()) return kNothing;
  // RTLD_NEXT means the library after the caller: only the real dlsym can tell who that is. It
  // finds our entries where they are next.
  if (name == nullptr || handle == RTLD_NEXT || !IsVendorName(name)) return kGoOn;
  return Answer(name, reinterpret_cast<LookUp>(rubato_next_dlsym)(handle, name));
}

const void* rubato_answer_dlvsym(void* handle, const char* name, const char* version) {
  using namespace rubato::shim;
  if (!FindNext()) return kNothing;
  if (name == nullptr || handle == RTLD_NEXT || !IsVendorName(name)) return kGoOn;
  return Answer(name, reinterpret_cast<VersionedLookUp>(rubato_next_dlvsym)(handle, name, version));
}
