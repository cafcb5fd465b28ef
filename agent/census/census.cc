#include "agent/census/census.h"

#include <fstream>
#include <iterator>

#include "agent/kube/identity.h"

namespace rubato::agent {
namespace {

// Its clients are attached themselves; the server holds their memory. /proc cuts the name.
constexpr const char kMpsServer[] = "nvidia-cuda-mps";
constexpr size_t kMostCgroupBytes = 64 * 1024;

}  // namespace

std::optional<ProcessTraces> ReadProcess(int64_t pid) {
  const std::string folder = "/proc/" + std::to_string(pid);
  ProcessTraces traces;
  std::ifstream comm(folder + "/comm");
  std::ifstream cgroup(folder + "/cgroup", std::ios::binary);
  if (!comm || !cgroup) return std::nullopt;
  std::getline(comm, traces.program);
  traces.cgroup.assign(std::istreambuf_iterator<char>(cgroup), std::istreambuf_iterator<char>());
  if (traces.cgroup.size() > kMostCgroupBytes) traces.cgroup.resize(kMostCgroupBytes);
  return traces;
}

Census::Result Census::Observe(const std::vector<KnownGpu>& gpus,
                               const rubato::control::v1::GetStatusResponse& status,
                               const std::function<bool(const std::string& uid)>& has_slots,
                               base::Nanos now_ns) {
  Result result;
  std::set<int64_t> attached;
  std::set<std::pair<std::string, int64_t>> sessions;
  for (const auto& tenant : status.tenants()) {
    for (const auto& session : tenant.session_list()) {
      attached.insert(session.pid());
      if (session.pid() == 0 || tenant.spec().pod_uid().empty()) continue;
      const std::pair key(tenant.attach_token(), session.pid());
      sessions.insert(key);
      if (!checked_.try_emplace(key, true).second) continue;
      const auto traces = reader_(session.pid());
      if (!traces.has_value()) continue;
      const kube::CgroupIdentity identity = kube::ParseCgroup(traces->cgroup);
      // Not in a pod as far as can be seen: tells nothing.
      if (identity.pod_uid.empty() || identity.pod_uid == tenant.spec().pod_uid()) continue;
      if (!has_slots(identity.pod_uid) && !has_slots(tenant.spec().pod_uid())) continue;
      result.fresh.push_back(
          Suspicion{session.pid(), traces->program, "", identity.pod_uid, "other-pod"});
    }
  }
  std::erase_if(checked_, [&](const auto& entry) { return !sessions.contains(entry.first); });

  std::set<std::pair<std::string, int64_t>> present;
  for (const KnownGpu& gpu : gpus) {
    for (const GpuProcess& process : gpu.reading.processes) {
      if (attached.contains(process.pid)) continue;
      const std::pair key(gpu.reading.uuid, process.pid);
      present.insert(key);
      Seen& seen = seen_[key];
      if (seen.first_ns == 0) seen.first_ns = now_ns;
      if (now_ns - seen.first_ns < patience_ns_) continue;
      const auto traces = reader_(process.pid);
      if (!traces.has_value() || traces->program == kMpsServer) continue;
      const std::string uid = kube::ParseCgroup(traces->cgroup).pod_uid;
      const char* reason = uid.empty() ? "host" : has_slots(uid) ? "slots" : "no-slots";
      ++result.by_device[gpu.reading.uuid][reason];
      if (seen.reported) continue;
      seen.reported = true;
      result.fresh.push_back(
          Suspicion{process.pid, traces->program, gpu.reading.uuid, uid, reason});
    }
  }
  std::erase_if(seen_, [&](const auto& entry) { return !present.contains(entry.first); });
  return result;
}

}  // namespace rubato::agent
