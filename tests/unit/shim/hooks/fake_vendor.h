// The interface of the fake vendor's library to its tests.
//
// The library is made from the same table as the shim: every hooked call exists, remembers what it
// was given, and answers what it was told to.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

inline constexpr size_t kMaxArguments = 16;

struct FakeCall {
  const char* name;
  size_t count;                       // Of arguments.
  uint64_t arguments[kMaxArguments];  // First eight bytes of each.
  uint64_t digests[kMaxArguments];    // Of all their bytes.
};

struct FakeVendor {
  // Set by the test.
  int status;                        // What every call answers.
  int leave_errno;                   // What every call leaves in errno.
  void (*during)(const char* name);  // Called inside every call; may be null.
  int capturing;                     // What the capture query answers.
  int memory_type;  // What the pointer query answers, or 0: the pointer is unknown.
  int not_started;  // What the device count answers: not 0 before CUDA has started.
  // Kept by the library.
  size_t calls;
  FakeCall last;
};

FakeVendor* FakeVendorState();

using FakeVendorStateFunction = FakeVendor* (*)();

struct FakeManagement {
  int status;
  char uuid[64];       // Of the device, as the management library writes it.
  const void* device;  // That was asked about.
};

FakeManagement* FakeManagementState();

using FakeManagementStateFunction = FakeManagement* (*)();
}

// Hashes any value by its bytes.
template <typename T>
uint64_t DigestOf(const T& value) {
  uint64_t hash = 0xcbf29ce484222325ull;
  const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
  for (size_t i = 0; i < sizeof(T); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3ull;
  return hash;
}

template <typename T>
uint64_t FirstBytes(const T& value) {
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(T) < sizeof(word) ? sizeof(T) : sizeof(word));
  return word;
}
