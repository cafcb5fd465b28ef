// The state of the scheduler: tenants, devices, sessions, what was learnt about them, and the
// shared regions in which it is written down.
//
// Owns all of it, on the loop's thread. Knows no socket, no timer and no clock: the attach protocol
// calls it with checked messages, the daemon polls it with the time. What tenants wrote is read
// through core/slot_reader alone.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/shared_memory.h"
#include "base/unique_fd.h"
#include "proto/abi/handshake.h"
#include "scheduler/core/device_page.h"
#include "scheduler/core/device_uuid.h"
#include "scheduler/core/profile_table.h"
#include "scheduler/core/slot_reader.h"
#include "scheduler/daemon/status.h"
#include "scheduler/policies/admission.h"
#include "scheduler/policies/constants.h"
#include "scheduler/policies/realtime_task.h"

namespace rubato::sched {

using SessionId = uint64_t;  // Unique within one run; 0 is none.

struct SchedulerOptions {
  core::Mode mode = core::Mode::kTimeslice;
  policies::Constants constants;  // Dilated already.
  std::string mps_directory;      // Given to processes that use MPS.
  uint64_t epoch = 0;
  uint32_t time_dilation = 1;
};

struct ProcessInfo {  // For people, except `pid`, which nothing depends on either.
  int64_t pid = 0;
  uint32_t vendor = 0;
  uint32_t shim_build = 0;
  bool reattach = false;
  std::string program;
  // Decided when it said Hello, and its own for good; kFree: the one that is granted now.
  core::TenantClass tenant_class = core::TenantClass::kFree;
};

struct OpenedSession {
  SessionId id = 0;
  uint32_t device = 0;
  uint32_t session = 0;
  uint32_t tenant = 0;
  int slot_fd = -1;  // The three stay the scheduler's.
  int page_fd = -1;
  int profile_fd = -1;
};

struct PeerSlot {
  uint32_t session;
  uint32_t generation;
  int slot_fd;  // Stays the scheduler's.
};

class Scheduler {
 public:
  Scheduler(SchedulerOptions options, Nanos now_ns);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // ---- Tenants.
  // A tenant that asks for real-time and does not fit is added as best-effort; AdmissionOf says so.
  base::Result<TenantId> AddTenant(const core::TenantSpec& spec, Nanos now_ns);
  // Decides anew; a tenant that asks for no more than it was granted keeps it. Sessions keep their
  // class, and real-time ones their promise if the new one is not granted. Names stay, but for
  // those of a tenant without a namespace, which may get all of them once, and the pod's UID.
  base::Result<void> UpdateTenant(TenantId id, const core::TenantSpec& spec, Nanos now_ns);
  // What would be decided about the spec now, were it in the place of `replaced` (0: of nobody).
  base::Result<AdmissionDecision> CheckAdmission(const core::TenantSpec& spec, TenantId replaced,
                                                 Nanos now_ns) const;
  const AdmissionDecision* AdmissionOf(TenantId id) const;
  // The class of a process that starts now: a tenant that did not fit earlier is tested again.
  core::TenantClass ClassForNewProcess(TenantId id, Nanos now_ns);
  // The class of one that started under an earlier scheduler, and says with which (kFree: nothing).
  // Best-effort is believed; real-time, which costs others time, only if it is granted here too.
  core::TenantClass ClassForOldProcess(TenantId id, core::TenantClass claimed) const;
  // A decision that made no tenant.
  void CountAdmission(const AdmissionDecision& decision);
  void RemoveTenant(TenantId id, Nanos now_ns);  // Ends its sessions.
  const core::TenantSpec* FindTenant(TenantId id) const;
  uint32_t SessionCount(TenantId id) const;

  // ---- Sessions, in the order of the handshake.
  // `slot` is the slot that a process hands back after a restart, if it has one.
  abi::Status OpenDevice(TenantId tenant, const ProcessInfo& process,
                         const abi::OpenDeviceMessage& request, std::optional<base::UniqueFd> slot,
                         Nanos now_ns, OpenedSession* opened);
  // Seals the slot and enters the session in the directory; returns the directory's generation.
  base::Result<uint64_t> GoLive(SessionId id);
  // Live sessions of the same device from directory index `first` on, without the asking one; at
  // most `limit`. Sets `next` to where to go on, kMaxSessions at the end.
  std::vector<PeerSlot> Peers(SessionId id, uint32_t first, size_t limit, uint32_t* next) const;
  uint64_t DirectoryGeneration(SessionId id) const;
  void CloseSession(SessionId id, Nanos now_ns);

  // ---- Polling.
  // Reads all slots, learns, writes the lines.
  void Poll(Nanos now_ns);
  // When Poll is due next, seen from the last one; 0: not before a session opens.
  Nanos PollIntervalNs() const;

  // ---- What is known from earlier runs.
  // Called for a device that is opened for the first time: rows of its model, the best ones first.
  void OnDevice(std::function<std::vector<ProfileRow>(const DeviceModel&, size_t limit)> recall) {
    recall_ = std::move(recall);
  }
  // Asks again for every device, when the answer was not complete before.
  void RestoreProfiles();
  // What was learnt since the last call; `wall_s` is CLOCK_REALTIME.
  std::vector<ProfileRow> TakeLearnt(int64_t wall_s);
  void ForgetProfiles();

  // ---- Reports.
  void CountRefusal(abi::Status status);
  void SetDraining() { draining_ = true; }
  bool draining() const { return draining_; }
  // Sockets and MPS are filled in by who knows them.
  SchedulerStatus Status(Nanos now_ns) const;
  const SchedulerOptions& options() const { return options_; }
  bool UsesMps(core::TenantClass tenant_class) const;

  // Called when a tenant's number of live sessions has changed.
  void OnSessionsChanged(std::function<void(TenantId, uint32_t sessions)> callback) {
    sessions_changed_ = std::move(callback);
  }

 private:
  struct Device;
  struct TenantOnDevice;
  struct Tenant;
  struct Session;

  base::Result<Device*> DeviceFor(const abi::OpenDeviceMessage& request, const Tenant& tenant,
                                  Nanos now_ns);
  base::Result<std::unique_ptr<Session>> MakeSlot(Device* device,
                                                  std::optional<base::UniqueFd> slot, Nanos now_ns,
                                                  abi::Status* status);
  void ReadSession(Session* session, Nanos now_ns);
  void Restore(Device* device);
  // Measures every op while all that use the device run for that.
  void SetSampling(Device* device);
  void WriteLines(TenantOnDevice* tenant, Nanos now_ns);
  void Retire(const Tenant& tenant, const TenantOnDevice& on_device, Nanos now_ns);
  static TenantTotals TotalsOf(const TenantOnDevice& tenant, core::TenantClass tenant_class);

  AdmissionDecision Decide(const core::TenantSpec& spec, TenantId self, Nanos now_ns) const;
  void SetDecision(Tenant* tenant, AdmissionDecision decision);
  policies::RealtimeClaim ClaimOf(const core::TenantSpec& promise, TenantId id, const Tenant* known,
                                  const std::string& uuid) const;
  std::vector<policies::RealtimeClaim> ClaimsOn(const std::string& uuid, TenantId except) const;
  policies::DeviceLoad LoadOf(const std::string& uuid, TenantId except, Nanos now_ns) const;
  std::vector<std::string> KnownDevices() const;

  SchedulerOptions options_;
  Nanos started_ns_;
  bool draining_ = false;
  TenantId next_tenant_ = 1;
  SessionId next_session_ = 1;
  std::map<TenantId, std::unique_ptr<Tenant>> tenants_;
  std::vector<std::unique_ptr<Device>> devices_;  // By index; never shrinks.
  std::map<SessionId, std::unique_ptr<Session>> sessions_;
  struct Retired {
    TenantTotals totals;
    Nanos at_ns = 0;
  };
  std::map<TenantLabels, Retired> retired_;
  std::map<AdmissionKind, uint64_t> admissions_;
  std::array<uint64_t, static_cast<size_t>(abi::DetachReason::kCount)> detached_{};
  std::map<std::string, uint64_t> refused_;
  uint64_t sessions_total_ = 0;
  Nanos last_active_ns_ = 0;
  Nanos last_poll_ns_ = 0;
  core::SlotReading reading_;  // Storage that is used again.
  std::function<void(TenantId, uint32_t)> sessions_changed_;
  std::function<std::vector<ProfileRow>(const DeviceModel&, size_t)> recall_;
};

}  // namespace rubato::sched
