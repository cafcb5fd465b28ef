// A scheduler for the tests of the shim: one device, real sockets, real memfds, any answer.
//
// It runs in a thread of the test; the shim runs in child processes (RunProcess), because a process
// attaches once. Children are forked before the thread starts, which the thread sanitizer wants.
// Answers are honest unless `tamper` changes them. Requests that break the protocol are collected
// in `complaints`, which every test expects to be empty.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "proto/abi/device.h"
#include "proto/abi/handshake.h"
#include "proto/abi/profile.h"
#include "proto/abi/slot.h"
#include "shim/core/driver.h"

namespace rubato::shim::testing {

struct Reply {
  std::vector<uint8_t> bytes;
  std::vector<int> fds;  // Closed after sending.
  bool silence = false;  // Send nothing.
  bool hang_up = false;  // Send nothing and close the connection.

  template <typename Message>
  static Reply Of(const Message& message, std::vector<int> fds = {}) {
    Reply reply;
    reply.bytes.resize(sizeof(message));
    __builtin_memcpy(reply.bytes.data(), &message, sizeof(message));
    reply.fds = std::move(fds);
    return reply;
  }
  template <typename Message>
  Message& As() {
    return *reinterpret_cast<Message*>(bytes.data());
  }
};

// A memfd with the header of a region.
struct Region {
  int fd = -1;
  void* memory = nullptr;
  size_t bytes = 0;

  static Region Make(abi::RegionKind kind, size_t bytes, uint64_t epoch);
  // Makes the size, and with `writers` future mappings for writing, impossible.
  void Seal(bool writers);
  void Destroy();
};

struct FakeSession {
  uint32_t index = 0;
  int connection = -1;
  Region slot;
  bool reattached = false;
};

class FakeScheduler {
 public:
  struct Options {
    abi::TenantClass tenant_class = abi::TenantClass::kBestEffort;
    abi::Mode mode = abi::Mode::kTimeslice;
    bool use_mps = false;
    std::string mps_directory;
    uint64_t limit_bytes = 0;
    uint64_t lease_ns = 1'000'000'000;
    uint64_t epoch = 7;
    bool listening = true;  // From the start; otherwise after Listen().
    // What to answer instead of `honest`.
    std::function<void(abi::MessageType type, Reply* honest)> tamper;
  };

  // `directory`: where the socket lies; the next instance may use the same.
  FakeScheduler(const std::string& directory, Options options);
  ~FakeScheduler();

  const std::string& path() const { return path_; }
  abi::DeviceRegion& page() { return *static_cast<abi::DeviceRegion*>(device_.memory); }

  void Listen();
  // In a child: the listening socket must end with the parent's.
  void CloseInChild();
  void Start();
  // Ends like a process that was killed: connections and listener close, nothing is said.
  void Stop();

  // A peer that is not a process: its slot, entered in the directory.
  abi::SlotRegion* AddPeer(uint32_t tenant, abi::TenantClass tenant_class, bool sealed = true);

  // Takes the peer with this slot out again.
  void RemovePeer(abi::SlotRegion* slot);

  // Of the sessions that processes have now.
  size_t SessionCount();
  // The slot of live session number `n`, oldest first.
  abi::SlotRegion* Slot(size_t n);
  bool Reattached(size_t n);
  size_t Hellos();
  // The counters of sessions that have ended, in that order.
  std::vector<abi::CounterLines> Ended();
  std::vector<std::string> Complaints();

  // Waits until `condition` holds; false after a generous time.
  static bool Eventually(const std::function<bool()>& condition);

 private:
  void Loop();
  // False: the connection has ended.
  bool Serve(int connection);
  Reply Answer(int connection, const std::vector<uint8_t>& bytes, std::vector<int>* fds);
  Reply OpenDevice(int connection, std::vector<int>* fds);
  void HangUp(int connection);
  void Enter(FakeSession* session, bool live);
  void Bump();
  void Complain(const std::string& what) { complaints_.push_back(what); }

  Options options_;
  std::string path_;
  int listener_ = -1;
  int wake_ = -1;
  Region device_;
  Region profile_;
  std::thread thread_;
  bool stopping_ = false;

  std::mutex mutex_;
  std::vector<int> connections_;
  std::vector<std::unique_ptr<FakeSession>> sessions_;  // Peers without a process included.
  std::vector<std::string> complaints_;
  size_t hellos_ = 0;
  std::vector<abi::CounterLines> ended_;
};

// A folder of its own that is removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A child process that runs `body` and then ends without handlers; failed expectations inside it
// fail the test (Join).
class ChildProcess {
 public:
  explicit ChildProcess(const std::function<void()>& body);
  ~ChildProcess();
  pid_t pid() const { return pid_; }
  void Kill();
  // Waits for the end; the status of waitpid.
  int Wait();
  // Waits for the end; adds a failure if an expectation failed in the child or it crashed.
  void Join();

 private:
  pid_t pid_ = -1;
};

// A pipe through which a test and its child tell each other how far they are.
class Signal {
 public:
  Signal();
  ~Signal();
  void Give();
  // Waits for one Give; adds a failure after a generous time.
  void Take();

 private:
  int fds_[2];
};

// A driver that knows its device and nothing else.
const Driver& DeviceOnlyDriver();

// Descriptors of this process, for counting leaks.
std::vector<int> OpenFds();

}  // namespace rubato::shim::testing
