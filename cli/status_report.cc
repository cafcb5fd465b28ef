#include "cli/status_report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "base/log.h"
#include "base/time.h"
#include "cli/byte_size.h"
#include "cli/command_line.h"
#include "cli/text_table.h"

namespace rubato::cli {
namespace {

using Json = nlohmann::ordered_json;

const char* ModeName(control::Mode mode) {
  switch (mode) {
    case control::MODE_TIMESLICE:
      return "timeslice";
    case control::MODE_HYBRID:
      return "hybrid";
    case control::MODE_MPS:
      return "mps";
    default:
      return "unknown";
  }
}

const char* ClassName(control::TenantClass tenant_class) {
  switch (tenant_class) {
    case control::TENANT_CLASS_REALTIME:
      return "realtime";
    case control::TENANT_CLASS_BEST_EFFORT:
      return "best-effort";
    default:
      return "unknown";
  }
}

const char* ReleaseName(control::ReleaseModel::Kind kind) {
  switch (kind) {
    case control::ReleaseModel::KIND_APERIODIC:
      return "aperiodic";
    case control::ReleaseModel::KIND_LEARNING:
      return "learning";
    case control::ReleaseModel::KIND_LOCKED:
      return "locked";
    default:
      return "unknown";
  }
}

// The class of processes that start now.
control::TenantClass ClassOf(const control::TenantStatus& tenant) {
  const control::TenantClass granted = tenant.admission().granted();
  return granted != control::TENANT_CLASS_UNSPECIFIED ? granted : tenant.spec().tenant_class();
}

// The class of its processes on one device.
control::TenantClass ClassOf(const control::TenantStatus& tenant,
                             const control::TenantDeviceStatus& device) {
  return device.tenant_class() != control::TENANT_CLASS_UNSPECIFIED ? device.tenant_class()
                                                                    : ClassOf(tenant);
}

bool IsRealtime(const control::TenantStatus& tenant) {
  return ClassOf(tenant) == control::TENANT_CLASS_REALTIME;
}

// Real-time tenants first, then by name: rows stay where the eye left them.
std::vector<const control::TenantStatus*> InOrder(const control::GetStatusResponse& status) {
  std::vector<const control::TenantStatus*> tenants;
  for (const control::TenantStatus& tenant : status.tenants()) tenants.push_back(&tenant);
  std::sort(tenants.begin(), tenants.end(),
            [](const control::TenantStatus* a, const control::TenantStatus* b) {
              const auto key = [](const control::TenantStatus* tenant) {
                return std::make_tuple(!IsRealtime(*tenant),
                                       std::string_view(tenant->spec().name()),
                                       tenant->tenant_id());
              };
              return key(a) < key(b);
            });
  return tenants;
}

std::string Duration(uint64_t ns) {
  return ns == 0 ? "-" : base::FormatDuration(static_cast<base::Nanos>(ns));
}

// Three digits are enough for eyes that compare rows.
std::string ShortDuration(uint64_t ns) {
  if (ns == 0) return "-";
  uint64_t step = 1;
  while (ns / step >= 1000) step *= 10;
  return base::FormatDuration(static_cast<base::Nanos>((ns + step / 2) / step * step));
}

std::string Bytes(uint64_t bytes) {
  return bytes == 0 ? "-" : FormatByteSize(bytes);
}

std::string PerCentOf(uint32_t permille) {
  if (permille == 0) return "-";
  std::string text = std::to_string(permille / 10);
  if (permille % 10 != 0) text += "." + std::to_string(permille % 10);
  return text + "%";
}

std::string Number(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", decimals, value);
  return text;
}

// An age, for people: 42s, 3m12s, 5h07m, 12d03h.
std::string Age(uint64_t from_ns, uint64_t now_ns) {
  const uint64_t seconds = now_ns > from_ns ? (now_ns - from_ns) / 1'000'000'000 : 0;
  char text[64];
  if (seconds < 60) {
    std::snprintf(text, sizeof(text), "%us", static_cast<unsigned>(seconds));
  } else if (seconds < 3600) {
    std::snprintf(text, sizeof(text), "%um%02us", static_cast<unsigned>(seconds / 60),
                  static_cast<unsigned>(seconds % 60));
  } else if (seconds < 86400) {
    std::snprintf(text, sizeof(text), "%uh%02um", static_cast<unsigned>(seconds / 3600),
                  static_cast<unsigned>(seconds / 60 % 60));
  } else {
    std::snprintf(text, sizeof(text), "%ud%02uh", static_cast<unsigned>(seconds / 86400),
                  static_cast<unsigned>(seconds / 3600 % 24));
  }
  return text;
}

std::string SchedulerLine(const control::GetStatusResponse& status) {
  const control::GetVersionResponse& scheduler = status.scheduler();
  std::string line = "scheduler " + scheduler.version() + ", pid " +
                     std::to_string(scheduler.pid()) + ", mode " + ModeName(scheduler.mode()) +
                     ", up " + Age(scheduler.started_ns(), status.now_ns());
  if (!scheduler.metrics_address().empty()) line += ", metrics " + scheduler.metrics_address();
  if (scheduler.time_dilation() > 1) {
    line += ", time dilation " + std::to_string(scheduler.time_dilation());
  }
  if (scheduler.draining()) line += ", draining";
  line += '\n';
  if (status.mps().wanted()) {
    line += std::string("MPS ") + (status.mps().healthy() ? "healthy" : "NOT HEALTHY");
    if (!status.mps().detail().empty()) line += ": " + base::Printable(status.mps().detail());
    line += '\n';
  }
  return line;
}

std::string DetachedLine(const control::GetStatusResponse& status) {
  std::string line;
  for (const control::ReasonCount& reason : status.sessions_detached()) {
    if (reason.count() == 0) continue;
    line += line.empty() ? "sessions that run without Rubato since the start: " : ", ";
    line += base::Printable(reason.reason()) + " " + std::to_string(reason.count());
  }
  return line.empty() ? line : line + "\n";
}

Json ReleaseJson(const control::ReleaseModel& release) {
  return Json{{"kind", ReleaseName(release.kind())}, {"period_declared", release.period_declared()},
              {"period_ns", release.period_ns()},    {"phase_ns", release.phase_ns()},
              {"early_ns", release.early_ns()},      {"late_ns", release.late_ns()},
              {"margin_ns", release.margin_ns()},    {"bound_ns", release.bound_ns()},
              {"think_ns", release.think_ns()},      {"max_hold_ns", release.max_hold_ns()},
              {"job_ns", release.job_ns()},          {"relocks_total", release.relocks_total()}};
}

Json AdmissionJson(const control::AdmissionDecision& decision) {
  return Json{{"asked", ClassName(decision.asked())},
              {"granted", ClassName(decision.granted())},
              {"reason", decision.reason()},
              {"detail", decision.detail()},
              {"device_uuid", decision.device_uuid()},
              {"demand_permille", decision.demand_permille()},
              {"capacity_permille", decision.capacity_permille()},
              {"unknown_tenants", decision.unknown_tenants()},
              {"blocking_ns", decision.blocking_ns()},
              {"interference_ns", decision.interference_ns()},
              {"job_ns", decision.job_ns()},
              {"response_ns", decision.response_ns()},
              {"deadline_ns", decision.deadline_ns()},
              {"decided_ns", decision.decided_ns()}};
}

Json TenantDeviceJson(const control::TenantDeviceStatus& device,
                      control::TenantClass tenant_class) {
  const bool realtime = tenant_class == control::TENANT_CLASS_REALTIME;
  return Json{{"device", device.device()},
              {"class", ClassName(tenant_class)},
              {"sessions", device.sessions()},
              {"jobs_total", device.jobs_total()},
              {"deadline_misses_total", device.deadline_misses_total()},
              {"tardiness_ns_total", device.tardiness_ns_total()},
              {"response_p50_ns", device.response_p50_ns()},
              {"response_p99_ns", device.response_p99_ns()},
              {"response_max_ns", device.response_max_ns()},
              {"response_sum_ns", device.response_sum_ns()},
              {"release", realtime ? ReleaseJson(device.release()) : Json(nullptr)},
              {"touches_total", device.touches_total()},
              {"touches_late_total", device.touches_late_total()},
              {"touches_wasted_total", device.touches_wasted_total()},
              {"hold_revoked", device.hold_revoked()},
              {"hold_revocations_total", device.hold_revocations_total()},
              {"ops_total", device.ops_total()},
              {"gate_waits_total", device.gate_waits_total()},
              {"gate_wait_ns_total", device.gate_wait_ns_total()},
              {"gate_expired_total", device.gate_expired_total()},
              {"unknown_ops_total", device.unknown_ops_total()},
              {"gpu_busy_ns_total", device.gpu_busy_ns_total()},
              {"memory_used_bytes", device.memory_used_bytes()},
              {"memory_peak_bytes", device.memory_peak_bytes()},
              {"memory_refused_total", device.memory_refused_total()},
              {"unknown_symbols_total", device.unknown_symbols_total()},
              {"samples_total", device.samples_total()},
              {"samples_lost_total", device.samples_lost_total()},
              {"uncut_graphs_total", device.uncut_graphs_total()},
              {"holds_ignored_total", device.holds_ignored_total()}};
}

Json TenantJson(const control::TenantStatus& tenant) {
  const control::TenantSpec& spec = tenant.spec();
  Json json = {{"id", tenant.tenant_id()},
               {"name", spec.name()},
               {"namespace", spec.namespace_()},
               {"pod", spec.pod()},
               {"container", spec.container()},
               {"pod_uid", spec.pod_uid()},
               {"class", ClassName(ClassOf(tenant))},
               {"asked_class", ClassName(spec.tenant_class())},
               {"period_ns", spec.period_ns()},
               {"deadline_ns", spec.deadline_ns()},
               {"limit_bytes", spec.limit_bytes()},
               {"weight", spec.weight()},
               {"priority", spec.priority()},
               {"overhead_budget_permille", spec.overhead_budget_permille()},
               {"share_permille", spec.share_permille()},
               {"device_uuids", Json::array()},
               {"created_ns", tenant.created_ns()},
               {"attach_socket", tenant.attach_socket_path()},
               {"sessions", tenant.sessions()},
               {"admission", AdmissionJson(tenant.admission())}};
  for (const std::string& uuid : spec.device_uuids()) json["device_uuids"].push_back(uuid);
  Json devices = Json::array();
  for (const control::TenantDeviceStatus& device : tenant.devices()) {
    devices.push_back(TenantDeviceJson(device, ClassOf(tenant, device)));
  }
  json["devices"] = std::move(devices);
  Json sessions = Json::array();
  for (const control::SessionStatus& session : tenant.session_list()) {
    sessions.push_back(Json{{"device", session.device()},
                            {"index", session.index()},
                            {"class", ClassName(session.tenant_class())},
                            {"pid", session.pid()},
                            {"program", session.program()},
                            {"vendor", session.vendor()},
                            {"attached_ns", session.attached_ns()},
                            {"reattached", session.reattached()},
                            {"shim_build", session.shim_build()}});
  }
  json["session_list"] = std::move(sessions);
  return json;
}

Json SchedulerJson(const control::GetVersionResponse& scheduler) {
  char epoch[24];
  std::snprintf(epoch, sizeof(epoch), "%016llx",
                static_cast<unsigned long long>(scheduler.epoch()));
  return Json{
      {"version", scheduler.version()},
      {"abi", std::to_string(scheduler.abi_major()) + "." + std::to_string(scheduler.abi_minor())},
      {"pid", scheduler.pid()},
      {"mode", ModeName(scheduler.mode())},
      {"epoch", epoch},
      {"started_ns", scheduler.started_ns()},
      {"metrics_address", scheduler.metrics_address()},
      {"runtime_directory", scheduler.runtime_directory()},
      {"mps_directory", scheduler.mps_directory()},
      {"time_dilation", scheduler.time_dilation()},
      {"draining", scheduler.draining()}};
}

Json Document() {
  return Json{{"schema", kStatusSchema},      {"now_ns", 0},
              {"scheduler", nullptr},         {"mps", nullptr},
              {"profile_store", nullptr},     {"devices", Json::array()},
              {"tenants", Json::array()},     {"sessions_detached", Json::object()},
              {"handshakes_refused_total", 0}};
}

std::string Text(const Json& json) {
  return json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

// What a tenant did on one device, earlier.
std::optional<control::TenantDeviceStatus> FindBefore(const control::GetStatusResponse& before,
                                                      uint64_t tenant_id,
                                                      const control::TenantDeviceStatus& now) {
  for (const control::TenantStatus& tenant : before.tenants()) {
    if (tenant.tenant_id() != tenant_id) continue;
    for (const control::TenantDeviceStatus& entry : tenant.devices()) {
      if (entry.device() == now.device() && entry.tenant_class() == now.tenant_class())
        return entry;
    }
  }
  return std::nullopt;
}

std::string PerSecond(uint64_t before, uint64_t now, double seconds) {
  if (now < before) return "-";
  const double rate = static_cast<double>(now - before) / seconds;
  return Number(rate, rate < 100 ? 1 : 0);
}

std::string PerCent(uint64_t before_ns, uint64_t now_ns, double seconds) {
  if (now_ns < before_ns) return "-";
  return Number(static_cast<double>(now_ns - before_ns) / (seconds * 1e7), 1) + "%";
}

}  // namespace

std::string StatusTable(const control::GetStatusResponse& status) {
  std::string text = SchedulerLine(status) + DetachedLine(status);
  if (status.devices_size() != 0) {
    TextTable devices({{"DEVICE"},
                       {"NAME"},
                       {"UUID"},
                       {"SMS", true},
                       {"MEMORY", true},
                       {"SESSIONS", true},
                       {"REALTIME", true},
                       {"DEMAND", true},
                       {"OF", true},
                       {"KERNELS KNOWN", true}});
    for (const control::DeviceStatus& device : status.devices()) {
      devices.AddRow({std::to_string(device.index()), device.name(), device.uuid(),
                      std::to_string(device.sm_count()), Bytes(device.total_bytes()),
                      std::to_string(device.sessions()), std::to_string(device.realtime_sessions()),
                      PerCentOf(device.realtime_demand_permille()),
                      PerCentOf(device.realtime_capacity_permille()),
                      std::to_string(device.profile_entries())});
    }
    text += "\n" + devices.Render();
  }
  if (status.tenants_size() == 0) return text + "\nno tenants\n";
  TextTable tenants({{"TENANT"},
                     {"CLASS"},
                     {"SESSIONS", true},
                     {"DEVICE", true},
                     {"PERIOD", true},
                     {"DEADLINE", true},
                     {"RELEASE"},
                     {"JOBS", true},
                     {"P50", true},
                     {"P99", true},
                     {"MISSES", true},
                     {"LAUNCHES", true},
                     {"GATE WAIT", true},
                     {"MEMORY", true},
                     {"LIMIT", true}});
  for (const control::TenantStatus* listed : InOrder(status)) {
    const control::TenantStatus& tenant = *listed;
    const control::TenantSpec& spec = tenant.spec();
    const auto add = [&](const control::TenantDeviceStatus* device) {
      const control::TenantClass tenant_class =
          device != nullptr ? ClassOf(tenant, *device) : ClassOf(tenant);
      const bool realtime = tenant_class == control::TENANT_CLASS_REALTIME;
      std::vector<std::string> row = {spec.name(), ClassName(tenant_class),
                                      std::to_string(tenant.sessions())};
      const auto cell = [&row, device](bool applies, const std::string& value) {
        row.push_back(device != nullptr && applies ? value : "-");
      };
      const control::TenantDeviceStatus none;
      const control::TenantDeviceStatus& at = device != nullptr ? *device : none;
      cell(true, std::to_string(at.device()));
      row.push_back(Duration(spec.period_ns() != 0 ? spec.period_ns() : at.release().period_ns()));
      row.push_back(Duration(spec.deadline_ns()));
      cell(realtime, at.hold_revoked() ? "revoked" : ReleaseName(at.release().kind()));
      cell(realtime, std::to_string(at.jobs_total()));
      cell(realtime, ShortDuration(at.response_p50_ns()));
      cell(realtime, ShortDuration(at.response_p99_ns()));
      cell(realtime, std::to_string(at.deadline_misses_total()));
      cell(true, std::to_string(at.ops_total()));
      cell(!realtime, ShortDuration(at.gate_wait_ns_total()));
      cell(true, Bytes(at.memory_used_bytes()));
      row.push_back(Bytes(spec.limit_bytes()));
      tenants.AddRow(std::move(row));
    };
    if (tenant.devices_size() == 0) add(nullptr);
    for (const control::TenantDeviceStatus& device : tenant.devices()) add(&device);
  }
  text += "\n" + tenants.Render();

  // Who was granted what, and why: the longest words last.
  TextTable admissions({{"TENANT"},
                        {"ASKED"},
                        {"GRANTED"},
                        {"SLOTS", true},
                        {"MEMORY LIMIT", true},
                        {"REASON"},
                        {"WHY"}});
  for (const control::TenantStatus* tenant : InOrder(status)) {
    const control::AdmissionDecision& decision = tenant->admission();
    if (decision.granted() == control::TENANT_CLASS_UNSPECIFIED) continue;  // Says nothing of it.
    const std::string& pod = tenant->spec().pod();
    admissions.AddRow(
        {pod.empty() ? tenant->spec().name()
                     : tenant->spec().namespace_() + "/" + pod + "/" + tenant->spec().container(),
         ClassName(decision.asked()), ClassName(decision.granted()),
         PerCentOf(tenant->spec().share_permille()), Bytes(tenant->spec().limit_bytes()),
         decision.reason(), decision.detail()});
  }
  return admissions.empty() ? text : text + "\n" + admissions.Render();
}

std::string StatusJson(const control::GetStatusResponse& status) {
  Json json = Document();
  json["now_ns"] = status.now_ns();
  json["scheduler"] = SchedulerJson(status.scheduler());
  json["mps"] = Json{{"wanted", status.mps().wanted()},
                     {"healthy", status.mps().healthy()},
                     {"detail", status.mps().detail()}};
  for (const control::DeviceStatus& device : status.devices()) {
    json["devices"].push_back(
        Json{{"index", device.index()},
             {"uuid", device.uuid()},
             {"name", device.name()},
             {"sm_count", device.sm_count()},
             {"total_bytes", device.total_bytes()},
             {"sessions", device.sessions()},
             {"realtime_sessions", device.realtime_sessions()},
             {"realtime_demand_permille", device.realtime_demand_permille()},
             {"realtime_capacity_permille", device.realtime_capacity_permille()},
             {"profile_entries", device.profile_entries()},
             {"profile_restored", device.profile_restored()}});
  }
  json["profile_store"] = {{"path", status.profile_store().path()},
                           {"usable", status.profile_store().usable()},
                           {"entries", status.profile_store().entries()},
                           {"errors_total", status.profile_store().errors_total()},
                           {"written_total", status.profile_store().written_total()}};
  for (const control::TenantStatus& tenant : status.tenants()) {
    json["tenants"].push_back(TenantJson(tenant));
  }
  for (const control::ReasonCount& reason : status.sessions_detached()) {
    json["sessions_detached"][reason.reason()] = reason.count();
  }
  json["handshakes_refused_total"] = status.handshakes_refused_total();
  return Text(json);
}

std::string NoSchedulerJson() {
  return Text(Document());
}

std::string TopTable(const control::GetStatusResponse& before,
                     const control::GetStatusResponse& now) {
  const bool comparable = before.scheduler().epoch() == now.scheduler().epoch() &&
                          before.now_ns() != 0 && now.now_ns() > before.now_ns();
  const double seconds =
      comparable ? static_cast<double>(now.now_ns() - before.now_ns()) / 1e9 : 1.0;
  TextTable table({{"TENANT"},
                   {"CLASS"},
                   {"JOBS/S", true},
                   {"P50", true},
                   {"P99", true},
                   {"MISSES", true},
                   {"LAUNCHES/S", true},
                   {"GPU", true},
                   {"GATE WAIT", true},
                   {"MEMORY", true},
                   {"LIMIT", true}});
  for (const control::TenantStatus* listed : InOrder(now)) {
    const control::TenantStatus& tenant = *listed;
    const control::TenantSpec& spec = tenant.spec();
    if (tenant.devices_size() == 0) {
      table.AddRow({spec.name(), ClassName(ClassOf(tenant)), "-", "-", "-", "-", "-", "-", "-", "-",
                    Bytes(spec.limit_bytes())});
    }
    for (const control::TenantDeviceStatus& device : tenant.devices()) {
      const control::TenantClass tenant_class = ClassOf(tenant, device);
      const bool realtime = tenant_class == control::TENANT_CLASS_REALTIME;
      std::optional<control::TenantDeviceStatus> earlier;
      if (comparable) earlier = FindBefore(before, tenant.tenant_id(), device);
      const std::string name = tenant.devices_size() == 1
                                   ? spec.name()
                                   : spec.name() + " @" + std::to_string(device.device());
      const auto rate = [&](auto field) {
        return earlier ? PerSecond(field(*earlier), field(device), seconds) : std::string("-");
      };
      const auto share = [&](auto field) {
        return earlier ? PerCent(field(*earlier), field(device), seconds) : std::string("-");
      };
      const auto jobs = [](const control::TenantDeviceStatus& at) { return at.jobs_total(); };
      const auto ops = [](const control::TenantDeviceStatus& at) { return at.ops_total(); };
      const auto busy = [](const control::TenantDeviceStatus& at) {
        return at.gpu_busy_ns_total();
      };
      const auto wait = [](const control::TenantDeviceStatus& at) {
        return at.gate_wait_ns_total();
      };
      table.AddRow({name, ClassName(tenant_class), realtime ? rate(jobs) : "-",
                    realtime ? ShortDuration(device.response_p50_ns()) : "-",
                    realtime ? ShortDuration(device.response_p99_ns()) : "-",
                    realtime ? std::to_string(device.deadline_misses_total()) : "-", rate(ops),
                    share(busy), realtime ? "-" : share(wait), Bytes(device.memory_used_bytes()),
                    Bytes(spec.limit_bytes())});
    }
  }
  std::string text = SchedulerLine(now);
  return text + (now.tenants_size() == 0 ? "no tenants\n" : table.Render());
}

}  // namespace rubato::cli
