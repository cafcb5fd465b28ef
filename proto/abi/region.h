// The first cache line of every shared region, and the version rules.
//
// A region is a memfd that the scheduler creates, sizes and fills before it sends the fd; no path
// names it. It has one writing process. Its fd is given to anybody else only after F_SEAL_SHRINK,
// F_SEAL_GROW and F_SEAL_FUTURE_WRITE are set: a read-only fd of a memfd is no boundary, since its
// receiver can re-open it for writing through /proc.
//
// Version rules. A reader refuses a region whose magic, kind or major differs from its own or whose
// size is smaller than its struct; it ignores a larger size and a newer minor, and uses an optional
// field only if the feature bit is set. All integers are little-endian; the layouts exist on 64-bit
// little-endian machines only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rubato::abi {

inline constexpr uint16_t kMajor =
    1;  // Changes when an old reader would misread a region or a message.
inline constexpr uint16_t kMinor = 0;  // Grows when a reserved field gets a meaning.

inline constexpr uint32_t kMagic = 0x54425552;  // "RUBT" in memory order.

enum class RegionKind : uint32_t {
  kSlot = 1,  // slot.h: written by one session and, in its word lines, by the GPU on behalf of that
              // session.
  kDevice = 2,   // device.h: written by the scheduler.
  kProfile = 3,  // profile.h: written by the scheduler.
};

struct alignas(64)
    RegionHeader {      // Written by the scheduler before the fd is sent, constant afterwards.
  uint32_t magic;       // kMagic.
  uint32_t kind;        // RegionKind.
  uint32_t size_bytes;  // Of the whole region; a reader maps exactly this and refuses less than its
                        // struct.
  uint16_t major;       // kMajor of the writer.
  uint16_t minor;       // kMinor of the writer.
  uint32_t features;    // Bits of optional parts that are filled in; none exist in 1.0.
  uint32_t owner;       // kSlot: the session's index in the directory of its device. Otherwise 0.
  uint64_t epoch;       // Random number of the scheduler instance that made the region.
  uint64_t created_ns;  // CLOCK_MONOTONIC.
  uint8_t reserved[24];
};
static_assert(sizeof(RegionHeader) == 64);
static_assert(offsetof(RegionHeader, size_bytes) == 8);
static_assert(offsetof(RegionHeader, epoch) == 24);

// True if a mapping of `mapped_bytes` that starts with `header` may be read as a region of `kind`
// whose struct has `struct_bytes`. The header is passed by value: the caller copies it out of
// shared memory first.
inline bool RegionAccepted(const RegionHeader& header, RegionKind kind, uint64_t struct_bytes,
                           uint64_t mapped_bytes) {
  return header.magic == kMagic && header.kind == static_cast<uint32_t>(kind) &&
         header.major == kMajor && header.size_bytes >= struct_bytes &&
         header.size_bytes <= mapped_bytes;
}

}  // namespace rubato::abi
