// cuGetProcAddress and the texts of errors.
#include <array>
#include <cctype>
#include <cstring>
#include <string>

#include "softgpu/cuda/driver.h"

// References by the symbols' own names, whatever the header's macros make of them. The library is
// linked so that they bind to itself, not to an interposer.
#define ENTRY(name, symbol, version) extern "C" const char rubato_ref_##symbol[] __asm__(#symbol);
#define ENTRY_PER_THREAD(name, symbol, version) ENTRY(name, symbol, version)
#include "softgpu/cuda/entry_points.def"
#undef ENTRY
#undef ENTRY_PER_THREAD

namespace {

struct EntryPoint {
  const char* name;
  const char* symbol;
  const void* address;
  int version;
  bool per_thread;
};

const EntryPoint kEntryPoints[] = {
#define ENTRY(name, symbol, version) {#name, #symbol, rubato_ref_##symbol, version, false},
#define ENTRY_PER_THREAD(name, symbol, version) \
  {#name, #symbol, rubato_ref_##symbol, version, true},
#include "softgpu/cuda/entry_points.def"
#undef ENTRY
#undef ENTRY_PER_THREAD
};

struct ErrorText {
  int number;
  const char* name;
};

const ErrorText kErrors[] = {
    {0, "CUDA_SUCCESS"},
#define ERROR(name, number) {number, #name},
#include "softgpu/cuda/errors.def"
#undef ERROR
};

const ErrorText* FindError(CUresult error) {
  for (const ErrorText& text : kErrors) {
    if (text.number == static_cast<int>(error)) return &text;
  }
  return nullptr;
}

}  // namespace

RUBATO_SOFTGPU_API cuGetProcAddress_v2(const char* name, void** out, int version, cuuint64_t flags,
                                       CUdriverProcAddressQueryResult* status) {
  const cuuint64_t known =
      CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
  if (name == nullptr || out == nullptr || (flags & ~known) != 0) return CUDA_ERROR_INVALID_VALUE;
  *out = nullptr;
  const bool per_thread = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
  const EntryPoint* best = nullptr;
  bool name_known = false;
  for (const EntryPoint& entry : kEntryPoints) {
    if (strcmp(entry.name, name) != 0) continue;
    name_known = true;
    if (entry.version > version || (entry.per_thread && !per_thread)) continue;
    // A per-thread form is preferred where it was asked for, then the newest.
    if (best == nullptr || entry.per_thread > best->per_thread ||
        (entry.per_thread == best->per_thread && entry.version >= best->version)) {
      best = &entry;
    }
  }
  if (best == nullptr) {
    if (status != nullptr) {
      *status = name_known ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                           : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    }
    return CUDA_ERROR_NOT_FOUND;
  }
  *out = const_cast<void*>(best->address);
  if (status != nullptr) *status = CU_GET_PROC_ADDRESS_SUCCESS;
  return CUDA_SUCCESS;
}

#undef cuGetProcAddress
RUBATO_SOFTGPU_API cuGetProcAddress(const char* name, void** out, int version, cuuint64_t flags) {
  return cuGetProcAddress_v2(name, out, version, flags, nullptr);
}

RUBATO_SOFTGPU_API cuGetErrorName(CUresult error, const char** out) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const ErrorText* text = FindError(error);
  *out = text == nullptr ? nullptr : text->name;
  return text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

RUBATO_SOFTGPU_API cuGetErrorString(CUresult error, const char** out) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const ErrorText* text = FindError(error);
  *out = nullptr;
  if (text == nullptr) return CUDA_ERROR_INVALID_VALUE;
  // The name in words: "CUDA_ERROR_OUT_OF_MEMORY" says "out of memory".
  static const auto* const kWords = [] {
    auto* words = new std::array<std::string, std::size(kErrors)>;
    for (size_t i = 0; i < words->size(); ++i) {
      const char* name = kErrors[i].name;
      if (strncmp(name, "CUDA_ERROR_", 11) == 0) name += 11;
      for (; *name != '\0'; ++name) {
        (*words)[i] +=
            *name == '_' ? ' ' : static_cast<char>(std::tolower(static_cast<unsigned char>(*name)));
      }
    }
    (*words)[0] = "no error";
    return words;
  }();
  *out = (*kWords)[static_cast<size_t>(text - kErrors)].c_str();
  return CUDA_SUCCESS;
}
