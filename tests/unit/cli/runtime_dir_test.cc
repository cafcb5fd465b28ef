// The runtime directory is ours alone, or not used.
#include "cli/runtime_dir.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

namespace rubato::cli {
namespace {

class RuntimeDirTest : public testing::Test {
 protected:
  RuntimeDirTest() {
    char name[] = "/tmp/rubato-cli-test-XXXXXX";
    root_ = mkdtemp(name);
  }
  ~RuntimeDirTest() override { std::filesystem::remove_all(root_); }

  std::string root_;
};

TEST_F(RuntimeDirTest, MakesTheFolderAndItsParentForOneUser) {
  const base::Result<RuntimeDir> directory = RuntimeDir::At(root_ + "/user/rubato");
  ASSERT_TRUE(directory.ok());
  EXPECT_FALSE(directory->Exists());
  ASSERT_TRUE(directory->Create().ok());
  ASSERT_TRUE(directory->Create().ok());
  EXPECT_TRUE(directory->Exists());
  struct stat info;
  ASSERT_EQ(stat(directory->path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

TEST_F(RuntimeDirTest, RefusesAFolderThatOthersMayEnter) {
  const std::string path = root_ + "/rubato";
  ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  ASSERT_EQ(chmod(path.c_str(), 0755), 0);
  const base::Result<void> made = RuntimeDir::At(path)->Create();
  ASSERT_FALSE(made.ok());
  EXPECT_NE(made.error().message.find("chmod"), std::string::npos);
}

TEST_F(RuntimeDirTest, RefusesALinkAndAFile) {
  const std::string target = root_ + "/target";
  ASSERT_EQ(mkdir(target.c_str(), 0700), 0);
  const std::string link = root_ + "/link";
  ASSERT_EQ(symlink(target.c_str(), link.c_str()), 0);
  EXPECT_FALSE(RuntimeDir::At(link)->Create().ok());
  const std::string file = root_ + "/file";
  fclose(fopen(file.c_str(), "w"));
  EXPECT_FALSE(RuntimeDir::At(file)->Create().ok());
}

TEST_F(RuntimeDirTest, RefusesAFolderOfAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to give a folder away";
  const std::string path = root_ + "/rubato";
  ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  ASSERT_EQ(chown(path.c_str(), 12345, 12345), 0);
  EXPECT_FALSE(RuntimeDir::At(path)->Create().ok());
}

TEST_F(RuntimeDirTest, RefusesPathsThatCannotHoldSockets) {
  EXPECT_TRUE(RuntimeDir::At("/run/user/1000/rubato").ok());
  EXPECT_FALSE(RuntimeDir::At("relative/path").ok());
  EXPECT_FALSE(RuntimeDir::At("").ok());
  EXPECT_FALSE(RuntimeDir::At("/" + std::string(80, 'x')).ok());
}

}  // namespace
}  // namespace rubato::cli
