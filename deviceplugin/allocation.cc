#include "deviceplugin/allocation.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "deviceplugin/slot.h"

namespace rubato::deviceplugin {
namespace {

// Text of the request, for an error message: short, and printable.
std::string Quoted(const std::string& text) {
  constexpr size_t kMost = kMostSlotIdCharacters;
  std::string quoted = "'";
  for (size_t i = 0; i < text.size() && i < kMost; ++i)
    quoted += text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
  return quoted + (text.size() > kMost ? "...'" : "'");
}

std::string WithReason(const std::string& reason) {
  return reason.empty() ? "" : ": " + reason;
}

}  // namespace

const char* RejectReasonName(RejectReason reason) {
  switch (reason) {
    case RejectReason::kEmptyRequest:
      return "empty-request";
    case RejectReason::kTooManySlots:
      return "too-many-slots";
    case RejectReason::kMalformedSlot:
      return "malformed-slot";
    case RejectReason::kDuplicateSlot:
      return "duplicate-slot";
    case RejectReason::kUnknownGpu:
      return "unknown-gpu";
    case RejectReason::kUnknownSlot:
      return "unknown-slot";
    case RejectReason::kUnhealthyGpu:
      return "unhealthy-gpu";
    case RejectReason::kWithheldGpu:
      return "withheld-gpu";
    case RejectReason::kAcrossGpus:
      return "across-gpus";
    case RejectReason::kMixedVendors:
      return "mixed-vendors";
    case RejectReason::kShimMissing:
      return "shim-missing";
    case RejectReason::kRecordsFull:
      return "records-full";
    case RejectReason::kRecordsFailed:
      return "records-failed";
    case RejectReason::kEnding:
      return "ending";
  }
  return "unknown";
}

std::variant<Grant, Rejection> JudgeAllocation(const std::vector<std::string>& slots,
                                               const std::vector<Gpu>& gpus,
                                               uint32_t slots_per_gpu) {
  if (slots.empty())
    return Rejection{RejectReason::kEmptyRequest, "a container asked for no slots at all"};
  if (slots.size() > kMostSlotsPerRequest)
    return Rejection{RejectReason::kTooManySlots, "more than " +
                                                      std::to_string(kMostSlotsPerRequest) +
                                                      " slots in one request: no node has so many"};
  std::map<std::string, const Gpu*> known;
  for (const Gpu& gpu : gpus) known.emplace(gpu.uuid, &gpu);

  // By index, as the answer lists them.
  const auto by_index = [](const Gpu* a, const Gpu* b) {
    return a->index != b->index ? a->index < b->index : a->uuid < b->uuid;
  };
  std::map<const Gpu*, std::set<uint32_t>, decltype(by_index)> asked(by_index);
  for (const std::string& text : slots) {
    auto slot = ParseSlotId(text);
    if (!slot)
      return Rejection{RejectReason::kMalformedSlot,
                       Quoted(text) + " names no slot: " + slot.error().message};
    const auto found = known.find(slot->uuid);
    if (found == known.end())
      return Rejection{RejectReason::kUnknownGpu, "this node has no GPU " + slot->uuid +
                                                      "; delete the pod so that it is scheduled "
                                                      "again"};
    const Gpu& gpu = *found->second;
    if (gpu.withheld)
      return Rejection{RejectReason::kWithheldGpu,
                       "GPU " + gpu.uuid + " is withheld" + WithReason(gpu.withheld_reason)};
    if (!gpu.healthy)
      return Rejection{RejectReason::kUnhealthyGpu,
                       "GPU " + gpu.uuid + " is unhealthy" + WithReason(gpu.unhealthy_reason)};
    if (slot->number >= slots_per_gpu)
      return Rejection{RejectReason::kUnknownSlot, Quoted(text) +
                                                       " is not a slot: GPUs here have " +
                                                       std::to_string(slots_per_gpu) + " of them"};
    if (!asked[&gpu].insert(slot->number).second)
      return Rejection{RejectReason::kDuplicateSlot, Quoted(text) + " is asked for twice"};
  }

  if (asked.size() > 1) {
    for (const auto& [gpu, numbers] : asked) {
      if (numbers.size() != slots_per_gpu)
        return Rejection{
            RejectReason::kAcrossGpus,
            std::to_string(slots.size()) + " slots over " + std::to_string(asked.size()) +
                " GPUs: no single GPU of this node has that many free; ask for at most " +
                std::to_string(slots_per_gpu) + ", or whole GPUs (a multiple of " +
                std::to_string(slots_per_gpu) + ")"};
    }
  }
  Grant grant;
  for (const auto& [gpu, numbers] : asked) {
    if (!grant.gpus.empty() &&
        (grant.gpus.front().vendor != gpu->vendor || ApiOf(grant.gpus.front()) != ApiOf(*gpu)))
      return Rejection{RejectReason::kMixedVendors,
                       "GPUs of several vendors in one container: ask for GPUs of one kind"};
    grant.gpus.push_back(*gpu);
    for (const uint32_t number : numbers) grant.slots.push_back(FormatSlotId(gpu->uuid, number));
  }
  return grant;
}

}  // namespace rubato::deviceplugin
