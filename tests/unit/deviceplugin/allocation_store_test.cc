#include "deviceplugin/allocation_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <optional>
#include <random>
#include <set>
#include <sstream>

#include "deviceplugin/durable_file.h"
#include "tests/unit/deviceplugin/gpus.h"
#include "tests/unit/deviceplugin/loop_fixture.h"

namespace rubato::deviceplugin {
namespace {

namespace fs = std::filesystem;

class AllocationStoreTest : public LoopFixture {
 protected:
  void SetUp() override {
    LoopFixture::SetUp();
    paths_.directory = directory_ + "/host/alloc";
    paths_.records_file = directory_ + "/host/allocations.json";
  }
  void TearDown() override {
    Close();
    LoopFixture::TearDown();
  }
  base::Result<void> TryOpen() {
    base::Result<void> result;
    OnLoop([&] {
      auto store = AllocationStore::Open(loop_.get(), paths_);
      if (store) {
        store_ = std::move(*store);
      } else {
        result = store.error();
      }
    });
    return result;
  }
  void Open() {
    auto opened = TryOpen();
    ASSERT_TRUE(opened.ok()) << opened.error().message;
  }
  void Close() {
    OnLoop([&] { store_.reset(); });
  }

  static AllocationRecord New(const std::vector<std::string>& slots) {
    AllocationRecord record;
    record.slots = slots;
    record.gpus = {"GPU-0"};
    record.vendor = "nvidia";
    record.slots_per_gpu = 10;
    record.host_folders = {"/var/lib/rubato/shim/00"};
    return record;
  }
  base::Result<AllocationRecord> Add(const std::vector<std::string>& slots) {
    std::promise<base::Result<AllocationRecord>> added;
    OnLoop([&] {
      store_->Add(New(slots), [&](base::Result<AllocationRecord> record) {
        added.set_value(std::move(record));
      });
    });
    return added.get_future().get();
  }
  base::Result<void> Release(const std::string& token) {
    std::promise<base::Result<void>> released;
    OnLoop([&] {
      store_->Release(token, [&](base::Result<void> result) { released.set_value(result); });
    });
    return released.get_future().get();
  }
  std::map<std::string, AllocationRecord> Records() {
    std::map<std::string, AllocationRecord> records;
    OnLoop([&] { records = store_->records(); });
    return records;
  }
  std::map<std::string, AllocationRecord> OnDisk() {
    auto parsed = ReadRecordsFile(paths_.records_file);
    EXPECT_TRUE(parsed.ok()) << (parsed.ok() ? "" : parsed.error().message);
    return parsed.ok() ? parsed->records : std::map<std::string, AllocationRecord>{};
  }
  std::string PathOf(const std::string& token) const { return paths_.directory + "/" + token; }
  static mode_t ModeOf(const std::string& path) {
    struct stat status {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
    return status.st_mode & 07777;
  }
  void WriteRecords(const std::string& text) {
    fs::create_directories(directory_ + "/host");
    std::ofstream(paths_.records_file) << text;
  }

  AllocationStore::Paths paths_;
  std::unique_ptr<AllocationStore> store_;
};

TEST_F(AllocationStoreTest, RecordsBeforeItSays) {
  const mode_t umask_before = ::umask(077);
  Open();
  auto record = Add(Slots(0, 0, 2));
  ASSERT_TRUE(record.ok());
  EXPECT_TRUE(IsToken(record->token));
  EXPECT_GT(record->created_unix_ms, 0);
  EXPECT_FALSE(record->superseded);
  // All of it was there when the answer came.
  EXPECT_EQ(OnDisk().at(record->token), *record);
  EXPECT_TRUE(fs::is_directory(PathOf(record->token)));
  // Any user of a container may go in, whatever the umask; nobody may list the tokens.
  EXPECT_EQ(ModeOf(PathOf(record->token)), 0755u);
  EXPECT_EQ(ModeOf(paths_.directory), 0711u);
  EXPECT_EQ(ModeOf(paths_.records_file), 0600u);
  ::umask(umask_before);
}

TEST_F(AllocationStoreTest, SurvivesTheEnd) {
  Open();
  auto first = Add(Slots(0, 0, 2));
  auto second = Add(Slots(0, 3, 4));
  ASSERT_TRUE(first.ok() && second.ok());
  const auto before = Records();
  Close();
  Open();
  EXPECT_EQ(Records(), before);
  auto third = Add(Slots(0, 5, 5));
  ASSERT_TRUE(third.ok());
  EXPECT_GT(third->serial, second->serial);
  EXPECT_GT(second->serial, first->serial);
}

TEST_F(AllocationStoreTest, NeverGivesATokenTwice) {
  Open();
  std::set<std::string> tokens;
  std::string last;
  for (int i = 0; i < 50; ++i) {
    auto record = Add(Slots(0, 0, 2));
    ASSERT_TRUE(record.ok());
    EXPECT_TRUE(tokens.insert(record->token).second);
    if (i % 2 != 0) continue;
    EXPECT_TRUE(Release(record->token).ok());
  }
  EXPECT_EQ(Records().size(), 25u);
}

TEST_F(AllocationStoreTest, LaterAllocationsSupersedeButDoNotRemove) {
  Open();
  auto first = Add(Slots(0, 0, 2));
  auto other = Add(Slots(1, 0, 2));
  auto second = Add(Slots(0, 2, 4));
  ASSERT_TRUE(first.ok() && other.ok() && second.ok());
  EXPECT_TRUE(Records().at(first->token).superseded);
  EXPECT_FALSE(Records().at(other->token).superseded);
  EXPECT_FALSE(Records().at(second->token).superseded);
  EXPECT_TRUE(OnDisk().at(first->token).superseded);
  EXPECT_TRUE(fs::is_directory(PathOf(first->token)));
}

TEST_F(AllocationStoreTest, FindsTheNewestOfExactlyTheseSlots) {
  Open();
  auto first = Add(Slots(0, 0, 2));
  auto second = Add(Slots(0, 0, 2));
  auto wider = Add(Slots(0, 0, 3));
  ASSERT_TRUE(first.ok() && second.ok() && wider.ok());
  std::vector<AllocationRecord> found;
  // The kubelet keeps slots in no order.
  OnLoop([&] { found = store_->OfSlots({"GPU-0::2", "GPU-0::0", "GPU-0::1"}); });
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].token, second->token);
  EXPECT_EQ(found[1].token, first->token);
  OnLoop([&] { found = store_->OfSlots({"GPU-0::0", "GPU-0::1"}); });
  EXPECT_TRUE(found.empty());
  OnLoop([&] { found = store_->OfSlots({"GPU-0::0", "GPU-0::1", "GPU-0::1"}); });
  EXPECT_TRUE(found.empty());
  OnLoop([&] { found = store_->OfSlots({}); });
  EXPECT_TRUE(found.empty());
}

TEST_F(AllocationStoreTest, ReleaseRemovesDirectoryAndRecord) {
  Open();
  auto record = Add(Slots(0, 0, 2));
  auto other = Add(Slots(0, 3, 4));
  ASSERT_TRUE(record.ok() && other.ok());
  std::ofstream(PathOf(record->token) + "/attach.sock") << "";
  EXPECT_TRUE(Release(record->token).ok());
  EXPECT_FALSE(fs::exists(PathOf(record->token)));
  EXPECT_FALSE(OnDisk().contains(record->token));
  EXPECT_TRUE(OnDisk().contains(other->token));
  EXPECT_TRUE(fs::exists(PathOf(other->token)));
  const auto again = Release(record->token);
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code, base::ErrorCode::kNotFound);
  EXPECT_EQ(Release("../../etc").error().code, base::ErrorCode::kNotFound);
}

TEST_F(AllocationStoreTest, ReleaseKeepsWhatItCannotRemove) {
  Open();
  auto record = Add(Slots(0, 0, 2));
  ASSERT_TRUE(record.ok());
  // Something that is not ours lies in it.
  fs::create_directory(PathOf(record->token) + "/strange");
  EXPECT_FALSE(Release(record->token).ok());
  EXPECT_TRUE(OnDisk().contains(record->token));
  EXPECT_TRUE(Records().contains(record->token));
  fs::remove(PathOf(record->token) + "/strange");
  EXPECT_TRUE(Release(record->token).ok());
  EXPECT_TRUE(Records().empty());
}

TEST_F(AllocationStoreTest, ReleaseOfADirectoryThatIsGone) {
  Open();
  auto record = Add(Slots(0, 0, 2));
  ASSERT_TRUE(record.ok());
  fs::remove(PathOf(record->token));
  EXPECT_TRUE(Release(record->token).ok());
  EXPECT_TRUE(OnDisk().empty());
}

TEST_F(AllocationStoreTest, RemakesMissingDirectories) {
  Open();
  auto record = Add(Slots(0, 0, 2));
  auto other = Add(Slots(0, 3, 4));
  ASSERT_TRUE(record.ok() && other.ok());
  Close();
  fs::remove(PathOf(record->token));
  fs::create_directory(PathOf("ffffffffffffffffffffffffffffffff"));
  fs::create_directory(paths_.directory + "/lost+found");
  Open();
  EXPECT_EQ(store_->opening().records, 2u);
  EXPECT_EQ(store_->opening().remade, (std::vector<std::string>{record->token}));
  EXPECT_TRUE(fs::is_directory(PathOf(record->token)));
  EXPECT_EQ(ModeOf(PathOf(record->token)), 0755u);
  // What no record names may still be mounted: it is told of, and kept.
  EXPECT_EQ(store_->opening().unrecorded,
            (std::vector<std::string>{"ffffffffffffffffffffffffffffffff"}));
  EXPECT_TRUE(fs::exists(PathOf("ffffffffffffffffffffffffffffffff")));
}

TEST_F(AllocationStoreTest, AllDirectoriesWiped) {
  Open();
  auto record = Add(Slots(0, 0, 2));
  ASSERT_TRUE(record.ok());
  Close();
  fs::remove_all(paths_.directory);
  Open();
  EXPECT_TRUE(fs::is_directory(PathOf(record->token)));
}

TEST_F(AllocationStoreTest, SetsAsideWhatItCannotRead) {
  for (const char* text : {"", "{", "nonsense", "[]", "null", R"({"version": 1})",
                           R"({"version": 2, "next_serial": 5, "allocations": []})",
                           R"({"version": 1, "next_serial": -5, "allocations": []})",
                           R"({"version": 1, "next_serial": 5, "allocations": [{}]})"}) {
    WriteRecords(text);
    Open();
    EXPECT_FALSE(store_->opening().problem.empty()) << text;
    ASSERT_FALSE(store_->opening().set_aside.empty()) << text;
    std::ifstream kept(store_->opening().set_aside);
    std::stringstream content;
    content << kept.rdbuf();
    EXPECT_EQ(content.str(), text);
    EXPECT_TRUE(Records().empty());
    EXPECT_TRUE(Add(Slots(0, 0, 0)).ok());
    EXPECT_EQ(OnDisk().size(), 1u);
    Close();
    fs::remove_all(directory_ + "/host");
  }
}

TEST_F(AllocationStoreTest, SerialsGrowEvenWhenTheFileIsLost) {
  Open();
  auto before = Add(Slots(0, 0, 0));
  ASSERT_TRUE(before.ok());
  Close();
  WriteRecords("lost");
  Open();
  auto after = Add(Slots(0, 0, 0));
  ASSERT_TRUE(after.ok());
  EXPECT_GE(after->serial, before->serial);
}

TEST_F(AllocationStoreTest, AnInterruptedWriteLeavesTheOldRecords) {
  Open();
  auto record = Add(Slots(0, 0, 2));
  ASSERT_TRUE(record.ok());
  Close();
  std::ofstream(paths_.records_file + ".tmp") << R"({"version": 1, "next_ser)";
  Open();
  EXPECT_TRUE(store_->opening().problem.empty());
  EXPECT_TRUE(Records().contains(record->token));
}

TEST_F(AllocationStoreTest, SaysWhenTheDiskRefuses) {
  Open();
  auto kept = Add(Slots(0, 3, 4));
  ASSERT_TRUE(kept.ok());
  // A directory at the name of the temporary file stops root, too.
  fs::create_directory(paths_.records_file + ".tmp");
  auto refused = Add(Slots(0, 0, 2));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, base::ErrorCode::kSystem);
  EXPECT_EQ(Records().size(), 1u);
  fs::remove(paths_.records_file + ".tmp");
  EXPECT_TRUE(Add(Slots(0, 0, 2)).ok());
  EXPECT_EQ(OnDisk().size(), 2u);
  // The refused one left nothing behind.
  size_t directories = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(paths_.directory)) ++directories;
  EXPECT_EQ(directories, 2u);
}

TEST_F(AllocationStoreTest, OpenSaysWhenItCannotKeepRecords) {
  fs::create_directories(directory_ + "/host");
  std::ofstream(paths_.directory) << "a file";
  EXPECT_FALSE(TryOpen().ok());
  fs::remove(paths_.directory);
  fs::create_directories(paths_.records_file + ".tmp");
  EXPECT_FALSE(TryOpen().ok());
  fs::remove(paths_.records_file + ".tmp");
  EXPECT_TRUE(TryOpen().ok());
}

TEST_F(AllocationStoreTest, ManyAtOnceAreAllDurable) {
  Open();
  constexpr int kCount = 200;
  std::atomic<int> done = 0;
  std::vector<std::string> tokens(kCount);
  OnLoop([&] {
    for (int i = 0; i < kCount; ++i) {
      store_->Add(
          New({FormatSlotId("GPU-" + std::to_string(i / 10), static_cast<uint32_t>(i % 10))}),
          [&, i](base::Result<AllocationRecord> record) {
            ASSERT_TRUE(record.ok());
            tokens[static_cast<size_t>(i)] = record->token;
            ++done;
          });
    }
  });
  ASSERT_TRUE(Eventually([&] { return done == kCount; }));
  const auto disk = OnDisk();
  EXPECT_EQ(disk.size(), static_cast<size_t>(kCount));
  for (const std::string& token : tokens) EXPECT_TRUE(disk.contains(token));
}

TEST_F(AllocationStoreTest, EndsWithWorkUnderWay) {
  Open();
  OnLoop([&] {
    for (int i = 0; i < 20; ++i)
      store_->Add(New(Slots(0, 0, 0)), [](base::Result<AllocationRecord>) {
        ADD_FAILURE() << "called back after the store's end";
      });
    store_.reset();
  });
  // What had been asked for was written nevertheless.
  EXPECT_EQ(OnDisk().size(), 20u);
}

TEST_F(AllocationStoreTest, HasALimit) {
  std::map<std::string, AllocationRecord> records;
  std::mt19937_64 random(3);
  for (size_t i = 0; i < AllocationStore::kMostRecords; ++i) {
    AllocationRecord record = New({"GPU-0::1"});
    char token[33];
    snprintf(token, sizeof(token), "%016llx%016llx", static_cast<unsigned long long>(random()),
             static_cast<unsigned long long>(random()));
    record.token = token;
    record.serial = i + 1;
    records[record.token] = record;
  }
  WriteRecords(FormatRecords(records, AllocationStore::kMostRecords + 1));
  Open();
  EXPECT_EQ(store_->opening().records, AllocationStore::kMostRecords);
  auto refused = Add(Slots(0, 0, 0));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, base::ErrorCode::kFull);
  EXPECT_TRUE(Release(records.begin()->first).ok());
  EXPECT_TRUE(Add(Slots(0, 0, 0)).ok());
}

TEST(RecordsTextTest, ReadsWhatItWrites) {
  AllocationRecord record;
  record.token = "0123456789abcdef0123456789abcdef";
  record.serial = 41;
  record.slots = {"GPU-0::1", "GPU-0::2"};
  record.gpus = {"GPU-0"};
  record.vendor = "amd";
  record.slots_per_gpu = 10;
  record.created_unix_ms = 1'700'000'000'123;
  record.superseded = true;
  record.host_folders = {"/var/lib/rubato/shim/00", "/b"};
  auto parsed = ParseRecords(FormatRecords({{record.token, record}}, 42));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->next_serial, 42u);
  EXPECT_EQ(parsed->records.at(record.token), record);
  // Folders that are no UTF-8 must not end the agent.
  record.host_folders = {"/\xff\xfe"};
  EXPECT_TRUE(ParseRecords(FormatRecords({{record.token, record}}, 42)).ok());
}

TEST(RecordsTextTest, SurvivesAnyDamage) {
  AllocationRecord record;
  record.token = "0123456789abcdef0123456789abcdef";
  record.serial = 41;
  record.slots = {"GPU-0::1", "GPU-0::2"};
  record.gpus = {"GPU-0"};
  record.vendor = "amd";
  record.slots_per_gpu = 10;
  record.host_folders = {"/var/lib/rubato/shim/00"};
  const std::string good = FormatRecords({{record.token, record}}, 42);
  std::mt19937 random(11);
  int refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = good;
    switch (random() % 4) {
      case 0:
        text.resize(random() % text.size());
        break;
      case 1:
        text[random() % text.size()] = static_cast<char>(random());
        break;
      case 2:
        text.insert(random() % text.size(), std::string(random() % 5, "[]{}\",:1e"[random() % 9]));
        break;
      default:
        text.erase(random() % text.size(), random() % 20);
    }
    auto parsed = ParseRecords(text);
    if (!parsed) {
      ++refused;
      continue;
    }
    // Whatever is accepted can be written and read again.
    auto again = ParseRecords(FormatRecords(parsed->records, parsed->next_serial));
    ASSERT_TRUE(again.ok()) << text;
    ASSERT_EQ(again->records, parsed->records);
    for (const auto& [token, item] : parsed->records) ASSERT_TRUE(IsToken(token));
  }
  EXPECT_GT(refused, 10'000);
  EXPECT_FALSE(ParseRecords(std::string(1'000'000, '[')).ok());
}

TEST(DurableFileTest, ReadsNoMoreThanAllowedAndFollowsNoLink) {
  char name[] = "/tmp/rubato-file-XXXXXX";
  ASSERT_NE(::mkdtemp(name), nullptr);
  const std::string folder = name;
  ASSERT_TRUE(ReplaceFile(folder + "/a", std::string(1000, 'x')).ok());
  EXPECT_EQ(ReadWholeFile(folder + "/a", 1000)->size(), 1000u);
  EXPECT_EQ(ReadWholeFile(folder + "/a", 999).error().code, base::ErrorCode::kFull);
  EXPECT_EQ(ReadWholeFile(folder + "/b", 999).error().code, base::ErrorCode::kNotFound);
  fs::create_symlink(folder + "/a", folder + "/link");
  EXPECT_EQ(ReadWholeFile(folder + "/link", 1000).error().code, base::ErrorCode::kSystem);
  EXPECT_TRUE(MakeDirectories(folder + "/x/y/z", 0711).ok());
  EXPECT_TRUE(MakeDirectories(folder + "/x/y/z", 0755).ok());
  EXPECT_FALSE(MakeDirectories(folder + "/a/b", 0755).ok());
  fs::remove_all(folder);
}

}  // namespace
}  // namespace rubato::deviceplugin
