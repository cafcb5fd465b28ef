#include "agent/install/sha256.h"

#include <gtest/gtest.h>

namespace rubato::agent {
namespace {

std::string Sum(const std::string& text) {
  Sha256 sum;
  sum.Add(text);
  return sum.Hex();
}

// The examples of FIPS 180-4 and its test vectors.
TEST(Sha256Test, KnownSums) {
  EXPECT_EQ(Sum(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sum("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sum("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sum(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, PiecesMakeTheSameSum) {
  const std::string text(1000, 'x');
  for (const size_t piece : {1u, 55u, 56u, 63u, 64u, 65u}) {
    Sha256 sum;
    for (size_t at = 0; at < text.size(); at += piece) sum.Add(text.substr(at, piece));
    EXPECT_EQ(sum.Hex(), Sum(text)) << piece;
  }
}

}  // namespace
}  // namespace rubato::agent
