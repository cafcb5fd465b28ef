// Which of the free slots a container should get, when the kubelet asks (GetPreferredAllocation).
//
// Its own choice is any slots, over several GPUs; ours are slots of one GPU, or whole GPUs. Only
// advice: allocation.h judges what was chosen in the end. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "deviceplugin/gpu.h"

namespace rubato::deviceplugin {

enum class Packing : uint8_t {
  kPacked,  // The fullest GPU that still has room: others stay whole, or free for larger requests.
  kSpread,  // The emptiest GPU: fewest neighbours.
};

struct PreferenceRequest {
  std::vector<std::string> available;     // Slot ids, `must_include` among them.
  std::vector<std::string> must_include;  // What the pod's init containers held.
  int32_t size = 0;
};

// `size` slots, `must_include` first among them; or none, where no choice would be accepted: then
// the refusal at Allocate says why. Whole multiples of `slots_per_gpu` are whole GPUs, of one NUMA
// node where possible. The same input gives the same answer; ties go to the lower index.
std::vector<std::string> PreferSlots(const std::vector<Gpu>& gpus, uint32_t slots_per_gpu,
                                     Packing packing, const PreferenceRequest& request);

}  // namespace rubato::deviceplugin
