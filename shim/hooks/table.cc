#include "shim/hooks/table.h"

#include <dlfcn.h>

#include "proto/abi/profile.h"
#include "shim/hooks/entry.h"
#include "shim/hooks/lookup.h"
#include "shim/hooks/vendor_names.h"

namespace rubato::shim {

void* g_real[kRowCount];

const char* const kRowNames[kRowCount] = {
#define ENTRY(name, ...) #name,
#define ENTRY_BY_HAND(name, ...) #name,
#include "shim/hooks/hooks.def"
#undef ENTRY
#undef ENTRY_BY_HAND
};

namespace {

// Calls of the vendor that pass by intention.
constexpr const char* kPassNames[] = {
#define PASS(name) #name,
#if defined(RUBATO_VENDOR_CUDA)
#include "shim/hooks/passthrough_cuda.def"
#else
#include "shim/hooks/passthrough_hip.def"
#endif
#undef PASS
};
constexpr size_t kPassCount = sizeof(kPassNames) / sizeof(kPassNames[0]);

constexpr bool SameText(const char* a, const char* b) {
  for (; *a != '\0' && *a == *b; ++a, ++b) {
  }
  return *a == *b;
}

// ---- By name: made by the compiler --------------------------------------------------------------

constexpr size_t kNameSlots = 2048;
static_assert(kRowCount * 3 < kNameSlots);

struct NameIndex {
  uint16_t row[kNameSlots];  // Row + 1; 0: free.
};

constexpr NameIndex MakeNameIndex() {
  NameIndex index{};
  constexpr const char* names[] = {
#define ENTRY(name, ...) #name,
#define ENTRY_BY_HAND(name, ...) #name,
#include "shim/hooks/hooks.def"
#undef ENTRY
#undef ENTRY_BY_HAND
  };
  for (size_t i = 0; i < kRowCount; ++i) {
    size_t slot = abi::HashName(names[i]) % kNameSlots;
    while (index.row[slot] != 0) slot = (slot + 1) % kNameSlots;
    index.row[slot] = static_cast<uint16_t>(i + 1);
  }
  return index;
}

constexpr NameIndex kNameIndex = MakeNameIndex();

// ---- By address: filled when the real functions are resolved ------------------------------------

constexpr size_t kAddressSlots = 4096;
static_assert((kRowCount + kPassCount) * 2 < kAddressSlots);

constexpr uint32_t kPassRow = 0xffffffffu;

struct AddressSlot {
  void* address;
  uint32_t row;  // Row + 1, or kPassRow. Stored before the address.
};
AddressSlot g_addresses[kAddressSlots];

size_t AddressHome(void* address) {
  return (reinterpret_cast<uintptr_t>(address) * 0x9e3779b97f4a7c15ull >> 40) % kAddressSlots;
}

// Threads that resolve at once insert the same addresses in the same order, so each slot only ever
// gets one value, whoever stores it. The first row with an address keeps it.
void InsertAddress(void* address, uint32_t row) {
  for (size_t i = 0, slot = AddressHome(address); i < kAddressSlots; ++i) {
    AddressSlot& entry = g_addresses[slot];
    void* found = __atomic_load_n(&entry.address, __ATOMIC_ACQUIRE);
    if (found == address) return;
    if (found == nullptr) {
      __atomic_store_n(&entry.row, row, __ATOMIC_RELAXED);
      __atomic_store_n(&entry.address, address, __ATOMIC_RELEASE);
      return;
    }
    slot = (slot + 1) % kAddressSlots;
  }
}

// ---- The libraries ------------------------------------------------------------------------------

void* g_vendor;  // Handles that are never closed: what they resolve to stays mapped.
void* g_management;
uint32_t g_resolved;

void* OpenOneOf(const char* const* names, size_t count, int flags) {
  for (size_t i = 0; i < count; ++i) {
    if (void* handle = dlopen(names[i], RTLD_LAZY | flags)) return handle;
  }
  return nullptr;
}

// dlopen and dlsym leave a message for the program's next dlerror; it belongs to no call of the
// program, so it is taken out again.
void DropMessage() {
  dlerror();
}

void* OpenVendor(Load load) {
  void* handle = __atomic_load_n(&g_vendor, __ATOMIC_ACQUIRE);
  if (handle != nullptr) return handle;
  constexpr size_t count = sizeof(kVendorLibraries) / sizeof(kVendorLibraries[0]);
  handle = OpenOneOf(kVendorLibraries, count, RTLD_NOLOAD);
  if (handle == nullptr && load == Load::kNow) handle = OpenOneOf(kVendorLibraries, count, 0);
  if (handle == nullptr) {
    DropMessage();
    return nullptr;
  }
  __atomic_store_n(&g_vendor, handle, __ATOMIC_RELEASE);
  return handle;
}

void* OpenManagement(Load load) {
  void* handle = __atomic_load_n(&g_management, __ATOMIC_ACQUIRE);
  if (handle != nullptr) return handle;
  handle = OpenOneOf(kManagementLibraries, 1, RTLD_NOLOAD);
  if (handle == nullptr && load == Load::kNow) handle = OpenOneOf(kManagementLibraries, 1, 0);
  if (handle == nullptr) {
    DropMessage();
    return nullptr;
  }
  __atomic_store_n(&g_management, handle, __ATOMIC_RELEASE);
  return handle;
}

void* SymbolIn(void* handle, const char* name) {
  if (handle == nullptr) return nullptr;
  void* found = NextSymbol(handle, name);
  if (found == nullptr) DropMessage();
  return found;
}

bool IsManagementRow(size_t row) {
  const char* name = kRowNames[row];
  return name[0] == 'n' && name[1] == 'v';
}

// The management library is opened on its own: a process that asks it about memory may never use
// the GPU, and one that uses the GPU may never ask it.
void* ResolveManagement(size_t row, Load load) {
  void* real = SymbolIn(OpenManagement(load), kRowNames[row]);
  if (real == nullptr) return nullptr;
  __atomic_store_n(&g_real[row], real, __ATOMIC_RELEASE);
  InsertAddress(real, static_cast<uint32_t>(row + 1));
  return real;
}

}  // namespace

bool ResolveReal(Load load) {
  if (__atomic_load_n(&g_resolved, __ATOMIC_ACQUIRE) != 0) return true;
  void* handle = OpenVendor(load);
  if (handle == nullptr) return false;
  for (size_t row = 0; row < kRowCount; ++row) {
    if (IsManagementRow(row)) continue;
    void* real = NextSymbol(handle, kRowNames[row]);
    if (real == nullptr) continue;
    InsertAddress(real, static_cast<uint32_t>(row + 1));
    __atomic_store_n(&g_real[row], real, __ATOMIC_RELEASE);
  }
  for (const char* name : kPassNames) {
    void* real = NextSymbol(handle, name);
    if (real != nullptr) InsertAddress(real, kPassRow);
  }
  DropMessage();
  __atomic_store_n(&g_resolved, 1u, __ATOMIC_RELEASE);
  // From here on hooked calls may act, so the core must have its driver.
  VendorDriver();
  return true;
}

void* ResolveRow(Row row, Load load) {
  const auto index = static_cast<size_t>(row);
  if (void* real = __atomic_load_n(&g_real[index], __ATOMIC_ACQUIRE)) return real;
  if (IsManagementRow(index)) return ResolveManagement(index, load);
  ResolveReal(load);
  return __atomic_load_n(&g_real[index], __ATOMIC_ACQUIRE);
}

void* VendorSymbol(const char* name) {
  return SymbolIn(OpenVendor(Load::kIfPresent), name);
}

void* ManagementSymbol(const char* name) {
  return SymbolIn(OpenManagement(Load::kIfPresent), name);
}

int FindRowByName(const char* name) {
  for (size_t slot = abi::HashName(name) % kNameSlots;; slot = (slot + 1) % kNameSlots) {
    const uint16_t row = kNameIndex.row[slot];
    if (row == 0) return -1;
    if (SameText(kRowNames[row - 1], name)) return row - 1;
  }
}

Known FindAddress(void* real) {
  for (size_t i = 0, slot = AddressHome(real); i < kAddressSlots; ++i) {
    const AddressSlot& entry = g_addresses[slot];
    void* found = __atomic_load_n(&entry.address, __ATOMIC_ACQUIRE);
    if (found == nullptr) break;
    if (found == real) {
      const uint32_t row = __atomic_load_n(&entry.row, __ATOMIC_RELAXED);
      return {true, row == kPassRow ? -1 : static_cast<int>(row) - 1};
    }
    slot = (slot + 1) % kAddressSlots;
  }
  return {false, -1};
}

bool IsVendorName(const char* name) {
  for (const char* prefix : kVendorPrefixes) {
    const char* at = name;
    const char* p = prefix;
    for (; *p != '\0' && *at == *p; ++p, ++at) {
    }
    if (*p == '\0' && *at >= 'A' && *at <= 'Z') return true;
  }
  return false;
}

}  // namespace rubato::shim
