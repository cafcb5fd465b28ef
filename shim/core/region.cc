#include "shim/core/region.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim/core/state.h"
#include "shim/core/sys.h"

// Since Linux 5.1; older C libraries do not know the name.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace rubato::shim {

namespace {

bool Sealed(int fd, RegionAccess access) {
  const int seals = fcntl(fd, F_GET_SEALS);
  constexpr int kSize = F_SEAL_SHRINK | F_SEAL_GROW;
  if (seals < 0 || (seals & kSize) != kSize) return false;
  return access == RegionAccess::kWrite || (seals & (F_SEAL_FUTURE_WRITE | F_SEAL_WRITE)) != 0;
}

// To its readers, a mapping over another one happens at one instant. Past the C library, because
// sanitizers take its mmap for a write to the whole range by this thread.
void* MapOver(void* address, size_t bytes, int protection, int flags, int fd) {
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, address, bytes, protection, flags | MAP_FIXED, fd, 0));
}

}  // namespace

MapAnswer MapRegion(int fd, abi::RegionKind kind, size_t bytes, RegionAccess access, void* address,
                    void** mapped) {
  FileIdentity identity;
  uint64_t size_bytes;
  if (!Sealed(fd, access) || !IdentifyFile(fd, &identity, &size_bytes) || size_bytes < bytes) {
    return MapAnswer::kRefused;
  }
  const bool write = access == RegionAccess::kWrite;
  // The own slot is written on the launch path: its page faults are taken now.
  const int flags = MAP_SHARED | (write ? MAP_POPULATE : 0);
  const int protection = PROT_READ | (write ? PROT_WRITE : 0);
  void* memory = address != nullptr ? MapOver(address, bytes, protection, flags, fd)
                                    : mmap(nullptr, bytes, protection, flags, fd, 0);
  if (memory == MAP_FAILED) return MapAnswer::kFailed;
  // Where the kernel does not wipe the state page, a child finds the pointers and must be able to
  // follow them.
  if (abi::LoadRelaxed(g_state.wiped_on_fork) != 0) madvise(memory, bytes, MADV_DONTFORK);
  abi::RegionHeader header;
  memcpy(&header, memory, sizeof(header));
  if (!abi::RegionAccepted(header, kind, bytes, size_bytes)) {
    if (address != nullptr) {
      MapZerosOver(address, bytes);
    } else {
      munmap(memory, bytes);
    }
    return MapAnswer::kRefused;
  }
  *mapped = memory;
  return MapAnswer::kMapped;
}

void* ReserveAddresses(size_t bytes) {
  void* memory =
      mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, bytes, MADV_DONTDUMP);
  if (abi::LoadRelaxed(g_state.wiped_on_fork) != 0) madvise(memory, bytes, MADV_DONTFORK);
  return memory;
}

void MapZerosOver(void* address, size_t bytes) {
  MapOver(address, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

}  // namespace rubato::shim
