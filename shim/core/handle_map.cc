#include "shim/core/handle_map.h"

#include "shim/core/sys.h"

namespace rubato::shim {

namespace {

constexpr uint64_t kFirstEntries = 512;
// Spins before the thread that holds the lock is taken to have lost its core.
constexpr int kSpins = 200;
constexpr uint64_t kNapNs = 20'000;

}  // namespace

void HandleMap::Lock() {
  for (int spins = 0;; ++spins) {
    if (abi::LoadRelaxed(lock_) == 0 && __atomic_exchange_n(&lock_, 1u, __ATOMIC_ACQUIRE) == 0) {
      return;
    }
    // A sleep and not sched_yield: the holder may have a lower priority than this thread.
    if (spins < kSpins) {
      CpuRelax();
    } else {
      const ErrnoGuard guard;
      SleepFor(kNapNs);
    }
  }
}

void HandleMap::Unlock() {
  abi::StoreRelease(lock_, 0u);
}

HandleMap::Table* HandleMap::MakeTable(uint64_t entries) {
  const ErrnoGuard guard;
  auto* table = static_cast<Table*>(MapZeroed(sizeof(Table) + entries * sizeof(Entry)));
  if (table != nullptr) table->mask = entries - 1;
  return table;
}

void HandleMap::Place(Table* table, uint64_t key, uint64_t value) {
  uint64_t at = Home(key) & table->mask;
  while (table->entries()[at].key != kNoKey) at = (at + 1) & table->mask;
  // The value first: who finds the key finds its value.
  abi::StoreRelease(table->entries()[at].value, value);
  abi::StoreRelease(table->entries()[at].key, key);
  ++table->used;
}

HandleMap::Table* HandleMap::Roomy() {
  Table* table = table_;
  if (table == nullptr) {
    table = MakeTable(kFirstEntries);
    if (table != nullptr) abi::StoreRelease(table_, table);
    return table;
  }
  const uint64_t entries = table->mask + 1;
  if (table->used + 1 <= entries / 4 * 3) return table;
  // Mostly graves: the same size will do, and there may be a table of that size from last time. A
  // reader can still be in it: it sees the version and repeats.
  const bool grow = live_ * 2 > entries;
  Table* fresh = grow ? nullptr : twin_;
  if (fresh != nullptr) {
    Disturb();
    for (uint64_t at = 0; at <= fresh->mask; ++at) {
      abi::StoreRelease(fresh->entries()[at].key, kNoKey);
    }
    fresh->used = 0;
  } else {
    fresh = MakeTable(grow ? entries * 2 : entries);
    if (fresh == nullptr) return table->used < table->mask ? table : nullptr;
  }
  for (uint64_t at = 0; at <= table->mask; ++at) {
    const Entry& entry = table->entries()[at];
    if (entry.key != kNoKey && entry.key != kGrave) Place(fresh, entry.key, entry.value);
  }
  abi::StoreRelease(table_, fresh);
  // A smaller table stays mapped for the readers that are in it; all of them together are smaller
  // than the current one.
  twin_ = grow ? nullptr : table;
  return fresh;
}

bool HandleMap::Put(uint64_t key, uint64_t* value, bool replace) {
  if (key == kNoKey || key == kGrave) return false;
  Lock();
  Table* table = Roomy();
  if (table == nullptr) {
    Unlock();
    return false;
  }
  Entry* grave = nullptr;
  uint64_t at = Home(key) & table->mask;
  for (; table->entries()[at].key != kNoKey; at = (at + 1) & table->mask) {
    Entry& entry = table->entries()[at];
    if (entry.key == key) {
      if (replace) {
        abi::StoreRelease(entry.value, *value);
      } else {
        *value = entry.value;
      }
      Unlock();
      return true;
    }
    if (entry.key == kGrave && grave == nullptr) grave = &entry;
  }
  if (grave == nullptr) {
    grave = &table->entries()[at];
    ++table->used;
  }
  abi::StoreRelease(grave->value, *value);
  abi::StoreRelease(grave->key, key);
  abi::StoreRelaxed(live_, live_ + 1);
  Unlock();
  return true;
}

bool HandleMap::Insert(uint64_t key, uint64_t value) {
  return Put(key, &value, true);
}

bool HandleMap::InsertIfAbsent(uint64_t key, uint64_t* value) {
  return Put(key, value, false);
}

// Frees an entry. A grave keeps probes that pass over it going; where the next entry is free there
// are none, and the graves before it have no use any more either.
void HandleMap::Free(Table* table, uint64_t at) {
  abi::StoreRelease(table->entries()[at].key, kGrave);
  if (table->entries()[(at + 1) & table->mask].key != kNoKey) return;
  for (; table->entries()[at].key == kGrave; at = (at - 1) & table->mask) {
    abi::StoreRelease(table->entries()[at].key, kNoKey);
    --table->used;
  }
}

bool HandleMap::Erase(uint64_t key, uint64_t* value) {
  if (key == kNoKey || key == kGrave) return false;
  // Frees of what was never seen are common (a map of one kind is asked for handles of another).
  uint64_t seen;
  if (!Find(key, &seen)) return false;
  Lock();
  Table* table = table_;
  uint64_t at = Home(key) & table->mask;
  for (; table->entries()[at].key != kNoKey; at = (at + 1) & table->mask) {
    if (table->entries()[at].key != key) continue;
    if (value != nullptr) *value = table->entries()[at].value;
    Free(table, at);
    abi::StoreRelaxed(live_, live_ - 1);
    Disturb();
    Unlock();
    return true;
  }
  Unlock();
  return false;
}

void HandleMap::EraseIf(bool (*doomed)(uint64_t key, uint64_t value, void* context),
                        void* context) {
  if (abi::LoadAcquire(table_) == nullptr) return;
  Lock();
  Table* table = table_;
  // Downwards, so that runs of graves melt from their ends as they are made.
  for (uint64_t i = 0; i <= table->mask; ++i) {
    const uint64_t at = table->mask - i;
    const Entry& entry = table->entries()[at];
    if (entry.key == kNoKey || entry.key == kGrave) continue;
    if (doomed != nullptr && !doomed(entry.key, entry.value, context)) continue;
    Free(table, at);
    abi::StoreRelaxed(live_, live_ - 1);
  }
  Disturb();
  Unlock();
}

}  // namespace rubato::shim
