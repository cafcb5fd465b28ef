#include "shim/core/sys.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim/core/state.h"

namespace rubato::shim {

namespace {

timespec ToTimespec(uint64_t ns) {
  timespec result;
  result.tv_sec = static_cast<time_t>(ns / 1'000'000'000u);
  result.tv_nsec = static_cast<long>(ns % 1'000'000'000u);
  return result;
}

}  // namespace

void SleepUntil(uint64_t until_ns) {
  const timespec until = ToTimespec(until_ns);
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
}

void SleepFor(uint64_t duration_ns) {
  SleepUntil(NowNs() + duration_ns);
}

void FutexWait(const uint32_t* word, uint32_t expected, uint64_t until_ns) {
  // FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time; FUTEX_WAIT a relative one.
  const timespec until = ToTimespec(until_ns);
  syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, expected, &until, nullptr,
          FUTEX_BITSET_MATCH_ANY);
}

void FutexWakeAll(const uint32_t* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}

void* MapZeroed(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

uint32_t CurrentPid() {
  // Not getpid(): before glibc 2.25 it cached the number, and a raw clone() kept the parent's.
  return static_cast<uint32_t>(syscall(SYS_getpid));
}

uint32_t CurrentThreadId() {
  return static_cast<uint32_t>(syscall(SYS_gettid));
}

bool IdentifyFile(int fd, FileIdentity* identity, uint64_t* size_bytes) {
  // On 64-bit machines the kernel's stat is the C library's.
  static_assert(sizeof(void*) == 8);
  struct stat status;
  if (syscall(SYS_fstat, fd, &status) != 0) return false;
  identity->device = status.st_dev;
  identity->inode = status.st_ino;
  if (size_bytes != nullptr) *size_bytes = static_cast<uint64_t>(status.st_size);
  return true;
}

void DebugLine(const char* what, const char* detail) {
  if (abi::LoadRelaxed(g_state.debug) == 0) return;
  char line[256];
  size_t length = 0;
  const char* const parts[] = {"rubato: ", what, detail != nullptr ? ": " : "",
                               detail != nullptr ? detail : "", "\n"};
  for (const char* part : parts) {
    const size_t room = sizeof(line) - 1 - length;
    const size_t wanted = strlen(part);
    const size_t taken = wanted < room ? wanted : room;
    memcpy(line + length, part, taken);
    length += taken;
  }
  line[length - 1] = '\n';
  // One call, so that lines of several threads do not mix; what a full pipe refuses is dropped.
  const ssize_t written = write(STDERR_FILENO, line, length);
  static_cast<void>(written);
}

}  // namespace rubato::shim
