// Packets of an attach connection, one after another, with descriptors on some.
//
// Input: records of {flags, length low, length high, bytes}. Flag bits: 0 put a right header of the
// type in bits 4-7 over the first bytes; 1 attach a descriptor; 2 it is a slot made earlier (or one
// of the right form); 3 let time pass.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "base/log.h"
#include "base/shared_memory.h"
#include "scheduler/daemon/attach_protocol.h"

namespace {

using namespace rubato;  // NOLINT: a fuzz target is a program of one file.

constexpr base::Nanos kNow = 1000 * base::kSecond;

size_t SizeOf(abi::MessageType type) {
  switch (type) {
    case abi::MessageType::kHello:
      return sizeof(abi::HelloMessage);
    case abi::MessageType::kOpenDevice:
      return sizeof(abi::OpenDeviceMessage);
    case abi::MessageType::kSlotMapped:
      return sizeof(abi::SlotMappedMessage);
    case abi::MessageType::kGetPeers:
      return sizeof(abi::GetPeersMessage);
    default:
      return sizeof(abi::MessageHeader);
  }
}

base::UniqueFd MakeSlot() {
  base::UniqueFd fd = *base::MakeMemfd("fuzz", sizeof(abi::SlotRegion));
  abi::RegionHeader header{};
  header.magic = abi::kMagic;
  header.kind = static_cast<uint32_t>(abi::RegionKind::kSlot);
  header.size_bytes = sizeof(abi::SlotRegion);
  header.major = abi::kMajor;
  header.owner = 3;
  (void)!::pwrite(fd.get(), &header, sizeof(header), 0);
  (void)base::SealSize(fd.get());
  return fd;
}

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool quiet = base::StartLog("fuzz", "error").ok();
  (void)quiet;
  sched::Scheduler scheduler(sched::SchedulerOptions{}, kNow);
  core::TenantSpec spec;
  spec.name = "fuzz";
  spec.tenant_class = core::TenantClass::kRealtime;
  const core::TenantId tenant = *scheduler.AddTenant(spec, kNow);
  // Two connections of one tenant, used in turn after an end.
  std::optional<sched::AttachProtocol> protocol;
  protocol.emplace(&scheduler, tenant, 1);
  base::Nanos now_ns = kNow;
  size_t at = 0;
  while (at + 3 <= size) {
    const uint8_t flags = data[at];
    const size_t wanted =
        static_cast<size_t>(data[at + 1]) | (static_cast<size_t>(data[at + 2]) << 8);
    at += 3;
    const size_t length = std::min({wanted, size - at, size_t{abi::kMaxMessageBytes + 16}});
    std::vector<std::byte> packet(length);
    if (length != 0) std::memcpy(packet.data(), data + at, length);
    at += length;
    if ((flags & 1) != 0) {
      const auto type = static_cast<abi::MessageType>(1 + (flags >> 4) % 8);
      packet.resize(SizeOf(type));
      const abi::MessageHeader header = abi::MakeHeader(type, static_cast<uint32_t>(packet.size()));
      std::memcpy(packet.data(), &header, sizeof(header));
      if (type == abi::MessageType::kHello) {
        const auto clock = static_cast<uint64_t>(now_ns);
        std::memcpy(packet.data() + offsetof(abi::HelloMessage, clock_ns), &clock, sizeof(clock));
        const uint32_t vendor = 1;
        std::memcpy(packet.data() + offsetof(abi::HelloMessage, vendor), &vendor, sizeof(vendor));
      }
      if (type == abi::MessageType::kSlotMapped || type == abi::MessageType::kGetPeers) {
        const uint32_t device = 0;
        std::memcpy(packet.data() + sizeof(header), &device, sizeof(device));
      }
    }
    std::vector<base::UniqueFd> fds;
    if ((flags & 2) != 0)
      fds.push_back((flags & 4) != 0 ? MakeSlot()
                                     : base::UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)));
    if ((flags & 8) != 0) now_ns += 30 * base::kMillisecond;
    const sched::AttachReply reply =
        protocol->OnPacket(packet, packet.size() > abi::kMaxMessageBytes, std::move(fds), now_ns);
    Require(reply.bytes.size() >= sizeof(abi::MessageHeader), "every packet is answered");
    Require(reply.bytes.size() <= abi::kMaxMessageBytes, "answers fit a packet");
    Require(reply.fds.size() <= base::kMaxPacketFds, "descriptors fit a packet");
    scheduler.Poll(now_ns);
    if (reply.end) {
      protocol->OnEnd(now_ns);
      Require(scheduler.SessionCount(tenant) == 0, "sessions end with their connection");
      protocol.emplace(&scheduler, tenant, 1);
    }
  }
  protocol->OnEnd(now_ns);
  Require(scheduler.PollIntervalNs() == 0, "nothing is left");
  return 0;
}
