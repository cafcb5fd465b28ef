#include "scheduler/daemon/control_server.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/server_posix.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "proto/abi/region.h"
#include "proto/control/v1/control.grpc.pb.h"
#include "proto/health/v1/health.grpc.pb.h"
#include "scheduler/core/device_uuid.h"

namespace rubato::sched {
namespace {

namespace v1 = rubato::control::v1;
namespace health = grpc::health::v1;

constexpr const char kServiceName[] = "rubato.control.v1.Control";
constexpr Nanos kShortestWatchNs = 50 * base::kMillisecond;
constexpr Nanos kLongestWatchNs = 60 * base::kSecond;
// The largest request is a spec of a few names.
constexpr int kMostRequestBytes = 64 * 1024;
constexpr size_t kMostStreams = 512;
constexpr size_t kUsualProfiles = 100;
constexpr size_t kMostListed = 10'000;

grpc::Status ToStatus(const base::Error& error) {
  grpc::StatusCode code = grpc::StatusCode::INTERNAL;
  switch (error.code) {
    case base::ErrorCode::kInvalid:
      code = grpc::StatusCode::INVALID_ARGUMENT;
      break;
    case base::ErrorCode::kNotFound:
      code = grpc::StatusCode::NOT_FOUND;
      break;
    case base::ErrorCode::kExists:
      code = grpc::StatusCode::ALREADY_EXISTS;
      break;
    case base::ErrorCode::kFull:
      code = grpc::StatusCode::RESOURCE_EXHAUSTED;
      break;
    case base::ErrorCode::kNotAllowed:
      code = grpc::StatusCode::PERMISSION_DENIED;
      break;
    case base::ErrorCode::kUnavailable:
      code = grpc::StatusCode::UNAVAILABLE;
      break;
    case base::ErrorCode::kSystem:
      break;
  }
  return grpc::Status(code, error.message);
}

v1::Mode ToProto(core::Mode mode) {
  switch (mode) {
    case core::Mode::kTimeslice:
      return v1::MODE_TIMESLICE;
    case core::Mode::kHybrid:
      return v1::MODE_HYBRID;
    case core::Mode::kMps:
      return v1::MODE_MPS;
  }
  return v1::MODE_UNSPECIFIED;
}

// Durations beyond this are refused by ValidateSpec; cutting them keeps the sign right.
Nanos FromProtoNs(uint64_t value_ns) {
  return static_cast<Nanos>(std::min<uint64_t>(value_ns, uint64_t{1} << 62));
}

core::TenantSpec FromProto(const v1::TenantSpec& in) {
  core::TenantSpec spec;
  spec.name = in.name();
  spec.name_space = in.namespace_();
  spec.pod = in.pod();
  spec.container = in.container();
  spec.pod_uid = in.pod_uid();
  if (in.tenant_class() == v1::TENANT_CLASS_REALTIME)
    spec.tenant_class = core::TenantClass::kRealtime;
  if (in.tenant_class() == v1::TENANT_CLASS_BEST_EFFORT)
    spec.tenant_class = core::TenantClass::kBestEffort;
  spec.period_ns = FromProtoNs(in.period_ns());
  spec.deadline_ns = FromProtoNs(in.deadline_ns());
  spec.limit_bytes = in.limit_bytes();
  spec.weight = in.weight();
  spec.priority = in.priority();
  spec.overhead_budget_permille = in.overhead_budget_permille();
  spec.any_user = in.any_user();
  spec.share_permille = in.share_permille();
  spec.device_uuids.assign(in.device_uuids().begin(), in.device_uuids().end());
  spec.refusal_reason = in.refusal_reason();
  spec.refusal_detail = in.refusal_detail();
  spec.profile = in.profile();
  return spec;
}

v1::TenantClass ToProto(core::TenantClass tenant_class) {
  switch (tenant_class) {
    case core::TenantClass::kRealtime:
      return v1::TENANT_CLASS_REALTIME;
    case core::TenantClass::kBestEffort:
      return v1::TENANT_CLASS_BEST_EFFORT;
    case core::TenantClass::kFree:
      break;
  }
  return v1::TENANT_CLASS_UNSPECIFIED;
}

void ToProto(const AdmissionDecision& in, v1::AdmissionDecision* out) {
  out->set_asked(ToProto(in.asked));
  out->set_granted(ToProto(in.granted));
  out->set_reason(in.reason);
  out->set_detail(in.detail);
  out->set_demand_permille(in.demand_permille);
  out->set_capacity_permille(in.capacity_permille);
  out->set_blocking_ns(static_cast<uint64_t>(in.blocking_ns));
  out->set_response_ns(static_cast<uint64_t>(in.response_ns));
  out->set_deadline_ns(static_cast<uint64_t>(in.deadline_ns));
  out->set_job_ns(static_cast<uint64_t>(in.job_ns));
  out->set_interference_ns(static_cast<uint64_t>(in.interference_ns));
  out->set_device_uuid(in.device_uuid);
  out->set_unknown_tenants(in.unknown_tenants);
  out->set_decided_ns(static_cast<uint64_t>(in.decided_ns));
}

// The class that was asked for or none: what was decided goes with the refusal.
grpc::Status RefusedClass(const AdmissionDecision& decision) {
  v1::AdmissionDecision details;
  ToProto(decision, &details);
  return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, decision.detail,
                      details.SerializeAsString());
}

void ToProto(const core::TenantSpec& spec, v1::TenantSpec* out) {
  out->set_name(spec.name);
  out->set_namespace_(spec.name_space);
  out->set_pod(spec.pod);
  out->set_container(spec.container);
  out->set_pod_uid(spec.pod_uid);
  out->set_tenant_class(ToProto(spec.tenant_class));
  out->set_period_ns(static_cast<uint64_t>(spec.period_ns));
  out->set_deadline_ns(static_cast<uint64_t>(spec.deadline_ns));
  out->set_limit_bytes(spec.limit_bytes);
  out->set_weight(spec.weight);
  out->set_priority(spec.priority);
  out->set_overhead_budget_permille(spec.overhead_budget_permille);
  out->set_any_user(spec.any_user);
  out->set_share_permille(spec.share_permille);
  for (const std::string& uuid : spec.device_uuids) out->add_device_uuids(uuid);
  out->set_refusal_reason(spec.refusal_reason);
  out->set_refusal_detail(spec.refusal_detail);
  out->set_profile(spec.profile);
}

void ToProto(const RegisteredTenant& tenant, v1::RegisterTenantResponse* out) {
  out->set_tenant_id(tenant.id);
  out->set_attach_socket_path(tenant.attach_socket_path);
  out->set_attach_token(tenant.attach_token);
  ToProto(tenant.admission, out->mutable_admission());
}

void ToProto(const SchedulerIdentity& identity, Nanos started_ns, bool draining,
             v1::GetVersionResponse* out) {
  out->set_version(identity.version);
  out->set_abi_major(abi::kMajor);
  out->set_abi_minor(abi::kMinor);
  out->set_pid(::getpid());
  out->set_mode(ToProto(identity.mode));
  out->set_epoch(identity.epoch);
  out->set_started_ns(static_cast<uint64_t>(started_ns));
  out->set_metrics_address(identity.metrics_address);
  out->set_runtime_directory(identity.runtime_directory);
  out->set_time_dilation(identity.time_dilation);
  out->set_draining(draining);
  out->set_mps_directory(identity.mps_directory);
}

void ToProto(const TenantDeviceStatus& in, v1::TenantDeviceStatus* out) {
  using abi::Counter;
  const TenantTotals& totals = in.totals;
  out->set_tenant_class(ToProto(in.tenant_class));
  out->set_device(in.device);
  out->set_sessions(in.sessions);
  out->set_ops_total(totals.counter(Counter::kOps));
  out->set_gate_waits_total(totals.counter(Counter::kGateWaits));
  out->set_gate_wait_ns_total(totals.counter(Counter::kGateWaitNs));
  out->set_gate_expired_total(totals.counter(Counter::kGateExpired));
  out->set_unknown_ops_total(totals.counter(Counter::kUnknownOps));
  out->set_memory_used_bytes(in.memory_used_bytes);
  out->set_memory_peak_bytes(in.memory_peak_bytes);
  out->set_memory_refused_total(totals.memory_refused);
  out->set_unknown_symbols_total(totals.counter(Counter::kUnknownSymbols));
  out->set_samples_total(totals.counter(Counter::kSamples));
  out->set_samples_lost_total(totals.counter(Counter::kSamplesLost));
  out->set_uncut_graphs_total(totals.counter(Counter::kUncutGraphs));
  out->set_holds_ignored_total(totals.counter(Counter::kHoldsIgnored));
  out->set_profiled_ops(in.profiled_ops);
  out->set_profiled_new_ops(in.profiled_new_ops);
  if (in.tenant_class != core::TenantClass::kRealtime) {
    out->set_gpu_busy_ns_total(totals.counter(Counter::kGateBusyNs));
    return;
  }
  out->set_gpu_busy_ns_total(static_cast<uint64_t>(totals.jobs.busy_ns));
  out->set_jobs_total(totals.jobs.jobs);
  out->set_deadline_misses_total(totals.jobs.deadline_misses);
  out->set_tardiness_ns_total(static_cast<uint64_t>(totals.jobs.tardiness_ns));
  out->set_response_p50_ns(static_cast<uint64_t>(in.response_p50_ns));
  out->set_response_p99_ns(static_cast<uint64_t>(in.response_p99_ns));
  out->set_response_max_ns(static_cast<uint64_t>(in.response_max_ns));
  out->set_response_sum_ns(static_cast<uint64_t>(totals.jobs.response_sum_ns));
  out->set_touches_total(totals.counter(Counter::kTouches));
  out->set_touches_late_total(totals.counter(Counter::kTouchesLate));
  out->set_touches_wasted_total(totals.counter(Counter::kTouchesWasted));
  out->set_hold_revoked(in.hold_revoked);
  out->set_hold_revocations_total(totals.holds_revoked);
  v1::ReleaseModel* release = out->mutable_release();
  switch (in.prediction.kind) {
    case policies::ReleaseKind::kAperiodic:
      release->set_kind(v1::ReleaseModel::KIND_APERIODIC);
      break;
    case policies::ReleaseKind::kLearning:
      release->set_kind(v1::ReleaseModel::KIND_LEARNING);
      break;
    case policies::ReleaseKind::kLocked:
      release->set_kind(v1::ReleaseModel::KIND_LOCKED);
      break;
  }
  release->set_period_declared(in.prediction.period_declared);
  release->set_period_ns(static_cast<uint64_t>(in.prediction.period_ns));
  release->set_phase_ns(static_cast<uint64_t>(in.prediction.phase_ns));
  release->set_early_ns(static_cast<uint64_t>(in.prediction.early_ns));
  release->set_late_ns(static_cast<uint64_t>(in.prediction.late_ns));
  release->set_margin_ns(static_cast<uint64_t>(in.margin_ns));
  release->set_bound_ns(static_cast<uint64_t>(in.bound_ns));
  release->set_think_ns(static_cast<uint64_t>(in.jobs.think_ns));
  release->set_max_hold_ns(static_cast<uint64_t>(in.max_hold_ns));
  release->set_job_ns(static_cast<uint64_t>(in.jobs.typical_ns));
  release->set_relocks_total(totals.relocks);
}

const char* KindName(abi::OpKind kind) {
  switch (kind) {
    case abi::OpKind::kKernel:
      return "kernel";
    case abi::OpKind::kGraph:
      return "graph";
    case abi::OpKind::kCopyHostToDevice:
      return "copy-to-device";
    case abi::OpKind::kCopyDeviceToHost:
      return "copy-to-host";
    case abi::OpKind::kCopyDevice:
      return "copy-on-device";
    case abi::OpKind::kCopyOther:
      return "copy";
    case abi::OpKind::kMemset:
      return "memset";
    case abi::OpKind::kSegment:
      return "segment";
  }
  return "unknown";
}

void ToProto(const ProfileRow& in, v1::Profile* out) {
  out->set_device_name(in.model.name);
  out->set_sm_count(in.model.sm_count);
  out->set_time_dilation(in.model.time_dilation);
  out->set_driver(in.model.driver);
  out->set_module_hash(in.module_hash);
  out->set_key(in.key);
  out->set_kind(KindName(in.kind));
  out->set_name(in.name);
  out->set_duration_ns(static_cast<uint64_t>(in.duration_ns));
  out->set_max_ns(in.max_ns);
  out->set_spread_ns(static_cast<uint64_t>(in.spread_ns));
  out->set_samples(in.samples);
  out->set_last_seen_s(in.last_seen_s);
}

void ToProto(const ProfileStoreStatus& in, v1::ProfileStoreStatus* out) {
  out->set_path(in.path);
  out->set_usable(in.usable);
  out->set_entries(in.rows);
  out->set_errors_total(in.errors);
  out->set_written_total(in.written);
}

void ToProto(const SchedulerStatus& in, const SchedulerIdentity& identity,
             v1::GetStatusResponse* out) {
  out->set_now_ns(static_cast<uint64_t>(in.now_ns));
  ToProto(identity, in.started_ns, in.draining, out->mutable_scheduler());
  for (const DeviceStatus& device : in.devices) {
    v1::DeviceStatus* row = out->add_devices();
    row->set_index(device.index);
    row->set_uuid(device.uuid);
    row->set_name(device.name);
    row->set_sm_count(device.sm_count);
    row->set_total_bytes(device.total_bytes);
    row->set_sessions(device.sessions);
    row->set_realtime_sessions(device.realtime_sessions);
    row->set_profile_entries(device.profile_entries);
    row->set_profile_restored(device.profile_restored);
    for (const DeviceDemand& demand : in.demands) {
      if (demand.uuid != device.uuid) continue;
      row->set_realtime_demand_permille(demand.demand_permille);
      row->set_realtime_capacity_permille(demand.capacity_permille);
    }
  }
  for (const TenantStatus& tenant : in.tenants) {
    v1::TenantStatus* row = out->add_tenants();
    row->set_tenant_id(tenant.id);
    ToProto(tenant.spec, row->mutable_spec());
    row->set_attach_socket_path(tenant.attach_socket_path);
    row->set_sessions(static_cast<uint32_t>(tenant.sessions.size()));
    row->set_created_ns(static_cast<uint64_t>(tenant.created_ns));
    row->set_attach_token(tenant.attach_token);
    ToProto(tenant.admission, row->mutable_admission());
    for (const TenantDeviceStatus& device : tenant.devices) ToProto(device, row->add_devices());
    for (const SessionStatus& session : tenant.sessions) {
      v1::SessionStatus* item = row->add_session_list();
      item->set_device(session.device);
      item->set_index(session.index);
      item->set_pid(session.pid);
      item->set_program(session.program);
      item->set_vendor(session.vendor == 2 ? "hip" : "cuda");
      item->set_attached_ns(static_cast<uint64_t>(session.attached_ns));
      item->set_reattached(session.reattached);
      item->set_shim_build(session.shim_build);
      item->set_tenant_class(ToProto(session.tenant_class));
    }
  }
  for (const auto& [reason, count] : in.sessions_detached) {
    v1::ReasonCount* item = out->add_sessions_detached();
    item->set_reason(reason);
    item->set_count(count);
  }
  uint64_t refused = 0;
  for (const auto& [reason, count] : in.handshakes_refused) refused += count;
  out->set_handshakes_refused_total(refused);
  out->mutable_mps()->set_wanted(in.mps.wanted);
  out->mutable_mps()->set_healthy(in.mps.healthy);
  out->mutable_mps()->set_detail(in.mps.detail);
  ToProto(in.profiles, out->mutable_profile_store());
}

class GrpcControlServer;

// A stream of answers. Lives until gRPC is done with it; all but the constructor and the On...
// functions, which gRPC's threads call, happens on the loop's thread.
template <typename Message>
class Stream : public grpc::ServerWriteReactor<Message> {
 public:
  explicit Stream(base::EventLoop* loop) : loop_(loop) {}

  // Writes `message`, or, while another is on its way, keeps it as the next in place of one that
  // is kept already.
  void Send(Message message) {
    if (ended_) return;
    if (writing_) {
      waiting_ = std::move(message);
      return;
    }
    writing_ = true;
    current_ = std::move(message);
    this->StartWrite(&current_);
  }
  void End(const grpc::Status& status) {
    if (ended_) return;
    ended_ = true;
    this->Finish(status);
  }

  void OnWriteDone(bool ok) override {
    loop_->Post([this, ok] {
      writing_ = false;
      if (!ok) return End(grpc::Status::CANCELLED);
      if (!waiting_.has_value()) return;
      Message next = std::move(*waiting_);
      waiting_.reset();
      Send(std::move(next));
    });
  }
  void OnCancel() override {
    loop_->Post([this] { End(grpc::Status::CANCELLED); });
  }
  // The last call of all: those above have been posted before it.
  void OnDone() override {
    loop_->Post([this] {
      if (done_) done_();
      delete this;
    });
  }

  // Called once, on the loop's thread, before the stream is deleted.
  void WhenDone(std::function<void()> done) { done_ = std::move(done); }

 private:
  base::EventLoop* loop_;
  bool writing_ = false;
  bool ended_ = false;
  Message current_;
  std::optional<Message> waiting_;
  std::function<void()> done_;
};

using HoldStream = Stream<v1::HoldTenantEvent>;
using WatchStream = Stream<v1::GetStatusResponse>;
using HealthStream = Stream<health::HealthCheckResponse>;

// gRPC's health service. Whoever asks also learns that the loop turns, since it answers.
class HealthService final : public health::Health::CallbackService {
 public:
  HealthService(base::EventLoop* loop, ControlHandler* handler) : loop_(loop), handler_(handler) {}

  // ---- gRPC's threads.
  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const health::HealthCheckRequest* request,
                                  health::HealthCheckResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    loop_->Post([this, reactor, request, response] {
      if (!Known(request->service())) {
        reactor->Finish(grpc::Status(grpc::StatusCode::NOT_FOUND,
                                     "there is no service " + request->service() + " here"));
        return;
      }
      response->set_status(State());
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

  grpc::ServerWriteReactor<health::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext*, const health::HealthCheckRequest* request) override {
    auto* stream = new HealthStream(loop_);
    loop_->Post([this, stream, request] {
      if (watches_.size() >= kMostStreams)
        return stream->End(ToStatus({base::ErrorCode::kFull, "too many watchers"}));
      const bool known = Known(request->service());
      health::HealthCheckResponse response;
      response.set_status(known ? State() : health::HealthCheckResponse::SERVICE_UNKNOWN);
      watches_[stream] = known;
      stream->WhenDone([this, stream] { watches_.erase(stream); });
      stream->Send(std::move(response));
    });
    return stream;
  }

  // ---- The loop's thread.
  void Tell() {
    for (const auto& [stream, known] : watches_) {
      if (!known) continue;
      health::HealthCheckResponse response;
      response.set_status(State());
      stream->Send(std::move(response));
    }
  }
  void End(const grpc::Status& status) {
    for (const auto& [stream, known] : watches_) stream->End(status);
  }

 private:
  static bool Known(const std::string& service) {
    return service.empty() || service == kServiceName;
  }
  health::HealthCheckResponse::ServingStatus State() const {
    return handler_->Draining() ? health::HealthCheckResponse::NOT_SERVING
                                : health::HealthCheckResponse::SERVING;
  }

  base::EventLoop* loop_;
  ControlHandler* handler_;
  std::map<HealthStream*, bool> watches_;  // True: of a service that we have.
};

class GrpcControlServer final : public ControlServer, public v1::Control::CallbackService {
 public:
  GrpcControlServer(base::EventLoop* loop, ControlHandler* handler, std::string socket_path)
      : loop_(loop),
        handler_(handler),
        socket_path_(std::move(socket_path)),
        health_(loop, handler) {}

  ~GrpcControlServer() override {
    StopListening();
    if (shutdown_.joinable()) shutdown_.join();
  }

  base::Result<void> Begin() {
    auto listener = base::ListenUnix(socket_path_, SOCK_STREAM, 0600, 64);
    if (!listener) return listener.error();
    listener_ = std::move(*listener);
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    builder.RegisterService(&health_);
    builder.SetMaxReceiveMessageSize(kMostRequestBytes);
    builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr)
      return base::Error{base::ErrorCode::kSystem, "the control service does not start"};
    return loop_->AddFd(listener_.get(), EPOLLIN, [this](uint32_t) { Accept(); });
  }

  // ---- ControlServer.
  void SessionsChanged(TenantId tenant, uint32_t sessions) override {
    const auto found = holds_.find(tenant);
    if (found == holds_.end()) return;
    v1::HoldTenantEvent event;
    event.set_sessions(sessions);
    found->second->Send(std::move(event));
  }

  void TenantRemoved(TenantId tenant) override {
    const auto found = holds_.find(tenant);
    if (found != holds_.end()) found->second->End(grpc::Status::OK);
  }

  void DrainingChanged() override { health_.Tell(); }

  void Shutdown(std::function<void()> done) override {
    if (server_ == nullptr || shutdown_.joinable()) return;
    ending_ = true;
    StopListening();
    const grpc::Status gone(grpc::StatusCode::UNAVAILABLE, "the scheduler ends");
    for (const auto& [tenant, stream] : holds_) stream->End(gone);
    for (WatchStream* stream : watches_) stream->End(gone);
    health_.End(gone);
    // gRPC waits for its calls to end, and they end on the loop: so it waits somewhere else.
    shutdown_ = std::thread([this, done = std::move(done)] {
      // All calls are ended above or within a turn of the loop; what remains are idle connections.
      server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
      server_->Wait();
      loop_->Post(done);
    });
  }

  // ---- The service; gRPC's threads.
  grpc::ServerUnaryReactor* GetVersion(grpc::CallbackServerContext* context,
                                       const v1::GetVersionRequest*,
                                       v1::GetVersionResponse* response) override {
    return OnLoop(context, [this, response] {
      const SchedulerStatus status = handler_->Picture();
      ToProto(handler_->Identity(), status.started_ns, status.draining, response);
      return grpc::Status::OK;
    });
  }

  grpc::ServerUnaryReactor* RegisterTenant(grpc::CallbackServerContext* context,
                                           const v1::RegisterTenantRequest* request,
                                           v1::RegisterTenantResponse* response) override {
    return OnLoop(context, [this, request, response] {
      auto tenant = handler_->Register(FromProto(request->spec()), request->attach_token(),
                                       request->require_class());
      if (!tenant) return ToStatus(tenant.error());
      if (tenant->id == 0) return RefusedClass(tenant->admission);
      ToProto(*tenant, response);
      return grpc::Status::OK;
    });
  }

  grpc::ServerWriteReactor<v1::HoldTenantEvent>* HoldTenant(
      grpc::CallbackServerContext*, const v1::RegisterTenantRequest* request) override {
    auto* stream = new HoldStream(loop_);
    // The request does not outlive this call's reactor, which only the loop ends.
    loop_->Post([this, stream, request] {
      if (holds_.size() >= kMostStreams)
        return stream->End(ToStatus({base::ErrorCode::kFull, "too many held tenants"}));
      auto tenant = handler_->Register(FromProto(request->spec()), request->attach_token(),
                                       request->require_class());
      if (!tenant) return stream->End(ToStatus(tenant.error()));
      if (tenant->id == 0) return stream->End(RefusedClass(tenant->admission));
      const TenantId id = tenant->id;
      holds_[id] = stream;
      stream->WhenDone([this, id] {
        holds_.erase(id);
        // At our end it is not the tenant that ends: its caller comes to the next scheduler. (Gone
        // already if somebody unregistered it.)
        if (!ending_) (void)handler_->Unregister(id);
      });
      v1::HoldTenantEvent event;
      ToProto(*tenant, event.mutable_registered());
      stream->Send(std::move(event));
    });
    return stream;
  }

  grpc::ServerUnaryReactor* UpdateTenant(grpc::CallbackServerContext* context,
                                         const v1::UpdateTenantRequest* request,
                                         v1::UpdateTenantResponse* response) override {
    return OnLoop(context, [this, request, response] {
      auto updated = handler_->Update(request->tenant_id(), FromProto(request->spec()));
      if (!updated) return ToStatus(updated.error());
      ToProto(*updated, response->mutable_admission());
      return grpc::Status::OK;
    });
  }

  grpc::ServerUnaryReactor* CheckAdmission(grpc::CallbackServerContext* context,
                                           const v1::CheckAdmissionRequest* request,
                                           v1::AdmissionDecision* response) override {
    return OnLoop(context, [this, request, response] {
      auto decision = handler_->Check(FromProto(request->spec()), request->tenant_id());
      if (!decision) return ToStatus(decision.error());
      ToProto(*decision, response);
      return grpc::Status::OK;
    });
  }

  grpc::ServerUnaryReactor* UnregisterTenant(grpc::CallbackServerContext* context,
                                             const v1::UnregisterTenantRequest* request,
                                             v1::UnregisterTenantResponse*) override {
    return OnLoop(context, [this, request] {
      auto removed = handler_->Unregister(request->tenant_id());
      return removed ? grpc::Status::OK : ToStatus(removed.error());
    });
  }

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const v1::GetStatusRequest*,
                                      v1::GetStatusResponse* response) override {
    return OnLoop(context, [this, response] {
      ToProto(handler_->Picture(), handler_->Identity(), response);
      return grpc::Status::OK;
    });
  }

  grpc::ServerWriteReactor<v1::GetStatusResponse>* WatchStatus(
      grpc::CallbackServerContext*, const v1::WatchStatusRequest* request) override {
    auto* stream = new WatchStream(loop_);
    const Nanos interval_ns =
        request->interval_ns() == 0
            ? base::kSecond
            : std::clamp(FromProtoNs(request->interval_ns()), kShortestWatchNs, kLongestWatchNs);
    loop_->Post([this, stream, interval_ns] {
      if (watches_.size() >= kMostStreams)
        return stream->End(ToStatus({base::ErrorCode::kFull, "too many watchers"}));
      watches_.insert(stream);
      stream->WhenDone([this, stream] {
        watches_.erase(stream);
        const auto timer = watch_timers_.extract(stream);
        if (!timer.empty()) loop_->RemoveTimer(timer.mapped());
      });
      ShowStatus(stream, interval_ns);
    });
    return stream;
  }

  grpc::ServerUnaryReactor* ListProfiles(grpc::CallbackServerContext* context,
                                         const v1::ListProfilesRequest* request,
                                         v1::ListProfilesResponse* response) override {
    return OnLoop(context, [this, request, response] {
      const size_t limit = request->limit() == 0 ? kUsualProfiles : request->limit();
      for (const ProfileRow& row : handler_->LongestProfiles(std::min(limit, kMostListed)))
        ToProto(row, response->add_profiles());
      ToProto(handler_->Picture().profiles, response->mutable_store());
      return grpc::Status::OK;
    });
  }

  grpc::ServerUnaryReactor* ClearProfiles(grpc::CallbackServerContext* context,
                                          const v1::ClearProfilesRequest*,
                                          v1::ClearProfilesResponse* response) override {
    return OnLoop(context, [this, response] {
      response->set_entries(handler_->ClearProfiles());
      return grpc::Status::OK;
    });
  }

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                  v1::DrainResponse*) override {
    return OnLoop(context, [this] {
      handler_->Drain();
      return grpc::Status::OK;
    });
  }

  grpc::ServerUnaryReactor* Shutdown(grpc::CallbackServerContext* context,
                                     const v1::ShutdownRequest*,
                                     v1::ShutdownResponse* response) override {
    return OnLoop(context, [this, response] {
      response->set_sessions(handler_->Shutdown());
      return grpc::Status::OK;
    });
  }

 private:
  template <typename Work>
  grpc::ServerUnaryReactor* OnLoop(grpc::CallbackServerContext* context, Work work) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    loop_->Post([reactor, work] { reactor->Finish(work()); });
    return reactor;
  }

  void ShowStatus(WatchStream* stream, Nanos interval_ns) {
    v1::GetStatusResponse response;
    ToProto(handler_->Picture(), handler_->Identity(), &response);
    stream->Send(std::move(response));
    watch_timers_[stream] =
        loop_->AddTimer(base::MonotonicNow() + interval_ns,
                        [this, stream, interval_ns] { ShowStatus(stream, interval_ns); });
  }

  void Accept() {
    auto accepted = base::AcceptUnix(listener_.get());
    if (!accepted) {
      base::LogWarning("control socket: {}", accepted.error().message);
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
      base::LogWarning("control socket: a process of another user was turned away");
      return;
    }
    grpc::AddInsecureChannelFromFd(server_.get(), fd.Release());
  }

  void StopListening() {
    loop_->RemoveTimer(pause_);
    pause_ = 0;
    if (!listener_.valid()) return;
    loop_->RemoveFd(listener_.get());
    listener_.Reset();
    ::unlink(socket_path_.c_str());
  }

  base::EventLoop* loop_;
  ControlHandler* handler_;
  std::string socket_path_;
  HealthService health_;
  base::UniqueFd listener_;
  base::EventLoop::TimerId pause_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::thread shutdown_;
  bool ending_ = false;
  std::map<TenantId, HoldStream*> holds_;
  std::set<WatchStream*> watches_;
  std::map<WatchStream*, base::EventLoop::TimerId> watch_timers_;
};

}  // namespace

base::Result<std::unique_ptr<ControlServer>> ControlServer::Start(base::EventLoop* loop,
                                                                  ControlHandler* handler,
                                                                  const std::string& socket_path) {
  auto server = std::make_unique<GrpcControlServer>(loop, handler, socket_path);
  if (auto begun = server->Begin(); !begun) return begun.error();
  return std::unique_ptr<ControlServer>(std::move(server));
}

}  // namespace rubato::sched
