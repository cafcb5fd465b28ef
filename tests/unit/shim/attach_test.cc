// Attaching: the good way, every hostile or broken answer, a scheduler that dies and comes back,
// and programs that fork, close what they do not know, or use many threads.

#include "shim/core/attach.h"
#include "shim/core/adrift.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "proto/abi/window.h"
#include "shim/core/sys.h"
#include "tests/unit/shim/fake_scheduler.h"

namespace rubato::shim::testing {
namespace {

using abi::DetachReason;
using abi::MessageType;
using abi::TenantClass;

constexpr uint64_t kSecond = 1'000'000'000;

Phase PhaseNow() {
  return static_cast<Phase>(abi::LoadAcquire(g_state.phase));
}
DetachReason ReasonNow() {
  return static_cast<DetachReason>(abi::LoadAcquire(g_state.reason));
}

// Synchronising calls of a program that makes few of them: none comes too early for a look.
bool MaintainUntil(const std::function<bool()>& condition) {
  return FakeScheduler::Eventually([&] {
    abi::StoreRelaxed(g_state.next_contact_ns, uint64_t{0});
    MaintainConnection(DeviceOnlyDriver(), NowNs());
    return condition();
  });
}

class AttachTest : public ::testing::Test {
 protected:
  // What a child does first.
  static void Enter(FakeScheduler& scheduler) {
    scheduler.CloseInChild();
    setenv("RUBATO_SOCKET", scheduler.path().c_str(), 1);
  }

  // Runs `body` in a process of its own beside a scheduler.
  void Run(FakeScheduler::Options options, const std::function<void()>& body) {
    FakeScheduler scheduler(folder_.path(), std::move(options));
    ChildProcess child([&] {
      Enter(scheduler);
      body();
    });
    scheduler.Start();
    child.Join();
    scheduler.Stop();
    for (const std::string& complaint : scheduler.Complaints()) ADD_FAILURE() << complaint;
  }

  TemporaryFolder folder_;
};

TEST_F(AttachTest, OpensADeviceAndEntersTheDirectory) {
  FakeScheduler scheduler(folder_.path(),
                          {.tenant_class = TenantClass::kRealtime, .limit_bytes = 1 << 20});
  Signal open, seen;
  ChildProcess child([&] {
    Enter(scheduler);
    EXPECT_FALSE(Attached());
    AttachProcess(DeviceOnlyDriver());
    ASSERT_TRUE(Attached());
    EXPECT_TRUE(IsRealtime());
    EXPECT_EQ(g_state.limit_bytes, 1u << 20);
    EXPECT_EQ(g_state.epoch, 7u);
    EXPECT_EQ(g_state.lost, 0u);
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), session);
    EXPECT_EQ(session->ordinal, 0);
    EXPECT_NE(session->streams, nullptr);
    ASSERT_NE(session->view, nullptr);
    EXPECT_EQ(session->previous, nullptr);
    EXPECT_EQ(session->view->device, 5u);
    EXPECT_EQ(session->view->tenant, 3u);
    EXPECT_EQ(session->view->until_ns, abi::kNever);
    EXPECT_EQ(session->view->page->header.epoch, 7u);
    EXPECT_EQ(session->view->profile->header.kind,
              static_cast<uint32_t>(abi::RegionKind::kProfile));
    // No second look at the directory is needed.
    EXPECT_EQ(session->view->generation, session->view->page->state.generation);
    session->slot->counters.value[0] = 42;
    open.Give();
    seen.Take();
  });
  scheduler.Start();
  open.Take();
  ASSERT_EQ(scheduler.SessionCount(), 1u);
  const abi::SlotRegion* slot = scheduler.Slot(0);
  EXPECT_EQ(slot->counters.value[0], 42u);
  EXPECT_EQ(slot->session.vendor, 1u);
  EXPECT_EQ(slot->session.pid_in_namespace, static_cast<uint32_t>(child.pid()));
  EXPECT_EQ(slot->session.detached, 0u);
  seen.Give();
  child.Join();
  EXPECT_TRUE(FakeScheduler::Eventually([&] { return scheduler.SessionCount() == 0; }))
      << "the session outlived its process";
  EXPECT_TRUE(scheduler.Complaints().empty());
}

TEST_F(AttachTest, OwnDescriptorsStayAwayFromTheProgram) {
  Run({}, [] {
    close(STDIN_FILENO);
    const std::vector<int> before = OpenFds();
    AttachProcess(DeviceOnlyDriver());
    ASSERT_NE(OpenSession(DeviceOnlyDriver(), 0), nullptr);
    std::vector<int> after = OpenFds();
    ASSERT_EQ(after.size(), before.size() + 2) << "the socket and the slot";
    for (const int fd : after) {
      if (std::find(before.begin(), before.end(), fd) != before.end()) continue;
      EXPECT_GT(fd, 3);
      EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
    }
  });
}

TEST_F(AttachTest, AttachesUnderALowDescriptorLimit) {
  Run({}, [] {
    rlimit limit = {64, 64};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    AttachProcess(DeviceOnlyDriver());
    EXPECT_NE(OpenSession(DeviceOnlyDriver(), 0), nullptr);
  });
}

TEST_F(AttachTest, SetsTheMpsDirectoryOfItsClass) {
  Run({.tenant_class = TenantClass::kBestEffort,
       .mode = abi::Mode::kHybrid,
       .use_mps = true,
       .mps_directory = "/run/rubato/mps"},
      [] {
        setenv("CUDA_MPS_LOG_DIRECTORY", "/somewhere", 1);
        AttachProcess(DeviceOnlyDriver());
        ASSERT_TRUE(Attached());
        EXPECT_STREQ(getenv("CUDA_MPS_PIPE_DIRECTORY"), "/run/rubato/mps");
        EXPECT_STREQ(getenv("CUDA_MPS_CLIENT_PRIORITY"), "1");
        EXPECT_EQ(getenv("CUDA_MPS_LOG_DIRECTORY"), nullptr);
      });
  Run({.tenant_class = TenantClass::kRealtime, .use_mps = true, .mps_directory = "/m"}, [] {
    AttachProcess(DeviceOnlyDriver());
    EXPECT_STREQ(getenv("CUDA_MPS_CLIENT_PRIORITY"), "0");
  });
}

TEST_F(AttachTest, HidesForeignMpsServers) {
  Run({}, [] {
    setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps", 1);
    AttachProcess(DeviceOnlyDriver());
    ASSERT_TRUE(Attached());
    const std::string directory = getenv("CUDA_MPS_PIPE_DIRECTORY");
    EXPECT_EQ(directory.rfind("/nonexistent/", 0), 0u) << directory;
  });
}

TEST_F(AttachTest, LeavesAnUnmanagedProgramAlone) {
  if (access(abi::kDefaultSocketDirectory, F_OK) == 0) GTEST_SKIP() << "a scheduler lives here";
  ChildProcess child([&] {
    unsetenv("RUBATO_SOCKET");
    setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps", 1);
    const std::vector<int> before = OpenFds();
    AttachProcess(DeviceOnlyDriver());
    EXPECT_EQ(PhaseNow(), Phase::kDetached);
    EXPECT_EQ(ReasonNow(), DetachReason::kNoScheduler);
    EXPECT_STREQ(getenv("CUDA_MPS_PIPE_DIRECTORY"), "/tmp/nvidia-mps");
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), nullptr);
    EXPECT_EQ(OpenFds(), before);
  });
  child.Join();
}

TEST_F(AttachTest, DisabledIsDisabled) {
  Run({}, [] {
    setenv("RUBATO_DISABLE", "1", 1);
    AttachProcess(DeviceOnlyDriver());
    EXPECT_EQ(PhaseNow(), Phase::kDetached);
    EXPECT_EQ(ReasonNow(), DetachReason::kDisabled);
  });
  Run({}, [] {
    setenv("RUBATO_DISABLE", "0", 1);
    AttachProcess(DeviceOnlyDriver());
    EXPECT_TRUE(Attached());
  });
}

TEST_F(AttachTest, PathsThatAreNone) {
  ChildProcess child([&] {
    setenv("RUBATO_SOCKET", std::string(300, 'x').c_str(), 1);
    AttachProcess(DeviceOnlyDriver());
    EXPECT_EQ(ReasonNow(), DetachReason::kNoScheduler);
  });
  child.Join();
}

TEST_F(AttachTest, AProcessThatWasPromisedASchedulerAttachesWhenOneComes) {
  FakeScheduler scheduler(folder_.path(),
                          {.tenant_class = TenantClass::kRealtime, .listening = false});
  Signal adrift;
  ChildProcess child([&] {
    scheduler.CloseInChild();
    setenv("RUBATO_SOCKET", (folder_.path() + "/attach.sock").c_str(), 1);
    setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps", 1);
    AttachProcess(DeviceOnlyDriver());
    EXPECT_TRUE(Attached()) << "it is not free";
    EXPECT_TRUE(Adrift());
    EXPECT_EQ(ReasonNow(), DetachReason::kNone);
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), nullptr);
    EXPECT_STRNE(getenv("CUDA_MPS_PIPE_DIRECTORY"), "/tmp/nvidia-mps");
    adrift.Give();
    EXPECT_TRUE(MaintainUntil([] { return !Adrift(); }));
    EXPECT_TRUE(IsRealtime());
    EXPECT_EQ(g_state.lost, 0u);
    EXPECT_NE(OpenSession(DeviceOnlyDriver(), 0), nullptr);
  });
  adrift.Take();
  scheduler.Start();
  scheduler.Listen();
  child.Join();
  EXPECT_TRUE(scheduler.Complaints().empty());
}

TEST_F(AttachTest, AProcessAdriftThatIsTurnedAwayIsNotManaged) {
  FakeScheduler scheduler(folder_.path(),
                          {.listening = false, .tamper = [](MessageType, Reply* reply) {
                             reply->As<abi::MessageHeader>().status =
                                 static_cast<uint32_t>(abi::Status::kNotAllowed);
                           }});
  Signal adrift;
  ChildProcess child([&] {
    scheduler.CloseInChild();
    setenv("RUBATO_SOCKET", (folder_.path() + "/attach.sock").c_str(), 1);
    AttachProcess(DeviceOnlyDriver());
    EXPECT_TRUE(Adrift());
    adrift.Give();
    EXPECT_TRUE(MaintainUntil([] { return !Attached(); }));
    EXPECT_EQ(ReasonNow(), DetachReason::kRefused);
  });
  adrift.Take();
  scheduler.Start();
  scheduler.Listen();
  child.Join();
}

TEST_F(AttachTest, WaitsForASchedulerThatIsAboutToListen) {
  FakeScheduler scheduler(folder_.path(), {.listening = false});
  Signal ready;
  ChildProcess child([&] {
    Enter(scheduler);
    ready.Give();
    AttachProcess(DeviceOnlyDriver());
    EXPECT_TRUE(Attached());
  });
  scheduler.Start();
  ready.Take();
  scheduler.Listen();
  child.Join();
}

TEST_F(AttachTest, ManyThreadsAttachOnceAndOpenOnce) {
  FakeScheduler scheduler(folder_.path(), {});
  ChildProcess child([&] {
    Enter(scheduler);
    std::atomic<DeviceSession*> first{nullptr};
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&] {
        AttachProcess(DeviceOnlyDriver());
        EXPECT_TRUE(Attached());
        DeviceSession* session = nullptr;
        // A thread that comes while another opens the device may go on without it.
        EXPECT_TRUE(FakeScheduler::Eventually([&] {
          session = OpenSession(DeviceOnlyDriver(), 0);
          return session != nullptr;
        }));
        DeviceSession* expected = nullptr;
        if (!first.compare_exchange_strong(expected, session)) {
          EXPECT_EQ(session, expected);
        }
        // Devices are opened one after the other, whoever asks.
        EXPECT_TRUE(FakeScheduler::Eventually(
            [&] { return OpenSession(DeviceOnlyDriver(), 1) != nullptr; }));
        RefreshPeers(session);
        MaintainConnection(DeviceOnlyDriver(), NowNs() + 10'000'000'000);
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(g_state.lost, 0u);
  });
  scheduler.Start();
  child.Join();
  EXPECT_EQ(scheduler.Hellos(), 1u);
  EXPECT_TRUE(scheduler.Complaints().empty());
}

TEST_F(AttachTest, OpensNothingDuringACapture) {
  Run({}, [] {
    AttachProcess(DeviceOnlyDriver());
    g_state.active_captures = 1;
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), nullptr);
    g_state.active_captures = 0;
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    EXPECT_NE(session, nullptr);
    g_state.active_captures = 1;
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), session);
  });
}

TEST_F(AttachTest, OrdinalsOutOfRange) {
  Run({}, [] {
    AttachProcess(DeviceOnlyDriver());
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), -1), nullptr);
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), kMaxDevices), nullptr);
    EXPECT_TRUE(Attached());
  });
}

// ---- Hostile answers ----------------------------------------------------------------------------

struct Hostile {
  const char* name;
  MessageType request;  // Whose answer is changed.
  std::function<void(Reply*)> change;
  // kNone: the process stays attached, without a session.
  DetachReason reason;
};

void PrintTo(const Hostile& hostile, std::ostream* out) {
  *out << hostile.name;
}

template <typename Message>
std::function<void(Reply*)> Change(void (*change)(Message&)) {
  return [change](Reply* reply) { change(reply->As<Message>()); };
}

std::function<void(Reply*)> WithStatus(abi::Status status) {
  return [status](Reply* reply) {
    reply->As<abi::MessageHeader>().status = static_cast<uint32_t>(status);
  };
}

void AddFds(Reply* reply, size_t count) {
  for (size_t i = 0; i < count; ++i) reply->fds.push_back(open("/dev/null", O_RDWR | O_CLOEXEC));
}

// Replaces descriptor `index` of DeviceOpened by a region of our making.
std::function<void(Reply*)> WithRegion(size_t index, std::function<Region()> make) {
  return [index, make](Reply* reply) {
    Region region = make();
    close(reply->fds[index]);
    reply->fds[index] = fcntl(region.fd, F_DUPFD_CLOEXEC, 0);
    region.Destroy();
  };
}

Region MakeRegion(abi::RegionKind kind, size_t bytes, bool sealed, bool writers_sealed,
                  uint16_t major = abi::kMajor) {
  Region region = Region::Make(kind, bytes, 7);
  static_cast<abi::RegionHeader*>(region.memory)->major = major;
  if (sealed) region.Seal(writers_sealed);
  return region;
}

std::vector<Hostile> HostileAnswers() {
  using abi::DeviceOpenedMessage;
  using abi::MessageHeader;
  using abi::PeersMessage;
  using abi::RegionKind;
  using abi::Status;
  using abi::WelcomeMessage;
  std::vector<Hostile> all;
  constexpr MessageType kAll[] = {MessageType::kHello, MessageType::kOpenDevice,
                                  MessageType::kSlotMapped, MessageType::kGetPeers};
  static const char* const kNames[] = {"Welcome", "DeviceOpened", "SessionLive", "Peers"};
  static std::vector<std::string> names;
  names.reserve(200);
  for (size_t i = 0; i < 4; ++i) {
    const auto add = [&](const char* what, std::function<void(Reply*)> change,
                         DetachReason reason = DetachReason::kRefused) {
      names.push_back(std::string(kNames[i]) + what);
      all.push_back({names.back().c_str(), kAll[i], std::move(change), reason});
    };
    add("Short", [](Reply* reply) { reply->bytes.resize(10); });
    add("Cut", [](Reply* reply) { reply->bytes.resize(reply->bytes.size() - 8); });
    add("CutHonestly", [](Reply* reply) {
      reply->bytes.resize(reply->bytes.size() - 8);
      reply->As<MessageHeader>().bytes = static_cast<uint16_t>(reply->bytes.size());
    });
    add("Long", [](Reply* reply) { reply->bytes.resize(reply->bytes.size() + 8); });
    add("Huge", [](Reply* reply) { reply->bytes.resize(60'000); });
    add("WrongSize", Change<MessageHeader>([](MessageHeader& header) { header.bytes += 8; }));
    add("WrongMagic", Change<MessageHeader>([](MessageHeader& header) { header.magic ^= 1; }));
    add("WrongType", Change<MessageHeader>([](MessageHeader& header) { header.type = 1; }));
    add("OtherMajor", Change<MessageHeader>([](MessageHeader& header) { header.major = 2; }),
        DetachReason::kVersion);
    add("ManyFds", [](Reply* reply) { AddFds(reply, 60); });
    add("VeryManyFds", [](Reply* reply) { AddFds(reply, 250 - reply->fds.size()); });
    add(
        "HangUp", [](Reply* reply) { reply->hang_up = true; },
        i == 0 ? DetachReason::kRefused : DetachReason::kNone);
    add(
        "Silence", [](Reply* reply) { reply->silence = true; }, DetachReason::kNone);
    add("NotAllowed", WithStatus(Status::kNotAllowed));
    add("UnknownStatus", WithStatus(static_cast<Status>(999)));
    add("Full", WithStatus(Status::kFull), DetachReason::kNoDirectory);
    if (i != 1) {
      // For DeviceOpened this is a bad number of regions.
      add("OneFdMore", [](Reply* reply) { AddFds(reply, 1); });
    }
  }
  const auto hello = [&](const char* name, std::function<void(Reply*)> change,
                         DetachReason reason = DetachReason::kRefused) {
    all.push_back({name, MessageType::kHello, std::move(change), reason});
  };
  hello("WelcomeOfAnotherVersion", WithStatus(Status::kVersionMismatch), DetachReason::kVersion);
  hello(
      "WelcomeOfAnotherVersionHeaderOnly",
      [](Reply* reply) {
        reply->bytes.resize(sizeof(MessageHeader));
        auto& header = reply->As<MessageHeader>();
        header.bytes = sizeof(MessageHeader);
        header.major = 9;
        header.status = static_cast<uint32_t>(Status::kVersionMismatch);
      },
      DetachReason::kVersion);
  hello("WelcomeSaysClock", WithStatus(Status::kClockMismatch), DetachReason::kClock);
  hello("WelcomeFromTheFuture",
        Change<WelcomeMessage>([](WelcomeMessage& m) { m.clock_ns += 5'000'000'000; }),
        DetachReason::kClock);
  hello("WelcomeFromThePast",
        Change<WelcomeMessage>([](WelcomeMessage& m) { m.clock_ns -= 5'000'000'000; }),
        DetachReason::kClock);
  hello("WelcomeAtTheEndOfTime",
        Change<WelcomeMessage>([](WelcomeMessage& m) { m.clock_ns = ~uint64_t{0}; }),
        DetachReason::kClock);
  hello("WelcomeWithoutClass",
        Change<WelcomeMessage>([](WelcomeMessage& m) { m.tenant_class = 0; }));
  hello("WelcomeOfUnknownClass",
        Change<WelcomeMessage>([](WelcomeMessage& m) { m.tenant_class = 9; }));
  hello("WelcomeOfUnknownMode", Change<WelcomeMessage>([](WelcomeMessage& m) { m.mode = 7; }));
  hello("WelcomeOfUnknownMps", Change<WelcomeMessage>([](WelcomeMessage& m) { m.use_mps = 2; }));
  hello("WelcomeUnterminated", Change<WelcomeMessage>([](WelcomeMessage& m) {
          memset(m.mps_directory, 'x', sizeof(m.mps_directory));
        }));

  const auto opened = [&](const char* name, std::function<void(Reply*)> change,
                          DetachReason reason = DetachReason::kBadRegion) {
    all.push_back({name, MessageType::kOpenDevice, std::move(change), reason});
  };
  opened("OpenedSessionOutOfRange",
         Change<DeviceOpenedMessage>([](DeviceOpenedMessage& m) { m.session = 128; }),
         DetachReason::kRefused);
  opened("OpenedTenantOutOfRange",
         Change<DeviceOpenedMessage>([](DeviceOpenedMessage& m) { m.tenant = 64; }),
         DetachReason::kRefused);
  opened("OpenedBadSlot", WithStatus(Status::kBadSlot));
  opened("OpenedWithoutFds", [](Reply* reply) {
    for (const int fd : reply->fds) close(fd);
    reply->fds.clear();
  });
  opened("OpenedTwoFds", [](Reply* reply) {
    close(reply->fds.back());
    reply->fds.pop_back();
  });
  opened("OpenedFourFds", [](Reply* reply) { AddFds(reply, 1); });
  opened("OpenedSwapped", [](Reply* reply) { std::swap(reply->fds[1], reply->fds[2]); });
  opened("OpenedNoMemfd", [](Reply* reply) {
    close(reply->fds[1]);
    reply->fds[1] = open("/dev/zero", O_RDWR | O_CLOEXEC);
  });
  constexpr size_t kSlot = sizeof(abi::SlotRegion);
  constexpr size_t kDevice = sizeof(abi::DeviceRegion);
  constexpr size_t kProfile = sizeof(abi::ProfileRegion);
  opened("SlotUnsealed",
         WithRegion(0, [] { return MakeRegion(RegionKind::kSlot, kSlot, false, false); }));
  opened("SlotShort",
         WithRegion(0, [] { return MakeRegion(RegionKind::kSlot, kSlot - 4096, true, false); }));
  opened("SlotOfAnotherMajor",
         WithRegion(0, [] { return MakeRegion(RegionKind::kSlot, kSlot, true, false, 2); }));
  opened("SlotNotWritable",
         WithRegion(0, [] { return MakeRegion(RegionKind::kSlot, kSlot, true, true); }),
         DetachReason::kMapFailed);
  opened("PageUnsealed",
         WithRegion(1, [] { return MakeRegion(RegionKind::kDevice, kDevice, false, false); }));
  opened("PageWritableByOthers",
         WithRegion(1, [] { return MakeRegion(RegionKind::kDevice, kDevice, true, false); }));
  opened("PageShort",
         WithRegion(1, [] { return MakeRegion(RegionKind::kDevice, 4096, true, true); }));
  opened("PageOfAnotherKind",
         WithRegion(1, [] { return MakeRegion(RegionKind::kSlot, kDevice, true, true); }));
  opened("ProfileShort",
         WithRegion(2, [] { return MakeRegion(RegionKind::kProfile, 4096, true, true); }));
  opened("ProfileOfAnotherMajor",
         WithRegion(2, [] { return MakeRegion(RegionKind::kProfile, kProfile, true, true, 3); }));

  const auto peers = [&](const char* name, void (*change)(PeersMessage&)) {
    all.push_back(
        {name, MessageType::kGetPeers, Change<PeersMessage>(change), DetachReason::kRefused});
  };
  peers("PeersTooMany", [](PeersMessage& m) { m.count = abi::kMaxPeersPerMessage + 1; });
  peers("PeersWithoutFds", [](PeersMessage& m) { m.count += 1; });
  peers("PeersOutOfRange", [](PeersMessage& m) { m.items[0].session = 4000; });
  peers("PeersWithoutEnd", [](PeersMessage& m) { m.next = 0; });
  peers("PeersBeyondTheEnd", [](PeersMessage& m) { m.next = 129; });
  return all;
}

class HostileAnswerTest : public AttachTest, public ::testing::WithParamInterface<Hostile> {};

TEST_P(HostileAnswerTest, HarmsNobody) {
  const Hostile& hostile = GetParam();
  Run({.tamper =
           [&](MessageType type, Reply* reply) {
             if (type == hostile.request) hostile.change(reply);
           }},
      [&] {
        const std::vector<int> before = OpenFds();
        AttachProcess(DeviceOnlyDriver());
        DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
        EXPECT_EQ(session, nullptr);
        EXPECT_EQ(ReasonNow(), hostile.reason);
        if (hostile.reason != DetachReason::kNone) {
          EXPECT_EQ(PhaseNow(), Phase::kDetached);
        } else {
          EXPECT_EQ(PhaseNow(), Phase::kAttached);
          // A synchronising program notices, and asks again; it gets the same, and never waits.
          EXPECT_TRUE(MaintainUntil([] { return abi::LoadRelaxed(g_state.lost) != 0; }));
        }
        const std::vector<int> after = OpenFds();
        // At most the socket of a connection that the process still has, or tries again.
        EXPECT_LE(after.size(), before.size() + 1) << "descriptors leak";
        EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), nullptr);
      });
}

INSTANTIATE_TEST_SUITE_P(All, HostileAnswerTest, ::testing::ValuesIn(HostileAnswers()),
                         [](const auto& answer) { return std::string(answer.param.name); });

TEST_F(AttachTest, TakesALateAnswerWithoutWaitingForIt) {
  Signal gave_up;
  bool first = true;
  Run({.tamper =
           [&](MessageType type, Reply*) {
             if (type == MessageType::kOpenDevice && first) {
               first = false;
               gave_up.Take();
             }
           }},
      [&] {
        AttachProcess(DeviceOnlyDriver());
        EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), nullptr) << "the answer cannot have come";
        EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), nullptr);
        gave_up.Give();
        EXPECT_TRUE(FakeScheduler::Eventually(
            [] { return OpenSession(DeviceOnlyDriver(), 0) != nullptr; }));
        EXPECT_EQ(g_state.lost, 0u);
      });
}

// ---- Neighbours ---------------------------------------------------------------------------------

TEST_F(AttachTest, FetchesManyPeersAndFollowsTheDirectory) {
  FakeScheduler scheduler(folder_.path(), {});
  std::vector<abi::SlotRegion*> slots;
  for (int i = 0; i < 90; ++i) {
    slots.push_back(scheduler.AddPeer(4, TenantClass::kRealtime));
    slots.back()->job.sequence = static_cast<uint32_t>(1000 + i);
  }
  Signal open, changed;
  ChildProcess child([&] {
    Enter(scheduler);
    AttachProcess(DeviceOnlyDriver());
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    const DeviceView& view = *session->view;
    for (uint32_t i = 1; i <= 90; ++i) {
      const abi::SlotRegion* slot = PeerSlot(view.peers[i], view.page->sessions[i].generation);
      ASSERT_NE(slot, nullptr) << i;
      EXPECT_EQ(slot->job.sequence, 999 + i);
    }
    EXPECT_EQ(PeerSlot(view.peers[view.session], view.page->sessions[view.session].generation),
              nullptr)
        << "its own slot is not a peer";
    EXPECT_EQ(PeerSlot(view.peers[1], view.page->sessions[1].generation + 2), nullptr);
    open.Give();
    changed.Take();
    EXPECT_TRUE(FakeScheduler::Eventually([&] {
      RefreshPeers(session);
      return view.generation == view.page->state.generation;
    }));
    const abi::SlotRegion* late = PeerSlot(view.peers[91], view.page->sessions[91].generation);
    ASSERT_NE(late, nullptr);
    EXPECT_EQ(late->job.sequence, 5u);
    EXPECT_EQ(PeerSlot(view.peers[92], view.page->sessions[92].generation), nullptr)
        << "a slot that others could still write was mapped";
  });
  scheduler.Start();
  open.Take();
  scheduler.AddPeer(4, TenantClass::kRealtime)->job.sequence = 5;
  scheduler.AddPeer(4, TenantClass::kRealtime, /*sealed=*/false);
  changed.Give();
  child.Join();
  EXPECT_TRUE(scheduler.Complaints().empty());
}

TEST_F(AttachTest, ProcessesSeeEachOtherComeAndGo) {
  FakeScheduler scheduler(folder_.path(), {});
  Signal first_open, second_open, second_seen, second_gone;
  ChildProcess first([&] {
    Enter(scheduler);
    AttachProcess(DeviceOnlyDriver());
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    first_open.Give();
    second_open.Take();
    const DeviceView& view = *session->view;
    const auto peer = [&] { return PeerSlot(view.peers[1], view.page->sessions[1].generation); };
    EXPECT_TRUE(FakeScheduler::Eventually([&] {
      RefreshPeers(session);
      return peer() != nullptr;
    }));
    EXPECT_EQ(peer()->work.inflight_until_ns, 77u);
    const abi::SlotRegion* stale = peer();
    second_seen.Give();
    second_gone.Take();
    EXPECT_TRUE(FakeScheduler::Eventually([&] {
      RefreshPeers(session);
      return view.peers[1].slot == nullptr;
    }));
    // A thread that still looks sees zeros, not a fault.
    EXPECT_EQ(stale->work.inflight_until_ns, 0u);
  });
  ChildProcess second([&] {
    Enter(scheduler);
    first_open.Take();
    AttachProcess(DeviceOnlyDriver());
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    session->slot->work.inflight_until_ns = 77;
    second_open.Give();
    for (;;) pause();
  });
  scheduler.Start();
  second_seen.Take();
  EXPECT_EQ(scheduler.SessionCount(), 2u);
  second.Kill();
  second_gone.Give();
  first.Join();
}

// ---- A scheduler that comes back ----------------------------------------------------------------

TEST_F(AttachTest, ReattachKeepsTheSlotAndObeysBothViewsForALease) {
  auto scheduler = std::make_unique<FakeScheduler>(
      folder_.path(), FakeScheduler::Options{.lease_ns = 30 * kSecond});
  Signal open, gone, back, checked;
  ChildProcess child([&] {
    Enter(*scheduler);
    AttachProcess(DeviceOnlyDriver());
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    DeviceView* first_view = session->view;
    abi::SlotRegion* slot = session->slot;
    slot->memory.used_bytes = 4096;
    open.Give();
    gone.Take();
    EXPECT_TRUE(MaintainUntil([] { return abi::LoadRelaxed(g_state.lost) != 0; }));
    EXPECT_TRUE(Attached()) << "a lost scheduler stops no running program";
    EXPECT_EQ(session->view, first_view);
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), session);
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 1), nullptr);
    back.Give();
    EXPECT_TRUE(MaintainUntil([] { return abi::LoadRelaxed(g_state.lost) == 0; }));
    EXPECT_EQ(session->slot, slot);
    EXPECT_NE(session->view, first_view);
    EXPECT_EQ(session->view->page->header.epoch, 8u);
    EXPECT_EQ(first_view->page->header.epoch, 7u);
    EXPECT_EQ(slot->memory.used_bytes, 4096u);
    EXPECT_EQ(slot->counters.value[static_cast<uint32_t>(abi::Counter::kReattaches)], 1u);
    EXPECT_EQ(g_state.epoch, 8u);
    EXPECT_EQ(session->previous, first_view);
    EXPECT_GT(first_view->until_ns, NowNs());
    EXPECT_LE(first_view->until_ns, NowNs() + 30 * kSecond);
    MaintainConnection(DeviceOnlyDriver(), NowNs() + 31 * kSecond);
    EXPECT_EQ(session->previous, nullptr) << "the lease ends";
    EXPECT_NE(OpenSession(DeviceOnlyDriver(), 1), nullptr);
    checked.Give();
    gone.Take();
    // And once more: the first view's memory serves again.
    back.Give();
    EXPECT_TRUE(MaintainUntil([&] { return session->view->page->header.epoch == 9; }));
    EXPECT_TRUE(MaintainUntil([] { return abi::LoadRelaxed(g_state.lost) == 0; }));
    EXPECT_EQ(session->view, first_view);
    EXPECT_EQ(slot->memory.used_bytes, 4096u);
  });
  scheduler->Start();
  open.Take();
  scheduler.reset();
  gone.Give();
  back.Take();
  scheduler = std::make_unique<FakeScheduler>(folder_.path(), FakeScheduler::Options{.epoch = 8});
  scheduler->Start();
  checked.Take();
  EXPECT_TRUE(scheduler->Reattached(0));
  EXPECT_EQ(scheduler->Slot(0)->memory.used_bytes, 4096u);
  EXPECT_TRUE(scheduler->Complaints().empty());
  scheduler.reset();
  gone.Give();
  back.Take();
  scheduler = std::make_unique<FakeScheduler>(folder_.path(), FakeScheduler::Options{.epoch = 9});
  scheduler->Start();
  child.Join();
  EXPECT_TRUE(scheduler->Complaints().empty());
}

TEST_F(AttachTest, ASchedulerThatRefusesLeavesTheOldView) {
  auto scheduler = std::make_unique<FakeScheduler>(folder_.path(), FakeScheduler::Options{});
  Signal open, gone, back;
  ChildProcess child([&] {
    Enter(*scheduler);
    AttachProcess(DeviceOnlyDriver());
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    DeviceView* view = session->view;
    open.Give();
    gone.Take();
    EXPECT_TRUE(MaintainUntil([] { return abi::LoadRelaxed(g_state.lost) != 0; }));
    back.Give();
    gone.Take();
    // The new one has been asked, and has refused, several times.
    for (int i = 0; i < 50; ++i) MaintainUntil([] { return true; });
    EXPECT_TRUE(Attached());
    EXPECT_EQ(ReasonNow(), DetachReason::kNone);
    EXPECT_EQ(session->view, view);
    EXPECT_EQ(view->page->header.epoch, 7u);
    EXPECT_EQ(abi::LoadRelaxed(g_state.lost), 1u);
    open.Give();
    for (;;) MaintainUntil([] { return true; });
  });
  scheduler->Start();
  open.Take();
  scheduler.reset();
  gone.Give();
  back.Take();
  scheduler = std::make_unique<FakeScheduler>(
      folder_.path(), FakeScheduler::Options{.tamper = [](MessageType, Reply* reply) {
        reply->As<abi::MessageHeader>().major = 2;
      }});
  scheduler->Start();
  gone.Give();
  open.Take();
  EXPECT_TRUE(FakeScheduler::Eventually([&] { return scheduler->Hellos() >= 3; }));
  child.Kill();
}

TEST_F(AttachTest, AFullDirectoryIsAskedAgain) {
  auto scheduler = std::make_unique<FakeScheduler>(folder_.path(), FakeScheduler::Options{});
  Signal open, gone, back;
  ChildProcess child([&] {
    Enter(*scheduler);
    AttachProcess(DeviceOnlyDriver());
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    open.Give();
    gone.Take();
    EXPECT_TRUE(MaintainUntil([] { return abi::LoadRelaxed(g_state.lost) != 0; }));
    back.Give();
    EXPECT_TRUE(MaintainUntil([] { return abi::LoadRelaxed(g_state.lost) == 0; }));
    EXPECT_EQ(session->view->page->header.epoch, 8u);
  });
  scheduler->Start();
  open.Take();
  scheduler.reset();
  gone.Give();
  back.Take();
  std::atomic<int> refusals{0};
  scheduler = std::make_unique<FakeScheduler>(
      folder_.path(),
      FakeScheduler::Options{.epoch = 8, .tamper = [&](MessageType type, Reply* reply) {
                               if (type != MessageType::kOpenDevice || refusals == 3) return;
                               WithStatus(abi::Status::kFull)(reply);
                               ++refusals;
                             }});
  scheduler->Start();
  child.Join();
  EXPECT_EQ(refusals, 3);
}

TEST_F(AttachTest, AnotherSlotAtReattachIsNotAccepted) {
  auto scheduler = std::make_unique<FakeScheduler>(folder_.path(), FakeScheduler::Options{});
  Signal open, gone, back;
  ChildProcess child([&] {
    Enter(*scheduler);
    AttachProcess(DeviceOnlyDriver());
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    abi::SlotRegion* slot = session->slot;
    slot->memory.used_bytes = 11;
    DeviceView* view = session->view;
    open.Give();
    gone.Take();
    EXPECT_TRUE(MaintainUntil([] { return abi::LoadRelaxed(g_state.lost) != 0; }));
    back.Give();
    for (;;) {
      MaintainUntil([] { return true; });
      if (session->view != view || session->slot != slot || slot->memory.used_bytes != 11) _exit(3);
    }
  });
  scheduler->Start();
  open.Take();
  scheduler.reset();
  gone.Give();
  back.Take();
  std::atomic<int> given{0};
  scheduler = std::make_unique<FakeScheduler>(
      folder_.path(),
      FakeScheduler::Options{.epoch = 8, .tamper = [&](MessageType type, Reply* reply) {
                               if (type != MessageType::kOpenDevice) return;
                               Region other = MakeRegion(abi::RegionKind::kSlot,
                                                         sizeof(abi::SlotRegion), true, false);
                               close(reply->fds[0]);
                               reply->fds[0] = fcntl(other.fd, F_DUPFD_CLOEXEC, 0);
                               other.Destroy();
                               ++given;
                             }});
  scheduler->Start();
  EXPECT_TRUE(FakeScheduler::Eventually([&] { return given >= 3; }));
  EXPECT_EQ(scheduler->SessionCount(), 0u);
  EXPECT_EQ(waitpid(child.pid(), nullptr, WNOHANG), 0) << "the program ended";
  child.Kill();
}

// ---- Programs with habits -----------------------------------------------------------------------

TEST_F(AttachTest, AProgramMayCloseOurDescriptorsAndReuseTheirNumbers) {
  Run({}, [] {
    AttachProcess(DeviceOnlyDriver());
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    const std::vector<int> ours = OpenFds();
    ASSERT_EQ(syscall(SYS_close_range, 3, ~0u, 0), 0);
    // The program's own files under our numbers.
    std::vector<int> theirs;
    for (const int fd : ours) {
      if (fd < 3) continue;
      int made = open("/dev/null", O_RDWR);
      ASSERT_EQ(dup2(made, fd), fd);
      if (made != fd && std::find(ours.begin(), ours.end(), made) == ours.end()) close(made);
      theirs.push_back(fd);
    }
    EXPECT_TRUE(MaintainUntil([] { return abi::LoadRelaxed(g_state.lost) != 0; }));
    for (int i = 0; i < 20; ++i) MaintainUntil([] { return true; });
    for (const int fd : theirs) {
      EXPECT_NE(fcntl(fd, F_GETFD), -1) << "a file of the program was closed: " << fd;
    }
    EXPECT_TRUE(Attached());
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), session);
    session->slot->work.waiting = 1;  // The mapping is still there.
    // Without its descriptor the slot cannot be handed to anybody.
    EXPECT_EQ(abi::LoadRelaxed(g_state.lost), 1u);
  });
}

TEST_F(AttachTest, AForkedChildStartsAfresh) {
  FakeScheduler scheduler(folder_.path(), {});
  Signal forked, parent_gone, child_done;
  ChildProcess child([&] {
    Enter(scheduler);
    const std::vector<int> before = OpenFds();
    AttachProcess(DeviceOnlyDriver());
    DeviceSession* session = OpenSession(DeviceOnlyDriver(), 0);
    ASSERT_NE(session, nullptr);
    abi::SlotRegion* slot = session->slot;
    const pid_t parent = getpid();
    const pid_t grandchild = fork();
    if (grandchild == 0) {
      EXPECT_EQ(PhaseNow(), Phase::kFresh);
      EXPECT_EQ(g_state.connection, nullptr);
      EXPECT_EQ(g_state.devices[0], nullptr);
      // The parent's slot is not even mapped here.
      unsigned char there;
      EXPECT_EQ(mincore(slot, 4096, &there), -1);
      // It attaches by itself, and gives up what it inherited: the parent's session ends with the
      // parent.
      AttachProcess(DeviceOnlyDriver());
      EXPECT_TRUE(Attached());
      EXPECT_EQ(OpenFds().size(), before.size() + 1);
      DeviceSession* own = OpenSession(DeviceOnlyDriver(), 0);
      EXPECT_NE(own, nullptr);
      if (own != nullptr) {
        EXPECT_EQ(own->slot->session.pid_in_namespace, static_cast<uint32_t>(getpid()));
      }
      forked.Give();
      parent_gone.Take();
      fflush(nullptr);
      if (HasFailure()) fprintf(stderr, "failures in the child of %d\n", parent);
      child_done.Give();
      _exit(HasFailure() ? 1 : 0);
    }
    ASSERT_GT(grandchild, 0);
    // Ends without waiting for it.
  });
  scheduler.Start();
  forked.Take();
  child.Join();
  EXPECT_TRUE(FakeScheduler::Eventually([&] { return scheduler.SessionCount() == 1; }))
      << "the parent's session outlived it in the child's copies of its descriptors";
  parent_gone.Give();
  child_done.Take();
  EXPECT_TRUE(FakeScheduler::Eventually([&] { return scheduler.SessionCount() == 0; }));
}

TEST_F(AttachTest, ErrnoIsTheProgramsOwn) {
  Run({.tamper =
           [](MessageType type, Reply* reply) {
             if (type == MessageType::kOpenDevice) reply->hang_up = true;
           }},
      [] {
        errno = 1234;
        AttachProcess(DeviceOnlyDriver());
        EXPECT_EQ(errno, 1234);
        OpenSession(DeviceOnlyDriver(), 0);
        EXPECT_EQ(errno, 1234);
        MaintainConnection(DeviceOnlyDriver(), NowNs() + 5'000'000'000);
        EXPECT_EQ(errno, 1234);
        Detach(DetachReason::kSurprise);
        EXPECT_EQ(errno, 1234);
      });
}

TEST_F(AttachTest, DetachIsSeenByTheScheduler) {
  FakeScheduler scheduler(folder_.path(), {});
  Signal detached, seen;
  ChildProcess child([&] {
    Enter(scheduler);
    AttachProcess(DeviceOnlyDriver());
    ASSERT_NE(OpenSession(DeviceOnlyDriver(), 0), nullptr);
    Detach(DetachReason::kSurprise);
    Detach(DetachReason::kForked);
    EXPECT_EQ(ReasonNow(), DetachReason::kSurprise) << "the first reason wins";
    EXPECT_FALSE(Attached());
    EXPECT_EQ(OpenSession(DeviceOnlyDriver(), 0), nullptr);
    detached.Give();
    seen.Take();
  });
  scheduler.Start();
  detached.Take();
  EXPECT_EQ(scheduler.Slot(0)->session.detached, static_cast<uint32_t>(DetachReason::kSurprise));
  seen.Give();
  child.Join();
}

}  // namespace
}  // namespace rubato::shim::testing
