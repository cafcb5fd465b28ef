// A map from 64-bit handles to 64-bit values that any thread may read without waiting.
//
// The core remembers things about the driver's handles: bytes by pointer, state by stream, name by
// function. Open addressing in memory from mmap; a full table is replaced by one of twice the size,
// or, when it is mostly graves, by its twin of the same size, so a program that allocates and frees
// for ever costs a bounded amount of memory. Writers take a spin lock for the few cache lines they
// touch, never across a driver call. Readers take none: they repeat a probe only if an entry was
// erased under it. A map of zero bytes is an empty map: it lives in zeroed memory and has neither
// constructor nor destructor. Put it where a fork wipes it (state.h): a child must not meet its
// parent's lock.
#pragma once

#include <cstddef>
#include <cstdint>

#include "proto/abi/atomic.h"
#include "proto/abi/profile.h"

namespace rubato::shim {

class HandleMap {
 public:
  // Keys that no driver hands out as a handle, and that no caller may insert.
  static constexpr uint64_t kNoKey = 0;
  static constexpr uint64_t kGrave = ~uint64_t{0};

  // True, with `*value` filled in, if `key` is in the map. No lock, no system call.
  bool Find(uint64_t key, uint64_t* value) const {
    for (;;) {
      const uint64_t version = abi::LoadAcquire(version_);
      const Table* table = abi::LoadAcquire(table_);
      if (table == nullptr) return false;
      const bool found = Probe(*table, key, value);
      __atomic_thread_fence(__ATOMIC_ACQUIRE);
      if (abi::LoadRelaxed(version_) == version) return found;
    }
  }

  // Inserts `key` or replaces its value. False, with nothing changed, if memory ran out or the key
  // is one of the two above: the caller goes on without remembering.
  bool Insert(uint64_t key, uint64_t value);
  // Inserts `key` unless it is there; `*value` becomes what is there afterwards. False as above.
  // For the first sight of a handle by several threads at once: one of them wins.
  bool InsertIfAbsent(uint64_t key, uint64_t* value);
  // Removes `key`; true for the one caller that did, which gets the value if it asks for it.
  bool Erase(uint64_t key, uint64_t* value = nullptr);
  // Removes every key.
  void Clear() { EraseIf(nullptr, nullptr); }
  // Removes every entry for which `doomed` is true (null: every one). `doomed` runs under the lock:
  // it may not call the driver, nor this map.
  void EraseIf(bool (*doomed)(uint64_t key, uint64_t value, void* context), void* context);

  // Entries now; approximate while others write.
  uint64_t size() const { return abi::LoadRelaxed(live_); }

 private:
  struct Entry {
    uint64_t key;
    uint64_t value;
  };
  struct alignas(64) Table {
    uint64_t mask;  // Number of entries less one; a power of two less one.
    uint64_t used;  // Entries that are not free, graves included. Under the lock.

    Entry* entries() { return reinterpret_cast<Entry*>(this + 1); }
    const Entry* entries() const { return reinterpret_cast<const Entry*>(this + 1); }
  };

  static uint64_t Home(uint64_t key) { return (key ^ (key >> 32)) * 0x9e3779b97f4a7c15ull >> 24; }

  static bool Probe(const Table& table, uint64_t key, uint64_t* value) {
    uint64_t at = Home(key) & table.mask;
    // A table is never more than three quarters full: there is a free entry to stop at. The bound
    // is for a reader whose table is being rebuilt under it.
    for (uint64_t i = 0; i <= table.mask; ++i, at = (at + 1) & table.mask) {
      const uint64_t found = abi::LoadAcquire(table.entries()[at].key);
      if (found == key) {
        *value = abi::LoadRelaxed(table.entries()[at].value);
        return key != kNoKey && key != kGrave;
      }
      if (found == kNoKey) return false;
    }
    return false;
  }

  void Lock();
  void Unlock();
  // Readers that began before this repeat what they read. Called after an entry was freed, so that
  // nobody takes the value of its next user for its own; and before a retired table is filled.
  void Disturb() { abi::StoreRelease(version_, version_ + 1); }
  static Table* MakeTable(uint64_t entries);
  // The table, with room for one more entry; null if there is no memory. Under the lock.
  Table* Roomy();
  bool Put(uint64_t key, uint64_t* value, bool replace);
  static void Place(Table* table, uint64_t key, uint64_t value);
  static void Free(Table* table, uint64_t at);

  uint64_t version_;  // See Disturb.
  Table* table_;      // Null until the first insertion.
  uint64_t live_;     // Entries in use.
  Table* twin_;    // Retired, as large as `table_`, for the next rebuild; or null. Under the lock.
  uint32_t lock_;  // 1 while a thread writes.
  uint32_t reserved_;
};

static_assert(sizeof(HandleMap) == 40);

}  // namespace rubato::shim
