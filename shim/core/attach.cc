// The conversation with the scheduler as a machine of stages: a request is sent, and its answer is
// taken when it comes. Callers differ only in how long they wait for it. At cuInit and at the first
// use of a device that is a while; a real-time program that synchronises does not wait at all, so a
// scheduler that hangs costs it one system call now and then.
#include "shim/core/attach.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/abi/handshake.h"
#include "proto/abi/window.h"
#include "shim/core/build_id.h"
#include "shim/core/channel.h"
#include "shim/core/core.h"
#include "shim/core/environment.h"
#include "shim/core/region.h"
#include "shim/core/sys.h"

namespace rubato::shim {

namespace {

using abi::DetachReason;

constexpr uint64_t kMillisecond = 1'000'000;
constexpr uint64_t kSecond = 1000 * kMillisecond;

constexpr uint64_t kAttachNs = 2 * kSecond;             // For AttachProcess.
constexpr uint64_t kConnectAgainNs = 5 * kMillisecond;  // Between two tries of it.
constexpr uint64_t kAnswerNs = 2 * kSecond;  // A scheduler that has not answered by then is lost.
constexpr uint64_t kOpenNs = 500 * kMillisecond;       // For the thread that first uses a device.
constexpr uint64_t kOpenOthersNs = 20 * kMillisecond;  // For those that come meanwhile.
constexpr uint64_t kRefreshNs = 10 * kMillisecond;     // For a best-effort thread at its gate.
constexpr uint64_t kRefreshPauseNs = kMillisecond;
constexpr uint64_t kLedgerNs = 100 * kMillisecond;  // For an allocation.
constexpr uint64_t kContactPauseNs = kSecond;
constexpr uint64_t kRefusedPauseNs = 10 * kSecond;
constexpr uint64_t kLongestLeaseNs = 60 * kSecond;
constexpr uint64_t kPollNs = 50'000;
constexpr int kEndsAtHello = 3;  // Connections that may end without an answer to Hello.

constexpr uint32_t kVendorCuda = 1;

// Where programs look for an MPS server; a folder that does not exist has none.
constexpr const char kNoServer[] = "/nonexistent/rubato-no-mps";

enum class Stage : uint8_t {
  kClosed = 0,
  kIdle,     // Connected; nothing is asked.
  kWelcome,  // Hello is sent.
  kOpened,   // OpenDevice is sent.
  kLive,     // SlotMapped is sent.
  kPeers,    // GetPeers is sent.
};

enum class Opening : uint32_t {
  kNotTried = 0,
  kBusy = 1,  // A thread is at it.
  kImpossible = 2,
  kAsked = 3,  // The answer is late; whoever comes by looks for it.
};

enum class Progress : uint8_t {
  kDone = 0,     // The stage is kIdle.
  kPending = 1,  // The answer has not come by the deadline.
  kBroken = 2,   // The stage is kClosed; `failure` says why (kNone: the scheduler is gone).
};

}  // namespace

// Used by the thread that holds ProcessState::talking.
struct Connection {
  Stage stage;
  bool reattaching;  // kWelcome..kPeers go on with the next open device, until none is left.
  bool installing;   // kPeers: `target` becomes the session's view.
  DetachReason failure;
  DetachReason refusal;  // Why the last device was refused; the connection goes on.
  OwnFd socket;
  uint64_t sent_ns;   // When the request was sent.
  uint64_t hello_ns;  // Not before this, Welcome was made.
  uint32_t vendor;

  int ordinal;             // Of the device being opened or refreshed.
  DeviceSession* session;  // It; not yet published if it is being opened for the first time.
  DeviceSession* spare;    // Made for a device that was refused; for the next one.
  DeviceView* target;
  uint32_t peers_first;  // The answer to come starts at this directory index.
  uint64_t peers_generation;
  bool peer_seen[abi::kMaxSessions];

  OwnFd slots[kMaxDevices];   // By ordinal: handed back when re-attaching.
  bool entered[kMaxDevices];  // This connection's scheduler has the session in its directory.
  abi::OpenDeviceMessage requests[kMaxDevices];
  Packet packet;
  char path[112];
  bool promised;  // By RUBATO_SOCKET, or by the directory that a container of a tenant has.
};

namespace {

// ---- Memory -------------------------------------------------------------------------------------

// Regions of one view lie at fixed distances, whatever the page size.
constexpr size_t kUnit = 64 * 1024;
constexpr size_t RoundUp(size_t bytes) {
  return (bytes + kUnit - 1) / kUnit * kUnit;
}
constexpr size_t kProfileAt = RoundUp(sizeof(abi::DeviceRegion));
constexpr size_t kPeersAt = kProfileAt + RoundUp(sizeof(abi::ProfileRegion));
constexpr size_t kPeerStride = RoundUp(sizeof(abi::SlotRegion));
constexpr size_t kViewBytes = kPeersAt + abi::kMaxSessions * kPeerStride;

bool MakeView(DeviceView* view) {
  auto* memory = static_cast<uint8_t*>(ReserveAddresses(kViewBytes + kUnit));
  if (memory == nullptr) return false;
  const uintptr_t past = reinterpret_cast<uintptr_t>(memory) % kUnit;
  if (past != 0) memory += kUnit - past;
  view->memory = memory;
  view->page = reinterpret_cast<const abi::DeviceRegion*>(memory);
  view->profile = reinterpret_cast<const abi::ProfileRegion*>(memory + kProfileAt);
  return true;
}

// A session and its two views, in one piece.
struct SessionMemory {
  DeviceSession session;
  DeviceView views[2];
};

DeviceSession* MakeSession() {
  auto* memory = static_cast<SessionMemory*>(MapZeroed(sizeof(SessionMemory)));
  if (memory == nullptr || !MakeView(&memory->views[0]) || !MakeView(&memory->views[1])) {
    return nullptr;
  }
  return &memory->session;
}

DeviceView* SpareView(DeviceSession* session) {
  auto* memory = reinterpret_cast<SessionMemory*>(session);
  return session->view == &memory->views[0] ? &memory->views[1] : &memory->views[0];
}

void ClearPeer(DeviceView* view, uint32_t index) {
  Peer& peer = view->peers[index];
  if (peer.slot == nullptr) return;
  abi::StoreRelease<const abi::SlotRegion*>(peer.slot, nullptr);
  abi::StoreRelease(peer.generation, 0u);
  MapZerosOver(view->memory + kPeersAt + index * kPeerStride, sizeof(abi::SlotRegion));
}

// Leaves what is there if the region is not acceptable: the session behind it stays unknown.
void MapPeer(DeviceView* view, uint32_t index, uint32_t generation, int fd) {
  Peer& peer = view->peers[index];
  if (peer.slot != nullptr && peer.generation == generation) return;
  ClearPeer(view, index);
  void* mapped;
  if (MapRegion(fd, abi::RegionKind::kSlot, sizeof(abi::SlotRegion), RegionAccess::kRead,
                view->memory + kPeersAt + index * kPeerStride, &mapped) != MapAnswer::kMapped) {
    return;
  }
  abi::StoreRelease(peer.generation, generation);
  abi::StoreRelease(peer.slot, static_cast<const abi::SlotRegion*>(mapped));
}

// ---- One thread at a time -----------------------------------------------------------------------

bool TryTalk() {
  return abi::LoadRelaxed(g_state.talking) == 0 &&
         __atomic_exchange_n(&g_state.talking, 1u, __ATOMIC_ACQUIRE) == 0;
}

bool TryTalkUntil(uint64_t deadline_ns) {
  while (!TryTalk()) {
    if (NowNs() >= deadline_ns) return false;
    SleepFor(kPollNs);
  }
  return true;
}

void StopTalking() {
  abi::StoreRelease(g_state.talking, 0u);
}

void SetOpening(int ordinal, Opening opening) {
  abi::StoreRelease(g_state.opening[ordinal], static_cast<uint32_t>(opening));
  FutexWakeAll(&g_state.opening[ordinal]);
}

// ---- Ends ---------------------------------------------------------------------------------------

bool AnySession() {
  for (DeviceSession* const& session : g_state.devices) {
    if (abi::LoadAcquire(session) != nullptr) return true;
  }
  return false;
}

// Takes back what was made for a device that was never published.
void Discard(Connection* c, Opening opening) {
  DeviceSession* session = c->session;
  c->session = nullptr;
  if (session == nullptr || abi::LoadAcquire(g_state.devices[c->ordinal]) == session) return;
  if (session->slot != nullptr) munmap(session->slot, sizeof(abi::SlotRegion));
  session->slot = nullptr;
  c->spare = session;
  ReleaseFd(&c->slots[c->ordinal]);
  SetOpening(c->ordinal, opening);
}

// Ends the connection. kNone: the scheduler is gone, and may come back.
Progress Break(Connection* c, DetachReason failure) {
  CloseFds(&c->packet);
  Discard(c, failure == DetachReason::kNone ? Opening::kNotTried : Opening::kImpossible);
  ReleaseFd(&c->socket);
  memset(c->entered, 0, sizeof(c->entered));
  c->stage = Stage::kClosed;
  c->reattaching = false;
  c->failure = failure;
  abi::StoreRelease(g_state.lost, 1u);
  return Progress::kBroken;
}

DetachReason ReasonOf(abi::Status status) {
  switch (status) {
    case abi::Status::kVersionMismatch:
      return DetachReason::kVersion;
    case abi::Status::kClockMismatch:
      return DetachReason::kClock;
    case abi::Status::kFull:
      return DetachReason::kNoDirectory;
    case abi::Status::kBadSlot:
      return DetachReason::kBadRegion;
    default:
      return DetachReason::kRefused;
  }
}

// ---- Asking -------------------------------------------------------------------------------------

template <typename Message>
bool Send(Connection* c, const Message& message, Stage next, uint64_t deadline_ns,
          int passed_fd = -1) {
  c->sent_ns = NowNs();
  if (!SendPacket(c->socket, &message, sizeof(message), passed_fd, deadline_ns)) return false;
  c->stage = next;
  return true;
}

void CopyText(char* to, size_t size, const char* from) {
  const size_t length = strnlen(from, size - 1);
  memcpy(to, from, length);
  memset(to + length, 0, size - length);
}

bool SendHello(Connection* c, uint64_t deadline_ns) {
  abi::HelloMessage hello = {};
  hello.header = abi::MakeHeader(abi::MessageType::kHello, sizeof(hello));
  hello.vendor = c->vendor;
  if (c->reattaching) {
    hello.flags =
        abi::kHelloReattach | (IsRealtime() ? abi::kHelloRealtime : abi::kHelloBestEffort);
  }
  hello.pid = CurrentPid();
  hello.shim_build = ShimBuild();
  char path[256];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
  if (length > 0) {
    path[length] = '\0';
    const char* slash = strrchr(path, '/');
    CopyText(hello.program, sizeof(hello.program), slash != nullptr ? slash + 1 : path);
  }
  hello.clock_ns = c->hello_ns = NowNs();
  return Send(c, hello, Stage::kWelcome, deadline_ns);
}

bool SendOpen(Connection* c, uint64_t deadline_ns) {
  const OwnFd& slot = c->slots[c->ordinal];
  return Send(c, c->requests[c->ordinal], Stage::kOpened, deadline_ns,
              c->reattaching ? slot.fd : -1);
}

bool SendGetPeers(Connection* c, uint32_t first, uint64_t deadline_ns) {
  abi::GetPeersMessage ask = {};
  ask.header = abi::MakeHeader(abi::MessageType::kGetPeers, sizeof(ask));
  ask.device = c->target->device;
  ask.first = first;
  c->peers_first = first;
  return Send(c, ask, Stage::kPeers, deadline_ns);
}

// Goes on with the open device after `c->ordinal`, or ends the re-attach.
Progress ReattachNext(Connection* c, uint64_t deadline_ns) {
  for (int ordinal = c->ordinal + 1; ordinal < kMaxDevices; ++ordinal) {
    DeviceSession* session = abi::LoadAcquire(g_state.devices[ordinal]);
    // Without its descriptor a slot cannot be handed back, and it cannot be replaced either: a GPU
    // may write into it. Such a session goes on under the view it has.
    if (session == nullptr || !StillOurs(c->slots[ordinal])) continue;
    c->ordinal = ordinal;
    c->session = session;
    return SendOpen(c, deadline_ns) ? Progress::kPending : Break(c, DetachReason::kNone);
  }
  c->session = nullptr;
  bool some = false, all = true;
  for (int ordinal = 0; ordinal < kMaxDevices; ++ordinal) {
    if (abi::LoadAcquire(g_state.devices[ordinal]) == nullptr) continue;
    some |= c->entered[ordinal];
    all &= c->entered[ordinal];
  }
  // Refused altogether: asked again later, on a connection of its own.
  if (!all && !some && c->refusal != DetachReason::kNone) return Break(c, c->refusal);
  c->reattaching = false;
  c->stage = Stage::kIdle;
  // A session that is in no directory any more goes on as if the scheduler were gone.
  abi::StoreRelease(g_state.lost, all ? 0u : 1u);
  return Progress::kDone;
}

// ---- Taking answers -----------------------------------------------------------------------------

// Is the packet the answer that was awaited, as far as its size and header go? A refusal may be as
// short as its header.
bool Understand(Connection* c, abi::MessageType type, size_t bytes, abi::Status* status) {
  abi::MessageHeader header;
  if (c->packet.bytes < sizeof(header)) return false;
  memcpy(&header, c->packet.data, sizeof(header));
  if (!abi::MessageAccepted(header, type, c->packet.bytes, c->packet.bytes)) return false;
  *status = static_cast<abi::Status>(header.status);
  if (*status == abi::Status::kOk && header.major != abi::kMajor) {
    *status = abi::Status::kVersionMismatch;
  }
  return *status != abi::Status::kOk || c->packet.bytes == bytes;
}

Progress OnWelcome(Connection* c, uint64_t deadline_ns) {
  abi::Status status;
  abi::WelcomeMessage welcome;
  if (!Understand(c, abi::MessageType::kWelcome, sizeof(welcome), &status) ||
      c->packet.fd_count != 0) {
    return Break(c, DetachReason::kRefused);
  }
  if (status != abi::Status::kOk) return Break(c, ReasonOf(status));
  memcpy(&welcome, c->packet.data, sizeof(welcome));
  const uint64_t now_ns = NowNs();
  if (welcome.clock_ns + abi::kMaxClockSkewNs < c->hello_ns ||
      welcome.clock_ns > now_ns + abi::kMaxClockSkewNs) {
    return Break(c, DetachReason::kClock);
  }
  const bool known_class =
      welcome.tenant_class == static_cast<uint32_t>(abi::TenantClass::kRealtime) ||
      welcome.tenant_class == static_cast<uint32_t>(abi::TenantClass::kBestEffort);
  if (!known_class || welcome.mode > static_cast<uint32_t>(abi::Mode::kMps) ||
      welcome.use_mps > 1 ||
      memchr(welcome.mps_directory, '\0', sizeof(welcome.mps_directory)) == nullptr) {
    return Break(c, DetachReason::kRefused);
  }
  abi::StoreRelaxed(g_state.limit_bytes, welcome.limit_bytes);
  abi::StoreRelaxed(g_state.epoch, welcome.epoch);
  if (c->reattaching) {
    // Class and mode were decided before the program's first driver call; they stay.
    c->ordinal = -1;
    return ReattachNext(c, deadline_ns);
  }
  abi::StoreRelaxed(g_state.tenant_class, welcome.tenant_class);
  abi::StoreRelaxed(g_state.mode, welcome.mode);
  abi::StoreRelaxed(g_state.lost, 0u);
  abi::StoreRelease(g_state.adrift, 0u);
  c->stage = Stage::kIdle;
  return Progress::kDone;
}

// Maps what DeviceOpened brought. kNone: done.
DetachReason TakeRegions(Connection* c) {
  constexpr DetachReason kReasons[] = {DetachReason::kNone, DetachReason::kBadRegion,
                                       DetachReason::kMapFailed};
  DeviceSession* session = c->session;
  DeviceView* target = c->target;
  const int slot_fd = c->packet.fds[0];
  void* mapped;
  MapAnswer answer =
      MapRegion(c->packet.fds[1], abi::RegionKind::kDevice, sizeof(abi::DeviceRegion),
                RegionAccess::kRead, target->memory, &mapped);
  if (answer == MapAnswer::kMapped) {
    answer = MapRegion(c->packet.fds[2], abi::RegionKind::kProfile, sizeof(abi::ProfileRegion),
                       RegionAccess::kRead, target->memory + kProfileAt, &mapped);
  }
  if (answer == MapAnswer::kMapped && c->reattaching) {
    FileIdentity identity;
    const FileIdentity& own = c->slots[c->ordinal].identity;
    // Another slot than the one handed over: the GPU would go on writing into the old one.
    if (!IdentifyFile(slot_fd, &identity, nullptr) || identity.device != own.device ||
        identity.inode != own.inode) {
      answer = MapAnswer::kRefused;
    }
  } else if (answer == MapAnswer::kMapped) {
    answer = MapRegion(slot_fd, abi::RegionKind::kSlot, sizeof(abi::SlotRegion),
                       RegionAccess::kWrite, nullptr, &mapped);
    if (answer == MapAnswer::kMapped) {
      session->slot = static_cast<abi::SlotRegion*>(mapped);
      c->packet.fds[0] = -1;
      if (!TakeFd(slot_fd, &c->slots[c->ordinal])) answer = MapAnswer::kFailed;
      abi::SessionLine& line = session->slot->session;
      abi::StoreRelaxed(line.shim_build, ShimBuild());
      abi::StoreRelaxed(line.vendor, c->vendor);
      abi::StoreRelaxed(line.pid_in_namespace, CurrentPid());
      // A spare session has been equipped before.
      if (answer == MapAnswer::kMapped && session->streams == nullptr && !EquipSession(session)) {
        answer = MapAnswer::kFailed;
      }
    }
  }
  return kReasons[static_cast<unsigned>(answer)];
}

Progress OnOpened(Connection* c, uint64_t deadline_ns) {
  abi::Status status;
  abi::DeviceOpenedMessage opened;
  if (!Understand(c, abi::MessageType::kDeviceOpened, sizeof(opened), &status)) {
    return Break(c, DetachReason::kRefused);
  }
  if (status != abi::Status::kOk) {
    CloseFds(&c->packet);
    c->refusal = ReasonOf(status);
    if (c->reattaching) return ReattachNext(c, deadline_ns);
    Discard(c, Opening::kImpossible);
    c->stage = Stage::kIdle;
    return Progress::kDone;
  }
  memcpy(&opened, c->packet.data, sizeof(opened));
  if (opened.session >= abi::kMaxSessions || opened.tenant >= abi::kMaxTenants) {
    return Break(c, DetachReason::kRefused);
  }
  if (c->packet.fd_count != abi::kDeviceOpenedFds) return Break(c, DetachReason::kBadRegion);
  c->target = SpareView(c->session);
  // Its memory is about to become the new view.
  abi::StoreRelease<DeviceView*>(c->session->previous, nullptr);
  for (uint32_t i = 0; i < abi::kMaxSessions; ++i) ClearPeer(c->target, i);
  const DetachReason failure = TakeRegions(c);
  if (failure != DetachReason::kNone) return Break(c, failure);
  c->target->device = opened.device;
  c->target->session = opened.session;
  c->target->tenant = opened.tenant;
  abi::StoreRelaxed(c->target->until_ns, abi::kNever);
  abi::SlotMappedMessage mapped = {};
  mapped.header = abi::MakeHeader(abi::MessageType::kSlotMapped, sizeof(mapped));
  mapped.device = opened.device;
  return Send(c, mapped, Stage::kLive, deadline_ns) ? Progress::kPending
                                                    : Break(c, DetachReason::kNone);
}

Progress OnLive(Connection* c, uint64_t deadline_ns) {
  abi::Status status;
  if (!Understand(c, abi::MessageType::kSessionLive, sizeof(abi::SessionLiveMessage), &status) ||
      c->packet.fd_count != 0) {
    return Break(c, DetachReason::kRefused);
  }
  if (status != abi::Status::kOk) return Break(c, ReasonOf(status));
  c->installing = true;
  memset(c->peer_seen, 0, sizeof(c->peer_seen));
  return SendGetPeers(c, 0, deadline_ns) ? Progress::kPending : Break(c, DetachReason::kNone);
}

// The target becomes the view; a former one holds beside it for its lease.
void Install(Connection* c) {
  DeviceSession* session = c->session;
  DeviceView* former = session->view;
  if (former != nullptr) {
    const uint64_t wanted_ns = former->page->constants.lease_ns;
    const uint64_t lease_ns = wanted_ns < kLongestLeaseNs ? wanted_ns : kLongestLeaseNs;
    abi::StoreRelaxed(former->until_ns, NowNs() + lease_ns);
    abi::StoreRelease(session->previous, former);
  }
  abi::StoreRelease(session->view, c->target);
  c->entered[c->ordinal] = true;
  c->installing = false;
  if (former != nullptr) {
    Count(session, abi::Counter::kReattaches);
    return;
  }
  c->session = nullptr;
  abi::StoreRelease(g_state.devices[c->ordinal], session);
  SetOpening(c->ordinal, Opening::kNotTried);
  // Whoever detached the process meanwhile did not see this slot.
  if (!Attached()) {
    abi::StoreRelease(session->slot->session.detached, abi::LoadAcquire(g_state.reason));
  }
}

Progress OnPeers(Connection* c, uint64_t deadline_ns) {
  abi::Status status;
  abi::PeersMessage peers;
  if (!Understand(c, abi::MessageType::kPeers, sizeof(peers), &status)) {
    return Break(c, DetachReason::kRefused);
  }
  if (status != abi::Status::kOk) return Break(c, ReasonOf(status));
  memcpy(&peers, c->packet.data, sizeof(peers));
  if (peers.count > abi::kMaxPeersPerMessage || peers.count != c->packet.fd_count) {
    return Break(c, DetachReason::kRefused);
  }
  // The answer must lead on, or asking would never end.
  if (peers.next <= c->peers_first || peers.next > abi::kMaxSessions) {
    return Break(c, DetachReason::kRefused);
  }
  if (c->peers_first == 0) c->peers_generation = peers.generation;
  for (uint32_t i = 0; i < peers.count; ++i) {
    const abi::PeerItem& item = peers.items[i];
    if (item.session >= abi::kMaxSessions) return Break(c, DetachReason::kRefused);
    if (item.session == c->target->session) continue;
    c->peer_seen[item.session] = true;
    MapPeer(c->target, item.session, item.generation, c->packet.fds[i]);
  }
  CloseFds(&c->packet);
  if (peers.next < abi::kMaxSessions) {
    return SendGetPeers(c, peers.next, deadline_ns) ? Progress::kPending
                                                    : Break(c, DetachReason::kNone);
  }
  for (uint32_t i = 0; i < abi::kMaxSessions; ++i) {
    if (!c->peer_seen[i]) ClearPeer(c->target, i);
  }
  // The generation of the first part: if the directory changed before the last one was made, the
  // page's generation is another, and the peers are fetched again.
  abi::StoreRelease(c->target->generation, c->peers_generation);
  if (!c->installing) {
    c->session = nullptr;
    c->stage = Stage::kIdle;
    return Progress::kDone;
  }
  Install(c);
  if (c->reattaching) return ReattachNext(c, deadline_ns);
  c->stage = Stage::kIdle;
  return Progress::kDone;
}

// Takes answers, and sends what follows from them, until nothing is asked any more.
Progress Advance(Connection* c, uint64_t deadline_ns) {
  while (c->stage != Stage::kIdle) {
    if (c->stage == Stage::kClosed) return Progress::kBroken;
    switch (ReceivePacket(c->socket, deadline_ns, &c->packet)) {
      case ReceiveAnswer::kPacket:
        break;
      case ReceiveAnswer::kNothing:
        if (NowNs() > c->sent_ns + kAnswerNs) return Break(c, DetachReason::kNone);
        return Progress::kPending;
      case ReceiveAnswer::kEnd:
        return Break(c, DetachReason::kNone);
      case ReceiveAnswer::kBad:
        return Break(c, DetachReason::kRefused);
    }
    Progress progress = Progress::kBroken;
    switch (c->stage) {
      case Stage::kWelcome:
        progress = OnWelcome(c, deadline_ns);
        break;
      case Stage::kOpened:
        progress = OnOpened(c, deadline_ns);
        break;
      case Stage::kLive:
        progress = OnLive(c, deadline_ns);
        break;
      case Stage::kPeers:
        progress = OnPeers(c, deadline_ns);
        break;
      default:
        break;
    }
    CloseFds(&c->packet);
    if (progress == Progress::kBroken) return progress;
  }
  return Progress::kDone;
}

// ---- The process --------------------------------------------------------------------------------

// What the driver will look at in cuInit.
void SetMpsEnvironment(const abi::WelcomeMessage& welcome) {
  if (welcome.use_mps == 0) {
    setenv("CUDA_MPS_PIPE_DIRECTORY", kNoServer, 1);
    return;
  }
  setenv("CUDA_MPS_PIPE_DIRECTORY", welcome.mps_directory, 1);
  unsetenv("CUDA_MPS_LOG_DIRECTORY");
  // 0 is the higher of the two.
  setenv("CUDA_MPS_CLIENT_PRIORITY", IsRealtime() ? "0" : "1", 1);
}

// Connects and says hello, again and again while nobody is there.
DetachReason ReachScheduler(Connection* c) {
  const uint64_t deadline_ns = NowNs() + kAttachNs;
  int ends = 0;
  for (;;) {
    switch (ConnectSocket(c->path, &c->socket)) {
      case ConnectAnswer::kConnected:
        if (SendHello(c, deadline_ns)) {
          const Progress progress = Advance(c, deadline_ns);
          if (progress == Progress::kDone) return DetachReason::kNone;
          if (progress == Progress::kPending) {
            Break(c, DetachReason::kNone);
            return DetachReason::kNoScheduler;
          }
          if (c->failure != DetachReason::kNone) return c->failure;
        } else {
          Break(c, DetachReason::kNone);
        }
        // It may be about to restart. It may also be its way to say no.
        if (++ends == kEndsAtHello) return DetachReason::kRefused;
        break;
      case ConnectAnswer::kAbsent:
        // Nothing was promised to this program, and there is none: it is simply not managed.
        if (!c->promised) return DetachReason::kNoScheduler;
        break;
      case ConnectAnswer::kNobody:
        break;
      case ConnectAnswer::kDenied:
        return DetachReason::kRefused;
      case ConnectAnswer::kFailed:
        return DetachReason::kMapFailed;
      case ConnectAnswer::kBadPath:
        return DetachReason::kNoScheduler;
    }
    if (NowNs() + kConnectAgainNs >= deadline_ns) return DetachReason::kNoScheduler;
    SleepFor(kConnectAgainNs);
  }
}

DetachReason Attach(const Driver& driver) {
  // From here on a child of this process starts afresh.
  if (madvise(&g_state, sizeof(g_state), MADV_WIPEONFORK) == 0) {
    abi::StoreRelaxed(g_state.wiped_on_fork, 1u);
  }
  abi::StoreRelaxed(g_state.owner_pid, CurrentPid());
  CloseInheritedFds();
  if (DisableVariable()) return DetachReason::kDisabled;
  auto* c = static_cast<Connection*>(MapZeroed(sizeof(Connection)));
  if (c == nullptr) return DetachReason::kMapFailed;
  const char* path = SocketVariable();
  c->promised = path != nullptr || access(abi::kDefaultSocketDirectory, F_OK) == 0;
  if (path == nullptr) path = abi::kDefaultSocketPath;
  if (strnlen(path, sizeof(c->path)) == sizeof(c->path)) return DetachReason::kNoScheduler;
  CopyText(c->path, sizeof(c->path), path);
  c->vendor = driver.vendor;
  const DetachReason reason = ReachScheduler(c);
  if (reason == DetachReason::kNoScheduler && c->promised) {
    DebugLine("no scheduler answers; one op at a time until one does", c->path);
    if (driver.vendor == kVendorCuda) SetMpsEnvironment({});
    abi::StoreRelaxed(g_state.tenant_class, static_cast<uint32_t>(abi::TenantClass::kBestEffort));
    abi::StoreRelaxed(g_state.lost, 1u);
    abi::StoreRelaxed(g_state.adrift, 1u);
    abi::StoreRelaxed(g_state.next_contact_ns, NowNs() + kContactPauseNs);
    abi::StoreRelease(g_state.connection, c);
    return DetachReason::kNone;
  }
  if (reason != DetachReason::kNone) return reason;
  abi::WelcomeMessage welcome;
  memcpy(&welcome, c->packet.data, sizeof(welcome));
  if (driver.vendor == kVendorCuda) SetMpsEnvironment(welcome);
  abi::StoreRelaxed(g_state.next_contact_ns, NowNs() + kContactPauseNs);
  abi::StoreRelease(g_state.connection, c);
  return DetachReason::kNone;
}

// ---- Devices ------------------------------------------------------------------------------------

// Asks for the device and waits for the answers for a while. kPending: they are still to come.
Progress StartOpening(Connection* c, int ordinal, const abi::OpenDeviceMessage& request,
                      uint64_t deadline_ns) {
  // Another conversation may be under way.
  Progress progress = Advance(c, deadline_ns);
  if (progress != Progress::kDone) {
    SetOpening(ordinal, Opening::kNotTried);
    return Progress::kBroken;
  }
  c->session = c->spare != nullptr ? c->spare : MakeSession();
  c->spare = nullptr;
  c->refusal = DetachReason::kNone;
  if (c->session == nullptr) {
    c->refusal = DetachReason::kMapFailed;
    SetOpening(ordinal, Opening::kImpossible);
    return Progress::kBroken;
  }
  c->session->ordinal = ordinal;
  c->ordinal = ordinal;
  c->requests[ordinal] = request;
  if (!SendOpen(c, deadline_ns)) return Break(c, DetachReason::kNone);
  return Advance(c, deadline_ns);
}

// After the machine has moved: a process whose first device is out of reach need not try again at
// each call.
void JudgeOpening(Connection* c) {
  DetachReason reason = c->refusal;
  if (c->stage == Stage::kClosed && c->failure != DetachReason::kNone) reason = c->failure;
  if (reason != DetachReason::kNone && !AnySession()) Detach(reason);
}

bool PeersStale(const DeviceView& view) {
  return abi::LoadAcquire(view.page->state.generation) != abi::LoadRelaxed(view.generation);
}

// Fetches the peers of the current view until `deadline_ns`. The caller talks.
void Fetch(DeviceSession* session, uint64_t deadline_ns) {
  Connection* c = abi::LoadAcquire(g_state.connection);
  if (c->stage == Stage::kClosed) return;
  // An answer that is late already is not waited for again.
  if (c->stage != Stage::kIdle && Advance(c, NowNs()) != Progress::kDone) return;
  if (!c->entered[session->ordinal] || !PeersStale(*session->view)) return;
  c->ordinal = session->ordinal;
  c->session = session;
  c->target = session->view;
  c->installing = false;
  memset(c->peer_seen, 0, sizeof(c->peer_seen));
  if (!SendGetPeers(c, 0, deadline_ns)) {
    Break(c, DetachReason::kNone);
    return;
  }
  Advance(c, deadline_ns);
}

// A try to re-attach; its answers are taken as they come.
void Reattach(Connection* c, uint64_t now_ns) {
  if (ConnectSocket(c->path, &c->socket) != ConnectAnswer::kConnected) return;
  c->reattaching = abi::LoadRelaxed(g_state.adrift) == 0;
  c->session = nullptr;
  c->refusal = DetachReason::kNone;
  if (!SendHello(c, now_ns)) Break(c, DetachReason::kNone);
}

void EndLeases(uint64_t now_ns) {
  for (DeviceSession* const& entry : g_state.devices) {
    DeviceSession* session = abi::LoadAcquire(entry);
    if (session == nullptr) continue;
    const DeviceView* previous = abi::LoadAcquire(session->previous);
    if (previous != nullptr && abi::LoadRelaxed(previous->until_ns) <= now_ns) {
      abi::StoreRelease<DeviceView*>(session->previous, nullptr);
    }
  }
}

}  // namespace

void AttachProcess(const Driver& driver) {
  uint32_t phase = abi::LoadAcquire(g_state.phase);
  if (phase != static_cast<uint32_t>(Phase::kFresh) &&
      abi::LoadRelaxed(g_state.wiped_on_fork) == 0) {
    // Where the kernel does not wipe the page for us, the child does. It has one thread as yet.
    const uint32_t owner = abi::LoadRelaxed(g_state.owner_pid);
    if (owner != 0 && owner != CurrentPid()) {
      memset(static_cast<void*>(&g_state), 0, sizeof(g_state));
      phase = static_cast<uint32_t>(Phase::kFresh);
    }
  }
  if (phase == static_cast<uint32_t>(Phase::kAttached) ||
      phase == static_cast<uint32_t>(Phase::kDetached)) {
    return;
  }
  const ErrnoGuard guard;
  uint32_t fresh = static_cast<uint32_t>(Phase::kFresh);
  if (!__atomic_compare_exchange_n(&g_state.phase, &fresh, static_cast<uint32_t>(Phase::kAttaching),
                                   false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    const uint64_t deadline_ns = NowNs() + kAttachNs + kSecond;
    while (abi::LoadAcquire(g_state.phase) == static_cast<uint32_t>(Phase::kAttaching) &&
           NowNs() < deadline_ns) {
      FutexWait(&g_state.phase, static_cast<uint32_t>(Phase::kAttaching), deadline_ns);
    }
    return;
  }
  abi::StoreRelaxed(g_state.debug, DebugVariable() ? 1u : 0u);
  abi::StoreRelaxed(g_state.talking, 1u);
  const DetachReason reason = Attach(driver);
  StopTalking();
  if (reason != DetachReason::kNone) {
    Detach(reason);
    return;
  }
  uint32_t attaching = static_cast<uint32_t>(Phase::kAttaching);
  __atomic_compare_exchange_n(&g_state.phase, &attaching, static_cast<uint32_t>(Phase::kAttached),
                              false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
  FutexWakeAll(&g_state.phase);
  DebugLine("attached", IsRealtime() ? "realtime" : "best-effort");
}

DeviceSession* OpenSession(const Driver& driver, int ordinal) {
  if (ordinal < 0 || ordinal >= kMaxDevices || !Attached()) return nullptr;
  DeviceSession* session = abi::LoadAcquire(g_state.devices[ordinal]);
  if (session != nullptr) return session;
  uint32_t opening = abi::LoadAcquire(g_state.opening[ordinal]);
  if (opening == static_cast<uint32_t>(Opening::kImpossible) ||
      abi::LoadRelaxed(g_state.lost) != 0 || abi::LoadRelaxed(g_state.active_captures) != 0) {
    return nullptr;
  }
  const ErrnoGuard guard;
  if (opening == static_cast<uint32_t>(Opening::kAsked)) {
    if (!TryTalk()) return nullptr;
    Connection* c = abi::LoadAcquire(g_state.connection);
    Advance(c, NowNs());
    JudgeOpening(c);
    StopTalking();
    return abi::LoadAcquire(g_state.devices[ordinal]);
  }
  opening = static_cast<uint32_t>(Opening::kNotTried);
  if (!__atomic_compare_exchange_n(&g_state.opening[ordinal], &opening,
                                   static_cast<uint32_t>(Opening::kBusy), false, __ATOMIC_ACQ_REL,
                                   __ATOMIC_ACQUIRE)) {
    const uint64_t deadline_ns = NowNs() + kOpenOthersNs;
    while (abi::LoadAcquire(g_state.opening[ordinal]) == static_cast<uint32_t>(Opening::kBusy) &&
           NowNs() < deadline_ns) {
      FutexWait(&g_state.opening[ordinal], static_cast<uint32_t>(Opening::kBusy), deadline_ns);
    }
    return abi::LoadAcquire(g_state.devices[ordinal]);
  }
  // The one that had it before may have finished between our two looks.
  session = abi::LoadAcquire(g_state.devices[ordinal]);
  DeviceIdentity identity = {};
  const bool named = session == nullptr && driver.device_identity != nullptr &&
                     driver.device_identity(ordinal, &identity) == 0;
  const uint64_t deadline_ns = NowNs() + kOpenNs;
  if (!named || !TryTalkUntil(deadline_ns)) {
    SetOpening(ordinal, Opening::kNotTried);
    return session;
  }
  abi::OpenDeviceMessage request = {};
  request.header = abi::MakeHeader(abi::MessageType::kOpenDevice, sizeof(request));
  memcpy(request.uuid, identity.uuid, sizeof(request.uuid));
  request.sm_count = identity.sm_count;
  request.ordinal = static_cast<uint32_t>(ordinal);
  request.total_bytes = identity.total_bytes;
  CopyText(request.name, sizeof(request.name), identity.name);
  Connection* c = abi::LoadAcquire(g_state.connection);
  if (StartOpening(c, ordinal, request, deadline_ns) == Progress::kPending) {
    SetOpening(ordinal, Opening::kAsked);
  }
  JudgeOpening(c);
  StopTalking();
  return abi::LoadAcquire(g_state.devices[ordinal]);
}

void RefreshPeers(DeviceSession* session) {
  const DeviceView* view = abi::LoadAcquire(session->view);
  if (!PeersStale(*view) || abi::LoadRelaxed(g_state.lost) != 0) return;
  const uint64_t now_ns = NowNs();
  if (now_ns < abi::LoadRelaxed(session->next_refresh_ns) || !TryTalk()) return;
  const ErrnoGuard guard;
  abi::StoreRelaxed(session->next_refresh_ns, now_ns + kRefreshPauseNs);
  Fetch(session, now_ns + kRefreshNs);
  StopTalking();
}

void AwaitPeers(DeviceSession* session) {
  const ErrnoGuard guard;
  const uint64_t deadline_ns = NowNs() + kLedgerNs;
  while (PeersStale(*abi::LoadAcquire(session->view)) && abi::LoadRelaxed(g_state.lost) == 0 &&
         Attached()) {
    if (TryTalk()) {
      Fetch(session, deadline_ns);
      StopTalking();
    }
    if (NowNs() >= deadline_ns) return;
    if (PeersStale(*abi::LoadAcquire(session->view))) SleepFor(kPollNs);
  }
}

void MaintainConnection(const Driver&, uint64_t now_ns) {
  if (now_ns < abi::LoadRelaxed(g_state.next_contact_ns) || !Attached() || !TryTalk()) return;
  const ErrnoGuard guard;
  Connection* c = abi::LoadAcquire(g_state.connection);
  uint64_t pause_ns = kContactPauseNs;
  if (c->stage == Stage::kIdle && LookAtSocket(c->socket) != PeerState::kQuiet) {
    // Gone; or it speaks without being asked, which is as good.
    Break(c, DetachReason::kNone);
  }
  if (c->stage == Stage::kClosed) {
    Reattach(c, now_ns);
  } else if (Advance(c, now_ns) == Progress::kBroken && c->failure != DetachReason::kNone) {
    pause_ns = kRefusedPauseNs;
    // As at the start: who is turned away is not managed.
    if (abi::LoadRelaxed(g_state.adrift) != 0) Detach(c->failure);
  }
  if (c->stage != Stage::kIdle && c->stage != Stage::kClosed) pause_ns = kMillisecond;
  EndLeases(now_ns);
  abi::StoreRelaxed(g_state.next_contact_ns, now_ns + pause_ns);
  StopTalking();
}

}  // namespace rubato::shim
