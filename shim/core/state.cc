#include "shim/core/state.h"

#include "shim/core/sys.h"

namespace rubato::shim {

// Zeroed by the loader, and by the kernel in the child of a fork: all zeros is Phase::kFresh. It
// fills its page, so nothing else is wiped with it.
ProcessState g_state;

void Detach(abi::DetachReason reason) {
  const ErrnoGuard guard;
  uint32_t none = static_cast<uint32_t>(abi::DetachReason::kNone);
  const bool first =
      __atomic_compare_exchange_n(&g_state.reason, &none, static_cast<uint32_t>(reason), false,
                                  __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
  const uint32_t told = first ? static_cast<uint32_t>(reason) : none;
  for (DeviceSession*& entry : g_state.devices) {
    DeviceSession* session = abi::LoadAcquire(entry);
    if (session != nullptr) abi::StoreRelease(session->slot->session.detached, told);
  }
  abi::StoreRelease(g_state.phase, static_cast<uint32_t>(Phase::kDetached));
  FutexWakeAll(&g_state.phase);
  if (!first) return;
  constexpr const char* kWords[] = {
      "none",
      "no scheduler listens at the attach socket",
      "the scheduler speaks another version; update both",
      "the scheduler refused this process",
      "another time namespace than the scheduler's",
      "the scheduler sent a region that is too small, unsealed or of another kind",
      "out of memory or descriptors",
      "the device has no free session",
      "child of a fork",
      "the driver did something unknown",
      "RUBATO_DISABLE is set",
  };
  static_assert(sizeof(kWords) / sizeof(kWords[0]) ==
                static_cast<size_t>(abi::DetachReason::kCount));
  const auto index = static_cast<uint32_t>(reason);
  if (index < static_cast<uint32_t>(abi::DetachReason::kCount)) {
    DebugLine("not managed", kWords[index]);
  }
}

}  // namespace rubato::shim
