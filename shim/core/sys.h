// The system calls of the core, behind functions that old C libraries have.
//
// The shim is loaded into programs of any age, so it may import only symbols that glibc 2.28 knows
// under a version that 2.28 knows; what came later (fstat as a function, say) goes through
// syscall(2). Nothing here allocates, logs or retries for longer than it says.
#pragma once

#include <errno.h>
#include <time.h>

#include <cstddef>
#include <cstdint>

namespace rubato::shim {

// An entry point may not change errno: declare one of these wherever a system call may follow.
class ErrnoGuard {
 public:
  ErrnoGuard() : saved_(errno) {}
  ~ErrnoGuard() { errno = saved_; }
  ErrnoGuard(const ErrnoGuard&) = delete;
  ErrnoGuard& operator=(const ErrnoGuard&) = delete;

 private:
  int saved_;
};

// CLOCK_MONOTONIC; no system call where the vDSO works.
inline uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// Tells the core that this thread spins.
inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Sleeps until `until_ns` of CLOCK_MONOTONIC, or less: a signal may end it early.
void SleepUntil(uint64_t until_ns);
void SleepFor(uint64_t duration_ns);

// Waits while `*word` is `expected`, until it is woken or `until_ns`. May return early.
void FutexWait(const uint32_t* word, uint32_t expected, uint64_t until_ns);
void FutexWakeAll(const uint32_t* word);

// Zeroed private memory that is never given back, or null. Rounded up to pages.
void* MapZeroed(size_t bytes);

uint32_t CurrentPid();
uint32_t CurrentThreadId();

// Which file an fd names: the program may close our fds and reuse their numbers.
struct FileIdentity {
  uint64_t device;
  uint64_t inode;
};
// False if `fd` is not open. `size_bytes` may be null.
bool IdentifyFile(int fd, FileIdentity* identity, uint64_t* size_bytes);

// Writes "rubato: <what>: <detail>\n" to stderr if RUBATO_SHIM_DEBUG was set when this process
// attached; `detail` may be null.
void DebugLine(const char* what, const char* detail = nullptr);

}  // namespace rubato::shim
