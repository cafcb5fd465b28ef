#include "agent/tenants/scheduler_link.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <mutex>
#include <set>
#include <utility>

#include "base/clock.h"
#include "proto/control/v1/control.grpc.pb.h"

namespace rubato::agent {
namespace {

using base::Error;
using base::ErrorCode;
using base::Nanos;
using base::Result;

constexpr int kReconnectMs = 250;  // A new scheduler is found within this.
constexpr auto kCallLimit = std::chrono::seconds(5);
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

// What outlives the link for as long as gRPC has a call of it: where answers go, and which calls
// there are to cancel at the end.
struct Line {
  std::mutex mutex;
  base::EventLoop* loop = nullptr;  // Null once the link is gone.
  std::set<grpc::ClientContext*> contexts;

  // Posts to the loop; what is posted looks again whether the link is still there.
  static void Post(const std::shared_ptr<Line>& line, std::function<void()> callback) {
    const std::lock_guard lock(line->mutex);
    if (line->loop == nullptr) return;
    line->loop->Post([line, callback = std::move(callback)] {
      {
        const std::lock_guard inner(line->mutex);
        if (line->loop == nullptr) return;
      }
      callback();
    });
  }
  // False if the link is gone: then the call is not made.
  bool Enter(grpc::ClientContext* context) {
    const std::lock_guard lock(mutex);
    if (loop == nullptr) return false;
    contexts.insert(context);
    return true;
  }
  void Leave(grpc::ClientContext* context) {
    const std::lock_guard lock(mutex);
    contexts.erase(context);
  }
};

template <typename Request, typename Response>
struct Unary {
  grpc::ClientContext context;
  Request request;
  Response response;
};

class StatusStream final : public grpc::ClientReadReactor<control::GetStatusResponse> {
 public:
  using OnStatus = std::function<void(control::GetStatusResponse)>;
  using OnEnd = std::function<void(std::string)>;

  // Deletes itself when the call is done.
  static void Begin(const std::shared_ptr<Line>& line,
                    const std::shared_ptr<control::Control::Stub>& stub, Nanos interval_ns,
                    OnStatus on_status, OnEnd on_end) {
    auto* stream = new StatusStream(line, stub, std::move(on_status), std::move(on_end));
    if (!line->Enter(&stream->context_)) {
      delete stream;
      return;
    }
    stream->request_.set_interval_ns(static_cast<uint64_t>(interval_ns));
    // Until somebody listens at the socket.
    stream->context_.set_wait_for_ready(true);
    stub->async()->WatchStatus(&stream->context_, &stream->request_, stream);
    stream->StartRead(&stream->response_);
    stream->StartCall();
  }

 private:
  StatusStream(std::shared_ptr<Line> line, std::shared_ptr<control::Control::Stub> stub,
               OnStatus on_status, OnEnd on_end)
      : line_(std::move(line)),
        stub_(std::move(stub)),
        on_status_(std::move(on_status)),
        on_end_(std::move(on_end)) {}

  void OnReadDone(bool ok) override {
    if (!ok) return;  // OnDone follows.
    Line::Post(line_, [callback = on_status_, status = std::move(response_)]() mutable {
      callback(std::move(status));
    });
    response_ = {};
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    line_->Leave(&context_);
    std::string why = status.error_message();
    if (why.empty()) why = "the scheduler ended";
    Line::Post(line_, [callback = on_end_, why = std::move(why)] { callback(why); });
    delete this;
  }

  const std::shared_ptr<Line> line_;
  const std::shared_ptr<control::Control::Stub> stub_;
  const OnStatus on_status_;
  const OnEnd on_end_;
  grpc::ClientContext context_;
  control::WatchStatusRequest request_;
  control::GetStatusResponse response_;
};

class GrpcSchedulerLink final : public SchedulerLink {
 public:
  GrpcSchedulerLink(base::EventLoop* loop, const std::string& socket_path, Nanos interval_ns)
      : loop_(loop), interval_ns_(interval_ns), line_(std::make_shared<Line>()) {
    line_->loop = loop;
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMs);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetMaxReceiveMessageSize(64 << 20);
    stub_ = control::Control::NewStub(grpc::CreateCustomChannel(
        "unix:" + socket_path, grpc::InsecureChannelCredentials(), arguments));
  }

  ~GrpcSchedulerLink() override {
    loop_->RemoveTimer(timer_);
    const std::lock_guard lock(line_->mutex);
    line_->loop = nullptr;
    for (grpc::ClientContext* context : line_->contexts) context->TryCancel();
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
    Call<control::RegisterTenantRequest, control::RegisterTenantResponse>(
        &control::Control::Stub::async_interface::RegisterTenant, std::move(request),
        [registered = std::move(registered)](const grpc::Status& status,
                                             const control::RegisterTenantResponse& response) {
          RegisterAnswer answer;
          if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
            answer.class_refused = true;
            if (!answer.decision.ParseFromString(status.error_details()) ||
                answer.decision.detail().empty())
              answer.decision.set_detail(status.error_message());
            registered(std::move(answer));
          } else if (!status.ok()) {
            registered(FromStatus(status));
          } else {
            answer.tenant_id = response.tenant_id();
            answer.decision = response.admission();
            registered(std::move(answer));
          }
        });
  }

  void Update(uint64_t tenant_id, const control::TenantSpec& spec, Updated updated) override {
    control::UpdateTenantRequest request;
    request.set_tenant_id(tenant_id);
    *request.mutable_spec() = spec;
    Call<control::UpdateTenantRequest, control::UpdateTenantResponse>(
        &control::Control::Stub::async_interface::UpdateTenant, std::move(request),
        [updated = std::move(updated)](const grpc::Status& status,
                                       const control::UpdateTenantResponse& response) {
          if (status.ok()) {
            updated(response.admission());
          } else {
            updated(FromStatus(status));
          }
        });
  }

  void Unregister(uint64_t tenant_id, Done done) override {
    control::UnregisterTenantRequest request;
    request.set_tenant_id(tenant_id);
    Call<control::UnregisterTenantRequest, control::UnregisterTenantResponse>(
        &control::Control::Stub::async_interface::UnregisterTenant, std::move(request),
        [done = std::move(done)](const grpc::Status& status,
                                 const control::UnregisterTenantResponse&) {
          if (status.ok()) {
            done({});
          } else {
            done(FromStatus(status));
          }
        });
  }

 private:
  // The overload of a stub's asynchronous call that takes a callback.
  template <typename Request, typename Response>
  using Method = void (control::Control::Stub::async_interface::*)(
      grpc::ClientContext*, const Request*, Response*, std::function<void(grpc::Status)>);

  template <typename Request, typename Response, typename Answered>
  void Call(Method<Request, Response> method, Request request, Answered answered) {
    auto call = std::make_shared<Unary<Request, Response>>();
    call->request = std::move(request);
    call->context.set_deadline(std::chrono::system_clock::now() + kCallLimit);
    if (!line_->Enter(&call->context)) return;
    (stub_->async()->*method)(
        &call->context, &call->request, &call->response,
        [call, line = line_, stub = stub_, answered = std::move(answered)](grpc::Status status) {
          line->Leave(&call->context);
          Line::Post(line, [call, status = std::move(status), answered] {
            answered(status, call->response);
          });
        });
  }

  void Watch() {
    timer_ = 0;
    StatusStream::Begin(
        line_, stub_, interval_ns_,
        [this](const control::GetStatusResponse& status) { callbacks_.status(status); },
        [this](const std::string& why) {
          callbacks_.lost(why);
          // The next stream waits for the next scheduler; the pause is for one that refuses.
          timer_ = loop_->AddTimer(base::MonotonicNow() + kStreamPause, [this] { Watch(); });
        });
  }

  base::EventLoop* const loop_;
  const Nanos interval_ns_;
  const std::shared_ptr<Line> line_;
  std::shared_ptr<control::Control::Stub> stub_;
  Callbacks callbacks_;
  base::EventLoop::TimerId timer_ = 0;
};

}  // namespace

std::unique_ptr<SchedulerLink> SchedulerLink::Make(base::EventLoop* loop,
                                                   const std::string& socket_path,
                                                   Nanos status_interval_ns) {
  return std::make_unique<GrpcSchedulerLink>(loop, socket_path, status_interval_ns);
}

}  // namespace rubato::agent
