// Calls to a gRPC service whose answers come on the loop's thread.
//
// gRPC's threads copy what matters out of an answer and post it. The end of this object cancels
// what is under way, waits until gRPC has let go of it (its threads never wait for the loop), and
// nothing is called back after that. Loop's thread.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "base/event_loop.h"
#include "base/time.h"

namespace rubato::deviceplugin {

// A channel to a service of the kubelet: Go's servers want an authority that is a host's name, a
// kubelet that comes back must be found soon, and no other channel's failures count.
inline std::shared_ptr<grpc::Channel> UnixChannel(const std::string& socket_path) {
  grpc::ChannelArguments arguments;
  arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, "localhost");
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(16 * 1024 * 1024);
  return grpc::CreateCustomChannel("unix:" + socket_path, grpc::InsecureChannelCredentials(),
                                   arguments);
}

class AsyncCalls {
 public:
  explicit AsyncCalls(base::EventLoop* loop)
      : loop_(loop), alive_(std::make_shared<bool>(true)), running_(std::make_shared<Running>()) {}
  AsyncCalls(const AsyncCalls&) = delete;
  AsyncCalls& operator=(const AsyncCalls&) = delete;
  ~AsyncCalls() {
    *alive_ = false;
    std::unique_lock<std::mutex> lock(running_->mutex);
    for (const auto& [id, call] : running_->calls) call->context.TryCancel();
    running_->none.wait(lock, [this] { return running_->unanswered == 0; });
    const auto calls = std::exchange(running_->calls, {});
    lock.unlock();
  }

  // Calls `start` at once, with everything a callback call of a stub needs; when that is over,
  // `convert` on a thread of gRPC's (only after success, else Value{} is passed on) and then `done`
  // on the loop's. The stub need not outlive this function.
  template <typename Request, typename Response, typename Value, typename Start>
  void Call(base::Nanos timeout_ns, Request request, Start start, Value (*convert)(const Response&),
            std::function<void(const grpc::Status&, Value)> done) {
    struct TypedCall final : OpenCall {
      Request request;
      Response response;
      std::function<void(const grpc::Status&, Value)> done;
    };
    auto owned = std::make_unique<TypedCall>();
    TypedCall* call = owned.get();
    call->request = std::move(request);
    call->done = std::move(done);
    call->context.set_deadline(std::chrono::system_clock::now() +
                               std::chrono::nanoseconds(timeout_ns));
    const uint64_t id = next_id_++;
    {
      const std::lock_guard<std::mutex> lock(running_->mutex);
      running_->calls.emplace(id, std::move(owned));
      ++running_->unanswered;
    }
    // The call ends on the loop's thread, and must: with it goes, perhaps, the last use of its
    // channel, and gRPC then waits for the very thread that brings the answer.
    start(
        &call->context, &call->request, &call->response,
        [loop = loop_, alive = alive_, running = running_, call, id, convert](grpc::Status status) {
          Value value{};
          if (status.ok()) value = convert(call->response);
          loop->Post(
              [alive, running, id, call, status = std::move(status), value = std::move(value)] {
                if (!*alive) return;
                const auto over = running->Take(id);
                call->done(status, value);
              });
          const std::lock_guard<std::mutex> lock(running->mutex);
          --running->unanswered;
          running->none.notify_all();
        });
  }

 private:
  struct OpenCall {
    virtual ~OpenCall() = default;
    grpc::ClientContext context;
  };
  struct Running {
    std::mutex mutex;
    std::condition_variable none;
    std::map<uint64_t, std::unique_ptr<OpenCall>> calls;  // Until their answer was passed on.
    int unanswered = 0;                                   // Of those, gRPC still has these.

    std::unique_ptr<OpenCall> Take(uint64_t id) {
      const std::lock_guard<std::mutex> lock(mutex);
      auto node = calls.extract(id);
      return std::move(node.mapped());
    }
  };
  base::EventLoop* loop_;
  std::shared_ptr<bool> alive_;  // Loop's thread.
  std::shared_ptr<Running> running_;
  uint64_t next_id_ = 1;
};

}  // namespace rubato::deviceplugin
