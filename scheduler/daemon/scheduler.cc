#include "scheduler/daemon/scheduler.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "base/log.h"
#include "scheduler/policies/profile_learning.h"

namespace rubato::sched {

using base::Error;
using base::ErrorCode;

namespace {

constexpr size_t kMostTenants = 256;
constexpr size_t kMostDevices = 64;
constexpr size_t kMostDevicesPerTenant = 16;
// What a tenant that is gone has counted is shown for this long: several scrapes.
constexpr size_t kMostRetired = 512;
constexpr Nanos kRetiredNs = 600 * base::kSecond;
constexpr size_t kMostAdmissionKinds = 64;
// Of a device's table half stays free for what is new.
constexpr size_t kMostRestored = abi::kProfileEntries / 2;

constexpr Nanos kBusyPollNs = 20 * base::kMillisecond;
constexpr Nanos kIdlePollNs = 200 * base::kMillisecond;
constexpr Nanos kIdleAfterNs = base::kSecond;

const char* ReasonName(abi::DetachReason reason) {
  switch (reason) {
    case abi::DetachReason::kNoScheduler:
      return "no_scheduler";
    case abi::DetachReason::kVersion:
      return "version";
    case abi::DetachReason::kRefused:
      return "refused";
    case abi::DetachReason::kClock:
      return "clock";
    case abi::DetachReason::kBadRegion:
      return "bad_region";
    case abi::DetachReason::kMapFailed:
      return "map_failed";
    case abi::DetachReason::kNoDirectory:
      return "no_directory";
    case abi::DetachReason::kForked:
      return "forked";
    case abi::DetachReason::kSurprise:
      return "surprise";
    case abi::DetachReason::kDisabled:
      return "disabled";
    case abi::DetachReason::kNone:
    case abi::DetachReason::kCount:
      break;
  }
  return "none";
}

const char* RefusalName(abi::Status status) {
  switch (status) {
    case abi::Status::kVersionMismatch:
      return "version";
    case abi::Status::kClockMismatch:
      return "clock";
    case abi::Status::kNotAllowed:
      return "not_allowed";
    case abi::Status::kUnknownDevice:
      return "unknown_device";
    case abi::Status::kFull:
      return "full";
    case abi::Status::kBadMessage:
      return "bad_message";
    case abi::Status::kBadSlot:
      return "bad_slot";
    case abi::Status::kOk:
      break;
  }
  return "none";
}

// The reason with which a process that was refused so runs on, detached.
abi::DetachReason DetachOf(abi::Status status) {
  switch (status) {
    case abi::Status::kVersionMismatch:
      return abi::DetachReason::kVersion;
    case abi::Status::kClockMismatch:
      return abi::DetachReason::kClock;
    case abi::Status::kFull:
      return abi::DetachReason::kNoDirectory;
    case abi::Status::kNotAllowed:
    case abi::Status::kUnknownDevice:
      return abi::DetachReason::kRefused;
    case abi::Status::kBadMessage:
    case abi::Status::kBadSlot:
    case abi::Status::kOk:
      break;
  }
  return abi::DetachReason::kNone;
}

constexpr std::array<core::TenantClass, 2> kClasses = {core::TenantClass::kRealtime,
                                                       core::TenantClass::kBestEffort};
size_t PlaceOf(core::TenantClass tenant_class) {
  return tenant_class == core::TenantClass::kRealtime ? 0 : 1;
}

// True if who was admitted with `before` asks for nothing more with `after`.
bool AsksNoMore(const core::TenantSpec& after, const core::TenantSpec& before) {
  const auto no_shorter = [](Nanos new_ns, Nanos old_ns) {
    return new_ns == old_ns || (old_ns != 0 && new_ns > old_ns);
  };
  const Nanos deadline_ns = core::EffectiveDeadline(after);
  const Nanos deadline_before_ns = core::EffectiveDeadline(before);
  return no_shorter(after.period_ns, before.period_ns) &&
         (no_shorter(deadline_ns, deadline_before_ns) || deadline_ns == 0) &&
         after.share_permille <= before.share_permille && after.priority >= before.priority &&
         after.device_uuids == before.device_uuids;
}

}  // namespace

TenantLabels LabelsOf(const core::TenantSpec& spec, core::TenantClass tenant_class,
                      const std::string& device_uuid) {
  return TenantLabels{
      spec.name,  spec.name_space, spec.pod, spec.container, core::ClassName(tenant_class),
      device_uuid};
}

struct Scheduler::Device {
  uint32_t index = 0;
  core::DeviceUuid uuid;
  std::string uuid_text;
  std::string name;
  uint32_t sm_count = 0;
  uint64_t total_bytes = 0;
  base::UniqueFd page_fd;
  base::UniqueFd profile_fd;
  base::Mapping page_mapping;
  base::Mapping profile_mapping;
  std::optional<core::DevicePage> page;
  std::optional<core::ProfileTable> profile;
  DeviceModel model;
  uint32_t restored = 0;
};

struct Scheduler::TenantOnDevice {
  struct OfClass {
    bool used = false;      // There was a session of this class.
    uint32_t sessions = 0;  // Reserved and live.
    TenantTotals totals;    // Without what `realtime` counts itself.
    uint64_t memory_used_bytes = 0;
    uint64_t memory_peak_bytes = 0;
  };
  Device* device = nullptr;
  const Tenant* tenant = nullptr;
  std::optional<uint32_t> entry;  // In the device's tenant table, while it has sessions.
  // All its sessions share the entry, and so the memory account, whatever their class.
  std::array<OfClass, kClasses.size()> classes;
  std::optional<policies::RealtimeTask> realtime;
  bool said_revoked = false;
  // Of a tenant that runs to be measured: keys of its ops, and those that were new. Bounded.
  std::set<uint64_t> profiled;
  uint32_t profiled_new = 0;

  OfClass& of(core::TenantClass tenant_class) { return classes[PlaceOf(tenant_class)]; }
  const OfClass& of(core::TenantClass tenant_class) const { return classes[PlaceOf(tenant_class)]; }
  uint32_t realtime_sessions() const { return of(core::TenantClass::kRealtime).sessions; }
  uint32_t sessions() const { return classes[0].sessions + classes[1].sessions; }
};

struct Scheduler::Tenant {
  TenantId id = 0;
  core::TenantSpec spec;  // As asked for.
  AdmissionDecision admission;
  // What its real-time processes were promised: the last spec that was granted.
  core::TenantSpec promise;
  Nanos created_ns = 0;
  std::map<uint32_t, TenantOnDevice> devices;  // By device index.

  core::TenantClass granted() const { return admission.granted; }
  // It has a claim on other tenants' time: processes of that class, or the right to start some.
  bool IsRealtime() const {
    if (granted() == core::TenantClass::kRealtime) return true;
    for (const auto& [index, on_device] : devices) {
      if (on_device.realtime_sessions() != 0) return true;
    }
    return false;
  }
  // May its processes run on this device? One that named no devices and was never seen may
  // anywhere.
  bool MayUse(const std::string& uuid) const {
    if (!spec.device_uuids.empty())
      return std::find(spec.device_uuids.begin(), spec.device_uuids.end(), uuid) !=
             spec.device_uuids.end();
    if (devices.empty()) return true;
    for (const auto& [index, on_device] : devices) {
      if (on_device.device->uuid_text == uuid) return true;
    }
    return false;
  }
};

struct Scheduler::Session {
  SessionId id = 0;
  Tenant* tenant = nullptr;
  TenantOnDevice* on_device = nullptr;
  Device* device = nullptr;
  core::TenantClass tenant_class = core::TenantClass::kFree;
  uint32_t index = 0;
  bool live = false;
  base::UniqueFd slot_fd;
  base::Mapping slot_mapping;
  std::optional<core::SlotReader> reader;
  ProcessInfo process;
  Nanos attached_ns = 0;
  uint64_t used_bytes = 0;
  bool detached = false;
};

Scheduler::Scheduler(SchedulerOptions options, Nanos now_ns)
    : options_(std::move(options)), started_ns_(now_ns) {}

Scheduler::~Scheduler() = default;

bool Scheduler::UsesMps(core::TenantClass tenant_class) const {
  switch (options_.mode) {
    case core::Mode::kTimeslice:
      return false;
    case core::Mode::kHybrid:
      return tenant_class == core::TenantClass::kBestEffort;
    case core::Mode::kMps:
      return true;
  }
  return false;
}

// ---- Tenants.

base::Result<TenantId> Scheduler::AddTenant(const core::TenantSpec& spec, Nanos now_ns) {
  if (draining_)
    return Error{ErrorCode::kUnavailable, "the scheduler takes no new tenants; it is draining"};
  if (auto valid = core::ValidateSpec(spec); !valid) return valid.error();
  if (tenants_.size() >= kMostTenants)
    return Error{ErrorCode::kFull, "there are " + std::to_string(kMostTenants) +
                                       " tenants already; unregister one first"};
  auto tenant = std::make_unique<Tenant>();
  tenant->id = next_tenant_++;
  tenant->spec = spec;
  tenant->created_ns = now_ns;
  SetDecision(tenant.get(), Decide(spec, tenant->id, now_ns));
  const TenantId id = tenant->id;
  tenants_.emplace(id, std::move(tenant));
  return id;
}

// ---- Admission.

std::vector<std::string> Scheduler::KnownDevices() const {
  std::set<std::string> known;
  for (const auto& device : devices_) known.insert(device->uuid_text);
  for (const auto& [id, tenant] : tenants_)
    known.insert(tenant->spec.device_uuids.begin(), tenant->spec.device_uuids.end());
  return {known.begin(), known.end()};
}

policies::RealtimeClaim Scheduler::ClaimOf(const core::TenantSpec& promise, TenantId id,
                                           const Tenant* known, const std::string& uuid) const {
  policies::RealtimeClaim claim;
  claim.id = id;
  claim.name = promise.pod.empty() ? promise.name : promise.name_space + "/" + promise.pod;
  claim.share_permille = promise.share_permille;
  claim.period_ns = promise.period_ns;
  claim.deadline_ns = core::EffectiveDeadline(promise);
  claim.priority = promise.priority;
  if (known == nullptr) return claim;
  for (const auto& [index, on_device] : known->devices) {
    if (on_device.device->uuid_text != uuid || !on_device.realtime.has_value()) continue;
    claim.job_ns = on_device.realtime->jobs().mret_ns;
    if (claim.period_ns == 0) claim.period_ns = on_device.realtime->prediction().period_ns;
  }
  return claim;
}

std::vector<policies::RealtimeClaim> Scheduler::ClaimsOn(const std::string& uuid,
                                                         TenantId except) const {
  std::vector<policies::RealtimeClaim> claims;
  for (const auto& [id, tenant] : tenants_) {
    if (id != except && tenant->IsRealtime() && tenant->MayUse(uuid))
      claims.push_back(ClaimOf(tenant->promise, id, tenant.get(), uuid));
  }
  return claims;
}

policies::DeviceLoad Scheduler::LoadOf(const std::string& uuid, TenantId except,
                                       Nanos now_ns) const {
  policies::DeviceLoad load;
  load.uuid = uuid;
  load.realtime = ClaimsOn(uuid, except);
  for (const auto& device : devices_) {
    if (device->uuid_text == uuid)
      load.longest_op_ns = device->profile->LongestSince(now_ns - options_.constants.recent_op_ns);
  }
  return load;
}

AdmissionDecision Scheduler::Decide(const core::TenantSpec& spec, TenantId self,
                                    Nanos now_ns) const {
  AdmissionDecision decision;
  decision.asked = spec.tenant_class;
  decision.granted = core::TenantClass::kBestEffort;
  decision.decided_ns = now_ns;
  if (spec.tenant_class != core::TenantClass::kRealtime) {
    decision.reason = policies::ReasonOf(policies::AdmissionVerdict::kAdmitted);
    decision.detail = "best-effort, as asked for";
    return decision;
  }
  if (!spec.refusal_reason.empty()) {
    decision.reason = spec.refusal_reason;
    decision.detail =
        spec.refusal_detail.empty() ? "real-time is not allowed here" : spec.refusal_detail;
    return decision;
  }
  const auto found = tenants_.find(self);
  const Tenant* known = found == tenants_.end() ? nullptr : found->second.get();
  std::vector<std::string> uuids = spec.device_uuids;
  if (uuids.empty()) {
    for (const std::string& uuid : KnownDevices()) {
      if (known == nullptr || known->MayUse(uuid)) uuids.push_back(uuid);
    }
  }
  if (uuids.empty()) uuids.emplace_back();
  const policies::AdmissionRules rules{options_.mode, policies::RealtimeOrder::kNone,
                                       options_.constants};
  bool first = true;
  for (const std::string& uuid : uuids) {
    const policies::DeviceLoad load = LoadOf(uuid, self, now_ns);
    const policies::AdmissionTest test =
        policies::TestAdmission(ClaimOf(spec, self, known, uuid), load, rules);
    const bool admitted = test.verdict == policies::AdmissionVerdict::kAdmitted;
    if (!first && admitted && test.demand_permille <= decision.demand_permille) continue;
    first = false;
    decision.granted = admitted ? core::TenantClass::kRealtime : core::TenantClass::kBestEffort;
    decision.reason = policies::ReasonOf(test.verdict);
    decision.detail = policies::DescribeAdmission(test, load);
    decision.device_uuid = uuid;
    decision.demand_permille = test.demand_permille;
    decision.capacity_permille = test.capacity_permille;
    decision.unknown_tenants = test.unknown_tenants;
    decision.blocking_ns = test.blocking_ns;
    decision.interference_ns = test.interference_ns;
    decision.job_ns = test.job_ns;
    decision.response_ns = test.response_ns;
    decision.deadline_ns = test.deadline_ns;
    if (!admitted) break;
  }
  return decision;
}

void Scheduler::CountAdmission(const AdmissionDecision& decision) {
  AdmissionKind kind{decision.asked, decision.granted, decision.reason};
  // Bounded, because some reasons come from outside.
  if (admissions_.size() >= kMostAdmissionKinds && !admissions_.contains(kind))
    kind.reason = "other";
  ++admissions_[kind];
}

void Scheduler::SetDecision(Tenant* tenant, AdmissionDecision decision) {
  CountAdmission(decision);
  tenant->admission = std::move(decision);
  if (tenant->granted() == core::TenantClass::kRealtime) tenant->promise = tenant->spec;
}

base::Result<AdmissionDecision> Scheduler::CheckAdmission(const core::TenantSpec& spec,
                                                          TenantId replaced, Nanos now_ns) const {
  if (auto valid = core::ValidateSpec(spec); !valid) return valid.error();
  if (replaced != 0 && !tenants_.contains(replaced))
    return Error{ErrorCode::kNotFound, "there is no tenant " + std::to_string(replaced)};
  return Decide(spec, replaced, now_ns);
}

const AdmissionDecision* Scheduler::AdmissionOf(TenantId id) const {
  const auto found = tenants_.find(id);
  return found == tenants_.end() ? nullptr : &found->second->admission;
}

core::TenantClass Scheduler::ClassForNewProcess(TenantId id, Nanos now_ns) {
  const auto found = tenants_.find(id);
  if (found == tenants_.end()) return core::TenantClass::kFree;
  Tenant& tenant = *found->second;
  if (tenant.granted() == tenant.spec.tenant_class || !tenant.spec.refusal_reason.empty())
    return tenant.granted();
  AdmissionDecision decision = Decide(tenant.spec, id, now_ns);
  if (decision.granted == tenant.granted() && decision.reason == tenant.admission.reason) {
    tenant.admission = std::move(decision);  // The numbers are new, the decision is not.
    return tenant.granted();
  }
  base::LogInfo("tenant={} id={} tested again: {}", tenant.spec.name, id, decision.detail);
  SetDecision(&tenant, std::move(decision));
  return tenant.granted();
}

core::TenantClass Scheduler::ClassForOldProcess(TenantId id, core::TenantClass claimed) const {
  const auto found = tenants_.find(id);
  if (found == tenants_.end()) return core::TenantClass::kFree;
  return claimed == core::TenantClass::kBestEffort ? claimed : found->second->granted();
}

base::Result<void> Scheduler::UpdateTenant(TenantId id, const core::TenantSpec& spec,
                                           Nanos now_ns) {
  const auto found = tenants_.find(id);
  if (found == tenants_.end())
    return Error{ErrorCode::kNotFound, "there is no tenant " + std::to_string(id)};
  if (auto valid = core::ValidateSpec(spec); !valid) return valid;
  Tenant& tenant = *found->second;
  const core::TenantSpec& old = tenant.spec;
  // A container may be known by its socket before anybody can tell whose it is.
  const bool unnamed = old.name_space.empty() && !spec.name_space.empty();
  const bool same_names = spec.name == old.name && spec.pod == old.pod &&
                          spec.name_space == old.name_space && spec.container == old.container;
  if ((!same_names && !unnamed) || spec.any_user != old.any_user)
    return Error{ErrorCode::kInvalid,
                 "the names of a tenant and any_user cannot change; register a new tenant"};
  AdmissionDecision decision = Decide(spec, id, now_ns);
  if (decision.asked == core::TenantClass::kRealtime && spec.refusal_reason.empty() &&
      tenant.granted() == core::TenantClass::kRealtime && AsksNoMore(spec, tenant.promise) &&
      decision.granted != core::TenantClass::kRealtime) {
    // Others came, or its jobs turned out longer than was known: its place is its own.
    decision.granted = core::TenantClass::kRealtime;
    decision.reason = policies::ReasonOf(policies::AdmissionVerdict::kAdmitted);
    decision.detail = "keeps real-time, which it was granted; today " + decision.detail;
  }
  tenant.spec = spec;
  SetDecision(&tenant, std::move(decision));
  // Its real-time processes go on. Limits are not part of the promise.
  tenant.promise.limit_bytes = spec.limit_bytes;
  for (auto& [index, on_device] : tenant.devices) {
    if (on_device.realtime.has_value()) on_device.realtime->Respecify(tenant.promise);
    WriteLines(&on_device, now_ns);
    SetSampling(on_device.device);
  }
  return {};
}

void Scheduler::RemoveTenant(TenantId id, Nanos now_ns) {
  const auto found = tenants_.find(id);
  if (found == tenants_.end()) return;
  std::vector<SessionId> sessions;
  for (const auto& [session_id, session] : sessions_) {
    if (session->tenant->id == id) sessions.push_back(session_id);
  }
  for (const SessionId session : sessions) CloseSession(session, now_ns);
  for (const auto& [index, on_device] : found->second->devices)
    Retire(*found->second, on_device, now_ns);
  tenants_.erase(found);
}

void Scheduler::Retire(const Tenant& tenant, const TenantOnDevice& on_device, Nanos now_ns) {
  std::erase_if(retired_,
                [&](const auto& entry) { return now_ns - entry.second.at_ns > kRetiredNs; });
  for (const core::TenantClass tenant_class : kClasses) {
    if (!on_device.of(tenant_class).used) continue;
    const TenantLabels labels = LabelsOf(tenant.spec, tenant_class, on_device.device->uuid_text);
    // Bounded, because names come from outside; what is given up is a counter that starts anew.
    if (retired_.size() >= kMostRetired && !retired_.contains(labels))
      retired_.erase(retired_.begin());
    Retired& retired = retired_[labels];
    retired.totals.Add(TotalsOf(on_device, tenant_class));
    retired.at_ns = now_ns;
  }
}

TenantTotals Scheduler::TotalsOf(const TenantOnDevice& tenant, core::TenantClass tenant_class) {
  TenantTotals totals = tenant.of(tenant_class).totals;
  if (tenant_class == core::TenantClass::kRealtime && tenant.realtime.has_value()) {
    totals.jobs.Add(tenant.realtime->ledger().totals());
    totals.holds_revoked += tenant.realtime->hold_revocations();
    totals.relocks += tenant.realtime->relocks();
  }
  return totals;
}

const core::TenantSpec* Scheduler::FindTenant(TenantId id) const {
  const auto found = tenants_.find(id);
  return found == tenants_.end() ? nullptr : &found->second->spec;
}

uint32_t Scheduler::SessionCount(TenantId id) const {
  uint32_t count = 0;
  for (const auto& [session_id, session] : sessions_) {
    if (session->live && session->tenant->id == id) ++count;
  }
  return count;
}

// ---- Devices and sessions.

base::Result<Scheduler::Device*> Scheduler::DeviceFor(const abi::OpenDeviceMessage& request,
                                                      const Tenant& tenant, Nanos now_ns) {
  core::DeviceUuid uuid;
  std::memcpy(uuid.bytes.data(), request.uuid, sizeof(request.uuid));
  for (const auto& device : devices_) {
    if (device->uuid == uuid) return device.get();
  }
  if (devices_.size() >= kMostDevices || tenant.devices.size() >= kMostDevicesPerTenant)
    return Error{ErrorCode::kFull, "too many devices"};
  auto device = std::make_unique<Device>();
  device->index = static_cast<uint32_t>(devices_.size());
  device->uuid = uuid;
  device->uuid_text = core::FormatUuid(uuid);
  device->name = base::Printable({request.name, strnlen(request.name, sizeof(request.name))}, 64);
  device->sm_count = std::min<uint32_t>(request.sm_count, 4096);
  device->total_bytes = std::min(request.total_bytes, core::kMostBytes);

  auto page_fd = base::MakeMemfd("rubato-device", sizeof(abi::DeviceRegion));
  if (!page_fd) return page_fd.error();
  auto profile_fd = base::MakeMemfd("rubato-profile", sizeof(abi::ProfileRegion));
  if (!profile_fd) return profile_fd.error();
  for (const int fd : {page_fd->get(), profile_fd->get()}) {
    if (auto sealed = base::SealSize(fd); !sealed) return sealed.error();
  }
  auto page = base::Mapping::Writable(page_fd->get(), sizeof(abi::DeviceRegion));
  if (!page) return page.error();
  auto profile = base::Mapping::Writable(profile_fd->get(), sizeof(abi::ProfileRegion));
  if (!profile) return profile.error();
  for (const int fd : {page_fd->get(), profile_fd->get()}) {
    if (auto sealed = base::SealAgainstWriters(fd); !sealed) return sealed.error();
  }
  abi::DeviceConstants constants = policies::ToDeviceConstants(options_.constants, options_.mode);
  constants.sm_count = device->sm_count;
  std::memcpy(constants.uuid, uuid.bytes.data(), sizeof(constants.uuid));
  device->page.emplace(page->as<abi::DeviceRegion>(), constants, options_.epoch, now_ns);
  auto* region = profile->as<abi::ProfileRegion>();
  region->header.magic = abi::kMagic;
  region->header.kind = static_cast<uint32_t>(abi::RegionKind::kProfile);
  region->header.size_bytes = sizeof(abi::ProfileRegion);
  region->header.major = abi::kMajor;
  region->header.minor = abi::kMinor;
  region->header.epoch = options_.epoch;
  region->header.created_ns = static_cast<uint64_t>(now_ns);
  device->profile.emplace(region);
  device->page_fd = std::move(*page_fd);
  device->profile_fd = std::move(*profile_fd);
  device->page_mapping = std::move(*page);
  device->profile_mapping = std::move(*profile);
  device->model = DeviceModel{device->name, device->sm_count, options_.time_dilation, ""};
  Restore(device.get());
  devices_.push_back(std::move(device));
  return devices_.back().get();
}

void Scheduler::Restore(Device* device) {
  if (!recall_) return;
  for (const ProfileRow& row : recall_(device->model, kMostRestored)) {
    const bool restored = device->profile->Restore(policies::Remembered(
        row.key, row.kind, row.duration_ns, row.max_ns, row.spread_ns, row.samples, row.clean));
    device->restored += restored ? 1 : 0;
  }
}

void Scheduler::RestoreProfiles() {
  for (const auto& device : devices_) Restore(device.get());
}

std::vector<ProfileRow> Scheduler::TakeLearnt(int64_t wall_s) {
  std::vector<ProfileRow> rows;
  for (const auto& device : devices_) {
    for (const core::KernelProfile& profile : device->profile->TakeChanged()) {
      // Measured on a part of the device only: nothing that is stored.
      if (core::SaturateTo32(profile.duration_ns) == 0) continue;
      ProfileRow& row = rows.emplace_back();
      row.model = device->model;
      row.key = profile.key;
      row.kind = profile.kind;
      row.duration_ns = core::SaturateTo32(profile.duration_ns);
      row.max_ns = std::max(core::LongestRecent(profile), uint32_t{1});
      row.spread_ns = core::SaturateTo32(profile.spread_ns);
      row.samples = profile.measured;
      row.clean = profile.clean;
      row.last_seen_s = wall_s;
    }
  }
  return rows;
}

void Scheduler::ForgetProfiles() {
  for (const auto& device : devices_) {
    device->profile->Clear();
    device->restored = 0;
  }
}

void Scheduler::SetSampling(Device* device) {
  bool all = false;
  for (const auto& [id, session] : sessions_) {
    if (session->device != device) continue;
    all = session->tenant->spec.profile;
    if (!all) break;
  }
  device->page->SetSampleEvery(all ? 1 : options_.constants.sample_every);
}

base::Result<std::unique_ptr<Scheduler::Session>> Scheduler::MakeSlot(
    Device* device, std::optional<base::UniqueFd> slot, Nanos now_ns, abi::Status* status) {
  auto session = std::make_unique<Session>();
  std::optional<uint32_t> wished;
  if (slot.has_value()) {
    // One that an earlier scheduler made. Its owner may have made it up as well: a lie harms the
    // owner alone, as long as reading it cannot fault.
    *status = abi::Status::kBadSlot;
    const size_t bytes = sizeof(abi::SlotRegion);
    if (!base::SizeIsSealed(slot->get(), bytes))
      return Error{ErrorCode::kInvalid, "the slot handed back has another size or no seals"};
    auto mapping = base::Mapping::ReadOnly(slot->get(), bytes);
    if (!mapping) return mapping.error();
    abi::RegionHeader header;
    std::memcpy(&header, mapping->data(), sizeof(header));
    if (!abi::RegionAccepted(header, abi::RegionKind::kSlot, sizeof(abi::SlotRegion), bytes))
      return Error{ErrorCode::kInvalid, "the slot handed back has a wrong header"};
    if (header.owner < abi::kMaxSessions) wished = header.owner;
    session->slot_mapping = std::move(*mapping);
    session->slot_fd = std::move(*slot);
  }
  *status = abi::Status::kFull;
  const auto index = device->page->ReserveSession(wished);
  if (!index.has_value()) return Error{ErrorCode::kFull, "the directory is full"};
  session->index = *index;
  session->device = device;
  if (slot.has_value()) {
    session->reader.emplace(session->slot_mapping.as<const abi::SlotRegion>(), true);
    return session;
  }
  const auto made = [&]() -> base::Result<void> {
    auto fd = base::MakeMemfd("rubato-slot", sizeof(abi::SlotRegion));
    if (!fd) return fd.error();
    auto writable = base::Mapping::Writable(fd->get(), sizeof(abi::SlotRegion));
    if (!writable) return writable.error();
    abi::RegionHeader header{};
    header.magic = abi::kMagic;
    header.kind = static_cast<uint32_t>(abi::RegionKind::kSlot);
    header.size_bytes = sizeof(abi::SlotRegion);
    header.major = abi::kMajor;
    header.minor = abi::kMinor;
    header.owner = *index;
    header.epoch = options_.epoch;
    header.created_ns = static_cast<uint64_t>(now_ns);
    std::memcpy(writable->data(), &header, sizeof(header));
    if (auto sealed = base::SealSize(fd->get()); !sealed) return sealed;
    auto readable = base::Mapping::ReadOnly(fd->get(), sizeof(abi::SlotRegion));
    if (!readable) return readable.error();
    session->slot_mapping = std::move(*readable);
    session->slot_fd = std::move(*fd);
    return {};
  }();
  if (!made) {
    device->page->LeaveSession(*index);
    return made.error();
  }
  session->reader.emplace(session->slot_mapping.as<const abi::SlotRegion>(), false);
  return session;
}

abi::Status Scheduler::OpenDevice(TenantId tenant_id, const ProcessInfo& process,
                                  const abi::OpenDeviceMessage& request,
                                  std::optional<base::UniqueFd> slot, Nanos now_ns,
                                  OpenedSession* opened) {
  const auto found = tenants_.find(tenant_id);
  if (found == tenants_.end() || draining_) return abi::Status::kNotAllowed;
  Tenant& tenant = *found->second;
  auto device = DeviceFor(request, tenant, now_ns);
  if (!device) {
    base::LogWarning("tenant={} device refused: {}", tenant.spec.name, device.error().message);
    return abi::Status::kUnknownDevice;
  }
  const auto entry = (*device)->page->TakeTenant(tenant_id);
  if (!entry.has_value()) return abi::Status::kFull;

  TenantOnDevice& on_device = tenant.devices[(*device)->index];
  on_device.device = *device;
  on_device.tenant = &tenant;
  abi::Status status = abi::Status::kFull;
  auto session = MakeSlot(*device, std::move(slot), now_ns, &status);
  if (!session) {
    base::LogWarning("tenant={} session refused: {}", tenant.spec.name, session.error().message);
    if (on_device.sessions() == 0) (*device)->page->FreeTenant(*entry);
    return status;
  }
  const core::TenantClass tenant_class =
      process.tenant_class == core::TenantClass::kFree ? tenant.granted() : process.tenant_class;
  on_device.entry = entry;
  on_device.of(tenant_class).used = true;
  ++on_device.of(tenant_class).sessions;
  if (tenant_class == core::TenantClass::kRealtime && !on_device.realtime.has_value())
    on_device.realtime.emplace(tenant.promise, options_.mode, options_.constants);
  (*session)->id = next_session_++;
  (*session)->tenant_class = tenant_class;
  (*session)->tenant = &tenant;
  (*session)->on_device = &on_device;
  (*session)->process = process;
  (*session)->attached_ns = now_ns;
  WriteLines(&on_device, now_ns);

  opened->id = (*session)->id;
  opened->device = (*device)->index;
  opened->session = (*session)->index;
  opened->tenant = *entry;
  opened->slot_fd = (*session)->slot_fd.get();
  opened->page_fd = (*device)->page_fd.get();
  opened->profile_fd = (*device)->profile_fd.get();
  sessions_.emplace(opened->id, std::move(*session));
  SetSampling(*device);
  return abi::Status::kOk;
}

base::Result<uint64_t> Scheduler::GoLive(SessionId id) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end() || found->second->live)
    return Error{ErrorCode::kInvalid, "no session is to become live"};
  Session& session = *found->second;
  if (!base::WritersAreSealed(session.slot_fd.get())) {
    if (auto sealed = base::SealAgainstWriters(session.slot_fd.get()); !sealed)
      return sealed.error();
  }
  const core::TenantClass tenant_class = session.tenant_class;
  const bool may_hold = tenant_class == core::TenantClass::kRealtime &&
                        session.on_device->realtime.has_value() &&
                        session.on_device->realtime->may_hold();
  session.live = true;
  session.device->page->EnterSession(session.index, *session.on_device->entry, tenant_class,
                                     may_hold);
  ++sessions_total_;
  last_active_ns_ = std::max(last_active_ns_, session.attached_ns);
  if (sessions_changed_) sessions_changed_(session.tenant->id, SessionCount(session.tenant->id));
  return session.device->page->generation();
}

std::vector<PeerSlot> Scheduler::Peers(SessionId id, uint32_t first, size_t limit,
                                       uint32_t* next) const {
  *next = abi::kMaxSessions;
  std::vector<PeerSlot> peers;
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return peers;
  const Device* device = found->second->device;
  std::array<const Session*, abi::kMaxSessions> by_index{};
  for (const auto& [session_id, session] : sessions_) {
    if (session->device == device && session->live && session_id != id)
      by_index[session->index] = session.get();
  }
  for (uint32_t i = first; i < abi::kMaxSessions; ++i) {
    if (by_index[i] == nullptr) continue;
    if (peers.size() == limit) {
      *next = i;
      break;
    }
    peers.push_back(PeerSlot{i, device->page->session_generation(i), by_index[i]->slot_fd.get()});
  }
  return peers;
}

uint64_t Scheduler::DirectoryGeneration(SessionId id) const {
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? 0 : found->second->device->page->generation();
}

void Scheduler::CloseSession(SessionId id, Nanos now_ns) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  const std::unique_ptr<Session> session = std::move(found->second);
  sessions_.erase(found);
  TenantOnDevice& on_device = *session->on_device;
  // First out of the directory, so that nobody waits for it; then what it has still to tell.
  session->device->page->LeaveSession(session->index);
  if (session->live) ReadSession(session.get(), now_ns);
  if (session->tenant_class == core::TenantClass::kRealtime) {
    on_device.realtime->OnSessionEnd(id);
    on_device.realtime->Update(now_ns);
  }
  SetSampling(session->device);
  TenantOnDevice::OfClass& of_class = on_device.of(session->tenant_class);
  of_class.memory_used_bytes -= session->used_bytes;
  --of_class.sessions;
  if (on_device.sessions() == 0 && on_device.entry.has_value()) {
    session->device->page->FreeTenant(*on_device.entry);
    on_device.entry.reset();
  } else {
    WriteLines(&on_device, now_ns);
  }
  if (session->live && sessions_changed_)
    sessions_changed_(session->tenant->id, SessionCount(session->tenant->id));
}

// ---- Polling.

void Scheduler::ReadSession(Session* session, Nanos now_ns) {
  session->reader->Read(now_ns, &reading_);
  TenantOnDevice& on_device = *session->on_device;
  TenantOnDevice::OfClass& of_class = on_device.of(session->tenant_class);
  TenantTotals& totals = of_class.totals;
  for (size_t i = 0; i < core::kCounterCount; ++i) totals.counters[i] += reading_.counters[i];
  totals.memory_refused += reading_.memory_refused;
  totals.records_rejected += reading_.rejected;
  totals.records_lost += reading_.jobs_lost + reading_.samples_lost;
  of_class.memory_used_bytes += reading_.used_bytes - session->used_bytes;
  session->used_bytes = reading_.used_bytes;
  of_class.memory_peak_bytes = std::max(of_class.memory_peak_bytes, of_class.memory_used_bytes);
  if (reading_.active) last_active_ns_ = now_ns;
  core::ProfileTable& profile = *session->device->profile;
  for (const core::Sample& sample : reading_.samples) {
    if (session->tenant->spec.profile && on_device.profiled.size() < abi::kProfileEntries) {
      const bool is_new = profile.Find(sample.base_key) == nullptr;
      if (on_device.profiled.insert(sample.base_key).second && is_new) ++on_device.profiled_new;
    }
    policies::LearnSample(sample, now_ns, &profile);
  }
  if (session->tenant_class == core::TenantClass::kRealtime)
    on_device.realtime->OnReading(session->id, reading_, now_ns);
  if (reading_.detached != abi::DetachReason::kNone && !session->detached) {
    session->detached = true;
    ++detached_[static_cast<size_t>(reading_.detached)];
    base::LogWarning("tenant={} device={} session={} pid={} detached itself: {}",
                     session->tenant->spec.name, session->device->uuid_text, session->index,
                     session->process.pid, ReasonName(reading_.detached));
  }
}

void Scheduler::WriteLines(TenantOnDevice* tenant, Nanos now_ns) {
  if (!tenant->entry.has_value()) return;
  core::DevicePage& page = *tenant->device->page;
  if (tenant->realtime_sessions() != 0) {
    page.WriteTenant(*tenant->entry, tenant->realtime->tenant_line());
    page.WriteRelease(*tenant->entry, tenant->realtime->release_line());
    page.WriteSpace(*tenant->entry, tenant->realtime->space_line());
  } else {
    // Whatever its real-time processes were predicted to do ended with them.
    page.WriteRelease(*tenant->entry, abi::ReleaseLine{});
    page.WriteSpace(*tenant->entry, policies::SpaceLineFor({}));
    core::TenantSpec spec = tenant->tenant->spec;
    spec.tenant_class = core::TenantClass::kBestEffort;
    page.WriteTenant(*tenant->entry,
                     policies::TenantLineFor(spec, options_.mode, {}, 0, options_.constants));
  }
  page.Heartbeat(now_ns);
}

void Scheduler::Poll(Nanos now_ns) {
  last_poll_ns_ = now_ns;
  std::vector<SessionId> gone;
  for (const auto& [id, session] : sessions_) {
    if (!session->live) continue;
    ReadSession(session.get(), now_ns);
    if (session->detached) gone.push_back(id);
  }
  // A session that has detached says nothing any more; its last words must not hold the others.
  for (const SessionId id : gone) CloseSession(id, now_ns);
  for (const auto& [tenant_id, tenant] : tenants_) {
    for (auto& [device, on_device] : tenant->devices) {
      if (on_device.realtime_sessions() == 0) continue;
      on_device.realtime->Update(now_ns);
      WriteLines(&on_device, now_ns);
      const bool may_hold = on_device.realtime->may_hold();
      for (const auto& [id, session] : sessions_) {
        if (session->live && session->on_device == &on_device &&
            session->tenant_class == core::TenantClass::kRealtime)
          on_device.device->page->SetMayHold(session->index, may_hold);
      }
      if (may_hold == on_device.said_revoked) {
        on_device.said_revoked = !may_hold;
        if (may_hold) {
          base::LogInfo("tenant={} device={} its jobs hold others again", tenant->spec.name,
                        on_device.device->uuid_text);
        } else {
          base::LogWarning(
              "tenant={} device={} its jobs no longer hold others: they were open for more than "
              "95 % of the time although a period of {} was declared",
              tenant->spec.name, on_device.device->uuid_text,
              base::FormatDuration(tenant->promise.period_ns));
        }
      }
    }
  }
  for (const auto& device : devices_) {
    if (device->page->live_sessions() != 0) device->page->Heartbeat(now_ns);
  }
}

Nanos Scheduler::PollIntervalNs() const {
  if (sessions_.empty()) return 0;
  return last_poll_ns_ - last_active_ns_ < kIdleAfterNs ? kBusyPollNs : kIdlePollNs;
}

// ---- Reports.

void Scheduler::CountRefusal(abi::Status status) {
  ++refused_[RefusalName(status)];
  const abi::DetachReason reason = DetachOf(status);
  if (reason != abi::DetachReason::kNone) ++detached_[static_cast<size_t>(reason)];
}

SchedulerStatus Scheduler::Status(Nanos now_ns) const {
  SchedulerStatus status;
  status.now_ns = now_ns;
  status.started_ns = started_ns_;
  status.draining = draining_;
  status.sessions_total = sessions_total_;
  for (const auto& [labels, retired] : retired_) {
    if (now_ns - retired.at_ns <= kRetiredNs) status.retired.emplace(labels, retired.totals);
  }
  status.admissions = admissions_;
  for (const std::string& uuid : KnownDevices()) {
    DeviceDemand& demand = status.demands.emplace_back();
    demand.uuid = uuid;
    const std::vector<policies::RealtimeClaim> claims = ClaimsOn(uuid, 0);
    for (const policies::RealtimeClaim& claim : claims)
      demand.demand_permille += policies::DemandPermille(claim);
    demand.tenants = static_cast<uint32_t>(claims.size());
    demand.capacity_permille = policies::CapacityPermille(claims.size(), options_.constants);
  }
  status.handshakes_refused = refused_;
  for (size_t i = 1; i < detached_.size(); ++i)
    status.sessions_detached[ReasonName(static_cast<abi::DetachReason>(i))] = detached_[i];
  for (const auto& device : devices_) {
    status.devices.push_back(
        DeviceStatus{device->index, device->uuid_text, device->name, device->sm_count,
                     device->total_bytes, device->page->live_sessions(),
                     device->page->realtime_sessions(), device->profile->size(), device->restored});
  }
  for (const auto& [id, tenant] : tenants_) {
    TenantStatus& out = status.tenants.emplace_back();
    out.id = id;
    out.spec = tenant->spec;
    out.admission = tenant->admission;
    out.created_ns = tenant->created_ns;
    for (const auto& [index, on_device] : tenant->devices) {
      for (const core::TenantClass tenant_class : kClasses) {
        const TenantOnDevice::OfClass& of_class = on_device.of(tenant_class);
        if (!of_class.used) continue;
        TenantDeviceStatus& row = out.devices.emplace_back();
        row.tenant_class = tenant_class;
        row.device = index;
        row.device_uuid = on_device.device->uuid_text;
        row.totals = TotalsOf(on_device, tenant_class);
        row.memory_used_bytes = of_class.memory_used_bytes;
        row.memory_peak_bytes = of_class.memory_peak_bytes;
        row.profiled_ops = static_cast<uint32_t>(on_device.profiled.size());
        row.profiled_new_ops = on_device.profiled_new;
        if (tenant_class != core::TenantClass::kRealtime) continue;
        const policies::RealtimeTask& task = *on_device.realtime;
        row.response_p50_ns = task.ledger().ResponseQuantile(500);
        row.response_p99_ns = task.ledger().ResponseQuantile(990);
        row.response_max_ns = task.ledger().ResponseQuantile(1000);
        row.prediction = task.prediction();
        row.jobs = task.jobs();
        const abi::TenantLine line = task.tenant_line();
        row.bound_ns = static_cast<Nanos>(line.bound_ns);
        row.max_hold_ns = static_cast<Nanos>(line.max_hold_ns);
        row.margin_ns = static_cast<Nanos>(task.release_line().margin_ns);
        row.hold_revoked = !task.may_hold();
      }
    }
    for (const auto& [session_id, session] : sessions_) {
      if (session->tenant != tenant.get() || !session->live) continue;
      out.sessions.push_back(SessionStatus{
          session->tenant_class, session->device->index, session->index, session->process.pid,
          session->process.program, session->process.vendor, session->attached_ns,
          session->process.reattach, session->process.shim_build});
      for (TenantDeviceStatus& row : out.devices) {
        if (row.device == session->device->index && row.tenant_class == session->tenant_class)
          ++row.sessions;
      }
    }
  }
  return status;
}

}  // namespace rubato::sched
