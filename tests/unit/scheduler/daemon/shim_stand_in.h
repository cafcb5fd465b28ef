// What the shim does on the attach socket, without a GPU: for tests that need a tenant's process.
//
// Waits by poll() with a generous limit; a test that runs the server in its own thread gives a
// function that lets the server work meanwhile.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/shared_memory.h"
#include "base/unix_socket.h"
#include "proto/abi/device.h"
#include "proto/abi/handshake.h"
#include "proto/abi/profile.h"
#include "proto/abi/slot.h"

namespace rubato::sched::testing {

struct Answer {
  std::vector<std::byte> bytes;
  std::vector<base::UniqueFd> fds;

  bool Is(abi::MessageType type) const;
  abi::Status status() const;
  template <typename Message>
  Message As() const {
    Message message{};
    __builtin_memcpy(&message, bytes.data(), std::min(bytes.size(), sizeof(message)));
    return message;
  }
};

abi::HelloMessage MakeHello();
abi::OpenDeviceMessage MakeOpenDevice(uint8_t device = 1);
abi::SlotMappedMessage MakeSlotMapped(uint32_t device);
abi::GetPeersMessage MakeGetPeers(uint32_t device, uint32_t first = 0);

template <typename Message>
std::vector<std::byte> Bytes(const Message& message) {
  const auto* data = reinterpret_cast<const std::byte*>(&message);
  return {data, data + sizeof(message)};
}

class ShimStandIn {
 public:
  // `work`: lets the server run for a moment; called while waiting.
  explicit ShimStandIn(std::function<void()> work) : work_(std::move(work)) {}

  bool Connect(const std::string& path);
  void Disconnect() { socket_.Reset(); }
  bool connected() const { return socket_.valid(); }

  bool Send(const std::vector<std::byte>& bytes, const std::vector<int>& fds = {});
  // nullopt: the server has closed the connection, or does not answer.
  std::optional<Answer> Receive();
  template <typename Message>
  std::optional<Answer> Ask(const Message& message, const std::vector<int>& fds = {}) {
    if (!Send(Bytes(message), fds)) return std::nullopt;
    return Receive();
  }
  // True once the server has closed the connection.
  bool IsClosed();

  // The whole handshake for one device; with `hand_back`, the slot of an earlier attachment.
  bool Attach(const std::string& path, uint8_t device = 1, bool hand_back = false);

  abi::WelcomeMessage welcome{};
  abi::DeviceOpenedMessage opened{};
  base::UniqueFd slot_fd;
  base::UniqueFd page_fd;
  base::UniqueFd profile_fd;
  base::Mapping slot_mapping;
  base::Mapping page_mapping;
  base::Mapping profile_mapping;
  abi::SlotRegion* slot() { return slot_mapping.as<abi::SlotRegion>(); }
  const abi::DeviceRegion* page() const { return page_mapping.as<const abi::DeviceRegion>(); }
  const abi::ProfileRegion* profile() const {
    return profile_mapping.as<const abi::ProfileRegion>();
  }

  // Writes a job record as a session does.
  void RecordJob(uint64_t first_op_ns, uint64_t end_ns);
  void RecordSample(uint64_t key, uint64_t base_key, uint32_t duration_ns);

 private:
  std::function<void()> work_;
  base::UniqueFd socket_;
};

}  // namespace rubato::sched::testing
