// A core that writes down what the entry points tell it, in the order in which they do.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shim/core/core.h"
#include "shim/core/ledger.h"

namespace rubato::shim {

struct CoreEvent {
  std::string what;  // "before op", "after op", "real", ...
  Op op;
  Handle handle;
  uint64_t bytes;
  bool ok;
  bool per_thread;
  SyncScope scope;
  AllocationKind kind;
};

struct FakeCore {
  std::vector<CoreEvent> events;
  bool refuse_memory = false;
  uint64_t copy_part_bytes = 0;
  uint64_t shown_free = 0;
  uint64_t shown_total = 0;
  uint64_t charged_bytes = 0;  // Reserved less cancelled.
  std::vector<std::string> unknown;
  int attaches = 0;
  bool attach_succeeds = true;
  int spoil_errno = 0;  // What every function of the core leaves in errno.
};

extern FakeCore g_core;

// Names of the events, in order, joined by ", ".
std::string Story();

}  // namespace rubato::shim
