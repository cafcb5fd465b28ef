// The few driver calls that the vendor-neutral core makes, as a table of typed pointers.
//
// shim/cuda and shim/hip each fill one. It keeps vendor headers out of shim/core, and lets the unit
// tests run the core against a driver of their own. Every call goes to the real library, past our
// hooks. Return values: 0 is success; any other value is the vendor's error code, of which the core
// only learns that the call failed. A null pointer means that this driver lacks the call; the core
// then does without.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rubato::shim {

using Handle = uintptr_t;  // Context, stream, event, function or graph handle of the vendor.

struct DeviceIdentity {
  uint8_t uuid[16];
  uint32_t sm_count;
  uint64_t total_bytes;
  char name[64];  // NUL-terminated.
};

struct Driver {
  // The calling thread's context; 0 if none is current.
  int (*current_context)(Handle* context);
  // Ordinal of the calling thread's device in this process.
  int (*current_device)(int* ordinal);
  int (*device_identity)(int ordinal, DeviceIdentity* identity);
  // Makes `context` current in the calling thread (helper thread only).
  int (*set_context)(Handle context);

  // Registers host memory with the driver for all contexts and gives the address the GPU uses.
  int (*register_host)(void* memory, size_t bytes, uint64_t* device_address);
  int (*unregister_host)(void* memory);
  // Enqueues: when everything before it in `stream` is done, the GPU stores `value`.
  int (*write_word)(Handle stream, uint64_t device_address, uint32_t value);

  // *capturing: 0 no, 1 yes. Legal at any time, also in the middle of somebody's capture.
  int (*is_capturing)(Handle stream, int* capturing);
  // Makes the calling thread's capture mode relaxed and gives the previous mode; and sets it back.
  int (*relax_capture)(int* previous_mode);
  int (*restore_capture)(int previous_mode);

  int (*event_create)(Handle* event);  // With timing.
  int (*event_destroy)(Handle event);
  int (*event_record)(Handle event, Handle stream);
  int (*event_query)(Handle event);  // 0 done; kNotReady not yet; else failed.
  int (*event_elapsed_us)(Handle begin, Handle end, double* microseconds);

  // The name of a kernel function; valid as long as its module.
  int (*function_name)(Handle function, const char** name);
  // Loads a kernel that lazy loading has not loaded yet, so that its first launch is not slow.
  int (*load_function)(Handle function);

  // The pre-touch kernel. `touch_prepare` loads it and makes a stream of its own in the current
  // context; `touch_launch` runs it once; `touch_release` undoes the first.
  int (*touch_prepare)(Handle* touch);
  int (*touch_launch)(Handle touch);
  int (*touch_release)(Handle touch);

  // The real dlsym(RTLD_DEFAULT, name): for what may be absent in an old or small process.
  void* (*find_symbol)(const char* name);

  uint32_t vendor;  // 1 CUDA, 2 HIP: abi::HelloMessage.
  Handle
      legacy_stream;  // Handles that name the legacy and the per-thread default stream explicitly.
  Handle per_thread_stream;
};

inline constexpr int kNotReady = -1;  // Of event_query.

}  // namespace rubato::shim
