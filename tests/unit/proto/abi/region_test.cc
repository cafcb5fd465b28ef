#include "proto/abi/region.h"

#include <gtest/gtest.h>

namespace rubato::abi {
namespace {

RegionHeader Header() {
  RegionHeader header{};
  header.magic = kMagic;
  header.kind = static_cast<uint32_t>(RegionKind::kSlot);
  header.major = kMajor;
  header.size_bytes = 4096;
  return header;
}

TEST(RegionTest, Accepted) {
  EXPECT_TRUE(RegionAccepted(Header(), RegionKind::kSlot, 4096, 4096));
  EXPECT_TRUE(RegionAccepted(Header(), RegionKind::kSlot, 4000, 8192));
  RegionHeader newer = Header();
  newer.minor = kMinor + 9;
  EXPECT_TRUE(RegionAccepted(newer, RegionKind::kSlot, 4096, 4096));
}

TEST(RegionTest, Refused) {
  EXPECT_FALSE(RegionAccepted(Header(), RegionKind::kDevice, 4096, 4096)) << "another kind";
  EXPECT_FALSE(RegionAccepted(Header(), RegionKind::kSlot, 4097, 8192))
      << "smaller than the struct";
  EXPECT_FALSE(RegionAccepted(Header(), RegionKind::kSlot, 4000, 4095))
      << "says more than is there";
  RegionHeader header = Header();
  header.magic ^= 1;
  EXPECT_FALSE(RegionAccepted(header, RegionKind::kSlot, 4096, 4096));
  header = Header();
  header.major = kMajor + 1;
  EXPECT_FALSE(RegionAccepted(header, RegionKind::kSlot, 4096, 4096));
}

}  // namespace
}  // namespace rubato::abi
