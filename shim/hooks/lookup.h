// Answers to the program's own look-ups: dlsym, dlvsym, and the vendors' GetProcAddress.
//
// One rule for all: look-ups are answered by the real function first, and only an answer that *is*
// the real address of a hooked call is replaced by our entry for exactly that call. So a library
// that lacks a symbol still lacks it, another interposer's wrapper stays the answer where it was
// the answer, and versions and per-thread-stream variants choose themselves.
//
// dlsym and dlvsym themselves are small assembler routines (dlsym.cc): where we have no answer,
// they jump to the next dlsym with the program's registers and return address, since RTLD_NEXT and
// RTLD_DEFAULT are defined by who calls.
#pragma once

namespace rubato::shim {

// dlsym of whoever comes after us, without our answers.
void* NextSymbol(void* handle, const char* name);

// Given what the vendor's GetProcAddress answered for `symbol`: our entry, or `real` itself. A
// function that neither list has is counted.
void* Substitute(const char* symbol, void* real);

}  // namespace rubato::shim
