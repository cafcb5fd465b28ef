// The memory of one device: a sparse memfd and which parts of it are taken.
//
// First fit over a sorted map of free spans. Freed pages go back to the system, so a nominal 141
// GiB costs only what programs touch. Owned and used by the device's one thread.
#ifndef SOFTGPU_DEVICE_VRAM_H_
#define SOFTGPU_DEVICE_VRAM_H_

#include <cstdint>
#include <map>
#include <optional>

namespace rubato::softgpu {

class Vram {
 public:
  explicit Vram(uint64_t bytes);
  ~Vram();
  Vram(const Vram&) = delete;
  Vram& operator=(const Vram&) = delete;

  bool ok() const { return base_ != nullptr; }
  int fd() const { return fd_; }
  unsigned char* base() const { return base_; }
  uint64_t total_bytes() const { return bytes_; }
  uint64_t free_bytes() const { return free_bytes_; }

  // Nothing if no span is large enough. `alignment` is a power of two, at least 512 is used.
  std::optional<uint64_t> Allocate(uint64_t bytes, uint64_t alignment);
  // Another owner of the allocation at `offset`; its size, or 0 if there is none.
  uint64_t Share(uint64_t offset);
  // Drops one owner; false if there is no such allocation.
  bool Free(uint64_t offset);
  uint64_t SizeOf(uint64_t offset) const;

 private:
  struct Taken {
    uint64_t bytes;
    uint32_t owners;
  };
  uint64_t bytes_;
  uint64_t free_bytes_;
  int fd_ = -1;
  unsigned char* base_ = nullptr;
  std::map<uint64_t, uint64_t> free_;
  std::map<uint64_t, Taken> taken_;
};

}  // namespace rubato::softgpu

#endif  // SOFTGPU_DEVICE_VRAM_H_
