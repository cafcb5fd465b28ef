#include "softgpu/device/vram.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>

namespace rubato::softgpu {

namespace {
constexpr uint64_t kGrain = 512;
constexpr uint64_t kPage = 4096;
}  // namespace

Vram::Vram(uint64_t bytes) : bytes_(bytes / kPage * kPage), free_bytes_(bytes_) {
  fd_ = memfd_create("rubato-softgpu-vram", MFD_CLOEXEC);
  if (fd_ < 0 || ftruncate(fd_, static_cast<off_t>(bytes_)) != 0) return;
  void* base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_, 0);
  if (base == MAP_FAILED) return;
  base_ = static_cast<unsigned char*>(base);
  free_.emplace(0, bytes_);
}

Vram::~Vram() {
  if (base_ != nullptr) munmap(base_, bytes_);
  if (fd_ >= 0) close(fd_);
}

std::optional<uint64_t> Vram::Allocate(uint64_t bytes, uint64_t alignment) {
  alignment = std::max(alignment, kGrain);
  if (bytes == 0 || bytes > free_bytes_ || (alignment & (alignment - 1)) != 0) return std::nullopt;
  const uint64_t size = (bytes + kGrain - 1) / kGrain * kGrain;
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    const uint64_t start = (it->first + alignment - 1) & ~(alignment - 1);
    const uint64_t end = it->first + it->second;
    if (start >= end || end - start < size) continue;
    const uint64_t first = it->first;
    free_.erase(it);
    if (start > first) free_.emplace(first, start - first);
    if (end > start + size) free_.emplace(start + size, end - start - size);
    taken_.emplace(start, Taken{size, 1});
    free_bytes_ -= size;
    return start;
  }
  return std::nullopt;
}

uint64_t Vram::Share(uint64_t offset) {
  auto it = taken_.find(offset);
  if (it == taken_.end()) return 0;
  ++it->second.owners;
  return it->second.bytes;
}

uint64_t Vram::SizeOf(uint64_t offset) const {
  auto it = taken_.find(offset);
  return it == taken_.end() ? 0 : it->second.bytes;
}

bool Vram::Free(uint64_t offset) {
  auto it = taken_.find(offset);
  if (it == taken_.end()) return false;
  if (--it->second.owners > 0) return true;
  uint64_t start = it->first;
  uint64_t size = it->second.bytes;
  taken_.erase(it);
  free_bytes_ += size;
  auto next = free_.lower_bound(start);
  if (next != free_.end() && next->first == start + size) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == start) {
      start = before->first;
      size += before->second;
      free_.erase(before);
    }
  }
  free_.emplace(start, size);
  const uint64_t first_page = (start + kPage - 1) / kPage * kPage;
  const uint64_t last_page = (start + size) / kPage * kPage;
  if (last_page > first_page) {
    fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(first_page),
              static_cast<off_t>(last_page - first_page));
  }
  return true;
}

}  // namespace rubato::softgpu
