#include "shim/hooks/libc_symbols.h"

#include <elf.h>
#include <link.h>
#include <string.h>

#include <cstddef>
#include <cstdint>

namespace rubato::shim {

namespace {

struct Search {
  const char* name;
  void* found;
};

const char* BaseName(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

uint32_t GnuHash(const char* name) {
  uint32_t hash = 5381;
  for (; *name != '\0'; ++name) hash = hash * 33 + static_cast<uint8_t>(*name);
  return hash;
}

// The loader relocates the pointers of a dynamic section in place, except where that is read-only.
uintptr_t Pointer(const dl_phdr_info& object, ElfW(Addr) value) {
  return value < object.dlpi_addr ? object.dlpi_addr + value : value;
}

void* FindExport(const dl_phdr_info& object, const ElfW(Dyn) * dynamic, const char* name) {
  const ElfW(Sym)* symbols = nullptr;
  const char* strings = nullptr;
  const uint32_t* table = nullptr;
  for (; dynamic->d_tag != DT_NULL; ++dynamic) {
    const uintptr_t at = Pointer(object, dynamic->d_un.d_ptr);
    if (dynamic->d_tag == DT_SYMTAB) symbols = reinterpret_cast<const ElfW(Sym)*>(at);
    if (dynamic->d_tag == DT_STRTAB) strings = reinterpret_cast<const char*>(at);
    if (dynamic->d_tag == DT_GNU_HASH) table = reinterpret_cast<const uint32_t*>(at);
  }
  if (symbols == nullptr || strings == nullptr || table == nullptr) return nullptr;
  const uint32_t bucket_count = table[0];
  const uint32_t first_symbol = table[1];
  const uint32_t bloom_words = table[2];
  const auto* buckets = reinterpret_cast<const uint32_t*>(
      reinterpret_cast<const ElfW(Addr)*>(table + 4) + bloom_words);
  const uint32_t* chains = buckets + bucket_count;
  const uint32_t hash = GnuHash(name);
  uint32_t index = bucket_count == 0 ? 0 : buckets[hash % bucket_count];
  if (index < first_symbol) return nullptr;
  for (;; ++index) {
    const uint32_t chain = chains[index - first_symbol];
    const ElfW(Sym)& symbol = symbols[index];
    if ((chain | 1u) == (hash | 1u) && symbol.st_shndx != SHN_UNDEF &&
        (symbol.st_info & 0xf) == STT_FUNC && strcmp(strings + symbol.st_name, name) == 0) {
      return reinterpret_cast<void*>(object.dlpi_addr + symbol.st_value);
    }
    if ((chain & 1u) != 0) return nullptr;
  }
}

int Visit(dl_phdr_info* object, size_t, void* data) {
  auto* search = static_cast<Search*>(data);
  if (object->dlpi_name == nullptr) return 0;
  const char* base = BaseName(object->dlpi_name);
  if (strncmp(base, "libc.so.", 8) != 0 && strncmp(base, "libdl.so.", 9) != 0) return 0;
  for (size_t i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_DYNAMIC) continue;
    const auto* dynamic = reinterpret_cast<const ElfW(Dyn)*>(object->dlpi_addr + segment.p_vaddr);
    search->found = FindExport(*object, dynamic, search->name);
  }
  return search->found != nullptr ? 1 : 0;
}

}  // namespace

void* LibcSymbol(const char* name) {
  Search search{name, nullptr};
  dl_iterate_phdr(Visit, &search);
  return search.found;
}

}  // namespace rubato::shim
