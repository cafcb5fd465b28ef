// The program that launch_cost_test runs under the shim: it launches under a filter that ends the
// process at a system call, and counts heap and lock calls of everything in it.
//
// The counting functions are exported by the program, so that they come before the C library's for
// the preloaded shim too. Exit status: 0 nothing was called, 1 something was (told on stdout), 2
// the set-up failed, 77 the kernel has no such filters; killed by SIGSYS: a system call.
#include <dlfcn.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <thread>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void __libc_free(void*);
}

namespace {

std::atomic<bool> g_counting{false};
std::atomic<int> g_heap_calls{0};
std::atomic<int> g_lock_calls{0};
int (*g_real_lock)(pthread_mutex_t*) = nullptr;

void CountHeap() {
  if (g_counting.load(std::memory_order_relaxed)) ++g_heap_calls;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void* malloc(size_t bytes) {
  CountHeap();
  return __libc_malloc(bytes);
}
EXPORTED void* calloc(size_t count, size_t bytes) {
  CountHeap();
  return __libc_calloc(count, bytes);
}
EXPORTED void* realloc(void* memory, size_t bytes) {
  CountHeap();
  return __libc_realloc(memory, bytes);
}
EXPORTED void free(void* memory) {
  CountHeap();
  __libc_free(memory);
}
EXPORTED int pthread_mutex_lock(pthread_mutex_t* mutex) {
  if (g_counting.load(std::memory_order_relaxed)) ++g_lock_calls;
  // Before the first lookup the process has one thread.
  return g_real_lock != nullptr ? g_real_lock(mutex) : 0;
}

namespace {

constexpr int kThreads = 3;
constexpr int kLaunches = 100'000;

using Launch = int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                       void*, void**, void**);
using Copy = int (*)(unsigned long long, const void*, size_t, void*);
using StreamCreate = int (*)(void**, unsigned);
using GetFunction = int (*)(void**, void*, const char*);
using Init = int (*)(unsigned);

Launch g_launch;
Copy g_copy;
void* g_kernel;

void Ops(void* stream, int count) {
  char from[64] = {};
  for (int i = 0; i < count; ++i) {
    g_launch(g_kernel, 128, 1, 1, 256, 1, 1, 0, stream, nullptr, nullptr);
    g_launch(g_kernel, static_cast<unsigned>(1 + i % 50), 1, 1, 256, 1, 1, 0, nullptr, nullptr,
             nullptr);
    g_copy(0x100000, from, sizeof(from), stream);
  }
}

// Lets through what the program itself needs to end, and the clock, which is no system call where
// the machine's clock can be read without.
bool EndAtSystemCalls() {
#if defined(__x86_64__)
  constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#else
  constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#endif
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 4, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, STDOUT_FILENO, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  const sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

void Say(const char* text) {
  const ssize_t written = write(STDOUT_FILENO, text, strlen(text));
  static_cast<void>(written);
}

}  // namespace

int main(int argc, char** argv) {
  const char* fault = argc > 1 ? argv[1] : "";
  g_real_lock = reinterpret_cast<int (*)(pthread_mutex_t*)>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (g_real_lock == nullptr || library == nullptr) return 2;
  const auto init = reinterpret_cast<Init>(dlsym(library, "cuInit"));
  const auto create = reinterpret_cast<StreamCreate>(dlsym(library, "cuStreamCreate"));
  const auto get_function = reinterpret_cast<GetFunction>(dlsym(library, "cuModuleGetFunction"));
  g_launch = reinterpret_cast<Launch>(dlsym(library, "cuLaunchKernel"));
  g_copy = reinterpret_cast<Copy>(dlsym(library, "cuMemcpyHtoDAsync_v2"));
  if (init == nullptr || create == nullptr || get_function == nullptr || g_launch == nullptr ||
      g_copy == nullptr) {
    return 2;
  }
  init(0);
  get_function(&g_kernel, nullptr, "bare_kernel");
  static std::atomic<int> warm{0}, finished{0};
  static std::atomic<bool> go{false};
  for (int t = 0; t < kThreads; ++t) {
    // They never end by themselves: that would be a system call.
    std::thread([&] {
      void* stream = nullptr;
      create(&stream, 1);
      Ops(stream, 2000);
      ++warm;
      while (!go) {
      }
      Ops(stream, kLaunches);
      ++finished;
      for (;;) {
      }
    }).detach();
  }
  while (warm != kThreads) usleep(100);
  if (!EndAtSystemCalls()) return 77;
  g_counting = true;
  go = true;
  if (strcmp(fault, "--system-call") == 0) syscall(SYS_getppid);
  if (strcmp(fault, "--heap") == 0) {
    static void* volatile memory;
    memory = malloc(16);
    free(memory);
  }
  if (strcmp(fault, "--lock") == 0) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mutex);
  }
  while (finished != kThreads) {
  }
  g_counting = false;
  if (g_heap_calls != 0) Say("the heap was used on the launch path\n");
  if (g_lock_calls != 0) Say("a lock was taken on the launch path\n");
  _exit(g_heap_calls != 0 || g_lock_calls != 0 ? 1 : 0);
}
