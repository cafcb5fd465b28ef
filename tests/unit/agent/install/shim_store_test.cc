#include "agent/install/shim_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace rubato::agent {
namespace {

namespace fs = std::filesystem;

class ShimStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/shim-store-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    source_ = folder_ / "source";
    root_ = folder_ / "root";
    fs::create_directories(source_);
    Write("librubato-cuda.so", "cuda 1");
    Write("librubato-hip.so", "hip 1");
  }
  void TearDown() override { fs::remove_all(folder_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(source_ / name) << text;
  }
  static std::string Read(const fs::path& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  InstallReport Install(const std::set<std::string>& in_use = {}) {
    auto report = InstallShims(source_.string(), root_.string(), in_use);
    EXPECT_TRUE(report.ok()) << report.error().message;
    return report.ok() ? *report : InstallReport{};
  }
  size_t Folders() const {
    size_t count = 0;
    for (const auto& entry : fs::directory_iterator(root_ / "shim"))
      count += entry.is_directory() && !entry.is_symlink() ? 1 : 0;
    return count;
  }

  fs::path folder_;
  fs::path source_;
  fs::path root_;
};

TEST_F(ShimStoreTest, AFolderNamedByItsContentWithThePreloadFiles) {
  const InstallReport report = Install();
  const fs::path shim = report.shim_folder;
  EXPECT_EQ(shim.parent_path(), root_ / "shim");
  EXPECT_EQ(shim.filename().string().size(), 16u);
  EXPECT_EQ(Read(shim / "librubato-cuda.so"), "cuda 1");
  EXPECT_EQ(Read(shim / "librubato-hip.so"), "hip 1");
  EXPECT_EQ(Read(shim / "ld.so.preload.cuda"), "/usr/local/lib/rubato/librubato-cuda.so\n");
  EXPECT_EQ(Read(shim / "ld.so.preload.hip"), "/usr/local/lib/rubato/librubato-hip.so\n");
  EXPECT_EQ(CurrentFolder(root_.string(), "shim"), shim.string());
  EXPECT_EQ(CurrentFolder(root_.string(), "softgpu"), "");
  struct stat info {};
  ASSERT_EQ(::stat(shim.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0755u);
  ASSERT_EQ(::stat((shim / "librubato-cuda.so").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0755u);
}

TEST_F(ShimStoreTest, TheSameContentIsInstalledOnce) {
  const InstallReport first = Install();
  const auto written = fs::last_write_time(fs::path(first.shim_folder) / "librubato-cuda.so");
  const InstallReport second = Install();
  EXPECT_EQ(second.shim_folder, first.shim_folder);
  EXPECT_TRUE(second.added.empty());
  EXPECT_EQ(fs::last_write_time(fs::path(first.shim_folder) / "librubato-cuda.so"), written);
}

TEST_F(ShimStoreTest, AnOldVersionStaysWhileAnAllocationNamesIt) {
  const InstallReport first = Install();
  Write("librubato-cuda.so", "cuda 2");
  const InstallReport second = Install({first.shim_folder});
  EXPECT_NE(second.shim_folder, first.shim_folder);
  EXPECT_EQ(second.kept, std::vector<std::string>{first.shim_folder});
  EXPECT_EQ(Read(fs::path(first.shim_folder) / "librubato-cuda.so"), "cuda 1");
  EXPECT_EQ(CurrentFolder(root_.string(), "shim"), second.shim_folder);
  const InstallReport third = Install();
  EXPECT_EQ(third.removed, std::vector<std::string>{first.shim_folder});
  EXPECT_EQ(Folders(), 1u);
}

TEST_F(ShimStoreTest, TheLeftoverOfAnInstallerThatDiedGoes) {
  fs::create_directories(root_ / "shim/.new-1");
  std::ofstream(root_ / "shim/.new-1/librubato-cuda.so") << "half";
  fs::create_symlink("nowhere", root_ / "shim/.current-1");
  Install();
  EXPECT_FALSE(fs::exists(root_ / "shim/.new-1"));
  EXPECT_FALSE(fs::exists(fs::symlink_status(root_ / "shim/.current-1")));
}

TEST_F(ShimStoreTest, WhatIsNotOursStays) {
  fs::create_directories(root_ / "softgpu/run");
  fs::create_directories(source_ / "softgpu");
  std::ofstream(source_ / "softgpu/libcuda.so.1") << "stand-in";
  fs::create_symlink("libcuda.so.1", source_ / "softgpu/libcuda.so");
  const InstallReport report = Install();
  EXPECT_TRUE(fs::exists(root_ / "softgpu/run"));
  EXPECT_EQ(Read(fs::path(report.softgpu_folder) / "libcuda.so.1"), "stand-in");
  EXPECT_EQ(fs::read_symlink(fs::path(report.softgpu_folder) / "libcuda.so"), "libcuda.so.1");
  EXPECT_EQ(CurrentFolder(root_.string(), "softgpu"), report.softgpu_folder);
}

TEST_F(ShimStoreTest, NothingIsSwitchedWhereAFileIsMissing) {
  const InstallReport first = Install();
  fs::remove(source_ / "librubato-hip.so");
  Write("librubato-cuda.so", "cuda 2");
  const auto report = InstallShims(source_.string(), root_.string(), {});
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("librubato-hip.so"), std::string::npos);
  EXPECT_EQ(CurrentFolder(root_.string(), "shim"), first.shim_folder);
}

TEST_F(ShimStoreTest, ACurrentThatLeavesTheFolderIsNone) {
  Install();
  fs::remove(root_ / "shim/current");
  fs::create_symlink("../../../etc", root_ / "shim/current");
  EXPECT_EQ(CurrentFolder(root_.string(), "shim"), "");
}

}  // namespace
}  // namespace rubato::agent
