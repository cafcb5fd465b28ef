#include "base/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

namespace rubato::base {
namespace {

TEST(SharedMemoryTest, ASizeThatIsSealedStays) {
  auto fd = MakeMemfd("x", 8192);
  ASSERT_TRUE(fd.ok());
  EXPECT_FALSE(SizeIsSealed(fd->get(), 8192));
  ASSERT_TRUE(SealSize(fd->get()).ok());
  EXPECT_TRUE(SizeIsSealed(fd->get(), 8192));
  EXPECT_FALSE(SizeIsSealed(fd->get(), 4096));
  EXPECT_NE(::ftruncate(fd->get(), 0), 0);
  EXPECT_NE(::ftruncate(fd->get(), 16384), 0);
  EXPECT_TRUE(Mapping::Writable(fd->get(), 8192).ok()) << "its writer may still come";
}

TEST(SharedMemoryTest, WritersAreShutOutButThoseWhoAreIn) {
  auto fd = MakeMemfd("x", 4096);
  ASSERT_TRUE(fd.ok());
  auto inside = Mapping::Writable(fd->get(), 4096);
  ASSERT_TRUE(inside.ok());
  ASSERT_TRUE(SealSize(fd->get()).ok());
  ASSERT_TRUE(SealAgainstWriters(fd->get()).ok());
  EXPECT_TRUE(WritersAreSealed(fd->get()));
  EXPECT_FALSE(Mapping::Writable(fd->get(), 4096).ok());
  auto reader = Mapping::ReadOnly(fd->get(), 4096);
  ASSERT_TRUE(reader.ok());
  *inside->as<int>() = 42;
  EXPECT_EQ(*reader->as<int>(), 42);
  EXPECT_NE(::mprotect(reader->data(), 4096, PROT_READ | PROT_WRITE), 0);
}

TEST(SharedMemoryTest, OtherDescriptorsAreNoRegions) {
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_FALSE(SizeIsSealed(null.get(), 0));
  EXPECT_FALSE(WritersAreSealed(null.get()));
  EXPECT_FALSE(SizeIsSealed(-1, 0));
}

TEST(SharedMemoryTest, MappingsMove) {
  auto fd = MakeMemfd("x", 4096);
  auto one = *Mapping::Writable(fd->get(), 4096);
  *one.as<int>() = 7;
  Mapping two = std::move(one);
  EXPECT_FALSE(one.valid());  // NOLINT: what a move leaves is what is tested.
  EXPECT_EQ(*two.as<int>(), 7);
  two = Mapping();
  EXPECT_FALSE(two.valid());
}

}  // namespace
}  // namespace rubato::base
