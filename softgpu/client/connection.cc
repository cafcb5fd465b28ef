#include "softgpu/client/connection.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "softgpu/device/mps_control.h"
#include "softgpu/device/settings.h"

namespace rubato::softgpu {

namespace {

int ConnectTo(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return -1;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return fd;
  close(fd);
  return -1;
}

// $RUBATO_SOFTGPU_BIN, or bin/rubato-softgpu of the build or installation this library lies in.
std::string DeviceProgram() {
  if (const char* path = getenv("RUBATO_SOFTGPU_BIN"); path != nullptr && *path != '\0')
    return path;
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&DeviceProgram), &info) == 0 ||
      info.dli_fname == nullptr)
    return "";
  char* real = realpath(info.dli_fname, nullptr);
  if (real == nullptr) return "";
  std::string folder(real);
  free(real);
  for (int up = 0; up < 4; ++up) {
    const size_t slash = folder.rfind('/');
    if (slash == std::string::npos) break;
    folder.resize(slash);
    std::string path = folder + "/bin/rubato-softgpu";
    if (access(path.c_str(), X_OK) == 0) return path;
  }
  return "";
}

bool StartDevice(const std::string& directory) {
  const std::string program = DeviceProgram();
  if (program.empty()) return false;
  // The device is nobody's tenant: what is preloaded into this program stays out of it.
  std::vector<char*> environment;
  for (char** e = environ; *e != nullptr; ++e) {
    if (strncmp(*e, "LD_PRELOAD=", 11) != 0 && strncmp(*e, "LD_AUDIT=", 9) != 0)
      environment.push_back(*e);
  }
  environment.push_back(nullptr);
  std::string arg0 = program, arg1 = "--daemon", arg2 = "--dir", arg3 = directory;
  char* argv[] = {arg0.data(), arg1.data(), arg2.data(), arg3.data(), nullptr};
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  const int error =
      posix_spawn(&pid, program.c_str(), nullptr, &attributes, argv, environment.data());
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return false;
  int status = 0;
  pid_t got;
  do {
    got = waitpid(pid, &status, 0);
  } while (got < 0 && errno == EINTR);
  // A program that ignores its children leaves nothing to wait for; whether it worked shows at the
  // connect.
  return got < 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace

std::unique_ptr<Connection> Connection::Open(bool observe) {
  const std::string directory = DefaultDirectory();
  const std::string path = directory + "/device.sock";
  // A device that is about to leave may close on us; the next try finds or starts another.
  for (int attempt = 0; attempt < 5; ++attempt) {
    int fd = ConnectTo(path);
    if (fd < 0) {
      if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return nullptr;
      const int lock =
          open((directory + "/device.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
      if (lock < 0) return nullptr;
      while (flock(lock, LOCK_EX) != 0 && errno == EINTR) {
      }
      fd = ConnectTo(path);
      if (fd < 0 && StartDevice(directory)) fd = ConnectTo(path);
      close(lock);
    }
    if (fd < 0) continue;
    std::unique_ptr<Connection> connection(new Connection);
    connection->socket_ = fd;
    if (connection->Greet(observe)) return connection;
    if (connection->hello_.status == wire::Status::kOtherVersion) return nullptr;
  }
  return nullptr;
}

bool Connection::Greet(bool observe) {
  std::fill(std::begin(vram_fds_), std::end(vram_fds_), -1);
  // Lets the device read and write this program's memory for copies, where only a parent could.
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(socket_, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid > 0) {
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  }
  if (!observe) mps_server_ = FindMpsServer(MpsPipeDirectory());
  const char* priority = getenv("CUDA_MPS_CLIENT_PRIORITY");
  const char* percentage = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
  wire::Request request{};
  request.type = observe ? wire::RequestType::kObserve : wire::RequestType::kHello;
  request.a[0] = wire::kVersion;
  request.a[1] = static_cast<uint64_t>(getpid());
  request.a[2] = mps_server_;
  request.a[3] = priority != nullptr ? static_cast<uint64_t>(atoi(priority)) : 0;
  request.a[4] = percentage != nullptr ? static_cast<uint64_t>(std::max(1, atoi(percentage))) : 100;
  if (send(socket_, &request, sizeof request, MSG_NOSIGNAL) != sizeof request) return false;

  iovec part{&hello_, sizeof hello_};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * (2 + wire::kMaxDevices))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do {
    n = recvmsg(socket_, &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  std::vector<int> fds;
  for (cmsghdr* c = n > 0 ? CMSG_FIRSTHDR(&message) : nullptr; c != nullptr;
       c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    fds.resize((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(fds.data(), CMSG_DATA(c), fds.size() * sizeof(int));
  }
  const bool good = n == sizeof hello_ && hello_.status == wire::Status::kOk &&
                    hello_.devices <= wire::kMaxDevices && fds.size() == 2 + hello_.devices;
  if (!good) {
    for (int fd : fds) close(fd);
    return false;
  }
  doorbell_ = fds[1];
  for (uint32_t i = 0; i < hello_.devices; ++i) vram_fds_[i] = fds[2 + i];
  void* page = mmap(nullptr, sizeof(wire::Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
  close(fds[0]);
  if (page == MAP_FAILED) return false;
  shared_ = static_cast<wire::Shared*>(page);
  return true;
}

Connection::~Connection() {
  if (shared_ != nullptr) munmap(shared_, sizeof(wire::Shared));
  for (int fd : vram_fds_) {
    if (fd >= 0) close(fd);
  }
  if (doorbell_ >= 0) close(doorbell_);
  if (socket_ >= 0) close(socket_);
}

void Connection::AbandonInChild() {
  close(socket_);
  socket_ = -1;
  lost_.store(true);
}

bool Connection::Alive() {
  pollfd p{socket_, POLLIN, 0};
  if (socket_ >= 0 && poll(&p, 1, 0) >= 0 && (p.revents & (POLLHUP | POLLERR | POLLNVAL)) == 0)
    return true;
  lost_.store(true);
  return false;
}

void Connection::Sleep(uint32_t seen_progress) {
  const timespec patience{1, 0};
  syscall(SYS_futex, &shared_->progress, FUTEX_WAIT, seen_progress, &patience, nullptr, 0);
}

void Connection::Ring() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (shared_->device_sleeps.load(std::memory_order_relaxed) == 0) return;
  if (shared_->device_sleeps.exchange(0) == 0) return;
  const uint64_t one = 1;
  while (write(doorbell_, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

// Room for one record at the ring's tail, waiting for the device to take earlier ones if it is
// full.
unsigned char* Connection::Reserve(size_t bytes) {
  const size_t at = tail_ % wire::kRingBytes;
  const size_t to_end = wire::kRingBytes - at;
  const size_t skip = to_end < bytes ? to_end : 0;
  const auto fits = [&] {
    return tail_ + skip + bytes - shared_->head.load(std::memory_order_acquire) <= wire::kRingBytes;
  };
  if (!fits()) {
    Ring();
    if (!WaitUntil(fits)) return nullptr;
  }
  if (skip > 0) {
    // What is left of the ring may be smaller than a record; the device skips on any kPad.
    if (skip < sizeof(wire::Record)) return nullptr;
    wire::Record pad{};
    pad.bytes = static_cast<uint32_t>(skip);
    pad.type = wire::RecordType::kPad;
    std::memcpy(shared_->ring + at, &pad, sizeof pad);
    tail_ += skip;
    return shared_->ring;
  }
  return shared_->ring + at;
}

uint64_t Connection::Push(wire::RecordType type, uint32_t stream, uint32_t extra, const void* body,
                          size_t body_bytes, const void* tail, size_t tail_bytes) {
  const uint64_t seq = next_seq_++;
  // Multiples of the header's size keep every gap at the ring's end large enough for a header.
  const size_t bytes = (sizeof(wire::Record) + body_bytes + tail_bytes + 31) / 32 * 32;
  if (lost_.load(std::memory_order_relaxed)) return seq;
  unsigned char* at = Reserve(bytes);
  if (at == nullptr) return seq;
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  wire::Record record{};
  record.bytes = static_cast<uint32_t>(bytes);
  record.type = type;
  record.stream = stream;
  record.extra = extra;
  record.seq = seq;
  record.stamp_ns = now.tv_sec * 1'000'000'000ll + now.tv_nsec;
  std::memcpy(at, &record, sizeof record);
  if (body_bytes > 0) std::memcpy(at + sizeof record, body, body_bytes);
  if (tail_bytes > 0) std::memcpy(at + sizeof record + body_bytes, tail, tail_bytes);
  tail_ += bytes;
  shared_->tail.store(tail_, std::memory_order_release);
  Ring();
  return seq;
}

wire::Reply Connection::Call(wire::RequestType type, uint32_t device,
                             std::initializer_list<uint64_t> arguments, int fd) {
  wire::Request request{};
  request.type = type;
  request.device = device;
  std::copy(arguments.begin(), arguments.end(), request.a);
  wire::Reply reply{};
  reply.status = wire::Status::kLost;
  if (lost_.load()) return reply;
  iovec part{&request, sizeof request};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  std::memset(control, 0, sizeof control);
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(c), &fd, sizeof(int));
  }
  ssize_t n;
  do {
    n = sendmsg(socket_, &message, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n == sizeof request) {
    do {
      n = recv(socket_, &reply, sizeof reply, 0);
    } while (n < 0 && errno == EINTR);
  }
  if (n != sizeof reply) {
    reply.status = wire::Status::kLost;
    lost_.store(true);
  }
  return reply;
}

}  // namespace rubato::softgpu
