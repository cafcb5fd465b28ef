#include "softgpu/device/server.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdarg>
#include <cstring>
#include <deque>
#include <new>
#include <set>
#include <utility>

#include "softgpu/device/address_space.h"
#include "softgpu/device/effects.h"

namespace rubato::softgpu {

using wire::RecordType;

namespace {

constexpr int64_t kPollNs = 50'000;  // Words that the host may write are looked at this often.
constexpr int64_t kSpinNs = 15'000;  // Events nearer than this are not worth a sleep.

const char* TypeName(RecordType type) {
  switch (type) {
    case RecordType::kKernel:
      return "kernel";
    case RecordType::kCopy:
      return "copy";
    case RecordType::kFill:
      return "fill";
    case RecordType::kWriteWord:
      return "write";
    case RecordType::kWaitWord:
      return "wait";
    case RecordType::kEvent:
      return "event";
    case RecordType::kJoin:
      return "join";
    case RecordType::kHostCall:
      return "call";
    case RecordType::kFree:
      return "free";
    case RecordType::kGraphLaunch:
      return "graph";
    default:
      return "other";
  }
}

template <typename T>
bool ReadBody(const unsigned char* data, size_t bytes, T* out) {
  if (bytes < sizeof(T)) return false;
  std::memcpy(out, data, sizeof(T));
  return true;
}

// Names go into JSON strings.
std::string Printable(std::string text) {
  for (char& c : text) {
    if (c < 0x20 || c == '"' || c == '\\' || c == 0x7f) c = '?';
  }
  return text;
}

}  // namespace

// One queued operation or graph node, as its client described it.
struct Server::LiveRecord {
  RecordType type = RecordType::kJoin;
  uint32_t stream = 0;
  uint32_t context = 0;
  uint64_t client = 0;
  uint64_t seq = 0;
  int64_t started_ns = 0;
  union {
    wire::KernelBody kernel;
    wire::CopyBody copy;
    wire::FillBody fill;
    wire::WordBody word;
    wire::EventBody event;
    wire::MapBody map;
  } body{};
  std::vector<unsigned char> inlined;
  std::shared_ptr<Graph> graph;
};

struct Server::Graph {
  std::shared_ptr<GraphShape> shape = std::make_shared<GraphShape>();
  std::vector<LiveRecord> nodes;
  OpId last_launch = 0;
};

struct Server::Context {
  uint32_t device = 0;
  ContextId id = kNoContext;
};

struct Server::Stream {
  uint32_t device = 0;
  uint32_t context = 0;
  StreamId id = 0;
};

struct Server::Client {
  uint64_t serial = 0;
  pid_t pid = 0;
  int socket = -1;
  int pidfd = -1;
  bool greeted = false;
  bool lost = false;
  int64_t bury_at_ns = INT64_MAX;
  uint64_t server = 0;
  int priority = 0;
  uint32_t percentage = 100;
  wire::Shared* shared = nullptr;
  int shared_fd = -1;
  bool progressed = false;
  std::unique_ptr<AddressSpace> space;
  std::map<uint32_t, Context> contexts;
  std::unordered_map<uint32_t, Stream> streams;
  std::unordered_map<uint32_t, std::shared_ptr<Graph>> graphs;
  std::unordered_map<uint32_t, std::string> names;
  std::map<std::pair<uint32_t, uint64_t>, uint32_t> memory;  // (device, offset) -> owners held.
  std::deque<wire::HostCall> due_calls;

  ~Client() {
    if (shared != nullptr) munmap(shared, sizeof(wire::Shared));
    for (int fd : {shared_fd, socket, pidfd}) {
      if (fd >= 0) close(fd);
    }
  }
};

class Server::Device : public GpuListener {
 public:
  Device(Server* server, uint32_t index, const DeviceSpec& spec)
      : server_(server), index_(index), gpu(spec, this), vram(spec.memory_bytes) {}

  void OnStart(const OpRef& op, int64_t at_ns) override { server_->Started(this, op, at_ns); }
  void OnFinish(const OpRef& op, int64_t at_ns, bool cancelled) override {
    server_->Finished(this, op, at_ns, cancelled);
  }
  void OnBlocks(const OpRef& op, int64_t from, int64_t to, uint32_t blocks, uint32_t first,
                uint32_t last) override;
  void OnSwitch(uint32_t from_group, uint32_t to_group, int64_t from, int64_t to) override {
    if (server_->log_ == nullptr) return;
    server_->Log(
        "{\"kind\":\"switch\",\"device\":%u,\"from_group\":%u,\"to_group\":%u,\"model_from_ns\":%"
        "lld,"
        "\"model_to_ns\":%lld,\"host_from_ns\":%lld,\"host_to_ns\":%lld}\n",
        index_, from_group, to_group, static_cast<long long>(from), static_cast<long long>(to),
        static_cast<long long>(server_->ToReal(from)), static_cast<long long>(server_->ToReal(to)));
  }
  const LiveRecord* RecordOf(const OpRef& op) const {
    auto it = live.find(op.op);
    if (it == live.end()) return nullptr;
    if (op.node == kWholeOp) return &it->second;
    const Graph* graph = it->second.graph.get();
    return graph != nullptr && op.node < graph->nodes.size() ? &graph->nodes[op.node] : nullptr;
  }

 private:
  Server* server_;
  uint32_t index_;

 public:
  uint32_t index() const { return index_; }
  Gpu gpu;
  Vram vram;
  std::unordered_map<OpId, LiveRecord> live;
  std::unordered_map<uint64_t, int64_t> node_started;  // Keyed by op and node, for the log.
};

void Server::Device::OnBlocks(const OpRef& op, int64_t from, int64_t to, uint32_t blocks,
                              uint32_t first, uint32_t last) {
  if (server_->log_ == nullptr || from == to) return;
  const LiveRecord* record = RecordOf(op);
  auto whole = live.find(op.op);
  if (record == nullptr || whole == live.end()) return;
  auto client = server_->clients_.find(whole->second.client);
  if (client == server_->clients_.end()) return;
  server_->Log(
      "{\"kind\":\"blocks\",\"type\":\"%s\",\"name\":\"%s\",\"pid\":%d,\"device\":%u,\"context\":%"
      "u,\"stream\":%u,"
      "\"seq\":%llu,\"node\":%d,\"blocks\":%u,\"first_sm\":%u,\"last_sm\":%u,\"model_from_ns\":%"
      "lld,"
      "\"model_to_ns\":%lld,\"host_from_ns\":%lld,\"host_to_ns\":%lld}\n",
      TypeName(record->type), server_->NameOf(*client->second, *record), client->second->pid,
      index_, op.context, whole->second.stream, static_cast<unsigned long long>(whole->second.seq),
      op.node == kWholeOp ? -1 : static_cast<int>(op.node), blocks, first, last,
      static_cast<long long>(from), static_cast<long long>(to),
      static_cast<long long>(server_->ToReal(from)), static_cast<long long>(server_->ToReal(to)));
}

Server::Server(const Settings& settings, int listener, int stop_fd)
    : settings_(settings), listener_(listener), stop_fd_(stop_fd) {
  doorbell_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  prctl(PR_SET_TIMERSLACK, 1);
  ok_ = doorbell_ >= 0;
  for (uint32_t i = 0; i < settings_.devices; ++i) {
    devices_.push_back(std::make_unique<Device>(this, i, settings_.spec));
    ok_ = ok_ && devices_.back()->vram.ok();
  }
  if (!settings_.log_path.empty()) log_ = fopen(settings_.log_path.c_str(), "ae");
  if (log_ != nullptr) setvbuf(log_, nullptr, _IOFBF, 1 << 16);
  base_ns_ = RealNow();
  no_client_since_ns_ = base_ns_;
}

Server::~Server() {
  while (!clients_.empty()) {
    Bury(clients_.begin()->second.get());
  }
  if (log_ != nullptr) fclose(log_);
  if (doorbell_ >= 0) close(doorbell_);
}

int64_t Server::RealNow() const {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
}

int64_t Server::ToModel(int64_t real_ns) const {
  const int64_t since = real_ns - base_ns_;
  return settings_.dilation == 1.0
             ? since
             : static_cast<int64_t>(static_cast<double>(since) / settings_.dilation);
}

int64_t Server::ToReal(int64_t model_ns) const {
  if (settings_.dilation == 1.0) return base_ns_ + model_ns;
  return base_ns_ +
         static_cast<int64_t>(std::ceil(static_cast<double>(model_ns) * settings_.dilation));
}

void Server::Log(const char* format, ...) {
  if (log_ == nullptr) return;
  va_list args;
  va_start(args, format);
  vfprintf(log_, format, args);
  va_end(args);
}

const char* Server::NameOf(const Client& client, const LiveRecord& record) const {
  if (record.type != RecordType::kKernel) return "";
  auto it = client.names.find(record.body.kernel.name);
  return it == client.names.end() ? "" : it->second.c_str();
}

void Server::Run(bool (*before_idle_exit)(void*), void* argument) {
  std::vector<pollfd> fds;
  std::vector<Client*> who;
  for (;;) {
    int64_t real_ns = RealNow();
    TakeRings(real_ns);
    AdvanceAll(ToModel(real_ns));
    CheckWaits(model_now_ns_);

    std::vector<Client*> due;
    bool pending = false;
    for (auto& [serial, client] : clients_) {
      if (client->greeted && !client->due_calls.empty()) {
        wire::Shared* shared = client->shared;
        uint32_t tail = shared->call_tail.load(std::memory_order_relaxed);
        while (!client->due_calls.empty() &&
               tail - shared->call_head.load(std::memory_order_acquire) < wire::kCallSlots) {
          shared->calls[tail % wire::kCallSlots] = client->due_calls.front();
          client->due_calls.pop_front();
          shared->call_tail.store(++tail, std::memory_order_release);
          client->progressed = true;
        }
      }
      if (client->progressed) {
        client->progressed = false;
        client->shared->progress.fetch_add(1);
        if (client->shared->waiters.load() > 0) {
          syscall(SYS_futex, &client->shared->progress, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
        }
      }
      if (client->lost && model_now_ns_ >= client->bury_at_ns) due.push_back(client.get());
    }
    for (Client* client : due) Bury(client);

    int64_t next_model = INT64_MAX;
    for (auto& device : devices_) next_model = std::min(next_model, device->gpu.NextEventAt());
    if (!late_writes_.empty()) next_model = std::min(next_model, late_writes_.top().at_ns);
    for (auto& [serial, client] : clients_) next_model = std::min(next_model, client->bury_at_ns);
    real_ns = RealNow();
    int64_t wake_ns = next_model == INT64_MAX ? INT64_MAX : ToReal(next_model);
    if (!waits_.empty()) wake_ns = std::min(wake_ns, real_ns + kPollNs);
    if (clients_.empty() && settings_.idle_exit_ns > 0) {
      if (real_ns - no_client_since_ns_ >= settings_.idle_exit_ns && before_idle_exit(argument))
        return;
      wake_ns = std::min(
          wake_ns, std::max(real_ns + 10'000'000, no_client_since_ns_ + settings_.idle_exit_ns));
    }

    // Who queues something after this sees the flag and rings.
    for (auto& [serial, client] : clients_) {
      if (client->greeted) client->shared->device_sleeps.store(1);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);
    for (auto& [serial, client] : clients_) pending = pending || !RingEmpty(*client);

    fds.clear();
    who.clear();
    fds.push_back({stop_fd_, POLLIN, 0});
    fds.push_back({listener_, POLLIN, 0});
    fds.push_back({doorbell_, POLLIN, 0});
    for (auto& [serial, client] : clients_) {
      if (client->lost) continue;
      fds.push_back({client->socket, POLLIN, 0});
      who.push_back(client.get());
      if (client->pidfd >= 0) {
        fds.push_back({client->pidfd, POLLIN, 0});
        who.push_back(client.get());
      }
    }
    timespec timeout{3600, 0};
    if (pending || wake_ns - real_ns < kSpinNs) {
      timeout = {0, 0};
    } else if (wake_ns != INT64_MAX) {
      timeout = {(wake_ns - real_ns) / 1'000'000'000, (wake_ns - real_ns) % 1'000'000'000};
    }
    if (log_ != nullptr && timeout.tv_sec + timeout.tv_nsec > 0) fflush(log_);
    const int n = ppoll(fds.data(), fds.size(), &timeout, nullptr);
    for (auto& [serial, client] : clients_) {
      if (client->greeted) client->shared->device_sleeps.store(0, std::memory_order_relaxed);
    }
    if (n <= 0) continue;
    if (fds[0].revents != 0) return;
    if (fds[2].revents != 0) {
      uint64_t drained;
      if (read(doorbell_, &drained, sizeof drained) < 0) drained = 0;
    }
    std::set<Client*> dead;
    for (size_t i = 3; i < fds.size(); ++i) {
      Client* client = who[i - 3];
      if (fds[i].revents == 0 || client->lost) continue;
      if (fds[i].fd == client->pidfd) {
        Lose(client);
      } else {
        ServeRequests(client);
      }
      if (client->lost && !client->greeted) dead.insert(client);
    }
    for (Client* client : dead) Bury(client);
    if (fds[1].revents != 0) Accept();
  }
}

void Server::Accept() {
  const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  auto client = std::make_unique<Client>();
  client->serial = next_client_++;
  client->socket = fd;
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0) client->pid = peer.pid;
  if (client->pid > 0) client->pidfd = static_cast<int>(syscall(SYS_pidfd_open, client->pid, 0));
  client->space = std::make_unique<AddressSpace>(client->pid);
  clients_.emplace(client->serial, std::move(client));
}

void Server::ServeRequests(Client* client) {
  for (;;) {
    wire::Request request;
    iovec part{&request, sizeof request};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 4)];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(client->socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    std::vector<int> got;
    if (n > 0) {
      for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
          int fd;
          std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
          got.push_back(fd);
        }
      }
    }
    if (n != sizeof request) {
      for (int fd : got) close(fd);
      Lose(client);
      return;
    }
    Answer(client, request, got.empty() ? -1 : got[0]);
    for (int fd : got) close(fd);
    if (client->lost) return;
  }
}

bool Server::Hello(Client* client, const wire::Request& request) {
  wire::HelloReply reply{};
  reply.devices = static_cast<uint32_t>(devices_.size());
  reply.client = client->serial;
  reply.dilation = settings_.dilation;
  reply.base_ns = base_ns_;
  std::vector<int> fds;
  if (request.a[0] != wire::kVersion) {
    reply.status = wire::Status::kOtherVersion;
  } else {
    client->shared_fd = memfd_create("rubato-softgpu-client", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (client->shared_fd < 0 || ftruncate(client->shared_fd, sizeof(wire::Shared)) != 0)
      return false;
    fcntl(client->shared_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    void* page = mmap(nullptr, sizeof(wire::Shared), PROT_READ | PROT_WRITE, MAP_SHARED,
                      client->shared_fd, 0);
    if (page == MAP_FAILED) return false;
    client->shared = new (page) wire::Shared;  // Trivial members: the zeroes of the new file stay.
    client->server = request.a[2];
    client->priority = static_cast<int>(request.a[3]);
    client->percentage = static_cast<uint32_t>(std::clamp<uint64_t>(request.a[4], 1, 100));
    fds = {client->shared_fd, doorbell_};
    for (auto& device : devices_) {
      wire::DeviceInfo& info = reply.info[device->index()];
      const DeviceSpec& spec = device->gpu.spec();
      snprintf(info.name, sizeof info.name, "%s", spec.name.c_str());
      std::memcpy(info.uuid, "RubatoSoftGPU\0\0", 16);
      info.uuid[15] = static_cast<unsigned char>(device->index() + 1);
      info.sm_count = spec.sm_count;
      info.threads_per_sm = spec.sm.threads;
      info.registers_per_sm = spec.sm.registers;
      info.shared_bytes_per_sm = spec.sm.shared_bytes;
      info.blocks_per_sm = spec.sm.blocks;
      info.pci_bus = device->index() + 1;
      info.memory_bytes = device->vram.total_bytes();
      fds.push_back(device->vram.fd());
    }
    client->greeted = true;
  }
  iovec part{&reply, sizeof reply};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * (2 + wire::kMaxDevices))];
  std::memset(control, 0, sizeof control);
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(c), fds.data(), sizeof(int) * fds.size());
  }
  return sendmsg(client->socket, &message, MSG_NOSIGNAL) == sizeof reply;
}

void Server::Answer(Client* client, const wire::Request& request, int fd) {
  using wire::RequestType;
  if (request.type == RequestType::kHello || request.type == RequestType::kObserve) {
    if (client->greeted || !Hello(client, request)) Lose(client);
    return;
  }
  if (!client->greeted) {
    Lose(client);
    return;
  }
  const int64_t real_ns = RealNow();
  TakeRings(real_ns);
  AdvanceAll(ToModel(real_ns));
  wire::Reply reply{};
  Device* device = request.device < devices_.size() ? devices_[request.device].get() : nullptr;
  const uint64_t* a = request.a;
  reply.status = device == nullptr ? wire::Status::kInvalid : wire::Status::kOk;
  if (device != nullptr) {
    switch (request.type) {
      case RequestType::kHello:
      case RequestType::kObserve:
        break;
      case RequestType::kCreateContext: {
        uint32_t slot = 0;
        while (slot < wire::kContextSlots && client->contexts.count(slot) != 0) ++slot;
        if (slot == wire::kContextSlots) {
          reply.status = wire::Status::kOutOfMemory;
          break;
        }
        ContextDesc desc;
        desc.server = client->server;
        desc.client_priority = client->priority;
        if (client->percentage < 100) {
          desc.sm_limit = std::max(1u, device->gpu.spec().sm_count * client->percentage / 100);
        }
        client->shared->context_fault[slot].store(0);
        client->contexts[slot] = {request.device, device->gpu.CreateContext(desc)};
        reply.v[0] = slot;
        break;
      }
      case RequestType::kDestroyContext: {
        auto it = client->contexts.find(static_cast<uint32_t>(a[0]));
        if (it == client->contexts.end()) {
          reply.status = wire::Status::kInvalid;
          break;
        }
        const uint32_t slot = it->first;
        devices_[it->second.device]->gpu.DestroyContext(it->second.id, model_now_ns_);
        std::erase_if(client->streams, [&](const auto& s) { return s.second.context == slot; });
        client->contexts.erase(it);
        break;
      }
      case RequestType::kAllocate: {
        const auto offset = device->vram.Allocate(a[0], a[1]);
        if (!offset.has_value()) {
          reply.status = wire::Status::kOutOfMemory;
          break;
        }
        ++client->memory[{request.device, *offset}];
        reply.v[0] = *offset;
        if (a[2] != 0) {
          reply.v[1] = a[2] + *offset;
          client->space->Map(a[2] + *offset, a[0], device->vram.base() + *offset);
          client->space->Reserve(a[2], device->vram.total_bytes());
        }
        break;
      }
      case RequestType::kShare: {
        reply.v[0] = device->vram.Share(a[0]);
        if (reply.v[0] == 0) {
          reply.status = wire::Status::kInvalid;
        } else {
          ++client->memory[{request.device, a[0]}];
        }
        break;
      }
      case RequestType::kFree: {
        auto it = client->memory.find({request.device, a[0]});
        if (it == client->memory.end()) {
          reply.status = wire::Status::kInvalid;
          break;
        }
        if (--it->second == 0) client->memory.erase(it);
        if (a[1] != 0) client->space->Unmap(a[1]);
        device->vram.Free(a[0]);
        break;
      }
      case RequestType::kMemoryInfo:
        reply.v[0] = device->vram.free_bytes();
        reply.v[1] = device->vram.total_bytes();
        break;
      case RequestType::kRegister: {
        struct stat file {};
        const bool shared = fd >= 0 && fstat(fd, &file) == 0 && S_ISREG(file.st_mode) &&
                            a[2] <= static_cast<uint64_t>(file.st_size) &&
                            a[1] <= static_cast<uint64_t>(file.st_size) - a[2] &&
                            client->space->MapShared(a[0], a[1], fd, a[2]);
        reply.v[0] = shared ? 1 : 0;
        break;
      }
      case RequestType::kUnregister:
        client->space->Unmap(a[0]);
        break;
      case RequestType::kBarrier:
        break;
      case RequestType::kUsage: {
        reply.v[0] = static_cast<uint64_t>(device->gpu.busy_ns());
        reply.v[1] = static_cast<uint64_t>(model_now_ns_);
        reply.v[2] = static_cast<uint64_t>(std::llround(device->gpu.clock() * 1e6));
        std::map<pid_t, uint64_t> used;
        for (auto& [serial, other] : clients_) {
          const bool here =
              std::any_of(other->contexts.begin(), other->contexts.end(),
                          [&](const auto& c) { return c.second.device == request.device; });
          if (!here) continue;
          uint64_t& bytes = used[other->pid];
          for (auto& [key, owners] : other->memory) {
            if (key.first == request.device) bytes += device->vram.SizeOf(key.second);
          }
        }
        reply.v[3] = used.size();
        size_t at = 4;
        uint64_t index = 0;
        for (auto& [pid, bytes] : used) {
          if (index++ < a[0] || at + 1 >= std::size(reply.v)) continue;
          reply.v[at++] = static_cast<uint64_t>(pid);
          reply.v[at++] = bytes;
        }
        break;
      }
    }
  }
  if (send(client->socket, &reply, sizeof reply, MSG_NOSIGNAL) != sizeof reply) Lose(client);
}

// Its program is gone. What it had queued goes on for a while, as on a GPU whose owner was killed.
void Server::Lose(Client* client) {
  if (client->lost) return;
  client->lost = true;
  client->bury_at_ns = model_now_ns_ + settings_.teardown_ns;
  close(client->socket);
  client->socket = -1;
}

void Server::Bury(Client* client) {
  for (auto& [slot, context] : client->contexts) {
    devices_[context.device]->gpu.DestroyContext(context.id, model_now_ns_);
  }
  std::erase_if(waits_, [&](const Wait& wait) { return wait.client == client->serial; });
  std::erase_if(last_late_write_,
                [&](const auto& entry) { return entry.first >> 32 == client->serial; });
  for (auto& [key, owners] : client->memory) {
    for (uint32_t i = 0; i < owners; ++i) devices_[key.first]->vram.Free(key.second);
  }
  clients_.erase(client->serial);
  if (clients_.empty()) no_client_since_ns_ = RealNow();
}

bool Server::RingEmpty(const Client& client) const {
  return !client.greeted || client.shared->tail.load(std::memory_order_acquire) ==
                                client.shared->head.load(std::memory_order_relaxed);
}

// Takes everything that is queued, in the order of the programs' clocks. True if there was
// anything.
bool Server::TakeRings(int64_t real_ns) {
  const int64_t latest_ns = ToModel(real_ns);
  bool any = false;
  std::vector<unsigned char> bytes;
  for (;;) {
    Client* first = nullptr;
    wire::Record first_record{};
    for (auto& [serial, client] : clients_) {
      if (RingEmpty(*client)) continue;
      wire::Shared* shared = client->shared;
      for (;;) {
        const uint64_t head = shared->head.load(std::memory_order_relaxed);
        const uint64_t tail = shared->tail.load(std::memory_order_acquire);
        if (head == tail) break;
        wire::Record record;
        const uint64_t at = head % wire::kRingBytes;
        if (tail - head > wire::kRingBytes || tail - head < sizeof record ||
            at + sizeof record > wire::kRingBytes) {
          Lose(client.get());
          shared->head.store(tail);
          break;
        }
        std::memcpy(&record, shared->ring + at, sizeof record);
        if (record.bytes < sizeof record || record.bytes % 8 != 0 || record.bytes > tail - head ||
            at + record.bytes > wire::kRingBytes) {
          Lose(client.get());
          shared->head.store(tail);
          break;
        }
        if (record.type == RecordType::kPad) {
          shared->head.store(head + record.bytes, std::memory_order_release);
          continue;
        }
        if (first == nullptr || record.stamp_ns < first_record.stamp_ns) {
          first = client.get();
          first_record = record;
        }
        break;
      }
    }
    if (first == nullptr) return any;
    any = true;
    wire::Shared* shared = first->shared;
    const uint64_t head = shared->head.load(std::memory_order_relaxed);
    if (first_record.bytes > wire::kMaxRecordBytes) {
      Lose(first);
      shared->head.store(shared->tail.load());
      continue;
    }
    bytes.resize(first_record.bytes);
    std::memcpy(bytes.data(), shared->ring + head % wire::kRingBytes, bytes.size());
    std::memcpy(bytes.data(), &first_record,
                sizeof first_record);  // What was checked is what is used.
    shared->head.store(head + first_record.bytes, std::memory_order_release);
    first->progressed = true;  // A full ring has room again.
    const int64_t stamp_ns = std::clamp(first_record.stamp_ns, base_ns_, real_ns);
    const int64_t at_ns =
        std::clamp(ToModel(stamp_ns), model_now_ns_, std::max(model_now_ns_, latest_ns));
    AdvanceAll(at_ns);
    Take(first, bytes, at_ns);
  }
}

void Server::Take(Client* client, const std::vector<unsigned char>& bytes, int64_t model_ns) {
  wire::Record record;
  std::memcpy(&record, bytes.data(), sizeof record);
  const unsigned char* data = bytes.data() + sizeof record;
  const size_t size = bytes.size() - sizeof record;
  LiveRecord live;
  live.type = record.type;
  live.stream = record.stream;
  live.client = client->serial;
  live.seq = record.seq;
  std::vector<OpId> after;
  const uint64_t own = client->serial << wire::kClientShift;
  bool good = true;
  switch (record.type) {
    case RecordType::kKernel:
      good = ReadBody(data, size, &live.body.kernel);
      break;
    case RecordType::kCopy:
      good = ReadBody(data, size, &live.body.copy) &&
             live.body.copy.inline_bytes <= size - sizeof(wire::CopyBody);
      if (good && live.body.copy.inline_bytes > 0) {
        const unsigned char* from = data + sizeof(wire::CopyBody);
        live.inlined.assign(from, from + live.body.copy.inline_bytes);
      }
      break;
    case RecordType::kFill:
      good = ReadBody(data, size, &live.body.fill);
      break;
    case RecordType::kWriteWord:
    case RecordType::kWaitWord:
      good = ReadBody(data, size, &live.body.word);
      break;
    case RecordType::kEvent:
      good = ReadBody(data, size, &live.body.event) && live.body.event.slot < wire::kEventSlots;
      break;
    case RecordType::kFree:
      good = ReadBody(data, size, &live.body.map) && live.body.map.device < devices_.size();
      break;
    case RecordType::kJoin:
      good = uint64_t{record.extra} * 8 <= size;
      for (uint32_t i = 0; good && i < record.extra; ++i) {
        uint64_t id;
        std::memcpy(&id, data + i * 8, 8);
        after.push_back(id >> wire::kClientShift != 0 ? id : own | id);
      }
      break;
    case RecordType::kHostCall:
      break;
    case RecordType::kGraphLaunch: {
      auto it = client->graphs.find(record.extra);
      good = it != client->graphs.end();
      if (!good) break;
      live.graph = it->second;
      after.push_back(live.graph->last_launch);
      live.graph->last_launch = own | record.seq;
      break;
    }
    case RecordType::kHostDone: {
      wire::HostDoneBody done;
      if (!ReadBody(data, size, &done)) break;
      for (auto& device : devices_) device->gpu.Release(own | done.seq, done.node, model_ns);
      return;
    }
    case RecordType::kGraphBegin: {
      // Launches under way keep the old nodes; the next launch still goes behind them.
      std::shared_ptr<Graph>& graph = client->graphs[record.extra];
      auto fresh = std::make_shared<Graph>();
      if (graph != nullptr) fresh->last_launch = graph->last_launch;
      graph = std::move(fresh);
      return;
    }
    case RecordType::kGraphNode:
      DefineGraphNode(client, record, data, size);
      return;
    case RecordType::kGraphDrop:
      client->graphs.erase(record.extra);
      return;
    case RecordType::kName:
      client->names[record.extra] = Printable(std::string(
          reinterpret_cast<const char*>(data), strnlen(reinterpret_cast<const char*>(data), size)));
      return;
    case RecordType::kStreamCreate: {
      wire::StreamBody body;
      if (!ReadBody(data, size, &body) || record.stream >= wire::kStreamSlots) return;
      auto context = client->contexts.find(body.context);
      if (context == client->contexts.end()) return;
      StreamDesc desc;
      desc.kind = static_cast<StreamKind>(std::min<uint32_t>(body.kind, 2));
      desc.priority = body.priority;
      desc.sms = {body.first_sm, body.sm_count};
      Gpu& gpu = devices_[context->second.device]->gpu;
      client->streams[record.stream] = {context->second.device, body.context,
                                        gpu.CreateStream(context->second.id, desc)};
      return;
    }
    case RecordType::kStreamDestroy: {
      auto it = client->streams.find(record.stream);
      if (it == client->streams.end()) return;
      devices_[it->second.device]->gpu.DestroyStream(it->second.id);
      client->streams.erase(it);
      return;
    }
    case RecordType::kMap: {
      wire::MapBody map;
      if (!ReadBody(data, size, &map) || map.device >= devices_.size()) return;
      const Vram& vram = devices_[map.device]->vram;
      if (map.offset > vram.total_bytes() || map.bytes > vram.total_bytes() - map.offset) return;
      client->space->Map(map.address, map.bytes, vram.base() + map.offset);
      return;
    }
    case RecordType::kUnmap: {
      wire::MapBody map;
      if (ReadBody(data, size, &map)) client->space->Unmap(map.address);
      return;
    }
    case RecordType::kPad:
      return;
  }
  auto stream = client->streams.find(record.stream);
  if (!good || stream == client->streams.end()) {
    Lose(client);
    return;
  }
  live.context = stream->second.context;
  Device* device = devices_[stream->second.device].get();
  const OpId id = own | record.seq;
  if (device->live.count(id) != 0) {
    Lose(client);
    return;
  }
  Op op = BuildOp(client, live, std::move(after));
  device->live.emplace(id, std::move(live));
  device->gpu.Submit(stream->second.id, id, std::move(op), model_ns);
}

Op Server::BuildOp(Client* client, const LiveRecord& record, std::vector<OpId> after) const {
  (void)client;
  Op op;
  op.after = std::move(after);
  switch (record.type) {
    case RecordType::kKernel: {
      const wire::KernelBody& k = record.body.kernel;
      op.kind = OpKind::kKernel;
      op.kernel.blocks = k.blocks;
      op.kernel.threads_per_block = k.threads_per_block;
      op.kernel.registers_per_thread = k.registers_per_thread;
      op.kernel.shared_bytes_per_block = k.shared_bytes_per_block;
      op.kernel.block_ns = std::clamp<int64_t>(k.block_ns, 0, 1'000'000'000'000);
      op.kernel.until_released = k.effect == wire::Effect::kWait;
      op.kernel.together = k.cooperative != 0;
      op.kernel.watts_per_block = std::isfinite(k.watts_per_block) ? k.watts_per_block : 0;
      op.kernel.bytes_per_ns_per_block =
          std::isfinite(k.bytes_per_ns_per_block) ? k.bytes_per_ns_per_block : 0;
      break;
    }
    case RecordType::kCopy: {
      const wire::CopyBody& c = record.body.copy;
      op.bytes = c.width * c.height * c.depth;
      op.kind = c.route == wire::CopyRoute::kHostToDevice   ? OpKind::kHostToDevice
                : c.route == wire::CopyRoute::kDeviceToHost ? OpKind::kDeviceToHost
                                                            : OpKind::kDeviceCopy;
      break;
    }
    case RecordType::kFill:
      op.kind = OpKind::kDeviceCopy;
      op.bytes =
          record.body.fill.width * record.body.fill.height * record.body.fill.element_bytes / 2;
      break;
    case RecordType::kWriteWord:
      op.kind = OpKind::kWriteWord;
      break;
    case RecordType::kWaitWord:
      op.kind = OpKind::kWaitWord;
      break;
    case RecordType::kHostCall:
      op.kind = OpKind::kHostCall;
      break;
    case RecordType::kGraphLaunch:
      op.kind = OpKind::kGraph;
      op.graph = record.graph->shape;
      break;
    default:
      break;
  }
  return op;
}

void Server::DefineGraphNode(Client* client, const wire::Record& record, const unsigned char* data,
                             size_t size) {
  auto it = client->graphs.find(record.extra);
  wire::GraphNodeBody node;
  if (it == client->graphs.end() || !ReadBody(data, size, &node)) return;
  data += sizeof node;
  size -= sizeof node;
  Graph& graph = *it->second;
  const size_t needs_bytes = (size_t{node.needs} * 4 + 7) / 8 * 8;
  GraphNode shape;
  LiveRecord live;
  live.type = node.type;
  live.client = client->serial;
  if (needs_bytes <= size) {
    for (uint32_t i = 0; i < node.needs; ++i) {
      uint32_t need;
      std::memcpy(&need, data + size_t{i} * 4, 4);
      if (need < graph.nodes.size()) shape.needs.push_back(need);
    }
    data += needs_bytes;
    size -= needs_bytes;
  }
  bool good = false;
  switch (node.type) {
    case RecordType::kKernel:
      good = ReadBody(data, size, &live.body.kernel);
      break;
    case RecordType::kCopy:
      good = ReadBody(data, size, &live.body.copy);
      break;
    case RecordType::kFill:
      good = ReadBody(data, size, &live.body.fill);
      break;
    case RecordType::kWriteWord:
    case RecordType::kWaitWord:
      good = ReadBody(data, size, &live.body.word);
      break;
    case RecordType::kEvent:
      good = ReadBody(data, size, &live.body.event) && live.body.event.slot < wire::kEventSlots;
      break;
    case RecordType::kHostCall:
      good = true;
      break;
    default:
      break;
  }
  if (!good) live.type = RecordType::kJoin;
  if (live.type == RecordType::kCopy) live.body.copy.inline_bytes = 0;
  shape.op = BuildOp(client, live, {});
  shape.sms = {node.first_sm, node.sm_count};
  shape.has_priority = node.has_priority != 0;
  shape.priority = node.priority;
  graph.shape->nodes.push_back(std::move(shape));
  graph.nodes.push_back(std::move(live));
}

void Server::AdvanceAll(int64_t model_ns) {
  for (;;) {
    int64_t next = late_writes_.empty() ? INT64_MAX : late_writes_.top().at_ns;
    for (auto& device : devices_) next = std::min(next, device->gpu.NextEventAt());
    if (next > model_ns) break;
    model_now_ns_ = std::max(model_now_ns_, next);
    for (auto& device : devices_) device->gpu.Advance(model_now_ns_);
    LandLateWrites(model_now_ns_);
    if (memory_written_) CheckWaits(model_now_ns_);
  }
  model_now_ns_ = std::max(model_now_ns_, model_ns);
  for (auto& device : devices_) device->gpu.Advance(model_now_ns_);
}

void Server::CheckWaits(int64_t model_ns) {
  memory_written_ = false;
  std::vector<Wait> satisfied;
  std::erase_if(waits_, [&](const Wait& wait) {
    auto client = clients_.find(wait.client);
    if (client == clients_.end()) return true;
    bool fault = false;
    if (!Satisfied(wait.word, *client->second->space, &fault)) return false;
    if (fault) {
      const auto& live = devices_[wait.device]->live;
      auto it = live.find(wait.op);
      if (it != live.end()) Fail(client->second.get(), it->second.context);
    }
    satisfied.push_back(wait);
    return true;
  });
  for (const Wait& wait : satisfied)
    devices_[wait.device]->gpu.Release(wait.op, wait.node, model_ns);
}

void Server::Started(Device* device, const OpRef& op, int64_t at_ns) {
  auto it = device->live.find(op.op);
  const LiveRecord* record = device->RecordOf(op);
  if (record == nullptr) return;
  if (op.node == kWholeOp) {
    it->second.started_ns = at_ns;
  } else if (log_ != nullptr) {
    device->node_started[op.op << 20 ^ op.node] = at_ns;
  }
  const uint64_t client_serial = it->second.client;
  if (record->type == RecordType::kWaitWord) {
    waits_.push_back({client_serial, op.op, op.node, device->index(), record->body.word});
    memory_written_ = true;
  } else if (record->type == RecordType::kKernel &&
             record->body.kernel.effect == wire::Effect::kWait) {
    wire::WordBody word{record->body.kernel.args[0], record->body.kernel.args[3], 32, 0};
    waits_.push_back({client_serial, op.op, op.node, device->index(), word});
    memory_written_ = true;
  } else if (record->type == RecordType::kHostCall) {
    auto client = clients_.find(client_serial);
    if (client != clients_.end()) client->second->due_calls.push_back({it->second.seq, op.node, 0});
  }
}

void Server::Finished(Device* device, const OpRef& op, int64_t at_ns, bool cancelled) {
  auto it = device->live.find(op.op);
  const LiveRecord* record = device->RecordOf(op);
  if (record == nullptr) return;
  LiveRecord& whole = it->second;
  auto found = clients_.find(whole.client);
  Client* client = found == clients_.end() ? nullptr : found->second.get();
  if (client != nullptr && !cancelled) CarryOut(client, *record, whole, at_ns);
  if (log_ != nullptr && client != nullptr) {
    int64_t started = whole.started_ns;
    if (op.node != kWholeOp) {
      auto node = device->node_started.find(op.op << 20 ^ op.node);
      if (node != device->node_started.end()) {
        started = node->second;
        device->node_started.erase(node);
      }
    }
    Log("{\"kind\":\"op\",\"type\":\"%s\",\"name\":\"%s\",\"pid\":%d,\"device\":%u,\"context\":%u,"
        "\"stream\":%u,"
        "\"seq\":%llu,\"node\":%d,\"cancelled\":%s,\"model_from_ns\":%lld,\"model_to_ns\":%lld,"
        "\"host_from_ns\":%lld,"
        "\"host_to_ns\":%lld}\n",
        TypeName(record->type), NameOf(*client, *record), client->pid, device->index(), op.context,
        whole.stream, static_cast<unsigned long long>(whole.seq),
        op.node == kWholeOp ? -1 : static_cast<int>(op.node), cancelled ? "true" : "false",
        static_cast<long long>(started), static_cast<long long>(at_ns),
        static_cast<long long>(ToReal(started)), static_cast<long long>(ToReal(at_ns)));
  }
  if (op.node != kWholeOp) return;
  if (client != nullptr) {
    wire::StreamSlot& slot = client->shared->streams[whole.stream];
    slot.completed_seq.store(whole.seq, std::memory_order_release);
    slot.completed_count.fetch_add(1, std::memory_order_release);
    client->progressed = true;
  }
  device->live.erase(it);
}

void Server::CarryOut(Client* client, const LiveRecord& record, const LiveRecord& whole,
                      int64_t at_ns) {
  if (client->shared->context_fault[whole.context].load(std::memory_order_relaxed) != 0) return;
  bool good = true;
  switch (record.type) {
    case RecordType::kKernel:
      good = Apply(record.body.kernel, client->space.get());
      memory_written_ = true;
      break;
    case RecordType::kCopy:
      good = Apply(record.body.copy, record.inlined.data(), client->space.get());
      memory_written_ = true;
      break;
    case RecordType::kFill:
      good = Apply(record.body.fill, client->space.get());
      memory_written_ = true;
      break;
    case RecordType::kWriteWord: {
      if (settings_.late_writes_ns > 0) {
        const int64_t delay =
            static_cast<int64_t>(random_() % static_cast<uint64_t>(settings_.late_writes_ns));
        // Late and out of order across streams, never within one.
        int64_t& last = last_late_write_[client->serial << 32 | whole.stream];
        last = std::max(last, at_ns + delay);
        late_writes_.push({last, late_order_++, client->serial, record.body.word});
        break;
      }
      good = client->space->StoreWord(record.body.word.address, record.body.word.value,
                                      record.body.word.bits);
      memory_written_ = true;
      break;
    }
    case RecordType::kEvent: {
      wire::EventSlot& slot = client->shared->events[record.body.event.slot];
      slot.at_ns.store(ToReal(at_ns), std::memory_order_relaxed);
      slot.done_seq.store(whole.seq, std::memory_order_release);
      break;
    }
    case RecordType::kFree: {
      const wire::MapBody& map = record.body.map;
      auto it = client->memory.find({map.device, map.offset});
      if (it == client->memory.end()) break;
      if (--it->second == 0) client->memory.erase(it);
      client->space->Unmap(map.address);
      devices_[map.device]->vram.Free(map.offset);
      break;
    }
    default:
      break;
  }
  if (!good && !client->lost) Fail(client, whole.context);
}

// A fault ends its context; under a shared server it ends every context there.
void Server::Fail(Client* client, uint32_t context_slot) {
  client->shared->context_fault[context_slot].store(
      static_cast<uint32_t>(wire::Fault::kIllegalAddress));
  client->progressed = true;
  if (client->server == 0) return;
  for (auto& [serial, other] : clients_) {
    if (other->server != client->server || !other->greeted) continue;
    for (auto& [slot, context] : other->contexts) {
      other->shared->context_fault[slot].store(static_cast<uint32_t>(
          other.get() == client && slot == context_slot ? wire::Fault::kIllegalAddress
                                                        : wire::Fault::kServerLost));
    }
    other->progressed = true;
  }
}

void Server::LandLateWrites(int64_t model_ns) {
  while (!late_writes_.empty() && late_writes_.top().at_ns <= model_ns) {
    const LateWrite write = late_writes_.top();
    late_writes_.pop();
    auto client = clients_.find(write.client);
    if (client == clients_.end()) continue;
    client->second->space->StoreWord(write.word.address, write.word.value, write.word.bits);
    memory_written_ = true;
  }
}

}  // namespace rubato::softgpu
