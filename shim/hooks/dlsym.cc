// The exported dlsym and dlvsym: a question to lookup.cc, then the answer or a jump to the next.
//
// In assembler because of the jump: RTLD_NEXT and RTLD_DEFAULT are resolved for whoever called,
// which the C library reads off the return address; a call from here would make us the caller. The
// argument registers are kept over the question, and the stack is as it was before the jump.

// clang-format off
#if defined(__x86_64__)

#define RUBATO_LOOKUP(name, answer, next)       \
  asm(".pushsection .text\n"                    \
      ".globl " name "\n"                       \
      ".type " name ", @function\n"             \
      ".balign 16\n"                            \
      name ":\n"                                \
      ".cfi_startproc\n"                        \
      "endbr64\n"                               \
      "pushq %rdi\n"                            \
      ".cfi_adjust_cfa_offset 8\n"              \
      "pushq %rsi\n"                            \
      ".cfi_adjust_cfa_offset 8\n"              \
      "pushq %rdx\n"                            \
      ".cfi_adjust_cfa_offset 8\n"              \
      "call " answer "\n"                       \
      "popq %rdx\n"                             \
      ".cfi_adjust_cfa_offset -8\n"             \
      "popq %rsi\n"                             \
      ".cfi_adjust_cfa_offset -8\n"             \
      "popq %rdi\n"                             \
      ".cfi_adjust_cfa_offset -8\n"             \
      "testq %rax, %rax\n"                      \
      "jz 1f\n"                                 \
      "cmpq $1, %rax\n"                         \
      "jne 2f\n"                                \
      "xorl %eax, %eax\n"                       \
      "2: ret\n"                                \
      "1: jmpq *" next "(%rip)\n"               \
      ".cfi_endproc\n"                          \
      ".size " name ", . - " name "\n"          \
      ".popsection\n")

#elif defined(__aarch64__)

#define RUBATO_LOOKUP(name, answer, next)       \
  asm(".pushsection .text\n"                    \
      ".globl " name "\n"                       \
      ".type " name ", %function\n"             \
      ".balign 16\n"                            \
      name ":\n"                                \
      ".cfi_startproc\n"                        \
      "hint #34\n"                              \
      "stp x29, x30, [sp, #-48]!\n"             \
      ".cfi_def_cfa_offset 48\n"                \
      ".cfi_offset x29, -48\n"                  \
      ".cfi_offset x30, -40\n"                  \
      "mov x29, sp\n"                           \
      "stp x0, x1, [sp, #16]\n"                 \
      "str x2, [sp, #32]\n"                     \
      "bl " answer "\n"                         \
      "mov x16, x0\n"                           \
      "ldr x2, [sp, #32]\n"                     \
      "ldp x0, x1, [sp, #16]\n"                 \
      "ldp x29, x30, [sp], #48\n"               \
      ".cfi_restore x29\n"                      \
      ".cfi_restore x30\n"                      \
      ".cfi_def_cfa_offset 0\n"                 \
      "cbz x16, 1f\n"                           \
      "cmp x16, #1\n"                           \
      "csel x0, xzr, x16, eq\n"                 \
      "ret\n"                                   \
      "1: adrp x16, " next "\n"                 \
      "ldr x16, [x16, #:lo12:" next "]\n"       \
      "br x16\n"                                \
      ".cfi_endproc\n"                          \
      ".size " name ", . - " name "\n"          \
      ".popsection\n")

#else
#error "The look-up routines are written for x86-64 and aarch64."
#endif
// clang-format on

RUBATO_LOOKUP("dlsym", "rubato_answer_dlsym", "rubato_next_dlsym");
RUBATO_LOOKUP("dlvsym", "rubato_answer_dlvsym", "rubato_next_dlvsym");
