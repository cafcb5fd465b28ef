#include "agent/install/content_hash.h"

#include <gtest/gtest.h>

namespace rubato::agent {
namespace {

TEST(ContentHashTest, IsSha256AndPiecesMakeTheSameSum) {
  // The example of FIPS 180-4.
  ContentHash whole;
  whole.Add("abc");
  EXPECT_EQ(whole.Hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(whole.Hex(), "") << "it has ended";
  ContentHash pieces;
  pieces.Add("a");
  pieces.Add("");
  pieces.Add("bc");
  EXPECT_EQ(pieces.Hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace rubato::agent
