#include "agent/config/file_watch.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/clock.h"

namespace rubato::agent {
namespace {

namespace fs = std::filesystem;

class FileWatchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/file-watch-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    loop_ = std::move(*base::EventLoop::Make());
  }
  void TearDown() override {
    watch_.reset();
    fs::remove_all(folder_);
  }
  void Watch() {
    auto watch =
        FileWatch::Start(loop_.get(), (folder_ / "agent.yaml").string(), [this] { ++changes_; });
    ASSERT_TRUE(watch.ok()) << watch.error().message;
    watch_ = std::move(*watch);
  }
  void Write(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }
  bool RunUntilChange(int count) {
    const base::Nanos end_ns = base::MonotonicNow() + 60 * base::kSecond;
    while (changes_ < count && base::MonotonicNow() < end_ns) loop_->RunOnce(end_ns);
    return changes_ >= count;
  }

  fs::path folder_;
  std::unique_ptr<base::EventLoop> loop_;
  std::unique_ptr<FileWatch> watch_;
  int changes_ = 0;
};

TEST_F(FileWatchTest, SeesAFileWrittenInPlaceAndByRename) {
  Write(folder_ / "agent.yaml", "a");
  Watch();
  Write(folder_ / "agent.yaml", "b");
  ASSERT_TRUE(RunUntilChange(1));
  Write(folder_ / "other", "c");
  fs::rename(folder_ / "other", folder_ / "agent.yaml");
  ASSERT_TRUE(RunUntilChange(2));
}

TEST_F(FileWatchTest, SeesTheKubeletsSwapOfAConfigMap) {
  fs::create_directory(folder_ / "..1");
  Write(folder_ / "..1/agent.yaml", "a");
  fs::create_symlink("..1", folder_ / "..data");
  fs::create_symlink("..data/agent.yaml", folder_ / "agent.yaml");
  Watch();
  fs::create_directory(folder_ / "..2");
  Write(folder_ / "..2/agent.yaml", "b");
  fs::create_symlink("..2", folder_ / "..data_tmp");
  fs::rename(folder_ / "..data_tmp", folder_ / "..data");
  ASSERT_TRUE(RunUntilChange(1));
}

TEST_F(FileWatchTest, OtherFilesAreNotItsBusiness) {
  Watch();
  Write(folder_ / "other", "a");
  Write(folder_ / "agent.yaml", "b");
  ASSERT_TRUE(RunUntilChange(1));
  // Both had settled by then; the other has caused no call of its own.
  EXPECT_EQ(changes_, 1);
}

TEST_F(FileWatchTest, AFolderThatIsNotThereIsAnError) {
  EXPECT_FALSE(FileWatch::Start(loop_.get(), "/nonexistent/agent.yaml", [] {}).ok());
}

}  // namespace
}  // namespace rubato::agent
