// Look-ups in a program that the built shim is preloaded into: what each kind of dlsym finds.
//
// The program starts itself again for each situation (the vendor's library loaded or not, another
// interposer in front of the shim, both shims at once) and runs the probe of that name; the probes
// are at the top. It links nothing of the shim's, so what a probe sees is what programs see.

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <link.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "tests/unit/shim/hooks/fake_vendor.h"

namespace {

const std::string kShims = RUBATO_BUILD_DIR "/lib/";
const std::string kFakes = RUBATO_BUILD_DIR "/lib/fakes/";

// ---- Probes: run in a child, return 0 if all is as it should be ---------------------------------

#define PROBE_EXPECT(condition)                                               \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      return 1;                                                               \
    }                                                                         \
  } while (0)

// The file that an address lies in.
std::string FileOf(const void* address) {
  Dl_info info{};
  if (address == nullptr || dladdr(address, &info) == 0) return "";
  const std::string path = info.dli_fname;
  return path.substr(path.rfind('/') + 1);
}

void* OpenFake(const char* name, int flags = RTLD_LAZY | RTLD_LOCAL) {
  return dlopen((kFakes + name).c_str(), flags);
}

constexpr char kCudaShim[] = "librubato-cuda.so";
constexpr char kHipShim[] = "librubato-hip.so";

int HandleGetsOurEntry() {
  void* cuda = OpenFake("libcuda.so.1");
  PROBE_EXPECT(cuda != nullptr);
  PROBE_EXPECT(FileOf(dlsym(cuda, "cuLaunchKernel")) == kCudaShim);
  PROBE_EXPECT(FileOf(dlsym(cuda, "cuLaunchKernel_ptsz")) == kCudaShim);
  PROBE_EXPECT(dlsym(cuda, "cuLaunchKernel") != dlsym(cuda, "cuLaunchKernel_ptsz"));
  PROBE_EXPECT(FileOf(dlsym(cuda, "cuGetProcAddress_v2")) == kCudaShim);
  // Not in the table: the library's own.
  PROBE_EXPECT(FileOf(dlsym(cuda, "cuDriverGetVersion")) == "libcuda.so.1");
  PROBE_EXPECT(FileOf(dlsym(cuda, "FakeVendorState")) == "libcuda.so.1");
  return 0;
}

int EntryReachesTheLibraryTheProgramLoaded() {
  void* cuda = OpenFake("libcuda.so.1");
  PROBE_EXPECT(cuda != nullptr);
  FakeVendor* fake = reinterpret_cast<FakeVendorStateFunction>(dlsym(cuda, "FakeVendorState"))();
  const auto query = reinterpret_cast<int (*)(void*)>(dlsym(cuda, "cuStreamQuery"));
  fake->status = 600;
  PROBE_EXPECT(query(reinterpret_cast<void*>(0x1234)) == 600);
  PROBE_EXPECT(fake->calls == 1);
  PROBE_EXPECT(std::strcmp(fake->last.name, "cuStreamQuery") == 0);
  PROBE_EXPECT(fake->last.arguments[0] == 0x1234);
  return 0;
}

int VersionedLookUpGetsOurEntry() {
  void* cuda = OpenFake("libcuda.so.1");
  PROBE_EXPECT(cuda != nullptr);
  // The CUDA driver's symbols have no versions, HIP's do.
  PROBE_EXPECT(dlvsym(cuda, "cuMemAlloc_v2", "NO_SUCH_VERSION") == nullptr);
  PROBE_EXPECT(dlerror() != nullptr);
  void* hip = OpenFake("libamdhip64.so.6");
  PROBE_EXPECT(hip != nullptr);
  PROBE_EXPECT(FileOf(dlvsym(hip, "hipFree", "hip_4.2")) == kHipShim);
  PROBE_EXPECT(dlvsym(hip, "hipFree", "NO_SUCH_VERSION") == nullptr);
  PROBE_EXPECT(dlvsym(RTLD_DEFAULT, "malloc", "NO_SUCH_VERSION") == nullptr);
  PROBE_EXPECT(dlerror() != nullptr);
  return 0;
}

int LibraryWithoutTheSymbolStillLacksIt() {
  void* cuda = OpenFake("libcuda.so.1");
  void* math = dlopen("libm.so.6", RTLD_LAZY);
  PROBE_EXPECT(cuda != nullptr && math != nullptr);
  dlerror();
  PROBE_EXPECT(dlsym(math, "cuMemAlloc_v2") == nullptr);
  const char* message = dlerror();
  PROBE_EXPECT(message != nullptr && std::strstr(message, "cuMemAlloc_v2") != nullptr);
  PROBE_EXPECT(dlsym(cuda, "cuNoSuchCall") == nullptr);
  PROBE_EXPECT(dlerror() != nullptr);
  // Other look-ups are untouched, and leave no message.
  PROBE_EXPECT(dlsym(math, "cos") != nullptr);
  PROBE_EXPECT(dlerror() == nullptr);
  return 0;
}

int GlobalScopeHasNothingWhileNothingIsLoaded() {
  dlerror();
  PROBE_EXPECT(dlsym(RTLD_DEFAULT, "cuInit") == nullptr);
  const char* message = dlerror();
  PROBE_EXPECT(message != nullptr && std::strstr(message, "cuInit") != nullptr);
  void* program = dlopen(nullptr, RTLD_LAZY);
  PROBE_EXPECT(dlsym(program, "cuInit") == nullptr);
  PROBE_EXPECT(dlsym(program, "nvmlDeviceGetMemoryInfo") == nullptr);
  // Asking loaded nothing.
  PROBE_EXPECT(dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD) == nullptr);
  return 0;
}

int GlobalScopeHasOursOnceTheLibraryIsLoaded() {
  PROBE_EXPECT(dlsym(RTLD_DEFAULT, "cuInit") == nullptr);
  PROBE_EXPECT(OpenFake("libcuda.so.1", RTLD_LAZY | RTLD_GLOBAL) != nullptr);
  PROBE_EXPECT(FileOf(dlsym(RTLD_DEFAULT, "cuInit")) == kCudaShim);
  PROBE_EXPECT(FileOf(dlsym(dlopen(nullptr, RTLD_LAZY), "cuInit")) == kCudaShim);
  return 0;
}

int NextAfterTheProgramIsTheShim() {
  PROBE_EXPECT(OpenFake("libcuda.so.1", RTLD_LAZY | RTLD_GLOBAL) != nullptr);
  PROBE_EXPECT(FileOf(dlsym(RTLD_NEXT, "cuMemAlloc_v2")) == kCudaShim);
  PROBE_EXPECT(dlsym(RTLD_NEXT, "malloc") != nullptr);
  PROBE_EXPECT(FileOf(dlsym(RTLD_NEXT, "malloc")).starts_with("libc.so"));
  return 0;
}

// With a tool's library before the shim in LD_PRELOAD: its wrapper, then the shim, then the driver.
int InterposerInFrontFindsTheShimNext() {
  void* cuda = OpenFake("libcuda.so.1", RTLD_LAZY | RTLD_GLOBAL);
  PROBE_EXPECT(cuda != nullptr);
  const auto next = reinterpret_cast<void* (*)(const char*)>(dlsym(RTLD_DEFAULT, "InterposerNext"));
  PROBE_EXPECT(next != nullptr);
  PROBE_EXPECT(FileOf(next("cuMemAlloc_v2")) == kCudaShim);
  PROBE_EXPECT(FileOf(next("InterposerNext")).empty());
  // The program's own reference is bound to the tool, as it would be without the shim.
  void* found = dlsym(RTLD_DEFAULT, "cuMemAlloc_v2");
  PROBE_EXPECT(FileOf(found) == "librubato_hooks_interposer.so");
  FakeVendor* fake = reinterpret_cast<FakeVendorStateFunction>(dlsym(cuda, "FakeVendorState"))();
  fake->status = 7;
  unsigned long long address = 0;
  const auto allocate = reinterpret_cast<int (*)(unsigned long long*, unsigned long)>(found);
  PROBE_EXPECT(allocate(&address, 64) == 10'007);
  PROBE_EXPECT(fake->calls == 1);
  return 0;
}

int BothShimsAnswerForTheirOwn() {
  void* cuda = OpenFake("libcuda.so.1");
  void* hip = OpenFake("libamdhip64.so.6");
  PROBE_EXPECT(cuda != nullptr && hip != nullptr);
  PROBE_EXPECT(FileOf(dlsym(cuda, "cuMemFree_v2")) == kCudaShim);
  PROBE_EXPECT(FileOf(dlsym(hip, "hipFree")) == kHipShim);
  PROBE_EXPECT(FileOf(dlvsym(hip, "hipFree", "hip_4.2")) == kHipShim);
  PROBE_EXPECT(dlsym(hip, "cuMemFree_v2") == nullptr);
  PROBE_EXPECT(FileOf(dlsym(RTLD_NEXT, "hipFree")) == kHipShim);
  PROBE_EXPECT(FileOf(dlsym(RTLD_DEFAULT, "malloc")).starts_with("libc.so"));
  return 0;
}

int ClosedLibraryStaysReachable() {
  void* cuda = OpenFake("libcuda.so.1");
  const auto query = reinterpret_cast<int (*)(void*)>(dlsym(cuda, "cuStreamQuery"));
  PROBE_EXPECT(query(nullptr) == 0);
  dlclose(cuda);
  PROBE_EXPECT(query(nullptr) == 0);
  return 0;
}

// The socket of a scheduler is there, and nobody may connect to it.
int ProgramWithoutAGpuConnectsToNothing() {
  for (int i = 0; i < 100; ++i) {
    PROBE_EXPECT(dlsym(RTLD_DEFAULT, "malloc") != nullptr);
    dlsym(RTLD_DEFAULT, "cuInit");
  }
  PROBE_EXPECT(system("true") == 0);
  return 0;
}

int CallWithoutALibraryIsAnswered() {
  // A weak reference is bound to the shim although there is no driver.
  void* program = dlopen((kShims + kCudaShim).c_str(), RTLD_LAZY | RTLD_NOLOAD);
  PROBE_EXPECT(program != nullptr);
  for (const char* name : {"cuInit", "cuCtxSynchronize"}) {
    void* entry = nullptr;
    // The shim's own table is not reachable by dlsym: read it off the loaded object instead.
    link_map* object = nullptr;
    PROBE_EXPECT(dlinfo(program, RTLD_DI_LINKMAP, &object) == 0);
    const ElfW(Sym)* symbols = nullptr;
    const char* strings = nullptr;
    for (const ElfW(Dyn)* entry_of = object->l_ld; entry_of->d_tag != DT_NULL; ++entry_of) {
      if (entry_of->d_tag == DT_SYMTAB) {
        symbols = reinterpret_cast<const ElfW(Sym)*>(entry_of->d_un.d_ptr);
      }
      if (entry_of->d_tag == DT_STRTAB) {
        strings = reinterpret_cast<const char*>(entry_of->d_un.d_ptr);
      }
    }
    // The string table follows the symbol table.
    const size_t count =
        (reinterpret_cast<uintptr_t>(strings) - reinterpret_cast<uintptr_t>(symbols)) /
        sizeof(ElfW(Sym));
    for (size_t i = 0; i < count; ++i) {
      if (symbols[i].st_value != 0 && std::strcmp(strings + symbols[i].st_name, name) == 0) {
        entry = reinterpret_cast<void*>(object->l_addr + symbols[i].st_value);
      }
    }
    PROBE_EXPECT(entry != nullptr);
    PROBE_EXPECT(reinterpret_cast<int (*)(unsigned)>(entry)(0) == 100);  // No device.
  }
  return 0;
}

const std::map<std::string, int (*)()> kProbes = {
#define PROBE(name) \
  { #name, name }
    PROBE(HandleGetsOurEntry),
    PROBE(EntryReachesTheLibraryTheProgramLoaded),
    PROBE(VersionedLookUpGetsOurEntry),
    PROBE(LibraryWithoutTheSymbolStillLacksIt),
    PROBE(GlobalScopeHasNothingWhileNothingIsLoaded),
    PROBE(GlobalScopeHasOursOnceTheLibraryIsLoaded),
    PROBE(NextAfterTheProgramIsTheShim),
    PROBE(InterposerInFrontFindsTheShimNext),
    PROBE(BothShimsAnswerForTheirOwn),
    PROBE(ClosedLibraryStaysReachable),
    PROBE(ProgramWithoutAGpuConnectsToNothing),
    PROBE(CallWithoutALibraryIsAnswered),
#undef PROBE
};

// ---- The test: starts this program again
// ---------------------------------------------------------

// A listening socket that counts who connects.
class CountingSocket {
 public:
  CountingSocket() {
    const std::string pattern = testing::TempDir() + "rubato-hooks-XXXXXX";
    folder_ = pattern;
    EXPECT_NE(mkdtemp(folder_.data()), nullptr);
    path_ = folder_ + "/attach.sock";
    fd_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(fd_, 16), 0);
  }
  ~CountingSocket() {
    close(fd_);
    unlink(path_.c_str());
    rmdir(folder_.c_str());
  }
  CountingSocket(const CountingSocket&) = delete;
  CountingSocket& operator=(const CountingSocket&) = delete;

  const std::string& path() const { return path_; }

  int Connections() {
    int count = 0;
    for (int peer; (peer = accept(fd_, nullptr, nullptr)) >= 0; ++count) close(peer);
    return count;
  }

 private:
  std::string folder_;
  std::string path_;
  int fd_ = -1;
};

// Runs a probe with these libraries preloaded; its exit status.
int RunProbe(const std::string& probe, const std::vector<std::string>& preload,
             const std::string& socket_path = "/nonexistent/attach.sock") {
  std::string list;
  for (const std::string& library : preload) list += (list.empty() ? "" : ":") + library;
  const pid_t child = fork();
  if (child == 0) {
    setenv("LD_PRELOAD", list.c_str(), 1);
    setenv("RUBATO_SOCKET", socket_path.c_str(), 1);
    setenv("RUBATO_HOOKS_PROBE", probe.c_str(), 1);
    execl("/proc/self/exe", "probe", nullptr);
    _exit(126);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

const std::vector<std::string> kCudaOnly = {kShims + kCudaShim};

class LookupTest : public testing::TestWithParam<const char*> {};

TEST_P(LookupTest, WithTheCudaShim) {
  EXPECT_EQ(RunProbe(GetParam(), kCudaOnly), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Probes, LookupTest,
    testing::Values("HandleGetsOurEntry", "EntryReachesTheLibraryTheProgramLoaded",
                    "LibraryWithoutTheSymbolStillLacksIt",
                    "GlobalScopeHasNothingWhileNothingIsLoaded",
                    "GlobalScopeHasOursOnceTheLibraryIsLoaded", "NextAfterTheProgramIsTheShim",
                    "ClosedLibraryStaysReachable", "CallWithoutALibraryIsAnswered"),
    [](const auto& probe) { return std::string(probe.param); });

TEST(LookupSituationsTest, InterposerInFront) {
  EXPECT_EQ(RunProbe("InterposerInFrontFindsTheShimNext", {RUBATO_INTERPOSER, kShims + kCudaShim}),
            0);
}

TEST(LookupSituationsTest, VersionedLookUp) {
  EXPECT_EQ(RunProbe("VersionedLookUpGetsOurEntry", {kShims + kHipShim}), 0);
}

TEST(LookupSituationsTest, BothShims) {
  EXPECT_EQ(RunProbe("BothShimsAnswerForTheirOwn", {kShims + kCudaShim, kShims + kHipShim}), 0);
  EXPECT_EQ(RunProbe("BothShimsAnswerForTheirOwn", {kShims + kHipShim, kShims + kCudaShim}), 0);
}

TEST(LookupSituationsTest, ProgramWithoutAGpuConnectsToNothing) {
  CountingSocket socket;
  EXPECT_EQ(RunProbe("ProgramWithoutAGpuConnectsToNothing", {kShims + kCudaShim, kShims + kHipShim},
                     socket.path()),
            0);
  EXPECT_EQ(socket.Connections(), 0);
}

// The probes fail where they should: without the shim nothing is ours.
TEST(LookupSituationsTest, WithoutTheShimTheProbesFail) {
  EXPECT_EQ(RunProbe("HandleGetsOurEntry", {}), 1);
  EXPECT_EQ(RunProbe("NextAfterTheProgramIsTheShim", {}), 1);
  EXPECT_EQ(RunProbe("GlobalScopeHasNothingWhileNothingIsLoaded", {}), 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (const char* name = getenv("RUBATO_HOOKS_PROBE")) {
    const auto probe = kProbes.find(name);
    return probe != kProbes.end() ? probe->second() : 125;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
