#include "scheduler/daemon/attach_server.h"

#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <vector>

#include "base/log.h"
#include "base/unix_socket.h"

namespace rubato::sched {

using base::Error;
using base::ErrorCode;

namespace {

constexpr size_t kTokenBytes = 16;
// After a descriptor could not be had, the next attempt waits for this long instead of spinning.
constexpr Nanos kAcceptPauseNs = 100 * base::kMillisecond;

base::Result<std::string> DrawToken() {
  std::array<uint8_t, kTokenBytes> bytes;
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
    return base::SystemError("cannot draw random bytes");
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string token;
  for (const uint8_t byte : bytes) {
    token.push_back(kDigits[byte >> 4]);
    token.push_back(kDigits[byte & 15]);
  }
  return token;
}

}  // namespace

struct AttachServer::Listener {
  std::string token;
  std::string path;
  bool made_folder = false;
  base::UniqueFd fd;
  bool any_user = false;
  size_t connections = 0;
  base::EventLoop::TimerId pause = 0;  // While accepting rests.
};

struct AttachServer::Connection {
  Connection(Scheduler* scheduler, TenantId owner, const base::PeerCredentials& who)
      : tenant(owner), peer(who), protocol(scheduler, owner, who.pid) {}
  base::UniqueFd fd;
  base::UniqueFd process;  // Readable once the process has ended.
  TenantId tenant;
  base::PeerCredentials peer;
  bool counted = false;  // In `per_user_`.
  AttachProtocol protocol;
  base::EventLoop::TimerId hello_timer = 0;
};

AttachServer::AttachServer(base::EventLoop* loop, const base::Clock* clock, Scheduler* scheduler,
                           AttachDirectory directory, AttachLimits limits)
    : loop_(loop),
      clock_(clock),
      scheduler_(scheduler),
      directory_(std::move(directory)),
      limits_(limits) {}

AttachServer::~AttachServer() {
  StopListening();
  for (const auto& [fd, connection] : connections_) {
    loop_->RemoveTimer(connection->hello_timer);
    loop_->RemoveFd(fd);
    if (connection->process.valid()) loop_->RemoveFd(connection->process.get());
  }
}

void AttachServer::StopListening() {
  for (const auto& [tenant, listener] : listeners_) StopListening(listener.get());
  std::vector<int> silent;
  for (const auto& [fd, connection] : connections_) {
    if (!connection->protocol.greeted()) silent.push_back(fd);
  }
  for (const int fd : silent) Drop(fd);
}

void AttachServer::StopListening(Listener* listener) {
  if (!listener->fd.valid()) return;
  loop_->RemoveTimer(listener->pause);
  listener->pause = 0;
  loop_->RemoveFd(listener->fd.get());
  listener->fd.Reset();
  directory_.Remove(listener->token, listener->made_folder);
}

base::Result<std::string> AttachServer::Open(TenantId tenant, const std::string& wanted) {
  const core::TenantSpec* spec = scheduler_->FindTenant(tenant);
  if (spec == nullptr || listeners_.contains(tenant))
    return Error{ErrorCode::kInvalid, "the tenant has no need of a socket"};
  auto listener = std::make_unique<Listener>();
  if (wanted.empty()) {
    auto drawn = DrawToken();
    if (!drawn) return drawn.error();
    listener->token = *drawn;
  } else {
    if (!IsAttachToken(wanted))
      return Error{ErrorCode::kInvalid,
                   "attach_token must be 32 lower-case hexadecimal digits, or empty"};
    listener->token = wanted;
  }
  for (const auto& [id, other] : listeners_) {
    if (other->token == listener->token)
      return Error{ErrorCode::kExists, "the attach_token belongs to another tenant; leave it out"};
  }
  listener->any_user = spec->any_user;
  auto place = directory_.Listen(listener->token, spec->any_user);
  if (!place) return place.error();
  listener->path = std::move(place->path);
  listener->made_folder = place->made;
  listener->fd = std::move(place->listener);
  auto added =
      loop_->AddFd(listener->fd.get(), EPOLLIN, [this, tenant](uint32_t) { Accept(tenant); });
  if (!added) {
    directory_.Remove(listener->token, listener->made_folder);
    return added.error();
  }
  std::string token = listener->token;
  listeners_.emplace(tenant, std::move(listener));
  return token;
}

void AttachServer::Close(TenantId tenant) {
  const auto found = listeners_.find(tenant);
  if (found == listeners_.end()) return;
  std::vector<int> connections;
  for (const auto& [fd, connection] : connections_) {
    if (connection->tenant == tenant) connections.push_back(fd);
  }
  for (const int fd : connections) Drop(fd);
  StopListening(found->second.get());
  listeners_.erase(found);
}

std::string AttachServer::PathOf(TenantId tenant) const {
  const auto found = listeners_.find(tenant);
  return found == listeners_.end() ? std::string() : found->second->path;
}

std::string AttachServer::TokenOf(TenantId tenant) const {
  const auto found = listeners_.find(tenant);
  return found == listeners_.end() ? std::string() : found->second->token;
}

void AttachServer::Accept(TenantId tenant) {
  const auto found = listeners_.find(tenant);
  if (found == listeners_.end()) return;
  Listener& listener = *found->second;
  auto accepted = base::AcceptUnix(listener.fd.get());
  if (!accepted) {
    // Out of descriptors, most likely: the waiting connection stays, so rest before trying again.
    base::LogWarning("cannot accept a process: {}", accepted.error().message);
    loop_->RemoveFd(listener.fd.get());
    listener.pause = loop_->AddTimer(clock_->NowNs() + kAcceptPauseNs, [this, tenant] {
      const auto again = listeners_.find(tenant);
      if (again == listeners_.end()) return;
      again->second->pause = 0;
      (void)loop_->AddFd(again->second->fd.get(), EPOLLIN,
                         [this, tenant](uint32_t) { Accept(tenant); });
    });
    return;
  }
  if (!accepted->has_value()) return;
  base::UniqueFd fd = std::move(**accepted);
  auto peer = base::PeerOf(fd.get());
  if (!peer) return;
  if (!listener.any_user && peer->uid != ::geteuid() && peer->uid != 0) {
    scheduler_->CountRefusal(abi::Status::kNotAllowed);
    base::LogWarning("tenant={} process {} of user {} may not attach here", tenant, peer->pid,
                     peer->uid);
    return;
  }
  const auto user = per_user_.find(peer->uid);
  const bool user_full =
      !listener.any_user && user != per_user_.end() && user->second >= limits_.per_user;
  if (connections_.size() >= limits_.connections || listener.connections >= limits_.per_tenant ||
      user_full) {
    scheduler_->CountRefusal(abi::Status::kFull);
    return;
  }
  auto connection = std::make_unique<Connection>(scheduler_, tenant, *peer);
  const int number = fd.get();
  connection->fd = std::move(fd);
  if (auto added = loop_->AddFd(number, EPOLLIN, [this, number](uint32_t) { Read(number); });
      !added) {
    return;
  }
  // A forked child may keep the connection open after its parent is gone; the session is the
  // parent's.
  connection->process = base::PeerProcess(number, *peer);
  if (connection->process.valid() &&
      !loop_->AddFd(connection->process.get(), EPOLLIN, [this, number](uint32_t) { Drop(number); }))
    connection->process.Reset();
  connection->hello_timer =
      loop_->AddTimer(clock_->NowNs() + limits_.hello_ns, [this, number] { Drop(number); });
  ++listener.connections;
  connection->counted = !listener.any_user;
  if (connection->counted) ++per_user_[peer->uid];
  connections_.emplace(number, std::move(connection));
}

void AttachServer::Read(int fd) {
  const auto found = connections_.find(fd);
  if (found == connections_.end()) return;
  Connection& connection = *found->second;
  // One byte more than the longest message: a longer packet is seen as such.
  std::array<std::byte, abi::kMaxMessageBytes + 1> buffer;
  base::Received received = base::ReceivePacket(fd, buffer);
  if (received.state == base::PacketState::kNothing) return;
  if (received.state == base::PacketState::kEnd) {
    Drop(fd);
    return;
  }
  const size_t length = std::min(received.packet.bytes, buffer.size());
  const AttachReply reply = connection.protocol.OnPacket(
      std::span<const std::byte>(buffer.data(), length), received.packet.cut,
      std::move(received.packet.fds), clock_->NowNs());
  if (connection.protocol.greeted() && connection.hello_timer != 0) {
    loop_->RemoveTimer(connection.hello_timer);
    connection.hello_timer = 0;
  }
  bool end = reply.end;
  if (!reply.bytes.empty() && !base::SendPacket(fd, reply.bytes, reply.fds)) end = true;
  if (end) {
    if (connection.protocol.last_refusal() != abi::Status::kOk)
      base::LogInfo("tenant={} pid={} attach refused with status {}", connection.tenant,
                    connection.peer.pid, static_cast<uint32_t>(connection.protocol.last_refusal()));
    Drop(fd);
  }
  if (activity_) activity_();
}

void AttachServer::Drop(int fd) {
  const auto found = connections_.find(fd);
  if (found == connections_.end()) return;
  const std::unique_ptr<Connection> connection = std::move(found->second);
  connections_.erase(found);
  loop_->RemoveTimer(connection->hello_timer);
  loop_->RemoveFd(fd);
  if (connection->process.valid()) loop_->RemoveFd(connection->process.get());
  if (const auto listener = listeners_.find(connection->tenant); listener != listeners_.end())
    --listener->second->connections;
  if (const auto user = per_user_.find(connection->peer.uid);
      connection->counted && user != per_user_.end() && --user->second == 0) {
    per_user_.erase(user);
  }
  connection->protocol.OnEnd(clock_->NowNs());
  if (activity_) activity_();
}

}  // namespace rubato::sched
