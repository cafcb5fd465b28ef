// Programs as the software GPU reads them: PTX text with comment lines that say what a kernel costs
// and does.
//
//   //softgpu kernel=NAME [op=none|hash|copy|axpy|store|add|wait] [out=pI] [in=pI] [count=pI]
//   [key=pI]
//             [block_ns=N|pI] [regs=N] [smem=N] [watts=X] [bytes_per_ns=X]
//   //softgpu global=NAME bytes=N
//
// pI is the kernel's I-th parameter. To a real driver these are comments. An entry without such a
// line costs 5 us a block and does nothing. Pure; the text comes from the program that loads it and
// is only ever parsed here.
#ifndef SOFTGPU_CLIENT_PROGRAM_H_
#define SOFTGPU_CLIENT_PROGRAM_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "softgpu/device/wire.h"

namespace rubato::softgpu {

// A number, or the value of a parameter at launch.
struct Operand {
  int param = -1;
  int64_t value = 0;
};

struct KernelParam {
  size_t offset = 0;
  size_t bytes = 0;
};

struct KernelText {
  std::string name;
  std::vector<KernelParam> params;
  size_t param_bytes = 0;
  wire::Effect effect = wire::Effect::kNone;
  Operand out, in, count, key;
  Operand block_ns{-1, 5'000};
  uint32_t registers = 16;
  uint32_t shared_bytes = 0;
  float watts = 0;
  float bytes_per_ns = 0;

  // The operand's value given a pointer to each parameter's value.
  uint64_t Value(const Operand& operand, void* const* values) const;
};

struct GlobalText {
  std::string name;
  uint64_t bytes = 0;
};

struct ProgramText {
  std::vector<KernelText> kernels;
  std::vector<GlobalText> globals;
};

// False if the text is no PTX.
bool ParseProgram(std::string_view text, ProgramText* out);

}  // namespace rubato::softgpu

#endif  // SOFTGPU_CLIENT_PROGRAM_H_
