// Unix sockets: listening, connecting, packets that carry descriptors, and who the peer is.
//
// All sockets are close-on-exec and non-blocking. A received descriptor is owned at once, so that a
// hostile packet with more of them than expected leaks none.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace rubato::base {

struct PeerCredentials {
  pid_t pid = 0;  // 0: in a PID namespace that is not visible from here.
  uid_t uid = static_cast<uid_t>(-1);
  gid_t gid = static_cast<gid_t>(-1);
};

// Binds and listens at `path` with `mode`. An existing socket there is replaced: the caller holds
// the lock of the directory. Type: SOCK_SEQPACKET or SOCK_STREAM.
Result<UniqueFd> ListenUnix(const std::string& path, int type, mode_t mode, int backlog);

Result<UniqueFd> ConnectUnix(const std::string& path, int type);

// The next waiting connection; nullopt when there is none (or it is gone again). Other failures,
// EMFILE among them, are errors.
Result<std::optional<UniqueFd>> AcceptUnix(int listener);

Result<PeerCredentials> PeerOf(int socket);

// A descriptor that becomes readable when the process that connected ends, though a child that it
// has forked may hold the connection open. Invalid where the kernel cannot tell (before 6.5, and
// the peer's PID is not visible from here).
UniqueFd PeerProcess(int socket, const PeerCredentials& peer);

struct Packet {
  size_t bytes = 0;  // Length of the packet, which may exceed the buffer it was read into.
  bool cut = false;  // The packet or its control data did not fit.
  std::vector<UniqueFd> fds;
};

enum class PacketState { kPacket, kNothing, kEnd };
struct Received {
  PacketState state = PacketState::kNothing;
  Packet packet;
};

// Reads one packet without waiting. kEnd: the peer has closed the connection (also after an error
// of the socket).
Received ReceivePacket(int socket, std::span<std::byte> buffer);

// Writes one packet without waiting. An error of code kUnavailable: the peer does not read, or is
// gone.
Result<void> SendPacket(int socket, std::span<const std::byte> bytes,
                        std::span<const int> fds = {});

inline constexpr size_t kMaxPacketFds = 64;

}  // namespace rubato::base
