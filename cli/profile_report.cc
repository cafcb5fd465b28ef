#include "cli/profile_report.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/time.h"
#include "cli/text_table.h"

namespace rubato::cli {
namespace {

std::string KeyText(uint64_t key) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016" PRIx64, key);
  return text;
}

std::string Duration(uint64_t duration_ns) {
  return base::FormatDuration(static_cast<base::Nanos>(duration_ns));
}

// "5 s", "3 min", "7 h", "12 d".
std::string Age(int64_t age_s) {
  age_s = std::max<int64_t>(age_s, 0);
  if (age_s < 60) return std::to_string(age_s) + " s";
  if (age_s < 3600) return std::to_string(age_s / 60) + " min";
  if (age_s < 86400) return std::to_string(age_s / 3600) + " h";
  return std::to_string(age_s / 86400) + " d";
}

std::string StoreLine(const control::ProfileStoreStatus& store) {
  if (store.path().empty()) return "no profile store: what is learnt ends with the scheduler\n";
  std::string line = base::Printable(store.path()) + ": " + std::to_string(store.entries()) +
                     (store.entries() == 1 ? " entry" : " entries");
  if (!store.usable()) line += "; not usable, see the scheduler's log";
  return line + "\n";
}

}  // namespace

std::string ProfileTable(const control::ListProfilesResponse& profiles, int64_t now_s) {
  TextTable table({{"DEVICE"},
                   {"KEY"},
                   {"KIND"},
                   {"DURATION", true},
                   {"MAX", true},
                   {"SPREAD", true},
                   {"SAMPLES", true},
                   {"SEEN", true},
                   {"NAME"}});
  for (const control::Profile& row : profiles.profiles()) {
    table.AddRow({row.device_name(), KeyText(row.key()), row.kind(), Duration(row.duration_ns()),
                  Duration(row.max_ns()), Duration(row.spread_ns()), std::to_string(row.samples()),
                  Age(now_s - row.last_seen_s()), row.name()});
  }
  const std::string store = StoreLine(profiles.store());
  if (table.empty()) return store + "nothing is known yet\n";
  return table.Render() + "\n" + store;
}

std::string ProfileJson(const control::ListProfilesResponse& profiles) {
  using Json = nlohmann::ordered_json;
  Json json = {{"store",
                {{"path", profiles.store().path()},
                 {"usable", profiles.store().usable()},
                 {"entries", profiles.store().entries()},
                 {"errors_total", profiles.store().errors_total()},
                 {"written_total", profiles.store().written_total()}}},
               {"profiles", Json::array()}};
  for (const control::Profile& row : profiles.profiles()) {
    json["profiles"].push_back({{"device_name", row.device_name()},
                                {"sm_count", row.sm_count()},
                                {"time_dilation", row.time_dilation()},
                                {"driver", row.driver()},
                                {"module_hash", KeyText(row.module_hash())},
                                {"key", KeyText(row.key())},
                                {"kind", row.kind()},
                                {"name", row.name()},
                                {"duration_ns", row.duration_ns()},
                                {"max_ns", row.max_ns()},
                                {"spread_ns", row.spread_ns()},
                                {"samples", row.samples()},
                                {"last_seen_s", row.last_seen_s()}});
  }
  return json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

std::string ProfileSummary(const control::GetStatusResponse& status,
                           const std::string& attach_socket_path) {
  uint64_t ops = 0;
  uint64_t new_ops = 0;
  uint64_t samples = 0;
  for (const control::TenantStatus& tenant : status.tenants()) {
    if (tenant.attach_socket_path() != attach_socket_path) continue;
    for (const control::TenantDeviceStatus& device : tenant.devices()) {
      ops += device.profiled_ops();
      new_ops += device.profiled_new_ops();
      samples += device.samples_total();
    }
  }
  if (ops == 0) return "the program ran no operation that could be measured";
  std::string line = std::to_string(samples) + " measurements of " + std::to_string(ops) +
                     " operations, " + std::to_string(new_ops) + " of them new";
  const control::ProfileStoreStatus& store = status.profile_store();
  if (store.path().empty()) return line + "; no store: known until the scheduler ends";
  if (!store.usable())
    return line + "; " + store.path() + " is not usable: known until the scheduler ends";
  return line + "; kept in " + store.path();
}

std::string ProgramsOn(const control::GetStatusResponse& status) {
  for (const control::TenantStatus& tenant : status.tenants()) {
    if (tenant.sessions() != 0) return "tenant " + base::Printable(tenant.spec().name());
  }
  return "";
}

}  // namespace rubato::cli
