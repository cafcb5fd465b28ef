#include "deviceplugin/plugin_server.h"

#include <grpcpp/server_posix.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/unix_socket.h"
#include "proto/kubelet/deviceplugin_v1beta1.grpc.pb.h"

namespace rubato::deviceplugin {
namespace {

// All slots of a large node, named with 63 characters each.
constexpr int kMostRequestBytes = 1024 * 1024;
constexpr size_t kMostCalls = 1024;

const grpc::Status& Ending() {
  static const grpc::Status status(grpc::StatusCode::UNAVAILABLE, "the device plugin is ending");
  return status;
}

// Whatever has to be ended before the server can be.
class Endable {
 public:
  virtual ~Endable() = default;
  virtual void EndNow() = 0;
};

// What gRPC's threads and the loop's share: which calls are unfinished.
class OpenCalls {
 public:
  // False: the server ends, or has too much to do.
  bool Enter(const std::shared_ptr<Endable>& call) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_ || calls_.size() >= kMostCalls) return false;
    calls_.insert(call);
    return true;
  }
  void Leave(const std::shared_ptr<Endable>& call) {
    const std::lock_guard<std::mutex> lock(mutex_);
    calls_.erase(call);
  }
  std::set<std::shared_ptr<Endable>> Close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    return std::exchange(calls_, {});
  }

 private:
  std::mutex mutex_;
  bool closed_ = false;
  std::set<std::shared_ptr<Endable>> calls_;
};

template <typename Request, typename Response>
class PendingCall final : public UnaryCall<Request, Response>,
                          public Endable,
                          public std::enable_shared_from_this<PendingCall<Request, Response>> {
 public:
  // gRPC keeps all three until the reactor is finished.
  PendingCall(OpenCalls* open, grpc::ServerUnaryReactor* reactor, const Request* request,
              Response* response)
      : open_(open), reactor_(reactor), request_(request), response_(response) {}

  const Request& request() const override { return *request_; }
  Response* response() override { return response_; }
  bool finished() const override { return finished_; }
  void Finish(const grpc::Status& status) override {
    if (finished_) return;
    finished_ = true;
    open_->Leave(this->shared_from_this());
    reactor_->Finish(status);
  }
  void EndNow() override {
    if (finished_) return;
    finished_ = true;
    reactor_->Finish(Ending());
  }

 private:
  OpenCalls* open_;  // Outlives every unfinished call.
  grpc::ServerUnaryReactor* reactor_;
  const Request* request_;
  Response* response_;
  bool finished_ = false;
};

// A ListAndWatch. Sends the newest list; older ones that wait are replaced, as each is complete.
class ListStream final : public grpc::ServerWriteReactor<::v1beta1::ListAndWatchResponse>,
                         public Endable {
 public:
  using Told = std::function<void(const std::shared_ptr<ListStream>&)>;

  // All three are called on the loop's thread, while `alive`: after each list, when the peer ends
  // the stream, and when gRPC is done with it.
  static std::shared_ptr<ListStream> Make(base::EventLoop* loop, std::shared_ptr<bool> alive,
                                          Told sent, Told lost, Told done) {
    std::shared_ptr<ListStream> stream(new ListStream);
    stream->loop_ = loop;
    stream->alive_ = std::move(alive);
    stream->sent_ = std::move(sent);
    stream->lost_ = std::move(lost);
    stream->done_ = std::move(done);
    stream->self_ = stream;  // Until gRPC is done with it.
    return stream;
  }

  void Send(const ::v1beta1::ListAndWatchResponse& list) {
    if (finished_ || ending_) return;
    if (writing_) {
      waiting_ = list;
      return;
    }
    writing_ = true;
    current_ = list;
    StartWrite(&current_);
  }
  // After what is on its way has been written.
  void End(const grpc::Status& status) {
    if (finished_ || ending_) return;
    ending_ = true;
    status_ = status;
    if (!writing_) FinishOnce(status);
  }
  void EndNow() override { FinishOnce(Ending()); }

  // ---- gRPC's threads.
  void OnWriteDone(bool ok) override {
    loop_->Post([self = Self(), ok] {
      self->writing_ = false;
      if (ok && *self->alive_) self->sent_(self);
      if (ok && self->waiting_.has_value() && !self->finished_) {
        self->current_ = std::move(*self->waiting_);
        self->waiting_.reset();
        self->writing_ = true;
        self->StartWrite(&self->current_);
        return;
      }
      if (self->ending_) self->FinishOnce(self->status_);
    });
  }
  void OnCancel() override {
    loop_->Post([self = Self()] {
      const bool lost = !self->finished_ && !self->ending_;
      self->FinishOnce(grpc::Status::CANCELLED);
      if (lost && *self->alive_) self->lost_(self);
    });
  }
  // The last call of all; nothing else of gRPC's runs beside it.
  void OnDone() override {
    loop_->Post([self = std::move(self_)] {
      if (*self->alive_) self->done_(self);
    });
  }

 private:
  ListStream() = default;
  std::shared_ptr<ListStream> Self() { return self_; }
  void FinishOnce(const grpc::Status& status) {
    if (finished_) return;
    finished_ = true;
    Finish(status);
  }

  base::EventLoop* loop_ = nullptr;
  std::shared_ptr<bool> alive_;
  Told sent_;
  Told lost_;
  Told done_;
  std::shared_ptr<ListStream> self_;
  bool writing_ = false;
  bool ending_ = false;
  bool finished_ = false;
  grpc::Status status_;
  ::v1beta1::ListAndWatchResponse current_;
  std::optional<::v1beta1::ListAndWatchResponse> waiting_;
};

class GrpcPluginServer final : public PluginServer,
                               public ::v1beta1::DevicePlugin::CallbackService {
 public:
  GrpcPluginServer(base::EventLoop* loop, PluginServerHandler* handler)
      : loop_(loop), handler_(handler), alive_(std::make_shared<bool>(true)) {}

  ~GrpcPluginServer() override {
    StopListening();
    *alive_ = false;
    for (const std::shared_ptr<Endable>& call : open_.Close()) call->EndNow();
    if (shutdown_.joinable()) {
      shutdown_.join();
    } else if (server_ != nullptr) {
      server_->Shutdown(std::chrono::system_clock::now());
      server_->Wait();
    }
  }

  base::Result<void> Begin() {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    builder.SetMaxReceiveMessageSize(kMostRequestBytes);
    builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr)
      return base::Error{base::ErrorCode::kSystem, "the device plugin's service does not start"};
    return {};
  }

  // ---- PluginServer.
  base::Result<void> Listen(const std::string& path) override {
    StopListening();
    auto listener = base::ListenUnix(path, SOCK_STREAM, 0600, 64);
    if (!listener) return listener.error();
    listener_ = std::move(*listener);
    path_ = path;
    identity_ = SocketIdentity(path);
    return loop_->AddFd(listener_.get(), EPOLLIN, [this](uint32_t) { Accept(); });
  }

  void StopListening() override {
    loop_->RemoveTimer(pause_);
    pause_ = 0;
    if (!listener_.valid()) return;
    const bool in_place = SocketInPlace();
    loop_->RemoveFd(listener_.get());
    listener_.Reset();
    if (in_place) ::unlink(path_.c_str());
  }

  bool SocketInPlace() const override {
    // No other file has its inode while it is open; its time may change by a new owner or label.
    const auto now = SocketIdentity(path_);
    return listener_.valid() && identity_.has_value() && now.has_value() &&
           now->device == identity_->device && now->inode == identity_->inode;
  }

  void SetList(const ::v1beta1::ListAndWatchResponse& list) override {
    list_ = list;
    for (const std::shared_ptr<ListStream>& stream : streams_) stream->Send(list_);
  }

  void EndStreams() override {
    for (const std::shared_ptr<ListStream>& stream : std::exchange(streams_, {})) {
      stream->End(grpc::Status::OK);
    }
  }

  size_t streams() const override { return streams_.size(); }
  uint64_t lists_sent_total() const override { return lists_sent_total_; }
  uint64_t peers_refused_total() const override { return peers_refused_total_; }

  void Shutdown(std::function<void()> done) override {
    if (server_ == nullptr || shutdown_.joinable()) return;
    StopListening();
    EndStreams();
    // gRPC waits for its calls to end, and they end on the loop: so it waits somewhere else.
    shutdown_ = std::thread([this, done = std::move(done)] {
      server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
      server_->Wait();
      loop_->Post(done);
    });
  }

  // ---- The service; gRPC's threads.
  grpc::ServerUnaryReactor* GetDevicePluginOptions(
      grpc::CallbackServerContext* context, const ::v1beta1::Empty*,
      ::v1beta1::DevicePluginOptions* response) override {
    response->set_pre_start_required(true);
    response->set_get_preferred_allocation_available(true);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerWriteReactor<::v1beta1::ListAndWatchResponse>* ListAndWatch(
      grpc::CallbackServerContext*, const ::v1beta1::Empty*) override {
    auto stream = ListStream::Make(
        loop_, alive_, [this](const auto&) { ++lists_sent_total_; },
        [this](const auto& lost) {
          if (streams_.erase(lost) > 0) handler_->StreamLost(streams_.size());
        },
        [this](const auto& ended) { open_.Leave(ended); });
    if (!open_.Enter(stream)) {
      stream->EndNow();
      return stream.get();
    }
    loop_->Post([this, alive = alive_, stream] {
      if (!*alive) return;
      streams_.insert(stream);
      stream->Send(list_);
      handler_->StreamOpened();
    });
    return stream.get();
  }

  grpc::ServerUnaryReactor* GetPreferredAllocation(
      grpc::CallbackServerContext* context, const ::v1beta1::PreferredAllocationRequest* request,
      ::v1beta1::PreferredAllocationResponse* response) override {
    return OnLoop(context, request, response, [this](std::shared_ptr<PreferredCall> call) {
      handler_->GetPreferredAllocation(std::move(call));
    });
  }

  grpc::ServerUnaryReactor* Allocate(grpc::CallbackServerContext* context,
                                     const ::v1beta1::AllocateRequest* request,
                                     ::v1beta1::AllocateResponse* response) override {
    return OnLoop(context, request, response, [this](std::shared_ptr<AllocateCall> call) {
      handler_->Allocate(std::move(call));
    });
  }

  grpc::ServerUnaryReactor* PreStartContainer(
      grpc::CallbackServerContext* context, const ::v1beta1::PreStartContainerRequest* request,
      ::v1beta1::PreStartContainerResponse* response) override {
    return OnLoop(context, request, response, [this](std::shared_ptr<PreStartCall> call) {
      handler_->PreStartContainer(std::move(call));
    });
  }

 private:
  template <typename Request, typename Response, typename Work>
  grpc::ServerUnaryReactor* OnLoop(grpc::CallbackServerContext* context, const Request* request,
                                   Response* response, Work work) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    auto call =
        std::make_shared<PendingCall<Request, Response>>(&open_, reactor, request, response);
    if (!open_.Enter(call)) {
      reactor->Finish(Ending());
      return reactor;
    }
    loop_->Post([alive = alive_, call, work] {
      if (*alive && !call->finished()) work(call);
    });
    return reactor;
  }

  void Accept() {
    auto accepted = base::AcceptUnix(listener_.get());
    if (!accepted) {
      // Out of descriptors: the connection waits in the backlog, so look again a little later.
      loop_->RemoveFd(listener_.get());
      pause_ = loop_->AddTimer(base::MonotonicNow() + 100 * base::kMillisecond, [this] {
        pause_ = 0;
        (void)loop_->AddFd(listener_.get(), EPOLLIN, [this](uint32_t) { Accept(); });
      });
      return;
    }
    if (!accepted->has_value()) return;
    base::UniqueFd fd = std::move(**accepted);
    auto peer = base::PeerOf(fd.get());
    if (!peer || (peer->uid != ::geteuid() && peer->uid != 0)) {
      ++peers_refused_total_;
      return;
    }
    grpc::AddInsecureChannelFromFd(server_.get(), fd.Release());
  }

  base::EventLoop* loop_;
  PluginServerHandler* handler_;
  std::shared_ptr<bool> alive_;  // Loop's thread.
  OpenCalls open_;
  std::string path_;
  base::UniqueFd listener_;
  std::optional<FileIdentity> identity_;
  base::EventLoop::TimerId pause_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::thread shutdown_;
  ::v1beta1::ListAndWatchResponse list_;
  std::set<std::shared_ptr<ListStream>> streams_;
  uint64_t lists_sent_total_ = 0;
  uint64_t peers_refused_total_ = 0;
};

}  // namespace

std::optional<FileIdentity> SocketIdentity(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return std::nullopt;
  return FileIdentity{status.st_dev, status.st_ino,
                      status.st_ctim.tv_sec * base::kSecond + status.st_ctim.tv_nsec};
}

base::Result<std::unique_ptr<PluginServer>> PluginServer::Make(base::EventLoop* loop,
                                                               PluginServerHandler* handler) {
  auto server = std::make_unique<GrpcPluginServer>(loop, handler);
  if (auto begun = server->Begin(); !begun) return begun.error();
  return std::unique_ptr<PluginServer>(std::move(server));
}

}  // namespace rubato::deviceplugin
