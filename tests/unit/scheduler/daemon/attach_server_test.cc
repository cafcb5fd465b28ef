// The attach server over real sockets, with a stand-in for the shim in the same process.

#include "scheduler/daemon/attach_server.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "proto/abi/window.h"
#include "tests/unit/scheduler/daemon/shim_stand_in.h"

namespace rubato::sched {
namespace {

using testing::MakeGetPeers;
using testing::MakeHello;
using testing::MakeOpenDevice;
using testing::ShimStandIn;

// A scheduler and its server; a second one at the same place is a restart.
struct Side {
  Side(base::EventLoop* loop, const base::Clock* clock, const std::string& directory,
       uint64_t epoch, AttachLimits limits = {})
      : scheduler(Options(epoch), clock->NowNs()),
        server(loop, clock, &scheduler, *AttachDirectory::Open(directory, true), limits) {}
  static SchedulerOptions Options(uint64_t epoch) {
    SchedulerOptions options;
    options.epoch = epoch;
    return options;
  }
  Scheduler scheduler;
  AttachServer server;
};

class AttachServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/rubato-attach-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    loop_ = std::move(*base::EventLoop::Make());
    side_.emplace(loop_.get(), &clock_, directory_, 1);
  }
  void TearDown() override {
    side_.reset();
    EXPECT_TRUE(std::filesystem::is_empty(directory_)) << "sockets are removed";
    std::filesystem::remove_all(directory_);
  }
  void Work() { loop_->RunOnce(0); }
  ShimStandIn Shim() {
    return ShimStandIn([this] { Work(); });
  }
  TenantId Add(core::TenantClass tenant_class, std::string* path, const std::string& token = "") {
    core::TenantSpec spec;
    spec.name = core::ClassName(tenant_class);
    spec.tenant_class = tenant_class;
    if (tenant_class == core::TenantClass::kRealtime) spec.period_ns = 10 * base::kMillisecond;
    const TenantId id = *side_->scheduler.AddTenant(spec, clock_.NowNs());
    EXPECT_TRUE(side_->server.Open(id, token).ok());
    *path = side_->server.PathOf(id);
    return id;
  }
  void WorkUntil(const std::function<bool()>& done) {
    const Nanos until_ns = clock_.NowNs() + 30 * base::kSecond;
    while (!done() && clock_.NowNs() < until_ns)
      loop_->RunOnce(clock_.NowNs() + base::kMillisecond);
  }

  base::SystemClock clock_;
  std::string directory_;
  std::unique_ptr<base::EventLoop> loop_;
  std::optional<Side> side_;
};

TEST_F(AttachServerTest, AProcessAttaches) {
  std::string path;
  const TenantId tenant = Add(core::TenantClass::kRealtime, &path);
  ShimStandIn shim = Shim();
  ASSERT_TRUE(shim.Attach(path));
  EXPECT_EQ(shim.welcome.epoch, 1u);
  EXPECT_EQ(side_->scheduler.SessionCount(tenant), 1u);
  const abi::DeviceRegion& page = *shim.page();
  EXPECT_TRUE(
      abi::RegionAccepted(page.header, abi::RegionKind::kDevice, sizeof(page), sizeof(page)));
  EXPECT_TRUE(abi::RegionAccepted(shim.slot()->header, abi::RegionKind::kSlot,
                                  sizeof(abi::SlotRegion), sizeof(abi::SlotRegion)));
  EXPECT_TRUE(abi::RegionAccepted(shim.profile()->header, abi::RegionKind::kProfile,
                                  sizeof(abi::ProfileRegion), sizeof(abi::ProfileRegion)));
  EXPECT_EQ(page.state.realtime_sessions, 1u);
  EXPECT_EQ(page.sessions[shim.opened.session].generation % 2, 1u);
  EXPECT_EQ(page.sessions[shim.opened.session].tenant, shim.opened.tenant);
  EXPECT_EQ(page.tenants[shim.opened.tenant].tenant.tenant_class,
            static_cast<uint32_t>(abi::TenantClass::kRealtime));
}

TEST_F(AttachServerTest, OnlyTheOwnerCanWriteASlotAndOnlyTheSchedulerItsPages) {
  std::string path;
  Add(core::TenantClass::kBestEffort, &path);
  ShimStandIn shim = Shim();
  ASSERT_TRUE(shim.Attach(path));
  for (const int fd : {shim.slot_fd.get(), shim.page_fd.get(), shim.profile_fd.get()}) {
    EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    EXPECT_LT(::pwrite(fd, "x", 1, 0), 0);
    EXPECT_NE(::ftruncate(fd, 0), 0);
    // Opened anew through /proc, it is no more writable.
    const std::string again = "/proc/self/fd/" + std::to_string(fd);
    const base::UniqueFd reopened(::open(again.c_str(), O_RDWR | O_CLOEXEC));
    if (reopened.valid()) {
      EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, reopened.get(), 0),
                MAP_FAILED);
      EXPECT_LT(::pwrite(reopened.get(), "x", 1, 0), 0);
    }
  }
  // The mapping that was there before the seal still works.
  abi::StoreRelaxed(shim.slot()->counters.value[0], uint64_t{5});
  EXPECT_EQ(shim.slot()->counters.value[0], 5u);
}

TEST_F(AttachServerTest, TheDirectoryFollowsArrivalsAndDepartures) {
  std::string realtime_path;
  std::string besteffort_path;
  Add(core::TenantClass::kRealtime, &realtime_path);
  Add(core::TenantClass::kBestEffort, &besteffort_path);
  ShimStandIn besteffort = Shim();
  ASSERT_TRUE(besteffort.Attach(besteffort_path));
  const uint64_t before = besteffort.page()->state.generation;
  EXPECT_EQ(besteffort.page()->state.realtime_sessions, 0u);
  ShimStandIn realtime = Shim();
  ASSERT_TRUE(realtime.Attach(realtime_path));
  EXPECT_EQ(besteffort.page()->state.realtime_sessions, 1u);
  EXPECT_EQ(besteffort.page()->state.besteffort_sessions, 1u);
  EXPECT_GT(besteffort.page()->state.generation, before);

  auto answer = besteffort.Ask(MakeGetPeers(besteffort.opened.device));
  ASSERT_TRUE(answer.has_value());
  const auto peers = answer->As<abi::PeersMessage>();
  ASSERT_EQ(peers.count, 1u) << "the others, not oneself";
  ASSERT_EQ(answer->fds.size(), 1u);
  EXPECT_EQ(peers.items[0].session, realtime.opened.session);
  EXPECT_EQ(peers.next, abi::kMaxSessions);
  EXPECT_EQ(peers.generation, besteffort.page()->state.generation);
  // What the neighbour writes is seen.
  auto slot = base::Mapping::ReadOnly(answer->fds[0].get(), sizeof(abi::SlotRegion));
  ASSERT_TRUE(slot.ok());
  abi::StoreRelaxed(realtime.slot()->job.sequence, 77u);
  EXPECT_EQ(slot->as<const abi::SlotRegion>()->job.sequence, 77u);

  realtime.Disconnect();
  WorkUntil([&] { return besteffort.page()->state.realtime_sessions == 0; });
  EXPECT_EQ(besteffort.page()->state.realtime_sessions, 0u);
  EXPECT_EQ(besteffort.page()->sessions[realtime.opened.session].generation % 2, 0u);
}

TEST_F(AttachServerTest, ManyPeersComeInSeveralPackets) {
  std::string path;
  Add(core::TenantClass::kBestEffort, &path);
  std::vector<ShimStandIn> shims;
  for (int i = 0; i < 40; ++i) {
    shims.push_back(Shim());
    ASSERT_TRUE(shims.back().Attach(path)) << i;
  }
  std::set<uint32_t> seen;
  uint32_t first = 0;
  int packets = 0;
  while (first < abi::kMaxSessions) {
    auto answer = shims[0].Ask(MakeGetPeers(shims[0].opened.device, first));
    ASSERT_TRUE(answer.has_value());
    const auto peers = answer->As<abi::PeersMessage>();
    ASSERT_EQ(answer->fds.size(), peers.count);
    for (uint32_t i = 0; i < peers.count; ++i) seen.insert(peers.items[i].session);
    first = peers.next;
    ASSERT_LT(++packets, 10);
  }
  EXPECT_EQ(seen.size(), 39u);
  EXPECT_FALSE(seen.contains(shims[0].opened.session));
}

TEST_F(AttachServerTest, AFullDirectoryRefusesAndAPlaceThatIsFreedIsGiven) {
  std::string path;
  Add(core::TenantClass::kBestEffort, &path);
  std::vector<ShimStandIn> shims;
  for (uint32_t i = 0; i < abi::kMaxSessions; ++i) {
    shims.push_back(Shim());
    ASSERT_TRUE(shims.back().Attach(path)) << i;
  }
  ShimStandIn late = Shim();
  ASSERT_TRUE(late.Connect(path));
  ASSERT_TRUE(late.Ask(MakeHello()).has_value());
  const auto answer = late.Ask(MakeOpenDevice());
  ASSERT_TRUE(answer.has_value());
  EXPECT_TRUE(answer->Is(abi::MessageType::kDeviceOpened));
  EXPECT_EQ(answer->status(), abi::Status::kFull);
  EXPECT_TRUE(late.IsClosed());
  EXPECT_EQ(side_->scheduler.Status(1).sessions_detached.at("no_directory"), 1u);
  shims[7].Disconnect();
  ShimStandIn next = Shim();
  ASSERT_TRUE(next.Attach(path));
  EXPECT_EQ(next.opened.session, shims[7].opened.session);
}

TEST_F(AttachServerTest, ASilentPeerIsDroppedAndHoldsNobodyUp) {
  side_.reset();
  AttachLimits limits;
  limits.hello_ns = 50 * base::kMillisecond;
  side_.emplace(loop_.get(), &clock_, directory_, 1, limits);
  std::string path;
  Add(core::TenantClass::kBestEffort, &path);
  ShimStandIn silent = Shim();
  ASSERT_TRUE(silent.Connect(path));
  ShimStandIn shim = Shim();
  ASSERT_TRUE(shim.Attach(path)) << "meanwhile another one attaches";
  EXPECT_TRUE(silent.IsClosed());
  WorkUntil([&] { return clock_.NowNs() > 0; });
  const auto answer = shim.Ask(MakeGetPeers(shim.opened.device));
  EXPECT_TRUE(answer.has_value()) << "who has greeted stays";
}

TEST_F(AttachServerTest, APeerThatDoesNotReadIsDropped) {
  std::string path;
  Add(core::TenantClass::kBestEffort, &path);
  ShimStandIn deaf = Shim();
  ASSERT_TRUE(deaf.Attach(path));
  // Asks and asks; the answers fill its socket.
  bool sent = true;
  for (int i = 0; i < 100000 && sent; ++i) {
    sent = deaf.Send(testing::Bytes(MakeGetPeers(deaf.opened.device)));
    Work();
  }
  EXPECT_FALSE(sent);
  WorkUntil([&] { return side_->server.connection_count() == 0; });
  EXPECT_EQ(side_->server.connection_count(), 0u);
}

TEST_F(AttachServerTest, ConnectionsAreLimited) {
  side_.reset();
  AttachLimits limits;
  limits.per_tenant = 3;
  side_.emplace(loop_.get(), &clock_, directory_, 1, limits);
  std::string path;
  std::string other_path;
  Add(core::TenantClass::kBestEffort, &path);
  Add(core::TenantClass::kRealtime, &other_path);
  std::vector<ShimStandIn> shims;
  for (int i = 0; i < 3; ++i) {
    shims.push_back(Shim());
    ASSERT_TRUE(shims.back().Attach(path));
  }
  ShimStandIn fourth = Shim();
  EXPECT_FALSE(fourth.Attach(path));
  ShimStandIn other = Shim();
  EXPECT_TRUE(other.Attach(other_path)) << "another tenant has places of its own";
  shims.pop_back();
  WorkUntil([&] { return side_->server.connection_count() == 3; });
  ShimStandIn next = Shim();
  EXPECT_TRUE(next.Attach(path));
}

TEST_F(AttachServerTest, OneUsersProcessesAreLimitedButContainersHaveNoUser) {
  side_.reset();
  AttachLimits limits;
  limits.per_user = 2;
  side_.emplace(loop_.get(), &clock_, directory_, 1, limits);
  std::string path;
  Add(core::TenantClass::kBestEffort, &path);
  core::TenantSpec spec;
  spec.name = "pod";
  spec.tenant_class = core::TenantClass::kBestEffort;
  spec.any_user = true;
  const TenantId pod = *side_->scheduler.AddTenant(spec, 1);
  ASSERT_TRUE(side_->server.Open(pod, "").ok());
  std::vector<ShimStandIn> shims;
  for (int i = 0; i < 4; ++i) {
    shims.push_back(Shim());
    ASSERT_TRUE(shims.back().Attach(side_->server.PathOf(pod)));
  }
  for (int i = 0; i < 2; ++i) {
    shims.push_back(Shim());
    ASSERT_TRUE(shims.back().Attach(path)) << "what containers do counts for nobody";
  }
  ShimStandIn third = Shim();
  EXPECT_FALSE(third.Attach(path));
  shims.clear();
  WorkUntil([&] { return side_->server.connection_count() == 0; });
  ShimStandIn next = Shim();
  EXPECT_TRUE(next.Attach(path));
}

TEST_F(AttachServerTest, ARestartedSchedulerTakesTheSlotBack) {
  const std::string token = "00112233445566778899aabbccddeeff";
  std::string path;
  Add(core::TenantClass::kRealtime, &path, token);
  ShimStandIn first = Shim();
  ShimStandIn shim = Shim();
  ASSERT_TRUE(first.Attach(path));
  ASSERT_TRUE(shim.Attach(path));
  const uint32_t index = shim.opened.session;
  EXPECT_EQ(index, 1u);
  abi::StoreRelaxed(shim.slot()->counters.value[static_cast<size_t>(abi::Counter::kOps)],
                    uint64_t{1000});

  side_.reset();
  EXPECT_TRUE(shim.IsClosed());
  EXPECT_EQ(shim.page()->state.realtime_sessions, 2u)
      << "until the next one has it back, the others go by what the page says of it";
  EXPECT_EQ(shim.page()->sessions[index].generation % 2, 1u);
  EXPECT_EQ(shim.page()->tenants[shim.opened.tenant].tenant.tenant_class,
            static_cast<uint32_t>(abi::TenantClass::kRealtime));
  side_.emplace(loop_.get(), &clock_, directory_, 2);
  std::string path_again;
  const TenantId tenant = Add(core::TenantClass::kRealtime, &path_again, token);
  EXPECT_EQ(path_again, path);
  ASSERT_TRUE(shim.Attach(path, 1, true));
  EXPECT_EQ(shim.welcome.epoch, 2u);
  EXPECT_EQ(shim.opened.session, index) << "its place was free";
  EXPECT_EQ(side_->scheduler.SessionCount(tenant), 1u);
  EXPECT_EQ(shim.page()->header.epoch, 2u);
  // It is the same slot: what the session writes is read, what it had counted before is not.
  abi::StoreRelaxed(shim.slot()->counters.value[static_cast<size_t>(abi::Counter::kOps)],
                    uint64_t{1007});
  side_->scheduler.Poll(clock_.NowNs());
  const SchedulerStatus status = side_->scheduler.Status(clock_.NowNs());
  EXPECT_EQ(status.tenants.at(0).devices.at(0).totals.counter(abi::Counter::kOps), 7u);
}

// As a container's process: another user, in a mount namespace of its own, with its tenant's folder
// mounted read-only and nothing else of ours in sight.
TEST_F(AttachServerTest, AContainerAttachesThroughItsFolderAlsoToTheNextScheduler) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to be another user";
  const std::string token = "00112233445566778899aabbccddeeff";
  const auto add = [&] {
    core::TenantSpec spec;
    spec.name = "pod";
    spec.tenant_class = core::TenantClass::kBestEffort;
    spec.any_user = true;
    const TenantId id = *side_->scheduler.AddTenant(spec, clock_.NowNs());
    EXPECT_TRUE(side_->server.Open(id, token).ok());
    return id;
  };
  // The folder is somebody else's, and outlives the schedulers: that is what makes this work.
  const std::string folder = directory_ + "/" + token;
  ASSERT_EQ(::mkdir(folder.c_str(), 0755), 0);
  ASSERT_EQ(::chmod(folder.c_str(), 0755), 0);
  char mount_point[] = "/tmp/rubato-container-XXXXXX";
  ASSERT_NE(::mkdtemp(mount_point), nullptr);
  ASSERT_EQ(::chmod(mount_point, 0755), 0);
  TenantId tenant = add();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    constexpr int kCannot = 77;
    ::close_range(3, ~0u, 0);  // The folder's lock among them, as exec would do.
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount(folder.c_str(), mount_point, nullptr, MS_BIND, nullptr) != 0 ||
        ::mount(nullptr, mount_point, nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) != 0)
      ::_exit(kCannot);
    if (::setgid(12345) != 0 || ::setuid(12345) != 0) ::_exit(kCannot);
    ShimStandIn shim([] {});
    const std::string path = std::string(mount_point) + "/attach.sock";
    if (!shim.Attach(path) || shim.welcome.epoch != 1) ::_exit(1);
    if (!shim.IsClosed()) ::_exit(2);
    const Nanos until_ns = base::MonotonicNow() + 30 * base::kSecond;
    while (!shim.Attach(path, 1, true)) {
      if (base::MonotonicNow() > until_ns) ::_exit(3);
      ::usleep(1000);
    }
    ::_exit(shim.welcome.epoch == 2 ? 0 : 4);
  }
  int status = 0;
  bool ended = false;
  const auto child_ended = [&] {
    ended = ended || ::waitpid(child, &status, WNOHANG) == child;
    return ended;
  };
  WorkUntil([&] { return side_->scheduler.SessionCount(tenant) == 1 || child_ended(); });
  if (!ended) {
    side_.reset();
    EXPECT_TRUE(std::filesystem::exists(folder));
    side_.emplace(loop_.get(), &clock_, directory_, 2);
    tenant = add();
    WorkUntil(child_ended);
  }
  if (!ended) ::kill(child, SIGKILL);
  if (!ended) ::waitpid(child, &status, 0);
  side_.reset();
  EXPECT_EQ(::rmdir(folder.c_str()), 0) << "only the socket was in it, and it is gone";
  ::rmdir(mount_point);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no mount namespaces here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(AttachServerTest, AtTheEndNobodyComesAndWhoIsThereStays) {
  std::string path;
  const TenantId tenant = Add(core::TenantClass::kRealtime, &path);
  ShimStandIn attached = Shim();
  ASSERT_TRUE(attached.Attach(path));
  ShimStandIn greeted = Shim();
  ASSERT_TRUE(greeted.Connect(path));
  ASSERT_TRUE(greeted.Ask(MakeHello()).has_value());
  ShimStandIn silent = Shim();
  ASSERT_TRUE(silent.Connect(path));
  WorkUntil([&] { return side_->server.connection_count() == 3; });
  side_->server.StopListening();
  EXPECT_TRUE(silent.IsClosed());
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_FALSE(Shim().Connect(path));
  const auto opened = greeted.Ask(MakeOpenDevice());
  ASSERT_TRUE(opened.has_value());
  EXPECT_EQ(opened->status(), abi::Status::kOk) << "no refusal, which would be for good";
  EXPECT_EQ(side_->scheduler.SessionCount(tenant), 1u);
  EXPECT_TRUE(attached.Ask(MakeGetPeers(attached.opened.device)).has_value());
}

TEST_F(AttachServerTest, ASlotHandedBackTwiceGetsAnotherPlace) {
  std::string path;
  Add(core::TenantClass::kBestEffort, &path);
  ShimStandIn one = Shim();
  ASSERT_TRUE(one.Attach(path));
  ShimStandIn two = Shim();
  two.slot_fd = base::UniqueFd(::dup(one.slot_fd.get()));
  ASSERT_TRUE(two.Attach(path, 1, true));
  EXPECT_NE(two.opened.session, one.opened.session);
}

TEST_F(AttachServerTest, TheEndOfTheProcessEndsTheSessionThoughAChildHoldsTheSocket) {
  std::string path;
  const TenantId tenant = Add(core::TenantClass::kBestEffort, &path);
  // The parent connects and forks; the child keeps all descriptors and tells its number.
  int pipe_fds[2];
  ASSERT_EQ(::pipe2(pipe_fds, O_CLOEXEC), 0);
  base::UniqueFd from_child(pipe_fds[0]);
  base::UniqueFd to_test(pipe_fds[1]);
  const pid_t parent = ::fork();
  ASSERT_GE(parent, 0);
  if (parent == 0) {
    // No server in this process: the handshake is answered by the test's.
    ShimStandIn shim([] {});
    if (!shim.Attach(path)) ::_exit(1);
    const pid_t child = ::fork();
    if (child == 0) {
      for (;;) ::pause();
    }
    (void)!::write(to_test.get(), &child, sizeof(child));
    for (;;) ::pause();
  }
  to_test.Reset();
  WorkUntil([&] { return side_->scheduler.SessionCount(tenant) == 1; });
  pid_t child = 0;
  ASSERT_EQ(::read(from_child.get(), &child, sizeof(child)), static_cast<ssize_t>(sizeof(child)));
  EXPECT_EQ(side_->scheduler.SessionCount(tenant), 1u);
  ::kill(parent, SIGKILL);
  WorkUntil([&] { return side_->scheduler.SessionCount(tenant) == 0; });
  EXPECT_EQ(side_->scheduler.SessionCount(tenant), 0u);
  ::kill(child, SIGKILL);
  ::waitpid(parent, nullptr, 0);
}

TEST_F(AttachServerTest, ATenantThatIsUnregisteredLosesItsProcesses) {
  std::string path;
  const TenantId tenant = Add(core::TenantClass::kRealtime, &path);
  ShimStandIn shim = Shim();
  ASSERT_TRUE(shim.Attach(path));
  side_->server.Close(tenant);
  side_->scheduler.RemoveTenant(tenant, clock_.NowNs());
  EXPECT_TRUE(shim.IsClosed());
  EXPECT_EQ(shim.page()->state.realtime_sessions, 0u);
  EXPECT_EQ(shim.page()->tenants[shim.opened.tenant].tenant.tenant_class,
            static_cast<uint32_t>(abi::TenantClass::kFree));
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(AttachServerTest, TokensAreCheckedAndUnique) {
  core::TenantSpec spec;
  spec.name = "x";
  spec.tenant_class = core::TenantClass::kBestEffort;
  const TenantId id = *side_->scheduler.AddTenant(spec, 1);
  for (const char* bad : {"short", "../../../../../../../../etc/passwd",
                          "00112233445566778899AABBCCDDEEFF", "00112233445566778899aabbccddee/f"}) {
    const auto opened = side_->server.Open(id, bad);
    ASSERT_FALSE(opened.ok()) << bad;
    EXPECT_EQ(opened.error().code, base::ErrorCode::kInvalid);
  }
  const std::string token = "00112233445566778899aabbccddeeff";
  ASSERT_TRUE(side_->server.Open(id, token).ok());
  const TenantId other = *side_->scheduler.AddTenant(spec, 1);
  const auto taken = side_->server.Open(other, token);
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.error().code, base::ErrorCode::kExists);
  const auto drawn = side_->server.Open(other, "");
  ASSERT_TRUE(drawn.ok());
  EXPECT_EQ(drawn->size(), 32u);
}

TEST_F(AttachServerTest, SocketsArePrivateUnlessTheTenantIsAContainer) {
  std::string path;
  Add(core::TenantClass::kBestEffort, &path);
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  core::TenantSpec spec;
  spec.name = "pod";
  spec.tenant_class = core::TenantClass::kBestEffort;
  spec.any_user = true;
  const TenantId id = *side_->scheduler.AddTenant(spec, 1);
  ASSERT_TRUE(side_->server.Open(id, "").ok());
  ASSERT_EQ(::stat(side_->server.PathOf(id).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0666u);
}

}  // namespace
}  // namespace rubato::sched
