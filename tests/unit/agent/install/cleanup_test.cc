#include "agent/install/cleanup.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/fakes/kubelet.h"

namespace rubato::agent {
namespace {

namespace fs = std::filesystem;

class CleanupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = "/tmp/rbt-cleanup-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    config_.host_root = folder_ / "root";
    config_.kubelet_root = folder_ / "kubelet";
    config_.scheduler_runtime_dir = folder_ / "run";
    kubelet_ = std::make_unique<rubato::testing::FakeKubelet>(config_.kubelet_root);
    fs::create_directories(folder_ / "root/alloc/0123");
    fs::create_directories(folder_ / "root/shim/abc");
    fs::create_directories(folder_ / "root/other");
    std::ofstream(folder_ / "root/allocations.json") << "{}";
  }
  void TearDown() override {
    kubelet_.reset();
    fs::remove_all(folder_);
  }

  fs::path folder_;
  Config config_;
  std::unique_ptr<rubato::testing::FakeKubelet> kubelet_;
};

TEST_F(CleanupTest, RemovesWhatIsOursWhereNobodyHoldsSlots) {
  ASSERT_TRUE(kubelet_->Start().ok());
  const CleanupReport report = TryCleanup(config_);
  EXPECT_TRUE(report.clean) << report.obstacle;
  EXPECT_FALSE(fs::exists(folder_ / "root/alloc"));
  EXPECT_FALSE(fs::exists(folder_ / "root/shim"));
  EXPECT_FALSE(fs::exists(folder_ / "root/allocations.json"));
  EXPECT_TRUE(fs::exists(folder_ / "root/other"));
  EXPECT_TRUE(TryCleanup(config_).clean) << "a second time as well";
}

TEST_F(CleanupTest, TheRuntimeDirectoryStaysWithAScheduler) {
  ASSERT_TRUE(kubelet_->Start().ok());
  fs::create_directories(folder_ / "run");
  std::ofstream(folder_ / "run/scheduler.lock") << "1";
  {
    const base::UniqueFd lock(::open((folder_ / "run/scheduler.lock").c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(::flock(lock.get(), LOCK_EX | LOCK_NB), 0);
    EXPECT_TRUE(TryCleanup(config_).clean);
    EXPECT_TRUE(fs::exists(folder_ / "run/scheduler.lock"));
  }
  EXPECT_TRUE(TryCleanup(config_).clean);
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

TEST_F(CleanupTest, WithoutAKubeletNothingIsKnownAndNothingRemoved) {
  const CleanupReport report = TryCleanup(config_);
  EXPECT_FALSE(report.clean);
  EXPECT_NE(report.obstacle.find("kubelet"), std::string::npos);
  EXPECT_TRUE(fs::exists(folder_ / "root/alloc/0123"));
}

TEST_F(CleanupTest, NotUnderARunningAgent) {
  ASSERT_TRUE(kubelet_->Start().ok());
  const auto lock = LockHostRoot(config_.host_root);
  ASSERT_TRUE(lock.ok());
  EXPECT_FALSE(LockHostRoot(config_.host_root).ok());
  const CleanupReport report = TryCleanup(config_);
  EXPECT_FALSE(report.clean);
  EXPECT_NE(report.obstacle.find("another rubato-agent"), std::string::npos);
  EXPECT_TRUE(fs::exists(folder_ / "root/alloc/0123"));
}

TEST_F(CleanupTest, ANodeThatNeverHadOneIsClean) {
  config_.host_root = folder_ / "nowhere";
  EXPECT_TRUE(TryCleanup(config_).clean);
  EXPECT_FALSE(fs::exists(folder_ / "nowhere"));
}

}  // namespace
}  // namespace rubato::agent
