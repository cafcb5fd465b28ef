// The protocol with hostile packets, without sockets.

#include "scheduler/daemon/attach_protocol.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <memory>

#include "base/clock.h"
#include "tests/unit/scheduler/daemon/shim_stand_in.h"

namespace rubato::sched {
namespace {

using testing::Bytes;
using testing::MakeGetPeers;
using testing::MakeHello;
using testing::MakeOpenDevice;
using testing::MakeSlotMapped;

class AttachProtocolTest : public ::testing::Test {
 protected:
  void SetUp() override {
    core::TenantSpec spec;
    spec.name = "camera";
    spec.tenant_class = core::TenantClass::kRealtime;
    spec.limit_bytes = 12345;
    tenant_ = *scheduler_.AddTenant(spec, base::MonotonicNow());
  }
  AttachReply Give(AttachProtocol* protocol, const std::vector<std::byte>& packet,
                   std::vector<base::UniqueFd> fds = {}) {
    return protocol->OnPacket(packet, false, std::move(fds), base::MonotonicNow());
  }
  template <typename Message>
  AttachReply Give(AttachProtocol* protocol, const Message& message) {
    return Give(protocol, Bytes(message));
  }
  static abi::Status StatusOf(const AttachReply& reply) {
    abi::MessageHeader header{};
    if (reply.bytes.size() >= sizeof(header))
      __builtin_memcpy(&header, reply.bytes.data(), sizeof(header));
    return static_cast<abi::Status>(header.status);
  }
  static std::vector<base::UniqueFd> SomeFds(size_t count) {
    std::vector<base::UniqueFd> fds;
    for (size_t i = 0; i < count; ++i) fds.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    return fds;
  }

  Scheduler scheduler_{SchedulerOptions{}, base::MonotonicNow()};
  TenantId tenant_ = 0;
};

TEST_F(AttachProtocolTest, AGoodHandshake) {
  AttachProtocol protocol(&scheduler_, tenant_, 1);
  AttachReply reply = Give(&protocol, MakeHello());
  ASSERT_EQ(StatusOf(reply), abi::Status::kOk);
  abi::WelcomeMessage welcome;
  ASSERT_EQ(reply.bytes.size(), sizeof(welcome));
  __builtin_memcpy(&welcome, reply.bytes.data(), sizeof(welcome));
  EXPECT_EQ(welcome.tenant_class, static_cast<uint32_t>(abi::TenantClass::kRealtime));
  EXPECT_EQ(welcome.limit_bytes, 12345u);
  EXPECT_EQ(welcome.use_mps, 0u);
  reply = Give(&protocol, MakeOpenDevice());
  ASSERT_EQ(StatusOf(reply), abi::Status::kOk);
  EXPECT_EQ(reply.fds.size(), abi::kDeviceOpenedFds);
  EXPECT_EQ(StatusOf(Give(&protocol, MakeSlotMapped(0))), abi::Status::kOk);
  EXPECT_EQ(scheduler_.SessionCount(tenant_), 1u);
  EXPECT_EQ(StatusOf(Give(&protocol, MakeGetPeers(0))), abi::Status::kOk);
  protocol.OnEnd(base::MonotonicNow());
  EXPECT_EQ(scheduler_.SessionCount(tenant_), 0u);
}

TEST_F(AttachProtocolTest, AProcessOfAnEarlierSchedulerKeepsItsClass) {
  const auto class_for = [&](uint32_t flags) {
    AttachProtocol protocol(&scheduler_, tenant_, 1);
    abi::HelloMessage hello = MakeHello();
    hello.flags = flags;
    const AttachReply reply = Give(&protocol, hello);
    abi::WelcomeMessage welcome{};
    __builtin_memcpy(&welcome, reply.bytes.data(), std::min(reply.bytes.size(), sizeof(welcome)));
    protocol.OnEnd(base::MonotonicNow());
    return static_cast<abi::TenantClass>(welcome.tenant_class);
  };
  using abi::TenantClass;
  EXPECT_EQ(class_for(abi::kHelloReattach | abi::kHelloBestEffort), TenantClass::kBestEffort);
  EXPECT_EQ(class_for(abi::kHelloReattach | abi::kHelloRealtime), TenantClass::kRealtime);
  EXPECT_EQ(class_for(abi::kHelloReattach), TenantClass::kRealtime);
  EXPECT_EQ(class_for(abi::kHelloBestEffort), TenantClass::kRealtime)
      << "one that starts is told, it does not choose";
  core::TenantSpec spec = *scheduler_.FindTenant(tenant_);
  spec.tenant_class = TenantClass::kBestEffort;
  ASSERT_TRUE(scheduler_.UpdateTenant(tenant_, spec, base::MonotonicNow()).ok());
  EXPECT_EQ(class_for(abi::kHelloReattach | abi::kHelloRealtime), TenantClass::kBestEffort)
      << "a claim to others' time is not enough";
}

TEST_F(AttachProtocolTest, HelloIsChecked) {
  struct Case {
    const char* what;
    abi::Status expected;
    std::function<void(abi::HelloMessage*)> spoil;
  };
  const Case cases[] = {
      {"other major", abi::Status::kVersionMismatch,
       [](abi::HelloMessage* m) { m->header.major = abi::kMajor + 1; }},
      {"magic", abi::Status::kBadMessage, [](abi::HelloMessage* m) { m->header.magic = 1; }},
      {"length", abi::Status::kBadMessage, [](abi::HelloMessage* m) { m->header.bytes -= 1; }},
      {"type", abi::Status::kBadMessage,
       [](abi::HelloMessage* m) {
         m->header.type = static_cast<uint16_t>(abi::MessageType::kPeers);
       }},
      {"past clock", abi::Status::kClockMismatch,
       [](abi::HelloMessage* m) { m->clock_ns -= 10'000'000'000; }},
      {"future clock", abi::Status::kClockMismatch,
       [](abi::HelloMessage* m) { m->clock_ns += 10'000'000'000; }},
      {"no clock", abi::Status::kClockMismatch, [](abi::HelloMessage* m) { m->clock_ns = 0; }},
      {"clock without end", abi::Status::kClockMismatch,
       [](abi::HelloMessage* m) { m->clock_ns = ~uint64_t{0}; }},
      {"vendor", abi::Status::kBadMessage, [](abi::HelloMessage* m) { m->vendor = 3; }},
  };
  for (const Case& c : cases) {
    AttachProtocol protocol(&scheduler_, tenant_, 1);
    abi::HelloMessage hello = MakeHello();
    c.spoil(&hello);
    const AttachReply reply = Give(&protocol, hello);
    EXPECT_EQ(StatusOf(reply), c.expected) << c.what;
    EXPECT_TRUE(reply.end) << c.what;
    EXPECT_FALSE(protocol.greeted()) << c.what;
  }
}

TEST_F(AttachProtocolTest, ANewerMinorIsWelcome) {
  AttachProtocol protocol(&scheduler_, tenant_, 1);
  abi::HelloMessage hello = MakeHello();
  hello.header.minor = 99;
  EXPECT_EQ(StatusOf(Give(&protocol, hello)), abi::Status::kOk);
}

TEST_F(AttachProtocolTest, AnOlderHelloOfAnotherSizeLearnsTheVersion) {
  AttachProtocol protocol(&scheduler_, tenant_, 1);
  std::vector<std::byte> packet(40);
  abi::MessageHeader header = abi::MakeHeader(abi::MessageType::kHello, 40);
  header.major = 7;
  __builtin_memcpy(packet.data(), &header, sizeof(header));
  EXPECT_EQ(StatusOf(Give(&protocol, packet)), abi::Status::kVersionMismatch);
  EXPECT_EQ(scheduler_.Status(1).sessions_detached.at("version"), 1u);
}

TEST_F(AttachProtocolTest, PacketsOfEverySizeAreRefused) {
  for (size_t size = 0; size <= abi::kMaxMessageBytes + 8; ++size) {
    AttachProtocol protocol(&scheduler_, tenant_, 1);
    std::vector<std::byte> packet(size, std::byte{0x42});
    const AttachReply reply = Give(&protocol, packet);
    EXPECT_EQ(StatusOf(reply), abi::Status::kBadMessage) << size;
    EXPECT_TRUE(reply.end) << size;
  }
}

TEST_F(AttachProtocolTest, TheOrderIsKept) {
  const auto after_hello = [&](auto message, const char* what) {
    AttachProtocol protocol(&scheduler_, tenant_, 1);
    ASSERT_EQ(StatusOf(Give(&protocol, MakeHello())), abi::Status::kOk);
    const AttachReply reply = Give(&protocol, message);
    EXPECT_EQ(StatusOf(reply), abi::Status::kBadMessage) << what;
    EXPECT_TRUE(reply.end) << what;
    protocol.OnEnd(base::MonotonicNow());
  };
  after_hello(MakeHello(), "two greetings");
  after_hello(MakeSlotMapped(0), "a slot of no device");
  after_hello(MakeSlotMapped(~0u), "a slot of an impossible device");
  after_hello(MakeGetPeers(0), "peers of no device");
  {
    AttachProtocol protocol(&scheduler_, tenant_, 1);
    EXPECT_EQ(StatusOf(Give(&protocol, MakeOpenDevice())), abi::Status::kBadMessage);
  }
  {
    AttachProtocol protocol(&scheduler_, tenant_, 1);
    Give(&protocol, MakeHello());
    Give(&protocol, MakeOpenDevice());
    EXPECT_EQ(StatusOf(Give(&protocol, MakeGetPeers(0))), abi::Status::kBadMessage)
        << "peers before the session is live";
    protocol.OnEnd(base::MonotonicNow());
  }
  {
    AttachProtocol protocol(&scheduler_, tenant_, 1);
    Give(&protocol, MakeHello());
    Give(&protocol, MakeOpenDevice());
    Give(&protocol, MakeSlotMapped(0));
    EXPECT_EQ(StatusOf(Give(&protocol, MakeSlotMapped(0))), abi::Status::kBadMessage)
        << "live twice";
    protocol.OnEnd(base::MonotonicNow());
  }
  {
    AttachProtocol protocol(&scheduler_, tenant_, 1);
    Give(&protocol, MakeHello());
    Give(&protocol, MakeOpenDevice());
    EXPECT_EQ(StatusOf(Give(&protocol, MakeOpenDevice())), abi::Status::kBadMessage)
        << "the same device twice";
    protocol.OnEnd(base::MonotonicNow());
  }
  EXPECT_EQ(scheduler_.SessionCount(tenant_), 0u);
}

TEST_F(AttachProtocolTest, PeersBeyondTheEndAreRefused) {
  AttachProtocol protocol(&scheduler_, tenant_, 1);
  Give(&protocol, MakeHello());
  Give(&protocol, MakeOpenDevice());
  Give(&protocol, MakeSlotMapped(0));
  EXPECT_EQ(StatusOf(Give(&protocol, MakeGetPeers(0, abi::kMaxSessions))), abi::Status::kOk);
  EXPECT_EQ(StatusOf(Give(&protocol, MakeGetPeers(0, ~0u))), abi::Status::kBadMessage);
  protocol.OnEnd(base::MonotonicNow());
}

TEST_F(AttachProtocolTest, DescriptorsWhereNoneBelongEndIt) {
  AttachProtocol hello(&scheduler_, tenant_, 1);
  EXPECT_EQ(StatusOf(Give(&hello, Bytes(MakeHello()), SomeFds(1))), abi::Status::kBadMessage);
  AttachProtocol open(&scheduler_, tenant_, 1);
  Give(&open, MakeHello());
  EXPECT_EQ(StatusOf(Give(&open, Bytes(MakeOpenDevice()), SomeFds(2))), abi::Status::kBadMessage);
}

TEST_F(AttachProtocolTest, ASlotThatIsNoneIsRefused) {
  const auto hand_back = [&](base::UniqueFd fd) {
    AttachProtocol protocol(&scheduler_, tenant_, 1);
    Give(&protocol, MakeHello());
    std::vector<base::UniqueFd> fds;
    fds.push_back(std::move(fd));
    const abi::Status status = StatusOf(Give(&protocol, Bytes(MakeOpenDevice()), std::move(fds)));
    protocol.OnEnd(base::MonotonicNow());
    return status;
  };
  EXPECT_EQ(hand_back(base::UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))),
            abi::Status::kBadSlot);
  // Right size, no seals: it could be cut short under the scheduler's mapping.
  EXPECT_EQ(hand_back(*base::MakeMemfd("x", sizeof(abi::SlotRegion))), abi::Status::kBadSlot);
  auto sealed = *base::MakeMemfd("x", sizeof(abi::SlotRegion));
  ASSERT_TRUE(base::SealSize(sealed.get()).ok());
  EXPECT_EQ(hand_back(std::move(sealed)), abi::Status::kBadSlot) << "no header";
  auto small = *base::MakeMemfd("x", sizeof(abi::RegionHeader));
  ASSERT_TRUE(base::SealSize(small.get()).ok());
  EXPECT_EQ(hand_back(std::move(small)), abi::Status::kBadSlot) << "too small";
  auto other = *base::MakeMemfd("x", sizeof(abi::SlotRegion));
  {
    auto mapping = *base::Mapping::Writable(other.get(), sizeof(abi::SlotRegion));
    auto* header = mapping.as<abi::RegionHeader>();
    header->magic = abi::kMagic;
    header->kind = static_cast<uint32_t>(abi::RegionKind::kDevice);
    header->major = abi::kMajor;
    header->size_bytes = sizeof(abi::SlotRegion);
  }
  ASSERT_TRUE(base::SealSize(other.get()).ok());
  EXPECT_EQ(hand_back(std::move(other)), abi::Status::kBadSlot) << "another kind";
}

TEST_F(AttachProtocolTest, APeerWithoutEndIsCutOff) {
  AttachProtocol protocol(&scheduler_, tenant_, 1);
  const Nanos now_ns = base::MonotonicNow();
  const auto give = [&](const auto& message) {
    return protocol.OnPacket(Bytes(message), false, {}, now_ns);
  };
  give(MakeHello());
  give(MakeOpenDevice());
  give(MakeSlotMapped(0));
  int answered = 0;
  while (StatusOf(give(MakeGetPeers(0))) == abi::Status::kOk) ASSERT_LT(++answered, 100000);
  EXPECT_GT(answered, 1000) << "a busy directory is asked about often";
  protocol.OnEnd(now_ns);
}

TEST_F(AttachProtocolTest, ATenantThatIsGoneTakesNobody) {
  AttachProtocol early(&scheduler_, tenant_, 1);
  Give(&early, MakeHello());
  AttachProtocol late(&scheduler_, tenant_, 1);
  scheduler_.RemoveTenant(tenant_, base::MonotonicNow());
  EXPECT_EQ(StatusOf(Give(&late, MakeHello())), abi::Status::kNotAllowed);
  EXPECT_EQ(StatusOf(Give(&early, MakeOpenDevice())), abi::Status::kNotAllowed);
}

TEST_F(AttachProtocolTest, ADrainingSchedulerTakesNobody) {
  scheduler_.SetDraining();
  AttachProtocol protocol(&scheduler_, tenant_, 1);
  EXPECT_EQ(StatusOf(Give(&protocol, MakeHello())), abi::Status::kNotAllowed);
}

TEST_F(AttachProtocolTest, TheModeDecidesWhoUsesMps) {
  struct Case {
    core::Mode mode;
    core::TenantClass tenant_class;
    uint32_t use_mps;
  };
  for (const Case& c : {Case{core::Mode::kTimeslice, core::TenantClass::kBestEffort, 0},
                        Case{core::Mode::kHybrid, core::TenantClass::kBestEffort, 1},
                        Case{core::Mode::kHybrid, core::TenantClass::kRealtime, 0},
                        Case{core::Mode::kMps, core::TenantClass::kRealtime, 1}}) {
    SchedulerOptions options;
    options.mode = c.mode;
    options.mps_directory = "/run/rubato/mps";
    Scheduler scheduler(options, base::MonotonicNow());
    core::TenantSpec spec;
    spec.name = "x";
    spec.tenant_class = c.tenant_class;
    AttachProtocol protocol(&scheduler, *scheduler.AddTenant(spec, 1), 1);
    const AttachReply reply = Give(&protocol, MakeHello());
    abi::WelcomeMessage welcome{};
    ASSERT_EQ(reply.bytes.size(), sizeof(welcome));
    __builtin_memcpy(&welcome, reply.bytes.data(), sizeof(welcome));
    EXPECT_EQ(welcome.use_mps, c.use_mps);
    EXPECT_STREQ(welcome.mps_directory, c.use_mps != 0 ? "/run/rubato/mps" : "");
  }
}

}  // namespace
}  // namespace rubato::sched
