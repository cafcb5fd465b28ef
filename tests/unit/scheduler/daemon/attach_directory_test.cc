// Whose folders are whose, who may enter them, and what is left behind.

#include "scheduler/daemon/attach_directory.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/unix_socket.h"

namespace rubato::sched {
namespace {

constexpr const char kToken[] = "00112233445566778899aabbccddeeff";
constexpr const char kOther[] = "ffeeddccbbaa99887766554433221100";

class AttachDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/rubato-alloc-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    top_ = name;
    root_ = top_ + "/alloc";
  }
  void TearDown() override { std::filesystem::remove_all(top_); }
  static unsigned Mode(const std::string& path) {
    struct stat info {};
    EXPECT_EQ(::lstat(path.c_str(), &info), 0) << path;
    return info.st_mode & 0777;
  }
  static bool Exists(const std::string& path) { return std::filesystem::exists(path); }

  std::string top_;
  std::string root_;
};

TEST_F(AttachDirectoryTest, ContainersOfAnyUserGetInAndOthersOnlyWeDo) {
  const mode_t mask = ::umask(077);
  auto directory = AttachDirectory::Open(root_, true);
  ASSERT_TRUE(directory.ok()) << directory.error().message;
  auto any = directory->Listen(kToken, true);
  auto own = directory->Listen(kOther, false);
  ::umask(mask);
  ASSERT_TRUE(any.ok()) << any.error().message;
  ASSERT_TRUE(own.ok());
  EXPECT_EQ(any->path, root_ + "/" + kToken + "/attach.sock");
  EXPECT_EQ(Mode(root_), 0755u);
  EXPECT_EQ(Mode(root_ + "/" + kToken), 0755u);
  EXPECT_EQ(Mode(any->path), 0666u);
  EXPECT_EQ(Mode(root_ + "/" + kOther), 0700u);
  EXPECT_EQ(Mode(own->path), 0600u);
  EXPECT_TRUE(base::ConnectUnix(any->path, SOCK_SEQPACKET).ok());
}

TEST_F(AttachDirectoryTest, APrivateRootIsClosed) {
  ASSERT_TRUE(AttachDirectory::Open(root_, false).ok());
  EXPECT_EQ(Mode(root_), 0700u);
}

TEST_F(AttachDirectoryTest, AFolderOfSomebodyElseOutlivesTheSocket) {
  std::filesystem::create_directories(root_ + "/" + kToken);
  ASSERT_EQ(::chmod((root_ + "/" + kToken).c_str(), 0755), 0);
  auto directory = AttachDirectory::Open(root_, true);
  ASSERT_TRUE(directory.ok());
  auto place = directory->Listen(kToken, true);
  ASSERT_TRUE(place.ok());
  EXPECT_FALSE(place->made);
  directory->Remove(kToken, place->made);
  EXPECT_FALSE(Exists(place->path));
  EXPECT_TRUE(Exists(root_ + "/" + kToken));

  auto made = directory->Listen(kOther, true);
  ASSERT_TRUE(made.ok());
  EXPECT_TRUE(made->made);
  directory->Remove(kOther, made->made);
  EXPECT_FALSE(Exists(root_ + "/" + kOther));
}

TEST_F(AttachDirectoryTest, TheNextSchedulerListensInTheSamePlace) {
  std::string path;
  {
    auto directory = AttachDirectory::Open(root_, true);
    ASSERT_TRUE(directory.ok());
    path = directory->Listen(kToken, true)->path;
  }
  EXPECT_TRUE(Exists(path)) << "as after a kill";
  auto directory = AttachDirectory::Open(root_, true);
  ASSERT_TRUE(directory.ok());
  EXPECT_FALSE(Exists(path)) << "nobody listens there";
  EXPECT_TRUE(Exists(root_ + "/" + kToken)) << "somebody may have it mounted";
  auto place = directory->Listen(kToken, true);
  ASSERT_TRUE(place.ok());
  EXPECT_EQ(place->path, path);
  EXPECT_TRUE(base::ConnectUnix(path, SOCK_SEQPACKET).ok());
}

TEST_F(AttachDirectoryTest, InAPrivateRootNothingIsLeftOfAKilledScheduler) {
  {
    auto directory = AttachDirectory::Open(root_, false);
    ASSERT_TRUE(directory->Listen(kToken, false).ok());
  }
  std::filesystem::create_directory(root_ + "/something");
  ASSERT_TRUE(AttachDirectory::Open(root_, false).ok());
  EXPECT_FALSE(Exists(root_ + "/" + kToken));
  EXPECT_TRUE(Exists(root_ + "/something")) << "only what has the form of a token is ours";
}

TEST_F(AttachDirectoryTest, TwoSchedulersCannotShareIt) {
  auto first = AttachDirectory::Open(root_, true);
  ASSERT_TRUE(first.ok());
  const auto place = first->Listen(kToken, true);
  auto second = AttachDirectory::Open(root_, true);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, base::ErrorCode::kExists);
  EXPECT_TRUE(base::ConnectUnix(place->path, SOCK_SEQPACKET).ok()) << "and it harms it not";
}

TEST_F(AttachDirectoryTest, WhatOthersMayWriteIsNotUsed) {
  ASSERT_EQ(::mkdir(root_.c_str(), 0700), 0);
  ASSERT_EQ(::chmod(root_.c_str(), 0775), 0);
  const auto open = AttachDirectory::Open(root_, true);
  ASSERT_FALSE(open.ok());
  EXPECT_NE(open.error().message.find("chmod go-w"), std::string::npos) << open.error().message;
  ASSERT_EQ(::chmod(root_.c_str(), 0755), 0);
  auto directory = AttachDirectory::Open(root_, true);
  ASSERT_TRUE(directory.ok());
  ASSERT_EQ(::mkdir((root_ + "/" + kToken).c_str(), 0700), 0);
  ASSERT_EQ(::chmod((root_ + "/" + kToken).c_str(), 0777), 0);
  EXPECT_FALSE(directory->Listen(kToken, true).ok());
  // Nor what only looks like a folder here.
  std::filesystem::create_directory(top_ + "/target");
  ASSERT_EQ(::symlink((top_ + "/target").c_str(), (root_ + "/" + kOther).c_str()), 0);
  EXPECT_FALSE(directory->Listen(kOther, true).ok());
  EXPECT_TRUE(std::filesystem::is_empty(top_ + "/target"));
}

TEST_F(AttachDirectoryTest, AFolderOfAnotherUserIsNotUsed) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to give a folder away";
  ASSERT_EQ(::mkdir(root_.c_str(), 0755), 0);
  ASSERT_EQ(::chown(root_.c_str(), 12345, 12345), 0);
  EXPECT_EQ(AttachDirectory::Open(root_, true).error().code, base::ErrorCode::kNotAllowed);
}

TEST_F(AttachDirectoryTest, APathThatIsTooLongForSocketsIsSaid) {
  // 108 bytes with the end: 62 characters, a slash, the token, "/attach.sock".
  const std::string longest = root_ + "/" + std::string(62 - root_.size() - 1, 'x');
  ASSERT_EQ(longest.size(), 62u);
  std::filesystem::create_directories(longest);
  ::chmod(longest.c_str(), 0755);
  auto directory = AttachDirectory::Open(longest, true);
  ASSERT_TRUE(directory.ok()) << directory.error().message;
  EXPECT_TRUE(directory->Listen(kToken, true).ok());
  const auto longer = AttachDirectory::Open(longest + "x", true);
  ASSERT_FALSE(longer.ok());
  EXPECT_NE(longer.error().message.find("63 characters"), std::string::npos)
      << longer.error().message;
  EXPECT_NE(longer.error().message.find("room for 62"), std::string::npos);
  EXPECT_FALSE(AttachDirectory::Complaint("here").empty());
}

}  // namespace
}  // namespace rubato::sched
