#include "scheduler/core/device_page.h"

#include <algorithm>
#include <cstring>

#include "proto/abi/atomic.h"

namespace rubato::core {
namespace {

using abi::LoadRelaxed;
using abi::StoreRelaxed;
using abi::StoreRelease;

// Readers retry while a line is being written, so a line that says the same again is left alone.
template <typename Line>
void WriteIfChanged(Line& line, Line value) {
  value.sequence = line.sequence;
  if (std::memcmp(&line, &value, sizeof(Line)) == 0) return;
  abi::WriteLine(line, value);
}

}  // namespace

DevicePage::DevicePage(abi::DeviceRegion* region, const abi::DeviceConstants& constants,
                       uint64_t epoch, Nanos now_ns)
    : region_(region) {
  region_->constants = constants;
  region_->state.generation = 1;
  region_->state.turn_tenant = abi::kNoPartition;
  region_->state.heartbeat_ns = static_cast<uint64_t>(now_ns);
  for (abi::TenantEntry& entry : region_->tenants) entry.space.partition_index = abi::kNoPartition;
  abi::RegionHeader& header = region_->header;
  header.kind = static_cast<uint32_t>(abi::RegionKind::kDevice);
  header.size_bytes = sizeof(abi::DeviceRegion);
  header.major = abi::kMajor;
  header.minor = abi::kMinor;
  header.epoch = epoch;
  header.created_ns = static_cast<uint64_t>(now_ns);
  header.magic = abi::kMagic;
}

std::optional<uint32_t> DevicePage::TakeTenant(TenantId tenant) {
  std::optional<uint32_t> free;
  for (uint32_t i = 0; i < abi::kMaxTenants; ++i) {
    if (tenants_[i] == tenant) return i;
    if (tenants_[i] == 0 && !free.has_value()) free = i;
  }
  if (!free.has_value()) return std::nullopt;
  tenants_[*free] = tenant;
  abi::TenantLine line = region_->tenants[*free].tenant;
  ++line.generation;
  abi::WriteLine(region_->tenants[*free].tenant, line);
  return free;
}

void DevicePage::FreeTenant(uint32_t index) {
  if (tenants_[index] == 0) return;
  tenants_[index] = 0;
  abi::TenantEntry& entry = region_->tenants[index];
  // The release goes first: a line without a class must not be taken for one with a prediction.
  WriteIfChanged(entry.release, abi::ReleaseLine{});
  abi::SpaceLine space{};
  space.partition_index = abi::kNoPartition;
  WriteIfChanged(entry.space, space);
  abi::TenantLine line{};
  line.generation = entry.tenant.generation + 1;
  WriteIfChanged(entry.tenant, line);
}

void DevicePage::WriteTenant(uint32_t index, abi::TenantLine line) {
  abi::TenantLine& there = region_->tenants[index].tenant;
  line.generation = there.generation;
  const bool class_changed = there.tenant_class != line.tenant_class;
  WriteIfChanged(there, line);
  if (class_changed)
    StoreRelease(region_->state.generation, LoadRelaxed(region_->state.generation) + 1);
}

void DevicePage::WriteRelease(uint32_t index, const abi::ReleaseLine& line) {
  WriteIfChanged(region_->tenants[index].release, line);
}

void DevicePage::WriteSpace(uint32_t index, const abi::SpaceLine& line) {
  WriteIfChanged(region_->tenants[index].space, line);
}

std::optional<uint32_t> DevicePage::ReserveSession(std::optional<uint32_t> wished) {
  if (wished.has_value() && *wished < abi::kMaxSessions &&
      sessions_[*wished] == SessionUse::kFree) {
    sessions_[*wished] = SessionUse::kReserved;
    return wished;
  }
  const auto free = std::find(sessions_.begin(), sessions_.end(), SessionUse::kFree);
  if (free == sessions_.end()) return std::nullopt;
  *free = SessionUse::kReserved;
  return static_cast<uint32_t>(free - sessions_.begin());
}

void DevicePage::EnterSession(uint32_t index, uint32_t tenant_index, TenantClass tenant_class,
                              bool may_hold) {
  sessions_[index] = SessionUse::kLive;
  abi::SessionEntry& entry = region_->sessions[index];
  StoreRelaxed(entry.tenant, tenant_index);
  StoreRelaxed(entry.tenant_class, static_cast<uint32_t>(tenant_class));
  StoreRelaxed(entry.flags, may_hold ? abi::kSessionMayHold : 0u);
  StoreRelease(entry.generation, (LoadRelaxed(entry.generation) + 1) | 1u);
  Recount();
}

void DevicePage::SetMayHold(uint32_t index, bool may_hold) {
  if (sessions_[index] != SessionUse::kLive) return;
  const uint32_t flags = may_hold ? abi::kSessionMayHold : 0u;
  if (LoadRelaxed(region_->sessions[index].flags) == flags) return;
  StoreRelaxed(region_->sessions[index].flags, flags);
  Recount();
}

void DevicePage::LeaveSession(uint32_t index) {
  if (sessions_[index] == SessionUse::kFree) return;
  const bool was_live = sessions_[index] == SessionUse::kLive;
  sessions_[index] = SessionUse::kFree;
  if (!was_live) return;
  abi::SessionEntry& entry = region_->sessions[index];
  StoreRelease(entry.generation, (LoadRelaxed(entry.generation) + 1) & ~1u);
  StoreRelaxed(entry.flags, 0u);
  StoreRelaxed(entry.tenant_class, static_cast<uint32_t>(TenantClass::kFree));
  Recount();
}

void DevicePage::Recount() {
  uint32_t live = 0;
  uint32_t holding = 0;
  uint32_t besteffort = 0;
  uint32_t high_water = region_->state.session_high_water;
  for (uint32_t i = 0; i < abi::kMaxSessions; ++i) {
    if (sessions_[i] != SessionUse::kLive) continue;
    ++live;
    high_water = std::max(high_water, i + 1);
    const abi::SessionEntry& entry = region_->sessions[i];
    if (entry.tenant_class == static_cast<uint32_t>(TenantClass::kBestEffort)) ++besteffort;
    if ((entry.flags & abi::kSessionMayHold) != 0) ++holding;
  }
  live_ = live;
  abi::DeviceState& state = region_->state;
  StoreRelaxed(state.session_high_water, high_water);
  StoreRelaxed(state.realtime_sessions, holding);
  StoreRelaxed(state.besteffort_sessions, besteffort);
  // Last: whoever sees the new generation sees the directory that goes with it.
  StoreRelease(state.generation, LoadRelaxed(state.generation) + 1);
}

void DevicePage::SetSampleEvery(uint32_t every) {
  abi::StoreRelaxed(region_->constants.sample_every, every);
}

void DevicePage::Heartbeat(Nanos now_ns) {
  StoreRelaxed(region_->state.heartbeat_ns, static_cast<uint64_t>(now_ns));
}

}  // namespace rubato::core
