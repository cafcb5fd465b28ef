// Device memory and address spaces: what is taken, what an address means, what faults.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "softgpu/device/address_space.h"
#include "softgpu/device/effects.h"
#include "softgpu/device/vram.h"

namespace rubato::softgpu {
namespace {

constexpr uint64_t kWindow = 0x7000'0000'0000;

TEST(VramTest, SpansNeverOverlapAndComeBackWhole) {
  Vram vram(1 << 20);
  ASSERT_TRUE(vram.ok());
  std::map<uint64_t, uint64_t> taken;
  std::mt19937 random(7);
  for (int i = 0; i < 5000; ++i) {
    if (random() % 2 == 0 && !taken.empty()) {
      auto it = taken.begin();
      std::advance(it, random() % taken.size());
      EXPECT_TRUE(vram.Free(it->first));
      taken.erase(it);
      continue;
    }
    const uint64_t bytes = 1 + random() % 40'000, alignment = 512u << random() % 5;
    const auto offset = vram.Allocate(bytes, alignment);
    if (!offset.has_value()) continue;
    EXPECT_EQ(*offset % alignment, 0u);
    EXPECT_GE(vram.SizeOf(*offset), bytes);
    auto next = taken.lower_bound(*offset);
    const uint64_t after = next == taken.end() ? vram.total_bytes() : next->first;
    EXPECT_LE(*offset + bytes, after);
    const bool first = next == taken.begin();
    EXPECT_LE(first ? 0 : std::prev(next)->first + std::prev(next)->second, *offset);
    taken[*offset] = bytes;
  }
  for (auto [offset, bytes] : taken) EXPECT_TRUE(vram.Free(offset));
  EXPECT_EQ(vram.free_bytes(), vram.total_bytes());
  EXPECT_TRUE(vram.Allocate(1 << 20, 512).has_value());
  EXPECT_FALSE(vram.Allocate(1, 512).has_value());
}

TEST(VramTest, SharedSpansLiveUntilTheirLastOwner) {
  Vram vram(1 << 20);
  const uint64_t offset = *vram.Allocate(4096, 512);
  EXPECT_EQ(vram.Share(offset), 4096u);
  EXPECT_EQ(vram.Share(offset + 512), 0u);
  vram.base()[offset] = 9;
  EXPECT_TRUE(vram.Free(offset));
  EXPECT_EQ(vram.base()[offset], 9);
  EXPECT_TRUE(vram.Free(offset));
  EXPECT_FALSE(vram.Free(offset));
  EXPECT_EQ(vram.free_bytes(), vram.total_bytes());
  EXPECT_EQ(vram.base()[offset], 0);  // Its pages went back.
}

class AddressSpaceTest : public testing::Test {
 protected:
  AddressSpaceTest() : vram_(1 << 20), space_(getpid()) { space_.Reserve(kWindow, 1 << 20); }
  Vram vram_;
  AddressSpace space_;
};

TEST_F(AddressSpaceTest, DeviceAddressesFaultUnlessMapped) {
  space_.Map(kWindow + 4096, 4096, vram_.base() + 8192);
  uint32_t word = 5, back = 0;
  EXPECT_TRUE(space_.Write(kWindow + 4096, &word, 4));
  EXPECT_EQ(vram_.base()[8192], 5);
  EXPECT_TRUE(space_.Read(kWindow + 4096, &back, 4));
  EXPECT_EQ(back, 5u);
  EXPECT_FALSE(space_.Read(kWindow, &back, 4));
  EXPECT_FALSE(space_.Write(kWindow + 8190, &word, 4));  // Over the end.
  EXPECT_FALSE(space_.StoreWord(kWindow + 8192, 1, 32));
  EXPECT_EQ(space_.Local(kWindow + 4096, 4097), nullptr);
  space_.Unmap(kWindow + 4096);
  EXPECT_FALSE(space_.Read(kWindow + 4096, &back, 4));
}

TEST_F(AddressSpaceTest, CopiesCrossEveryKindOfMemory) {
  space_.Map(kWindow, 4096, vram_.base());
  space_.Map(kWindow + 4096, 4096, vram_.base() + 65536);
  const int fd = memfd_create("host", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(fd, 8192), 0);
  auto* shared =
      static_cast<unsigned char*>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_TRUE(space_.MapShared(reinterpret_cast<uint64_t>(shared) + 100, 4000, fd, 100));
  close(fd);
  std::vector<unsigned char> own(3000), back(3000);
  for (size_t i = 0; i < own.size(); ++i) own[i] = static_cast<unsigned char>(i * 7);
  const auto address = [](void* p) { return reinterpret_cast<uint64_t>(p); };
  // Private -> over the seam of two device ranges -> shared -> private.
  EXPECT_TRUE(space_.Copy(kWindow + 2500, address(own.data()), 3000));
  EXPECT_TRUE(space_.Copy(address(shared) + 200, kWindow + 2500, 3000));
  EXPECT_TRUE(space_.Copy(address(back.data()), address(shared) + 200, 3000));
  EXPECT_EQ(own, back);
  EXPECT_EQ(std::memcmp(shared + 200, own.data(), 3000), 0);
  EXPECT_FALSE(space_.Copy(kWindow, 16, 64));  // Nobody's memory.
}

TEST_F(AddressSpaceTest, EffectsStayWithinTheirBounds) {
  space_.Map(kWindow, 4096, vram_.base());
  wire::KernelBody kernel{};
  kernel.effect = wire::Effect::kHash;
  kernel.args[0] = kernel.args[1] = kWindow;
  kernel.args[2] = 1024;
  EXPECT_TRUE(Apply(kernel, &space_));
  kernel.args[2] = 1025;
  EXPECT_FALSE(Apply(kernel, &space_));
  kernel.args[2] = UINT64_MAX;
  EXPECT_FALSE(Apply(kernel, &space_));
  wire::CopyBody copy{};
  copy.dst = kWindow;
  copy.width = 64;
  copy.height = copy.depth = 1;
  copy.inline_bytes = 32;  // Less than it says it has.
  const unsigned char data[32] = {};
  EXPECT_FALSE(Apply(copy, data, &space_));
  wire::FillBody fill{kWindow, 1024, 1, 4096, 0x01020304, 4};
  EXPECT_TRUE(Apply(fill, &space_));
  EXPECT_EQ(vram_.base()[4095], 1);
  fill.element_bytes = 3;
  EXPECT_FALSE(Apply(fill, &space_));
}

TEST_F(AddressSpaceTest, WordsCompareAsStreamWaitsDo) {
  space_.Map(kWindow, 4096, vram_.base());
  const auto holds = [&](uint64_t have, uint64_t want, uint32_t bits, uint32_t compare) {
    EXPECT_TRUE(space_.StoreWord(kWindow, have, bits));
    bool fault = false;
    const bool result = Satisfied({kWindow, want, bits, compare}, space_, &fault);
    EXPECT_FALSE(fault);
    return result;
  };
  EXPECT_TRUE(holds(5, 5, 32, 0));
  EXPECT_TRUE(holds(2, 0xFFFFFFFF, 32, 0));  // Cyclic: 2 lies after -1.
  EXPECT_FALSE(holds(0xFFFFFFFF, 2, 32, 0));
  EXPECT_TRUE(holds(7, 7, 64, 1));
  EXPECT_FALSE(holds(7, 8, 64, 1));
  EXPECT_TRUE(holds(6, 2, 32, 2));
  EXPECT_FALSE(holds(4, 2, 32, 2));
  EXPECT_TRUE(holds(0, 1, 32, 3));
  EXPECT_FALSE(holds(0xFFFFFFFE, 1, 32, 3));
  bool fault = false;
  EXPECT_TRUE(Satisfied({kWindow + 8192, 0, 32, 0}, space_, &fault));
  EXPECT_TRUE(fault);
}

}  // namespace
}  // namespace rubato::softgpu
