#include "agent/agent.h"

#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <future>
#include <random>
#include <set>
#include <utility>

#include "agent/config/keys.h"
#include "agent/gpu/software_gpu.h"
#include "agent/install/cleanup.h"
#include "agent/install/shim_store.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/notify.h"
#include "base/runtime_dir.h"

namespace rubato::agent {
namespace {

using base::Error;
using base::ErrorCode;
using base::Nanos;
using base::Result;
using deviceplugin::AllocationRecord;
using deviceplugin::PreStartVerdict;

constexpr Nanos kStatusInterval = 2 * base::kSecond;
constexpr Nanos kHeldInterval = 10 * base::kSecond;
constexpr Nanos kHeldRetry = base::kSecond;
constexpr Nanos kHeldLimit = 2 * base::kSecond;
// Bursts of pod changes make one join.
constexpr Nanos kJoinInterval = 100 * base::kMillisecond;
// The plugin lets a container start after a second; ours is up a little before.
constexpr Nanos kPreStartLimit = 850 * base::kMillisecond;
constexpr Nanos kPreStartRetry = 50 * base::kMillisecond;
constexpr auto kPictureLimit = std::chrono::seconds(2);

std::string Word(AllocationState state) {
  switch (state) {
    case AllocationState::kWaiting:
      return "waiting";
    case AllocationState::kLive:
      return "live";
    case AllocationState::kEnded:
      return "ended";
    case AllocationState::kReleasable:
      return "releasable";
  }
  return "";
}

TenantBook::Options BookOptions(const Config& config) {
  TenantBook::Options options;
  options.resource_name = config.resource_name;
  options.selection.resource = config.resource_name;
  options.selection.annotation_domain =
      config.annotation_prefix.substr(0, config.annotation_prefix.size() - 1);
  options.without_pods = config.api_server == "none";
  return options;
}

// NVIDIA's nodes that every GPU needs, as far as the driver has made them.
std::vector<std::string> SharedNvidiaNodes() {
  std::vector<std::string> out;
  for (const char* node : {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}) {
    struct stat info {};
    if (::stat(node, &info) == 0) out.emplace_back(node);
  }
  return out;
}

deviceplugin::Vendor ToPlugin(GpuVendor vendor) {
  switch (vendor) {
    case GpuVendor::kNvidia:
      return deviceplugin::Vendor::kNvidia;
    case GpuVendor::kAmd:
      return deviceplugin::Vendor::kAmd;
    case GpuVendor::kSoftware:
      return deviceplugin::Vendor::kSoftware;
  }
  return deviceplugin::Vendor::kSoftware;
}

bool OtherPluginsResource(const std::string& name, const std::string& ours) {
  return name != ours && (name.starts_with("nvidia.com/") || name.starts_with("amd.com/"));
}

}  // namespace

struct Agent::PreStart {
  std::vector<std::string> tokens;  // Newest first.
  std::function<void(PreStartVerdict)> reply;
  base::EventLoop::TimerId deadline = 0;
  base::EventLoop::TimerId retry = 0;
  uint64_t asked_at = 0;  // Answers of the kubelet that had come before.
  const char* why_open = "pod-resources";
  size_t waiting = 0;  // Answers of the reconciler that are still to come.
  bool ensured = false;
  PreStartVerdict verdict;
};

Agent::Agent(const Config& config, ConfigSources sources)
    : config_(config),
      start_config_(config),
      sources_(std::move(sources)),
      census_([](int64_t pid) { return ReadProcess(pid); }) {}

Result<std::unique_ptr<Agent>> Agent::Start(const Config& config, ConfigSources sources) {
  std::unique_ptr<Agent> agent(new Agent(config, std::move(sources)));
  if (auto begun = agent->Begin(); !begun) return begun.error();
  return agent;
}

Result<void> Agent::Begin() {
  started_ns_ = base::MonotonicNow();
  auto lock = LockHostRoot(config_.host_root);
  if (!lock) return lock.error();
  lock_ = std::move(*lock);
  auto loop = base::EventLoop::Make();
  if (!loop) return loop.error();
  loop_ = std::move(*loop);
  // Before any thread starts, so that all of them have these signals blocked.
  for (const int number : {SIGTERM, SIGINT}) {
    if (auto added = loop_->AddSignal(number, [this] { End(); }); !added) return added;
  }
  if (auto added = loop_->AddSignal(SIGHUP, [this] { Reload("SIGHUP"); }); !added) return added;
  if (!sources_.path.empty()) {
    auto watch = FileWatch::Start(loop_.get(), sources_.path, [this] { Reload("file"); });
    if (!watch) return watch.error();
    file_watch_ = std::move(*watch);
  }
  inventory_.SetRules(GpuInventory::RulesOf(config_));
  if (auto begun = BeginPlugin(); !begun) return begun;
  if (auto begun = BeginKube(); !begun) return begun;
  BeginTenants();
  if (auto begun = BeginServers(); !begun) return begun;
  if (auto begun = BeginGpus(); !begun) return begun;
  RefreshHeld();
  return {};
}

Result<void> Agent::BeginGpus() {
  GpuLibraryOpener opener;
  const std::string root = config_.driver_root;
  switch (config_.gpu_source) {
    case GpuSource::kNvml:
      opener = [root] { return OpenNvml(root); };
      break;
    case GpuSource::kAmd:
      opener = [root] { return OpenRocmSmi(root); };
      break;
    case GpuSource::kAuto:
      opener = [root]() -> Result<std::unique_ptr<GpuLibrary>> {
        auto nvml = OpenNvml(root);
        if (nvml || nvml.error().code != ErrorCode::kNotFound) return nvml;
        auto amd = OpenRocmSmi(root);
        if (amd || amd.error().code != ErrorCode::kNotFound) return amd;
        return Error{ErrorCode::kNotFound,
                     "there is neither NVIDIA's nor AMD's library below " + root +
                         "; set gpu.driverRoot, or gpu.fakeDevices for a try-out"};
      };
      break;
    case GpuSource::kSoftware: {
      SoftwareGpuPlaces places;
      places.socket_dir = config_.softgpu_socket_directory();
      places.library_dir = config_.softgpu_library_dir.empty() ? FindSoftwareGpuLibraries()
                                                               : config_.softgpu_library_dir;
      places.devices = config_.fake_devices;
      places.may_start = !config_.api_server.empty();
      if (auto prepared = PrepareSoftwareGpu(places); !prepared) return prepared;
      opener = [places] { return OpenSoftwareGpu(places); };
      break;
    }
  }
  gpu_watch_ = std::make_unique<GpuWatch>(
      loop_.get(), std::move(opener),
      GpuWatch::Options{config_.gpu_poll_interval_ns, config_.gpu_hang_limit_ns},
      [this](const GpuReport& report) { OnGpuReport(report); });
  return {};
}

deviceplugin::PluginOptions Agent::MakePluginOptions() const {
  deviceplugin::PluginOptions options;
  options.slots_per_gpu = config_.slots_per_gpu;
  options.packing = config_.placement == Placement::kSpread ? deviceplugin::Packing::kSpread
                                                            : deviceplugin::Packing::kPacked;
  options.numa_topology = config_.numa_hints;
  deviceplugin::AnswerOptions& answer = options.answer;
  switch (config_.device_injection) {
    case DeviceInjection::kEnvvar:
      answer.device_injection = deviceplugin::DeviceInjection::kEnvvar;
      break;
    case DeviceInjection::kCdiAnnotations:
      answer.device_injection = deviceplugin::DeviceInjection::kCdiAnnotations;
      break;
    case DeviceInjection::kCdi:
      answer.device_injection = deviceplugin::DeviceInjection::kCdi;
      break;
  }
  answer.shim_injection = config_.shim_injection == ShimInjection::kEnv
                              ? deviceplugin::ShimInjection::kEnv
                              : deviceplugin::ShimInjection::kPreloadFile;
  answer.shim_directory = CurrentFolder(config_.host_root, "shim");
  answer.driver_capabilities = config_.driver_capabilities;
  answer.pass_device_nodes = config_.pass_device_nodes;
  answer.cdi_kind = config_.cdi_kind;
  answer.cdi_annotation_prefix = config_.cdi_annotation_prefix;
  if (config_.gpu_source == GpuSource::kSoftware) {
    answer.software_library_directory = CurrentFolder(config_.host_root, "softgpu");
    answer.software_device_directory = config_.softgpu_socket_directory();
  }
  if (config_.mode != SharingMode::kTimeslice) {
    answer.mps_pipe_directory = config_.mps_pipe_dir;
    answer.mps_shm_directory = config_.mps_shm_dir;
  }
  return options;
}

Result<void> Agent::BeginPlugin() {
  deviceplugin::PluginPlaces places;
  places.resource_name = config_.resource_name;
  places.kubelet_directory = config_.kubelet_root + "/device-plugins";
  places.pod_resources_socket = config_.kubelet_root + "/pod-resources/kubelet.sock";
  places.allocations.directory = config_.alloc_directory();
  places.allocations.records_file = config_.records_path();
  const deviceplugin::PluginOptions options = MakePluginOptions();
  plugin_options_ = options;
  if (options.answer.shim_directory.empty()) {
    base::LogWarning(
        "no shim is installed in {}/shim, so every allocation will be refused; run rubato-agent "
        "install-shim",
        config_.host_root);
  }
  deviceplugin::PluginCallbacks callbacks;
  callbacks.pre_start = [this](const std::vector<AllocationRecord>& records, auto reply) {
    OnPreStart(records, std::move(reply));
  };
  callbacks.allocated = [this](const AllocationRecord& record) {
    base::LogInfo("token={} allocated {} slots of {}", record.token.substr(0, 8),
                  record.slots.size(), record.gpus.empty() ? "" : record.gpus.front());
    RefreshHeld();
    ScheduleJoin();
  };
  callbacks.changed = [this] { RefreshHealth(); };
  auto plugin =
      deviceplugin::DevicePlugin::Start(loop_.get(), places, options, std::move(callbacks));
  if (!plugin) return plugin.error();
  plugin_ = std::move(*plugin);
  const deviceplugin::AllocationStore::Opening& opening = plugin_->allocations().opening();
  base::LogInfo("{} allocations on record", opening.records);
  if (!opening.set_aside.empty()) {
    base::LogError("the allocation records could not be read ({}) and were moved to {}",
                   opening.problem, opening.set_aside);
  }
  for (const std::string& token : opening.remade)
    base::LogWarning("token={} had lost its directory; made again", token.substr(0, 8));
  if (!opening.unrecorded.empty())
    base::LogWarning("{} directories below {} are named by no record; kept",
                     opening.unrecorded.size(), config_.alloc_directory());
  return {};
}

Result<void> Agent::BeginKube() {
  if (config_.api_server == "none") return {};
  if (config_.node_name.empty())
    return Error{ErrorCode::kInvalid,
                 "the name of this node is not known; set NODE_NAME or kubernetes.nodeName"};
  const auto endpoint =
      config_.api_server.empty()
          ? kube::InClusterEndpoint([](const std::string& name) -> std::optional<std::string> {
              const char* value = std::getenv(name.c_str());
              if (value == nullptr) return std::nullopt;
              return std::string(value);
            })
          : kube::CheckEndpoint({config_.api_server, config_.api_ca_file, config_.api_token_file});
  if (!endpoint) return endpoint.error();
  auto transport =
      kube::CurlTransport::Make(loop_.get(), *endpoint, "rubato-agent/" RUBATO_VERSION);
  if (!transport) return transport.error();
  transport_ = std::move(*transport);
  timers_ = std::make_unique<kube::LoopTimers>(loop_.get());
  auto random = [engine = std::make_shared<std::mt19937_64>(std::random_device{}())] {
    return (*engine)();
  };
  client_ = std::make_unique<kube::ApiClient>(transport_.get(), timers_.get(), random,
                                              kube::ApiClient::Limits{});
  kube::PodWatch::Options options;
  options.node_name = config_.node_name;
  options.selection = BookOptions(config_).selection;
  pods_ = std::make_unique<kube::PodWatch>(
      transport_.get(), timers_.get(), random, options,
      [this](kube::PodWatch::Change change, const kube::Pod& pod) { OnPodChange(change, pod); },
      [this] {
        base::LogInfo("{} pods of this node ask for {}", pods_->pods().size(),
                      config_.resource_name);
        ScheduleJoin();
      });
  kube::EventRecorder::Options event_options;
  event_options.node_name = config_.node_name;
  events_ = std::make_unique<kube::EventRecorder>(client_.get(), timers_.get(), event_options);
  if (config_.node_labels) {
    labels_ = std::make_unique<kube::NodeLabels>(client_.get(), timers_.get(), config_.node_name);
  }
  return {};
}

void Agent::BeginTenants() {
  book_ = std::make_unique<TenantBook>(BookOptions(config_), TenantPolicy::Of(config_));
  link_ = SchedulerLink::Make(
      loop_.get(), config_.scheduler_runtime_dir + "/" + base::kControlSocketName, kStatusInterval);
  Reconciler::Callbacks callbacks;
  callbacks.tell = [this](const PodRef& pod, const Notice& notice) { Tell(pod, notice); };
  callbacks.changed = [this] { RefreshHealth(); };
  callbacks.device_name = [this](const std::string& uuid) {
    const KnownGpu* gpu = inventory_.Find(uuid);
    return gpu == nullptr ? uuid : std::to_string(gpu->reading.index);
  };
  callbacks.wake = [this](Nanos at_ns) {
    loop_->RemoveTimer(pump_timer_);
    pump_timer_ = loop_->AddTimer(at_ns, [this] {
      pump_timer_ = 0;
      reconciler_->Pump(base::MonotonicNow());
    });
  };
  reconciler_ = std::make_unique<Reconciler>(link_.get(), std::move(callbacks));
  link_->Start(
      {[this](const control::GetStatusResponse& status) { OnSchedulerStatus(status); },
       [this](const std::string& why) { reconciler_->OnLost(why, base::MonotonicNow()); }});
  if (pods_ != nullptr) pods_->Start();
  ScheduleJoin();
}

Result<void> Agent::BeginServers() {
  if (!config_.health_socket.empty()) {
    auto health = HealthService::Start(config_.health_socket);
    if (!health) return health.error();
    health_ = std::move(*health);
  }
  if (config_.metrics_address.empty()) return {};
  const auto unavailable = [] {
    return HttpAnswer{503, "text/plain; charset=utf-8", "the agent's loop does not turn\n"};
  };
  std::vector<HttpServer::Page> pages;
  pages.push_back(
      {"/metrics", [this, unavailable]() -> HttpAnswer {
         const auto picture = PictureFromOtherThread();
         if (!picture.has_value()) return unavailable();
         return {200, "text/plain; version=0.0.4; charset=utf-8", MetricsText(*picture)};
       }});
  pages.push_back({"/healthz", [this, unavailable]() -> HttpAnswer {
                     if (!PictureFromOtherThread().has_value()) return unavailable();
                     return {200, "text/plain; charset=utf-8", "alive\n"};
                   }});
  pages.push_back({"/readyz", [this, unavailable]() -> HttpAnswer {
                     const auto picture = PictureFromOtherThread();
                     if (!picture.has_value()) return unavailable();
                     if (picture->readiness.ready())
                       return {200, "text/plain; charset=utf-8", "ready\n"};
                     std::string body = "not ready\n";
                     for (const std::string& line : picture->readiness.missing)
                       body += "- " + line + "\n";
                     return {503, "text/plain; charset=utf-8", std::move(body)};
                   }});
  auto http = HttpServer::Start(config_.metrics_address, std::move(pages));
  if (!http) return http.error();
  http_ = std::move(*http);
  http_address_ = http_->address();
  return {};
}

Agent::~Agent() {
  // Those with threads that post to the loop or wait for it first.
  http_.reset();
  health_.reset();
  reconciler_.reset();
  link_.reset();
  labels_.reset();
  events_.reset();
  pods_.reset();
  client_.reset();
  transport_.reset();
  pre_starts_.clear();
  plugin_.reset();
  gpu_watch_.reset();
  file_watch_.reset();
}

void Agent::Run() {
  base::LogInfo("serving {} for node {} from {}; metrics={}", config_.resource_name,
                config_.node_name.empty() ? "(no name)" : config_.node_name, config_.host_root,
                http_address_.empty() ? "none" : http_address_);
  base::NotifyReady();
  loop_->Run();
}

void Agent::End() {
  if (ending_) {
    loop_->Stop();  // Asked twice: at once.
    return;
  }
  ending_ = true;
  base::LogInfo("ending; tenants stay with the scheduler");
  base::NotifyStopping();
  RefreshHealth();
  plugin_->Stop(deviceplugin::StopKind::kRestart, [this] { loop_->Stop(); });
}

// ---- GPUs.

void Agent::OnGpuReport(const GpuReport& report) {
  const bool was_ready = inventory_.ready();
  const std::string trouble = inventory_.trouble();
  gpu_read_ns_ = report.read_ns;
  const bool changed = inventory_.Report(report, base::MonotonicNow());
  if (!report.trouble.empty() && report.trouble != trouble)
    base::LogWarning("GPUs: {}", base::Printable(report.trouble, 512));
  if (!was_ready && inventory_.ready())
    base::LogInfo("{} with driver {} names {} GPUs", inventory_.library(),
                  inventory_.driver_version(), inventory_.gpus().size());
  if (changed || (!was_ready && inventory_.ready())) OfferGpus();
}

void Agent::LogGpuChanges() {
  for (const KnownGpu& gpu : inventory_.gpus()) {
    std::string line =
        gpu.withheld   ? "withheld (" + gpu.withheld_reason + "): " + gpu.withheld_detail
        : !gpu.healthy ? "unhealthy (" + gpu.health_reason + "): " + gpu.health_detail
                       : "offered";
    std::string& logged = gpu_logged_[gpu.reading.uuid];
    if (line == logged) continue;
    base::LogInfo("device={} index={} {}", gpu.reading.uuid, gpu.reading.index, line);
    logged = std::move(line);
  }
}

void Agent::OfferGpus() {
  LogGpuChanges();
  std::vector<deviceplugin::Gpu> gpus;
  std::string model;
  uint32_t offered = 0;
  for (const KnownGpu& known : inventory_.gpus()) {
    deviceplugin::Gpu gpu;
    gpu.uuid = known.reading.uuid;
    gpu.vendor = ToPlugin(known.reading.vendor);
    gpu.name = known.reading.name;
    gpu.index = known.reading.index;
    gpu.total_bytes = known.reading.total_bytes;
    gpu.numa_node = known.reading.numa_node;
    gpu.device_nodes = known.reading.device_nodes;
    if (known.reading.vendor == GpuVendor::kNvidia) {
      for (std::string& node : SharedNvidiaNodes()) gpu.device_nodes.push_back(std::move(node));
    }
    gpu.software_api =
        config_.softgpu_hip ? deviceplugin::DriverApi::kHip : deviceplugin::DriverApi::kCuda;
    gpu.healthy = known.healthy;
    gpu.unhealthy_reason = known.health_reason;
    gpu.withheld = known.withheld;
    gpu.withheld_reason = known.withheld_detail;
    if (!gpu.withheld) {
      ++offered;
      if (model.empty()) model = gpu.name;
    }
    gpus.push_back(std::move(gpu));
  }
  if (auto set = plugin_->SetGpus(std::move(gpus)); !set)
    base::LogError("cannot offer the GPUs: {}", set.error().message);
  if (labels_ != nullptr) {
    const std::string& prefix = config_.annotation_prefix;
    labels_->Set({{prefix + "gpu-model", kube::LabelValue(model)},
                  {prefix + "gpu-count", std::to_string(offered)},
                  {prefix + "slots-per-gpu", std::to_string(config_.slots_per_gpu)},
                  {prefix + "mode", FindConfigKey("mode")->show(config_)}});
  }
  RefreshHealth();
  ScheduleJoin();
}

// ---- Who holds what.

void Agent::RefreshHeld() {
  if (held_asking_) {
    held_ask_again_ = true;
    return;
  }
  held_asking_ = true;
  loop_->RemoveTimer(held_timer_);
  held_timer_ = 0;
  uint64_t serial = 0;
  for (const auto& [token, record] : plugin_->allocations().records())
    serial = std::max(serial, record.serial);
  plugin_->pod_resources().List(
      kHeldLimit, [this, serial](Result<std::vector<deviceplugin::PodDevicesHeld>> held) {
        OnHeld(std::move(held), serial);
      });
}

void Agent::OnHeld(Result<std::vector<deviceplugin::PodDevicesHeld>> held, uint64_t serial) {
  held_asking_ = false;
  held_failed_ = !held.ok();
  if (held) {
    ++held_answers_;
    held_ = std::move(*held);
    held_serial_ = serial;
    std::set<std::string> foreign;
    for (const deviceplugin::PodDevicesHeld& pod : *held_) {
      for (const auto& container : pod.containers) {
        for (const auto& devices : container.devices) {
          if (OtherPluginsResource(devices.resource_name, config_.resource_name))
            foreign.insert(devices.ids.begin(), devices.ids.end());
        }
      }
    }
    if (inventory_.SetForeign(foreign)) OfferGpus();
    Join();
  } else {
    ++held_failures_;
    base::LogDebug("PodResources: {}", held.error().message);
  }
  if (held_ask_again_) {
    held_ask_again_ = false;
    RefreshHeld();
    return;
  }
  LogWatchTrouble();
  const Nanos pause_ns = held_failed_ ? kHeldRetry : kHeldInterval;
  held_timer_ = loop_->AddTimer(base::MonotonicNow() + pause_ns, [this] {
    held_timer_ = 0;
    RefreshHeld();
  });
}

void Agent::OnPodChange(kube::PodWatch::Change change, const kube::Pod&) {
  if (change != kube::PodWatch::Change::kChanged) RefreshHeld();
  ScheduleJoin();
}

void Agent::LogWatchTrouble() {
  if (pods_ == nullptr || pods_->trouble() == watch_trouble_) return;
  watch_trouble_ = pods_->trouble();
  if (watch_trouble_.empty()) {
    base::LogInfo("the API server answers again");
  } else {
    base::LogWarning("the API server does not answer: {}", base::Printable(watch_trouble_, 512));
  }
}

void Agent::ScheduleJoin() {
  if (join_timer_ != 0) return;
  // At least a turn later: whoever asks may be in the middle of a change.
  const Nanos at_ns = std::max(base::MonotonicNow(), joined_ns_ + kJoinInterval);
  join_timer_ = loop_->AddTimer(at_ns, [this] {
    join_timer_ = 0;
    Join();
  });
}

void Agent::Join() {
  loop_->RemoveTimer(join_timer_);
  join_timer_ = 0;
  const Nanos now_ns = base::MonotonicNow();
  joined_ns_ = now_ns;
  TenantBook::Facts facts;
  facts.records = &plugin_->allocations().records();
  facts.held = held_.has_value() ? &*held_ : nullptr;
  facts.held_serial = held_serial_;
  facts.pods = pods_ == nullptr ? nullptr : &pods_->pods();
  facts.pods_synced = pods_ != nullptr && pods_->synced();
  for (const KnownGpu& gpu : inventory_.gpus())
    facts.gpu_bytes[gpu.reading.uuid] = gpu.reading.total_bytes;
  LogWatchTrouble();
  plan_ = book_->Join(facts, now_ns);
  loop_->RemoveTimer(book_timer_);
  book_timer_ = 0;
  if (book_->next_change_ns() != 0) {
    book_timer_ = loop_->AddTimer(book_->next_change_ns(), [this] {
      book_timer_ = 0;
      Join();
    });
  }
  std::vector<std::string> releasable;
  for (const auto& [token, entry] : plan_) {
    const auto before = states_.find(token);
    if (before == states_.end() || before->second != entry.state) {
      base::LogInfo("token={} {} ({}) pod={}/{} container={}", token.substr(0, 8),
                    Word(entry.state), entry.why, entry.pod.name_space, entry.pod.pod,
                    entry.pod.container);
      states_[token] = entry.state;
    }
    if (entry.state == AllocationState::kReleasable) releasable.push_back(token);
  }
  std::erase_if(states_, [this](const auto& entry) { return !plan_.contains(entry.first); });
  reconciler_->SetPlan(plan_, now_ns);
  for (const std::string& token : releasable) Release(token);
  std::vector<uint64_t> waiting;
  for (const auto& [id, pre_start] : pre_starts_) waiting.push_back(id);
  for (const uint64_t id : waiting) TryPreStart(id);
}

void Agent::Release(const std::string& token) {
  if (!releasing_.try_emplace(token, true).second) return;
  plugin_->allocations().Release(token, [this, token](const Result<void>& done) {
    releasing_.erase(token);
    if (!done && done.error().code != ErrorCode::kNotFound) {
      base::LogWarning("token={} cannot be released: {}", token.substr(0, 8), done.error().message);
      return;
    }
    ++released_total_;
    ScheduleJoin();
  });
}

// ---- Containers that are about to start.

void Agent::OnPreStart(const std::vector<AllocationRecord>& records,
                       std::function<void(PreStartVerdict)> reply) {
  if (records.empty()) {
    ++prestart_open_total_["no-record"];
    reply({});
    return;
  }
  const uint64_t id = next_pre_start_++;
  auto pre_start = std::make_unique<PreStart>();
  for (const AllocationRecord& record : records) pre_start->tokens.push_back(record.token);
  pre_start->reply = std::move(reply);
  pre_start->asked_at = held_answers_;
  pre_start->deadline = loop_->AddTimer(base::MonotonicNow() + kPreStartLimit, [this, id] {
    const auto found = pre_starts_.find(id);
    if (found == pre_starts_.end()) return;
    PreStart& late = *found->second;
    late.deadline = 0;
    if (!late.ensured) {
      // Better an unnamed best-effort tenant than none: what it is will be known soon.
      reconciler_->Ensure(late.tokens.front(), false, base::MonotonicNow(),
                          [](const EnsureOutcome&) {});
    }
    EndPreStart(id, {}, late.ensured ? "scheduler-away" : late.why_open);
  });
  pre_starts_[id] = std::move(pre_start);
  // Usually all is known since the allocation. If not, the kubelet is asked once more.
  Join();
}

void Agent::TryPreStart(uint64_t id) {
  const auto found = pre_starts_.find(id);
  if (found == pre_starts_.end() || found->second->ensured) return;
  PreStart& pre_start = *found->second;
  std::vector<std::string> known;
  bool named = false;
  for (const std::string& token : pre_start.tokens) {
    const auto entry = plan_.find(token);
    if (entry == plan_.end() || entry->second.state != AllocationState::kLive) continue;
    named = true;
    if (entry->second.complete) known.push_back(token);
  }
  if (known.empty()) {
    pre_start.why_open =
        named || held_answers_ > pre_start.asked_at ? "pod-unknown" : "pod-resources";
    if (pre_start.retry == 0) {
      pre_start.retry = loop_->AddTimer(base::MonotonicNow() + kPreStartRetry, [this, id] {
        const auto again = pre_starts_.find(id);
        if (again == pre_starts_.end()) return;
        again->second->retry = 0;
        RefreshHeld();
        TryPreStart(id);
      });
    }
    if (held_answers_ == pre_start.asked_at) RefreshHeld();
    return;
  }
  pre_start.ensured = true;
  pre_start.waiting = known.size();
  const bool refuse = config_.on_refusal == OnRefusal::kRefuse;
  for (const std::string& token : known) {
    reconciler_->Ensure(
        token, refuse, base::MonotonicNow(), [this, id](const EnsureOutcome& outcome) {
          const auto waiting = pre_starts_.find(id);
          if (waiting == pre_starts_.end()) return;
          PreStart& waits = *waiting->second;
          if (outcome.class_refused) {
            waits.verdict.refuse = true;
            waits.verdict.message = "real-time does not fit: " + outcome.detail +
                                    "; ask for a longer period, more slots, or best-effort";
          }
          if (--waits.waiting == 0) EndPreStart(id, waits.verdict, nullptr);
        });
    // The last answer may have come at once.
    if (!pre_starts_.contains(id)) return;
  }
}

void Agent::EndPreStart(uint64_t id, const PreStartVerdict& verdict, const char* open) {
  auto node = pre_starts_.extract(id);
  if (node.empty()) return;
  PreStart& pre_start = *node.mapped();
  loop_->RemoveTimer(pre_start.deadline);
  loop_->RemoveTimer(pre_start.retry);
  if (open != nullptr) {
    ++prestart_open_total_[open];
    base::LogWarning("token={} starts before its tenant is ready ({})",
                     pre_start.tokens.front().substr(0, 8), open);
    for (const std::string& token : pre_start.tokens) reconciler_->Abandon(token);
  }
  pre_start.reply(verdict);
}

// ---- Scheduler, events, census.

void Agent::OnSchedulerStatus(const control::GetStatusResponse& status) {
  reconciler_->OnStatus(status, base::MonotonicNow());
  if (config_.host_pid) TakeCensus(status);
}

void Agent::Tell(const PodRef& pod, const Notice& notice) {
  base::LogInfo("pod={}/{} {}: {}", pod.name_space, pod.pod, notice.reason,
                base::Printable(notice.message, 512));
  if (events_ == nullptr || !config_.events_enabled || pod.uid.empty()) return;
  kube::PodEvent event;
  event.name_space = pod.name_space;
  event.pod = pod.pod;
  event.pod_uid = pod.uid;
  event.container = pod.container;
  event.type = notice.warning ? kube::PodEvent::Type::kWarning : kube::PodEvent::Type::kNormal;
  event.reason = notice.reason;
  event.message = notice.message;
  events_->Record(std::move(event));
}

void Agent::TakeCensus(const control::GetStatusResponse& status) {
  census_result_ = census_.Observe(
      inventory_.gpus(), status,
      [this](const std::string& uid) { return pods_ != nullptr && pods_->FindUid(uid) != nullptr; },
      base::MonotonicNow());
  for (const Census::Suspicion& suspicion : census_result_.fresh) {
    if (suspicion.reason == "slots" || suspicion.reason == "other-pod") ++bypass_total_;
    base::LogWarning("pid={} program={} device={} pod_uid={} uses the GPU past its tenant ({})",
                     suspicion.pid, base::Printable(suspicion.program), suspicion.device,
                     base::Printable(suspicion.pod_uid), suspicion.reason);
    const kube::Pod* pod = pods_ == nullptr ? nullptr : pods_->FindUid(suspicion.pod_uid);
    if (pod == nullptr) continue;
    const std::string text =
        suspicion.reason == "other-pod"
            ? " is attached by a socket that was given to another pod"
            : " uses the GPU without being attached; its shim was not loaded (a static program, "
              "musl, or a changed /etc/ld.so.preload)";
    Tell(PodRef{pod->name_space, pod->name, pod->uid, ""},
         Notice{true, "BypassSuspected",
                "process '" + base::Printable(suspicion.program) + "'" + text});
  }
}

// ---- Configuration.

void Agent::Reload(const char* cause) {
  auto loaded = LoadConfig(sources_);
  if (!loaded) {
    config_valid_ = false;
    ++config_reloads_total_["rejected"];
    base::LogError("configuration kept as it was: {}", loaded.error().message);
    return;
  }
  config_valid_ = true;
  const std::vector<std::string> pending = NeedingRestart(start_config_, *loaded);
  config_restart_pending_ = !pending.empty();
  for (const std::string& path : pending)
    base::LogWarning("{} takes effect at the next start of the agent", path);
  const Config next = WithLiveKeys(config_, *loaded);
  const bool same = next == config_;
  config_ = next;
  // A shim that was installed meanwhile is taken up as well.
  if (const deviceplugin::PluginOptions options = MakePluginOptions();
      !same || !(options.answer == plugin_options_.answer)) {
    if (auto set = plugin_->SetOptions(options); set) {
      plugin_options_ = options;
    } else {
      base::LogError("device plugin: {}", set.error().message);
    }
  }
  ++config_reloads_total_[same ? "unchanged" : "applied"];
  base::LogInfo("configuration read again ({}): {}", cause, same ? "nothing new" : "applied");
  if (same) return;
  spdlog::set_level(config_.log_level == "debug"     ? spdlog::level::debug
                    : config_.log_level == "warning" ? spdlog::level::warn
                    : config_.log_level == "error"   ? spdlog::level::err
                                                     : spdlog::level::info);
  book_->SetPolicy(TenantPolicy::Of(config_));
  inventory_.SetRules(GpuInventory::RulesOf(config_));
  OfferGpus();
}

// ---- Health and metrics.

Readiness Agent::GetReadiness() const {
  Readiness readiness;
  if (ending_) readiness.missing.emplace_back("the agent ends");
  if (!inventory_.ready()) {
    readiness.missing.push_back("GPUs: " + (inventory_.trouble().empty()
                                                ? std::string("the vendor's library has not "
                                                              "answered yet")
                                                : inventory_.trouble()));
  } else if (std::none_of(inventory_.gpus().begin(), inventory_.gpus().end(),
                          [](const KnownGpu& gpu) { return !gpu.withheld; })) {
    readiness.missing.emplace_back("GPUs: there is none to offer");
  }
  const deviceplugin::PluginState& plugin = plugin_->state();
  if (!plugin.registered) {
    readiness.missing.push_back("kubelet: " +
                                (plugin.detail.empty() ? "not registered" : plugin.detail));
  }
  if (!reconciler_->connected())
    readiness.missing.push_back("scheduler: " + reconciler_->trouble());
  return readiness;
}

void Agent::RefreshHealth() {
  // Called by the plugin and the reconciler while these are made, too.
  if (plugin_ == nullptr || reconciler_ == nullptr) return;
  const Readiness readiness = GetReadiness();
  if (health_ != nullptr) health_->SetServing(readiness.ready());
  if (readiness.ready() == ready_logged_) return;
  ready_logged_ = readiness.ready();
  base::LogInfo("{}", ready_logged_ ? "ready" : "not ready: " + readiness.missing.front());
}

AgentPicture Agent::Picture() const {
  AgentPicture picture;
  picture.version = RUBATO_VERSION;
  picture.resource_name = config_.resource_name;
  picture.now_ns = base::MonotonicNow();
  picture.started_ns = started_ns_;
  picture.readiness = GetReadiness();
  picture.gpu_library = inventory_.library();
  picture.driver_version = inventory_.driver_version();
  picture.gpu_library_answers = inventory_.ready() && inventory_.trouble().empty();
  picture.gpu_library_hung = inventory_.hung();
  picture.gpu_read_ns = gpu_read_ns_;
  picture.census = config_.host_pid;

  std::map<std::string, uint32_t> allocated;
  for (const auto& [token, entry] : plan_) {
    ++picture.allocation_states[Word(entry.state)];
    if (entry.state != AllocationState::kLive) continue;
    const AllocationRecord* record = plugin_->allocations().Find(token);
    // An init container's slots are those of a later container as well.
    if (record == nullptr || record->superseded) continue;
    for (const std::string& slot : record->slots) ++allocated[slot.substr(0, slot.find("::"))];
  }
  std::map<std::string, uint64_t> tenant_bytes;
  const control::GetStatusResponse* status = reconciler_->status();
  if (status != nullptr) {
    std::map<uint32_t, std::string> uuids;
    for (const control::DeviceStatus& device : status->devices())
      uuids[device.index()] = device.uuid();
    for (const control::TenantStatus& tenant : status->tenants()) {
      for (const control::TenantDeviceStatus& device : tenant.devices())
        tenant_bytes[uuids[device.device()]] += device.memory_used_bytes();
    }
  }
  for (const KnownGpu& gpu : inventory_.gpus()) {
    GpuPicture entry;
    entry.gpu = gpu;
    entry.slots = gpu.withheld ? 0 : config_.slots_per_gpu;
    entry.slots_allocated = allocated[gpu.reading.uuid];
    entry.tenants_known = status != nullptr;
    entry.tenants_bytes = tenant_bytes[gpu.reading.uuid];
    if (const auto found = census_result_.by_device.find(gpu.reading.uuid);
        found != census_result_.by_device.end())
      entry.bypass = found->second;
    picture.gpus.push_back(std::move(entry));
  }

  picture.plugin = plugin_->state();
  picture.allocations = plugin_->allocations().records().size();
  picture.prestart_open_total = prestart_open_total_;
  picture.released_total = released_total_;
  picture.unrecorded_directories = plugin_->allocations().opening().unrecorded.size();
  if (pods_ != nullptr) {
    picture.has_pods = true;
    picture.pods_synced = pods_->synced();
    picture.pods_heard_ns = pods_->heard_ns();
    picture.pods = pods_->pods().size();
    picture.watch = pods_->counts();
    picture.events = events_->counts();
  }
  picture.pod_resources_lists_total = held_answers_;
  picture.pod_resources_failed_total = held_failures_;
  picture.scheduler_connected = reconciler_->connected();
  picture.scheduler_version = reconciler_->scheduler_version();
  picture.reconciler = reconciler_->counts();
  picture.tenants = reconciler_->Views();
  picture.config_valid = config_valid_;
  picture.config_restart_pending = config_restart_pending_;
  picture.config_reloads_total = config_reloads_total_;
  picture.bypass_suspected_total = bypass_total_;
  return picture;
}

std::optional<AgentPicture> Agent::PictureFromOtherThread() {
  auto promise = std::make_shared<std::promise<AgentPicture>>();
  std::future<AgentPicture> future = promise->get_future();
  loop_->Post([this, promise] { promise->set_value(Picture()); });
  if (future.wait_for(kPictureLimit) != std::future_status::ready) return std::nullopt;
  return future.get();
}

}  // namespace rubato::agent
