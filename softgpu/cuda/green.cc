// Green contexts: streams on a part of the SMs.
#include <algorithm>
#include <cstring>
#include <utility>

#include "softgpu/cuda/driver.h"

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.

namespace rubato::softgpu {
namespace {

// What the opaque part of a CUdevResource carries: which SMs these are.
struct SmSpan {
  uint32_t mark;
  uint32_t first;
  uint32_t count;
};
constexpr uint32_t kMark = 0x534d5331;

void Describe(CUdevResource* resource, uint32_t first, uint32_t count) {
  *resource = {};
  resource->type = CU_DEV_RESOURCE_TYPE_SM;
  resource->sm.smCount = count;
  resource->sm.minSmPartitionSize = kSmGranule;
  resource->sm.smCoscheduledAlignment = kSmGranule;
  const SmSpan span{kMark, first, count};
  std::memcpy(resource->_internal_padding, &span, sizeof span);
}

bool Read(const CUdevResource& resource, SmSpan* span) {
  if (resource.type != CU_DEV_RESOURCE_TYPE_SM) return false;
  std::memcpy(span, resource._internal_padding, sizeof *span);
  return span->mark == kMark && span->count == resource.sm.smCount;
}

uint32_t SmCount(const Entry& e, CUdevice device) {
  return e.device().hello().info[static_cast<uint32_t>(device)].sm_count;
}

bool ValidDevice(const Entry& e, CUdevice device) {
  return device >= 0 && static_cast<uint32_t>(device) < e.device().hello().devices;
}

bool IsGreen(CUgreenCtx green) {
  return green != nullptr && green->magic == Magic::kGreen;
}

}  // namespace
}  // namespace rubato::softgpu

RUBATO_SOFTGPU_API cuDeviceGetDevResource(CUdevice device, CUdevResource* resource,
                                          CUdevResourceType type) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (e.driver().settings.no_green) return CUDA_ERROR_NOT_SUPPORTED;
  if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!ValidDevice(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  Describe(resource, 0, SmCount(e, device));
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxGetDevResource(CUcontext context, CUdevResource* resource,
                                       CUdevResourceType type) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (e.driver().settings.no_green) return CUDA_ERROR_NOT_SUPPORTED;
  if (resource == nullptr || !Is(context)) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  if (context->green != nullptr) {
    Describe(resource, context->green->first_sm, context->green->sm_count);
  } else {
    Describe(resource, 0, SmCount(e, context->device));
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGreenCtxGetDevResource(CUgreenCtx green, CUdevResource* resource,
                                            CUdevResourceType type) {
  return IsGreen(green) ? cuCtxGetDevResource(green->context, resource, type)
                        : CUDA_ERROR_INVALID_VALUE;
}

RUBATO_SOFTGPU_API cuDevSmResourceSplitByCount(CUdevResource* groups, unsigned* count,
                                               const CUdevResource* input, CUdevResource* remaining,
                                               unsigned flags, unsigned least) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  SmSpan span;
  if (e.driver().settings.no_green) return CUDA_ERROR_NOT_SUPPORTED;
  if (count == nullptr || input == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (!Read(*input, &span)) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  const uint32_t size = (std::max(least, kSmGranule) + kSmGranule - 1) / kSmGranule * kSmGranule;
  if (size > span.count) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
  const uint32_t most = span.count / size;
  if (groups == nullptr) {
    *count = most;
    return CUDA_SUCCESS;
  }
  const uint32_t given = std::min(*count, most);
  for (uint32_t i = 0; i < given; ++i) Describe(&groups[i], span.first + i * size, size);
  if (remaining != nullptr) {
    const uint32_t left = span.count - given * size;
    if (left > 0) {
      Describe(remaining, span.first + given * size, left);
    } else {
      *remaining = {};
    }
  }
  *count = given;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDevResourceGenerateDesc(CUdevResourceDesc* out, CUdevResource* resources,
                                             unsigned count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (e.driver().settings.no_green) return CUDA_ERROR_NOT_SUPPORTED;
  if (out == nullptr || resources == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  SmSpan whole;
  if (!Read(resources[0], &whole)) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  for (unsigned i = 1; i < count; ++i) {
    SmSpan next;
    if (!Read(resources[i], &next)) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
    if (next.first != whole.first + whole.count) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
    whole.count += next.count;
  }
  // A descriptor is its SMs: it has no lifetime of its own in the API either.
  *out = reinterpret_cast<CUdevResourceDesc>(uint64_t{whole.first} << 32 | whole.count);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGreenCtxCreate(CUgreenCtx* out, CUdevResourceDesc desc, CUdevice device,
                                    unsigned flags) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (e.driver().settings.no_green) return CUDA_ERROR_NOT_SUPPORTED;
  if (out == nullptr || (flags & CU_GREEN_CTX_DEFAULT_STREAM) == 0) return CUDA_ERROR_INVALID_VALUE;
  if (!ValidDevice(e, device)) return CUDA_ERROR_INVALID_DEVICE;
  const uint64_t name = reinterpret_cast<uint64_t>(desc);
  const uint32_t first = static_cast<uint32_t>(name >> 32), count = static_cast<uint32_t>(name);
  if (count == 0 || first + uint64_t{count} > SmCount(e, device)) return CUDA_ERROR_INVALID_VALUE;
  Driver& d = e.driver();
  PrimaryContext& primary = d.primary[device];
  if (primary.context == nullptr) {
    if (CUresult r = NewContext(e, device, primary.flags, true, &primary.context)) return r;
  }
  ++primary.references;
  CUgreenCtx green = d.greens.New(Magic::kGreen);
  green->first_sm = first;
  green->sm_count = count;
  CUcontext context = d.contexts.New(Magic::kContext);
  context->device = device;
  context->slot = primary.context->slot;
  context->id = d.next_id++;
  context->root = primary.context;
  context->green = green;
  green->context = context;
  context->root->parts.insert(context);
  if (CUresult r = NewStream(e, context, 0, 0, true, true, &context->legacy)) return r;
  *out = green;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGreenCtxDestroy(CUgreenCtx green) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!IsGreen(green)) return CUDA_ERROR_INVALID_VALUE;
  Driver& d = e.driver();
  CUcontext context = green->context;
  const CUdevice device = context->device;
  if (CUresult r = WaitForContext(e, context); r == CUDA_ERROR_DEVICE_UNAVAILABLE) return r;
  DeletePart(e, context);
  PrimaryContext& primary = d.primary[device];
  if (primary.references > 0 && --primary.references == 0) {
    CUcontext root = std::exchange(primary.context, nullptr);
    DeleteContext(e, root);
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuCtxFromGreenCtx(CUcontext* out, CUgreenCtx green) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr || !IsGreen(green)) return CUDA_ERROR_INVALID_VALUE;
  *out = green->context;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGreenCtxGetId(CUgreenCtx green, unsigned long long* id) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (id == nullptr || !IsGreen(green)) return CUDA_ERROR_INVALID_VALUE;
  *id = green->context->id;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGreenCtxStreamCreate(CUstream* out, CUgreenCtx green, unsigned flags,
                                          int priority) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr || !IsGreen(green)) return CUDA_ERROR_INVALID_VALUE;
  // Streams of green contexts never wait for the legacy stream; the flag must say so.
  if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  return NewStream(e, green->context, flags, priority, false, false, out);
}

RUBATO_SOFTGPU_API cuGreenCtxRecordEvent(CUgreenCtx green, CUevent event) {
  if (!IsGreen(green)) return CUDA_ERROR_INVALID_VALUE;
  return cuEventRecord(event, green->context->legacy);
}

RUBATO_SOFTGPU_API cuGreenCtxWaitEvent(CUgreenCtx green, CUevent event) {
  if (!IsGreen(green)) return CUDA_ERROR_INVALID_VALUE;
  return cuStreamWaitEvent(green->context->legacy, event, 0);
}
