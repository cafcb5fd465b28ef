// Descriptors of the shim in a program that knows nothing of them, and packets on the attach
// socket.
//
// A program may close every descriptor it does not know (daemons do) and then open files under the
// same numbers; so each of ours is kept with the identity of its file and checked before each use,
// and one that has become somebody else's is forgotten, not closed. Ours lie above the numbers that
// programs assume things about. One thread at a time (ProcessState::talking). Trusts nobody at the
// other end: a received descriptor is either taken by the caller or closed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shim/core/sys.h"

namespace rubato::shim {

struct OwnFd {
  int fd;  // 0: none; ours are never that small.
  FileIdentity identity;
};

// Takes ownership of `fd` and moves it above the low numbers. False, with `fd` closed, if that is
// impossible.
bool TakeFd(int fd, OwnFd* own);
// It is open and still names our file.
bool StillOurs(const OwnFd& own);
// Closes it, unless it has become the program's.
void ReleaseFd(OwnFd* own);
// In the child of a fork that attaches by itself: closes what it inherited, so that the parent's
// session ends with the parent.
void CloseInheritedFds();

enum class ConnectAnswer : uint8_t {
  kConnected = 0,
  kAbsent = 1,   // No socket has this path.
  kNobody = 2,   // Nobody listens, or too many wait: worth another try.
  kDenied = 3,   // This process may not.
  kFailed = 4,   // No socket could be made.
  kBadPath = 5,  // The path is too long.
};
ConnectAnswer ConnectSocket(const char* path, OwnFd* own);

inline constexpr unsigned kMaxPacketFds = 40;  // More than any message carries.

// One packet as it came. `bytes` is its length.
struct Packet {
  alignas(8) uint8_t data[1024 + 8];
  size_t bytes;
  unsigned fd_count;
  int fds[kMaxPacketFds];  // -1 where the receiver took it.
};

enum class ReceiveAnswer : uint8_t {
  kPacket = 0,
  kNothing = 1,  // None came until `deadline_ns`.
  kEnd = 2,      // The other end is gone.
  kBad = 3,      // The packet, or what it carried, did not fit; its descriptors are closed.
};
// A deadline in the past does not wait.
ReceiveAnswer ReceivePacket(const OwnFd& socket, uint64_t deadline_ns, Packet* packet);
// Closes the descriptors that nobody took.
void CloseFds(Packet* packet);

// False if the other end is gone or does not read until `deadline_ns`. `passed_fd`: -1, or a
// descriptor that rides along.
bool SendPacket(const OwnFd& socket, const void* data, size_t bytes, int passed_fd,
                uint64_t deadline_ns);

enum class PeerState : uint8_t { kQuiet = 0, kSpeaks = 1, kGone = 2 };
// What waits to be received, without receiving it.
PeerState LookAtSocket(const OwnFd& socket);

}  // namespace rubato::shim
