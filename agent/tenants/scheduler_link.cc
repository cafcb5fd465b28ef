#include "agent/tenants/scheduler_link.h"

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/clock.h"
#include "deviceplugin/async_calls.h"
#include "proto/control/v1/control.grpc.pb.h"

namespace rubato::agent {
namespace {

using base::Error;
using base::ErrorCode;
using base::Nanos;

constexpr int kReconnectMs = 250;  // A new scheduler is found within this.
constexpr Nanos kCallLimit = 5 * base::kSecond;
constexpr Nanos kStreamPause = 100 * base::kMillisecond;

Error FromStatus(const grpc::Status& status) {
  ErrorCode code = ErrorCode::kUnavailable;
  switch (status.error_code()) {
    case grpc::StatusCode::INVALID_ARGUMENT:
      code = ErrorCode::kInvalid;
      break;
    case grpc::StatusCode::NOT_FOUND:
      code = ErrorCode::kNotFound;
      break;
    case grpc::StatusCode::ALREADY_EXISTS:
      code = ErrorCode::kExists;
      break;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      code = ErrorCode::kFull;
      break;
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
      code = ErrorCode::kNotAllowed;
      break;
    default:
      break;
  }
  return Error{code, status.error_message()};
}

// What a stream shares with the link that owns it, for gRPC's threads.
struct StreamState {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;  // gRPC has let go of the stream.
};

// One WatchStatus call. Made and destroyed on the loop's thread: with it goes, perhaps, the last
// use of its channel, and gRPC would wait for the thread that brings the end of the call.
class StatusStream final : public grpc::ClientReadReactor<control::GetStatusResponse> {
 public:
  using OnStatus = std::function<void(control::GetStatusResponse)>;
  using OnEnd = std::function<void(std::string)>;

  StatusStream(base::EventLoop* loop, std::shared_ptr<bool> alive, control::Control::Stub* stub,
               Nanos interval_ns, OnStatus on_status, OnEnd on_end)
      : loop_(loop),
        alive_(std::move(alive)),
        on_status_(std::move(on_status)),
        on_end_(std::move(on_end)),
        state_(std::make_shared<StreamState>()) {
    request_.set_interval_ns(static_cast<uint64_t>(interval_ns));
    // Until somebody listens at the socket.
    context_.set_wait_for_ready(true);
    stub->async()->WatchStatus(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  // Cancels the call and waits until gRPC has let go of it; its threads never wait for the loop.
  ~StatusStream() override {
    context_.TryCancel();
    std::unique_lock lock(state_->mutex);
    state_->changed.wait(lock, [this] { return state_->done; });
  }

 private:
  // Runs `callback` on the loop's thread, unless the link is gone by then.
  void Post(std::function<void()> callback) {
    loop_->Post([alive = alive_, callback = std::move(callback)] {
      if (*alive) callback();
    });
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;  // OnDone follows.
    Post([callback = on_status_, status = std::move(response_)] { callback(status); });
    response_ = {};
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    std::string why = status.error_message();
    if (why.empty()) why = "the scheduler ended";
    Post([callback = on_end_, why = std::move(why)] { callback(why); });
    // From here on this object may be destroyed.
    const std::shared_ptr<StreamState> state = state_;
    const std::lock_guard lock(state->mutex);
    state->done = true;
    state->changed.notify_all();
  }

  base::EventLoop* const loop_;
  const std::shared_ptr<bool> alive_;  // Of the link; the loop's thread.
  const OnStatus on_status_;
  const OnEnd on_end_;
  const std::shared_ptr<StreamState> state_;
  grpc::ClientContext context_;
  control::WatchStatusRequest request_;
  control::GetStatusResponse response_;
};

RegisterAnswer ConvertRegistered(const control::RegisterTenantResponse& response) {
  RegisterAnswer answer;
  answer.tenant_id = response.tenant_id();
  answer.decision = response.admission();
  return answer;
}

control::AdmissionDecision ConvertUpdated(const control::UpdateTenantResponse& response) {
  return response.admission();
}

int ConvertUnregistered(const control::UnregisterTenantResponse&) {
  return 0;
}

class GrpcSchedulerLink final : public SchedulerLink {
 public:
  GrpcSchedulerLink(base::EventLoop* loop, const std::string& socket_path, Nanos interval_ns)
      : loop_(loop),
        interval_ns_(interval_ns),
        stub_(control::Control::NewStub(MakeChannel(socket_path))),
        calls_(loop) {}

  ~GrpcSchedulerLink() override {
    *alive_ = false;
    loop_->RemoveTimer(timer_);
  }

  void Start(Callbacks callbacks) override {
    callbacks_ = std::move(callbacks);
    Watch();
  }

  void Register(const std::string& token, const control::TenantSpec& spec, bool require_class,
                Registered registered) override {
    control::RegisterTenantRequest request;
    *request.mutable_spec() = spec;
    request.set_attach_token(token);
    request.set_require_class(require_class);
    calls_.Call<control::RegisterTenantRequest, control::RegisterTenantResponse, RegisterAnswer>(
        kCallLimit, std::move(request),
        [this](auto* context, auto* asked, auto* response, auto answered) {
          stub_->async()->RegisterTenant(context, asked, response, std::move(answered));
        },
        ConvertRegistered,
        [registered = std::move(registered)](const grpc::Status& status, RegisterAnswer answer) {
          if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
            answer.class_refused = true;
            if (!answer.decision.ParseFromString(status.error_details()) ||
                answer.decision.detail().empty())
              answer.decision.set_detail(status.error_message());
            registered(std::move(answer));
          } else if (!status.ok()) {
            registered(FromStatus(status));
          } else {
            registered(std::move(answer));
          }
        });
  }

  void Update(uint64_t tenant_id, const control::TenantSpec& spec, Updated updated) override {
    control::UpdateTenantRequest request;
    request.set_tenant_id(tenant_id);
    *request.mutable_spec() = spec;
    calls_.Call<control::UpdateTenantRequest, control::UpdateTenantResponse,
                control::AdmissionDecision>(
        kCallLimit, std::move(request),
        [this](auto* context, auto* asked, auto* response, auto answered) {
          stub_->async()->UpdateTenant(context, asked, response, std::move(answered));
        },
        ConvertUpdated,
        [updated = std::move(updated)](const grpc::Status& status,
                                       control::AdmissionDecision decision) {
          if (status.ok()) {
            updated(std::move(decision));
          } else {
            updated(FromStatus(status));
          }
        });
  }

  void Unregister(uint64_t tenant_id, Done done) override {
    control::UnregisterTenantRequest request;
    request.set_tenant_id(tenant_id);
    calls_.Call<control::UnregisterTenantRequest, control::UnregisterTenantResponse, int>(
        kCallLimit, std::move(request),
        [this](auto* context, auto* asked, auto* response, auto answered) {
          stub_->async()->UnregisterTenant(context, asked, response, std::move(answered));
        },
        ConvertUnregistered,
        [done = std::move(done)](const grpc::Status& status, int) {
          if (status.ok()) {
            done({});
          } else {
            done(FromStatus(status));
          }
        });
  }

 private:
  static std::shared_ptr<grpc::Channel> MakeChannel(const std::string& socket_path) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMs);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetMaxReceiveMessageSize(64 << 20);
    return grpc::CreateCustomChannel("unix:" + socket_path, grpc::InsecureChannelCredentials(),
                                     arguments);
  }

  void Watch() {
    timer_ = 0;
    stream_.reset();
    stream_ = std::make_unique<StatusStream>(
        loop_, alive_, stub_.get(), interval_ns_,
        [this](const control::GetStatusResponse& status) { callbacks_.status(status); },
        [this](const std::string& why) {
          callbacks_.lost(why);
          // The next stream waits for the next scheduler; the pause is for one that refuses.
          timer_ = loop_->AddTimer(base::MonotonicNow() + kStreamPause, [this] { Watch(); });
        });
  }

  base::EventLoop* const loop_;
  const Nanos interval_ns_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  // Destroyed from the last to the first: the stub outlives what uses its channel.
  const std::unique_ptr<control::Control::Stub> stub_;
  Callbacks callbacks_;
  base::EventLoop::TimerId timer_ = 0;
  std::unique_ptr<StatusStream> stream_;
  deviceplugin::AsyncCalls calls_;
};

}  // namespace

std::unique_ptr<SchedulerLink> SchedulerLink::Make(base::EventLoop* loop,
                                                   const std::string& socket_path,
                                                   Nanos status_interval_ns) {
  return std::make_unique<GrpcSchedulerLink>(loop, socket_path, status_interval_ns);
}

}  // namespace rubato::agent
