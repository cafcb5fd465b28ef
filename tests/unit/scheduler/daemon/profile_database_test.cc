#include "scheduler/daemon/profile_database.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace rubato::sched {
namespace {

class ProfileDatabaseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/rubato-profiles-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    path_ = directory_ + "/state/rubato/profiles.sqlite";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  OpenedDatabase Open(size_t most_rows = 100) {
    auto opened = OpenProfileDatabase(path_, most_rows);
    EXPECT_TRUE(opened.ok()) << opened.error().message;
    return opened.ok() ? std::move(*opened) : OpenedDatabase{};
  }
  static ProfileRow Row(uint64_t key, base::Nanos duration_ns = 1000, int64_t last_seen_s = 50) {
    ProfileRow row;
    row.model = DeviceModel{"Some GPU", 132, 1, ""};
    row.key = key;
    row.duration_ns = duration_ns;
    row.max_ns = static_cast<uint32_t>(duration_ns + 1);
    row.spread_ns = 7;
    row.samples = 9;
    row.clean = true;
    row.last_seen_s = last_seen_s;
    return row;
  }
  // Runs SQL in the file as another program would.
  void Sql(const std::string& sql) {
    sqlite3* connection = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &connection), SQLITE_OK);
    char* complaint = nullptr;
    EXPECT_EQ(sqlite3_exec(connection, sql.c_str(), nullptr, nullptr, &complaint), SQLITE_OK)
        << complaint;
    sqlite3_close(connection);
  }
  static std::vector<uint64_t> KeysOf(const OpenedDatabase& opened) {
    std::vector<uint64_t> keys;
    const auto rows = opened.database->ReadAll(1000);
    EXPECT_TRUE(rows.ok());
    for (const ProfileRow& row : *rows) keys.push_back(row.key);
    return keys;
  }

  std::string directory_;
  std::string path_;
};

TEST_F(ProfileDatabaseTest, WhatIsWrittenIsReadAfterTheNextOpening) {
  ProfileRow row = Row(0xfedcba9876543210u, 4'000'000'000);
  row.model = DeviceModel{"Other GPU", 80, 20, "580.1"};
  row.module_hash = 0x8000000000000001u;
  row.kind = abi::OpKind::kMemset;
  row.name = "void f<int>(int)";
  {
    const OpenedDatabase opened = Open();
    EXPECT_EQ(opened.warning, "");
    EXPECT_TRUE(opened.database->Write({Row(1), row, Row(2)}).ok());
  }
  const OpenedDatabase opened = Open();
  const auto rows = opened.database->ReadAll(1000);
  ASSERT_TRUE(rows.ok());
  ASSERT_EQ(rows->size(), 3u);
  const auto found = std::find_if(rows->begin(), rows->end(),
                                  [&](const ProfileRow& r) { return r.key == row.key; });
  ASSERT_NE(found, rows->end());
  EXPECT_EQ(found->model, row.model);
  EXPECT_EQ(found->module_hash, row.module_hash);
  EXPECT_EQ(found->kind, row.kind);
  EXPECT_EQ(found->name, row.name);
  EXPECT_EQ(found->duration_ns, row.duration_ns);
  EXPECT_EQ(found->max_ns, row.max_ns);
  EXPECT_EQ(found->spread_ns, 7);
  EXPECT_EQ(found->samples, 9u);
  EXPECT_TRUE(found->clean);
  EXPECT_EQ(found->last_seen_s, 50);
}

TEST_F(ProfileDatabaseTest, ItIsTheUsersOwn) {
  const OpenedDatabase opened = Open();
  ASSERT_TRUE(opened.database->Write({Row(1)}).ok());
  for (const auto& [path, rights] :
       {std::pair{path_, 0600u}, std::pair{directory_ + "/state/rubato", 0700u}}) {
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, rights) << path;
  }
}

TEST_F(ProfileDatabaseTest, RowsOfTheSameKeyAreReplacedAndANameIsKept) {
  const OpenedDatabase opened = Open();
  ProfileRow named = Row(1);
  named.name = "gemm";
  ASSERT_TRUE(opened.database->Write({named}).ok());
  ASSERT_TRUE(opened.database->Write({Row(1, 2000, 60)}).ok());
  ProfileRow other = Row(1, 3000, 60);
  other.model.sm_count = 80;
  ASSERT_TRUE(opened.database->Write({other}).ok());
  const auto rows = opened.database->ReadAll(1000);
  ASSERT_TRUE(rows.ok());
  ASSERT_EQ(rows->size(), 2u);
  for (const ProfileRow& row : *rows) {
    EXPECT_EQ(row.duration_ns, row.model.sm_count == 80 ? 3000 : 2000);
    EXPECT_EQ(row.name, row.model.sm_count == 80 ? "" : "gemm");
  }
}

TEST_F(ProfileDatabaseTest, AboveTheLimitThoseNotSeenForLongestGo) {
  const OpenedDatabase opened = Open(3);
  ASSERT_TRUE(opened.database->Write({Row(1, 1, 10), Row(2, 1, 40), Row(3, 1, 30)}).ok());
  ASSERT_TRUE(opened.database->Write({Row(4, 1, 20), Row(5, 1, 50)}).ok());
  EXPECT_EQ(KeysOf(opened), (std::vector<uint64_t>{5, 2, 3}));
  const auto rows = opened.database->ReadAll(1);
  ASSERT_TRUE(rows.ok());
  EXPECT_EQ(rows->size(), 1u);
}

TEST_F(ProfileDatabaseTest, ClearLeavesNothing) {
  const OpenedDatabase opened = Open();
  ASSERT_TRUE(opened.database->Write({Row(1), Row(2)}).ok());
  ASSERT_TRUE(opened.database->Clear().ok());
  EXPECT_TRUE(KeysOf(opened).empty());
  ASSERT_TRUE(opened.database->Write({Row(3)}).ok());
  EXPECT_EQ(KeysOf(opened), (std::vector<uint64_t>{3}));
}

TEST_F(ProfileDatabaseTest, RowsThatCannotBeTrueAreLeftOut) {
  {
    const OpenedDatabase opened = Open();
    std::vector<ProfileRow> rows;
    for (uint64_t key = 1; key <= 9; ++key) rows.push_back(Row(key));
    ASSERT_TRUE(opened.database->Write(rows).ok());
  }
  Sql("UPDATE profile SET duration_ns=0 WHERE key=1;"
      "UPDATE profile SET duration_ns=5000000000 WHERE key=2;"
      "UPDATE profile SET kind=99 WHERE key=3;"
      "UPDATE profile SET max_ns=-1 WHERE key=4;"
      "UPDATE profile SET duration_ns='soon' WHERE key=5;"
      "UPDATE profile SET key=-1 WHERE key=6;"
      "UPDATE profile SET samples=x'00ff' WHERE key=7;"
      "UPDATE profile SET key=0 WHERE key=8;");
  EXPECT_EQ(KeysOf(Open()), (std::vector<uint64_t>{9}));
}

TEST_F(ProfileDatabaseTest, AFileThatIsNoDatabaseIsMovedAside) {
  for (int time = 1; time <= 2; ++time) {
    std::filesystem::create_directories(directory_ + "/state/rubato");
    std::ofstream(path_) << std::string(10'000, 'x');
    const OpenedDatabase opened = Open();
    EXPECT_NE(opened.warning.find("damaged-" + std::to_string(time)), std::string::npos)
        << opened.warning;
    EXPECT_TRUE(opened.database->Write({Row(1)}).ok());
    EXPECT_EQ(std::filesystem::file_size(path_ + ".damaged-" + std::to_string(time)), 10'000u);
  }
}

// Every page in turn, the header's own fields apart: it opens, whatever is lost.
TEST_F(ProfileDatabaseTest, DamageAnywhereIsNeverFatal) {
  std::vector<ProfileRow> rows;
  for (uint64_t key = 1; key <= 500; ++key) rows.push_back(Row(key * 0x9e3779b97f4a7c15u));
  Open(1000).database->Write(rows).ok();
  const auto whole = std::filesystem::file_size(path_);
  const std::string copy = directory_ + "/copy";
  std::filesystem::copy_file(path_, copy);
  int moved = 0;
  for (uintmax_t at = 0; at < whole; at += 2048) {
    std::filesystem::copy_file(copy, path_, std::filesystem::copy_options::overwrite_existing);
    {
      std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(at));
      file << std::string(512, '\xa5');
    }
    const OpenedDatabase opened = Open(1000);
    ASSERT_NE(opened.database, nullptr);
    moved += opened.warning.empty() ? 0 : 1;
    EXPECT_TRUE(opened.database->ReadAll(1000).ok());
    EXPECT_TRUE(opened.database->Write({Row(1)}).ok());
  }
  EXPECT_GT(moved, 0);
  std::filesystem::resize_file(copy, whole / 2);
  std::filesystem::copy_file(copy, path_, std::filesystem::copy_options::overwrite_existing);
  EXPECT_NE(Open(1000).warning, "");
}

TEST_F(ProfileDatabaseTest, AFileOfAnotherVersionIsMovedAside) {
  EXPECT_TRUE(Open().database->Write({Row(1)}).ok());
  Sql("PRAGMA user_version=7");
  const OpenedDatabase opened = Open();
  EXPECT_NE(opened.warning.find("version-7-1"), std::string::npos) << opened.warning;
  EXPECT_TRUE(KeysOf(opened).empty());
}

TEST_F(ProfileDatabaseTest, AFileThatLacksATableIsMovedAside) {
  EXPECT_TRUE(Open().database->Write({Row(1)}).ok());
  Sql("DROP TABLE profile");
  const OpenedDatabase opened = Open();
  EXPECT_NE(opened.warning, "");
  EXPECT_TRUE(opened.database->Write({Row(2)}).ok());
}

TEST_F(ProfileDatabaseTest, AnotherProgramsDatabaseIsLeftAlone) {
  std::filesystem::create_directories(directory_ + "/state/rubato");
  Sql("CREATE TABLE photos (id INTEGER)");
  const auto opened = OpenProfileDatabase(path_, 10);
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.error().message.find("another program"), std::string::npos)
      << opened.error().message;
  Sql("SELECT * FROM photos");
}

TEST_F(ProfileDatabaseTest, WhatCannotBeOpenedIsAnErrorWithItsReason) {
  std::filesystem::create_directories(path_);  // A folder in its place.
  EXPECT_FALSE(OpenProfileDatabase(path_, 10).ok());
  std::filesystem::remove(path_);
  std::filesystem::create_symlink(directory_ + "/elsewhere", path_);
  EXPECT_FALSE(OpenProfileDatabase(path_, 10).ok());
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/elsewhere"));
  std::ofstream(directory_ + "/file") << "x";
  EXPECT_FALSE(OpenProfileDatabase(directory_ + "/file/below/p.sqlite", 10).ok());
}

TEST_F(ProfileDatabaseTest, TwoSchedulersMayShareIt) {
  const OpenedDatabase one = Open();
  const OpenedDatabase two = Open();
  EXPECT_TRUE(one.database->Write({Row(1)}).ok());
  EXPECT_TRUE(two.database->Write({Row(2)}).ok());
  EXPECT_TRUE(one.database->Write({Row(3)}).ok());
  EXPECT_EQ(KeysOf(two).size(), 3u);
}

}  // namespace
}  // namespace rubato::sched
