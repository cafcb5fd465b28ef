// The scheduler's side of a profile table: finds places, writes entries in the order that readers
// rely on, and keeps the working values behind each entry.
//
// One per device. What a duration is, and who makes room, is decided by policies/profile_learning.
// Readers on other CPUs follow no lock: an entry's fields may change under them at any time, its
// key only by passing through kNoKey.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "proto/abi/profile.h"
#include "scheduler/core/kernel_profile.h"

namespace rubato::core {

class ProfileTable {
 public:
  // `region` is zeroed and stays mapped for as long as the table lives; this is its only writer.
  explicit ProfileTable(abi::ProfileRegion* region) : region_(region) {}

  // The working values of `key`, or nullptr. Invalidated by Insert of another key.
  KernelProfile* Find(uint64_t key);

  // Makes an entry for `key`, which is not in the table. When all places that a reader would look
  // at are taken, the one whose last sample is the oldest is given up.
  KernelProfile* Insert(uint64_t key, abi::OpKind kind);

  // Writes the working values out.
  void Publish(const KernelProfile& profile);

  // Enters and publishes what an earlier run has learnt. False, and nothing is done, if the key is
  // known already or a place for it would have to be taken from another.
  bool Restore(const KernelProfile& profile);

  // What was published by Publish since the last call; an entry that was given up is left out.
  std::vector<KernelProfile> TakeChanged();

  // Forgets everything. A reader that comes meanwhile finds a key or does not.
  void Clear();

  // The longest op, graphs apart, that was measured at `since_ns` or later; 0: none was. Graphs are
  // cut where they are too long.
  base::Nanos LongestSince(base::Nanos since_ns) const;

  uint32_t size() const { return static_cast<uint32_t>(profiles_.size()); }
  uint64_t evictions() const { return evictions_; }

 private:
  struct Placed {
    KernelProfile profile;
    uint32_t position;
    bool changed;
  };
  void Write(const Placed& placed);
  // Marks a place that holds nothing but must not end a reader's probing.
  static constexpr uint64_t kNoKey = ~uint64_t{0};

  abi::ProfileRegion* region_;
  std::unordered_map<uint64_t, Placed> profiles_;
  uint64_t evictions_ = 0;
};

}  // namespace rubato::core
