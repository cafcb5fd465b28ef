// What kernels do to memory, carried out at the moment they complete.
//
// Each effect equals, bit for bit, the PTX of the same kernel in softgpu/programs, so a program
// gets the same values here and on a GPU. Used by the device's one thread; arguments come from
// tenants and are bounds-checked by the address space.
#ifndef SOFTGPU_DEVICE_EFFECTS_H_
#define SOFTGPU_DEVICE_EFFECTS_H_

#include "softgpu/device/address_space.h"
#include "softgpu/device/wire.h"

namespace rubato::softgpu {

// False if an address faulted.
bool Apply(const wire::KernelBody& kernel, AddressSpace* space);
bool Apply(const wire::CopyBody& copy, const unsigned char* inlined, AddressSpace* space);
bool Apply(const wire::FillBody& fill, AddressSpace* space);

// Whether the word at the address satisfies a stream wait or a waiting kernel; true on a fault,
// which `fault` tells.
bool Satisfied(const wire::WordBody& word, const AddressSpace& space, bool* fault);

}  // namespace rubato::softgpu

#endif  // SOFTGPU_DEVICE_EFFECTS_H_
