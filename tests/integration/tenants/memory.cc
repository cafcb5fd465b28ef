// Allocations on command, to try memory limits.
//
// Commands on stdin, one answer line each: "alloc KIND BYTES" (KIND: device, async, managed, pitch,
// physical) answers "ok ID" or "error N"; "free ID" answers "ok"; "info" answers "info FREE TOTAL";
// "copy ID" writes and reads the allocation's first word: "ok" or "error N". Ends with stdin.
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "tests/integration/tenants/gpu.h"

namespace rubato::test_tenant {
namespace {

struct Allocation {
  std::string kind;
  uint64_t handle = 0;  // A device pointer, or the handle of physical memory.
};

void Answer(CUresult result, size_t id) {
  if (result == CUDA_SUCCESS) {
    std::printf("ok %zu\n", id);
  } else {
    std::printf("error %d\n", static_cast<int>(result));
  }
}

CUresult Allocate(const Calls& call, const std::string& kind, size_t bytes, Allocation* out) {
  CUdeviceptr pointer = 0;
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  if (kind == "device") {
    result = call.MemAlloc(&pointer, bytes);
  } else if (kind == "async") {
    result = call.MemAllocAsync(&pointer, bytes, nullptr);
    if (result == CUDA_SUCCESS) result = call.StreamSynchronize(nullptr);
  } else if (kind == "managed") {
    result = call.MemAllocManaged(&pointer, bytes, CU_MEM_ATTACH_GLOBAL);
  } else if (kind == "pitch") {
    // Rows of a mebibyte: wide enough that no padding is added.
    size_t pitch = 0;
    result = call.MemAllocPitch(&pointer, &pitch, size_t{1} << 20, bytes >> 20, 16);
  } else if (kind == "physical") {
    CUmemAllocationProp properties = {};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    CUmemGenericAllocationHandle handle = 0;
    result = call.MemCreate(&handle, bytes, &properties, 0);
    pointer = handle;
  }
  *out = Allocation{kind, pointer};
  return result;
}

CUresult Release(const Calls& call, const Allocation& allocation) {
  if (allocation.kind == "physical") return call.MemRelease(allocation.handle);
  if (allocation.kind == "async") {
    const CUresult result = call.MemFreeAsync(allocation.handle, nullptr);
    return result == CUDA_SUCCESS ? call.StreamSynchronize(nullptr) : result;
  }
  return call.MemFree(allocation.handle);
}

CUresult WriteAndRead(const Calls& call, const Allocation& allocation) {
  uint32_t word = 0x5eed;
  CUresult result = call.MemcpyHtoD(allocation.handle, &word, sizeof(word));
  uint32_t back = 0;
  if (result == CUDA_SUCCESS) result = call.MemcpyDtoH(&back, allocation.handle, sizeof(back));
  if (result == CUDA_SUCCESS && back != word) result = CUDA_ERROR_UNKNOWN;
  return result;
}

}  // namespace

int Memory(int, char**) {
  const Gpu& gpu = Gpu::Open();
  std::vector<Allocation> allocations;
  std::puts("ready");
  char line[128];
  while (std::fgets(line, sizeof(line), stdin) != nullptr) {
    char kind[32] = {};
    uint64_t number = 0;
    if (std::sscanf(line, "alloc %31s %" SCNu64, kind, &number) == 2) {
      Allocation allocation;
      const CUresult result = Allocate(gpu.call(), kind, number, &allocation);
      if (result == CUDA_SUCCESS) allocations.push_back(allocation);
      Answer(result, allocations.size() - 1);
    } else if (std::sscanf(line, "free %" SCNu64, &number) == 1 && number < allocations.size()) {
      Answer(Release(gpu.call(), allocations[number]), number);
    } else if (std::sscanf(line, "copy %" SCNu64, &number) == 1 && number < allocations.size()) {
      Answer(WriteAndRead(gpu.call(), allocations[number]), number);
    } else if (std::strcmp(line, "info\n") == 0) {
      size_t free_bytes = 0;
      size_t total_bytes = 0;
      Check(gpu.call().MemGetInfo(&free_bytes, &total_bytes), "cuMemGetInfo");
      std::printf("info %zu %zu\n", free_bytes, total_bytes);
    } else {
      std::printf("bad command\n");
    }
  }
  return 0;
}

}  // namespace rubato::test_tenant
