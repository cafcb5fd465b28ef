// Copies and fills of every shape; all come down to a box of rows and slices on a stream.
#include <algorithm>
#include <cstring>
#include <utility>

#include "softgpu/cuda/driver.h"

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.
using wire::RecordType;

namespace rubato::softgpu {

namespace {

struct End {
  uint64_t address = 0;
  size_t pitch = 0, slice = 0;
  bool host = false;
  bool pageable = false;
};

// Where one end of a copy lies. Host pointers the driver knows are pinned; unified ones are looked
// up.
CUresult Locate(const Driver& d, CUmemorytype type, const void* host, CUdeviceptr device,
                CUarray array, size_t pitch, size_t height, size_t x_bytes, size_t y, size_t z,
                size_t width, End* end) {
  uint64_t base = 0;
  switch (type) {
    case CU_MEMORYTYPE_HOST:
      base = reinterpret_cast<uint64_t>(host);
      break;
    case CU_MEMORYTYPE_UNIFIED:
    case CU_MEMORYTYPE_DEVICE:
      base = device;
      break;
    case CU_MEMORYTYPE_ARRAY:
      if (array == nullptr || array->magic != Magic::kArray) return CUDA_ERROR_INVALID_HANDLE;
      base = array->memory;
      pitch = array->pitch;
      height = array->pitch > 0 ? array->slice / array->pitch : 1;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  if (base == 0) return CUDA_ERROR_INVALID_VALUE;
  if (pitch == 0) pitch = x_bytes + width;
  if (pitch < width) return CUDA_ERROR_INVALID_VALUE;
  end->pitch = pitch;
  end->slice = pitch * std::max<size_t>(height, 1);
  end->address = base + z * end->slice + y * pitch + x_bytes;
  const Memory* memory = FindMemory(d, end->address);
  if (type == CU_MEMORYTYPE_DEVICE && memory == nullptr) return CUDA_ERROR_INVALID_VALUE;
  end->pageable = memory == nullptr;
  end->host = memory == nullptr || memory->kind == MemoryKind::kPinned ||
              memory->kind == MemoryKind::kRegistered;
  return CUDA_SUCCESS;
}

}  // namespace

CUresult CopyBodyOf(Entry& e, const CUDA_MEMCPY3D& box, wire::CopyBody* body, bool* pageable_source,
                    bool* pageable_target) {
  End src, dst;
  const size_t depth = std::max<size_t>(box.Depth, 1);
  if (CUresult r = Locate(e.driver(), box.srcMemoryType, box.srcHost, box.srcDevice, box.srcArray,
                          box.srcPitch, box.srcHeight != 0 ? box.srcHeight : box.Height,
                          box.srcXInBytes, box.srcY, box.srcZ, box.WidthInBytes, &src)) {
    return r;
  }
  if (CUresult r = Locate(e.driver(), box.dstMemoryType, box.dstHost, box.dstDevice, box.dstArray,
                          box.dstPitch, box.dstHeight != 0 ? box.dstHeight : box.Height,
                          box.dstXInBytes, box.dstY, box.dstZ, box.WidthInBytes, &dst)) {
    return r;
  }
  *body = {};
  body->dst = dst.address;
  body->src = src.address;
  body->width = box.WidthInBytes;
  body->height = box.Height;
  body->depth = depth;
  body->dst_pitch = dst.pitch;
  body->src_pitch = src.pitch;
  body->dst_slice = dst.slice;
  body->src_slice = src.slice;
  body->route = src.host   ? wire::CopyRoute::kHostToDevice
                : dst.host ? wire::CopyRoute::kDeviceToHost
                           : wire::CopyRoute::kInside;
  *pageable_source = src.pageable;
  *pageable_target = dst.pageable;
  return CUDA_SUCCESS;
}

CUresult CopyBox(Entry& e, const CUDA_MEMCPY3D& box, CUstream handle, bool async) {
  if (box.WidthInBytes == 0 || box.Height == 0) return CUDA_SUCCESS;
  if (!async) {
    if (CUresult r = RefuseInCapture(e)) return r;
  }
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  Work work;
  work.type = RecordType::kCopy;
  bool pageable_source = false, pageable_target = false;
  if (CUresult r = CopyBodyOf(e, box, &work.body.copy, &pageable_source, &pageable_target))
    return r;
  if (stream->capture != nullptr) {
    work.node_type = CU_GRAPH_NODE_TYPE_MEMCPY;
    work.memcpy3d = box;
    return Enqueue(e, stream, std::move(work));
  }
  wire::CopyBody& body = work.body.copy;
  const uint64_t bytes = body.width * body.height * body.depth;
  // Small pageable sources are staged, so the caller may reuse them at once; large ones are waited
  // for.
  const bool stage =
      pageable_source && bytes <= kInlineCopyBytes && body.height == 1 && body.depth == 1;
  uint64_t seq;
  if (stage) {
    body.inline_bytes = static_cast<uint32_t>(bytes);
    seq = PushTo(e, stream, RecordType::kCopy, 0, &body, sizeof body,
                 reinterpret_cast<const void*>(body.src), bytes);
  } else {
    seq = PushTo(e, stream, RecordType::kCopy, 0, &body, sizeof body);
  }
  if (seq == 0) return CUDA_ERROR_INVALID_HANDLE;
  const bool host_waits = (pageable_source && !stage) || pageable_target ||
                          (!async && body.route != wire::CopyRoute::kInside);
  return host_waits ? WaitForSeq(e, stream, seq) : CUDA_SUCCESS;
}

CUresult CopyFlat(Entry& e, CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream handle,
                  bool async) {
  CUDA_MEMCPY3D box{};
  box.srcMemoryType = box.dstMemoryType = CU_MEMORYTYPE_UNIFIED;
  box.srcDevice = src;
  box.dstDevice = dst;
  box.WidthInBytes = bytes;
  box.Height = box.Depth = 1;
  return CopyBox(e, box, handle, async);
}

CUresult FillRows(Entry& e, CUdeviceptr dst, size_t pitch, unsigned value, unsigned element_bytes,
                  size_t width, size_t height, CUstream handle) {
  if (width == 0 || height == 0) return CUDA_SUCCESS;
  if (dst == 0 || dst % element_bytes != 0 || FindMemory(e.driver(), dst) == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  Work work;
  work.type = RecordType::kFill;
  work.body.fill = {dst,   width,        height, pitch != 0 ? pitch : width * element_bytes,
                    value, element_bytes};
  work.node_type = CU_GRAPH_NODE_TYPE_MEMSET;
  work.memset = {dst, work.body.fill.pitch, value, element_bytes, width, height};
  return Enqueue(e, stream, std::move(work));
}

namespace {

CUdeviceptr At(const void* pointer) {
  return reinterpret_cast<CUdeviceptr>(pointer);
}

// Device pointers of the typed calls must be the driver's own.
CUresult Flat(CUdeviceptr dst, bool dst_device, CUdeviceptr src, bool src_device, size_t bytes,
              CUstream stream, bool async) {
  Entry e;
  if (e.failed()) return e.result();
  if (bytes == 0) return CUDA_SUCCESS;
  if (dst_device && FindMemory(e.driver(), dst) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (src_device && FindMemory(e.driver(), src) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return CopyFlat(e, dst, src, bytes, stream, async);
}

CUresult Fill(CUdeviceptr dst, size_t pitch, unsigned value, unsigned element, size_t width,
              size_t height, CUstream stream, bool async) {
  Entry e;
  if (e.failed()) return e.result();
  if (!async) {
    if (CUresult r = RefuseInCapture(e)) return r;
  }
  return FillRows(e, dst, pitch, value, element, width, height, stream);
}

CUDA_MEMCPY3D From2D(const CUDA_MEMCPY2D& c) {
  CUDA_MEMCPY3D box{};
  box.srcXInBytes = c.srcXInBytes;
  box.srcY = c.srcY;
  box.srcMemoryType = c.srcMemoryType;
  box.srcHost = c.srcHost;
  box.srcDevice = c.srcDevice;
  box.srcArray = c.srcArray;
  box.srcPitch = c.srcPitch;
  box.dstXInBytes = c.dstXInBytes;
  box.dstY = c.dstY;
  box.dstMemoryType = c.dstMemoryType;
  box.dstHost = c.dstHost;
  box.dstDevice = c.dstDevice;
  box.dstArray = c.dstArray;
  box.dstPitch = c.dstPitch;
  box.WidthInBytes = c.WidthInBytes;
  box.Height = c.Height;
  box.Depth = 1;
  return box;
}

CUresult Box(const CUDA_MEMCPY3D& box, CUstream stream, bool async) {
  Entry e;
  if (e.failed()) return e.result();
  return CopyBox(e, box, stream, async);
}

CUDA_MEMCPY3D FromPeer(const CUDA_MEMCPY3D_PEER& c) {
  CUDA_MEMCPY3D box{};
  box.srcXInBytes = c.srcXInBytes;
  box.srcY = c.srcY;
  box.srcZ = c.srcZ;
  box.srcMemoryType = c.srcMemoryType;
  box.srcHost = c.srcHost;
  box.srcDevice = c.srcDevice;
  box.srcArray = c.srcArray;
  box.srcPitch = c.srcPitch;
  box.srcHeight = c.srcHeight;
  box.dstXInBytes = c.dstXInBytes;
  box.dstY = c.dstY;
  box.dstZ = c.dstZ;
  box.dstMemoryType = c.dstMemoryType;
  box.dstHost = c.dstHost;
  box.dstDevice = c.dstDevice;
  box.dstArray = c.dstArray;
  box.dstPitch = c.dstPitch;
  box.dstHeight = c.dstHeight;
  box.WidthInBytes = c.WidthInBytes;
  box.Height = c.Height;
  box.Depth = c.Depth;
  return box;
}

CUDA_MEMCPY3D ArrayEnd(CUarray array, size_t offset, bool source, CUDA_MEMCPY3D box) {
  (source ? box.srcMemoryType : box.dstMemoryType) = CU_MEMORYTYPE_ARRAY;
  (source ? box.srcArray : box.dstArray) = array;
  (source ? box.srcXInBytes : box.dstXInBytes) = offset;
  return box;
}

CUDA_MEMCPY3D FlatEnd(CUdeviceptr address, bool source, CUDA_MEMCPY3D box) {
  (source ? box.srcMemoryType : box.dstMemoryType) = CU_MEMORYTYPE_UNIFIED;
  (source ? box.srcDevice : box.dstDevice) = address;
  return box;
}

CUDA_MEMCPY3D Row(size_t bytes) {
  CUDA_MEMCPY3D box{};
  box.WidthInBytes = bytes;
  box.Height = box.Depth = 1;
  return box;
}

}  // namespace
}  // namespace rubato::softgpu

RUBATO_SOFTGPU_API cuMemcpy(CUdeviceptr dst, CUdeviceptr src, size_t n) {
  return Flat(dst, false, src, false, n, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s) {
  return Flat(dst, false, src, false, n, s, true);
}
RUBATO_SOFTGPU_API cuMemcpyHtoD_v2(CUdeviceptr dst, const void* src, size_t n) {
  return Flat(dst, true, At(src), false, n, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void* src, size_t n, CUstream s) {
  return Flat(dst, true, At(src), false, n, s, true);
}
RUBATO_SOFTGPU_API cuMemcpyDtoH_v2(void* dst, CUdeviceptr src, size_t n) {
  return Flat(At(dst), false, src, true, n, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpyDtoHAsync_v2(void* dst, CUdeviceptr src, size_t n, CUstream s) {
  return Flat(At(dst), false, src, true, n, s, true);
}
RUBATO_SOFTGPU_API cuMemcpyDtoD_v2(CUdeviceptr dst, CUdeviceptr src, size_t n) {
  return Flat(dst, true, src, true, n, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpyDtoDAsync_v2(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s) {
  return Flat(dst, true, src, true, n, s, true);
}
RUBATO_SOFTGPU_API cuMemcpyPeer(CUdeviceptr dst, CUcontext, CUdeviceptr src, CUcontext, size_t n) {
  return Flat(dst, true, src, true, n, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpyPeerAsync(CUdeviceptr dst, CUcontext, CUdeviceptr src, CUcontext,
                                     size_t n, CUstream s) {
  return Flat(dst, true, src, true, n, s, true);
}
RUBATO_SOFTGPU_API cuMemcpy2D_v2(const CUDA_MEMCPY2D* c) {
  return c == nullptr ? CUDA_ERROR_INVALID_VALUE : Box(From2D(*c), nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D* c) {
  return cuMemcpy2D_v2(c);
}
RUBATO_SOFTGPU_API cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* c, CUstream s) {
  return c == nullptr ? CUDA_ERROR_INVALID_VALUE : Box(From2D(*c), s, true);
}
RUBATO_SOFTGPU_API cuMemcpy3D_v2(const CUDA_MEMCPY3D* c) {
  return c == nullptr ? CUDA_ERROR_INVALID_VALUE : Box(*c, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D* c, CUstream s) {
  return c == nullptr ? CUDA_ERROR_INVALID_VALUE : Box(*c, s, true);
}
RUBATO_SOFTGPU_API cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER* c) {
  return c == nullptr ? CUDA_ERROR_INVALID_VALUE : Box(FromPeer(*c), nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER* c, CUstream s) {
  return c == nullptr ? CUDA_ERROR_INVALID_VALUE : Box(FromPeer(*c), s, true);
}
RUBATO_SOFTGPU_API cuMemcpyDtoA_v2(CUarray dst, size_t offset, CUdeviceptr src, size_t n) {
  return Box(ArrayEnd(dst, offset, false, FlatEnd(src, true, Row(n))), nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpyAtoD_v2(CUdeviceptr dst, CUarray src, size_t offset, size_t n) {
  return Box(ArrayEnd(src, offset, true, FlatEnd(dst, false, Row(n))), nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpyHtoA_v2(CUarray dst, size_t offset, const void* src, size_t n) {
  return Box(ArrayEnd(dst, offset, false, FlatEnd(At(src), true, Row(n))), nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpyAtoH_v2(void* dst, CUarray src, size_t offset, size_t n) {
  return Box(ArrayEnd(src, offset, true, FlatEnd(At(dst), false, Row(n))), nullptr, false);
}
RUBATO_SOFTGPU_API cuMemcpyHtoAAsync_v2(CUarray dst, size_t offset, const void* src, size_t n,
                                        CUstream s) {
  return Box(ArrayEnd(dst, offset, false, FlatEnd(At(src), true, Row(n))), s, true);
}
RUBATO_SOFTGPU_API cuMemcpyAtoHAsync_v2(void* dst, CUarray src, size_t offset, size_t n,
                                        CUstream s) {
  return Box(ArrayEnd(src, offset, true, FlatEnd(At(dst), false, Row(n))), s, true);
}
RUBATO_SOFTGPU_API cuMemcpyAtoA_v2(CUarray dst, size_t dst_offset, CUarray src, size_t src_offset,
                                   size_t n) {
  return Box(ArrayEnd(dst, dst_offset, false, ArrayEnd(src, src_offset, true, Row(n))), nullptr,
             false);
}

#if CUDA_VERSION >= 13000
RUBATO_SOFTGPU_API cuMemcpyBatchAsync_v2(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes,
                                         size_t count, CUmemcpyAttributes*, size_t*, size_t,
                                         CUstream stream) {
  if (dsts == nullptr || srcs == nullptr || sizes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) {
    if (CUresult r = cuMemcpyAsync(dsts[i], srcs[i], sizes[i], stream)) return r;
  }
  return CUDA_SUCCESS;
}
#endif

RUBATO_SOFTGPU_API cuMemsetD8_v2(CUdeviceptr p, unsigned char v, size_t n) {
  return Fill(p, 0, v, 1, n, 1, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemsetD16_v2(CUdeviceptr p, unsigned short v, size_t n) {
  return Fill(p, 0, v, 2, n, 1, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemsetD32_v2(CUdeviceptr p, unsigned v, size_t n) {
  return Fill(p, 0, v, 4, n, 1, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemsetD8Async(CUdeviceptr p, unsigned char v, size_t n, CUstream s) {
  return Fill(p, 0, v, 1, n, 1, s, true);
}
RUBATO_SOFTGPU_API cuMemsetD16Async(CUdeviceptr p, unsigned short v, size_t n, CUstream s) {
  return Fill(p, 0, v, 2, n, 1, s, true);
}
RUBATO_SOFTGPU_API cuMemsetD32Async(CUdeviceptr p, unsigned v, size_t n, CUstream s) {
  return Fill(p, 0, v, 4, n, 1, s, true);
}
RUBATO_SOFTGPU_API cuMemsetD2D8_v2(CUdeviceptr p, size_t pitch, unsigned char v, size_t w,
                                   size_t h) {
  return Fill(p, pitch, v, 1, w, h, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemsetD2D16_v2(CUdeviceptr p, size_t pitch, unsigned short v, size_t w,
                                    size_t h) {
  return Fill(p, pitch, v, 2, w, h, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemsetD2D32_v2(CUdeviceptr p, size_t pitch, unsigned v, size_t w, size_t h) {
  return Fill(p, pitch, v, 4, w, h, nullptr, false);
}
RUBATO_SOFTGPU_API cuMemsetD2D8Async(CUdeviceptr p, size_t pitch, unsigned char v, size_t w,
                                     size_t h, CUstream s) {
  return Fill(p, pitch, v, 1, w, h, s, true);
}
RUBATO_SOFTGPU_API cuMemsetD2D16Async(CUdeviceptr p, size_t pitch, unsigned short v, size_t w,
                                      size_t h, CUstream s) {
  return Fill(p, pitch, v, 2, w, h, s, true);
}
RUBATO_SOFTGPU_API cuMemsetD2D32Async(CUdeviceptr p, size_t pitch, unsigned v, size_t w, size_t h,
                                      CUstream s) {
  return Fill(p, pitch, v, 4, w, h, s, true);
}
RUBATO_SOFTGPU_API cuMemPrefetchAsync_v2(CUdeviceptr p, size_t, CUmemLocation, unsigned,
                                         CUstream handle) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (FindMemory(e.driver(), p) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  return Enqueue(e, stream, Work{});
}
RUBATO_SOFTGPU_API cuMemAdvise_v2(CUdeviceptr p, size_t, CUmem_advise, CUmemLocation) {
  Entry e;
  if (e.failed()) return e.result();
  return FindMemory(e.driver(), p) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
