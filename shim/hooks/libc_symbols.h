// Finds a function of the C library without asking the C library's look-up functions.
//
// We export dlsym and dlvsym, so any reference of ours to those names would find ourselves: the
// loader searches preloaded libraries first, and an unversioned definition satisfies a versioned
// reference. So the way to the real ones starts by reading the C library's own symbol table.
#pragma once

namespace rubato::shim {

// The address of `name` in libc.so.6 (or libdl.so.2, where older ones keep dlsym); null if it has
// none. Walks the loaded objects: once per process, not on any hot path.
void* LibcSymbol(const char* name);

}  // namespace rubato::shim
