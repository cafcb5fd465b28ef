#include "scheduler/daemon/daemon.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/notify.h"
#include "base/runtime_dir.h"

namespace rubato::sched {

using base::Error;
using base::ErrorCode;

namespace {

// A scrape waits for the loop at most this long.
constexpr auto kPictureLimit = std::chrono::seconds(2);

// What was learnt goes to the disk so often: losing that much costs a few measurements.
constexpr Nanos kSaveEveryNs = 10 * base::kSecond;
// A disk that does not answer holds up start and end for at most so long.
constexpr Nanos kDiskLimitNs = 2 * base::kSecond;

// Each process takes two descriptors, and there may be many.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 65536);
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

Daemon::Daemon(const Options& options) : options_(options) {}

base::Result<std::unique_ptr<Daemon>> Daemon::Start(const Options& options) {
  std::unique_ptr<Daemon> daemon(new Daemon(options));
  if (auto begun = daemon->Begin(); !begun) return begun.error();
  return daemon;
}

base::Result<void> Daemon::TakeLock() {
  const std::string path = options_.runtime_dir + "/" + base::kLockName;
  lock_ = base::UniqueFd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock_.valid()) return base::SystemError("cannot open " + path);
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    char text[32] = {};
    (void)!::pread(lock_.get(), text, sizeof(text) - 1, 0);
    return Error{ErrorCode::kExists,
                 "a scheduler (pid " + std::to_string(std::atol(text)) + ") already runs in " +
                     options_.runtime_dir +
                     "; end it with `rubato down`, or choose another --runtime-dir"};
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  (void)!::ftruncate(lock_.get(), 0);
  (void)!::pwrite(lock_.get(), pid.data(), pid.size(), 0);
  return {};
}

base::Result<void> Daemon::Begin() {
  RaiseDescriptorLimit();
  if (auto prepared = base::PrepareRuntimeDir(options_.runtime_dir); !prepared) return prepared;
  if (auto locked = TakeLock(); !locked) return locked;
  if (options_.attach_directory.empty())
    options_.attach_directory = options_.runtime_dir + "/" + base::kAttachDirectoryName;
  auto attach_directory = AttachDirectory::Open(options_.attach_directory, options_.attach_shared);
  if (!attach_directory) return attach_directory.error();
  while (epoch_ == 0) {
    if (::getrandom(&epoch_, sizeof(epoch_), 0) != sizeof(epoch_))
      return base::SystemError("cannot draw a random number");
  }
  auto loop = base::EventLoop::Make();
  if (!loop) return loop.error();
  loop_ = std::move(*loop);
  // Before any thread starts, so that all of them have these signals blocked.
  for (const int number : {SIGTERM, SIGINT}) {
    auto added = loop_->AddSignal(number, [this] {
      if (ending_) {
        loop_->Stop();
      } else {
        (void)Shutdown();
      }
    });
    if (!added) return added;
  }
  if (auto added = loop_->AddSignal(SIGUSR1, [this] { LogState(); }); !added) return added;
  if (auto added = loop_->AddSignal(SIGCHLD,
                                    [this] {
                                      if (mps_ != nullptr) mps_->ReapChild();
                                    });
      !added) {
    return added;
  }

  SchedulerOptions scheduler_options;
  scheduler_options.mode = options_.mode;
  scheduler_options.constants = options_.constants;
  scheduler_options.mps_directory = options_.mps_directory;
  scheduler_options.epoch = epoch_;
  scheduler_options.time_dilation = options_.time_dilation;
  scheduler_ = std::make_unique<Scheduler>(std::move(scheduler_options), clock_.NowNs());
  OpenProfiles();
  scheduler_->OnSessionsChanged([this](TenantId tenant, uint32_t sessions) {
    if (control_ != nullptr) control_->SessionsChanged(tenant, sessions);
  });
  attach_ = std::make_unique<AttachServer>(loop_.get(), &clock_, scheduler_.get(),
                                           std::move(*attach_directory));
  attach_->OnActivity([this] { SchedulePoll(); });
  if (options_.mode != core::Mode::kTimeslice) {
    mps_ = std::make_unique<MpsWatch>(loop_.get(), &clock_, MpsControlCommand(options_.runtime_dir),
                                      options_.mps_directory);
    mps_->Start();
  }
  if (!options_.metrics_address.empty()) {
    auto metrics = MetricsServer::Start(
        options_.metrics_address,
        MetricsInfo{RUBATO_VERSION, core::ModeName(options_.mode),
                    std::to_string(abi::kMajor) + "." + std::to_string(abi::kMinor)},
        [this] { return PictureFromOtherThread(); });
    if (!metrics) return metrics.error();
    metrics_ = std::move(*metrics);
    metrics_address_ = metrics_->address();
  }
  auto control = ControlServer::Start(loop_.get(), this,
                                      options_.runtime_dir + "/" + base::kControlSocketName);
  if (!control) return control.error();
  control_ = std::move(*control);
  return {};
}

Daemon::~Daemon() {
  // Threads first: they post to the loop.
  metrics_.reset();
  control_.reset();
  mps_.reset();
  if (profiles_ != nullptr) {
    SaveProfiles();
    profiles_->Close(kDiskLimitNs);
  }
  attach_.reset();
  scheduler_.reset();
}

// ---- Profiles.

void Daemon::OpenProfiles() {
  if (options_.profile_store.empty()) return;
  const std::string path = options_.profile_store;
  profiles_ = std::make_unique<ProfileStore>(
      path, [path] { return OpenProfileDatabase(path, kMostProfiles); },
      [this](std::function<void()> work) { loop_->Post(std::move(work)); },
      [this] { scheduler_->RestoreProfiles(); });
  scheduler_->OnDevice(
      [this](const DeviceModel& model, size_t limit) { return profiles_->Of(model, limit); });
  // Before the first session, as a rule; a disk that takes longer is not waited for.
  (void)profiles_->WaitLoaded(kDiskLimitNs);
  profiles_saved_ns_ = clock_.NowNs();
}

void Daemon::SaveProfiles() {
  if (profiles_ == nullptr) return;
  if (scheduler_->PollIntervalNs() != 0) scheduler_->Poll(clock_.NowNs());
  profiles_saved_ns_ = clock_.NowNs();
  profiles_->Learn(scheduler_->TakeLearnt(std::chrono::duration_cast<std::chrono::seconds>(
                                              std::chrono::system_clock::now().time_since_epoch())
                                              .count()));
}

std::vector<ProfileRow> Daemon::LongestProfiles(size_t limit) {
  if (profiles_ == nullptr) return {};
  SaveProfiles();
  return profiles_->Longest(limit);
}

uint64_t Daemon::ClearProfiles() {
  uint64_t rows = 0;
  if (profiles_ != nullptr) {
    SaveProfiles();
    rows = profiles_->Status().rows;
    profiles_->Clear();
  }
  scheduler_->ForgetProfiles();
  base::LogInfo("profiles cleared");
  return rows;
}

void Daemon::Run() {
  base::LogInfo("ready in {} mode={} dilation={} metrics={}", options_.runtime_dir,
                core::ModeName(options_.mode), options_.time_dilation,
                metrics_address_.empty() ? "none" : metrics_address_);
  base::NotifyReady();
  loop_->Run();
}

// ---- Polling.

void Daemon::SchedulePoll() {
  const Nanos interval_ns = scheduler_->PollIntervalNs();
  if (interval_ns == 0) {
    loop_->RemoveTimer(poll_timer_);
    poll_timer_ = 0;
    SaveProfiles();
    return;
  }
  const Nanos due_ns = clock_.NowNs() + interval_ns;
  if (poll_timer_ != 0) {
    if (poll_due_ns_ <= due_ns) return;
    loop_->RemoveTimer(poll_timer_);
  }
  poll_due_ns_ = due_ns;
  poll_timer_ = loop_->AddTimer(due_ns, [this] {
    poll_timer_ = 0;
    Poll();
  });
}

void Daemon::Poll() {
  scheduler_->Poll(clock_.NowNs());
  if (clock_.NowNs() - profiles_saved_ns_ >= kSaveEveryNs) SaveProfiles();
  SchedulePoll();
}

// ---- Control.

base::Result<RegisteredTenant> Daemon::Register(const core::TenantSpec& spec,
                                                const std::string& attach_token,
                                                bool require_class) {
  if (ending_)
    return Error{ErrorCode::kUnavailable, "the scheduler ends; register at the next one"};
  if (require_class && !scheduler_->draining()) {
    auto decision = scheduler_->CheckAdmission(spec, 0, clock_.NowNs());
    if (!decision) return decision.error();
    if (decision->granted != decision->asked) {
      scheduler_->CountAdmission(*decision);
      base::LogInfo("tenant={} refused: {}", spec.name, decision->detail);
      RegisteredTenant refused;
      refused.admission = std::move(*decision);
      return refused;
    }
  }
  auto id = scheduler_->AddTenant(spec, clock_.NowNs());
  if (!id) return id.error();
  auto token = attach_->Open(*id, attach_token);
  if (!token) {
    scheduler_->RemoveTenant(*id, clock_.NowNs());
    return token.error();
  }
  const AdmissionDecision& decision = *scheduler_->AdmissionOf(*id);
  base::LogInfo("tenant={} id={} class={} registered: {}", spec.name, *id,
                core::ClassName(decision.granted), decision.detail);
  return RegisteredTenant{*id, attach_->PathOf(*id), *token, decision};
}

base::Result<AdmissionDecision> Daemon::Update(TenantId id, const core::TenantSpec& spec) {
  const AdmissionDecision* before = scheduler_->AdmissionOf(id);
  const core::TenantClass class_before =
      before == nullptr ? core::TenantClass::kFree : before->granted;
  if (auto updated = scheduler_->UpdateTenant(id, spec, clock_.NowNs()); !updated)
    return updated.error();
  const AdmissionDecision& decision = *scheduler_->AdmissionOf(id);
  if (decision.granted != class_before)
    base::LogInfo("tenant={} id={} class={} for processes that start from now on: {}", spec.name,
                  id, core::ClassName(decision.granted), decision.detail);
  return decision;
}

base::Result<AdmissionDecision> Daemon::Check(const core::TenantSpec& spec, TenantId replaced) {
  return scheduler_->CheckAdmission(spec, replaced, clock_.NowNs());
}

base::Result<void> Daemon::Unregister(TenantId id) {
  const core::TenantSpec* spec = scheduler_->FindTenant(id);
  if (spec == nullptr)
    return Error{ErrorCode::kNotFound, "there is no tenant " + std::to_string(id)};
  base::LogInfo("tenant={} id={} unregistered", spec->name, id);
  attach_->Close(id);
  scheduler_->RemoveTenant(id, clock_.NowNs());
  if (control_ != nullptr) control_->TenantRemoved(id);
  SchedulePoll();
  return {};
}

uint32_t Daemon::SessionCount(TenantId id) const {
  return scheduler_->SessionCount(id);
}

SchedulerStatus Daemon::Picture() {
  // What the sessions did since the last poll belongs into the picture.
  if (scheduler_->PollIntervalNs() != 0) scheduler_->Poll(clock_.NowNs());
  SchedulerStatus status = scheduler_->Status(clock_.NowNs());
  for (TenantStatus& tenant : status.tenants) {
    tenant.attach_socket_path = attach_->PathOf(tenant.id);
    tenant.attach_token = attach_->TokenOf(tenant.id);
  }
  status.draining = Draining();
  if (mps_ != nullptr) status.mps = mps_->health();
  if (profiles_ != nullptr) status.profiles = profiles_->Status();
  return status;
}

std::optional<SchedulerStatus> Daemon::PictureFromOtherThread() {
  auto promise = std::make_shared<std::promise<SchedulerStatus>>();
  std::future<SchedulerStatus> future = promise->get_future();
  loop_->Post([this, promise] { promise->set_value(Picture()); });
  if (future.wait_for(kPictureLimit) != std::future_status::ready) return std::nullopt;
  return future.get();
}

SchedulerIdentity Daemon::Identity() const {
  SchedulerIdentity identity;
  identity.version = RUBATO_VERSION;
  identity.mode = options_.mode;
  identity.epoch = epoch_;
  identity.metrics_address = metrics_address_;
  identity.runtime_directory = options_.runtime_dir;
  identity.mps_directory = options_.mps_directory;
  identity.time_dilation = options_.time_dilation;
  return identity;
}

void Daemon::Drain() {
  base::LogInfo("draining: no new tenants and sessions from now on");
  scheduler_->SetDraining();
  control_->DrainingChanged();
}

uint32_t Daemon::Shutdown() {
  uint32_t sessions = 0;
  for (const TenantStatus& tenant : scheduler_->Status(clock_.NowNs()).tenants)
    sessions += static_cast<uint32_t>(tenant.sessions.size());
  if (ending_) return sessions;
  ending_ = true;
  // Processes that come now are better off without a scheduler than with a refusal: they attach to
  // the next one. Those in the middle of their handshake finish it.
  attach_->StopListening();
  control_->DrainingChanged();
  base::NotifyStopping();
  base::LogInfo("ending; {} sessions run on", sessions);
  // In a turn of its own, so that whoever asked has the answer before the server closes.
  loop_->Post([this] { control_->Shutdown([this] { loop_->Stop(); }); });
  return sessions;
}

void Daemon::LogState() {
  const SchedulerStatus status = Picture();
  for (const DeviceStatus& device : status.devices)
    base::LogInfo("device={} sessions={} realtime={} profiles={}", device.uuid, device.sessions,
                  device.realtime_sessions, device.profile_entries);
  for (const TenantStatus& tenant : status.tenants) {
    base::LogInfo("tenant={} id={} class={} sessions={}", tenant.spec.name, tenant.id,
                  core::ClassName(tenant.admission.granted), tenant.sessions.size());
    for (const TenantDeviceStatus& device : tenant.devices) {
      base::LogInfo(
          "tenant={} device={} jobs={} misses={} p50={} p99={} locked={} period={} ops={} "
          "gate_wait={} memory={}",
          tenant.spec.name, device.device_uuid, device.totals.jobs.jobs,
          device.totals.jobs.deadline_misses, base::FormatDuration(device.response_p50_ns),
          base::FormatDuration(device.response_p99_ns),
          device.prediction.kind == policies::ReleaseKind::kLocked,
          base::FormatDuration(device.prediction.period_ns),
          device.totals.counter(abi::Counter::kOps),
          base::FormatDuration(
              static_cast<Nanos>(device.totals.counter(abi::Counter::kGateWaitNs))),
          device.memory_used_bytes);
    }
  }
}

}  // namespace rubato::sched
