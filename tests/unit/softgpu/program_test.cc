// Reading device programs: what their comment lines say, and what is no program.
#include "softgpu/client/program.h"

#include <gtest/gtest.h>

#include <string>

#include "softgpu/programs/programs.h"

namespace rubato::softgpu {
namespace {

const KernelText* Find(const ProgramText& program, const std::string& name) {
  for (const KernelText& kernel : program.kernels) {
    if (kernel.name == name) return &kernel;
  }
  return nullptr;
}

TEST(ProgramTest, ReadsTheProgramsOfTheHouse) {
  ProgramText program;
  ASSERT_TRUE(ParseProgram(kProgram, &program));
  EXPECT_EQ(program.kernels.size(), 6u);
  const KernelText* hash = Find(program, "rb_hash");
  ASSERT_NE(hash, nullptr);
  EXPECT_EQ(hash->effect, wire::Effect::kHash);
  ASSERT_EQ(hash->params.size(), 5u);
  EXPECT_EQ(hash->params[3].offset, 20u);
  EXPECT_EQ(hash->params[3].bytes, 4u);
  EXPECT_EQ(hash->params[4].offset, 24u);
  EXPECT_EQ(hash->param_bytes, 32u);
  EXPECT_EQ(hash->registers, 24u);
  uint64_t out = 11, in = 12, ns = 15;
  uint32_t count = 13, key = 0xFFFFFFFF;
  void* values[] = {&out, &in, &count, &key, &ns};
  EXPECT_EQ(hash->Value(hash->out, values), 11u);
  EXPECT_EQ(hash->Value(hash->key, values), 0xFFFFFFFFu);
  EXPECT_EQ(hash->Value(hash->block_ns, values), 15u);
}

TEST(ProgramTest, TakesLiteralsAlignedParametersAndGlobals) {
  ProgramText program;
  ASSERT_TRUE(ParseProgram(R"(
.version 6.0
.target sm_60
//softgpu global=table bytes=4096
//softgpu kernel=k op=store out=p2 key=0x10 block_ns=250 smem=1024 watts=2.5
.visible .entry k(.param .u8 a, .param .align 16 .b8 b[24], .param .u64 .ptr .global .align 4 c) { ret; }
.entry plain() { ret; }
)",
                           &program));
  ASSERT_EQ(program.kernels.size(), 2u);
  const KernelText& k = program.kernels[0];
  ASSERT_EQ(k.params.size(), 3u);
  EXPECT_EQ(k.params[1].offset, 16u);
  EXPECT_EQ(k.params[1].bytes, 24u);
  EXPECT_EQ(k.params[2].offset, 40u);
  EXPECT_EQ(k.shared_bytes, 1024u);
  EXPECT_FLOAT_EQ(k.watts, 2.5f);
  uint64_t pointer = 77;
  void* values[] = {nullptr, nullptr, &pointer};
  EXPECT_EQ(k.Value(k.out, values), 77u);
  EXPECT_EQ(k.Value(k.key, values), 16u);
  EXPECT_EQ(k.Value(k.block_ns, values), 250u);
  EXPECT_EQ(program.kernels[1].effect, wire::Effect::kNone);
  ASSERT_EQ(program.globals.size(), 1u);
  EXPECT_EQ(program.globals[0].bytes, 4096u);
}

TEST(ProgramTest, RefusesWhatIsNoPtx) {
  ProgramText program;
  EXPECT_FALSE(ParseProgram("", &program));
  EXPECT_FALSE(ParseProgram("int main() {}", &program));
  EXPECT_FALSE(ParseProgram(".version 6.0\n.target sm_60\n.entry k(.param .u64 a", &program));
}

TEST(ProgramTest, AnOperandBeyondTheParametersIsZero) {
  ProgramText program;
  ASSERT_TRUE(ParseProgram(
      ".version 6.0\n.target sm_60\n//softgpu kernel=k block_ns=p9\n.entry k() { ret; }",
      &program));
  EXPECT_EQ(program.kernels[0].Value(program.kernels[0].block_ns, nullptr), 0u);
}

}  // namespace
}  // namespace rubato::softgpu
