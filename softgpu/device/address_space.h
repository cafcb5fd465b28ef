// What the addresses of one client mean to the device: device memory, host memory it shares, or
// host memory that only the kernel can reach for us while the client lives.
//
// Device memory must have been mapped; anything else is taken for host memory. Registered host
// memory that lies in a shared file mapping is mapped here too, so the device writes to it after
// its owner's death, as a GPU does. Used by the device's one thread. Addresses come from tenants:
// every access is bounds-checked against the mappings.
#ifndef SOFTGPU_DEVICE_ADDRESS_SPACE_H_
#define SOFTGPU_DEVICE_ADDRESS_SPACE_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>

namespace rubato::softgpu {

class AddressSpace {
 public:
  // `pid` is the client's, for host memory that is not shared.
  explicit AddressSpace(pid_t pid) : pid_(pid) {}
  ~AddressSpace();
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;

  // Device memory: `local` is where the device process sees it.
  void Map(uint64_t address, uint64_t bytes, unsigned char* local);
  void Unmap(uint64_t address);
  // Where host pointers can never lie: device memory that is not mapped faults here.
  void Reserve(uint64_t address, uint64_t bytes) { windows_[address] = bytes; }

  // Registered host memory in the file behind `fd`; false if it cannot be mapped for writing, in
  // which case it is reached through the client's process. Does not keep the fd.
  bool MapShared(uint64_t address, uint64_t bytes, int fd, uint64_t offset);

  // All false on a fault; what was done until then stays done.
  bool Read(uint64_t address, void* out, size_t bytes) const;
  bool Write(uint64_t address, const void* in, size_t bytes);
  bool Copy(uint64_t dst, uint64_t src, uint64_t bytes);
  // The bytes at `address` if all of them are mapped here in one piece, else null.
  unsigned char* Local(uint64_t address, uint64_t bytes) const;
  // One aligned word, stored or loaded at once as a GPU does.
  bool StoreWord(uint64_t address, uint64_t value, uint32_t bits);
  bool LoadWord(uint64_t address, uint32_t bits, uint64_t* value) const;

 private:
  struct Range {
    uint64_t bytes;
    unsigned char* local;
    void* own_map;  // To be unmapped with the range; null for device memory.
    size_t own_bytes;
  };
  const std::pair<const uint64_t, Range>* Find(uint64_t address) const;
  bool Faults(uint64_t address) const;
  void Drop(std::map<uint64_t, Range>::iterator it);

  pid_t pid_;
  std::map<uint64_t, Range> ranges_;
  std::map<uint64_t, uint64_t> windows_;
};

}  // namespace rubato::softgpu

#endif  // SOFTGPU_DEVICE_ADDRESS_SPACE_H_
