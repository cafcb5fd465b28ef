// Regions that arrive as descriptors: what is checked before they are mapped, and mapping them.
//
// A region that could shrink under its mapping would end the tenant with SIGBUS, and one that
// somebody else could still write would let a neighbour forge policies; both are refused here,
// whoever sent them. Mappings do not survive a fork: a child has no business in its parent's slot.
#pragma once

#include <cstddef>
#include <cstdint>

#include "proto/abi/region.h"

namespace rubato::shim {

enum class RegionAccess : uint8_t {
  kRead = 0,   // Nobody may map it for writing any more.
  kWrite = 1,  // Our own slot: its size is sealed, and we are its writer.
};

enum class MapAnswer : uint8_t {
  kMapped = 0,
  kRefused = 1,  // Too small, not sealed as it must be, or its header is not one of `kind`.
  kFailed = 2,   // The kernel did not map it.
};

// Maps the first `bytes` (the size of the kind's struct) of `fd` at `address`, over what is there,
// or at any address if that is null. `*mapped` is set if the answer is kMapped. `fd` stays open.
MapAnswer MapRegion(int fd, abi::RegionKind kind, size_t bytes, RegionAccess access, void* address,
                    void** mapped);

// Address space without memory, for regions that come and go at fixed addresses; or null.
void* ReserveAddresses(size_t bytes);
// Replaces a region by zeros that can be read.
void MapZerosOver(void* address, size_t bytes);

}  // namespace rubato::shim
