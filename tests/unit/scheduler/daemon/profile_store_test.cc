// The store with a disk in the test's hand: one that is slow, hangs or fails.

#include "scheduler/daemon/profile_store.h"

#include <gtest/gtest.h>

#include <atomic>

namespace rubato::sched {
namespace {

// What the fake disk holds and does; outlives the store, whose thread may still use it.
struct Disk {
  std::mutex mutex;
  std::condition_variable changed;
  bool held = false;  // Every call waits.
  int calls_waiting = 0;
  int failures = 0;  // So many writes fail.
  int writes = 0;    // Those that were tried.
  std::map<uint64_t, ProfileRow> rows;

  void Hold(bool hold) {
    const std::lock_guard<std::mutex> lock(mutex);
    held = hold;
    changed.notify_all();
  }
  void AwaitWaiting() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return calls_waiting != 0; });
  }
  void AwaitWrites(int count) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return writes >= count; });
  }
  // With the lock.
  void Pass(std::unique_lock<std::mutex>* lock) {
    ++calls_waiting;
    changed.notify_all();
    changed.wait(*lock, [&] { return !held; });
    --calls_waiting;
  }
};

class FakeDatabase final : public ProfileDatabase {
 public:
  explicit FakeDatabase(std::shared_ptr<Disk> disk) : disk_(std::move(disk)) {}
  base::Result<std::vector<ProfileRow>> ReadAll(size_t) override {
    std::unique_lock<std::mutex> lock(disk_->mutex);
    disk_->Pass(&lock);
    std::vector<ProfileRow> rows;
    for (const auto& [key, row] : disk_->rows) rows.push_back(row);
    return rows;
  }
  base::Result<void> Write(const std::vector<ProfileRow>& rows) override {
    std::unique_lock<std::mutex> lock(disk_->mutex);
    disk_->Pass(&lock);
    ++disk_->writes;
    disk_->changed.notify_all();
    if (disk_->failures > 0) {
      --disk_->failures;
      return base::Error{base::ErrorCode::kUnavailable, "the disk is full"};
    }
    for (const ProfileRow& row : rows) disk_->rows[row.key] = row;
    return {};
  }
  base::Result<void> Clear() override {
    std::unique_lock<std::mutex> lock(disk_->mutex);
    disk_->Pass(&lock);
    disk_->rows.clear();
    return {};
  }

 private:
  std::shared_ptr<Disk> disk_;
};

constexpr base::Nanos kLong = 60 * base::kSecond;

class ProfileStoreTest : public ::testing::Test {
 protected:
  void TearDown() override { disk_->Hold(false); }

  static ProfileRow Row(uint64_t key, base::Nanos duration_ns = 1000, int64_t last_seen_s = 50) {
    ProfileRow row;
    row.model = DeviceModel{"Some GPU", 132, 1, ""};
    row.key = key;
    row.duration_ns = duration_ns;
    row.max_ns = 2000;
    row.samples = 1;
    row.last_seen_s = last_seen_s;
    return row;
  }
  std::unique_ptr<ProfileStore> Make(bool opens = true) {
    return std::make_unique<ProfileStore>(
        "/a/path",
        [disk = disk_, opens]() -> base::Result<OpenedDatabase> {
          if (!opens) return base::Error{base::ErrorCode::kUnavailable, "no such disk"};
          return OpenedDatabase{std::make_unique<FakeDatabase>(disk), ""};
        },
        [posted = posted_](std::function<void()> work) {
          const std::lock_guard<std::mutex> lock(posted->mutex);
          posted->work.push_back(std::move(work));
          posted->changed.notify_all();
        },
        [this] { ++loaded_; });
  }
  // Does on this thread what was posted to it, once there is something.
  void RunPosted() {
    std::vector<std::function<void()>> work;
    {
      std::unique_lock<std::mutex> lock(posted_->mutex);
      posted_->changed.wait(lock, [&] { return !posted_->work.empty(); });
      work = std::exchange(posted_->work, {});
    }
    for (const auto& item : work) item();
  }

  struct Posted {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::function<void()>> work;
  };
  std::shared_ptr<Disk> disk_ = std::make_shared<Disk>();
  std::shared_ptr<Posted> posted_ = std::make_shared<Posted>();
  int loaded_ = 0;
};

TEST_F(ProfileStoreTest, WhatTheDiskHasIsThereBeforeTheFirstSession) {
  disk_->rows[1] = Row(1, 10, 7);
  disk_->rows[2] = Row(2, 20, 9);
  disk_->rows[3] = Row(3);
  disk_->rows[3].model.sm_count = 80;
  const auto store = Make();
  ASSERT_TRUE(store->WaitLoaded(kLong));
  EXPECT_EQ(loaded_, 1);
  const auto rows = store->Of(Row(1).model, 10);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].key, 2u);
  EXPECT_EQ(rows[1].key, 1u);
  EXPECT_EQ(store->Of(Row(1).model, 1).size(), 1u);
  EXPECT_EQ(store->Longest(2).size(), 2u);
  EXPECT_EQ(store->Longest(9)[0].key, 3u);
  EXPECT_EQ(store->Status().rows, 3u);
  EXPECT_TRUE(store->Status().usable);
  // What the thread has posted meanwhile is no second time.
  RunPosted();
  EXPECT_EQ(loaded_, 1);
}

TEST_F(ProfileStoreTest, ASlowDiskHoldsNobodyUp) {
  disk_->rows[1] = Row(1, 10);
  disk_->rows[2] = Row(2, 20);
  disk_->Hold(true);
  const auto store = Make();
  disk_->AwaitWaiting();
  EXPECT_FALSE(store->WaitLoaded(0));
  EXPECT_TRUE(store->Status().reading);
  store->Learn({Row(1, 11)});
  EXPECT_EQ(store->Of(Row(1).model, 10).size(), 1u);
  disk_->Hold(false);
  RunPosted();
  EXPECT_EQ(loaded_, 1);
  const auto rows = store->Longest(10);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].duration_ns, 11) << "what this run has learnt is newer";
}

TEST_F(ProfileStoreTest, AllThatWasLearntIsWrittenAtTheEnd) {
  const auto store = Make();
  ASSERT_TRUE(store->WaitLoaded(kLong));
  for (uint64_t key = 1; key <= 50; ++key) store->Learn({Row(key), Row(key + 100)});
  store->Learn({Row(7, 77)});
  store->Close(kLong);
  EXPECT_EQ(disk_->rows.size(), 100u);
  EXPECT_EQ(disk_->rows[7].duration_ns, 77);
}

TEST_F(ProfileStoreTest, ADiskThatHangsIsLeftBehindAtTheEnd) {
  {
    const auto store = Make();
    ASSERT_TRUE(store->WaitLoaded(kLong));
    disk_->Hold(true);
    store->Learn({Row(1)});
    disk_->AwaitWaiting();
    store->Learn({Row(2)});
    store->Close(base::kMillisecond);
  }
  // Its thread goes on where nothing of the store is left.
  disk_->Hold(false);
  disk_->AwaitWrites(2);
}

TEST_F(ProfileStoreTest, WhatCouldNotBeWrittenIsWrittenWithTheNext) {
  disk_->failures = 1;
  const auto store = Make();
  ASSERT_TRUE(store->WaitLoaded(kLong));
  store->Learn({Row(1, 10), Row(2, 20)});
  disk_->AwaitWrites(1);
  store->Learn({Row(2, 21), Row(3, 30)});
  store->Close(kLong);
  EXPECT_EQ(disk_->rows.size(), 3u);
  EXPECT_EQ(disk_->rows[2].duration_ns, 21);
  EXPECT_EQ(store->Status().errors, 1u);
  EXPECT_EQ(store->Status().written, 3u);
}

TEST_F(ProfileStoreTest, WithoutADiskTheLibraryLastsAsLongAsTheRun) {
  const auto store = Make(false);
  ASSERT_TRUE(store->WaitLoaded(kLong));
  store->Learn({Row(1)});
  EXPECT_EQ(store->Of(Row(1).model, 10).size(), 1u);
  EXPECT_FALSE(store->Status().usable);
  EXPECT_EQ(store->Status().errors, 1u);
  store->Close(kLong);
  EXPECT_EQ(disk_->writes, 0);
}

TEST_F(ProfileStoreTest, ClearForgetsTheDiskToo) {
  disk_->rows[1] = Row(1);
  const auto store = Make();
  ASSERT_TRUE(store->WaitLoaded(kLong));
  store->Learn({Row(2)});
  store->Clear();
  EXPECT_EQ(store->Status().rows, 0u);
  store->Learn({Row(3)});
  store->Close(kLong);
  ASSERT_EQ(disk_->rows.size(), 1u);
  EXPECT_EQ(disk_->rows.begin()->first, 3u);
}

TEST_F(ProfileStoreTest, ClearCountsBeforeTheDiskWasRead) {
  disk_->rows[1] = Row(1);
  disk_->Hold(true);
  const auto store = Make();
  disk_->AwaitWaiting();
  store->Clear();
  disk_->Hold(false);
  RunPosted();
  EXPECT_EQ(store->Status().rows, 0u);
  store->Close(kLong);
  EXPECT_TRUE(disk_->rows.empty());
}

TEST_F(ProfileStoreTest, TheLibraryIsBoundedAndLosesTheOldest) {
  const auto store = Make(false);
  ASSERT_TRUE(store->WaitLoaded(kLong));
  std::vector<ProfileRow> rows;
  for (uint64_t key = 1; key <= kMostProfiles + 1; ++key)
    rows.push_back(Row(key, 1000, static_cast<int64_t>(key)));
  store->Learn(rows);
  EXPECT_LE(store->Status().rows, kMostProfiles);
  EXPECT_GT(store->Status().rows, kMostProfiles * 9 / 10);
  EXPECT_EQ(store->Of(Row(1).model, 1)[0].key, kMostProfiles + 1);
}

TEST_F(ProfileStoreTest, ANameThatIsKnownIsKept) {
  const auto store = Make();
  ASSERT_TRUE(store->WaitLoaded(kLong));
  ProfileRow named = Row(1);
  named.name = "gemm";
  store->Learn({named});
  store->Learn({Row(1, 1234)});
  const auto rows = store->Longest(1);
  EXPECT_EQ(rows[0].name, "gemm");
  EXPECT_EQ(rows[0].duration_ns, 1234);
}

}  // namespace
}  // namespace rubato::sched
