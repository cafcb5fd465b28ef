#include "cli/environment.h"

#include <gtest/gtest.h>

namespace rubato::cli {
namespace {

const std::vector<std::string> kShims = {"/opt/a.so", "/opt/b.so"};

TEST(Environment, PreloadsBeforeWhatIsThere) {
  EXPECT_EQ(PrependPreload(kShims, ""), "/opt/a.so:/opt/b.so");
  EXPECT_EQ(PrependPreload(kShims, "/x.so"), "/opt/a.so:/opt/b.so:/x.so");
  EXPECT_EQ(PrependPreload(kShims, "/x.so /y.so"), "/opt/a.so:/opt/b.so:/x.so:/y.so");
  EXPECT_EQ(PrependPreload(kShims, "::/x.so:"), "/opt/a.so:/opt/b.so:/x.so");
}

TEST(Environment, PreloadsOnceWhenNested) {
  EXPECT_EQ(PrependPreload(kShims, "/opt/a.so:/opt/b.so:/x.so"), "/opt/a.so:/opt/b.so:/x.so");
  EXPECT_EQ(PrependPreload(kShims, "/x.so:/opt/b.so"), "/opt/a.so:/opt/b.so:/x.so");
}

TEST(Environment, ReplacesAVariableOnly) {
  const std::vector<std::string> before = {"A=1", "AB=2", "A=3", "C="};
  EXPECT_EQ(WithVariable(before, "A", "x=y"), (std::vector<std::string>{"AB=2", "C=", "A=x=y"}));
  EXPECT_EQ(WithVariable({}, "N", ""), (std::vector<std::string>{"N="}));
}

}  // namespace
}  // namespace rubato::cli
