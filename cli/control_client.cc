#include "cli/control_client.h"

#include <grpcpp/grpcpp.h>
#include <sys/socket.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/unix_socket.h"
#include "proto/control/v1/control.grpc.pb.h"

namespace rubato::cli {
namespace {

// A restarted scheduler is found within this time: the longest pause between two attempts.
constexpr int kReconnectMs = 500;

base::Error FromStatus(const grpc::Status& status) {
  base::ErrorCode code = base::ErrorCode::kUnavailable;
  switch (status.error_code()) {
    case grpc::StatusCode::INVALID_ARGUMENT:
      code = base::ErrorCode::kInvalid;
      break;
    case grpc::StatusCode::NOT_FOUND:
      code = base::ErrorCode::kNotFound;
      break;
    case grpc::StatusCode::ALREADY_EXISTS:
      code = base::ErrorCode::kExists;
      break;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      code = base::ErrorCode::kFull;
      break;
    case grpc::StatusCode::FAILED_PRECONDITION:
      return {base::ErrorCode::kNotAllowed,
              status.error_message() + "; ask for less, or leave out --require-class"};
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
      code = base::ErrorCode::kNotAllowed;
      break;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return {code,
              "the scheduler does not answer; look at its log, or end it and run `rubato up`"};
    case grpc::StatusCode::UNIMPLEMENTED:
      return {code, "the scheduler is of another version; run `rubato down`, then `rubato up`"};
    case grpc::StatusCode::UNAVAILABLE:
      // What gRPC says about sockets is not for people.
      return {code, "the scheduler is gone; start it with `rubato up`"};
    default:
      break;
  }
  return {code, status.error_message()};
}

class GrpcTenantHold final : public TenantHold {
 public:
  GrpcTenantHold(std::shared_ptr<control::Control::Stub> stub, control::TenantSpec spec,
                 bool require_class, base::Nanos time_limit)
      : stub_(std::move(stub)), time_limit_(time_limit) {
    *request_.mutable_spec() = std::move(spec);
    request_.set_require_class(require_class);
    thread_ = std::thread([this] { Keep(); });
  }

  ~GrpcTenantHold() override {
    uint64_t tenant_id = 0;
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
      tenant_id = tenant_id_;
      // Without a tenant there is nothing to take leave from: end the wait for a scheduler.
      if (tenant_id == 0 && context_ != nullptr) context_->TryCancel();
    }
    changed_.notify_all();
    if (tenant_id != 0) Unregister(tenant_id);
    thread_.join();
  }

  // Until the first registration has succeeded or failed.
  base::Result<void> WaitRegistered() {
    std::unique_lock lock(mutex_);
    const bool answered = changed_.wait_for(lock, std::chrono::nanoseconds(time_limit_), [this] {
      return tenant_id_ != 0 || failure_.has_value();
    });
    if (!answered) {
      return base::Error{base::ErrorCode::kUnavailable,
                         "the scheduler does not answer; look at its log"};
    }
    if (failure_.has_value()) return *failure_;
    return {};
  }

  const std::string& attach_socket_path() const override { return attach_socket_path_; }
  const control::AdmissionDecision& admission() const override { return admission_; }

 private:
  void Unregister(uint64_t tenant_id) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
    control::UnregisterTenantRequest request;
    control::UnregisterTenantResponse response;
    request.set_tenant_id(tenant_id);
    (void)stub_->UnregisterTenant(&context, request, &response);
    // Ends the stream in any case, also if the scheduler hangs.
    const std::lock_guard lock(mutex_);
    if (context_ != nullptr) context_->TryCancel();
  }

  // The thread: one call after another, each for as long as one scheduler lives.
  void Keep() {
    bool first = true;
    for (;;) {
      grpc::ClientContext context;
      // After the first registration, the next scheduler is awaited for as long as it takes.
      context.set_wait_for_ready(!first);
      {
        const std::lock_guard lock(mutex_);
        if (ending_) return;
        context_ = &context;
      }
      const grpc::Status status = HoldOnce(&context);
      std::unique_lock lock(mutex_);
      context_ = nullptr;
      tenant_id_ = 0;
      if (ending_) return;
      if (attach_socket_path_.empty()) {
        failure_ = FromStatus(status);
        changed_.notify_all();
        return;
      }
      first = false;
      // A scheduler that refuses is asked again, at this pace.
      changed_.wait_for(lock, std::chrono::milliseconds(kReconnectMs), [this] { return ending_; });
    }
  }

  grpc::Status HoldOnce(grpc::ClientContext* context) {
    const std::unique_ptr<grpc::ClientReader<control::HoldTenantEvent>> reader =
        stub_->HoldTenant(context, request_);
    control::HoldTenantEvent event;
    while (reader->Read(&event)) {
      if (!event.has_registered()) continue;
      const std::lock_guard lock(mutex_);
      tenant_id_ = event.registered().tenant_id();
      if (attach_socket_path_.empty()) {
        attach_socket_path_ = event.registered().attach_socket_path();
        admission_ = event.registered().admission();
        request_.set_attach_token(event.registered().attach_token());
        // The program runs by then: a later scheduler takes it as it can.
        request_.set_require_class(false);
      }
      changed_.notify_all();
      if (ending_) context->TryCancel();
    }
    return reader->Finish();
  }

  const std::shared_ptr<control::Control::Stub> stub_;
  const base::Nanos time_limit_;
  control::RegisterTenantRequest request_;  // Of the thread.

  std::mutex mutex_;  // Guards all below.
  std::condition_variable changed_;
  grpc::ClientContext* context_ = nullptr;
  uint64_t tenant_id_ = 0;  // 0: not registered now.
  // Written once, before WaitRegistered() returns.
  std::string attach_socket_path_;
  control::AdmissionDecision admission_;
  std::optional<base::Error> failure_;
  bool ending_ = false;

  std::thread thread_;
};

class GrpcControlClient final : public ControlClient {
 public:
  GrpcControlClient(const std::string& socket_path, base::Nanos time_limit)
      : time_limit_(time_limit) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMs);
    // No proxy of the environment stands between us and a socket of ours.
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    stub_ = control::Control::NewStub(grpc::CreateCustomChannel(
        "unix:" + socket_path, grpc::InsecureChannelCredentials(), arguments));
  }

  base::Result<control::GetVersionResponse> GetVersion() override {
    return Call<control::GetVersionResponse>(&control::Control::Stub::GetVersion,
                                             control::GetVersionRequest());
  }
  base::Result<control::GetStatusResponse> GetStatus() override {
    return Call<control::GetStatusResponse>(&control::Control::Stub::GetStatus,
                                            control::GetStatusRequest());
  }
  base::Result<control::ListProfilesResponse> ListProfiles(uint32_t limit) override {
    control::ListProfilesRequest request;
    request.set_limit(limit);
    return Call<control::ListProfilesResponse>(&control::Control::Stub::ListProfiles, request);
  }
  base::Result<control::ClearProfilesResponse> ClearProfiles() override {
    return Call<control::ClearProfilesResponse>(&control::Control::Stub::ClearProfiles,
                                                control::ClearProfilesRequest());
  }
  base::Result<control::ShutdownResponse> Shutdown() override {
    return Call<control::ShutdownResponse>(&control::Control::Stub::Shutdown,
                                           control::ShutdownRequest());
  }

  base::Result<std::unique_ptr<TenantHold>> HoldTenant(const control::TenantSpec& spec,
                                                       bool require_class) override {
    auto hold = std::make_unique<GrpcTenantHold>(stub_, spec, require_class, time_limit_);
    const base::Result<void> registered = hold->WaitRegistered();
    if (!registered.ok()) return registered.error();
    return std::unique_ptr<TenantHold>(std::move(hold));
  }

 private:
  template <typename Response, typename Method, typename Request>
  base::Result<Response> Call(Method method, const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::nanoseconds(time_limit_));
    Response response;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
    if (!status.ok()) return FromStatus(status);
    return response;
  }

  const base::Nanos time_limit_;
  std::shared_ptr<control::Control::Stub> stub_;
};

}  // namespace

bool SchedulerListens(const RuntimeDir& directory) {
  return base::ConnectUnix(directory.control_socket(), SOCK_STREAM).ok();
}

std::unique_ptr<ControlClient> ControlClient::Make(const RuntimeDir& directory,
                                                   base::Nanos time_limit) {
  return std::make_unique<GrpcControlClient>(directory.control_socket(), time_limit);
}

}  // namespace rubato::cli
