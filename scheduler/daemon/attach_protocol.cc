#include "scheduler/daemon/attach_protocol.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"

namespace rubato::sched {
namespace {

constexpr size_t kMostSessionsPerProcess = 16;

template <typename Message>
AttachReply Answer(const Message& message, std::vector<int> fds = {}) {
  AttachReply reply;
  const auto* bytes = reinterpret_cast<const std::byte*>(&message);
  reply.bytes.assign(bytes, bytes + sizeof(message));
  reply.fds = std::move(fds);
  return reply;
}

template <typename Message>
Message Copy(std::span<const std::byte> packet) {
  Message message;
  std::memcpy(&message, packet.data(), sizeof(message));
  return message;
}

}  // namespace

AttachProtocol::AttachProtocol(Scheduler* scheduler, TenantId tenant, int64_t peer_pid)
    : scheduler_(scheduler), tenant_(tenant) {
  process_.pid = peer_pid;
}

// The shortest answer of the expected type that carries a status: peers look at it first.
AttachReply AttachProtocol::Refuse(abi::MessageType type, abi::Status status) {
  last_refusal_ = status;
  scheduler_->CountRefusal(status);
  AttachReply reply;
  const auto refuse = [&](auto message) {
    message.header = abi::MakeHeader(type, sizeof(message), status);
    reply = Answer(message);
  };
  switch (type) {
    case abi::MessageType::kDeviceOpened:
      refuse(abi::DeviceOpenedMessage{});
      break;
    case abi::MessageType::kSessionLive:
      refuse(abi::SessionLiveMessage{});
      break;
    case abi::MessageType::kPeers:
      refuse(abi::PeersMessage{});
      break;
    default:
      refuse(abi::WelcomeMessage{});
      break;
  }
  reply.end = true;
  return reply;
}

bool AttachProtocol::TakeToken(Nanos now_ns) {
  if (tokens_at_ns_ == 0) tokens_at_ns_ = now_ns;
  const int64_t earned = std::max<Nanos>(0, now_ns - tokens_at_ns_) / kTokenNs;
  tokens_ = std::min(kTokenLimit, tokens_ + earned);
  tokens_at_ns_ += earned * kTokenNs;
  return --tokens_ >= 0;
}

AttachReply AttachProtocol::OnPacket(std::span<const std::byte> packet, bool cut,
                                     std::vector<base::UniqueFd> fds, Nanos now_ns) {
  if (cut || packet.size() < sizeof(abi::MessageHeader) || packet.size() > abi::kMaxMessageBytes ||
      !TakeToken(now_ns))
    return Refuse(abi::MessageType::kWelcome, abi::Status::kBadMessage);
  const auto header = Copy<abi::MessageHeader>(packet);
  if (header.magic != abi::kMessageMagic || header.bytes != packet.size())
    return Refuse(abi::MessageType::kWelcome, abi::Status::kBadMessage);
  const auto type = static_cast<abi::MessageType>(header.type);
  if (!greeted_) {
    // Another major may have another Hello; whatever it is, it learns which major is spoken here.
    if (type == abi::MessageType::kHello && header.major != abi::kMajor)
      return Refuse(abi::MessageType::kWelcome, abi::Status::kVersionMismatch);
    if (!fds.empty() || !abi::MessageAccepted(header, abi::MessageType::kHello,
                                              sizeof(abi::HelloMessage), packet.size()))
      return Refuse(abi::MessageType::kWelcome, abi::Status::kBadMessage);
    return OnHello(packet, now_ns);
  }
  const auto accepted = [&](size_t bytes) {
    return header.major == abi::kMajor && abi::MessageAccepted(header, type, bytes, packet.size());
  };
  switch (type) {
    case abi::MessageType::kOpenDevice:
      if (!accepted(sizeof(abi::OpenDeviceMessage)) || fds.size() > 1)
        return Refuse(abi::MessageType::kDeviceOpened, abi::Status::kBadMessage);
      return OnOpenDevice(packet, std::move(fds), now_ns);
    case abi::MessageType::kSlotMapped:
      if (!accepted(sizeof(abi::SlotMappedMessage)) || !fds.empty())
        return Refuse(abi::MessageType::kSessionLive, abi::Status::kBadMessage);
      return OnSlotMapped(packet);
    case abi::MessageType::kGetPeers:
      if (!accepted(sizeof(abi::GetPeersMessage)) || !fds.empty())
        return Refuse(abi::MessageType::kPeers, abi::Status::kBadMessage);
      return OnGetPeers(packet);
    default:
      return Refuse(abi::MessageType::kWelcome, abi::Status::kBadMessage);
  }
}

AttachReply AttachProtocol::OnHello(std::span<const std::byte> packet, Nanos now_ns) {
  const auto hello = Copy<abi::HelloMessage>(packet);
  const core::TenantSpec* spec = scheduler_->FindTenant(tenant_);
  if (spec == nullptr || scheduler_->draining())
    return Refuse(abi::MessageType::kWelcome, abi::Status::kNotAllowed);
  const auto now = static_cast<uint64_t>(now_ns);
  const uint64_t apart_ns = hello.clock_ns > now ? hello.clock_ns - now : now - hello.clock_ns;
  if (apart_ns > abi::kMaxClockSkewNs)
    return Refuse(abi::MessageType::kWelcome, abi::Status::kClockMismatch);
  if (hello.vendor != 1 && hello.vendor != 2)
    return Refuse(abi::MessageType::kWelcome, abi::Status::kBadMessage);
  greeted_ = true;
  process_.vendor = hello.vendor;
  process_.shim_build = hello.shim_build;
  process_.reattach = (hello.flags & abi::kHelloReattach) != 0;
  if (process_.reattach) {
    core::TenantClass claimed = core::TenantClass::kFree;
    if ((hello.flags & abi::kHelloRealtime) != 0) claimed = core::TenantClass::kRealtime;
    if ((hello.flags & abi::kHelloBestEffort) != 0) claimed = core::TenantClass::kBestEffort;
    process_.tenant_class = scheduler_->ClassForOldProcess(tenant_, claimed);
  } else {
    process_.tenant_class = scheduler_->ClassForNewProcess(tenant_, now_ns);
  }
  process_.program =
      base::Printable({hello.program, strnlen(hello.program, sizeof(hello.program))}, 64);

  abi::WelcomeMessage welcome{};
  welcome.header = abi::MakeHeader(abi::MessageType::kWelcome, sizeof(welcome));
  welcome.clock_ns = now;
  welcome.epoch = scheduler_->options().epoch;
  welcome.tenant_class = static_cast<uint32_t>(process_.tenant_class);
  welcome.mode = static_cast<uint32_t>(scheduler_->options().mode);
  const std::string& mps = scheduler_->options().mps_directory;
  if (scheduler_->UsesMps(process_.tenant_class) && mps.size() < sizeof(welcome.mps_directory)) {
    welcome.use_mps = 1;
    std::memcpy(welcome.mps_directory, mps.data(), mps.size());
  }
  welcome.limit_bytes = spec->limit_bytes;
  return Answer(welcome);
}

AttachReply AttachProtocol::OnOpenDevice(std::span<const std::byte> packet,
                                         std::vector<base::UniqueFd> fds, Nanos now_ns) {
  const auto request = Copy<abi::OpenDeviceMessage>(packet);
  if (sessions_.size() >= kMostSessionsPerProcess)
    return Refuse(abi::MessageType::kDeviceOpened, abi::Status::kFull);
  std::optional<base::UniqueFd> slot;
  if (!fds.empty()) slot = std::move(fds.front());
  OpenedSession opened;
  const abi::Status status =
      scheduler_->OpenDevice(tenant_, process_, request, std::move(slot), now_ns, &opened);
  if (status != abi::Status::kOk) return Refuse(abi::MessageType::kDeviceOpened, status);
  if (Find(opened.device) != nullptr) {
    scheduler_->CloseSession(opened.id, now_ns);
    return Refuse(abi::MessageType::kDeviceOpened, abi::Status::kBadMessage);
  }
  sessions_.push_back(OpenSession{opened.device, opened.id, false});
  abi::DeviceOpenedMessage answer{};
  answer.header = abi::MakeHeader(abi::MessageType::kDeviceOpened, sizeof(answer));
  answer.device = opened.device;
  answer.session = opened.session;
  answer.tenant = opened.tenant;
  return Answer(answer, {opened.slot_fd, opened.page_fd, opened.profile_fd});
}

AttachReply AttachProtocol::OnSlotMapped(std::span<const std::byte> packet) {
  const auto request = Copy<abi::SlotMappedMessage>(packet);
  OpenSession* session = Find(request.device);
  if (session == nullptr || session->live)
    return Refuse(abi::MessageType::kSessionLive, abi::Status::kBadMessage);
  auto generation = scheduler_->GoLive(session->id);
  if (!generation) {
    base::LogWarning("pid={} session refused: {}", process_.pid, generation.error().message);
    return Refuse(abi::MessageType::kSessionLive, abi::Status::kBadSlot);
  }
  session->live = true;
  abi::SessionLiveMessage answer{};
  answer.header = abi::MakeHeader(abi::MessageType::kSessionLive, sizeof(answer));
  answer.generation = *generation;
  return Answer(answer);
}

AttachReply AttachProtocol::OnGetPeers(std::span<const std::byte> packet) {
  const auto request = Copy<abi::GetPeersMessage>(packet);
  const OpenSession* session = Find(request.device);
  if (session == nullptr || !session->live || request.first > abi::kMaxSessions)
    return Refuse(abi::MessageType::kPeers, abi::Status::kBadMessage);
  abi::PeersMessage answer{};
  answer.header = abi::MakeHeader(abi::MessageType::kPeers, sizeof(answer));
  answer.generation = scheduler_->DirectoryGeneration(session->id);
  std::vector<int> fds;
  for (const PeerSlot& peer :
       scheduler_->Peers(session->id, request.first, abi::kMaxPeersPerMessage, &answer.next)) {
    answer.items[answer.count++] = abi::PeerItem{peer.session, peer.generation};
    fds.push_back(peer.slot_fd);
  }
  return Answer(answer, std::move(fds));
}

AttachProtocol::OpenSession* AttachProtocol::Find(uint32_t device) {
  for (OpenSession& session : sessions_) {
    if (session.device == device) return &session;
  }
  return nullptr;
}

void AttachProtocol::OnEnd(Nanos now_ns) {
  for (const OpenSession& session : sessions_) scheduler_->CloseSession(session.id, now_ns);
  sessions_.clear();
}

}  // namespace rubato::sched
