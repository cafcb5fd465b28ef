#include "tests/unit/shim/fake_scheduler.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "shim/core/sys.h"

namespace rubato::shim::testing {

namespace {

constexpr uint64_t kPatienceNs = 30'000'000'000;
constexpr uint32_t kOwnTenant = 3;

}  // namespace

// ---- Regions ------------------------------------------------------------------------------------

Region Region::Make(abi::RegionKind kind, size_t bytes, uint64_t epoch) {
  Region region;
  region.bytes = bytes;
  region.fd = memfd_create("rubato-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_GE(region.fd, 0);
  EXPECT_EQ(ftruncate(region.fd, static_cast<off_t>(bytes)), 0);
  region.memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd, 0);
  EXPECT_NE(region.memory, MAP_FAILED);
  abi::RegionHeader header = {};
  header.magic = abi::kMagic;
  header.kind = static_cast<uint32_t>(kind);
  header.size_bytes = static_cast<uint32_t>(bytes);
  header.major = abi::kMajor;
  header.minor = abi::kMinor;
  header.epoch = epoch;
  header.created_ns = NowNs();
  memcpy(region.memory, &header, sizeof(header));
  return region;
}

void Region::Seal(bool writers) {
  constexpr int kFutureWrite = 0x0010;
  EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | (writers ? kFutureWrite : 0)), 0);
}

void Region::Destroy() {
  if (memory != nullptr) munmap(memory, bytes);
  if (fd >= 0) close(fd);
  memory = nullptr;
  fd = -1;
}

// ---- The scheduler ------------------------------------------------------------------------------

FakeScheduler::FakeScheduler(const std::string& directory, Options options)
    : options_(std::move(options)), path_(directory + "/attach.sock") {
  device_ = Region::Make(abi::RegionKind::kDevice, sizeof(abi::DeviceRegion), options_.epoch);
  device_.Seal(true);
  profile_ = Region::Make(abi::RegionKind::kProfile, sizeof(abi::ProfileRegion), options_.epoch);
  profile_.Seal(true);
  page().constants.lease_ns = options_.lease_ns;
  page().constants.mode = static_cast<uint32_t>(options_.mode);
  abi::TenantLine line = {};
  line.tenant_class = static_cast<uint32_t>(options_.tenant_class);
  line.limit_bytes = options_.limit_bytes;
  abi::WriteLine(page().tenants[kOwnTenant].tenant, line);
  abi::StoreRelease(page().state.generation, uint64_t{100});
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (options_.listening) Listen();
}

FakeScheduler::~FakeScheduler() {
  Stop();
  for (auto& session : sessions_) session->slot.Destroy();
  device_.Destroy();
  profile_.Destroy();
  close(wake_);
  unlink(path_.c_str());
}

void FakeScheduler::Listen() {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  ASSERT_LT(path_.size(), sizeof(address.sun_path));
  memcpy(address.sun_path, path_.c_str(), path_.size());
  unlink(path_.c_str());
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(fd, 64), 0);
  const std::lock_guard lock(mutex_);
  listener_ = fd;
  eventfd_write(wake_, 1);
}

void FakeScheduler::CloseInChild() {
  if (listener_ >= 0) close(listener_);
  close(wake_);
}

void FakeScheduler::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void FakeScheduler::Stop() {
  if (thread_.joinable()) {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    eventfd_write(wake_, 1);
    thread_.join();
  }
  for (const int connection : connections_) close(connection);
  connections_.clear();
  if (listener_ >= 0) close(listener_);
  listener_ = -1;
}

void FakeScheduler::Loop() {
  for (;;) {
    std::vector<pollfd> waiting;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
      waiting.push_back({wake_, POLLIN, 0});
      waiting.push_back({listener_, POLLIN, 0});
      for (const int connection : connections_) waiting.push_back({connection, POLLIN, 0});
    }
    if (poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR) return;
    const std::lock_guard lock(mutex_);
    eventfd_t value;
    eventfd_read(wake_, &value);
    if ((waiting[1].revents & POLLIN) != 0) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (fd >= 0) connections_.push_back(fd);
    }
    for (size_t i = 2; i < waiting.size(); ++i) {
      if (waiting[i].revents != 0 && !Serve(waiting[i].fd)) HangUp(waiting[i].fd);
    }
  }
}

bool FakeScheduler::Serve(int connection) {
  std::vector<uint8_t> bytes(abi::kMaxMessageBytes);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 8)];
  iovec vector = {bytes.data(), bytes.size()};
  msghdr message = {};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t received = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
  if (received <= 0) return received < 0 && errno == EAGAIN;
  bytes.resize(static_cast<size_t>(received));
  std::vector<int> fds;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(fd));
      fds.push_back(fd);
    }
  }
  Reply reply = Answer(connection, bytes, &fds);
  for (const int fd : fds) close(fd);
  const auto type = static_cast<abi::MessageType>(
      bytes.size() >= 6 ? reinterpret_cast<const abi::MessageHeader*>(bytes.data())->type : 0);
  // Named by the request, since a reply may have become anything.
  if (options_.tamper) options_.tamper(type, &reply);
  bool alive = !reply.hang_up;
  if (!reply.silence && !reply.hang_up) {
    std::vector<char> passed(CMSG_SPACE(sizeof(int) * reply.fds.size()));
    iovec out = {reply.bytes.data(), reply.bytes.size()};
    msghdr answer = {};
    answer.msg_iov = &out;
    answer.msg_iovlen = 1;
    if (!reply.fds.empty()) {
      answer.msg_control = passed.data();
      answer.msg_controllen = passed.size();
      cmsghdr* part = CMSG_FIRSTHDR(&answer);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(sizeof(int) * reply.fds.size());
      memcpy(CMSG_DATA(part), reply.fds.data(), sizeof(int) * reply.fds.size());
    }
    alive = sendmsg(connection, &answer, MSG_NOSIGNAL) >= 0;
  }
  for (const int fd : reply.fds) close(fd);
  return alive;
}

Reply FakeScheduler::Answer(int connection, const std::vector<uint8_t>& bytes,
                            std::vector<int>* fds) {
  abi::MessageHeader header = {};
  if (bytes.size() < sizeof(header)) {
    Complain("a request without a header");
    return {.hang_up = true};
  }
  memcpy(&header, bytes.data(), sizeof(header));
  const auto type = static_cast<abi::MessageType>(header.type);
  const auto check = [&](size_t size, size_t most_fds) {
    if (!abi::MessageAccepted(header, type, size, bytes.size()) || header.major != abi::kMajor) {
      Complain("request " + std::to_string(header.type) + " is malformed");
    }
    if (fds->size() > most_fds) Complain("request with descriptors");
  };
  switch (type) {
    case abi::MessageType::kHello: {
      check(sizeof(abi::HelloMessage), 0);
      ++hellos_;
      abi::WelcomeMessage welcome = {};
      welcome.header = abi::MakeHeader(abi::MessageType::kWelcome, sizeof(welcome));
      welcome.clock_ns = NowNs();
      welcome.epoch = options_.epoch;
      welcome.tenant_class = static_cast<uint32_t>(options_.tenant_class);
      welcome.mode = static_cast<uint32_t>(options_.mode);
      welcome.use_mps = options_.use_mps ? 1 : 0;
      options_.mps_directory.copy(welcome.mps_directory, sizeof(welcome.mps_directory) - 1);
      welcome.limit_bytes = options_.limit_bytes;
      return Reply::Of(welcome);
    }
    case abi::MessageType::kOpenDevice:
      check(sizeof(abi::OpenDeviceMessage), 1);
      return OpenDevice(connection, fds);
    case abi::MessageType::kSlotMapped: {
      check(sizeof(abi::SlotMappedMessage), 0);
      for (auto& session : sessions_) {
        if (session->connection != connection) continue;
        if (!session->reattached) session->slot.Seal(true);
        Enter(session.get(), true);
      }
      abi::SessionLiveMessage live = {};
      live.header = abi::MakeHeader(abi::MessageType::kSessionLive, sizeof(live));
      live.generation = page().state.generation;
      return Reply::Of(live);
    }
    case abi::MessageType::kGetPeers: {
      check(sizeof(abi::GetPeersMessage), 0);
      abi::GetPeersMessage ask;
      memcpy(&ask, bytes.data(), sizeof(ask));
      abi::PeersMessage peers = {};
      peers.header = abi::MakeHeader(abi::MessageType::kPeers, sizeof(peers));
      peers.generation = page().state.generation;
      peers.next = abi::kMaxSessions;
      std::vector<int> passed;
      std::vector<FakeSession*> sorted;
      for (auto& session : sessions_) sorted.push_back(session.get());
      std::sort(sorted.begin(), sorted.end(),
                [](const FakeSession* a, const FakeSession* b) { return a->index < b->index; });
      for (const FakeSession* session : sorted) {
        const abi::SessionEntry& entry = page().sessions[session->index];
        if (session->index < ask.first || (entry.generation & 1u) == 0) continue;
        if (peers.count == abi::kMaxPeersPerMessage) {
          peers.next = session->index;
          break;
        }
        peers.items[peers.count++] = {session->index, entry.generation};
        passed.push_back(fcntl(session->slot.fd, F_DUPFD_CLOEXEC, 0));
      }
      return Reply::Of(peers, passed);
    }
    default:
      Complain("request of unknown type " + std::to_string(header.type));
      return {.hang_up = true};
  }
}

Reply FakeScheduler::OpenDevice(int connection, std::vector<int>* fds) {
  auto session = std::make_unique<FakeSession>();
  session->connection = connection;
  session->index = 0;
  const auto used = [&](uint32_t index) {
    return std::any_of(sessions_.begin(), sessions_.end(),
                       [&](const auto& other) { return other->index == index; });
  };
  while (used(session->index)) ++session->index;
  if (fds->empty()) {
    session->slot = Region::Make(abi::RegionKind::kSlot, sizeof(abi::SlotRegion), options_.epoch);
    session->slot.Seal(false);
  } else {
    session->reattached = true;
    session->slot.fd = fds->front();
    fds->clear();
    session->slot.bytes = sizeof(abi::SlotRegion);
    session->slot.memory =
        mmap(nullptr, session->slot.bytes, PROT_READ, MAP_SHARED, session->slot.fd, 0);
  }
  abi::DeviceOpenedMessage opened = {};
  opened.header = abi::MakeHeader(abi::MessageType::kDeviceOpened, sizeof(opened));
  opened.device = 5;
  opened.session = session->index;
  opened.tenant = kOwnTenant;
  std::vector<int> passed;
  for (const int fd : {session->slot.fd, device_.fd, profile_.fd}) {
    passed.push_back(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  }
  sessions_.push_back(std::move(session));
  return Reply::Of(opened, passed);
}

void FakeScheduler::HangUp(int connection) {
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    if ((*it)->connection == connection) {
      Enter(it->get(), false);
      ended_.push_back(static_cast<abi::SlotRegion*>((*it)->slot.memory)->counters);
      (*it)->slot.Destroy();
      it = sessions_.erase(it);
    } else {
      ++it;
    }
  }
  connections_.erase(std::find(connections_.begin(), connections_.end(), connection));
  close(connection);
}

void FakeScheduler::Enter(FakeSession* session, bool live) {
  abi::SessionEntry& entry = page().sessions[session->index];
  if (((entry.generation & 1u) != 0) == live) return;
  abi::StoreRelaxed(entry.tenant, kOwnTenant);
  abi::StoreRelaxed(entry.tenant_class, static_cast<uint32_t>(options_.tenant_class));
  if (session->index >= page().state.session_high_water) {
    abi::StoreRelease(page().state.session_high_water, session->index + 1);
  }
  abi::StoreRelease(entry.generation, entry.generation + 1);
  Bump();
}

void FakeScheduler::Bump() {
  abi::StoreRelease(page().state.generation, page().state.generation + 1);
}

abi::SlotRegion* FakeScheduler::AddPeer(uint32_t tenant, abi::TenantClass tenant_class,
                                        bool sealed) {
  const std::lock_guard lock(mutex_);
  auto session = std::make_unique<FakeSession>();
  for (const auto& other : sessions_) session->index = std::max(session->index, other->index + 1);
  // The first entry stays free for a process.
  session->index = std::max(session->index, 1u);
  session->slot = Region::Make(abi::RegionKind::kSlot, sizeof(abi::SlotRegion), options_.epoch);
  if (sealed) session->slot.Seal(true);
  auto* slot = static_cast<abi::SlotRegion*>(session->slot.memory);
  Enter(session.get(), true);
  abi::SessionEntry& entry = page().sessions[session->index];
  abi::StoreRelaxed(entry.tenant, tenant);
  abi::StoreRelaxed(entry.tenant_class, static_cast<uint32_t>(tenant_class));
  abi::StoreRelaxed(entry.flags, abi::kSessionMayHold);
  sessions_.push_back(std::move(session));
  return slot;
}

void FakeScheduler::RemovePeer(abi::SlotRegion* slot) {
  const std::lock_guard lock(mutex_);
  for (auto it = sessions_.begin(); it != sessions_.end(); ++it) {
    if ((*it)->slot.memory != slot) continue;
    Enter(it->get(), false);
    (*it)->slot.Destroy();
    sessions_.erase(it);
    return;
  }
}

size_t FakeScheduler::SessionCount() {
  const std::lock_guard lock(mutex_);
  return static_cast<size_t>(
      std::count_if(sessions_.begin(), sessions_.end(), [this](const auto& session) {
        return session->connection >= 0 && (page().sessions[session->index].generation & 1u) != 0;
      }));
}

abi::SlotRegion* FakeScheduler::Slot(size_t n) {
  const std::lock_guard lock(mutex_);
  for (auto& session : sessions_) {
    if (session->connection < 0) continue;
    if (n-- == 0) return static_cast<abi::SlotRegion*>(session->slot.memory);
  }
  return nullptr;
}

bool FakeScheduler::Reattached(size_t n) {
  const std::lock_guard lock(mutex_);
  for (auto& session : sessions_) {
    if (session->connection >= 0 && n-- == 0) return session->reattached;
  }
  return false;
}

size_t FakeScheduler::Hellos() {
  const std::lock_guard lock(mutex_);
  return hellos_;
}

std::vector<abi::CounterLines> FakeScheduler::Ended() {
  const std::lock_guard lock(mutex_);
  return ended_;
}

std::vector<std::string> FakeScheduler::Complaints() {
  const std::lock_guard lock(mutex_);
  return complaints_;
}

bool FakeScheduler::Eventually(const std::function<bool()>& condition) {
  const uint64_t deadline_ns = NowNs() + kPatienceNs;
  while (!condition()) {
    if (NowNs() > deadline_ns) return false;
    SleepFor(500'000);
  }
  return true;
}

// ---- Processes ----------------------------------------------------------------------------------

TemporaryFolder::TemporaryFolder() {
  char name[] = "/tmp/rubato-test-XXXXXX";
  const char* made = mkdtemp(name);
  EXPECT_NE(made, nullptr);
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  rmdir(path_.c_str());
}

ChildProcess::ChildProcess(const std::function<void()>& body) {
  fflush(nullptr);
  pid_ = fork();
  if (pid_ != 0) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  body();
  fflush(nullptr);
  _exit(::testing::Test::HasFailure() ? 1 : 0);
}

ChildProcess::~ChildProcess() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void ChildProcess::Kill() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

int ChildProcess::Wait() {
  int status = 0;
  EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  return status;
}

void ChildProcess::Join() {
  const int status = Wait();
  EXPECT_TRUE(WIFEXITED(status)) << "killed by signal " << WTERMSIG(status);
  if (WIFEXITED(status)) {
    EXPECT_EQ(WEXITSTATUS(status), 0) << "in the child process";
  }
}

Signal::Signal() {
  EXPECT_EQ(pipe2(fds_, O_CLOEXEC), 0);
}

Signal::~Signal() {
  close(fds_[0]);
  close(fds_[1]);
}

void Signal::Give() {
  const char byte = 1;
  EXPECT_EQ(write(fds_[1], &byte, 1), 1);
}

void Signal::Take() {
  pollfd waiting = {fds_[0], POLLIN, 0};
  int ready;
  do {
    ready = poll(&waiting, 1, static_cast<int>(kPatienceNs / 1'000'000));
  } while (ready < 0 && errno == EINTR);
  ASSERT_EQ(ready, 1) << "the other process did not come this far";
  char byte;
  EXPECT_EQ(read(fds_[0], &byte, 1), 1);
}

const Driver& DeviceOnlyDriver() {
  static const Driver driver = [] {
    Driver made{};
    made.vendor = 1;
    made.device_identity = [](int ordinal, DeviceIdentity* identity) {
      memset(identity, 0, sizeof(*identity));
      identity->uuid[0] = static_cast<uint8_t>(ordinal + 1);
      identity->sm_count = 132;
      identity->total_bytes = uint64_t{80} << 30;
      strcpy(identity->name, "Test GPU");
      return 0;
    };
    return made;
  }();
  return driver;
}

std::vector<int> OpenFds() {
  std::vector<int> fds;
  DIR* folder = opendir("/proc/self/fd");
  EXPECT_NE(folder, nullptr);
  while (const dirent* entry = readdir(folder)) {
    const int fd = atoi(entry->d_name);
    if (entry->d_name[0] != '.' && fd != dirfd(folder)) fds.push_back(fd);
  }
  closedir(folder);
  std::sort(fds.begin(), fds.end());
  return fds;
}

}  // namespace rubato::shim::testing
