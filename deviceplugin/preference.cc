#include "deviceplugin/preference.h"

#include <algorithm>
#include <map>
#include <set>

#include "deviceplugin/slot.h"

namespace rubato::deviceplugin {
namespace {

// What of a GPU the kubelet may choose from.
struct Candidate {
  const Gpu* gpu = nullptr;
  std::set<uint32_t> free;  // With those in `must`.
  std::set<uint32_t> must;
};

// By index: an order that people know from the vendors' tools.
bool IndexBefore(const Candidate& a, const Candidate& b) {
  return a.gpu->index != b.gpu->index ? a.gpu->index < b.gpu->index : a.gpu->uuid < b.gpu->uuid;
}

// Appends slots of `from`, those that must be included first, until `chosen` has `size`.
void Take(const Candidate& from, size_t size, std::vector<std::string>* chosen) {
  for (const uint32_t number : from.must) {
    if (chosen->size() < size) chosen->push_back(FormatSlotId(from.gpu->uuid, number));
  }
  for (const uint32_t number : from.free) {
    if (chosen->size() < size && !from.must.contains(number))
      chosen->push_back(FormatSlotId(from.gpu->uuid, number));
  }
}

std::vector<std::string> OneGpu(const std::vector<Candidate>& candidates, Packing packing,
                                size_t size, size_t must) {
  const Candidate* best = nullptr;
  for (const Candidate& candidate : candidates) {
    if (candidate.free.size() < size || candidate.must.size() != must) continue;
    if (best == nullptr ||
        (packing == Packing::kPacked ? candidate.free.size() < best->free.size()
                                     : candidate.free.size() > best->free.size()))
      best = &candidate;
  }
  std::vector<std::string> chosen;
  if (best != nullptr) Take(*best, size, &chosen);
  return chosen;
}

std::vector<std::string> WholeGpus(const std::vector<Candidate>& candidates, size_t slots_per_gpu,
                                   size_t count) {
  // A GPU of which something must be included is in; the others come from the NUMA node that has
  // the fewest whole GPUs to spare, so that larger requests find a node later.
  std::vector<const Candidate*> chosen;
  std::map<int32_t, std::vector<const Candidate*>> by_node;
  std::map<int32_t, size_t> must_of_node;
  for (const Candidate& candidate : candidates) {
    const bool whole = candidate.free.size() == slots_per_gpu;
    if (!candidate.must.empty()) {
      if (!whole) return {};
      chosen.push_back(&candidate);
      ++must_of_node[candidate.gpu->numa_node];
    } else if (whole) {
      by_node[candidate.gpu->numa_node].push_back(&candidate);
    }
  }
  if (chosen.size() > count) return {};
  const auto shared = [&](int32_t node) {
    const auto found = must_of_node.find(node);
    return found == must_of_node.end() ? size_t{0} : found->second;
  };
  while (chosen.size() < count) {
    const size_t missing = count - chosen.size();
    const std::pair<const int32_t, std::vector<const Candidate*>>* best = nullptr;
    const auto better = [&](const auto& a, const auto& b) {
      if (shared(a.first) != shared(b.first)) return shared(a.first) > shared(b.first);
      const bool a_fits = a.second.size() >= missing, b_fits = b.second.size() >= missing;
      if (a_fits != b_fits) return a_fits;
      // Of those that fit the smallest; of those that do not the largest, to span few nodes.
      return a_fits ? a.second.size() < b.second.size() : a.second.size() > b.second.size();
    };
    for (const auto& node : by_node) {
      if (best == nullptr || better(node, *best)) best = &node;
    }
    if (best == nullptr) return {};
    for (size_t i = 0; i < best->second.size() && chosen.size() < count; ++i)
      chosen.push_back(best->second[i]);
    by_node.erase(best->first);
  }
  std::vector<std::string> slots;
  for (const Candidate* candidate : chosen) Take(*candidate, count * slots_per_gpu, &slots);
  return slots;
}

}  // namespace

std::vector<std::string> PreferSlots(const std::vector<Gpu>& gpus, uint32_t slots_per_gpu,
                                     Packing packing, const PreferenceRequest& request) {
  if (request.size <= 0 || slots_per_gpu == 0) return {};
  const auto size = static_cast<size_t>(request.size);

  std::map<std::string, Candidate> by_uuid;
  for (const Gpu& gpu : gpus) {
    if (gpu.healthy && !gpu.withheld) by_uuid[gpu.uuid].gpu = &gpu;
  }
  const auto find = [&](const std::string& text, uint32_t* number) -> Candidate* {
    auto slot = ParseSlotId(text);
    if (!slot || slot->number >= slots_per_gpu) return nullptr;
    const auto found = by_uuid.find(slot->uuid);
    *number = slot->number;
    return found == by_uuid.end() ? nullptr : &found->second;
  };
  uint32_t number = 0;
  for (const std::string& text : request.available) {
    if (Candidate* candidate = find(text, &number)) candidate->free.insert(number);
  }
  size_t must = 0;
  for (const std::string& text : request.must_include) {
    Candidate* candidate = find(text, &number);
    if (candidate == nullptr) return {};
    candidate->free.insert(number);
    if (candidate->must.insert(number).second) ++must;
  }
  if (must > size) return {};

  std::vector<Candidate> candidates;
  candidates.reserve(by_uuid.size());
  for (auto& [uuid, candidate] : by_uuid) candidates.push_back(std::move(candidate));
  std::sort(candidates.begin(), candidates.end(), IndexBefore);
  if (size % slots_per_gpu == 0) return WholeGpus(candidates, slots_per_gpu, size / slots_per_gpu);
  if (size > slots_per_gpu) return {};
  return OneGpu(candidates, packing, size, must);
}

}  // namespace rubato::deviceplugin
