#include "deviceplugin/directory_watch.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "tests/unit/deviceplugin/loop_fixture.h"

namespace rubato::deviceplugin {
namespace {

namespace fs = std::filesystem;

class DirectoryWatchTest : public LoopFixture {
 protected:
  void SetUp() override {
    LoopFixture::SetUp();
    path_ = directory_ + "/plugins";
  }
  void TearDown() override {
    OnLoop([&] { watch_.reset(); });
    LoopFixture::TearDown();
  }
  void Start() {
    OnLoop([&] {
      auto watch = DirectoryWatch::Start(loop_.get(), path_, [this] { ++changes_; });
      ASSERT_TRUE(watch.ok());
      watch_ = std::move(*watch);
    });
  }
  // Until it has been told of something since `before`.
  bool ToldSince(int before) {
    return Eventually([&] { return changes_ > before; });
  }
  // Until nothing more comes of what has been done so far.
  int Quiet() {
    for (;;) {
      const int before = changes_;
      const base::Nanos until_ns = base::MonotonicNow() + 2 * DirectoryWatch::kLongestNs;
      (void)Eventually([&] { return base::MonotonicNow() > until_ns; });
      if (changes_ == before) return before;
    }
  }

  std::string path_;
  std::unique_ptr<DirectoryWatch> watch_;
  std::atomic<int> changes_ = 0;
};

TEST_F(DirectoryWatchTest, TellsOfEveryWayToComeAndGo) {
  fs::create_directory(path_);
  Start();
  EXPECT_TRUE(ToldSince(0));
  int before = Quiet();
  std::ofstream(path_ + "/made") << "";
  EXPECT_TRUE(ToldSince(before));
  before = Quiet();
  std::ofstream(directory_ + "/moved") << "";
  fs::rename(directory_ + "/moved", path_ + "/moved");
  EXPECT_TRUE(ToldSince(before));
  before = Quiet();
  fs::rename(path_ + "/moved", directory_ + "/moved");
  EXPECT_TRUE(ToldSince(before));
  before = Quiet();
  fs::create_hard_link(directory_ + "/moved", path_ + "/linked");
  EXPECT_TRUE(ToldSince(before));
  before = Quiet();
  fs::remove(path_ + "/made");
  EXPECT_TRUE(ToldSince(before));
}

TEST_F(DirectoryWatchTest, GathersABurst) {
  fs::create_directory(path_);
  Start();
  EXPECT_TRUE(ToldSince(0));
  const int before = Quiet();
  for (int i = 0; i < 500; ++i) std::ofstream(path_ + "/" + std::to_string(i)) << "";
  EXPECT_TRUE(ToldSince(before));
  EXPECT_LT(Quiet() - before, 100);
}

TEST_F(DirectoryWatchTest, FindsADirectoryThatComesLater) {
  Start();
  EXPECT_TRUE(ToldSince(0));
  OnLoop([&] { EXPECT_FALSE(watch_->watching()); });
  fs::create_directory(path_);
  EXPECT_TRUE(Eventually([&] { return watch_->watching(); }));
  const int before = Quiet();
  std::ofstream(path_ + "/made") << "";
  EXPECT_TRUE(ToldSince(before));
}

TEST_F(DirectoryWatchTest, FollowsADirectoryThatIsMadeAnew) {
  fs::create_directory(path_);
  Start();
  EXPECT_TRUE(ToldSince(0));
  int before = Quiet();
  fs::remove_all(path_);
  EXPECT_TRUE(ToldSince(before));
  EXPECT_TRUE(Eventually([&] { return !watch_->watching(); }));
  fs::create_directory(path_);
  EXPECT_TRUE(Eventually([&] { return watch_->watching(); }));
  before = Quiet();
  std::ofstream(path_ + "/made") << "";
  EXPECT_TRUE(ToldSince(before));
  // Moved away, and another one in its place.
  before = Quiet();
  fs::rename(path_, directory_ + "/old");
  fs::create_directory(path_);
  EXPECT_TRUE(ToldSince(before));
  EXPECT_TRUE(Eventually([&] { return watch_->watching(); }));
  before = Quiet();
  std::ofstream(directory_ + "/old/made") << "";
  std::ofstream(path_ + "/made") << "";
  EXPECT_TRUE(ToldSince(before));
}

}  // namespace
}  // namespace rubato::deviceplugin
