// Whether a set of slots may be given to one container, and why not.
//
// The kubelet may ask for any combination of slots it was ever told of: this is where it is held to
// slots of one healthy GPU, or whole GPUs. What a container is then given is answer.h. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "deviceplugin/gpu.h"

namespace rubato::deviceplugin {

// Labels of a metric: RejectReasonName() gives the words.
enum class RejectReason : uint8_t {
  kEmptyRequest,   // No slots.
  kTooManySlots,   // More than any node has.
  kMalformedSlot,  // Not "<uuid>::<n>".
  kDuplicateSlot,  // The same slot twice.
  kUnknownGpu,     // No GPU of this name here.
  kUnknownSlot,    // The GPU has fewer slots.
  kUnhealthyGpu,
  kWithheldGpu,
  kAcrossGpus,     // Slots of several GPUs that are not whole GPUs.
  kMixedVendors,   // Whole GPUs of several vendors: one container has one shim.
  kShimMissing,    // No shim is installed on the host: a GPU without it would be unprotected.
  kRecordsFull,    // Too many allocations are remembered.
  kRecordsFailed,  // The allocation could not be recorded, or not in time.
  kEnding,         // The plugin is shutting down.
};
inline constexpr RejectReason kAllRejectReasons[] = {
    RejectReason::kEmptyRequest,  RejectReason::kTooManySlots, RejectReason::kMalformedSlot,
    RejectReason::kDuplicateSlot, RejectReason::kUnknownGpu,   RejectReason::kUnknownSlot,
    RejectReason::kUnhealthyGpu,  RejectReason::kWithheldGpu,  RejectReason::kAcrossGpus,
    RejectReason::kMixedVendors,  RejectReason::kShimMissing,  RejectReason::kRecordsFull,
    RejectReason::kRecordsFailed, RejectReason::kEnding,
};

// A stable kebab-case word: "across-gpus".
const char* RejectReasonName(RejectReason reason);

struct Rejection {
  RejectReason reason = RejectReason::kEmptyRequest;
  std::string message;  // One line for the pod's event: what is wrong and what to do.
};

struct Grant {
  std::vector<std::string> slots;  // By GPU index, then slot number.
  std::vector<Gpu> gpus;           // By index. More than one: all of them whole.
};

inline constexpr size_t kMostSlotsPerRequest = 4096;

std::variant<Grant, Rejection> JudgeAllocation(const std::vector<std::string>& slots,
                                               const std::vector<Gpu>& gpus,
                                               uint32_t slots_per_gpu);

}  // namespace rubato::deviceplugin
