#include "scheduler/daemon/profile_database.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "base/log.h"
#include "base/unique_fd.h"

namespace rubato::sched {
namespace {

using base::Error;
using base::ErrorCode;

// Another scheduler of this user may write at the same time.
constexpr int kBusyMs = 2000;
constexpr int kMostAside = 8;
constexpr size_t kMostName = 128;

constexpr const char kSchema[] =
    "CREATE TABLE device (id INTEGER PRIMARY KEY, name TEXT NOT NULL, sm_count INTEGER NOT NULL,"
    " time_dilation INTEGER NOT NULL, driver TEXT NOT NULL,"
    " UNIQUE (name, sm_count, time_dilation, driver));"
    "CREATE TABLE profile (id INTEGER PRIMARY KEY, device INTEGER NOT NULL, module_hash INTEGER "
    "NOT "
    "NULL, key INTEGER NOT NULL, kind INTEGER NOT NULL, name TEXT NOT NULL, duration_ns INTEGER "
    "NOT "
    "NULL, max_ns INTEGER NOT NULL, spread_ns INTEGER NOT NULL, samples INTEGER NOT NULL, clean "
    "INTEGER NOT NULL, last_seen_s INTEGER NOT NULL, UNIQUE (device, module_hash, key));"
    "CREATE INDEX profile_by_age ON profile (last_seen_s);";

struct CloseStatement {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Statement = std::unique_ptr<sqlite3_stmt, CloseStatement>;
struct CloseConnection {
  void operator()(sqlite3* connection) const { sqlite3_close_v2(connection); }
};
using Connection = std::unique_ptr<sqlite3, CloseConnection>;

bool IsDamage(int code) {
  return (code & 0xff) == SQLITE_CORRUPT || (code & 0xff) == SQLITE_NOTADB;
}

std::string TextOf(sqlite3_stmt* row, int column) {
  const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(row, column));
  const auto bytes = static_cast<size_t>(sqlite3_column_bytes(row, column));
  return text == nullptr ? std::string() : base::Printable({text, bytes}, kMostName);
}

std::optional<ProfileRow> RowOf(sqlite3_stmt* row) {
  const int64_t sm_count = sqlite3_column_int64(row, 1);
  const int64_t dilation = sqlite3_column_int64(row, 2);
  const int64_t kind = sqlite3_column_int64(row, 6);
  const int64_t duration_ns = sqlite3_column_int64(row, 8);
  const int64_t max_ns = sqlite3_column_int64(row, 9);
  const int64_t spread_ns = sqlite3_column_int64(row, 10);
  const int64_t samples = sqlite3_column_int64(row, 11);
  constexpr int64_t kMost = 0xffffffff;
  ProfileRow out;
  out.module_hash = static_cast<uint64_t>(sqlite3_column_int64(row, 4));
  out.key = static_cast<uint64_t>(sqlite3_column_int64(row, 5));
  if (sm_count < 0 || sm_count > 4096 || dilation < 1 || dilation > 10'000 || out.key == 0 ||
      out.key == ~uint64_t{0} || kind < 0 || kind > static_cast<int64_t>(abi::OpKind::kSegment) ||
      duration_ns < 1 || duration_ns > kMost || max_ns < 1 || max_ns > kMost || spread_ns < 0 ||
      spread_ns > kMost || samples < 1) {
    return std::nullopt;
  }
  out.model = DeviceModel{TextOf(row, 0), static_cast<uint32_t>(sm_count),
                          static_cast<uint32_t>(dilation), TextOf(row, 3)};
  out.kind = static_cast<abi::OpKind>(kind);
  out.name = TextOf(row, 7);
  out.duration_ns = duration_ns;
  out.max_ns = static_cast<uint32_t>(max_ns);
  out.spread_ns = spread_ns;
  out.samples = static_cast<uint64_t>(samples);
  out.clean = sqlite3_column_int64(row, 12) != 0;
  out.last_seen_s = sqlite3_column_int64(row, 13);
  return out;
}

class SqliteDatabase final : public ProfileDatabase {
 public:
  SqliteDatabase(std::string path, size_t most_rows)
      : path_(std::move(path)), most_rows_(most_rows) {}

  // SQLITE_OK, or why the file cannot be used. `version` is that of the schema, where it could be
  // read.
  int Open(int* version) {
    sqlite3* connection = nullptr;
    const int opened = sqlite3_open_v2(
        path_.c_str(), &connection,
        SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_NOMUTEX, nullptr);
    connection_.reset(connection);
    if (opened != SQLITE_OK) return opened;
    sqlite3_extended_result_codes(connection, 1);
    sqlite3_busy_timeout(connection, kBusyMs);
    sqlite3_limit(connection, SQLITE_LIMIT_LENGTH, 1 << 20);
    // A file that was made by somebody else must not run code of theirs in here.
    sqlite3_db_config(connection, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
    sqlite3_db_config(connection, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
    int64_t found = 0;
    if (const int code = Number("PRAGMA user_version", &found); code != SQLITE_OK) return code;
    *version = static_cast<int>(found);
    // Where the file system cannot share memory SQLite keeps the journal it has.
    int code = Run("PRAGMA journal_mode=WAL");
    if (code == SQLITE_OK) code = Run("PRAGMA synchronous=NORMAL");
    if (code != SQLITE_OK) return code;
    if (found == 0) return Begin(version);
    if (found != kProfileSchemaVersion) return SQLITE_OK;
    return Check();
  }

  std::string Complaint(int code) const {
    if (foreign_) return "it is a database of another program; choose another --profile-store";
    return connection_ != nullptr ? sqlite3_errmsg(connection_.get()) : sqlite3_errstr(code);
  }

  base::Result<std::vector<ProfileRow>> ReadAll(size_t limit) override {
    std::vector<ProfileRow> rows;
    Statement select = Prepare(
        "SELECT d.name, d.sm_count, d.time_dilation, d.driver, p.module_hash, p.key, p.kind, "
        "p.name,"
        " p.duration_ns, p.max_ns, p.spread_ns, p.samples, p.clean, p.last_seen_s FROM profile p"
        " JOIN device d ON d.id = p.device ORDER BY p.last_seen_s DESC LIMIT ?1");
    if (select == nullptr) return Failed("read");
    sqlite3_bind_int64(select.get(), 1, static_cast<int64_t>(limit));
    int code = SQLITE_OK;
    while ((code = sqlite3_step(select.get())) == SQLITE_ROW) {
      if (auto row = RowOf(select.get())) rows.push_back(std::move(*row));
    }
    if (code != SQLITE_DONE) return Failed("read");
    return rows;
  }

  base::Result<void> Write(const std::vector<ProfileRow>& rows) override {
    return InTransaction([&] { return Replace(rows) && Trim(); });
  }

  base::Result<void> Clear() override {
    return InTransaction([&] {
      return Run("DELETE FROM profile") == SQLITE_OK && Run("DELETE FROM device") == SQLITE_OK;
    });
  }

 private:
  Statement Prepare(const char* sql) {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v2(connection_.get(), sql, -1, &statement, nullptr) != SQLITE_OK)
      statement = nullptr;
    return Statement(statement);
  }

  int Run(const char* sql) {
    return sqlite3_exec(connection_.get(), sql, nullptr, nullptr, nullptr);
  }

  int Number(const char* sql, int64_t* number) {
    const Statement statement = Prepare(sql);
    if (statement == nullptr) return sqlite3_errcode(connection_.get());
    const int code = sqlite3_step(statement.get());
    if (code != SQLITE_ROW) return code == SQLITE_DONE ? SQLITE_CORRUPT : code;
    *number = sqlite3_column_int64(statement.get(), 0);
    return SQLITE_OK;
  }

  // A file without a version: empty, or not ours.
  int Begin(int* version) {
    int code = Run("BEGIN IMMEDIATE");
    if (code != SQLITE_OK) return code;
    int64_t found = 0;
    int64_t tables = 0;
    code = Number("PRAGMA user_version", &found);
    if (code == SQLITE_OK) code = Number("SELECT count(*) FROM sqlite_master", &tables);
    foreign_ = found == 0 && tables != 0;
    if (foreign_) code = SQLITE_AUTH;
    // Another scheduler may have been here first.
    if (code == SQLITE_OK && found == 0) {
      code = Run(kSchema);
      if (code == SQLITE_OK)
        code = Run(("PRAGMA user_version=" + std::to_string(kProfileSchemaVersion)).c_str());
      found = kProfileSchemaVersion;
    }
    if (code == SQLITE_OK) code = Run("COMMIT");
    if (code != SQLITE_OK) (void)Run("ROLLBACK");
    *version = static_cast<int>(found);
    return code;
  }

  int Check() {
    const Statement check = Prepare("PRAGMA quick_check(1)");
    if (check == nullptr) return sqlite3_errcode(connection_.get());
    const int code = sqlite3_step(check.get());
    if (code != SQLITE_ROW) return code == SQLITE_DONE ? SQLITE_CORRUPT : code;
    if (TextOf(check.get(), 0) != "ok") return SQLITE_CORRUPT;
    // The tables and columns are there.
    const Statement select = Prepare(
        "SELECT p.kind, p.name, p.duration_ns, p.max_ns, p.spread_ns, p.samples, p.clean,"
        " p.last_seen_s, p.module_hash, p.key, d.driver, d.sm_count, d.time_dilation FROM profile p"
        " JOIN device d ON d.id = p.device LIMIT 1");
    return select == nullptr ? SQLITE_CORRUPT : SQLITE_OK;
  }

  template <typename Work>
  base::Result<void> InTransaction(Work work) {
    if (Run("BEGIN IMMEDIATE") != SQLITE_OK) return Failed("write");
    if (work() && Run("COMMIT") == SQLITE_OK) return {};
    Error error = Failed("write");
    (void)Run("ROLLBACK");
    return error;
  }

  bool Replace(const std::vector<ProfileRow>& rows) {
    const Statement find = Prepare(
        "SELECT id FROM device WHERE name=?1 AND sm_count=?2 AND time_dilation=?3 AND driver=?4");
    const Statement add = Prepare(
        "INSERT INTO device (name, sm_count, time_dilation, driver) VALUES (?1, ?2, ?3, ?4)");
    const Statement put = Prepare(
        "INSERT INTO profile (device, module_hash, key, kind, name, duration_ns, max_ns, spread_ns,"
        " samples, clean, last_seen_s) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
        " ON CONFLICT (device, module_hash, key) DO UPDATE SET kind=excluded.kind,"
        " name=CASE excluded.name WHEN '' THEN name ELSE excluded.name END,"
        " duration_ns=excluded.duration_ns, max_ns=excluded.max_ns, spread_ns=excluded.spread_ns,"
        " samples=excluded.samples, clean=excluded.clean, last_seen_s=excluded.last_seen_s");
    if (find == nullptr || add == nullptr || put == nullptr) return false;
    std::optional<DeviceModel> known;
    int64_t device = 0;
    for (const ProfileRow& row : rows) {
      if (!known.has_value() || *known != row.model) {
        if (!DeviceId(row.model, find.get(), add.get(), &device)) return false;
        known = row.model;
      }
      const auto number = [&](int at, int64_t value) { sqlite3_bind_int64(put.get(), at, value); };
      number(1, device);
      number(2, static_cast<int64_t>(row.module_hash));
      number(3, static_cast<int64_t>(row.key));
      number(4, static_cast<int64_t>(row.kind));
      sqlite3_bind_text(put.get(), 5, row.name.c_str(), static_cast<int>(row.name.size()),
                        SQLITE_TRANSIENT);
      number(6, row.duration_ns);
      number(7, row.max_ns);
      number(8, row.spread_ns);
      number(9, static_cast<int64_t>(std::min<uint64_t>(row.samples, uint64_t{1} << 62)));
      number(10, row.clean ? 1 : 0);
      number(11, row.last_seen_s);
      if (sqlite3_step(put.get()) != SQLITE_DONE) return false;
      sqlite3_reset(put.get());
    }
    return true;
  }

  static void BindModel(const DeviceModel& model, sqlite3_stmt* statement) {
    sqlite3_reset(statement);
    sqlite3_bind_text(statement, 1, model.name.c_str(), static_cast<int>(model.name.size()),
                      SQLITE_TRANSIENT);
    sqlite3_bind_int64(statement, 2, model.sm_count);
    sqlite3_bind_int64(statement, 3, model.time_dilation);
    sqlite3_bind_text(statement, 4, model.driver.c_str(), static_cast<int>(model.driver.size()),
                      SQLITE_TRANSIENT);
  }

  bool DeviceId(const DeviceModel& model, sqlite3_stmt* find, sqlite3_stmt* add, int64_t* id) {
    BindModel(model, find);
    const int code = sqlite3_step(find);
    if (code == SQLITE_ROW) {
      *id = sqlite3_column_int64(find, 0);
      sqlite3_reset(find);
      return true;
    }
    if (code != SQLITE_DONE) return false;
    BindModel(model, add);
    if (sqlite3_step(add) != SQLITE_DONE) return false;
    *id = sqlite3_last_insert_rowid(connection_.get());
    return true;
  }

  bool Trim() {
    int64_t rows = 0;
    if (Number("SELECT count(*) FROM profile", &rows) != SQLITE_OK) return false;
    if (rows <= static_cast<int64_t>(most_rows_)) return true;
    const Statement trim = Prepare(
        "DELETE FROM profile WHERE id IN (SELECT id FROM profile ORDER BY last_seen_s, id LIMIT "
        "?1)");
    if (trim == nullptr) return false;
    sqlite3_bind_int64(trim.get(), 1, rows - static_cast<int64_t>(most_rows_));
    return sqlite3_step(trim.get()) == SQLITE_DONE;
  }

  Error Failed(const char* what) const {
    return Error{ErrorCode::kUnavailable, std::string("cannot ") + what + " the profile store " +
                                              path_ + ": " + sqlite3_errmsg(connection_.get())};
  }

  std::string path_;
  size_t most_rows_;
  bool foreign_ = false;
  Connection connection_;
};

// The file, made if it is not there: SQLite would make it with the umask's rights.
base::Result<void> Prepare(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    const std::string folder = path.substr(0, slash);
    if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST &&
        ::access(folder.c_str(), F_OK) != 0)
      return base::SystemError("cannot make the folder " + folder);
  }
  const base::UniqueFd fd(
      ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!fd.valid()) return base::SystemError("cannot open " + path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode))
    return Error{ErrorCode::kInvalid, path + " is no regular file"};
  return {};
}

// The new name; empty: it could not be moved.
std::string MoveAside(const std::string& path, const std::string& why) {
  for (int i = 1; i <= kMostAside; ++i) {
    const std::string aside = path + "." + why + "-" + std::to_string(i);
    struct stat info {};
    // The last place is used again and again, so that no number of them fills the disk.
    if (i < kMostAside && ::lstat(aside.c_str(), &info) == 0) continue;
    if (::rename(path.c_str(), aside.c_str()) != 0) return "";
    // Without its log and index a database is what it was at the last checkpoint: good for a look.
    for (const char* with : {"-wal", "-shm", "-journal"}) ::unlink((path + with).c_str());
    return aside;
  }
  return "";
}

}  // namespace

base::Result<OpenedDatabase> OpenProfileDatabase(const std::string& path, size_t most_rows) {
  OpenedDatabase result;
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (auto prepared = Prepare(path); !prepared) return prepared.error();
    auto database = std::make_unique<SqliteDatabase>(path, most_rows);
    int version = 0;
    const int code = database->Open(&version);
    if (code == SQLITE_OK && version == kProfileSchemaVersion) {
      result.database = std::move(database);
      return result;
    }
    const std::string complaint = code == SQLITE_OK
                                      ? "it has version " + std::to_string(version) + " and not " +
                                            std::to_string(kProfileSchemaVersion)
                                      : database->Complaint(code);
    if ((code != SQLITE_OK && !IsDamage(code)) || attempt == 1)
      return Error{ErrorCode::kUnavailable, "cannot use " + path + ": " + complaint};
    database.reset();
    const std::string aside = MoveAside(
        path, code == SQLITE_OK ? "version-" + std::to_string(version) : std::string("damaged"));
    if (aside.empty())
      return base::SystemError("cannot use " + path + " (" + complaint + ") nor move it aside");
    result.warning = path + " cannot be used: " + complaint + "; it was moved to " + aside +
                     ", and a new one begun";
  }
  return Error{ErrorCode::kUnavailable, "cannot use " + path};
}

}  // namespace rubato::sched
