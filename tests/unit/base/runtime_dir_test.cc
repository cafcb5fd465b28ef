#include "base/runtime_dir.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

namespace rubato::base {
namespace {

class RuntimeDirTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/rubato-runtime-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string directory_;
};

TEST_F(RuntimeDirTest, IsMadePrivate) {
  const std::string path = directory_ + "/r";
  ASSERT_TRUE(PrepareRuntimeDir(path).ok());
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  EXPECT_TRUE(PrepareRuntimeDir(path).ok()) << "again";
}

TEST_F(RuntimeDirTest, OneThatIsOpenToOthersIsRefused) {
  const std::string path = directory_ + "/r";
  ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
  ASSERT_EQ(::chmod(path.c_str(), 0750), 0);
  const auto prepared = PrepareRuntimeDir(path);
  ASSERT_FALSE(prepared.ok());
  EXPECT_NE(prepared.error().message.find("chmod 0700"), std::string::npos);
}

TEST_F(RuntimeDirTest, ASymbolicLinkIsRefused) {
  const std::string target = directory_ + "/target";
  ASSERT_EQ(::mkdir(target.c_str(), 0700), 0);
  const std::string link = directory_ + "/link";
  ASSERT_EQ(::symlink(target.c_str(), link.c_str()), 0);
  EXPECT_FALSE(PrepareRuntimeDir(link).ok());
}

TEST_F(RuntimeDirTest, MissingParentsAreAnError) {
  EXPECT_FALSE(PrepareRuntimeDir(directory_ + "/a/b").ok());
}

TEST_F(RuntimeDirTest, TheDefaultFollowsTheEnvironment) {
  ::unsetenv("RUBATO_RUNTIME_DIR");
  ::setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  EXPECT_EQ(DefaultRuntimeDir(), "/run/user/7/rubato");
  ::setenv("RUBATO_RUNTIME_DIR", "/run/own", 1);
  EXPECT_EQ(DefaultRuntimeDir(), "/run/own");
  ::unsetenv("RUBATO_RUNTIME_DIR");
  ::unsetenv("XDG_RUNTIME_DIR");
  EXPECT_NE(DefaultRuntimeDir().find("rubato"), std::string::npos);
}

}  // namespace
}  // namespace rubato::base
