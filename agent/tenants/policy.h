// From a container's promise and slots to what the scheduler is asked for: namespace rights,
// budget, memory. The scheduler alone decides whether a real-time promise fits. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "agent/config/config.h"
#include "agent/kube/promise.h"
#include "agent/tenants/plan.h"
#include "deviceplugin/allocation_store.h"

namespace rubato::agent {

struct TenantPolicy {
  std::string annotation_prefix = "rubato.dev/";
  std::vector<std::string> realtime_namespaces;
  std::vector<std::string> budget_namespaces;
  std::vector<std::string> memory_namespaces;
  bool memory_overcommit = false;
  uint32_t max_overhead_budget_permille = 20;
  static TenantPolicy Of(const Config& config);
};

// True if `list` has `name_space` or "*".
bool NamespaceAllowed(const std::vector<std::string>& list, const std::string& name_space);

// What follows from the slots alone: devices, share, weight, names.
control::TenantSpec SpecOfSlots(const deviceplugin::AllocationRecord& record, const PodRef& pod);

// Adds what the container asks for, as far as its namespace may. `init` containers are best-effort:
// they prepare, and their slots are those of a container that counts already.
void ApplyPromise(const kube::Promise& promise, const TenantPolicy& policy, bool init,
                  control::TenantSpec* spec, std::vector<Notice>* notices);

struct MemoryAsk {
  std::string token;
  uint64_t serial = 0;
  std::vector<std::string> gpus;
  uint32_t share_permille = 0;          // Of each.
  std::optional<uint64_t> asked_bytes;  // The annotation.
  bool may_exceed_share = false;        // The namespace has the right.
  bool init = false;
};
struct MemoryGrant {
  uint64_t limit_bytes = 0;  // 0: no limit.
  std::optional<Notice> notice;
};

// The memory limit of every allocation. Slots are a right: everybody gets the smaller of his share
// and what he asks for. What a container asks for beyond its share comes from what is left on its
// GPU, in the order of allocation, and shrinks again when slots are allocated that it stands on.
// Whole GPUs have no limit unless they ask for one. A GPU whose size is not known gives no limit.
std::map<std::string, MemoryGrant> ShareMemory(const std::vector<MemoryAsk>& asks,
                                               const std::map<std::string, uint64_t>& total_bytes,
                                               const TenantPolicy& policy);

std::string FormatBytes(uint64_t bytes);  // "8Gi", "1.5Gi", "512Mi"

}  // namespace rubato::agent
