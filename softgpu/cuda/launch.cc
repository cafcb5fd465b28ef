// Modules, libraries, functions and kernel launches.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "softgpu/cuda/driver.h"
#include "softgpu/model/gpu.h"

using namespace rubato::softgpu;  // NOLINT: entry points live outside any namespace.
using wire::RecordType;

namespace rubato::softgpu {

namespace {

constexpr size_t kMaxParamBytes = 32764;
constexpr unsigned kStaticSharedLimit = 48 * 1024;

CUresult LoadImage(Entry& e, const void* image, bool library, CUmodule* out) {
  if (image == nullptr || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const char* text = static_cast<const char*>(image);
  // Device code: ELF (cubin) and the fat binary's magic. There is nothing here that could run it.
  const unsigned char* raw = static_cast<const unsigned char*>(image);
  if (raw[0] == 0x7f || raw[0] == 0x50) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  Driver& d = e.driver();
  CUmodule module = d.modules.New(Magic::kModule);
  if (!ParseProgram(text, &module->text)) {
    d.modules.Delete(module);
    return CUDA_ERROR_INVALID_PTX;
  }
  module->library = library;
  if (!library) {
    module->context = e.context()->root;
    module->context->modules.insert(module);
  }
  for (const KernelText& kernel : module->text.kernels) {
    CUfunction function = d.functions.New(Magic::kFunction);
    function->text = &kernel;
    function->module = module;
    function->name_id = NameId(e, kernel.name);
    module->functions.push_back(function);
  }
  if (e.context() != nullptr) {
    for (const GlobalText& global : module->text.globals) {
      Memory memory;
      if (CUresult r =
              AllocateDevice(e, e.context()->device, global.bytes, 0, MemoryKind::kDevice, &memory))
        return r;
      module->globals[global.name] = {memory.address, global.bytes};
      FillRows(e, memory.address, 0, 0, 1, global.bytes, 1, nullptr);
    }
  }
  *out = module;
  return CUDA_SUCCESS;
}

void UnloadModule(Entry& e, CUmodule module) {
  for (auto& [name, global] : module->globals) ReleaseMemory(e, global.first);
  for (CUfunction function : module->functions) e.driver().functions.Delete(function);
  if (module->context != nullptr) module->context->modules.erase(module);
  e.driver().modules.Delete(module);
}

CUfunction FindFunction(CUmodule module, const char* name) {
  for (CUfunction function : module->functions) {
    if (function->text->name == name) return function;
  }
  return nullptr;
}

wire::DeviceInfo InfoOf(const Entry& e) {
  return e.device().hello().info[static_cast<uint32_t>(e.context()->device)];
}

uint32_t BlocksPerSm(const Entry& e, CUfunction function, unsigned threads, size_t shared_bytes) {
  const wire::DeviceInfo info = InfoOf(e);
  SmSpec sm{info.threads_per_sm, info.registers_per_sm, info.shared_bytes_per_sm,
            info.blocks_per_sm};
  KernelShape shape;
  shape.threads_per_block = threads;
  shape.registers_per_thread = function->text->registers;
  shape.shared_bytes_per_block = function->text->shared_bytes + static_cast<uint32_t>(shared_bytes);
  return Gpu::BlocksPerSm(sm, shape);
}

}  // namespace

CUresult FillKernel(Entry& e, CUfunction function, Work* work, void* const* values) {
  (void)e;
  const KernelText& text = *function->text;
  wire::KernelBody& body = work->body.kernel;
  body = {};
  body.blocks = work->grid[0] * work->grid[1] * work->grid[2];
  body.threads_per_block = work->block[0] * work->block[1] * work->block[2];
  body.registers_per_thread = text.registers;
  body.shared_bytes_per_block = text.shared_bytes + work->shared_bytes;
  body.block_ns = static_cast<int64_t>(text.Value(text.block_ns, values));
  body.watts_per_block = text.watts;
  body.bytes_per_ns_per_block = text.bytes_per_ns;
  body.cooperative = work->attributes.cooperative ? 1 : 0;
  body.effect = text.effect;
  body.name = function->name_id;
  if (text.effect != wire::Effect::kNone) {
    body.args[0] = text.Value(text.out, values);
    body.args[1] = text.Value(text.in, values);
    body.args[2] = text.Value(text.count, values);
    body.args[3] = text.Value(text.key, values);
  }
  return CUDA_SUCCESS;
}

CUresult KernelWork(Entry& e, CUfunction function, const unsigned grid[3], const unsigned block[3],
                    unsigned shared_bytes, void** params, void** extra,
                    const KernelAttributes& attributes, bool keep, Work* work) {
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  const KernelText& text = *function->text;
  for (int i = 0; i < 3; ++i) {
    if (grid[i] == 0 || block[i] == 0) return CUDA_ERROR_INVALID_VALUE;
  }
  if (grid[1] > 65535 || grid[2] > 65535 || block[2] > 64) return CUDA_ERROR_INVALID_VALUE;
  const uint64_t threads = uint64_t{block[0]} * block[1] * block[2];
  if (threads > 1024) return CUDA_ERROR_INVALID_VALUE;
  if (uint64_t{grid[0]} * grid[1] * grid[2] > UINT32_MAX) return CUDA_ERROR_INVALID_VALUE;
  if (shared_bytes >
      static_cast<unsigned>(std::max<int>(function->max_dynamic_shared, kStaticSharedLimit))) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const uint32_t per_sm = BlocksPerSm(e, function, static_cast<unsigned>(threads), shared_bytes);
  if (per_sm == 0) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  work->attributes = attributes;
  if (attributes.cooperative) {
    CUcontext context = e.context();
    const uint64_t sms = context->green != nullptr ? context->green->sm_count : InfoOf(e).sm_count;
    if (uint64_t{grid[0]} * grid[1] * grid[2] > per_sm * sms)
      return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
  }
  const size_t count = text.params.size();
  void* from_buffer[256];
  void* const* values = params;
  if (count > 0 && params == nullptr) {
    if (extra == nullptr || count > std::size(from_buffer)) return CUDA_ERROR_INVALID_VALUE;
    unsigned char* buffer = nullptr;
    size_t bytes = 0;
    for (size_t i = 0; extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
      if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER)
        buffer = static_cast<unsigned char*>(extra[i + 1]);
      if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<size_t*>(extra[i + 1]);
    }
    if (buffer == nullptr || bytes < text.param_bytes) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; ++i) from_buffer[i] = buffer + text.params[i].offset;
    values = from_buffer;
  }
  work->type = RecordType::kKernel;
  std::copy_n(grid, 3, work->grid);
  std::copy_n(block, 3, work->block);
  work->shared_bytes = shared_bytes;
  if (!keep) return FillKernel(e, function, work, values);
  if (text.param_bytes > kMaxParamBytes) return CUDA_ERROR_INVALID_VALUE;
  work->function = function;
  work->node_type = CU_GRAPH_NODE_TYPE_KERNEL;
  work->context = e.context();
  work->param_bytes.resize(text.param_bytes + 8);
  work->param_pointers.clear();
  for (size_t i = 0; i < count; ++i) {
    unsigned char* at = work->param_bytes.data() + text.params[i].offset;
    std::memcpy(at, values[i], text.params[i].bytes);
    work->param_pointers.push_back(at);
  }
  return FillKernel(e, function, work, work->param_pointers.data());
}

namespace {

KernelAttributes ReadAttributes(const CUlaunchAttribute* list, unsigned count, bool keep) {
  KernelAttributes attributes;
  for (unsigned i = 0; i < count; ++i) {
    if (list[i].id == CU_LAUNCH_ATTRIBUTE_PRIORITY) {
      attributes.priority = std::clamp(list[i].value.priority, -5, 0);
      attributes.has_priority = true;
    } else if (list[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) {
      attributes.cooperative = list[i].value.cooperative != 0;
    }
    if (keep) attributes.all.push_back(list[i]);
  }
  return attributes;
}

CUresult Launch(CUfunction function, const unsigned grid[3], const unsigned block[3],
                unsigned shared_bytes, CUstream handle, void** params, void** extra,
                const CUlaunchAttribute* list, unsigned count, bool cooperative) {
  Entry e;
  if (e.failed()) return e.result();
  CUstream stream;
  if (CUresult r = OpenStream(e, handle, &stream)) return r;
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  if (function->module->context != nullptr && function->module->context != stream->context->root) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  const bool capturing = stream->capture != nullptr;
  if (!function->loaded) {
    if (e.driver().settings.lazy_lock && !capturing) {
      // The driver loads a kernel at its first launch, and that may wait for all work of the
      // context.
      if (CUresult r = WaitForContext(e, stream->context->root)) return r;
      if (!Is(function) || !Is(stream)) return CUDA_ERROR_INVALID_HANDLE;
    }
    function->loaded = true;
  }
  KernelAttributes attributes = ReadAttributes(list, count, capturing);
  attributes.cooperative = attributes.cooperative || cooperative;
  Work work;
  if (CUresult r = KernelWork(e, function, grid, block, shared_bytes, params, extra, attributes,
                              capturing, &work)) {
    return r;
  }
  if (capturing) {
    work.context = stream->context;
    if (!attributes.has_priority && stream->priority != 0) {
      work.attributes.priority = stream->priority;
      work.attributes.has_priority = true;
    }
    return Enqueue(e, stream, std::move(work));
  }
  return PushTo(e, stream, RecordType::kKernel, 0, &work.body.kernel, sizeof work.body.kernel) != 0
             ? CUDA_SUCCESS
             : CUDA_ERROR_INVALID_HANDLE;
}

}  // namespace
}  // namespace rubato::softgpu

RUBATO_SOFTGPU_API cuModuleLoadData(CUmodule* out, const void* image) {
  Entry e;
  if (e.failed()) return e.result();
  return LoadImage(e, image, false, out);
}

RUBATO_SOFTGPU_API cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned, CUjit_option*,
                                      void**) {
  return cuModuleLoadData(out, image);
}

RUBATO_SOFTGPU_API cuModuleLoadFatBinary(CUmodule* out, const void* image) {
  return cuModuleLoadData(out, image);
}

namespace {

bool ReadFile(const char* path, std::string* out) {
  FILE* file = path == nullptr ? nullptr : fopen(path, "re");
  if (file == nullptr) return false;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, file)) > 0;) out->append(buffer, n);
  fclose(file);
  return true;
}

}  // namespace

RUBATO_SOFTGPU_API cuModuleLoad(CUmodule* out, const char* path) {
  std::string text;
  if (!ReadFile(path, &text)) return CUDA_ERROR_FILE_NOT_FOUND;
  return cuModuleLoadData(out, text.c_str());
}

RUBATO_SOFTGPU_API cuModuleUnload(CUmodule module) {
  Entry e;
  if (e.failed()) return e.result();
  if (!Is(module) || module->library) return CUDA_ERROR_INVALID_HANDLE;
  if (CUresult r = RefuseInCapture(e)) return r;
  if (CUresult r = WaitForContext(e, e.context())) return r;
  if (!Is(module)) return CUDA_ERROR_INVALID_HANDLE;
  UnloadModule(e, module);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(module)) return CUDA_ERROR_INVALID_HANDLE;
  *out = FindFunction(module, name);
  return *out != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

RUBATO_SOFTGPU_API cuModuleGetFunctionCount(unsigned* count, CUmodule module) {
  Entry e;
  if (e.failed()) return e.result();
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(module)) return CUDA_ERROR_INVALID_HANDLE;
  *count = static_cast<unsigned>(module->functions.size());
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuModuleEnumerateFunctions(CUfunction* out, unsigned count, CUmodule module) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(module)) return CUDA_ERROR_INVALID_HANDLE;
  std::copy_n(module->functions.begin(), std::min<size_t>(count, module->functions.size()), out);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuModuleGetLoadingMode(CUmoduleLoadingMode* mode) {
  if (mode == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *mode = CU_MODULE_LAZY_LOADING;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuModuleGetGlobal_v2(CUdeviceptr* address, size_t* bytes, CUmodule module,
                                        const char* name) {
  Entry e;
  if (e.failed()) return e.result();
  if (name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(module)) return CUDA_ERROR_INVALID_HANDLE;
  auto it = module->globals.find(name);
  if (it == module->globals.end()) return CUDA_ERROR_NOT_FOUND;
  if (address != nullptr) *address = it->second.first;
  if (bytes != nullptr) *bytes = it->second.second;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuLibraryLoadData(CUlibrary* out, const void* code, CUjit_option*, void**,
                                     unsigned, CUlibraryOption*, void**, unsigned) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  return LoadImage(e, code, true, reinterpret_cast<CUmodule*>(out));
}

RUBATO_SOFTGPU_API cuLibraryLoadFromFile(CUlibrary* out, const char* path, CUjit_option* a,
                                         void** b, unsigned c, CUlibraryOption* o, void** p,
                                         unsigned q) {
  std::string text;
  if (!ReadFile(path, &text)) return CUDA_ERROR_FILE_NOT_FOUND;
  return cuLibraryLoadData(out, text.c_str(), a, b, c, o, p, q);
}

RUBATO_SOFTGPU_API cuLibraryUnload(CUlibrary library) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  CUmodule module = reinterpret_cast<CUmodule>(library);
  if (!Is(module) || !module->library) return CUDA_ERROR_INVALID_HANDLE;
  UnloadModule(e, module);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuLibraryGetKernel(CUkernel* out, CUlibrary library, const char* name) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  CUmodule module = reinterpret_cast<CUmodule>(library);
  if (out == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(module) || !module->library) return CUDA_ERROR_INVALID_HANDLE;
  *out = reinterpret_cast<CUkernel>(FindFunction(module, name));
  return *out != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

RUBATO_SOFTGPU_API cuLibraryGetKernelCount(unsigned* count, CUlibrary library) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  CUmodule module = reinterpret_cast<CUmodule>(library);
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(module)) return CUDA_ERROR_INVALID_HANDLE;
  *count = static_cast<unsigned>(module->functions.size());
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuLibraryGetModule(CUmodule* out, CUlibrary library) {
  Entry e;
  if (e.failed()) return e.result();
  CUmodule module = reinterpret_cast<CUmodule>(library);
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(module) || !module->library) return CUDA_ERROR_INVALID_HANDLE;
  *out = module;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuLibraryGetGlobal(CUdeviceptr* address, size_t* bytes, CUlibrary library,
                                      const char* name) {
  return cuModuleGetGlobal_v2(address, bytes, reinterpret_cast<CUmodule>(library), name);
}

RUBATO_SOFTGPU_API cuKernelGetFunction(CUfunction* out, CUkernel kernel) {
  Entry e;
  if (e.failed()) return e.result();
  CUfunction function = reinterpret_cast<CUfunction>(kernel);
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  *out = function;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuKernelGetLibrary(CUlibrary* out, CUkernel kernel) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  CUfunction function = reinterpret_cast<CUfunction>(kernel);
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(function) || !function->module->library) return CUDA_ERROR_INVALID_HANDLE;
  *out = reinterpret_cast<CUlibrary>(function->module);
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuFuncGetName(const char** out, CUfunction function) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  *out = function->text->name.c_str();
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuKernelGetName(const char** out, CUkernel kernel) {
  return cuFuncGetName(out, reinterpret_cast<CUfunction>(kernel));
}

RUBATO_SOFTGPU_API cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset,
                                      size_t* bytes) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  if (offset == nullptr || index >= function->text->params.size()) return CUDA_ERROR_INVALID_VALUE;
  *offset = function->text->params[index].offset;
  if (bytes != nullptr) *bytes = function->text->params[index].bytes;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t* offset,
                                        size_t* bytes) {
  return cuFuncGetParamInfo(reinterpret_cast<CUfunction>(kernel), index, offset, bytes);
}

RUBATO_SOFTGPU_API cuFuncGetModule(CUmodule* out, CUfunction function) {
  Entry e;
  if (e.failed()) return e.result();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  *out = function->module;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuFuncIsLoaded(CUfunctionLoadingState* state, CUfunction function) {
  Entry e;
  if (e.failed()) return e.result();
  if (state == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  *state = function->loaded ? CU_FUNCTION_LOADING_STATE_LOADED : CU_FUNCTION_LOADING_STATE_UNLOADED;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuFuncLoad(CUfunction function) {
  Entry e;
  if (e.failed()) return e.result();
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  if (!function->loaded && e.driver().settings.lazy_lock) {
    if (CUresult r = WaitForContext(e, e.context())) return r;
    if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  }
  function->loaded = true;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuFuncGetAttribute(int* value, CUfunction_attribute attribute,
                                      CUfunction function) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = 1024;
      break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      *value = static_cast<int>(function->text->shared_bytes);
      break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      *value = static_cast<int>(function->text->registers);
      break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
      *value = 60;
      break;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      *value = 90;
      break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = function->max_dynamic_shared;
      break;
    default: {
      auto it = function->attributes.find(attribute);
      *value = it == function->attributes.end() ? 0 : it->second;
    }
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute,
                                      int value) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    if (value < 0 || value > 227 * 1024) return CUDA_ERROR_INVALID_VALUE;
    function->max_dynamic_shared = value;
  } else {
    function->attributes[attribute] = value;
  }
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel kernel,
                                        CUdevice) {
  return cuFuncGetAttribute(value, attribute, reinterpret_cast<CUfunction>(kernel));
}

RUBATO_SOFTGPU_API cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel,
                                        CUdevice) {
  return cuFuncSetAttribute(reinterpret_cast<CUfunction>(kernel), attribute, value);
}

RUBATO_SOFTGPU_API cuFuncSetCacheConfig(CUfunction function, CUfunc_cache) {
  Entry e(Entry::Need::kInit);
  if (e.failed()) return e.result();
  return Is(function) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

RUBATO_SOFTGPU_API cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache config, CUdevice) {
  return cuFuncSetCacheConfig(reinterpret_cast<CUfunction>(kernel), config);
}

RUBATO_SOFTGPU_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, CUfunction function, int threads, size_t shared_bytes, unsigned) {
  Entry e;
  if (e.failed()) return e.result();
  if (blocks == nullptr || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  *blocks =
      static_cast<int>(BlocksPerSm(e, function, static_cast<unsigned>(threads), shared_bytes));
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function,
                                                               int threads, size_t shared_bytes) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads,
                                                              shared_bytes, 0);
}

RUBATO_SOFTGPU_API cuOccupancyMaxPotentialBlockSizeWithFlags(int* min_grid, int* block,
                                                             CUfunction function,
                                                             CUoccupancyB2DSize shared_of,
                                                             size_t shared_bytes, int limit,
                                                             unsigned) {
  Entry e;
  if (e.failed()) return e.result();
  if (min_grid == nullptr || block == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  uint64_t best = 0;
  const int most = limit > 0 ? std::min(limit, 1024) : 1024;
  for (int threads = most / 32 * 32; threads >= 32; threads -= 32) {
    const size_t shared = shared_of != nullptr ? shared_of(threads) : shared_bytes;
    const uint32_t per_sm = BlocksPerSm(e, function, static_cast<unsigned>(threads), shared);
    if (uint64_t{per_sm} * static_cast<unsigned>(threads) > best) {
      best = uint64_t{per_sm} * static_cast<unsigned>(threads);
      *block = threads;
      *min_grid = static_cast<int>(per_sm * InfoOf(e).sm_count);
    }
  }
  return best > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

RUBATO_SOFTGPU_API cuOccupancyMaxPotentialBlockSize(int* min_grid, int* block, CUfunction function,
                                                    CUoccupancyB2DSize shared_of,
                                                    size_t shared_bytes, int limit) {
  return cuOccupancyMaxPotentialBlockSizeWithFlags(min_grid, block, function, shared_of,
                                                   shared_bytes, limit, 0);
}

RUBATO_SOFTGPU_API cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, CUfunction function,
                                                           int blocks, int) {
  Entry e;
  if (e.failed()) return e.result();
  if (bytes == nullptr || blocks <= 0) return CUDA_ERROR_INVALID_VALUE;
  if (!Is(function)) return CUDA_ERROR_INVALID_HANDLE;
  const uint32_t share = InfoOf(e).shared_bytes_per_sm / static_cast<uint32_t>(blocks);
  *bytes = share > function->text->shared_bytes ? share - function->text->shared_bytes : 0;
  return CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz,
                                  unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
                                  CUstream stream, void** params, void** extra) {
  const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  return Launch(function, grid, block, shared_bytes, stream, params, extra, nullptr, 0, false);
}

RUBATO_SOFTGPU_API cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function,
                                    void** params, void** extra) {
  if (config == nullptr || (config->numAttrs > 0 && config->attrs == nullptr))
    return CUDA_ERROR_INVALID_VALUE;
  const unsigned grid[3] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  const unsigned block[3] = {config->blockDimX, config->blockDimY, config->blockDimZ};
  return Launch(function, grid, block, config->sharedMemBytes, config->hStream, params, extra,
                config->attrs, config->numAttrs, false);
}

RUBATO_SOFTGPU_API cuLaunchCooperativeKernel(CUfunction function, unsigned gx, unsigned gy,
                                             unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                             unsigned shared_bytes, CUstream stream,
                                             void** params) {
  const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  return Launch(function, grid, block, shared_bytes, stream, params, nullptr, nullptr, 0, true);
}
