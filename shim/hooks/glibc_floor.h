// Binds what the shims import to versions that glibc 2.28 has. Included before everything else in
// every source of a preloaded library (cmake/shim_flags.cmake).
//
// A program whose C library is older than a version we ask for would not start at all. Symbols that
// newer libraries moved to another version are listed here; new system calls of the core go through
// syscall(2). tests/abi reads the linked file.
#pragma once

#if defined(__x86_64__)
#define RUBATO_OLDEST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define RUBATO_OLDEST_GLIBC "GLIBC_2.17"
#endif

// Moved from libdl into libc, under a new version, by 2.34.
__asm__(".symver dlopen, dlopen@" RUBATO_OLDEST_GLIBC);
__asm__(".symver dlerror, dlerror@" RUBATO_OLDEST_GLIBC);
__asm__(".symver dladdr, dladdr@" RUBATO_OLDEST_GLIBC);
