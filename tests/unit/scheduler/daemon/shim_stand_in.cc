#include "tests/unit/scheduler/daemon/shim_stand_in.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/clock.h"
#include "proto/abi/atomic.h"

namespace rubato::sched::testing {
namespace {

constexpr base::Nanos kLimit = 30 * base::kSecond;

}  // namespace

bool Answer::Is(abi::MessageType type) const {
  if (bytes.size() < sizeof(abi::MessageHeader)) return false;
  const auto header = As<abi::MessageHeader>();
  return header.magic == abi::kMessageMagic && header.type == static_cast<uint16_t>(type) &&
         header.bytes == bytes.size();
}

abi::Status Answer::status() const {
  return static_cast<abi::Status>(As<abi::MessageHeader>().status);
}

abi::HelloMessage MakeHello() {
  abi::HelloMessage hello{};
  hello.header = abi::MakeHeader(abi::MessageType::kHello, sizeof(hello));
  hello.clock_ns = static_cast<uint64_t>(base::MonotonicNow());
  hello.vendor = 1;
  hello.pid = 4;
  std::strcpy(hello.program, "stand-in");
  return hello;
}

abi::OpenDeviceMessage MakeOpenDevice(uint8_t device) {
  abi::OpenDeviceMessage open{};
  open.header = abi::MakeHeader(abi::MessageType::kOpenDevice, sizeof(open));
  open.uuid[0] = device;
  open.sm_count = 132;
  open.total_bytes = uint64_t{1} << 30;
  std::strcpy(open.name, "Stand-in GPU");
  return open;
}

abi::SlotMappedMessage MakeSlotMapped(uint32_t device) {
  abi::SlotMappedMessage mapped{};
  mapped.header = abi::MakeHeader(abi::MessageType::kSlotMapped, sizeof(mapped));
  mapped.device = device;
  return mapped;
}

abi::GetPeersMessage MakeGetPeers(uint32_t device, uint32_t first) {
  abi::GetPeersMessage peers{};
  peers.header = abi::MakeHeader(abi::MessageType::kGetPeers, sizeof(peers));
  peers.device = device;
  peers.first = first;
  return peers;
}

bool ShimStandIn::Connect(const std::string& path) {
  auto socket = base::ConnectUnix(path, SOCK_SEQPACKET);
  if (!socket) return false;
  socket_ = std::move(*socket);
  return true;
}

bool ShimStandIn::Send(const std::vector<std::byte>& bytes, const std::vector<int>& fds) {
  return base::SendPacket(socket_.get(), bytes, fds).ok();
}

std::optional<Answer> ShimStandIn::Receive() {
  const base::Nanos until_ns = base::MonotonicNow() + kLimit;
  std::array<std::byte, 4096> buffer;
  while (base::MonotonicNow() < until_ns) {
    base::Received received = base::ReceivePacket(socket_.get(), buffer);
    if (received.state == base::PacketState::kEnd) {
      socket_.Reset();
      return std::nullopt;
    }
    if (received.state == base::PacketState::kPacket) {
      Answer answer;
      answer.bytes.assign(buffer.begin(),
                          buffer.begin() + static_cast<std::ptrdiff_t>(received.packet.bytes));
      answer.fds = std::move(received.packet.fds);
      return answer;
    }
    work_();
    pollfd waiting{socket_.get(), POLLIN, 0};
    ::poll(&waiting, 1, 5);
  }
  return std::nullopt;
}

bool ShimStandIn::IsClosed() {
  return socket_.valid() ? !Receive().has_value() && !socket_.valid() : true;
}

bool ShimStandIn::Attach(const std::string& path, uint8_t device, bool hand_back) {
  if (!Connect(path)) return false;
  auto answer = Ask(MakeHello());
  if (!answer || !answer->Is(abi::MessageType::kWelcome) || answer->status() != abi::Status::kOk)
    return false;
  welcome = answer->As<abi::WelcomeMessage>();
  std::vector<int> fds;
  if (hand_back) fds.push_back(slot_fd.get());
  answer = Ask(MakeOpenDevice(device), fds);
  if (!answer || !answer->Is(abi::MessageType::kDeviceOpened) ||
      answer->status() != abi::Status::kOk || answer->fds.size() != abi::kDeviceOpenedFds)
    return false;
  opened = answer->As<abi::DeviceOpenedMessage>();
  slot_fd = std::move(answer->fds[0]);
  page_fd = std::move(answer->fds[1]);
  profile_fd = std::move(answer->fds[2]);
  if (!hand_back) {
    auto mapped = base::Mapping::Writable(slot_fd.get(), sizeof(abi::SlotRegion));
    if (!mapped) return false;
    slot_mapping = std::move(*mapped);
  }
  auto page_mapped = base::Mapping::ReadOnly(page_fd.get(), sizeof(abi::DeviceRegion));
  auto profile_mapped = base::Mapping::ReadOnly(profile_fd.get(), sizeof(abi::ProfileRegion));
  if (!page_mapped || !profile_mapped) return false;
  page_mapping = std::move(*page_mapped);
  profile_mapping = std::move(*profile_mapped);
  answer = Ask(MakeSlotMapped(opened.device));
  return answer && answer->Is(abi::MessageType::kSessionLive) &&
         answer->status() == abi::Status::kOk;
}

void ShimStandIn::RecordJob(uint64_t first_op_ns, uint64_t end_ns) {
  abi::SlotRegion& region = *slot();
  abi::JobRecord record{};
  record.first_op_ns = first_op_ns;
  record.end_ns = end_ns;
  record.op_count = 1;
  const uint64_t head = abi::LoadRelaxed(region.heads.job_head);
  region.jobs[head % abi::kJobRing] = record;
  abi::StoreRelease(region.heads.job_head, head + 1);
}

void ShimStandIn::RecordSample(uint64_t key, uint64_t base_key, uint32_t duration_ns) {
  abi::SlotRegion& region = *slot();
  const uint64_t head = abi::LoadRelaxed(region.heads.sample_head);
  region.samples[head % abi::kSampleRing] =
      abi::SampleRecord{key, base_key, duration_ns, 1000, 0, 0};
  abi::StoreRelease(region.heads.sample_head, head + 1);
}

}  // namespace rubato::sched::testing
