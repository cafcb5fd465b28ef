#include "shim/core/build_id.h"

#include <elf.h>
#include <link.h>
#include <string.h>

// The linker puts this at the start of the binary that contains this object file, if its ELF header
// is part of a segment.
extern "C" {
extern const ElfW(Ehdr) __ehdr_start [[gnu::weak, gnu::visibility("hidden")]];
}

namespace rubato::shim {

uint32_t ShimBuild() {
  if (&__ehdr_start == nullptr) return 0;
  const auto* base = reinterpret_cast<const char*>(&__ehdr_start);
  // What follows the header belongs to the binary, not to the object of that name.
  asm("" : "+r"(base));
  const auto* headers = reinterpret_cast<const ElfW(Phdr)*>(base + __ehdr_start.e_phoff);
  // Addresses of a shared library and of a position-independent program count from its start.
  uintptr_t first = 0;
  for (int i = 0; i < __ehdr_start.e_phnum; ++i) {
    if (headers[i].p_type == PT_LOAD) {
      first = headers[i].p_vaddr - headers[i].p_offset;
      break;
    }
  }
  for (int i = 0; i < __ehdr_start.e_phnum; ++i) {
    if (headers[i].p_type != PT_NOTE) continue;
    const char* at = base + (headers[i].p_vaddr - first);
    const char* end = at + headers[i].p_filesz;
    while (at + sizeof(ElfW(Nhdr)) <= end) {
      ElfW(Nhdr) note;
      memcpy(&note, at, sizeof(note));
      const char* name = at + sizeof(note);
      const char* content = name + (note.n_namesz + 3) / 4 * 4;
      if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && memcmp(name, "GNU", 4) == 0 &&
          note.n_descsz >= sizeof(uint32_t) && content + note.n_descsz <= end) {
        uint32_t build;
        memcpy(&build, content, sizeof(build));
        return build;
      }
      at = content + (note.n_descsz + 3) / 4 * 4;
    }
  }
  return 0;
}

}  // namespace rubato::shim
