// Memory: allocation, host memory, pools, virtual memory, pointers.
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <utility>

#include "softgpu/cuda/driver.h"

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.
using wire::RecordType;
using wire::RequestType;

namespace rubato::softgpu {

namespace {

constexpr uint64_t kPage = 4096;
constexpr size_t kGranularity = 2u << 20;  // Of cuMemCreate.

CUresult ToResult(wire::Status status) {
  switch (status) {
    case wire::Status::kOk:
      return CUDA_SUCCESS;
    case wire::Status::kOutOfMemory:
      return CUDA_ERROR_OUT_OF_MEMORY;
    case wire::Status::kInvalid:
      return CUDA_ERROR_INVALID_VALUE;
    default:
      return CUDA_ERROR_DEVICE_UNAVAILABLE;
  }
}

// A descriptor of the file that is mapped, shared and writable, over all of [address, address +
// bytes), and the offset of `address` in it; -1 if the range is not of that kind or the file cannot
// be opened.
int SharedFileOf(uint64_t address, size_t bytes, uint64_t* offset) {
  FILE* maps = fopen("/proc/self/maps", "re");
  if (maps == nullptr) return -1;
  unsigned long long start = 0, end = 0, file_offset = 0, inode = 0;
  unsigned major = 0, minor = 0;
  char rights[5] = "";
  char line[4352];
  bool found = false;
  while (!found && fgets(line, sizeof line, maps) != nullptr) {
    if (sscanf(line, "%llx-%llx %4s %llx %x:%x %llu", &start, &end, rights, &file_offset, &major,
               &minor, &inode) != 7) {
      continue;
    }
    found = start <= address && address + bytes <= end;
  }
  fclose(maps);
  if (!found || rights[1] != 'w' || rights[3] != 's' || inode == 0) return -1;
  *offset = file_offset + (address - start);
  // The link names the file itself, whether or not a descriptor of it is still open; it wants a
  // privilege.
  char path[64];
  snprintf(path, sizeof path, "/proc/self/map_files/%llx-%llx", start, end);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd >= 0) return fd;
  DIR* directory = opendir("/proc/self/fd");
  if (directory == nullptr) return -1;
  while (const dirent* entry = readdir(directory)) {
    const int candidate = atoi(entry->d_name);
    struct stat file {};
    if (entry->d_name[0] == '.' || fstat(candidate, &file) != 0) continue;
    if (file.st_ino == inode && file.st_dev == makedev(major, minor)) {
      fd = fcntl(candidate, F_DUPFD_CLOEXEC, 0);
      break;
    }
  }
  closedir(directory);
  return fd;
}

CUresult RegisterHost(Entry& e, void* pointer, size_t bytes, unsigned flags, MemoryKind kind,
                      int fd, uint64_t offset) {
  const uint64_t address = reinterpret_cast<uint64_t>(pointer);
  const wire::Reply reply =
      e.device().Call(RequestType::kRegister, 0, {address, bytes, offset}, fd);
  if (reply.status != wire::Status::kOk) return ToResult(reply.status);
  Memory memory;
  memory.address = address;
  memory.bytes = bytes;
  memory.kind = kind;
  memory.context = e.context()->root;
  memory.device = e.context()->device;
  memory.flags = flags;
  memory.id = e.driver().next_id++;
  e.driver().memory[address] = memory;
  return CUDA_SUCCESS;
}

CUresult AllocateHost(void** out, size_t bytes, unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = RefuseInCapture(e)) return r;
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  const int fd = memfd_create("rubato-softgpu-host", MFD_CLOEXEC);
  if (fd < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  void* map = ftruncate(fd, static_cast<off_t>(size)) == 0
                  ? mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                  : MAP_FAILED;
  CUresult result = map == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
  if (result == CUDA_SUCCESS)
    result = RegisterHost(e, map, size, flags, MemoryKind::kPinned, fd, 0);
  close(fd);
  if (result != CUDA_SUCCESS) {
    if (map != MAP_FAILED) munmap(map, size);
    return result;
  }
  *out = map;
  return CUDA_SUCCESS;
}

CUresult Allocate(CUdeviceptr* out, size_t bytes, MemoryKind kind) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = RefuseInCapture(e)) return r;
  Memory memory;
  if (CUresult r = AllocateDevice(e, e.context()->device, bytes, 0, kind, &memory)) return r;
  *out = memory.address;
  return CUDA_SUCCESS;
}

}  // namespace

const Memory* FindMemory(const Driver& d, CUdeviceptr address) {
  auto it = d.memory.upper_bound(address);
  if (it == d.memory.begin()) return nullptr;
  --it;
  return address - it->first < it->second.bytes ? &it->second : nullptr;
}

CUresult AllocateDevice(Entry& e, CUdevice device, size_t bytes, size_t alignment, MemoryKind kind,
                        Memory* out) {
  Driver& d = e.driver();
  const CUdeviceptr window = d.window[device];
  // Managed memory appears at the same address on the host, so it starts and ends on pages of its
  // own.
  if (kind == MemoryKind::kManaged) {
    alignment = kPage;
    bytes = (bytes + kPage - 1) / kPage * kPage;
  }
  const wire::Reply reply = e.device().Call(RequestType::kAllocate, static_cast<uint32_t>(device),
                                            {bytes, alignment, window});
  if (reply.status != wire::Status::kOk) return ToResult(reply.status);
  Memory memory;
  memory.offset = reply.v[0];
  memory.address = reply.v[1];
  memory.bytes = bytes;
  memory.kind = kind;
  memory.device = device;
  memory.context = e.context() != nullptr ? e.context()->root : nullptr;
  memory.id = d.next_id++;
  if (kind == MemoryKind::kManaged) {
    void* map = mmap(reinterpret_cast<void*>(memory.address), bytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_FIXED, e.device().vram_fd(static_cast<uint32_t>(device)),
                     static_cast<off_t>(memory.offset));
    if (map == MAP_FAILED) {
      e.device().Call(RequestType::kFree, static_cast<uint32_t>(device),
                      {memory.offset, memory.address});
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
  }
  d.memory[memory.address] = memory;
  *out = memory;
  return CUDA_SUCCESS;
}

CUresult ReleaseMemory(Entry& e, CUdeviceptr address) {
  Driver& d = e.driver();
  auto it = d.memory.find(address);
  if (it == d.memory.end()) return CUDA_ERROR_INVALID_VALUE;
  const Memory memory = it->second;
  d.memory.erase(it);
  switch (memory.kind) {
    case MemoryKind::kManaged:
      mmap(reinterpret_cast<void*>(memory.address), memory.bytes, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
      [[fallthrough]];
    case MemoryKind::kDevice:
    case MemoryKind::kImported:
      e.device().Call(RequestType::kFree, static_cast<uint32_t>(memory.device),
                      {memory.offset, memory.address});
      if (memory.pool != nullptr) memory.pool->used -= memory.bytes;
      return CUDA_SUCCESS;
    case MemoryKind::kPinned:
      e.device().Call(RequestType::kUnregister, 0, {memory.address});
      munmap(reinterpret_cast<void*>(memory.address), memory.bytes);
      return CUDA_SUCCESS;
    case MemoryKind::kRegistered:
      e.device().Call(RequestType::kUnregister, 0, {memory.address});
      return CUDA_SUCCESS;
    case MemoryKind::kMapped:
      return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_ERROR_INVALID_VALUE;
}

void ForgetContextMemory(Entry& e, CUcontext context) {
  std::vector<CUdeviceptr> doomed;
  for (auto& [address, memory] : e.driver().memory) {
    if (memory.context == context && memory.kind != MemoryKind::kMapped && memory.pool == nullptr) {
      doomed.push_back(address);
    }
  }
  for (CUdeviceptr address : doomed) ReleaseMemory(e, address);
}

}  // namespace rubato::softgpu

RUBATO_SOFTGPU_API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  Entry e;
  if (e.failed()) return e.result();
  const wire::Reply reply =
      e.device().Call(RequestType::kMemoryInfo, static_cast<uint32_t>(e.context()->device), {});
  if (reply.status != wire::Status::kOk) return ToResult(reply.status);
  if (free_bytes != nullptr) *free_bytes = reply.v[0];
  if (total != nullptr) *total = reply.v[1];
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
  return Allocate(out, bytes, MemoryKind::kDevice);
}

RUBATO_SOFTGPU_API cuMemAllocPitch_v2(CUdeviceptr* out, size_t* pitch, size_t width, size_t height,
                                      unsigned element) {
  if (pitch == nullptr || width == 0 || height == 0) return CUDA_ERROR_INVALID_VALUE;
  if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
  *pitch = (width + 511) / 512 * 512;
  return Allocate(out, *pitch * height, MemoryKind::kDevice);
}

RUBATO_SOFTGPU_API cuMemAllocManaged(CUdeviceptr* out, size_t bytes, unsigned flags) {
  if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST &&
      flags != CU_MEM_ATTACH_SINGLE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  return Allocate(out, bytes, MemoryKind::kManaged);
}

RUBATO_SOFTGPU_API cuMemFree_v2(CUdeviceptr address) {
  Entry e;
  if (e.failed()) return e.result();
  if (address == 0) return CUDA_SUCCESS;
  if (CUresult r = RefuseInCapture(e)) return r;
  auto it = e.driver().memory.find(address);
  if (it == e.driver().memory.end()) return CUDA_ERROR_INVALID_VALUE;
  const MemoryKind kind = it->second.kind;
  if (kind != MemoryKind::kDevice && kind != MemoryKind::kManaged) return CUDA_ERROR_INVALID_VALUE;
  // Freeing waits for everything that might still use the memory.
  const CUresult waited = WaitForContext(e, e.context());
  const CUresult freed = ReleaseMemory(e, address);
  return waited != CUDA_SUCCESS ? waited : freed;
}

RUBATO_SOFTGPU_API cuMemAllocHost_v2(void** out, size_t bytes) {
  return AllocateHost(out, bytes, 0);
}

RUBATO_SOFTGPU_API cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
  return AllocateHost(out, bytes, flags);
}

RUBATO_SOFTGPU_API cuMemFreeHost(void* pointer) {
  Entry e;
  if (e.failed()) return e.result();
  auto it = e.driver().memory.find(reinterpret_cast<CUdeviceptr>(pointer));
  if (it == e.driver().memory.end() || it->second.kind != MemoryKind::kPinned)
    return CUDA_ERROR_INVALID_VALUE;
  if (CUresult r = RefuseInCapture(e)) return r;
  const CUresult waited = WaitForContext(e, e.context());
  const CUresult freed = ReleaseMemory(e, reinterpret_cast<CUdeviceptr>(pointer));
  return waited != CUDA_SUCCESS ? waited : freed;
}

RUBATO_SOFTGPU_API cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (pointer == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (e.driver().settings.fail_register) return CUDA_ERROR_NOT_SUPPORTED;
  if (CUresult r = RefuseInCapture(e)) return r;
  const CUdeviceptr address = reinterpret_cast<CUdeviceptr>(pointer);
  auto next = e.driver().memory.lower_bound(address);
  const bool overlaps = FindMemory(e.driver(), address) != nullptr ||
                        (next != e.driver().memory.end() && next->first < address + bytes);
  if (overlaps) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  uint64_t offset = 0;
  const int fd = SharedFileOf(address, bytes, &offset);
  const CUresult result =
      RegisterHost(e, pointer, bytes, flags, MemoryKind::kRegistered, fd, offset);
  if (fd >= 0) close(fd);
  return result;
}

#undef cuMemHostRegister
RUBATO_SOFTGPU_API cuMemHostRegister(void* pointer, size_t bytes, unsigned flags) {
  return cuMemHostRegister_v2(pointer, bytes, flags);
}

RUBATO_SOFTGPU_API cuMemHostUnregister(void* pointer) {
  Entry e;
  if (e.failed()) return e.result();
  if (CUresult r = RefuseInCapture(e)) return r;
  auto it = e.driver().memory.find(reinterpret_cast<CUdeviceptr>(pointer));
  if (it == e.driver().memory.end() || it->second.kind != MemoryKind::kRegistered) {
    return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  }
  const CUresult waited = WaitForContext(e, e.context());
  const CUresult freed = ReleaseMemory(e, reinterpret_cast<CUdeviceptr>(pointer));
  return waited != CUDA_SUCCESS ? waited : freed;
}

RUBATO_SOFTGPU_API cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* pointer, unsigned flags) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  const Memory* memory = FindMemory(e.driver(), reinterpret_cast<CUdeviceptr>(pointer));
  if (memory == nullptr ||
      (memory->kind != MemoryKind::kPinned && memory->kind != MemoryKind::kRegistered)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *out = reinterpret_cast<CUdeviceptr>(pointer);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemHostGetFlags(unsigned* flags, void* pointer) {
  Entry e;
  if (e.failed()) return e.result();
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Memory* memory = FindMemory(e.driver(), reinterpret_cast<CUdeviceptr>(pointer));
  if (memory == nullptr || memory->kind != MemoryKind::kPinned) return CUDA_ERROR_INVALID_VALUE;
  *flags = memory->flags | CU_MEMHOSTALLOC_DEVICEMAP;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  Entry e;
  if (e.failed()) return e.result();
  const Memory* memory = FindMemory(e.driver(), address);
  if (memory == nullptr) return CUDA_ERROR_NOT_FOUND;
  if (base != nullptr) *base = memory->address;
  if (bytes != nullptr) *bytes = memory->bytes;
  return CUDA_SUCCESS;
}

namespace {

CUresult AttributeOf(Entry& e, void* data, CUpointer_attribute attribute, CUdeviceptr address) {
  if (data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Memory* memory = FindMemory(e.driver(), address);
  if (memory == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const bool host = memory->kind == MemoryKind::kPinned || memory->kind == MemoryKind::kRegistered;
  const bool managed = memory->kind == MemoryKind::kManaged;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      *static_cast<CUcontext*>(data) = memory->context;
      break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<CUmemorytype*>(data) = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      *static_cast<CUdeviceptr*>(data) = address;
      break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (!host && !managed) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<void**>(data) = reinterpret_cast<void*>(address);
      break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      *static_cast<unsigned long long*>(data) = memory->id;
      break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      *static_cast<unsigned*>(data) = managed ? 1 : 0;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *static_cast<int*>(data) = memory->device;
      break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      *static_cast<CUdeviceptr*>(data) = memory->address;
      break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      *static_cast<size_t*>(data) = memory->bytes;
      break;
    case CU_POINTER_ATTRIBUTE_MAPPED:
      *static_cast<unsigned*>(data) = 1;
      break;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      *static_cast<unsigned*>(data) = memory->kind == MemoryKind::kDevice ? 1 : 0;
      break;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
      *static_cast<unsigned*>(data) = 0;
      break;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
      *static_cast<CUmemoryPool*>(data) = memory->pool;
      break;
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}

size_t AttributeBytes(CUpointer_attribute attribute) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      return 4;
    default:
      return 8;
  }
}

}  // namespace

RUBATO_SOFTGPU_API cuPointerGetAttribute(void* data, CUpointer_attribute attribute,
                                         CUdeviceptr address) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  return AttributeOf(e, data, attribute, address);
}

RUBATO_SOFTGPU_API cuPointerGetAttributes(unsigned count, CUpointer_attribute* attributes,
                                          void** data, CUdeviceptr address) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (attributes == nullptr || data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  // Unlike the single question, this one answers zero for what a pointer does not have.
  for (unsigned i = 0; i < count; ++i) {
    if (AttributeOf(e, data[i], attributes[i], address) == CUDA_SUCCESS) continue;
    if (data[i] != nullptr) std::memset(data[i], 0, AttributeBytes(attributes[i]));
    if (attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL && data[i] != nullptr)
      *static_cast<int*>(data[i]) = -2;
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuPointerSetAttribute(const void*, CUpointer_attribute attribute,
                                         CUdeviceptr address) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (FindMemory(e.driver(), address) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Pools.

namespace {

CUmemoryPool PoolOf(Entry& e, CUdevice device, bool current) {
  Driver& d = e.driver();
  if (d.default_pool[device] == nullptr) {
    CUmemoryPool pool = d.pools.New(Magic::kPool);
    pool->device = device;
    pool->is_default = true;
    d.default_pool[device] = pool;
  }
  if (!current || d.current_pool[device] == nullptr) return d.default_pool[device];
  return d.current_pool[device];
}

CUresult AllocateOnStream(CUdeviceptr* out, size_t bytes, CUmemoryPool pool, CUstream handle) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  if (pool == nullptr) pool = PoolOf(e, stream->context->device, true);
  if (pool->magic != Magic::kPool) return CUDA_ERROR_INVALID_VALUE;
  Memory memory;
  CUresult result = AllocateDevice(e, pool->device, bytes, 0, MemoryKind::kDevice, &memory);
  if (result == CUDA_ERROR_OUT_OF_MEMORY && stream->capture == nullptr) {
    // Frees that streams have yet to reach may make room.
    if (CUresult r = WaitForContext(e, stream->context->root)) return r;
    result = AllocateDevice(e, pool->device, bytes, 0, MemoryKind::kDevice, &memory);
  }
  if (result != CUDA_SUCCESS) return result;
  Memory& kept = e.driver().memory[memory.address];
  kept.pool = pool;
  pool->used += bytes;
  pool->used_high = std::max(pool->used_high, pool->used);
  *out = memory.address;
  Work work;
  work.node_type = CU_GRAPH_NODE_TYPE_MEM_ALLOC;
  work.memory = memory.address;
  work.alloc.bytesize = bytes;
  work.alloc.dptr = memory.address;
  return Enqueue(e, stream, std::move(work));
}

}  // namespace

RUBATO_SOFTGPU_API cuMemAllocAsync(CUdeviceptr* out, size_t bytes, CUstream stream) {
  return AllocateOnStream(out, bytes, nullptr, stream);
}

RUBATO_SOFTGPU_API cuMemAllocFromPoolAsync(CUdeviceptr* out, size_t bytes, CUmemoryPool pool,
                                           CUstream stream) {
  if (pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return AllocateOnStream(out, bytes, pool, stream);
}

RUBATO_SOFTGPU_API cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  Entry e;
  if (e.failed()) return e.result();
  if (address == 0) return CUDA_SUCCESS;
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  auto it = e.driver().memory.find(address);
  if (it == e.driver().memory.end() || it->second.kind != MemoryKind::kDevice)
    return CUDA_ERROR_INVALID_VALUE;
  const Memory memory = it->second;
  if (stream->capture != nullptr) {
    // Memory of a graph lives as long as the process here; each launch finds it where the capture
    // put it.
    Work work;
    work.node_type = CU_GRAPH_NODE_TYPE_MEM_FREE;
    work.memory = address;
    return Enqueue(e, stream, std::move(work));
  }
  e.driver().memory.erase(it);
  if (memory.pool != nullptr) memory.pool->used -= memory.bytes;
  wire::MapBody body{memory.address, memory.bytes, memory.offset,
                     static_cast<uint32_t>(memory.device), 0};
  PushTo(e, stream, RecordType::kFree, 0, &body, sizeof body);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGetDefaultMemPool(CUmemoryPool* out, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device < 0 || static_cast<uint32_t>(device) >= e.device().hello().devices)
    return CUDA_ERROR_INVALID_DEVICE;
  *out = PoolOf(e, device, false);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceGetMemPool(CUmemoryPool* out, CUdevice device) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device < 0 || static_cast<uint32_t>(device) >= e.device().hello().devices)
    return CUDA_ERROR_INVALID_DEVICE;
  *out = PoolOf(e, device, true);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (device < 0 || static_cast<uint32_t>(device) >= e.device().hello().devices)
    return CUDA_ERROR_INVALID_DEVICE;
  if (pool == nullptr || pool->magic != Magic::kPool || pool->device != device)
    return CUDA_ERROR_INVALID_VALUE;
  e.driver().current_pool[device] = pool;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemPoolCreate(CUmemoryPool* out, const CUmemPoolProps* props) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr || props == nullptr || props->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const int device = props->location.id;
  if (device < 0 || static_cast<uint32_t>(device) >= e.device().hello().devices)
    return CUDA_ERROR_INVALID_DEVICE;
  CUmemoryPool pool = e.driver().pools.New(Magic::kPool);
  pool->device = device;
  *out = pool;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemPoolDestroy(CUmemoryPool pool) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (pool == nullptr || pool->magic != Magic::kPool || pool->is_default)
    return CUDA_ERROR_INVALID_VALUE;
  for (auto& [address, memory] : e.driver().memory) {
    if (memory.pool == pool) memory.pool = nullptr;
  }
  if (e.driver().current_pool[pool->device] == pool)
    e.driver().current_pool[pool->device] = nullptr;
  e.driver().pools.Delete(pool);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemPoolTrimTo(CUmemoryPool pool, size_t) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  return pool != nullptr && pool->magic == Magic::kPool ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

RUBATO_SOFTGPU_API cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute,
                                         void* value) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (pool == nullptr || pool->magic != Magic::kPool || value == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
      pool->release_threshold = *static_cast<cuuint64_t*>(value);
      break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
      pool->used_high = pool->used;
      break;
    default:
      pool->flags[attribute] = *static_cast<int*>(value);
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute,
                                         void* value) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (pool == nullptr || pool->magic != Magic::kPool || value == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
      *static_cast<cuuint64_t*>(value) = pool->release_threshold;
      break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
      *static_cast<cuuint64_t*>(value) = pool->used;
      break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
      *static_cast<cuuint64_t*>(value) = pool->used_high;
      break;
    default: {
      auto it = pool->flags.find(attribute);
      *static_cast<int*>(value) = it == pool->flags.end() ? 1 : it->second;
    }
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc*, size_t) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  return pool != nullptr && pool->magic == Magic::kPool ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

RUBATO_SOFTGPU_API cuMemPoolGetAccess(CUmemAccess_flags* flags, CUmemoryPool pool, CUmemLocation*) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (flags == nullptr || pool == nullptr || pool->magic != Magic::kPool)
    return CUDA_ERROR_INVALID_VALUE;
  *flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return CUDA_SUCCESS;
}

// Virtual memory.

RUBATO_SOFTGPU_API cuMemGetAllocationGranularity(size_t* granularity,
                                                 const CUmemAllocationProp* prop,
                                                 CUmemAllocationGranularity_flags) {
  if (granularity == nullptr || prop == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *granularity = kGranularity;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemAddressReserve(CUdeviceptr* out, size_t bytes, size_t alignment,
                                       CUdeviceptr, unsigned long long flags) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr || bytes == 0 || bytes % kGranularity != 0 || flags != 0)
    return CUDA_ERROR_INVALID_VALUE;
  alignment = std::max(alignment, kGranularity);
  if ((alignment & (alignment - 1)) != 0) return CUDA_ERROR_INVALID_VALUE;
  void* map = mmap(nullptr, bytes + alignment, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const uint64_t start = reinterpret_cast<uint64_t>(map);
  const uint64_t aligned = (start + alignment - 1) & ~(alignment - 1);
  if (aligned > start) munmap(map, aligned - start);
  const uint64_t after = start + bytes + alignment - (aligned + bytes);
  if (after > 0) munmap(reinterpret_cast<void*>(aligned + bytes), after);
  e.driver().reserved[aligned] = bytes;
  *out = aligned;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  auto it = e.driver().reserved.find(address);
  if (it == e.driver().reserved.end() || it->second != bytes) return CUDA_ERROR_INVALID_VALUE;
  e.driver().reserved.erase(it);
  munmap(reinterpret_cast<void*>(address), bytes);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemCreate(CUmemGenericAllocationHandle* out, size_t bytes,
                               const CUmemAllocationProp* prop, unsigned long long flags) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr || prop == nullptr || flags != 0 || bytes == 0 || bytes % kGranularity != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
      prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  const int device = prop->location.id;
  if (device < 0 || static_cast<uint32_t>(device) >= e.device().hello().devices)
    return CUDA_ERROR_INVALID_DEVICE;
  const wire::Reply reply =
      e.device().Call(RequestType::kAllocate, static_cast<uint32_t>(device), {bytes, kPage, 0});
  if (reply.status != wire::Status::kOk) return ToResult(reply.status);
  const uint64_t handle = e.driver().next_id++;
  e.driver().physical[handle] = {device, reply.v[0], bytes, 1, true};
  *out = handle;
  return CUDA_SUCCESS;
}

namespace {

void DropOwner(Entry& e, std::map<uint64_t, Physical>::iterator it) {
  if (--it->second.owners > 0) return;
  e.device().Call(RequestType::kFree, static_cast<uint32_t>(it->second.device),
                  {it->second.offset, 0});
  e.driver().physical.erase(it);
}

}  // namespace

RUBATO_SOFTGPU_API cuMemRelease(CUmemGenericAllocationHandle handle) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  auto it = e.driver().physical.find(handle);
  if (it == e.driver().physical.end() || !it->second.handle_open) return CUDA_ERROR_INVALID_VALUE;
  it->second.handle_open = false;
  DropOwner(e, it);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                            CUmemGenericAllocationHandle handle, unsigned long long flags) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  auto it = e.driver().physical.find(handle);
  if (it == e.driver().physical.end() || !it->second.handle_open || flags != 0)
    return CUDA_ERROR_INVALID_VALUE;
  if (offset % kGranularity != 0 || bytes == 0 || bytes % kGranularity != 0 ||
      offset + bytes > it->second.bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  auto range = e.driver().reserved.upper_bound(address);
  if (range == e.driver().reserved.begin()) return CUDA_ERROR_INVALID_VALUE;
  --range;
  if (address + bytes > range->first + range->second) return CUDA_ERROR_INVALID_VALUE;
  ++it->second.owners;
  Memory memory;
  memory.address = address;
  memory.bytes = bytes;
  memory.kind = MemoryKind::kMapped;
  memory.device = it->second.device;
  memory.offset = it->second.offset + offset;
  memory.id = e.driver().next_id++;
  e.driver().memory[address] = memory;
  e.driver().mapped[address] = handle;
  wire::MapBody body{address, bytes, memory.offset, static_cast<uint32_t>(memory.device), 0};
  e.device().Push(RecordType::kMap, 0, 0, &body, sizeof body);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemUnmap(CUdeviceptr address, size_t bytes) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  auto it = e.driver().memory.find(address);
  if (it == e.driver().memory.end() || it->second.kind != MemoryKind::kMapped)
    return CUDA_ERROR_INVALID_VALUE;
  // Several mappings may go at once; all of them must lie in the range.
  while (it != e.driver().memory.end() && it->first < address + bytes &&
         it->second.kind == MemoryKind::kMapped) {
    wire::MapBody body{it->first, it->second.bytes, 0, 0, 0};
    e.device().Push(RecordType::kUnmap, 0, 0, &body, sizeof body);
    auto mapped = e.driver().mapped.find(it->first);
    auto physical = e.driver().physical.find(mapped->second);
    if (physical != e.driver().physical.end()) DropOwner(e, physical);
    e.driver().mapped.erase(mapped);
    it = e.driver().memory.erase(it);
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemSetAccess(CUdeviceptr address, size_t, const CUmemAccessDesc* desc,
                                  size_t count) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (desc == nullptr || count == 0 || FindMemory(e.driver(), address) == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemGetAccess(unsigned long long* flags, const CUmemLocation*,
                                  CUdeviceptr address) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (flags == nullptr || FindMemory(e.driver(), address) == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  *flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* out, void* pointer) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  auto it = e.driver().mapped.find(reinterpret_cast<CUdeviceptr>(pointer));
  if (out == nullptr || it == e.driver().mapped.end()) return CUDA_ERROR_INVALID_VALUE;
  auto physical = e.driver().physical.find(it->second);
  if (physical == e.driver().physical.end()) return CUDA_ERROR_INVALID_VALUE;
  ++physical->second.owners;
  physical->second.handle_open = true;
  *out = it->second;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* prop,
                                                          CUmemGenericAllocationHandle handle) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  auto it = e.driver().physical.find(handle);
  if (prop == nullptr || it == e.driver().physical.end()) return CUDA_ERROR_INVALID_VALUE;
  *prop = {};
  prop->type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop->location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  prop->location.id = it->second.device;
  return CUDA_SUCCESS;
}

// Sharing between processes. A handle names an allocation by its place in the device's memory.

namespace {

struct IpcName {
  uint64_t mark;
  uint64_t offset;
  uint64_t bytes;
  int64_t device;
  int64_t pid;
};
constexpr uint64_t kIpcMemory = 0x52425349504d454dull;
constexpr uint64_t kIpcEvent = 0x5242534950455654ull;

}  // namespace

RUBATO_SOFTGPU_API cuIpcGetMemHandle(CUipcMemHandle* out, CUdeviceptr address) {
  Entry e;
  if (e.failed()) return e.result();
  const Memory* memory = FindMemory(e.driver(), address);
  if (out == nullptr || memory == nullptr || memory->kind != MemoryKind::kDevice ||
      memory->pool != nullptr) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const IpcName name{kIpcMemory, memory->offset, memory->bytes, memory->device, getpid()};
  std::memset(out, 0, sizeof *out);
  std::memcpy(out->reserved, &name, sizeof name);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuIpcOpenMemHandle_v2(CUdeviceptr* out, CUipcMemHandle handle, unsigned) {
  Entry e;
  if (e.failed()) return e.result();
  IpcName name;
  std::memcpy(&name, handle.reserved, sizeof name);
  if (out == nullptr || name.mark != kIpcMemory) return CUDA_ERROR_INVALID_VALUE;
  if (name.pid == getpid())
    return CUDA_ERROR_INVALID_CONTEXT;  // Not within the process that made it.
  if (name.device < 0 || static_cast<uint32_t>(name.device) >= e.device().hello().devices) {
    return CUDA_ERROR_INVALID_DEVICE;
  }
  const wire::Reply reply =
      e.device().Call(RequestType::kShare, static_cast<uint32_t>(name.device), {name.offset});
  if (reply.status != wire::Status::kOk || reply.v[0] < name.bytes) return CUDA_ERROR_INVALID_VALUE;
  Memory memory;
  memory.address = e.driver().window[name.device] + name.offset;
  if (e.driver().memory.count(memory.address) != 0) return CUDA_ERROR_ALREADY_MAPPED;
  memory.bytes = name.bytes;
  memory.kind = MemoryKind::kImported;
  memory.device = static_cast<CUdevice>(name.device);
  memory.offset = name.offset;
  memory.context = e.context()->root;
  memory.id = e.driver().next_id++;
  e.driver().memory[memory.address] = memory;
  wire::MapBody body{memory.address, memory.bytes, memory.offset,
                     static_cast<uint32_t>(memory.device), 0};
  e.device().Push(RecordType::kMap, 0, 0, &body, sizeof body);
  *out = memory.address;
  return CUDA_SUCCESS;
}

#undef cuIpcOpenMemHandle
RUBATO_SOFTGPU_API cuIpcOpenMemHandle(CUdeviceptr* out, CUipcMemHandle handle, unsigned flags) {
  return cuIpcOpenMemHandle_v2(out, handle, flags);
}

RUBATO_SOFTGPU_API cuIpcCloseMemHandle(CUdeviceptr address) {
  Entry e;
  if (e.failed()) return e.result();
  auto it = e.driver().memory.find(address);
  if (it == e.driver().memory.end() || it->second.kind != MemoryKind::kImported)
    return CUDA_ERROR_INVALID_VALUE;
  const CUresult waited = WaitForContext(e, e.context());
  const CUresult freed = ReleaseMemory(e, address);
  return waited != CUDA_SUCCESS ? waited : freed;
}

RUBATO_SOFTGPU_API cuIpcGetEventHandle(CUipcEventHandle* out, CUevent event) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || !Is(event)) return CUDA_ERROR_INVALID_HANDLE;
  if ((event->flags & CU_EVENT_INTERPROCESS) == 0) return CUDA_ERROR_INVALID_HANDLE;
  const IpcName name{kIpcEvent, e.device().client() << wire::kClientShift | event->seq, 0, 0,
                     getpid()};
  std::memset(out, 0, sizeof *out);
  std::memcpy(out->reserved, &name, sizeof name);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuIpcOpenEventHandle(CUevent* out, CUipcEventHandle handle) {
  IpcName name;
  std::memcpy(&name, handle.reserved, sizeof name);
  if (out == nullptr || name.mark != kIpcEvent) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = cuEventCreate(out, CU_EVENT_DISABLE_TIMING);
  if (result == CUDA_SUCCESS) (*out)->foreign = name.offset;
  return result;
}
