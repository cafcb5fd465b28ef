// Arrays: device memory with a shape.
#include <algorithm>
#include <utility>

#include "softgpu/cuda/driver.h"

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.

namespace rubato::softgpu {
namespace {

size_t ElementBytes(CUarray_format format, unsigned channels) {
  if (channels != 1 && channels != 2 && channels != 4) return 0;
  switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
      return channels;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
      return 2 * channels;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
      return 4 * channels;
    default:
      return 0;
  }
}

CUresult NewArray(Entry& e, const CUDA_ARRAY3D_DESCRIPTOR& shape, CUarray* out) {
  const size_t element = ElementBytes(shape.Format, shape.NumChannels);
  if (element == 0 || shape.Width == 0) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = RefuseInCapture(e)) return r;
  const size_t height = std::max<size_t>(shape.Height, 1), depth = std::max<size_t>(shape.Depth, 1);
  const size_t pitch = (shape.Width * element + 511) / 512 * 512;
  Memory memory;
  if (CUresult r = AllocateDevice(e, e.context()->device, pitch * height * depth, 0,
                                  MemoryKind::kDevice, &memory)) {
    return r;
  }
  CUarray array = e.driver().arrays.New(Magic::kArray);
  array->descriptor = shape;
  array->memory = memory.address;
  array->element_bytes = element;
  array->pitch = pitch;
  array->slice = pitch * height;
  *out = array;
  return CUDA_SUCCESS;
}

CUresult DropArray(Entry& e, CUarray array) {
  const CUresult result = ReleaseMemory(e, array->memory);
  e.driver().arrays.Delete(array);
  return result;
}

bool IsArray(CUarray array) {
  return array != nullptr && array->magic == Magic::kArray;
}

}  // namespace
}  // namespace rubato::softgpu

RUBATO_SOFTGPU_API cuArray3DCreate_v2(CUarray* out, const CUDA_ARRAY3D_DESCRIPTOR* shape) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || shape == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return NewArray(e, *shape, out);
}

RUBATO_SOFTGPU_API cuArrayCreate_v2(CUarray* out, const CUDA_ARRAY_DESCRIPTOR* shape) {
  if (shape == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUDA_ARRAY3D_DESCRIPTOR full{};
  full.Width = shape->Width;
  full.Height = shape->Height;
  full.Format = shape->Format;
  full.NumChannels = shape->NumChannels;
  return cuArray3DCreate_v2(out, &full);
}

RUBATO_SOFTGPU_API cuArrayDestroy(CUarray array) {
  Entry e;
  if (e.failed()) return e.result();
  if (!IsArray(array) || array->borrowed) return CUDA_ERROR_INVALID_HANDLE;
  if (CUresult r = RefuseInCapture(e)) return r;
  const CUresult waited = WaitForContext(e, e.context());
  const CUresult freed = DropArray(e, array);
  return waited != CUDA_SUCCESS ? waited : freed;
}

RUBATO_SOFTGPU_API cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR* out, CUarray array) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!IsArray(array)) return CUDA_ERROR_INVALID_HANDLE;
  *out = array->descriptor;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR* out, CUarray array) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!IsArray(array)) return CUDA_ERROR_INVALID_HANDLE;
  *out = {array->descriptor.Width, array->descriptor.Height, array->descriptor.Format,
          array->descriptor.NumChannels};
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMipmappedArrayCreate(CUmipmappedArray* out,
                                          const CUDA_ARRAY3D_DESCRIPTOR* shape, unsigned levels) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || shape == nullptr || levels == 0 || levels > 32)
    return CUDA_ERROR_INVALID_VALUE;
  CUmipmappedArray mipmap = e.driver().mipmaps.New(Magic::kMipmap);
  CUDA_ARRAY3D_DESCRIPTOR level = *shape;
  for (unsigned i = 0; i < levels; ++i) {
    CUarray array = nullptr;
    if (CUresult r = NewArray(e, level, &array)) {
      for (CUarray made : mipmap->levels) DropArray(e, made);
      e.driver().mipmaps.Delete(mipmap);
      return r;
    }
    array->borrowed = true;
    mipmap->levels.push_back(array);
    level.Width = std::max<size_t>(level.Width / 2, 1);
    if (level.Height > 0) level.Height = std::max<size_t>(level.Height / 2, 1);
    if (level.Depth > 0) level.Depth = std::max<size_t>(level.Depth / 2, 1);
  }
  *out = mipmap;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMipmappedArrayGetLevel(CUarray* out, CUmipmappedArray mipmap, unsigned level) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || mipmap == nullptr || mipmap->magic != Magic::kMipmap ||
      level >= mipmap->levels.size()) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *out = mipmap->levels[level];
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMipmappedArrayDestroy(CUmipmappedArray mipmap) {
  Entry e;
  if (e.failed()) return e.result();
  if (mipmap == nullptr || mipmap->magic != Magic::kMipmap) return CUDA_ERROR_INVALID_HANDLE;
  if (CUresult r = RefuseInCapture(e)) return r;
  const CUresult waited = WaitForContext(e, e.context());
  for (CUarray level : mipmap->levels) DropArray(e, level);
  e.driver().mipmaps.Delete(mipmap);
  return waited;
}
