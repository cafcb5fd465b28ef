#include "deviceplugin/resource_name.h"

#include <gtest/gtest.h>

#include <string>

namespace rubato::deviceplugin {
namespace {

TEST(ResourceNameTest, TakesWhatTheKubeletTakes) {
  for (const char* name : {"rubato.dev/gpu", "a/b", "example.com/GPU_v2.1-x", "1a.b-c/9"})
    EXPECT_TRUE(IsExtendedResourceName(name)) << name;
  EXPECT_TRUE(IsExtendedResourceName(std::string(244, 'a') + "/" + std::string(63, 'b')));
}

TEST(ResourceNameTest, RefusesTheRest) {
  for (const char* name :
       {"", "gpu", "/gpu", "rubato.dev/", "kubernetes.io/gpu", "gpu.kubernetes.io/x",
        "requests.rubato.dev/gpu", "Rubato.dev/gpu", "rubato..dev/gpu", ".dev/gpu", "dev./gpu",
        "-a.dev/gpu", "a-.dev/gpu", "rubato.dev/-gpu", "rubato.dev/gpu-", "rubato.dev/g/pu",
        "rubato.dev/g pu", "rubato_x.dev/gpu"})
    EXPECT_FALSE(IsExtendedResourceName(name)) << name;
  EXPECT_FALSE(IsExtendedResourceName(std::string(245, 'a') + "/b"));
  EXPECT_FALSE(IsExtendedResourceName("a/" + std::string(64, 'b')));
}

}  // namespace
}  // namespace rubato::deviceplugin
