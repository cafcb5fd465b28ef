// The profile table: how long each op takes on one device, and how an op is recognised.
//
// One region per device, written by the scheduler from the samples that sessions report, read by
// every best-effort session on its launch path: a hash table with open addressing and bounded
// probing, so a look-up costs one or two cache lines and no lock. Entries are never moved; a reader
// that meets a half-written entry sees an old or a new duration, each a valid prediction. Unknown
// keys are answered by the caller's default.
#pragma once

#include <cstddef>
#include <cstdint>

#include "proto/abi/atomic.h"
#include "proto/abi/region.h"

namespace rubato::abi {

enum class OpKind : uint32_t {
  kKernel = 0,
  kGraph = 1,
  kCopyHostToDevice = 2,
  kCopyDeviceToHost = 3,
  kCopyDevice = 4,  // Device to device.
  kCopyOther = 5,   // Direction unknown before the call (unified addressing).
  kMemset = 6,
  kSegment = 7,  // Part of a graph.
};

// Mixes one more word into a hash (the finaliser of splitmix64, public domain: bijective, so
// nothing is lost).
inline constexpr uint64_t Mix(uint64_t hash, uint64_t word) {
  uint64_t x = hash ^ (word + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2));
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// The hash of a function's name, the same in every process of every tenant (FNV-1a).
inline constexpr uint64_t HashName(const char* name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (; *name != '\0'; ++name) hash = (hash ^ static_cast<uint8_t>(*name)) * 0x100000001b3ull;
  return hash;
}

// Kernel key without history: function, grid, block, dynamic shared memory. Never 0, which marks a
// free entry.
inline constexpr uint64_t KernelKey(uint64_t name_hash, uint32_t grid_x, uint32_t grid_y,
                                    uint32_t grid_z, uint32_t block_x, uint32_t block_y,
                                    uint32_t block_z, uint32_t shared_bytes) {
  // Products by odd constants that do not wait for each other, and one finaliser: this runs at
  // every launch.
  const uint64_t grid = ((static_cast<uint64_t>(grid_x) << 32) | grid_y) * 0x9fb21c651e98df25ull;
  const uint64_t mixed =
      ((static_cast<uint64_t>(grid_z) << 32) | (block_x << 16) | (block_y & 0xffffu)) *
      0xd6e8feb86659fd93ull;
  const uint64_t block =
      ((static_cast<uint64_t>(block_z) << 32) | shared_bytes) * 0xa0761d6478bd642full;
  const uint64_t key = Mix(name_hash ^ grid ^ (mixed << 23 | mixed >> 41), block);
  return key == 0 ? 1 : key;
}

// Copies and memsets: kind and size class (four classes per power of two; a copy of another class
// is another key).
inline constexpr uint64_t CopyKey(OpKind kind, uint64_t bytes) {
  if (bytes == 0) bytes = 1;
  const unsigned log = 63u - static_cast<unsigned>(__builtin_clzll(bytes));
  const uint64_t quarter = log >= 2 ? (bytes >> (log - 2)) & 3u : 0;
  return Mix(0x636f7079u + static_cast<uint64_t>(kind),
             (static_cast<uint64_t>(log) << 2) | quarter) |
         1u;
}

// Key with history: persistent kernels of different problem sizes look alike, but what ran before
// them does not.
inline constexpr uint64_t HistoryKey(uint64_t base_key, uint64_t history) {
  const uint64_t key = Mix(base_key, history);
  return key == 0 ? 1 : key;
}
// A history is the low 16 bits of the stream's last four base keys, the newest lowest.
inline constexpr uint64_t PushHistory(uint64_t history, uint64_t base_key) {
  return (history << 16) | (base_key & 0xffffu);
}

struct ProfileEntry {  // Written by the scheduler.
  uint64_t
      key;  // 0: free. Stored last when the entry is made; constant until the entry is recycled.
  uint32_t
      duration_ns;  // What to expect: EWMA that rises fast and falls slowly. Saturates at 2^32 - 1.
  uint32_t max_ns;  // Longest of the last five measurements.
  uint32_t spread_ns;       // Mean absolute deviation.
  uint32_t sample_count;    // Saturates.
  uint32_t by_share_ns[4];  // Expected duration on 1/8, 1/4, 1/2, 3/4 of the SMs; 0: not measured.
  uint64_t last_sample_ns;  // CLOCK_MONOTONIC.
  uint32_t kind;            // OpKind.
  uint32_t reserved0;
  uint8_t reserved[8];
};
static_assert(sizeof(ProfileEntry) == 64);
static_assert(offsetof(ProfileEntry, by_share_ns) == 24);
static_assert(offsetof(ProfileEntry, last_sample_ns) == 40);

inline constexpr uint32_t kProfileEntries = 1u << 14;
inline constexpr uint32_t kProfileProbes =
    8;  // A key lies within this many entries of its home, or nowhere.

struct alignas(4096) ProfileRegion {
  RegionHeader header;
  uint64_t entry_count;  // Entries in use; for people.
  uint8_t reserved0[0x1000 - 0x48];
  ProfileEntry entries[kProfileEntries];
};
static_assert(offsetof(ProfileRegion, entries) == 0x1000);
static_assert(sizeof(ProfileRegion) == 0x1000 + 64 * kProfileEntries);

inline constexpr uint32_t ProfileHome(uint64_t key) {
  return static_cast<uint32_t>((key * 0x9e3779b97f4a7c15ull) >> 40) & (kProfileEntries - 1);
}

// The entry of `key`, or nullptr. Fields of the entry are read with LoadRelaxed.
inline const ProfileEntry* FindProfile(const ProfileRegion& table, uint64_t key) {
  const uint32_t home = ProfileHome(key);
  for (uint32_t i = 0; i < kProfileProbes; ++i) {
    const ProfileEntry& entry = table.entries[(home + i) & (kProfileEntries - 1)];
    const uint64_t found = LoadAcquire(entry.key);
    if (found == key) return &entry;
    if (found == 0) return nullptr;
  }
  return nullptr;
}

}  // namespace rubato::abi
