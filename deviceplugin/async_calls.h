// Calls to a gRPC service whose answers come on the loop's thread.
//
// gRPC's threads copy what matters out of an answer and post it. The end of this object cancels
// what is under way, waits until gRPC has let go of it (its threads never wait for the loop), and
// nothing is called back after that. Loop's thread.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
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
    for (grpc::ClientContext* context : running_->contexts) context->TryCancel();
    running_->none.wait(lock, [this] { return running_->contexts.empty(); });
  }

  // Calls `start` at once, with everything a callback call of a stub needs; when that is over,
  // `convert` on a thread of gRPC's (only after success, else Value{} is passed on) and then `done`
  // on the loop's. `start` keeps the stub alive by itself.
  template <typename Request, typename Response, typename Value, typename Start>
  void Call(base::Nanos timeout_ns, Request request, Start start,
            std::function<Value(const Response&)> convert,
            std::function<void(const grpc::Status&, Value)> done) {
    struct State {
      grpc::ClientContext context;
      Request request;
      Response response;
    };
    auto state = std::make_shared<State>();
    state->request = std::move(request);
    state->context.set_deadline(std::chrono::system_clock::now() +
                                std::chrono::nanoseconds(timeout_ns));
    {
      const std::lock_guard<std::mutex> lock(running_->mutex);
      running_->contexts.insert(&state->context);
    }
    start(&state->context, &state->request, &state->response,
          [loop = loop_, alive = alive_, running = running_, state, convert = std::move(convert),
           done = std::move(done)](grpc::Status status) {
            Value value{};
            if (status.ok()) value = convert(state->response);
            loop->Post([alive, done, status = std::move(status), value = std::move(value)] {
              if (*alive) done(status, value);
            });
            const std::lock_guard<std::mutex> lock(running->mutex);
            running->contexts.erase(&state->context);
            running->none.notify_all();
          });
  }

 private:
  struct Running {
    std::mutex mutex;
    std::condition_variable none;
    std::set<grpc::ClientContext*> contexts;
  };
  base::EventLoop* loop_;
  std::shared_ptr<bool> alive_;  // Loop's thread.
  std::shared_ptr<Running> running_;
};

}  // namespace rubato::deviceplugin
