#include "scheduler/core/profile_table.h"

#include <algorithm>

#include "proto/abi/atomic.h"

namespace rubato::core {

KernelProfile* ProfileTable::Find(uint64_t key) {
  const auto found = profiles_.find(key);
  return found == profiles_.end() ? nullptr : &found->second.profile;
}

KernelProfile* ProfileTable::Insert(uint64_t key, abi::OpKind kind) {
  const uint32_t home = abi::ProfileHome(key);
  uint32_t place = home;
  base::Nanos oldest_ns = 0;
  for (uint32_t i = 0; i < abi::kProfileProbes; ++i) {
    const uint32_t position = (home + i) & (abi::kProfileEntries - 1);
    const uint64_t holder = region_->entries[position].key;
    if (holder == 0 || holder == kNoKey) {
      place = position;
      break;
    }
    const base::Nanos last_ns = profiles_.at(holder).profile.last_sample_ns;
    if (i == 0 || last_ns < oldest_ns) {
      oldest_ns = last_ns;
      place = position;
    }
  }
  abi::ProfileEntry& entry = region_->entries[place];
  if (entry.key != 0 && entry.key != kNoKey) {
    profiles_.erase(entry.key);
    ++evictions_;
  }
  // A reader that still holds the old key's place must not take the new key's values for it.
  abi::StoreRelaxed(entry.key, kNoKey);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  Placed placed{};
  placed.profile.key = key;
  placed.profile.kind = kind;
  placed.position = place;
  const auto inserted = profiles_.emplace(key, placed).first;
  abi::StoreRelaxed(region_->entry_count, static_cast<uint64_t>(profiles_.size()));
  return &inserted->second.profile;
}

base::Nanos ProfileTable::LongestSince(base::Nanos since_ns) const {
  base::Nanos longest_ns = 0;
  for (const auto& [key, placed] : profiles_) {
    const KernelProfile& profile = placed.profile;
    if (profile.last_sample_ns < since_ns || profile.kind == abi::OpKind::kGraph) continue;
    longest_ns = std::max(longest_ns, profile.duration_ns);
  }
  return longest_ns;
}

void ProfileTable::Publish(const KernelProfile& profile) {
  const auto found = profiles_.find(profile.key);
  if (found == profiles_.end()) return;
  found->second.changed = true;
  Write(found->second);
}

bool ProfileTable::Restore(const KernelProfile& profile) {
  if (profile.key == 0 || profile.key == kNoKey || profiles_.contains(profile.key)) return false;
  const uint32_t home = abi::ProfileHome(profile.key);
  for (uint32_t i = 0; i < abi::kProfileProbes; ++i) {
    const uint64_t holder = region_->entries[(home + i) & (abi::kProfileEntries - 1)].key;
    if (holder != 0 && holder != kNoKey) continue;
    *Insert(profile.key, profile.kind) = profile;
    Write(profiles_.at(profile.key));
    return true;
  }
  return false;
}

std::vector<KernelProfile> ProfileTable::TakeChanged() {
  std::vector<KernelProfile> changed;
  for (auto& [key, placed] : profiles_) {
    if (placed.changed) changed.push_back(placed.profile);
    placed.changed = false;
  }
  return changed;
}

void ProfileTable::Clear() {
  for (const auto& [key, placed] : profiles_)
    abi::StoreRelease(region_->entries[placed.position].key, uint64_t{kNoKey});
  profiles_.clear();
  abi::StoreRelaxed(region_->entry_count, uint64_t{0});
}

void ProfileTable::Write(const Placed& placed) {
  const abi::ProfileEntry value = ToProfileEntry(placed.profile);
  abi::ProfileEntry& entry = region_->entries[placed.position];
  abi::StoreRelaxed(entry.duration_ns, value.duration_ns);
  abi::StoreRelaxed(entry.max_ns, value.max_ns);
  abi::StoreRelaxed(entry.spread_ns, value.spread_ns);
  abi::StoreRelaxed(entry.sample_count, value.sample_count);
  for (size_t i = 0; i < 4; ++i) abi::StoreRelaxed(entry.by_share_ns[i], value.by_share_ns[i]);
  abi::StoreRelaxed(entry.last_sample_ns, value.last_sample_ns);
  abi::StoreRelaxed(entry.kind, value.kind);
  abi::StoreRelease(entry.key, value.key);
}

}  // namespace rubato::core
