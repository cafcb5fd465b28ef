#include "agent/tenants/policy.h"

#include <algorithm>
#include <cstdio>

namespace rubato::agent {
namespace {

constexpr size_t kMostNameBytes = 128;
constexpr int kMostDevices = 16;

// Order among real-time tenants: smaller is more urgent.
uint32_t PriorityOf(kube::PromisedPriority priority) {
  switch (priority) {
    case kube::PromisedPriority::kHigh:
      return 0;
    case kube::PromisedPriority::kNormal:
      return 1;
    case kube::PromisedPriority::kLow:
      return 2;
  }
  return 1;
}

std::string Percent(uint32_t permille) {
  std::string out = std::to_string(permille / 10);
  if (permille % 10 != 0) out += "." + std::to_string(permille % 10);
  return out + "%";
}

}  // namespace

TenantPolicy TenantPolicy::Of(const Config& config) {
  return TenantPolicy{config.annotation_prefix, config.realtime_namespaces,
                      config.budget_namespaces, config.memory_namespaces,
                      config.memory_overcommit, config.max_overhead_budget_permille};
}

bool NamespaceAllowed(const std::vector<std::string>& list, const std::string& name_space) {
  return std::any_of(list.begin(), list.end(),
                     [&](const std::string& entry) { return entry == "*" || entry == name_space; });
}

std::string FormatBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"", "Ki", "Mi", "Gi", "Ti"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f", value);
  std::string out = text;
  if (out.ends_with(".0")) out.resize(out.size() - 2);
  return out + kUnits[unit];
}

control::TenantSpec SpecOfSlots(const deviceplugin::AllocationRecord& record, const PodRef& pod) {
  control::TenantSpec spec;
  std::string name =
      pod.pod.empty() ? "unknown-" + record.token.substr(0, 8) : pod.pod + "/" + pod.container;
  if (name.size() > kMostNameBytes) name.resize(kMostNameBytes);
  spec.set_name(name);
  spec.set_namespace_(pod.name_space);
  spec.set_pod(pod.pod);
  spec.set_container(pod.container);
  spec.set_pod_uid(pod.uid);
  spec.set_tenant_class(control::TENANT_CLASS_BEST_EFFORT);
  spec.set_any_user(true);
  const size_t gpus = std::max<size_t>(1, record.gpus.size());
  const size_t slots_per_gpu = std::max<size_t>(1, record.slots_per_gpu);
  const size_t held = record.slots.size() / gpus;  // Of each GPU.
  spec.set_weight(static_cast<uint32_t>(std::max<size_t>(1, held)));
  spec.set_share_permille(
      static_cast<uint32_t>(std::clamp<size_t>(held * 1000 / slots_per_gpu, 1, 1000)));
  for (const std::string& uuid : record.gpus) {
    if (spec.device_uuids_size() < kMostDevices) spec.add_device_uuids(uuid);
  }
  return spec;
}

void ApplyPromise(const kube::Promise& promise, const TenantPolicy& policy, bool init,
                  control::TenantSpec* spec, std::vector<Notice>* notices) {
  if (init || promise.tenant_class != kube::PromisedClass::kRealtime) return;
  spec->set_tenant_class(control::TENANT_CLASS_REALTIME);
  spec->set_period_ns(static_cast<uint64_t>(promise.period_ns));
  spec->set_deadline_ns(static_cast<uint64_t>(promise.deadline_ns));
  spec->set_priority(PriorityOf(promise.priority));
  if (!NamespaceAllowed(policy.realtime_namespaces, spec->namespace_())) {
    spec->set_refusal_reason("not-allowed");
    spec->set_refusal_detail("namespace " + spec->namespace_() +
                             " may not ask for real-time; add it to policy.realtimeNamespaces");
  }
  if (!promise.overhead_budget_permille.has_value()) return;
  // The scheduler reads 0 as its default.
  uint32_t budget = std::max(1u, *promise.overhead_budget_permille);
  if (budget > policy.max_overhead_budget_permille &&
      !NamespaceAllowed(policy.budget_namespaces, spec->namespace_())) {
    notices->push_back(Notice{true, "BudgetNotAllowed",
                              "container " + spec->container() + ": overhead budget " +
                                  Percent(budget) + " is more than namespace " +
                                  spec->namespace_() + " may ask for; it gets " +
                                  Percent(policy.max_overhead_budget_permille)});
    budget = std::max(1u, policy.max_overhead_budget_permille);
  }
  spec->set_overhead_budget_permille(budget);
}

std::map<std::string, MemoryGrant> ShareMemory(const std::vector<MemoryAsk>& asks,
                                               const std::map<std::string, uint64_t>& total_bytes,
                                               const TenantPolicy& policy) {
  std::vector<const MemoryAsk*> order;
  order.reserve(asks.size());
  for (const MemoryAsk& ask : asks) order.push_back(&ask);
  std::sort(order.begin(), order.end(), [](const MemoryAsk* a, const MemoryAsk* b) {
    return std::tie(a->serial, a->token) < std::tie(b->serial, b->token);
  });

  // The share in bytes of the smallest of its GPUs, since the limit is per device; 0: not known.
  const auto share_of = [&](const MemoryAsk& ask) -> uint64_t {
    uint64_t least = 0;
    for (const std::string& uuid : ask.gpus) {
      const auto found = total_bytes.find(uuid);
      if (found == total_bytes.end() || found->second == 0) return 0;
      if (least == 0 || found->second < least) least = found->second;
    }
    // In two steps: a product of both does not fit 64 bits on every machine to come.
    return least / 1000 * ask.share_permille + least % 1000 * ask.share_permille / 1000;
  };

  std::map<std::string, MemoryGrant> out;
  std::map<std::string, uint64_t> left;  // By GPU, what nobody has.
  for (const auto& [uuid, bytes] : total_bytes) left[uuid] = bytes;
  for (const MemoryAsk* ask : order) {
    const uint64_t share = share_of(*ask);
    MemoryGrant& grant = out[ask->token];
    if (share == 0) {
      grant.limit_bytes = ask->asked_bytes.value_or(0);
      continue;
    }
    const bool whole = ask->share_permille >= 1000;
    grant.limit_bytes = std::min(ask->asked_bytes.value_or(share), share);
    if (whole && !ask->asked_bytes.has_value()) grant.limit_bytes = 0;
    if (ask->init) continue;  // Before, not beside, a container that has its slots.
    for (const std::string& uuid : ask->gpus) {
      uint64_t& bytes = left[uuid];
      bytes -= std::min(bytes, grant.limit_bytes == 0 ? share : grant.limit_bytes);
    }
  }
  for (const MemoryAsk* ask : order) {
    const uint64_t share = share_of(*ask);
    MemoryGrant& grant = out[ask->token];
    if (share == 0 || !ask->asked_bytes.has_value() || *ask->asked_bytes <= share) continue;
    const uint64_t asked = *ask->asked_bytes;
    const std::string text =
        FormatBytes(asked) + " is more than its slots stand for (" + FormatBytes(share) + ")";
    if (!ask->may_exceed_share) {
      grant.notice = Notice{true, "MemoryNotAllowed",
                            "memory " + text +
                                ", and its namespace may not ask for more; ask for "
                                "more slots, or add it to policy.memoryNamespaces"};
      continue;
    }
    uint64_t extra = asked - share;
    uint64_t room = extra;
    for (const std::string& uuid : ask->gpus) room = std::min(room, left[uuid]);
    if (policy.memory_overcommit) {
      // The limit may exceed what others leave, the device itself it cannot.
      uint64_t device = asked;
      for (const std::string& uuid : ask->gpus) device = std::min(device, total_bytes.at(uuid));
      extra = device - share;
      room = extra;
    }
    grant.limit_bytes = share + room;
    for (const std::string& uuid : ask->gpus) left[uuid] -= std::min(left[uuid], room);
    if (share + room < asked) {
      grant.notice = Notice{true, "MemoryReduced",
                            "memory " + text + ", and only " + FormatBytes(share + room) +
                                " can be had beside what others were given; ask for less, or for "
                                "more slots"};
    }
  }
  return out;
}

}  // namespace rubato::agent
