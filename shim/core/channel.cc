#include "shim/core/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/abi/atomic.h"

namespace rubato::shim {

namespace {

// Programs choose numbers below this by hand, or hand 0 to 2 to their children.
constexpr int kLowestWished = 200;
constexpr int kLowestAllowed = 3;

// What this process owns, in memory that a fork copies: the one thing a child must know of its
// parent. Entries are checked by identity before they are believed.
constexpr int kMaxOwned = 24;
OwnFd g_owned[kMaxOwned];

void Remember(const OwnFd& own) {
  for (OwnFd& entry : g_owned) {
    if (abi::LoadRelaxed(entry.fd) != 0) continue;
    entry.identity = own.identity;
    abi::StoreRelease(entry.fd, own.fd);
    return;
  }
}

void Forget(int fd) {
  for (OwnFd& entry : g_owned) {
    if (abi::LoadRelaxed(entry.fd) == fd) abi::StoreRelaxed(entry.fd, 0);
  }
}

// Waits for `events` until the deadline; false if nothing happened.
bool Await(int fd, short events, uint64_t deadline_ns) {
  for (;;) {
    const uint64_t now_ns = NowNs();
    if (now_ns >= deadline_ns) return false;
    const uint64_t left_ms = (deadline_ns - now_ns + 999'999) / 1'000'000;
    pollfd waiting = {fd, events, 0};
    const int ready = poll(&waiting, 1, left_ms > 10'000 ? 10'000 : static_cast<int>(left_ms));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return true;  // Let the call itself say what is wrong.
  }
}

}  // namespace

bool TakeFd(int fd, OwnFd* own) {
  int high = fd;
  if (fd < kLowestWished) {
    high = fcntl(fd, F_DUPFD_CLOEXEC, kLowestWished);
    // The limit on descriptors may be lower than what we wish.
    if (high < 0 && fd < kLowestAllowed) high = fcntl(fd, F_DUPFD_CLOEXEC, kLowestAllowed);
    if (high < 0 && fd >= kLowestAllowed) high = fd;
    if (high != fd) close(fd);
  }
  FileIdentity identity;
  if (high < 0) return false;
  if (!IdentifyFile(high, &identity, nullptr)) {
    close(high);
    return false;
  }
  own->identity = identity;
  own->fd = high;
  Remember(*own);
  return true;
}

bool StillOurs(const OwnFd& own) {
  FileIdentity now;
  return own.fd != 0 && IdentifyFile(own.fd, &now, nullptr) && now.device == own.identity.device &&
         now.inode == own.identity.inode;
}

void ReleaseFd(OwnFd* own) {
  if (own->fd == 0) return;
  if (StillOurs(*own)) close(own->fd);
  Forget(own->fd);
  own->fd = 0;
}

void CloseInheritedFds() {
  for (OwnFd& entry : g_owned) {
    OwnFd inherited = entry;
    ReleaseFd(&inherited);
  }
}

ConnectAnswer ConnectSocket(const char* path, OwnFd* own) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const size_t length = strnlen(path, sizeof(address.sun_path));
  if (length == 0 || length >= sizeof(address.sun_path)) return ConnectAnswer::kBadPath;
  memcpy(address.sun_path, path, length);
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return ConnectAnswer::kFailed;
  int result;
  do {
    result = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  } while (result != 0 && errno == EINTR);
  if (result == 0) return TakeFd(fd, own) ? ConnectAnswer::kConnected : ConnectAnswer::kFailed;
  const int error = errno;
  close(fd);
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return ConnectAnswer::kAbsent;
    case ECONNREFUSED:
    case EAGAIN:
    case EINPROGRESS:
      return ConnectAnswer::kNobody;
    default:
      return ConnectAnswer::kDenied;
  }
}

ReceiveAnswer ReceivePacket(const OwnFd& socket, uint64_t deadline_ns, Packet* packet) {
  packet->bytes = 0;
  packet->fd_count = 0;
  if (!StillOurs(socket)) return ReceiveAnswer::kEnd;
  // Room for more descriptors than are kept: those that do not fit are never installed, those that
  // do are closed below.
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * (kMaxPacketFds + 24))];
  iovec vector = {packet->data, sizeof(packet->data)};
  msghdr message;
  ssize_t received;
  for (;;) {
    message = {};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    received = recvmsg(socket.fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (received >= 0) break;
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return ReceiveAnswer::kEnd;
    if (!Await(socket.fd, POLLIN, deadline_ns)) return ReceiveAnswer::kNothing;
  }
  bool fits = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(fd));
      if (packet->fd_count < kMaxPacketFds) {
        packet->fds[packet->fd_count++] = fd;
      } else {
        fits = false;
        close(fd);
      }
    }
  }
  packet->bytes = static_cast<size_t>(received);
  if (!fits) {
    CloseFds(packet);
    return ReceiveAnswer::kBad;
  }
  // On this kind of socket an empty packet cannot be told from the end; nobody sends one.
  if (received == 0) {
    CloseFds(packet);
    return ReceiveAnswer::kEnd;
  }
  return ReceiveAnswer::kPacket;
}

void CloseFds(Packet* packet) {
  for (unsigned i = 0; i < packet->fd_count; ++i) {
    if (packet->fds[i] >= 0) close(packet->fds[i]);
  }
  packet->fd_count = 0;
}

bool SendPacket(const OwnFd& socket, const void* data, size_t bytes, int passed_fd,
                uint64_t deadline_ns) {
  if (!StillOurs(socket)) return false;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec vector = {const_cast<void*>(data), bytes};
  msghdr message = {};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  if (passed_fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(part), &passed_fd, sizeof(passed_fd));
  }
  for (;;) {
    const ssize_t sent = sendmsg(socket.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return static_cast<size_t>(sent) == bytes;
    if (errno == EINTR) continue;
    if (errno != EAGAIN || !Await(socket.fd, POLLOUT, deadline_ns)) return false;
  }
}

PeerState LookAtSocket(const OwnFd& socket) {
  if (!StillOurs(socket)) return PeerState::kGone;
  for (;;) {
    char byte;
    const ssize_t received = recv(socket.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (received > 0) return PeerState::kSpeaks;
    if (received == 0) return PeerState::kGone;
    if (errno == EINTR) continue;
    return errno == EAGAIN ? PeerState::kQuiet : PeerState::kGone;
  }
}

}  // namespace rubato::shim
