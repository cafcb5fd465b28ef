// One process's side of the attach protocol: packets in, answers out.
//
// The peer is hostile: every packet is checked for size, magic, type, version, ranges, order and
// the descriptors it carries; anything unexpected is answered with a status and ends the
// connection. Knows no socket, so that tests and fuzzers feed it bytes.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/unix_socket.h"
#include "proto/abi/handshake.h"
#include "scheduler/daemon/scheduler.h"

namespace rubato::sched {

struct AttachReply {
  std::vector<std::byte> bytes;  // Empty: no answer.
  std::vector<int> fds;          // The scheduler's; to be sent before anything else happens.
  bool end = false;              // Close the connection afterwards.
};

class AttachProtocol {
 public:
  AttachProtocol(Scheduler* scheduler, TenantId tenant, int64_t peer_pid);

  // `cut`: the packet or its descriptors did not fit the buffers.
  AttachReply OnPacket(std::span<const std::byte> packet, bool cut, std::vector<base::UniqueFd> fds,
                       Nanos now_ns);
  // The connection has ended, for whatever reason: so do the sessions.
  void OnEnd(Nanos now_ns);

  bool greeted() const { return greeted_; }
  abi::Status last_refusal() const { return last_refusal_; }

 private:
  struct OpenSession {
    uint32_t device;
    SessionId id;
    bool live;
  };

  AttachReply OnHello(std::span<const std::byte> packet, Nanos now_ns);
  AttachReply OnOpenDevice(std::span<const std::byte> packet, std::vector<base::UniqueFd> fds,
                           Nanos now_ns);
  AttachReply OnSlotMapped(std::span<const std::byte> packet);
  AttachReply OnGetPeers(std::span<const std::byte> packet);
  AttachReply Refuse(abi::MessageType type, abi::Status status);
  OpenSession* Find(uint32_t device);
  bool TakeToken(Nanos now_ns);

  Scheduler* scheduler_;
  TenantId tenant_;
  ProcessInfo process_;
  bool greeted_ = false;
  abi::Status last_refusal_ = abi::Status::kOk;
  std::vector<OpenSession> sessions_;
  // Packets allowed now: a peer that asks without end gets no more than its share of the loop.
  int64_t tokens_ = kTokenLimit;
  Nanos tokens_at_ns_ = 0;
  static constexpr int64_t kTokenLimit = 2000;
  static constexpr Nanos kTokenNs = 2 * base::kMillisecond;
};

}  // namespace rubato::sched
