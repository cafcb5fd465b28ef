#include "base/unix_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#ifndef SO_PEERPIDFD  // Linux 6.5; older headers do not name it.
#define SO_PEERPIDFD 77
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

namespace rubato::base {
namespace {

Result<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path))
    return Error{ErrorCode::kInvalid, "the socket path " + path + " is longer than " +
                                          std::to_string(sizeof(address.sun_path) - 1) +
                                          " characters; choose a shorter runtime directory"};
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

}  // namespace

Result<UniqueFd> ListenUnix(const std::string& path, int type, mode_t mode, int backlog) {
  auto address = AddressOf(path);
  if (!address) return address.error();
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return SystemError("cannot make a socket");
  ::unlink(path.c_str());
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)) != 0)
    return SystemError("cannot bind " + path);
  if (::chmod(path.c_str(), mode) != 0 || ::listen(fd.get(), backlog) != 0) {
    const Error error = SystemError("cannot listen at " + path);
    ::unlink(path.c_str());
    return error;
  }
  return fd;
}

Result<UniqueFd> ConnectUnix(const std::string& path, int type) {
  auto address = AddressOf(path);
  if (!address) return address.error();
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return SystemError("cannot make a socket");
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)) != 0)
    return SystemError("cannot connect to " + path);
  return fd;
}

Result<std::optional<UniqueFd>> AcceptUnix(int listener) {
  for (;;) {
    UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd.valid()) return std::optional<UniqueFd>(std::move(fd));
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == ECONNABORTED) return std::optional<UniqueFd>();
    return SystemError("cannot accept a connection");
  }
}

Result<PeerCredentials> PeerOf(int socket) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0)
    return SystemError("cannot ask who the peer is");
  return PeerCredentials{credentials.pid, credentials.uid, credentials.gid};
}

UniqueFd PeerProcess(int socket, const PeerCredentials& peer) {
  int fd = -1;
  socklen_t length = sizeof(fd);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &length) == 0) {
    (void)::fcntl(fd, F_SETFD, FD_CLOEXEC);
    return UniqueFd(fd);
  }
  // By number: if the process has ended and the number is another's by now, the end of the
  // connection is what is left to tell.
  if (peer.pid <= 0) return UniqueFd();
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0)));
}

Received ReceivePacket(int socket, std::span<std::byte> buffer) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPacketFds)];
  iovec part{buffer.data(), buffer.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t length;
  do {
    length = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);
  } while (length < 0 && errno == EINTR);
  Received received;
  if (length < 0) {
    received.state = errno == EAGAIN ? PacketState::kNothing : PacketState::kEnd;
    return received;
  }
  for (cmsghdr* part_of = CMSG_FIRSTHDR(&message); part_of != nullptr;
       part_of = CMSG_NXTHDR(&message, part_of)) {
    if (part_of->cmsg_level != SOL_SOCKET || part_of->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part_of->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part_of) + i * sizeof(int), sizeof(fd));
      received.packet.fds.emplace_back(fd);
    }
  }
  received.packet.bytes = static_cast<size_t>(length);
  received.packet.cut = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
  // A SEQPACKET peer may send empty packets, but so reads the end of a connection too, and no
  // message of ours is empty.
  received.state = length == 0 ? PacketState::kEnd : PacketState::kPacket;
  return received;
}

Result<void> SendPacket(int socket, std::span<const std::byte> bytes, std::span<const int> fds) {
  if (fds.size() > kMaxPacketFds)
    return Error{ErrorCode::kInvalid, "too many descriptors for one packet"};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPacketFds)];
  std::memset(control, 0, sizeof(control));
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  ssize_t sent;
  do {
    sent = ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent == static_cast<ssize_t>(bytes.size())) return {};
  Error error = SystemError("cannot send a packet", sent < 0 ? errno : EMSGSIZE);
  if (error.source == EAGAIN || error.source == EPIPE || error.source == ECONNRESET)
    error.code = ErrorCode::kUnavailable;
  return error;
}

}  // namespace rubato::base
