// Atomic access to plain fields of shared memory.
//
// The layouts in this folder are made of fixed-width integers, not of std::atomic, so that they are
// C layouts with one meaning in every compiler and process. These functions are the only way to
// touch a field that another process or the GPU may touch at the same time. Both the shim and the
// daemons use them; they need no library code.
#pragma once

#include <cstdint>

namespace rubato::abi {

template <typename T>
inline T LoadRelaxed(const T& field) {
  return __atomic_load_n(&field, __ATOMIC_RELAXED);
}

template <typename T>
inline T LoadAcquire(const T& field) {
  return __atomic_load_n(&field, __ATOMIC_ACQUIRE);
}

template <typename T>
inline void StoreRelaxed(T& field, T value) {
  __atomic_store_n(&field, value, __ATOMIC_RELAXED);
}

template <typename T>
inline void StoreRelease(T& field, T value) {
  __atomic_store_n(&field, value, __ATOMIC_RELEASE);
}

template <typename T>
inline T FetchAdd(T& field, T value) {
  return __atomic_fetch_add(&field, value, __ATOMIC_RELAXED);
}

// Orders this thread's earlier stores before its later loads: what "publish intent, then look at
// the others" needs. An idle locked add is cheaper than mfence on x86 and is what compilers emit
// for a sequentially consistent fence.
inline void FenceSeqCst() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

// Adds to a counter that has one writing thread at a time or may lose an increment under contention
// without harm. Not a read-modify-write on the bus: it must not cost the launch path a locked
// instruction.
inline void CountRelaxed(uint64_t& counter, uint64_t value = 1) {
  StoreRelaxed(counter, LoadRelaxed(counter) + value);
}

}  // namespace rubato::abi
