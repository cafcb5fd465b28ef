// How a row of hooks.def becomes the entry points of one library.
//
// A row names its CUDA and its HIP side as (FAMILY, name). Before it includes the table, a file
// defines ENTRY(name, per_thread, kind, params, args, action) and ENTRY_BY_HAND(name, kind, params)
// and gets one of them for each exported symbol of the vendor chosen by RUBATO_VENDOR_CUDA or
// RUBATO_VENDOR_HIP. Read by the C++ compiler and, for version scripts and lists, by the bare
// preprocessor: nothing but macros here.
#ifndef RUBATO_SHIM_HOOKS_FAMILIES_H_
#define RUBATO_SHIM_HOOKS_FAMILIES_H_

#if defined(RUBATO_VENDOR_CUDA)
#define HOOK(cuda, hip, ...) RUBATO_ROW(RUBATO_SIDE cuda, __VA_ARGS__)
#define HOOK_BY_HAND(cuda, hip, ...) RUBATO_HAND_ROW(RUBATO_HAND_SIDE cuda, __VA_ARGS__)
#elif defined(RUBATO_VENDOR_HIP)
#define HOOK(cuda, hip, ...) RUBATO_ROW(RUBATO_SIDE hip, __VA_ARGS__)
#define HOOK_BY_HAND(cuda, hip, ...) RUBATO_HAND_ROW(RUBATO_HAND_SIDE hip, __VA_ARGS__)
#endif

#define RUBATO_SIDE(family, name) RUBATO_FAMILY_##family, name
#define RUBATO_HAND_SIDE(family, name) RUBATO_HAND_##family, name
#define RUBATO_ROW(...) RUBATO_APPLY(__VA_ARGS__)
#define RUBATO_HAND_ROW(...) RUBATO_APPLY(__VA_ARGS__)
#define RUBATO_APPLY(family, name, ...) family(name, __VA_ARGS__)

// The call does not exist on this side.
#define RUBATO_FAMILY_NONE(name, ...)
// One symbol; its default stream is the legacy one.
#define RUBATO_FAMILY_ONE(name, ...) ENTRY(name, 0, __VA_ARGS__)
// The same call under its first and its second name.
#define RUBATO_FAMILY_V2(name, ...) ENTRY(name, 0, __VA_ARGS__) ENTRY(name##_v2, 0, __VA_ARGS__)
// A twin whose default stream is the per-thread one: CUDA's for calls that take a stream, CUDA's
// for calls that take none, HIP's for both.
#define RUBATO_FAMILY_PTSZ(name, ...) ENTRY(name, 0, __VA_ARGS__) ENTRY(name##_ptsz, 1, __VA_ARGS__)
#define RUBATO_FAMILY_PTDS(name, ...) ENTRY(name, 0, __VA_ARGS__) ENTRY(name##_ptds, 1, __VA_ARGS__)
#define RUBATO_FAMILY_SPT(name, ...) ENTRY(name, 0, __VA_ARGS__) ENTRY(name##_spt, 1, __VA_ARGS__)

#define RUBATO_HAND_NONE(name, ...)
#define RUBATO_HAND_ONE(name, ...) ENTRY_BY_HAND(name, __VA_ARGS__)
#define RUBATO_HAND_V2(name, ...) \
  ENTRY_BY_HAND(name, __VA_ARGS__) ENTRY_BY_HAND(name##_v2, __VA_ARGS__)

#endif  // RUBATO_SHIM_HOOKS_FAMILIES_H_
