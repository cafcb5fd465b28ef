// The scheduler's side of a device page: who has which tenant entry and which session entry, and
// the order in which the page's words are written.
//
// One per device, on the loop's thread. Pure: the page is memory. Entries are handed out lowest
// first, so that readers, who scan up to the high-water mark, scan little.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "proto/abi/device.h"
#include "scheduler/core/tenant.h"

namespace rubato::core {

class DevicePage {
 public:
  // `region` is zeroed and stays mapped for as long as this lives; this is its only writer.
  // `constants` are written once.
  DevicePage(abi::DeviceRegion* region, const abi::DeviceConstants& constants, uint64_t epoch,
             Nanos now_ns);

  // ---- Tenants. An entry is taken when a tenant's first session opens the device.
  std::optional<uint32_t> TakeTenant(TenantId tenant);  // The one it has already, or a free one.
  void FreeTenant(uint32_t index);
  // Writes a line if it differs from what is there. `generation` is filled in here.
  void WriteTenant(uint32_t index, abi::TenantLine line);
  void WriteRelease(uint32_t index, const abi::ReleaseLine& line);
  void WriteSpace(uint32_t index, const abi::SpaceLine& line);

  // ---- Sessions. Reserved when a slot is made, live once the slot is mapped and sealed.
  // The entry `wished` if it is free, otherwise the lowest free one; nullopt: full.
  std::optional<uint32_t> ReserveSession(std::optional<uint32_t> wished);
  void EnterSession(uint32_t index, uint32_t tenant_index, TenantClass tenant_class, bool may_hold);
  void SetMayHold(uint32_t index, bool may_hold);
  void LeaveSession(uint32_t index);  // Live or reserved.

  bool session_live(uint32_t index) const { return sessions_[index] == SessionUse::kLive; }
  uint32_t session_generation(uint32_t index) const { return region_->sessions[index].generation; }
  uint64_t generation() const { return region_->state.generation; }
  uint32_t realtime_sessions() const { return region_->state.realtime_sessions; }
  uint32_t live_sessions() const { return live_; }

  // One op in this many of a known key is measured. Of the constants it is the only one that
  // changes: shims look at it whenever a sample is due.
  void SetSampleEvery(uint32_t every);
  void Heartbeat(Nanos now_ns);
  const abi::DeviceRegion& region() const { return *region_; }

 private:
  enum class SessionUse : uint8_t { kFree, kReserved, kLive };
  void Recount();

  abi::DeviceRegion* region_;
  std::array<TenantId, abi::kMaxTenants> tenants_{};
  std::array<SessionUse, abi::kMaxSessions> sessions_{};
  uint32_t live_ = 0;
};

}  // namespace rubato::core
