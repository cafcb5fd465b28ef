// Makes the entry points: included once by each vendor's entries.cc, after its types and actions.
//
// Each row of hooks.def becomes an exported function of C linkage. The line before it only compiles
// if the vendor declares the function with exactly this type; in the function comes what every
// entry does, and then the row's action.
#pragma once

#include "shim/hooks/entry.h"

namespace rubato::shim {

// What a program is told that calls something its driver does not have. Without us it would not
// have been linked, or dlsym would have told it.
[[gnu::cold, gnu::noinline]] inline Status MissingStatus() {
  return ResolveReal(Load::kIfPresent) ? kMissingCall : kMissingLibrary;
}

template <typename Result, typename... Arguments>
Result ResultOf(Result (*)(Arguments...));

}  // namespace rubato::shim

// Defined in other files; here only checked.
#define ENTRY_BY_HAND(name, kind, params)                                                  \
  [[maybe_unused]] constexpr decltype(rubato::shim::ResultOf(&::name))(*kSignature_##name) \
      params = &::name;

#define ENTRY(name, is_per_thread, kind, params, args, action)                          \
  [[maybe_unused]] constexpr rubato::shim::Status(*kSignature_##name) params = &::name; \
  extern "C" RUBATO_EXPORT rubato::shim::Status name params {                           \
    using Real = Status(*) params;                                                      \
    const Real real = RealOf<Real>(Row::k_##name);                                      \
    if (real == nullptr) [[unlikely]] {                                                 \
      return MissingStatus();                                                           \
    }                                                                                   \
    if (Bypass()) return real args;                                                     \
    [[maybe_unused]] constexpr bool per_thread = is_per_thread != 0;                    \
    const auto call = [&]() -> Status {                                                 \
      const InsideReal inside;                                                          \
      return real args;                                                                 \
    };                                                                                  \
    return action;                                                                      \
  }
