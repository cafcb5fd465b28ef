#include "deviceplugin/plugin.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>
#include <variant>

#include "base/clock.h"
#include "deviceplugin/async_calls.h"
#include "deviceplugin/directory_watch.h"
#include "deviceplugin/plugin_server.h"
#include "deviceplugin/resource_name.h"
#include "deviceplugin/slot.h"
#include "proto/kubelet/deviceplugin_v1beta1.grpc.pb.h"

namespace rubato::deviceplugin {
namespace {

using base::Nanos;

constexpr const char kKubeletSocket[] = "kubelet.sock";
constexpr const char kVersion[] = "v1beta1";
constexpr Nanos kSelfDialNs = 5 * base::kSecond;
// The kubelet takes up to ten seconds to dial back before it answers.
constexpr Nanos kRegisterNs = 15 * base::kSecond;
constexpr Nanos kStreamNs = 5 * base::kSecond;
constexpr Nanos kAllocatableNs = 5 * base::kSecond;
constexpr Nanos kFirstBackoffNs = 100 * base::kMillisecond;
constexpr Nanos kLongestBackoffNs = 5 * base::kSecond;
// A kubelet that ends the stream sooner than this after a registration is not let off the back-off.
constexpr Nanos kStableNs = 10 * base::kSecond;
// Between the end of a stream and the next registration. The kubelet drops whichever client has our
// name when it notices the end of a stream: it must have noticed before it hears of the new one.
constexpr Nanos kAfterStreamNs = 100 * base::kMillisecond;
// How often a kubelet's socket is looked for while there is none, beside being told.
constexpr Nanos kAbsentNs = 500 * base::kMillisecond;
// A mismatch is looked at twice, since lists travel while we ask.
constexpr Nanos kSecondLookNs = 5 * base::kSecond;
constexpr Nanos kDrainNs = base::kSecond;

base::Error Invalid(std::string message) {
  return {base::ErrorCode::kInvalid, std::move(message)};
}

bool IsAbsolute(const std::string& path) {
  return !path.empty() && path.front() == '/';
}

base::Result<void> Check(const PluginPlaces& places) {
  if (!IsExtendedResourceName(places.resource_name))
    return Invalid("'" + places.resource_name + "' is no resource name; use domain/name");
  if (!IsAbsolute(places.kubelet_directory) || !IsAbsolute(places.pod_resources_socket) ||
      !IsAbsolute(places.allocations.directory) || !IsAbsolute(places.allocations.records_file))
    return Invalid("the kubelet's and the allocations' paths must be absolute");
  if (places.socket_name.empty() || places.socket_name == kKubeletSocket ||
      places.socket_name.find('/') != std::string::npos || places.socket_name.front() == '.')
    return Invalid("'" + places.socket_name + "' cannot be the name of the plugin's socket");
  return {};
}

base::Result<void> Check(const PluginOptions& options) {
  if (options.slots_per_gpu < 1 || options.slots_per_gpu > kMostSlotsPerGpu)
    return Invalid("slots per GPU: from 1 to " + std::to_string(kMostSlotsPerGpu));
  if (options.self_check_interval_ns < 0 || options.pre_start_budget_ns <= 0 ||
      options.allocate_budget_ns <= 0)
    return Invalid("intervals and budgets must be positive");
  // The kubelet gives up after 30 s, and the container's start fails.
  if (options.pre_start_budget_ns > 20 * base::kSecond)
    return Invalid("the budget of a container's start must be at most 20s");
  const AnswerOptions& answer = options.answer;
  for (const std::string* path :
       {&answer.shim_directory, &answer.software_library_directory,
        &answer.software_device_directory, &answer.mps_pipe_directory, &answer.mps_shm_directory}) {
    if (!path->empty() && !IsAbsolute(*path)) return Invalid(*path + " must be an absolute path");
  }
  if (answer.device_injection != DeviceInjection::kEnvvar &&
      (answer.cdi_kind.find('/') == std::string::npos || answer.cdi_annotation_prefix.empty() ||
       answer.cdi_annotation_prefix.back() != '/'))
    return Invalid("CDI needs a kind (vendor/class) and an annotation prefix that ends in '/'");
  return {};
}

base::Result<void> Check(const std::vector<Gpu>& gpus) {
  std::set<std::string> seen;
  for (const Gpu& gpu : gpus) {
    if (!IsUuid(gpu.uuid)) return Invalid("'" + gpu.uuid + "' cannot name a GPU's slots");
    if (!seen.insert(gpu.uuid).second) return Invalid("GPU " + gpu.uuid + " is there twice");
  }
  return {};
}

grpc::StatusCode CodeOf(RejectReason reason) {
  switch (reason) {
    case RejectReason::kEmptyRequest:
    case RejectReason::kTooManySlots:
    case RejectReason::kMalformedSlot:
    case RejectReason::kDuplicateSlot:
      return grpc::StatusCode::INVALID_ARGUMENT;
    case RejectReason::kUnknownGpu:
    case RejectReason::kUnknownSlot:
      return grpc::StatusCode::NOT_FOUND;
    case RejectReason::kUnhealthyGpu:
    case RejectReason::kWithheldGpu:
    case RejectReason::kAcrossGpus:
    case RejectReason::kMixedVendors:
    case RejectReason::kShimMissing:
      return grpc::StatusCode::FAILED_PRECONDITION;
    case RejectReason::kRecordsFull:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case RejectReason::kRecordsFailed:
    case RejectReason::kEnding:
      return grpc::StatusCode::UNAVAILABLE;
  }
  return grpc::StatusCode::INTERNAL;
}

void ToProto(const Answer& answer, ::v1beta1::ContainerAllocateResponse* out) {
  for (const auto& [name, value] : answer.environment) (*out->mutable_envs())[name] = value;
  for (const AnswerMount& mount : answer.mounts) {
    ::v1beta1::Mount* item = out->add_mounts();
    item->set_container_path(mount.container_path);
    item->set_host_path(mount.host_path);
    item->set_read_only(mount.read_only);
  }
  for (const std::string& node : answer.device_nodes) {
    ::v1beta1::DeviceSpec* item = out->add_devices();
    item->set_container_path(node);
    item->set_host_path(node);
    item->set_permissions("rw");
  }
  for (const auto& [name, value] : answer.annotations) (*out->mutable_annotations())[name] = value;
  for (const std::string& device : answer.cdi_devices) out->add_cdi_devices()->set_name(device);
}

class KubeletDevicePlugin final : public DevicePlugin, public PluginServerHandler {
 public:
  KubeletDevicePlugin(base::EventLoop* loop, PluginPlaces places, const PluginOptions& options,
                      PluginCallbacks callbacks)
      : loop_(loop),
        places_(std::move(places)),
        kubelet_socket_(places_.kubelet_directory + "/" + kKubeletSocket),
        own_socket_(places_.kubelet_directory + "/" + places_.socket_name),
        options_(options),
        callbacks_(std::move(callbacks)),
        alive_(std::make_shared<bool>(true)) {
    for (const RejectReason reason : kAllRejectReasons)
      state_.allocations_rejected_total[reason] = 0;
    for (const PreStartOutcome outcome : {PreStartOutcome::kStarted, PreStartOutcome::kRefused,
                                          PreStartOutcome::kTimeout, PreStartOutcome::kUnknown})
      state_.pre_starts_total[outcome] = 0;
    for (const RegisterCause cause :
         {RegisterCause::kFirst, RegisterCause::kKubelet, RegisterCause::kSocketLost,
          RegisterCause::kStreamLost, RegisterCause::kSelfCheck})
      state_.registrations_total[cause] = 0;
  }

  ~KubeletDevicePlugin() override {
    *alive_ = false;
    RemoveTimers();
    for (const auto& [pending, timer] : timers_of_calls_) loop_->RemoveTimer(timer);
  }

  base::Result<void> Begin() {
    auto store = AllocationStore::Open(loop_, places_.allocations);
    if (!store) return store.error();
    store_ = std::move(*store);
    pod_resources_ = PodResources::Make(loop_, places_.pod_resources_socket);
    auto server = PluginServer::Make(loop_, this);
    if (!server) return server.error();
    server_ = std::move(*server);
    calls_ = std::make_unique<AsyncCalls>(loop_);
    auto watch = DirectoryWatch::Start(loop_, places_.kubelet_directory, [this] { Look(); });
    if (!watch) return watch.error();
    watch_ = std::move(*watch);
    state_.detail = "no GPU to offer";
    ArmSelfCheck();
    return {};
  }

  // ---- DevicePlugin.
  base::Result<void> SetGpus(std::vector<Gpu> gpus) override {
    if (auto checked = Check(gpus); !checked) return checked;
    std::set<std::string> found;
    for (const Gpu& gpu : gpus) found.insert(gpu.uuid);
    for (Gpu& gpu : gpus_) {
      if (found.contains(gpu.uuid) || gpu.withheld) continue;
      gpu.healthy = false;
      gpu.unhealthy_reason = "gone: it is no longer found on this node";
      gpus.push_back(std::move(gpu));
    }
    std::sort(gpus.begin(), gpus.end(), [](const Gpu& a, const Gpu& b) {
      return a.index != b.index ? a.index < b.index : a.uuid < b.uuid;
    });
    gpus_ = std::move(gpus);
    Offer();
    return {};
  }

  base::Result<void> SetOptions(const PluginOptions& options) override {
    if (auto checked = Check(options); !checked) return checked;
    const bool check_changed = options.self_check_interval_ns != options_.self_check_interval_ns;
    options_ = options;
    if (check_changed) ArmSelfCheck();
    Offer();
    return {};
  }

  const PluginState& state() const override {
    state_.lists_sent_total = server_->lists_sent_total();
    state_.peers_refused_total = server_->peers_refused_total();
    return state_;
  }
  const std::vector<Gpu>& gpus() const override { return gpus_; }
  AllocationStore& allocations() override { return *store_; }
  PodResources& pod_resources() override { return *pod_resources_; }

  void Stop(StopKind kind, std::function<void()> done) override {
    if (stopping_) return;
    stopping_ = true;
    RemoveTimers();
    watch_.reset();
    server_->StopListening();
    if (kind == StopKind::kUninstall) server_->SetList({});
    SetRegistered(false, "the device plugin is ending");
    // What the agent has not answered by now it will not answer any more.
    for (const auto& pending : std::set(pre_starts_)) FinishPreStart(pending, std::nullopt);
    stopped_ = std::move(done);
    if (allocates_.empty()) return FinishStop();
    drain_timer_ = loop_->AddTimer(base::MonotonicNow() + kDrainNs, [this] {
      drain_timer_ = 0;
      FinishStop();
    });
  }

  // ---- PluginServerHandler.
  void GetPreferredAllocation(std::shared_ptr<PreferredCall> call) override {
    for (const auto& container : call->request().container_requests()) {
      PreferenceRequest request;
      request.available.assign(container.available_deviceids().begin(),
                               container.available_deviceids().end());
      request.must_include.assign(container.must_include_deviceids().begin(),
                                  container.must_include_deviceids().end());
      request.size = container.allocation_size();
      auto* answer = call->response()->add_container_responses();
      for (const std::string& slot :
           PreferSlots(gpus_, options_.slots_per_gpu, options_.packing, request))
        answer->add_deviceids(slot);
    }
    call->Finish(grpc::Status::OK);
  }

  void Allocate(std::shared_ptr<AllocateCall> call) override {
    const Nanos now_ns = base::MonotonicNow();
    auto pending = std::make_shared<PendingAllocate>();
    pending->call = call;
    pending->arrived_ns = now_ns;
    std::optional<Rejection> rejection;
    if (stopping_) {
      rejection =
          Rejection{RejectReason::kEnding, "the device plugin is ending; it is tried again"};
    } else if (call->request().container_requests().empty()) {
      rejection = Rejection{RejectReason::kEmptyRequest, "a request for no container"};
    } else if (options_.answer.shim_directory.empty()) {
      rejection = Rejection{RejectReason::kShimMissing,
                            "no shim is installed on this node: the GPU would be unprotected; look "
                            "at the agent's log"};
    }
    for (const auto& container : call->request().container_requests()) {
      if (rejection.has_value()) break;
      auto judged =
          JudgeAllocation({container.devices_ids().begin(), container.devices_ids().end()}, gpus_,
                          options_.slots_per_gpu);
      if (auto* wrong = std::get_if<Rejection>(&judged)) {
        rejection = std::move(*wrong);
      } else {
        pending->grants.push_back(std::get<Grant>(std::move(judged)));
      }
    }
    if (rejection.has_value()) return Reject(call, *rejection);

    pending->options = options_.answer;
    pending->given_ns = base::MonotonicNow();
    pending->records.resize(pending->grants.size());
    pending->waiting = pending->grants.size();
    allocates_.insert(pending);
    timers_of_calls_[pending.get()] =
        loop_->AddTimer(now_ns + options_.allocate_budget_ns, [this, pending] {
          timers_of_calls_.erase(pending.get());
          FailAllocate(pending, {RejectReason::kRecordsFailed,
                                 "the allocation could not be written to disk in time"});
        });
    for (size_t i = 0; i < pending->grants.size(); ++i) {
      store_->Add(NewRecord(pending->grants[i]),
                  [this, alive = alive_, pending, i](base::Result<AllocationRecord> record) {
                    if (*alive) Recorded(pending, i, std::move(record));
                  });
    }
  }

  void PreStartContainer(std::shared_ptr<PreStartCall> call) override {
    const auto& ids = call->request().devices_ids();
    const std::vector<AllocationRecord> records = store_->OfSlots({ids.begin(), ids.end()});
    auto pending = std::make_shared<PendingPreStart>();
    pending->call = std::move(call);
    pre_starts_.insert(pending);
    if (records.empty()) return FinishPreStart(pending, PreStartOutcome::kUnknown);
    if (stopping_) return FinishPreStart(pending, std::nullopt);
    if (!callbacks_.pre_start) return FinishPreStart(pending, PreStartOutcome::kStarted);
    timers_of_calls_[pending.get()] =
        loop_->AddTimer(base::MonotonicNow() + options_.pre_start_budget_ns, [this, pending] {
          timers_of_calls_.erase(pending.get());
          FinishPreStart(pending, PreStartOutcome::kTimeout);
        });
    callbacks_.pre_start(records, [this, alive = alive_, pending](const PreStartVerdict& verdict) {
      if (!*alive) return;
      FinishPreStart(pending,
                     verdict.refuse ? PreStartOutcome::kRefused : PreStartOutcome::kStarted,
                     verdict.message);
    });
  }

  void StreamOpened() override {
    if (stopping_) return;
    if (phase_ == Phase::kWaitingForStream) Settle();
  }

  void StreamLost(size_t left) override {
    if (stopping_ || left > 0) return;
    if (phase_ != Phase::kSettled) return;  // The attempt's own deadline sees to it.
    Want(RegisterCause::kStreamLost, "the kubelet ended its stream");
    Look();
  }

 private:
  struct PendingAllocate {
    std::shared_ptr<AllocateCall> call;
    AnswerOptions options;
    std::vector<Grant> grants;
    std::vector<std::optional<AllocationRecord>> records;
    size_t waiting = 0;
    bool failed = false;
    Nanos arrived_ns = 0;
    Nanos given_ns = 0;  // To the disk.
  };
  struct PendingPreStart {
    std::shared_ptr<PreStartCall> call;
  };

  // Of the registration. An attempt goes through the three in the middle, and looks again at its
  // end for what happened meanwhile.
  enum class Phase : uint8_t { kIdle, kDialing, kRegistering, kWaitingForStream, kSettled };

  AllocationRecord NewRecord(const Grant& grant) const {
    const Vendor vendor = grant.gpus.front().vendor;
    const AnswerOptions& answer = options_.answer;
    AllocationRecord record;
    record.slots = grant.slots;
    for (const Gpu& gpu : grant.gpus) record.gpus.push_back(gpu.uuid);
    record.vendor = VendorName(vendor);
    record.slots_per_gpu = options_.slots_per_gpu;
    record.host_folders.push_back(answer.shim_directory);
    if (vendor == Vendor::kSoftware && !answer.software_library_directory.empty())
      record.host_folders.push_back(answer.software_library_directory);
    return record;
  }

  void Reject(const std::shared_ptr<AllocateCall>& call, const Rejection& rejection) {
    ++state_.allocations_rejected_total[rejection.reason];
    call->Finish(grpc::Status(
        CodeOf(rejection.reason),
        std::string("rubato: ") + RejectReasonName(rejection.reason) + ": " + rejection.message));
  }

  void Recorded(const std::shared_ptr<PendingAllocate>& pending, size_t index,
                base::Result<AllocationRecord> record) {
    --pending->waiting;
    if (record.ok()) {
      // Too late: nobody will mount its directory.
      if (pending->failed) return store_->Release(record->token, nullptr);
      pending->records[index] = std::move(*record);
    } else {
      const bool full = record.error().code == base::ErrorCode::kFull;
      FailAllocate(pending, {full ? RejectReason::kRecordsFull : RejectReason::kRecordsFailed,
                             record.error().message});
    }
    if (pending->failed || pending->waiting > 0) return;

    state_.last_allocate_disk_ns = base::MonotonicNow() - pending->given_ns;
    for (size_t i = 0; i < pending->grants.size(); ++i) {
      const AllocationRecord& made = *pending->records[i];
      ToProto(BuildAnswer(pending->grants[i], made.token, store_->DirectoryOf(made.token),
                          pending->options),
              pending->call->response()->add_container_responses());
      ++state_.allocations_total;
      if (callbacks_.allocated) callbacks_.allocated(made);
    }
    pending->call->Finish(grpc::Status::OK);
    state_.last_allocate_ns = base::MonotonicNow() - pending->arrived_ns;
    EndAllocate(pending);
  }

  void FailAllocate(const std::shared_ptr<PendingAllocate>& pending, const Rejection& rejection) {
    if (pending->failed) return;
    pending->failed = true;
    Reject(pending->call, rejection);
    for (const auto& record : pending->records) {
      if (record.has_value()) store_->Release(record->token, nullptr);
    }
    EndAllocate(pending);
  }

  void EndAllocate(const std::shared_ptr<PendingAllocate>& pending) {
    RemoveCallTimer(pending.get());
    allocates_.erase(pending);
    if (stopping_ && allocates_.empty() && drain_timer_ != 0) {
      loop_->RemoveTimer(drain_timer_);
      drain_timer_ = 0;
      FinishStop();
    }
  }

  // nullopt: the plugin ends.
  void FinishPreStart(const std::shared_ptr<PendingPreStart>& pending,
                      std::optional<PreStartOutcome> outcome, const std::string& message = "") {
    if (pre_starts_.erase(pending) == 0) return;
    RemoveCallTimer(pending.get());
    ++state_.pre_starts_total[outcome.value_or(PreStartOutcome::kTimeout)];
    if (outcome == PreStartOutcome::kRefused) {
      pending->call->Finish(
          grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "rubato: " + message));
    } else {
      pending->call->Finish(grpc::Status::OK);
    }
  }

  void RemoveCallTimer(const void* pending) {
    const auto found = timers_of_calls_.find(pending);
    if (found == timers_of_calls_.end()) return;
    loop_->RemoveTimer(found->second);
    timers_of_calls_.erase(found);
  }

  // ---- What is offered.
  void Offer() {
    ::v1beta1::ListAndWatchResponse list;
    std::set<std::string> all, healthy;
    for (const Gpu& gpu : gpus_) {
      if (gpu.withheld) continue;
      for (uint32_t number = 0; number < options_.slots_per_gpu; ++number) {
        ::v1beta1::Device* device = list.add_devices();
        device->set_id(FormatSlotId(gpu.uuid, number));
        device->set_health(gpu.healthy ? "Healthy" : "Unhealthy");
        if (options_.numa_topology && gpu.numa_node >= 0)
          device->mutable_topology()->add_nodes()->set_id(gpu.numa_node);
        all.insert(device->id());
        if (gpu.healthy) healthy.insert(device->id());
      }
    }
    std::string text = list.SerializeAsString();
    if (text == list_text_) return;
    const bool first = list_text_.empty() && !text.empty() && !offered_;
    list_text_ = std::move(text);
    all_ = std::move(all);
    healthy_ = std::move(healthy);
    ++list_generation_;
    state_.slots_listed = static_cast<uint32_t>(all_.size());
    state_.slots_healthy = static_cast<uint32_t>(healthy_.size());
    if (stopping_) return;
    server_->SetList(list);
    if (!first) return;
    // Only now: an empty list would say that this node has lost its GPUs.
    offered_ = true;
    wanted_ = RegisterCause::kFirst;
    Look();
  }

  // ---- Registration.
  void SetRegistered(bool registered, const std::string& detail) {
    if (state_.registered == registered && state_.detail == detail) return;
    state_.registered = registered;
    state_.registered_since_ns = registered ? base::MonotonicNow() : 0;
    state_.detail = detail;
    if (callbacks_.changed) callbacks_.changed();
  }

  // The registration is void. Where a kubelet still reads our list, it must see the end of that
  // before it hears of us again.
  void Want(RegisterCause cause, const std::string& detail) {
    const Nanos now_ns = base::MonotonicNow();
    phase_ = Phase::kIdle;
    if (!wanted_.has_value()) wanted_ = cause;
    server_->EndStreams();
    const bool stable = state_.registered && now_ns - state_.registered_since_ns >= kStableNs;
    backoff_ns_ = stable ? 0 : std::clamp(2 * backoff_ns_, kFirstBackoffNs, kLongestBackoffNs);
    not_before_ns_ = now_ns + std::max(kAfterStreamNs, backoff_ns_);
    SetRegistered(false, detail);
  }

  // Compares what is with what should be. Called whenever something may have changed.
  void Look() {
    if (stopping_ || !offered_) return;
    const Nanos now_ns = base::MonotonicNow();
    const std::optional<FileIdentity> kubelet = SocketIdentity(kubelet_socket_);
    if (phase_ == Phase::kWaitingForStream && kubelet != attempt_with_) {
      // It was restarted before it read the list.
      loop_->RemoveTimer(stream_timer_);
      stream_timer_ = 0;
      phase_ = Phase::kIdle;
    }
    if (phase_ != Phase::kIdle && phase_ != Phase::kSettled) return;
    if (phase_ == Phase::kSettled) {
      if (kubelet.has_value() && kubelet != registered_with_) {
        Want(RegisterCause::kKubelet, "the kubelet was restarted");
      } else if (!server_->SocketInPlace()) {
        Want(RegisterCause::kSocketLost, own_socket_ + " was deleted");
      } else {
        return;
      }
    }
    if (!kubelet.has_value()) {
      seen_.reset();
      LookAgain(now_ns + kAbsentNs);
      watch_->Check();
      return SetRegistered(
          false, watch_->watching()
                     ? "waiting for " + kubelet_socket_
                     : places_.kubelet_directory +
                           " does not exist; is this a Kubernetes node, and is it mounted?");
    }
    if (kubelet != seen_) {
      // A new kubelet has not refused anything yet.
      seen_ = kubelet;
      backoff_ns_ = 0;
      if (server_->streams() == 0)
        not_before_ns_ = std::min(not_before_ns_, now_ns + kAfterStreamNs);
    }
    if (now_ns < not_before_ns_) return LookAgain(not_before_ns_);
    Attempt(*kubelet);
  }

  void LookAgain(Nanos at_ns) {
    loop_->RemoveTimer(retry_timer_);
    retry_timer_ = loop_->AddTimer(at_ns, [this] {
      retry_timer_ = 0;
      Look();
    });
  }

  void Attempt(const FileIdentity& kubelet) {
    attempt_with_ = kubelet;
    if (wanted_ != RegisterCause::kFirst && registered_with_.has_value() &&
        registered_with_ != kubelet)
      wanted_ = RegisterCause::kKubelet;
    server_->EndStreams();
    if (!server_->SocketInPlace()) {
      if (auto listening = server_->Listen(own_socket_); !listening)
        return Failed(listening.error().message);
    }
    phase_ = Phase::kDialing;
    SetRegistered(false, "registering");
    auto stub = ::v1beta1::DevicePlugin::NewStub(UnixChannel(own_socket_));
    calls_->Call<::v1beta1::Empty, ::v1beta1::DevicePluginOptions, bool>(
        kSelfDialNs, {},
        [&stub](auto... call) { stub->async()->GetDevicePluginOptions(std::move(call)...); },
        [](const ::v1beta1::DevicePluginOptions& answer) { return answer.pre_start_required(); },
        [this](const grpc::Status& status, bool answered) {
          if (stopping_) return;
          if (!status.ok() || !answered)
            return Failed("the plugin does not answer its own call: " + status.error_message());
          Register();
        });
  }

  void Register() {
    phase_ = Phase::kRegistering;
    ::v1beta1::RegisterRequest request;
    request.set_version(kVersion);
    request.set_endpoint(places_.socket_name);
    request.set_resource_name(places_.resource_name);
    request.mutable_options()->set_pre_start_required(true);
    request.mutable_options()->set_get_preferred_allocation_available(true);
    auto stub = ::v1beta1::Registration::NewStub(UnixChannel(kubelet_socket_));
    calls_->Call<::v1beta1::RegisterRequest, ::v1beta1::Empty, bool>(
        kRegisterNs, std::move(request),
        [&stub](auto... call) { stub->async()->Register(std::move(call)...); },
        [](const ::v1beta1::Empty&) { return true; },
        [this](const grpc::Status& status, bool) {
          if (stopping_) return;
          if (!status.ok())
            return Failed("the kubelet does not register the plugin: " + status.error_message());
          phase_ = Phase::kWaitingForStream;
          if (server_->streams() > 0) return Settle();
          stream_timer_ = loop_->AddTimer(base::MonotonicNow() + kStreamNs, [this] {
            stream_timer_ = 0;
            Failed("the kubelet registered the plugin, but does not read its list");
          });
        });
  }

  void Settle() {
    loop_->RemoveTimer(stream_timer_);
    stream_timer_ = 0;
    phase_ = Phase::kSettled;
    registered_with_ = attempt_with_;
    ++state_.registrations_total[wanted_.value_or(RegisterCause::kKubelet)];
    wanted_.reset();
    mismatch_generation_ = 0;
    SetRegistered(true, "");
    Look();
  }

  void Failed(const std::string& detail) {
    ++state_.registrations_failed_total;
    phase_ = Phase::kIdle;
    backoff_ns_ = std::clamp(2 * backoff_ns_, kFirstBackoffNs, kLongestBackoffNs);
    not_before_ns_ = base::MonotonicNow() + backoff_ns_;
    SetRegistered(false, detail);
    Look();
  }

  // ---- The self-check.
  void ArmSelfCheck() {
    loop_->RemoveTimer(check_timer_);
    check_timer_ = 0;
    if (options_.self_check_interval_ns == 0 || stopping_) return;
    const Nanos after_ns = mismatch_generation_ != 0
                               ? std::min(kSecondLookNs, options_.self_check_interval_ns)
                               : options_.self_check_interval_ns;
    check_timer_ = loop_->AddTimer(base::MonotonicNow() + after_ns, [this] {
      check_timer_ = 0;
      SelfCheck();
    });
  }

  void SelfCheck() {
    Look();  // Where an event was lost.
    if (phase_ != Phase::kSettled) return ArmSelfCheck();
    const Nanos since_ns = state_.registered_since_ns;
    pod_resources_->GetAllocatable(kAllocatableNs,
                                   [this, since_ns, generation = list_generation_](
                                       const base::Result<std::vector<HeldDevices>>& answer) {
                                     if (stopping_) return;
                                     Compare(since_ns, generation, answer);
                                     ArmSelfCheck();
                                   });
  }

  void Compare(Nanos since_ns, uint64_t generation,
               const base::Result<std::vector<HeldDevices>>& answer) {
    if (!answer) {
      ++state_.self_checks_unanswered_total;
      return;
    }
    if (phase_ != Phase::kSettled || state_.registered_since_ns != since_ns ||
        generation != list_generation_) {
      mismatch_generation_ = 0;
      return;  // It was asked about another state of things.
    }
    std::set<std::string> counted;
    for (const HeldDevices& devices : *answer) {
      if (devices.resource_name == places_.resource_name)
        counted.insert(devices.ids.begin(), devices.ids.end());
    }
    // Older kubelets count unhealthy devices in.
    const bool matches =
        std::includes(counted.begin(), counted.end(), healthy_.begin(), healthy_.end()) &&
        std::includes(all_.begin(), all_.end(), counted.begin(), counted.end());
    if (matches) {
      mismatch_generation_ = 0;
    } else if (mismatch_generation_ != generation) {
      mismatch_generation_ = generation;
    } else {
      mismatch_generation_ = 0;
      ++state_.self_checks_failed_total;
      Want(RegisterCause::kSelfCheck, "the kubelet counts " + std::to_string(counted.size()) +
                                          " slots, the plugin offers " +
                                          std::to_string(healthy_.size()));
      Look();
    }
  }

  // ---- The end.
  void RemoveTimers() {
    for (base::EventLoop::TimerId* timer :
         {&retry_timer_, &stream_timer_, &check_timer_, &drain_timer_}) {
      loop_->RemoveTimer(*timer);
      *timer = 0;
    }
  }

  void FinishStop() {
    for (const auto& pending : std::set(allocates_))
      FailAllocate(pending, {RejectReason::kEnding, "the device plugin is ending"});
    server_->Shutdown(std::move(stopped_));
  }

  base::EventLoop* loop_;
  const PluginPlaces places_;
  const std::string kubelet_socket_;
  const std::string own_socket_;
  PluginOptions options_;
  PluginCallbacks callbacks_;
  std::shared_ptr<bool> alive_;  // Loop's thread.
  mutable PluginState state_;

  std::vector<Gpu> gpus_;
  bool offered_ = false;
  std::string list_text_;
  std::set<std::string> all_;
  std::set<std::string> healthy_;
  uint64_t list_generation_ = 0;

  Phase phase_ = Phase::kIdle;
  std::optional<RegisterCause> wanted_;
  std::optional<FileIdentity> registered_with_;
  std::optional<FileIdentity> attempt_with_;
  std::optional<FileIdentity> seen_;
  Nanos backoff_ns_ = 0;
  Nanos not_before_ns_ = 0;
  base::EventLoop::TimerId retry_timer_ = 0;
  base::EventLoop::TimerId stream_timer_ = 0;
  base::EventLoop::TimerId check_timer_ = 0;
  uint64_t mismatch_generation_ = 0;  // The list that did not match once; 0: none.

  std::set<std::shared_ptr<PendingAllocate>> allocates_;
  std::set<std::shared_ptr<PendingPreStart>> pre_starts_;
  std::map<const void*, base::EventLoop::TimerId> timers_of_calls_;

  bool stopping_ = false;
  std::function<void()> stopped_;
  base::EventLoop::TimerId drain_timer_ = 0;

  // In this order, so that they end in the reverse one: what calls back first.
  std::unique_ptr<AllocationStore> store_;
  std::unique_ptr<PluginServer> server_;
  std::unique_ptr<PodResources> pod_resources_;
  std::unique_ptr<AsyncCalls> calls_;
  std::unique_ptr<DirectoryWatch> watch_;
};

}  // namespace

const char* PreStartOutcomeName(PreStartOutcome outcome) {
  switch (outcome) {
    case PreStartOutcome::kStarted:
      return "started";
    case PreStartOutcome::kRefused:
      return "refused";
    case PreStartOutcome::kTimeout:
      return "timeout";
    case PreStartOutcome::kUnknown:
      break;
  }
  return "unknown";
}

const char* RegisterCauseName(RegisterCause cause) {
  switch (cause) {
    case RegisterCause::kFirst:
      return "first";
    case RegisterCause::kKubelet:
      return "kubelet";
    case RegisterCause::kSocketLost:
      return "socket-lost";
    case RegisterCause::kStreamLost:
      return "stream-lost";
    case RegisterCause::kSelfCheck:
      break;
  }
  return "self-check";
}

base::Result<std::unique_ptr<DevicePlugin>> DevicePlugin::Start(base::EventLoop* loop,
                                                                const PluginPlaces& places,
                                                                const PluginOptions& options,
                                                                PluginCallbacks callbacks) {
  if (auto checked = Check(places); !checked) return checked.error();
  if (auto checked = Check(options); !checked) return checked.error();
  auto plugin = std::make_unique<KubeletDevicePlugin>(loop, places, options, std::move(callbacks));
  if (auto begun = plugin->Begin(); !begun) return begun.error();
  return std::unique_ptr<DevicePlugin>(std::move(plugin));
}

}  // namespace rubato::deviceplugin
