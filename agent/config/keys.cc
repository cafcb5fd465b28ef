#include "agent/config/keys.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <initializer_list>
#include <utility>

namespace rubato::agent {
namespace {

using base::Error;
using base::ErrorCode;
using base::Result;
using Values = std::vector<std::string>;

Error Bad(std::string message) {
  return Error{ErrorCode::kInvalid, std::move(message)};
}

std::string Join(const Values& values) {
  std::string out;
  for (const std::string& value : values) {
    if (!out.empty()) out += ",";
    out += value;
  }
  return out;
}

Result<uint64_t> ParseNumber(const std::string& text, uint64_t least, uint64_t most) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < least || value > most) {
    return Bad("'" + text + "' is not a number from " + std::to_string(least) + " to " +
               std::to_string(most));
  }
  return value;
}

ConfigKey Text(const char* path, std::string Config::*member, bool live, const char* meaning) {
  return {path,
          false,
          live,
          [member](Config* c, const Values& v) -> Result<void> {
            c->*member = v[0];
            return {};
          },
          [member](const Config& c) { return c.*member; },
          meaning};
}

ConfigKey Path(const char* path, std::string Config::*member, bool may_be_empty,
               const char* meaning) {
  return {path,
          false,
          false,
          [member, may_be_empty](Config* c, const Values& v) -> Result<void> {
            if (v[0].empty() ? !may_be_empty : v[0].front() != '/')
              return Bad("'" + v[0] + "' is not an absolute path");
            std::string clean = v[0];
            while (clean.size() > 1 && clean.back() == '/') clean.pop_back();
            c->*member = std::move(clean);
            return {};
          },
          [member](const Config& c) { return c.*member; },
          meaning};
}

ConfigKey Switch(const char* path, bool Config::*member, bool live, const char* meaning) {
  return {path,
          false,
          live,
          [member](Config* c, const Values& v) -> Result<void> {
            if (v[0] != "true" && v[0] != "false")
              return Bad("'" + v[0] + "' is not true or false");
            c->*member = v[0] == "true";
            return {};
          },
          [member](const Config& c) { return std::string(c.*member ? "true" : "false"); },
          meaning};
}

ConfigKey Number(const char* path, uint32_t Config::*member, uint32_t least, uint32_t most,
                 bool live, const char* meaning) {
  return {path,
          false,
          live,
          [member, least, most](Config* c, const Values& v) -> Result<void> {
            const auto value = ParseNumber(v[0], least, most);
            if (!value) return value.error();
            c->*member = static_cast<uint32_t>(*value);
            return {};
          },
          [member](const Config& c) { return std::to_string(c.*member); },
          meaning};
}

ConfigKey Duration(const char* path, base::Nanos Config::*member, base::Nanos least, bool live,
                   const char* meaning) {
  return {path,
          false,
          live,
          [member, least](Config* c, const Values& v) -> Result<void> {
            const auto value = base::ParseDuration(v[0]);
            if (!value) return value.error();
            if (*value < least)
              return Bad("'" + v[0] + "' is shorter than " + base::FormatDuration(least));
            c->*member = *value;
            return {};
          },
          [member](const Config& c) { return base::FormatDuration(c.*member); },
          meaning};
}

ConfigKey List(const char* path, Values Config::*member, const char* meaning) {
  return {path,
          true,
          true,
          [member](Config* c, const Values& v) -> Result<void> {
            c->*member = v;
            return {};
          },
          [member](const Config& c) { return Join(c.*member); },
          meaning};
}

template <typename T>
ConfigKey Choice(const char* path, T Config::*member, bool live,
                 std::initializer_list<std::pair<const char*, T>> choices, const char* meaning) {
  const std::vector<std::pair<std::string, T>> known(choices.begin(), choices.end());
  return {path,
          false,
          live,
          [member, known](Config* c, const Values& v) -> Result<void> {
            std::string names;
            for (const auto& [name, value] : known) {
              if (name == v[0]) {
                c->*member = value;
                return {};
              }
              names += (names.empty() ? "" : ", ") + name;
            }
            return Bad("'" + v[0] + "' is not one of " + names);
          },
          [member, known](const Config& c) -> std::string {
            for (const auto& [name, value] : known) {
              if (value == c.*member) return name;
            }
            return "";
          },
          meaning};
}

ConfigKey Percent(const char* path, uint32_t Config::*member, const char* meaning) {
  return {path,
          false,
          true,
          [member](Config* c, const Values& v) -> Result<void> {
            const std::string& text = v[0];
            const Error error = Bad("'" + text +
                                    "' is not a share from 0% to 100%, such as 2% or "
                                    "2.5%");
            if (text.size() < 2 || text.back() != '%') return error;
            const size_t point = text.find('.');
            const std::string whole = text.substr(0, std::min(point, text.size() - 1));
            const auto percent = ParseNumber(whole, 0, 100);
            if (!percent) return error;
            uint64_t permille = *percent * 10;
            if (point != std::string::npos) {
              const auto tenth = ParseNumber(text.substr(point + 1, text.size() - point - 2), 0, 9);
              if (!tenth) return error;
              permille += *tenth;
            }
            if (permille > 1000) return error;
            c->*member = static_cast<uint32_t>(permille);
            return {};
          },
          [member](const Config& c) {
            const uint32_t value = c.*member;
            std::string out = std::to_string(value / 10);
            if (value % 10 != 0) out += "." + std::to_string(value % 10);
            return out + "%";
          },
          meaning};
}

ConfigKey Address(const char* path, std::string Config::*member, const char* meaning) {
  return {path,
          false,
          false,
          [member](Config* c, const Values& v) -> Result<void> {
            if (v[0].empty() || v[0] == "none") {
              (c->*member).clear();
              return {};
            }
            const size_t colon = v[0].rfind(':');
            if (colon == std::string::npos || colon == 0 ||
                !ParseNumber(v[0].substr(colon + 1), 0, 65535))
              return Bad("'" + v[0] + "' is not host:port or none");
            c->*member = v[0];
            return {};
          },
          [member](const Config& c) { return c.*member; },
          meaning};
}

// Kubernetes: prefix/name, the prefix a DNS name that leaves room for "requests.".
bool IsResourceName(std::string_view name) {
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos || name.find("kubernetes.io/") != std::string_view::npos ||
      name.starts_with("requests."))
    return false;
  const std::string_view prefix = name.substr(0, slash);
  const std::string_view rest = name.substr(slash + 1);
  const auto alnum = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; };
  if (prefix.empty() || prefix.size() > 244 || rest.empty() || rest.size() > 63) return false;
  char before = '.';
  for (const char c : prefix) {
    const bool ends = c == '.' || c == '-';
    if (!(alnum(c) && std::isupper(static_cast<unsigned char>(c)) == 0) && !ends) return false;
    if (c == '.' && (before == '.' || before == '-')) return false;
    if (c == '-' && before == '.') return false;
    before = c;
  }
  if (before == '.' || before == '-' || !alnum(rest.front()) || !alnum(rest.back())) return false;
  return std::all_of(rest.begin(), rest.end(),
                     [&](char c) { return alnum(c) || c == '-' || c == '_' || c == '.'; });
}

std::vector<ConfigKey> MakeKeys() {
  using C = Config;
  std::vector<ConfigKey> keys;
  const auto add = [&](ConfigKey key) { keys.push_back(std::move(key)); };
  add({"version", false, false,
       [](Config*, const Values& v) -> Result<void> {
         if (v[0] != "v1")
           return Bad("'" + v[0] + "' is not v1, the version that this agent reads");
         return {};
       },
       [](const Config&) { return std::string("v1"); }, "Version of this file; must be `v1`."});
  add({"resourceName", false, false,
       [](Config* c, const Values& v) -> Result<void> {
         if (!IsResourceName(v[0]))
           return Bad("'" + v[0] + "' is not the name of an extended resource, such as " +
                      "rubato.dev/gpu");
         c->resource_name = v[0];
         return {};
       },
       [](const Config& c) { return c.resource_name; },
       "Extended resource that pods ask for; one unit is one slot."});
  add({"annotationPrefix", false, false,
       [](Config* c, const Values& v) -> Result<void> {
         if (v[0].size() < 2 || v[0].back() != '/' || !IsResourceName(v[0] + "x"))
           return Bad("'" + v[0] + "' is not a prefix of annotations, such as rubato.dev/");
         c->annotation_prefix = v[0];
         return {};
       },
       [](const Config& c) { return c.annotation_prefix; }, "Prefix of the annotations on pods."});
  add(Number("slotsPerGpu", &C::slots_per_gpu, 1, 100, false,
             "Slots that each GPU is offered as."));
  add(Choice("allocation.policy", &C::placement, true,
             {{"packed", Placement::kPacked}, {"spread", Placement::kSpread}},
             "`packed` fills GPUs one after another, `spread` takes the emptiest."));
  add(Switch("allocation.numaHints", &C::numa_hints, true,
             "Tell the kubelet each GPU's NUMA node; with the topology manager's "
             "`single-numa-node` it then refuses pods that do not fit one node."));
  add(Choice("deviceInjection", &C::device_injection, true,
             {{"envvar", DeviceInjection::kEnvvar},
              {"cdi-annotations", DeviceInjection::kCdiAnnotations},
              {"cdi", DeviceInjection::kCdi}},
             "How NVIDIA's toolkit is asked for devices and driver: `envvar`, `cdi-annotations` or "
             "`cdi`."));
  add(Choice("shimInjection", &C::shim_injection, true,
             {{"preload", ShimInjection::kPreload}, {"env", ShimInjection::kEnv}},
             "`preload` mounts /etc/ld.so.preload; `env` sets LD_PRELOAD, which a pod's own "
             "LD_PRELOAD overrides."));
  add(Path("hostRoot", &C::host_root, false,
           "Directory of the shim, the attach directories and the allocation records; the same "
           "path on the host."));
  add(Path("kubelet.rootDirectory", &C::kubelet_root, false,
           "The kubelet's root; `device-plugins` and `pod-resources` lie in it."));
  add(Path("scheduler.runtimeDirectory", &C::scheduler_runtime_dir, false,
           "Runtime directory of rubato-scheduler, where its control socket is."));
  add(Choice("mode", &C::mode, false,
             {{"timeslice", SharingMode::kTimeslice},
              {"hybrid", SharingMode::kHybrid},
              {"mps", SharingMode::kMps}},
             "How the node shares its GPUs; `hybrid` and `mps` mount the directories of MPS into "
             "containers."));
  add(Path("mps.pipeDirectory", &C::mps_pipe_dir, true,
           "Pipe directory of the MPS control daemon, mounted at the same path."));
  add(Path("mps.shmDirectory", &C::mps_shm_dir, true,
           "Directory mounted at /dev/shm of containers that may use MPS."));
  add(Choice("gpu.source", &C::gpu_source, false,
             {{"auto", GpuSource::kAuto},
              {"nvml", GpuSource::kNvml},
              {"amd", GpuSource::kAmd},
              {"software", GpuSource::kSoftware}},
             "Who tells which GPUs there are: `nvml`, `amd` (ROCm SMI), `software`, or `auto`: the "
             "first of nvml and amd whose library is there."));
  add(Path("gpu.driverRoot", &C::driver_root, false,
           "Where the host's driver is seen from here; its libraries are looked for below it."));
  add(List("gpu.include", &C::gpu_include, "UUIDs or indices of the GPUs to offer; empty: all."));
  add(List("gpu.exclude", &C::gpu_exclude, "UUIDs or indices of GPUs not to offer."));
  add(Number("gpu.fakeDevices", &C::fake_devices, 0, 8, false,
             "Offer so many software GPUs (at most 8): for a try-out without hardware."));
  add(Duration("gpu.pollInterval", &C::gpu_poll_interval_ns, 100 * base::kMillisecond, false,
               "How often the vendor's library is asked."));
  add(Duration("gpu.hangLimit", &C::gpu_hang_limit_ns, 100 * base::kMillisecond, false,
               "A call of the vendor's library that takes longer makes its GPUs unhealthy, reason "
               "`driver-hung`, until it returns."));
  add(Duration("gpu.recoveryTime", &C::gpu_recovery_ns, 0, true,
               "A GPU that was unhealthy is offered again after so long without another error."));
  add({"gpu.ignoredXids", true, true,
       [](Config* c, const Values& v) -> Result<void> {
         std::vector<uint32_t> xids;
         for (const std::string& text : v) {
           const auto xid = ParseNumber(text, 1, 100000);
           if (!xid) return xid.error();
           xids.push_back(static_cast<uint32_t>(*xid));
         }
         c->ignored_xids = std::move(xids);
         return {};
       },
       [](const Config& c) {
         Values out;
         for (const uint32_t xid : c.ignored_xids) out.push_back(std::to_string(xid));
         return Join(out);
       },
       "NVIDIA's Xid errors that a program causes and that say nothing about the GPU's health."});
  add(Text("nvidia.driverCapabilities", &C::driver_capabilities, true,
           "NVIDIA_DRIVER_CAPABILITIES of containers; empty: left to the image."));
  add(Switch("nvidia.passDeviceNodes", &C::pass_device_nodes, true,
             "Name the device nodes to the kubelet as well, so that a reload of systemd does not "
             "take them away from running containers."));
  add(Text("nvidia.cdiKind", &C::cdi_kind, true,
           "Kind of the CDI devices, for `deviceInjection` cdi and cdi-annotations."));
  add(Text("nvidia.cdiAnnotationPrefix", &C::cdi_annotation_prefix, true,
           "Prefix of the annotations for `deviceInjection: cdi-annotations`."));
  add(Choice(
      "softwareGpu.api", &C::softgpu_hip, false, {{"cuda", false}, {"hip", true}},
      "Which of the two interfaces containers use on software GPUs: it decides their shim."));
  add(Path("softwareGpu.socketDirectory", &C::softgpu_socket_dir, true,
           "Where the software GPU's device process listens (`<hostRoot>/softgpu/run`)."));
  add(Path("softwareGpu.libraryDirectory", &C::softgpu_library_dir, true,
           "Where its stand-ins for the vendors' libraries are (`lib/softgpu` or "
           "`lib/rubato/softgpu` beside the program's `bin`)."));
  add(List("policy.realtimeNamespaces", &C::realtime_namespaces,
           "Namespaces whose pods may be real-time; `*` is every one, none by default."));
  add(List("policy.budgetNamespaces", &C::budget_namespaces,
           "Namespaces whose pods may ask for more than `policy.maxOverheadBudget`."));
  add(List("policy.memoryNamespaces", &C::memory_namespaces,
           "Namespaces whose pods may ask for more memory than their slots stand for."));
  add(Switch("policy.memoryOvercommit", &C::memory_overcommit, true,
             "Allow the limits on one GPU to sum up to more than its memory."));
  add(Percent("policy.maxOverheadBudget", &C::max_overhead_budget_permille,
              "Largest overhead budget that every namespace may ask for."));
  add(Choice(
      "admission.onRefusal", &C::on_refusal, true,
      {{"best-effort", OnRefusal::kBestEffort}, {"refuse", OnRefusal::kRefuse}},
      "What becomes of a real-time container that does not fit: it runs as `best-effort`, or "
      "does not start (`refuse`)."));
  add(Switch("events.enabled", &C::events_enabled, true, "Write Kubernetes events on pods."));
  add(Switch("hostPID.enabled", &C::host_pid, false,
             "The agent sees the host's processes: it then names GPU processes that are not "
             "attached and checks which pod a process belongs to."));
  add(Switch("nodeLabels.enabled", &C::node_labels, false,
             "Label the node with the GPUs' model, the mode and the number of slots."));
  add(Text("kubernetes.nodeName", &C::node_name, false,
           "Name of this node; also read from the environment's NODE_NAME."));
  add(Text("kubernetes.apiServer", &C::api_server, false,
           "URL of the API server; empty: that of the cluster this runs in, `none`: no API server, "
           "so every container is best-effort."));
  add(Path("kubernetes.caFile", &C::api_ca_file, true,
           "With `kubernetes.apiServer`: PEM file of the only certificates to trust."));
  add(Path("kubernetes.tokenFile", &C::api_token_file, true,
           "With `kubernetes.apiServer`: file of the bearer token; empty: none is sent."));
  add(Address("metrics.address", &C::metrics_address,
              "host:port of /metrics, /healthz and /readyz; port 0 for a free one, `none` for "
              "none."));
  add(Path("health.socket", &C::health_socket, true,
           "Unix socket of the gRPC health service; empty: none."));
  add(Choice("log.level", &C::log_level, true,
             {{"debug", std::string("debug")},
              {"info", std::string("info")},
              {"warning", std::string("warning")},
              {"error", std::string("error")}},
             "debug, info, warning or error."));
  return keys;
}

const std::vector<ConfigKey>& Keys() {
  static const std::vector<ConfigKey>* const keys = new std::vector<ConfigKey>(MakeKeys());
  return *keys;
}

size_t Distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      const size_t change = diagonal + (std::tolower(a[i - 1]) == std::tolower(b[j - 1]) ? 0 : 1);
      row[j] = std::min({above + 1, row[j - 1] + 1, change});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::span<const ConfigKey> ConfigKeys() {
  return Keys();
}

const ConfigKey* FindConfigKey(std::string_view path) {
  const auto found = std::find_if(Keys().begin(), Keys().end(),
                                  [&](const ConfigKey& k) { return path == k.path; });
  return found == Keys().end() ? nullptr : &*found;
}

std::string EnvironmentName(std::string_view path) {
  std::string out = "RUBATO_AGENT_";
  char before = '.';
  for (const char c : path) {
    if (c == '.') {
      out += '_';
    } else {
      const bool starts_word = std::isupper(static_cast<unsigned char>(c)) != 0 &&
                               std::islower(static_cast<unsigned char>(before)) != 0;
      if (starts_word) out += '_';
      out += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    before = c;
  }
  return out;
}

std::string NearestKey(std::string_view path) {
  const auto nearest =
      std::min_element(Keys().begin(), Keys().end(), [&](const ConfigKey& a, const ConfigKey& b) {
        return Distance(path, a.path) < Distance(path, b.path);
      });
  return nearest->path;
}

std::vector<std::string> SplitList(std::string_view text) {
  std::vector<std::string> out;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    std::string_view part = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    while (!part.empty() && part.front() == ' ') part.remove_prefix(1);
    while (!part.empty() && part.back() == ' ') part.remove_suffix(1);
    if (!part.empty()) out.emplace_back(part);
  }
  return out;
}

base::Result<void> CheckConfig(const Config& config) {
  if (config.fake_devices > 0 && config.gpu_source != GpuSource::kSoftware &&
      config.gpu_source != GpuSource::kAuto) {
    return Bad("gpu.fakeDevices goes with gpu.source software or auto only");
  }
  if (config.mode != SharingMode::kTimeslice && config.mps_pipe_dir.empty()) {
    return Bad("mode " + FindConfigKey("mode")->show(config) +
               " needs mps.pipeDirectory, the directory of the MPS control daemon");
  }
  for (const std::string& entry : config.gpu_include) {
    if (std::find(config.gpu_exclude.begin(), config.gpu_exclude.end(), entry) !=
        config.gpu_exclude.end())
      return Bad("'" + entry + "' is in gpu.include and in gpu.exclude; remove it from one");
  }
  // A unix socket's path has 108 bytes, the attach socket's is the longest of ours.
  constexpr size_t kLongestRoot =
      107 - sizeof("/alloc/0123456789abcdef0123456789abcdef/attach.sock") + 1;
  if (config.host_root.size() > kLongestRoot) {
    return Bad("hostRoot must be at most " + std::to_string(kLongestRoot) + " characters long");
  }
  return {};
}

std::vector<std::string> NeedingRestart(const Config& before, const Config& after) {
  std::vector<std::string> out;
  for (const ConfigKey& key : Keys()) {
    if (!key.live && key.show(before) != key.show(after)) out.emplace_back(key.path);
  }
  return out;
}

Config WithLiveKeys(const Config& before, const Config& after) {
  Config out = before;
  for (const ConfigKey& key : Keys()) {
    if (!key.live) continue;
    const std::string text = key.show(after);
    (void)key.set(&out, key.list ? SplitList(text) : Values{text});
  }
  return out;
}

}  // namespace rubato::agent
