// The attach protocol: what a shim and the scheduler say to each other on the attach socket.
//
// A UNIX SOCK_SEQPACKET socket, one message per packet, each a fixed-size struct that starts with
// MessageHeader; fds ride on the packet they belong to (SCM_RIGHTS). The shim asks, the scheduler
// answers, strictly in turn, and never on the launch path: at cuInit, at the first use of a device,
// when the directory's generation changed, and to re-attach. Who the tenant is follows from the
// socket it was given and from SO_PEERCRED, never from anything said here. Both sides check size,
// magic, type and ranges of every message; anything unexpected ends the connection. A connection
// that ends, for whatever reason, ends the session: the scheduler takes it out of the directory.
//
//   shim                                scheduler
//   Hello            ---------------->  checks version, clock, peer
//                    <----------------  Welcome          class, mode, MPS directory: decided before
//                    the first cuInit
//   OpenDevice       ---------------->                   (+ own slot fd when re-attaching)
//                    <----------------  DeviceOpened     + 3 fds: slot (writable), device page,
//                    profile table
//   SlotMapped       ---------------->  seals the slot against future writers, enters it in the
//   directory
//                    <----------------  SessionLive
//   GetPeers         ---------------->
//                    <----------------  Peers            + one slot fd per entry; asked again while
//                    `more` is set
#pragma once

#include <cstddef>
#include <cstdint>

#include "proto/abi/region.h"

namespace rubato::abi {

inline constexpr uint32_t kMessageMagic = 0x4d425552;  // "RUBM" in memory order.
inline constexpr uint32_t kMaxMessageBytes = 1024;
inline constexpr uint32_t kMaxPeersPerMessage =
    32;  // The kernel allows 253 fds a packet; both ends stay far below.
inline constexpr uint64_t kMaxClockSkewNs =
    1000000000;  // Hello crosses the socket well within this.

// Where the shim looks for the socket: RUBATO_SOCKET if set (a path set by `rubato run`), else here
// (containers).
inline constexpr const char kDefaultSocketDirectory[] = "/run/rubato";
inline constexpr const char kDefaultSocketPath[] = "/run/rubato/attach.sock";

enum class MessageType : uint16_t {
  kHello = 1,
  kWelcome = 2,
  kOpenDevice = 3,
  kDeviceOpened = 4,
  kSlotMapped = 5,
  kSessionLive = 6,
  kGetPeers = 7,
  kPeers = 8,
};

enum class Status : uint32_t {
  kOk = 0,
  kVersionMismatch =
      1,  // Other major: the answer carries the scheduler's version, then the connection ends.
  kClockMismatch = 2,
  kNotAllowed = 3,  // The peer does not belong to the tenant of this socket, or the tenant is gone.
  kUnknownDevice = 4,
  kFull = 5,  // No free tenant or session entry on this device.
  kBadMessage = 6,
  kBadSlot = 7,  // The slot handed back at a re-attach is not one of ours (size, seals, header).
};

struct MessageHeader {
  uint32_t magic;  // kMessageMagic.
  uint16_t type;   // MessageType.
  uint16_t
      bytes;  // Of the whole message; must equal both the packet's length and the struct's size.
  uint16_t major;  // kMajor of the sender.
  uint16_t minor;
  uint32_t status;  // Status; requests say kOk.
};
static_assert(sizeof(MessageHeader) == 16);

struct HelloMessage {
  MessageHeader header;
  uint64_t clock_ns;  // CLOCK_MONOTONIC of the shim: slots and models compare times across
                      // processes, so a process in another time namespace cannot take part.
  uint32_t vendor;    // 1 CUDA, 2 HIP.
  uint32_t flags;     // kHello*.
  uint32_t pid;       // In the shim's PID namespace; for people only.
  uint32_t shim_build;
  char program[64];  // Base name of /proc/self/exe, truncated, NUL-terminated; for people only.
};
static_assert(sizeof(HelloMessage) == 104);
inline constexpr uint32_t kHelloReattach = 1u << 0;
// With kHelloReattach: the class that the process has lived with since it started, which no
// restart of the scheduler changes. A claim: it can give up real-time, not obtain it.
inline constexpr uint32_t kHelloRealtime = 1u << 1;
inline constexpr uint32_t kHelloBestEffort = 1u << 2;

struct WelcomeMessage {
  MessageHeader header;
  uint64_t clock_ns;      // CLOCK_MONOTONIC of the scheduler.
  uint64_t epoch;         // Of the scheduler instance.
  uint32_t tenant_class;  // TenantClass of device.h.
  uint32_t mode;          // Mode of device.h.
  uint32_t use_mps;  // 1: set the pipe directory below before cuInit. 0: set a directory in which
                     // no server is.
  uint32_t reserved;
  char mps_directory[112];  // NUL-terminated; empty unless use_mps.
  uint64_t limit_bytes;  // Memory limit per device, for queries that come before the first device
                         // is opened; 0: none.
};
static_assert(sizeof(WelcomeMessage) == 168);

struct OpenDeviceMessage {
  MessageHeader header;
  uint8_t uuid[16];
  uint32_t sm_count;
  uint32_t ordinal;      // The device's index in this process; for people only.
  uint64_t total_bytes;  // Of device memory; for people only.
  char name[64];         // Of the device; NUL-terminated; for people only.
};
static_assert(sizeof(OpenDeviceMessage) == 112);

struct DeviceOpenedMessage {
  MessageHeader header;
  uint32_t device;   // The scheduler's index of the device; names it in the messages below.
  uint32_t session;  // Index in the device's directory.
  uint32_t tenant;   // Index in the device's tenant table.
  uint32_t reserved;
};
static_assert(sizeof(DeviceOpenedMessage) == 32);
inline constexpr unsigned kDeviceOpenedFds = 3;  // Slot, device page, profile table, in this order.

struct SlotMappedMessage {
  MessageHeader header;
  uint32_t device;
  uint32_t reserved;
};
static_assert(sizeof(SlotMappedMessage) == 24);

struct SessionLiveMessage {
  MessageHeader header;
  uint64_t generation;  // Of the directory, this session included.
};
static_assert(sizeof(SessionLiveMessage) == 24);

struct GetPeersMessage {
  MessageHeader header;
  uint32_t device;
  uint32_t first;  // Directory index to start from.
};
static_assert(sizeof(GetPeersMessage) == 24);

struct PeerItem {
  uint32_t session;     // Directory index.
  uint32_t generation;  // Of the directory entry: the mapping belongs to this generation only.
};

struct PeersMessage {
  MessageHeader header;
  uint64_t generation;  // Of the directory when the answer was made.
  uint32_t count;       // Items below, and fds on this packet. At most kMaxPeersPerMessage.
  uint32_t next;        // Ask again with this `first`; kMaxSessions: that was all.
  PeerItem items[kMaxPeersPerMessage];
};
static_assert(sizeof(PeersMessage) == 32 + 8 * kMaxPeersPerMessage);
static_assert(sizeof(PeersMessage) <= kMaxMessageBytes);

inline MessageHeader MakeHeader(MessageType type, uint32_t bytes, Status status = Status::kOk) {
  return {kMessageMagic, static_cast<uint16_t>(type),  static_cast<uint16_t>(bytes), kMajor,
          kMinor,        static_cast<uint32_t>(status)};
}

// True if `header`, copied from a packet of `packet_bytes`, announces a message of `type` and
// `struct_bytes`. Says nothing about the version: a Hello of another major is answered with
// kVersionMismatch before the connection ends.
inline bool MessageAccepted(MessageHeader header, MessageType type, uint64_t struct_bytes,
                            uint64_t packet_bytes) {
  return header.magic == kMessageMagic && header.type == static_cast<uint16_t>(type) &&
         header.bytes == struct_bytes && packet_bytes == struct_bytes;
}

}  // namespace rubato::abi
