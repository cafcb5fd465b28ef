#include "softgpu/device/address_space.h"

#include <sys/mman.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <vector>

namespace rubato::softgpu {

namespace {
constexpr uint64_t kPage = 4096;
constexpr size_t kBounceBytes = 1u << 20;
}  // namespace

AddressSpace::~AddressSpace() {
  while (!ranges_.empty()) Drop(ranges_.begin());
}

void AddressSpace::Drop(std::map<uint64_t, Range>::iterator it) {
  if (it->second.own_map != nullptr) munmap(it->second.own_map, it->second.own_bytes);
  ranges_.erase(it);
}

void AddressSpace::Map(uint64_t address, uint64_t bytes, unsigned char* local) {
  Unmap(address);
  ranges_[address] = {bytes, local, nullptr, 0};
}

void AddressSpace::Unmap(uint64_t address) {
  auto it = ranges_.find(address);
  if (it != ranges_.end()) Drop(it);
}

bool AddressSpace::MapShared(uint64_t address, uint64_t bytes, int fd, uint64_t offset) {
  const uint64_t skip = offset % kPage;
  if (bytes == 0 || bytes > (1ull << 46)) return false;
  void* map = mmap(nullptr, bytes + skip, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                   static_cast<off_t>(offset - skip));
  if (map == MAP_FAILED) return false;
  Unmap(address);
  ranges_[address] = {bytes, static_cast<unsigned char*>(map) + skip, map, bytes + skip};
  return true;
}

const std::pair<const uint64_t, AddressSpace::Range>* AddressSpace::Find(uint64_t address) const {
  auto it = ranges_.upper_bound(address);
  if (it == ranges_.begin()) return nullptr;
  --it;
  return address - it->first < it->second.bytes ? &*it : nullptr;
}

bool AddressSpace::Faults(uint64_t address) const {
  auto it = windows_.upper_bound(address);
  if (it == windows_.begin()) return false;
  --it;
  return address - it->first < it->second;
}

unsigned char* AddressSpace::Local(uint64_t address, uint64_t bytes) const {
  const auto* range = Find(address);
  if (range == nullptr) return nullptr;
  const uint64_t at = address - range->first;
  return bytes <= range->second.bytes - at ? range->second.local + at : nullptr;
}

bool AddressSpace::Read(uint64_t address, void* out, size_t bytes) const {
  auto* to = static_cast<unsigned char*>(out);
  while (bytes > 0) {
    if (const auto* range = Find(address)) {
      const uint64_t at = address - range->first;
      const size_t n = std::min<uint64_t>(bytes, range->second.bytes - at);
      std::memcpy(to, range->second.local + at, n);
      to += n, address += n, bytes -= n;
      continue;
    }
    if (Faults(address)) return false;
    auto next = ranges_.upper_bound(address);
    const size_t n =
        next == ranges_.end() ? bytes : std::min<uint64_t>(bytes, next->first - address);
    iovec mine{to, n};
    iovec theirs{reinterpret_cast<void*>(address), n};
    if (process_vm_readv(pid_, &mine, 1, &theirs, 1, 0) != static_cast<ssize_t>(n)) return false;
    to += n, address += n, bytes -= n;
  }
  return true;
}

bool AddressSpace::Write(uint64_t address, const void* in, size_t bytes) {
  const auto* from = static_cast<const unsigned char*>(in);
  while (bytes > 0) {
    if (const auto* range = Find(address)) {
      const uint64_t at = address - range->first;
      const size_t n = std::min<uint64_t>(bytes, range->second.bytes - at);
      std::memcpy(range->second.local + at, from, n);
      from += n, address += n, bytes -= n;
      continue;
    }
    if (Faults(address)) return false;
    auto next = ranges_.upper_bound(address);
    const size_t n =
        next == ranges_.end() ? bytes : std::min<uint64_t>(bytes, next->first - address);
    iovec mine{const_cast<unsigned char*>(from), n};
    iovec theirs{reinterpret_cast<void*>(address), n};
    if (process_vm_writev(pid_, &mine, 1, &theirs, 1, 0) != static_cast<ssize_t>(n)) return false;
    from += n, address += n, bytes -= n;
  }
  return true;
}

bool AddressSpace::Copy(uint64_t dst, uint64_t src, uint64_t bytes) {
  if (unsigned char* to = Local(dst, bytes)) {
    if (const unsigned char* from = Local(src, bytes)) {
      std::memmove(to, from, bytes);
      return true;
    }
    return Read(src, to, bytes);
  }
  if (const unsigned char* from = Local(src, bytes)) return Write(dst, from, bytes);
  std::vector<unsigned char> bounce(std::min<uint64_t>(bytes, kBounceBytes));
  while (bytes > 0) {
    const size_t n = std::min<uint64_t>(bytes, bounce.size());
    if (!Read(src, bounce.data(), n) || !Write(dst, bounce.data(), n)) return false;
    src += n, dst += n, bytes -= n;
  }
  return true;
}

bool AddressSpace::StoreWord(uint64_t address, uint64_t value, uint32_t bits) {
  unsigned char* local = Local(address, bits / 8);
  if (local == nullptr) return Write(address, &value, bits / 8);
  if (bits == 32) {
    __atomic_store_n(reinterpret_cast<uint32_t*>(local), static_cast<uint32_t>(value),
                     __ATOMIC_RELEASE);
  } else {
    __atomic_store_n(reinterpret_cast<uint64_t*>(local), value, __ATOMIC_RELEASE);
  }
  return true;
}

bool AddressSpace::LoadWord(uint64_t address, uint32_t bits, uint64_t* value) const {
  *value = 0;
  const unsigned char* local = Local(address, bits / 8);
  if (local == nullptr) return Read(address, value, bits / 8);
  *value = bits == 32 ? __atomic_load_n(reinterpret_cast<const uint32_t*>(local), __ATOMIC_ACQUIRE)
                      : __atomic_load_n(reinterpret_cast<const uint64_t*>(local), __ATOMIC_ACQUIRE);
  return true;
}

}  // namespace rubato::softgpu
