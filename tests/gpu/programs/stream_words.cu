// The mechanism under every slot page, without Rubato: the GPU writes words into a memfd page that
// another process reads through a mapping of its own.
//
// The owner registers a page, seals it against further writers, lets the GPU write words in stream
// order and is killed with SIGKILL while kernels and further writes are queued. The observer must
// have seen the words in order, must never see a value that was not written, and must still be able
// to read the page afterwards.

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "check.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace {

constexpr size_t kBytes = 8192;  // one page for the host's words, one for the GPU's
constexpr unsigned kFirst = 1000, kQueued = 200;

__global__ void Spin(unsigned long long ns) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now < start + ns);
}

// Child: registers, seals, writes kFirst words at once, then queues 5 ms kernels with a word behind
// each and waits to be killed.
[[noreturn]] void Owner(int fd, int ready) {
  void* page = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) std::_Exit(10);
  MUST(cudaFree(nullptr));
  MUST(cuMemHostRegister(page, kBytes, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP));
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) != 0) {
    std::_Exit(11);
  }
  CUdeviceptr word;
  MUST(cuMemHostGetDevicePointer(&word, static_cast<char*>(page) + 4096, 0));
  CUstream stream;
  MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  for (unsigned i = 1; i <= kFirst; ++i) {
    MUST(cuStreamWriteValue32(stream, word, i, CU_STREAM_WRITE_VALUE_DEFAULT));
  }
  MUST(cuStreamSynchronize(stream));
  for (unsigned i = 1; i <= kQueued; ++i) {
    Spin<<<1, 1, 0, stream>>>(5'000'000);
    MUST(cuStreamWriteValue32(stream, word, kFirst + i, CU_STREAM_WRITE_VALUE_DEFAULT));
  }
  char byte = 1;
  if (write(ready, &byte, 1) != 1) std::_Exit(12);
  while (true) pause();
}

}  // namespace

int main() {
  int fd = memfd_create("words", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  int pipes[2];
  if (fd < 0 || ftruncate(fd, kBytes) != 0 || pipe(pipes) != 0) return 2;
  pid_t owner = fork();
  if (owner == 0) {
    close(pipes[0]);
    Owner(fd, pipes[1]);
  }
  close(pipes[1]);
  // The observer's read-only mapping, made while the owner sets up.
  void* page = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) return 2;
  const volatile unsigned* word =
      reinterpret_cast<const volatile unsigned*>(static_cast<const char*>(page) + 4096);
  char byte;
  bool set_up = read(pipes[0], &byte, 1) == 1;
  unsigned at_ready = *word, before = at_ready, disorder = 0, steps = 0;
  int64_t limit = check::NowNs() + 10'000'000'000LL;
  // Some of the queued words arrive while the owner lives.
  while (set_up && steps < 5 && check::NowNs() < limit) {
    unsigned now = *word;
    if (now == before) continue;
    disorder += now < before || now > kFirst + kQueued;
    before = now;
    ++steps;
  }
  kill(owner, SIGKILL);
  int status = 0;
  waitpid(owner, &status, 0);
  bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  // The word may still move until the driver has torn the context down, then it stands still.
  unsigned after_death = 0, final_value = *word;
  int64_t quiet_since = check::NowNs();
  limit = quiet_since + 10'000'000'000LL;
  while (check::NowNs() - quiet_since < 500'000'000 && check::NowNs() < limit) {
    unsigned now = *word;
    if (now == final_value) continue;
    disorder += now < final_value || now > kFirst + kQueued;
    final_value = now;
    ++after_death;
    quiet_since = check::NowNs();
  }
  // Sealed: no new writable mapping, not even through a fresh open of the same file.
  char path[64];
  std::snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  int again = open(path, O_RDWR | O_CLOEXEC);
  bool sealed = again >= 0 &&
                mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0) == MAP_FAILED &&
                errno == EPERM;
  std::printf(
      "{\"set_up\": %s, \"owner_killed\": %s, \"value_at_ready\": %u, \"first\": %u, "
      "\"steps_seen\": %u, \"disorder\": %u, \"moved_after_death\": %u, \"final\": %u, "
      "\"last_possible\": %u, \"sealed\": %s}",
      set_up ? "true" : "false", killed ? "true" : "false", at_ready, kFirst, steps, disorder,
      after_death, final_value, kFirst + kQueued, sealed ? "true" : "false");
  check::HandOver();
  return 0;
}
