// The table at run time: each hooked symbol's name, its real function and our entry point.
//
// Real functions are resolved all at once, from the vendor's own library, the first time one is
// needed; until then a process that never uses a GPU has paid nothing. The library is never a
// dependency of ours: a preloaded library that needs libcuda.so.1 would end programs on machines
// without one. Any thread may come first, and several may come at once: all store the same values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shim/hooks/families.h"

namespace rubato::shim {

// One index per exported entry point.
enum class Row : uint16_t {
#define ENTRY(name, ...) k_##name,
#define ENTRY_BY_HAND(name, ...) k_##name,
#include "shim/hooks/hooks.def"
#undef ENTRY
#undef ENTRY_BY_HAND
  kCount,
};
inline constexpr size_t kRowCount = static_cast<size_t>(Row::kCount);

extern void* g_real[kRowCount];                 // Null: not resolved, or absent in this driver.
extern const char* const kRowNames[kRowCount];  // In the order of Row.
extern void* const kEntries[kRowCount];         // Our entry points; from the vendor's part.

// What resolving may do.
enum class Load : uint8_t {
  kIfPresent,  // Use the vendor's library only if the program has loaded it.
  kNow,        // Load it: a hooked call was made.
};

// Fills g_real from the vendor's library, and for the rows of the management library from that one.
// False if the vendor's library is not there.
bool ResolveReal(Load load);

// The slow half of RealOf: null if the library is absent or has no such call.
void* ResolveRow(Row row, Load load);

template <typename Function>
inline Function RealOf(Row row) {
  void* real = __atomic_load_n(&g_real[static_cast<size_t>(row)], __ATOMIC_RELAXED);
  if (real == nullptr) [[unlikely]] {
    real = ResolveRow(row, Load::kNow);
  }
  return reinterpret_cast<Function>(real);
}

// A function of the vendor's library that is not hooked; null if it has none of that name or is not
// loaded. Not on the launch path.
void* VendorSymbol(const char* name);
// The same of the management library.
void* ManagementSymbol(const char* name);

// The row of a name, or -1.
int FindRowByName(const char* name);

// What an address that a look-up answered stands for.
struct Known {
  bool known;  // Ours to replace, or on the list of calls that pass.
  int row;     // The hooked row with this real address, or -1.
};
Known FindAddress(void* real);

// True for names that belong to the vendor's library by their spelling.
bool IsVendorName(const char* name);

}  // namespace rubato::shim
