// Durations of ops on a disk: one SQLite file, read whole and written in batches.
//
// Synchronous, so it belongs to the thread of the profile store and not to the loop's. The file may
// be stale, damaged, of another version or shared with another scheduler of this user: nothing in
// it is believed unchecked, and a file that cannot be used is moved aside and begun anew. It is
// this user's own (mode 0600), but what tenants measured is in it.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "proto/abi/profile.h"

namespace rubato::sched {

// On what a duration was measured. Not which GPU: another one of the same model profits.
struct DeviceModel {
  std::string name;
  uint32_t sm_count = 0;
  uint32_t time_dilation = 1;  // Of a software GPU, whose durations grow with it.
  std::string driver;          // Its version; empty: not known.
  auto operator<=>(const DeviceModel&) const = default;  // NOLINT(modernize-use-nullptr)
};

struct ProfileRow {
  DeviceModel model;
  uint64_t module_hash = 0;  // Of the code; 0: not known.
  uint64_t key = 0;
  abi::OpKind kind = abi::OpKind::kKernel;
  std::string name;             // Of the function, for people; empty: not known.
  base::Nanos duration_ns = 0;  // 1 to 2^32 - 1, as the next.
  uint32_t max_ns = 0;
  base::Nanos spread_ns = 0;
  uint64_t samples = 0;
  bool clean = false;
  int64_t last_seen_s = 0;  // CLOCK_REALTIME, seconds: it outlives the machine's uptime.
};

class ProfileDatabase {
 public:
  virtual ~ProfileDatabase() = default;

  // All rows that can be true, the one seen last first, at most `limit`. An error says that nothing
  // can be read any more.
  virtual base::Result<std::vector<ProfileRow>> ReadAll(size_t limit) = 0;
  // All or none. Rows of the same model, module and key are replaced; above the limit of the file
  // those not seen for longest go.
  virtual base::Result<void> Write(const std::vector<ProfileRow>& rows) = 0;
  virtual base::Result<void> Clear() = 0;
};

struct OpenedDatabase {
  std::unique_ptr<ProfileDatabase> database;
  std::string warning;  // What happened to the file that was there; empty: nothing.
};

inline constexpr int kProfileSchemaVersion = 1;

// Makes the folder (mode 0700, its parents as well) and the file if they are not there. A file that
// is damaged or of another version is renamed to PATH.damaged-N or PATH.version-V-N.
base::Result<OpenedDatabase> OpenProfileDatabase(const std::string& path, size_t most_rows);

}  // namespace rubato::sched
