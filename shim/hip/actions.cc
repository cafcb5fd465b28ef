#include "shim/hip/actions.h"

#include "shim/hip/runtime.h"

namespace rubato::shim {

namespace {

enum class Where : uint8_t { kHost, kDevice, kUnknown };

// hipMemoryType was renumbered with ROCm 6.
Where WhereIs(unsigned type) {
  if (RuntimeVersion() >= 600) {
    switch (type) {
      case 0:  // Unregistered: the program's own memory.
      case 1:
        return Where::kHost;
      case 2:
      case 10:  // Array.
        return Where::kDevice;
      default:
        return Where::kUnknown;
    }
  }
  switch (type) {
    case 0:
      return Where::kHost;
    case 1:
    case 2:  // Array.
      return Where::kDevice;
    default:
      return Where::kUnknown;
  }
}

}  // namespace

abi::OpKind DirectionOf(unsigned src_type, unsigned dst_type) {
  const Where src = WhereIs(src_type);
  const Where dst = WhereIs(dst_type);
  if (src == Where::kDevice && dst == Where::kDevice) return kCopyDevice;
  if (src == Where::kHost && dst == Where::kDevice) return kCopyHostToDevice;
  if (src == Where::kDevice && dst == Where::kHost) return kCopyDeviceToHost;
  return kCopyOther;
}

uint64_t BytesPerElement(hipArray_Format format, unsigned channels) {
  switch (format) {
    case HIP_AD_FORMAT_UNSIGNED_INT8:
    case HIP_AD_FORMAT_SIGNED_INT8:
      return channels;
    case HIP_AD_FORMAT_UNSIGNED_INT16:
    case HIP_AD_FORMAT_SIGNED_INT16:
    case HIP_AD_FORMAT_HALF:
      return uint64_t{channels} * 2;
    default:
      return uint64_t{channels} * 4;
  }
}

uint64_t MipmapBytes(uint64_t element_bytes, uint64_t width, uint64_t height, uint64_t depth,
                     unsigned levels) {
  uint64_t bytes = 0;
  for (unsigned i = 0; i < levels && i < 64; ++i) {
    bytes += element_bytes * width * (height != 0 ? height : 1) * (depth != 0 ? depth : 1);
    if (width <= 1 && height <= 1 && depth <= 1) break;
    if (width > 1) width /= 2;
    if (height > 1) height /= 2;
    if (depth > 1) depth /= 2;
  }
  return bytes;
}

void ForgetDevice(int ordinal) {
  if (ordinal < 0 || ordinal >= kMaxDevices) return;
  DeviceSession* session = abi::LoadAcquire(g_state.devices[ordinal]);
  if (session != nullptr) ForgetMemory(session);
}

}  // namespace rubato::shim
