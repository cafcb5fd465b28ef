#include "deviceplugin/allocation_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "base/unique_fd.h"
#include "deviceplugin/allocation.h"
#include "deviceplugin/durable_file.h"
#include "deviceplugin/slot.h"

namespace rubato::deviceplugin {
namespace {

using nlohmann::json;

constexpr int kVersion = 1;
constexpr size_t kTokenCharacters = 32;
constexpr size_t kMostFileBytes = 64 * 1024 * 1024;
// What may lie in the directory of an allocation: the scheduler's socket.
constexpr const char kSocketName[] = "attach.sock";

int64_t UnixMilliseconds() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

base::Result<std::string> RandomToken() {
  unsigned char bytes[kTokenCharacters / 2];
  size_t got = 0;
  while (got < sizeof(bytes)) {
    const ssize_t n = ::getrandom(bytes + got, sizeof(bytes) - got, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::SystemError("no random numbers");
    got += static_cast<size_t>(n);
  }
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string token;
  for (const unsigned char byte : bytes) {
    token += kDigits[byte >> 4];
    token += kDigits[byte & 15];
  }
  return token;
}

// The directory that a container sees: anybody may go in, nobody but us may change it.
base::Result<void> MakeAllocationDirectory(const std::string& path) {
  if (::mkdir(path.c_str(), 0755) != 0 && errno != EEXIST)
    return base::SystemError("cannot make " + path);
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return base::SystemError("cannot open " + path);
  if (::fchmod(fd.get(), 0755) != 0) return base::SystemError("cannot set the mode of " + path);
  return {};
}

base::Result<void> RemoveAllocationDirectory(const std::string& path) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOENT) return {};
    return base::SystemError("cannot open " + path);
  }
  if (::unlinkat(fd.get(), kSocketName, 0) != 0 && errno != ENOENT)
    return base::SystemError("cannot remove the socket in " + path);
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT)
    return base::SystemError("cannot remove " + path);
  return {};
}

bool IsDirectory(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

base::Error Wrong(const std::string& what) {
  return {base::ErrorCode::kInvalid, "allocation records: " + what};
}

// The strings of an array that all pass `check`; nullopt if anything is off.
template <typename Check>
std::optional<std::vector<std::string>> Strings(const json& object, const char* key, size_t most,
                                                Check check) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array() || found->size() > most) return std::nullopt;
  std::vector<std::string> strings;
  for (const json& item : *found) {
    if (!item.is_string() || !check(item.get_ref<const std::string&>())) return std::nullopt;
    strings.push_back(item.get<std::string>());
  }
  return strings;
}

base::Result<AllocationRecord> ParseRecord(const json& object) {
  if (!object.is_object()) return Wrong("an allocation is no object");
  AllocationRecord record;
  const auto string_of = [&](const char* key) -> std::optional<std::string> {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_string()) return std::nullopt;
    return found->get<std::string>();
  };
  const auto unsigned_of = [&](const char* key) -> std::optional<uint64_t> {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_number_unsigned()) return std::nullopt;
    return found->get<uint64_t>();
  };
  const auto token = string_of("token");
  if (!token || !IsToken(*token)) return Wrong("an allocation has no valid token");
  record.token = *token;
  const auto serial = unsigned_of("serial");
  const auto slots_per_gpu = unsigned_of("slots_per_gpu");
  const auto created = unsigned_of("created_unix_ms");
  const auto vendor = string_of("vendor");
  if (!serial || !slots_per_gpu || *slots_per_gpu < 1 || *slots_per_gpu > kMostSlotsPerGpu ||
      !created || *created > static_cast<uint64_t>(INT64_MAX) || !vendor || vendor->size() > 64)
    return Wrong("a wrong number or vendor in allocation " + record.token);
  record.serial = *serial;
  record.slots_per_gpu = static_cast<uint32_t>(*slots_per_gpu);
  record.created_unix_ms = static_cast<int64_t>(*created);
  record.vendor = *vendor;
  auto slots = Strings(object, "slots", kMostSlotsPerRequest,
                       [](const std::string& text) { return ParseSlotId(text).ok(); });
  auto gpus = Strings(object, "gpus", kMostSlotsPerRequest,
                      [](const std::string& text) { return IsUuid(text); });
  auto folders = Strings(object, "host_folders", 16, [](const std::string& text) {
    return !text.empty() && text.front() == '/' && text.size() <= 4096;
  });
  if (!slots || slots->empty() || !gpus || gpus->empty() || !folders)
    return Wrong("wrong slots, GPUs or folders in allocation " + record.token);
  record.slots = std::move(*slots);
  record.gpus = std::move(*gpus);
  record.host_folders = std::move(*folders);
  const auto superseded = object.find("superseded");
  if (superseded == object.end() || !superseded->is_boolean())
    return Wrong("allocation " + record.token + " does not say whether it is superseded");
  record.superseded = superseded->get<bool>();
  return record;
}

class DiskAllocationStore final : public AllocationStore {
 public:
  DiskAllocationStore(base::EventLoop* loop, Paths paths)
      : loop_(loop), paths_(std::move(paths)), alive_(std::make_shared<bool>(true)) {}

  ~DiskAllocationStore() override {
    *alive_ = false;
    if (!thread_.joinable()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  base::Result<void> Begin() {
    const std::filesystem::path file(paths_.records_file);
    if (auto made = MakeDirectories(file.parent_path().string(), 0755); !made) return made;
    // Whoever knows a token may go through; nobody can list them.
    if (auto made = MakeDirectories(paths_.directory, 0711); !made) return made;
    // Serials stay unique after the loss of the file, too.
    next_serial_ = static_cast<uint64_t>(std::max<int64_t>(1, UnixMilliseconds()));
    if (auto read = ReadRecords(); !read) return read;
    if (auto checked = CheckDirectories(); !checked) return checked;
    // A disk that cannot be written is found now, not at the first pod.
    if (auto written = ReplaceFile(paths_.records_file, FormatRecords(records_, next_serial_));
        !written)
      return written;
    thread_ = std::thread([this] { Work(); });
    return {};
  }

  const Opening& opening() const override { return opening_; }

  void Add(AllocationRecord record, Added added) override {
    auto token = RandomToken();
    std::optional<base::Error> error;
    if (!token) {
      error = token.error();
    } else if (records_.size() >= kMostRecords) {
      error = base::Error{base::ErrorCode::kFull,
                          std::to_string(records_.size()) + " allocations are recorded already"};
    }
    if (error.has_value()) {
      loop_->Post([alive = alive_, added = std::move(added), error = *error] {
        if (*alive) added(error);
      });
      return;
    }
    record.token = *token;
    record.serial = next_serial_++;
    record.created_unix_ms = UnixMilliseconds();
    record.superseded = false;
    const std::set<std::string> taken(record.slots.begin(), record.slots.end());
    for (auto& [other_token, other] : records_) {
      if (std::any_of(other.slots.begin(), other.slots.end(),
                      [&](const std::string& slot) { return taken.contains(slot); }))
        other.superseded = true;
    }
    records_[record.token] = record;
    Job job;
    job.make_directory = DirectoryOf(record.token);
    job.write = true;
    job.done = [this, record, added = std::move(added)](const base::Result<void>& result) {
      if (result.ok()) {
        added(record);
        return;
      }
      // Nobody will be told of it: no container can use it.
      records_.erase(record.token);
      Job undo;
      undo.remove_directory = DirectoryOf(record.token);
      undo.write = true;
      Give(std::move(undo));
      added(result.error());
    };
    Give(std::move(job));
  }

  void Release(const std::string& token, Done done) override {
    if (!records_.contains(token) || releasing_.contains(token)) {
      loop_->Post([alive = alive_, token, done = std::move(done)] {
        if (*alive && done) done(base::Error{base::ErrorCode::kNotFound, "no allocation " + token});
      });
      return;
    }
    releasing_.insert(token);
    Job remove;
    remove.remove_directory = DirectoryOf(token);
    remove.done = [this, token, done = std::move(done)](const base::Result<void>& removed) {
      releasing_.erase(token);
      if (!removed) {
        if (done) done(removed);
        return;
      }
      records_.erase(token);
      Job write;
      write.write = true;
      write.done = done;
      Give(std::move(write));
    };
    Give(std::move(remove));
  }

  const AllocationRecord* Find(const std::string& token) const override {
    const auto found = records_.find(token);
    return found == records_.end() ? nullptr : &found->second;
  }

  std::vector<AllocationRecord> OfSlots(const std::vector<std::string>& slots) const override {
    std::vector<std::string> wanted = slots;
    std::sort(wanted.begin(), wanted.end());
    std::vector<AllocationRecord> found;
    for (const auto& [token, record] : records_) {
      if (record.slots.size() != wanted.size() || releasing_.contains(token)) continue;
      std::vector<std::string> has = record.slots;
      std::sort(has.begin(), has.end());
      if (has == wanted) found.push_back(record);
    }
    std::sort(found.begin(), found.end(),
              [](const auto& a, const auto& b) { return a.serial > b.serial; });
    return found;
  }

  const std::map<std::string, AllocationRecord>& records() const override { return records_; }

  std::string DirectoryOf(const std::string& token) const override {
    return paths_.directory + "/" + token;
  }

 private:
  // What the disk's thread does, in this order, before `done` is called from the loop.
  struct Job {
    std::string make_directory;
    std::string remove_directory;
    bool write = false;
    Done done;
    base::Result<void> result;
  };
  struct Content {
    std::map<std::string, AllocationRecord> records;
    uint64_t next_serial = 1;
  };

  base::Result<void> ReadRecords() {
    auto parsed = ReadRecordsFile(paths_.records_file);
    if (parsed) {
      records_ = std::move(parsed->records);
      next_serial_ = std::max(next_serial_, parsed->next_serial);
      opening_.records = records_.size();
      return {};
    }
    if (parsed.error().code == base::ErrorCode::kNotFound) return {};
    if (parsed.error().code == base::ErrorCode::kSystem) return parsed.error();
    opening_.problem = parsed.error().message;
    opening_.set_aside = paths_.records_file + ".unreadable-" + std::to_string(UnixMilliseconds());
    if (::rename(paths_.records_file.c_str(), opening_.set_aside.c_str()) != 0)
      return base::SystemError("cannot set aside " + paths_.records_file);
    return {};
  }

  base::Result<void> CheckDirectories() {
    for (const auto& [token, record] : records_) {
      const std::string path = DirectoryOf(token);
      if (IsDirectory(path)) continue;
      if (auto made = MakeAllocationDirectory(path); !made) return made;
      opening_.remade.push_back(token);
    }
    DIR* directory = ::opendir(paths_.directory.c_str());
    if (directory == nullptr) return base::SystemError("cannot read " + paths_.directory);
    while (const dirent* entry = ::readdir(directory)) {
      if (IsToken(entry->d_name) && !records_.contains(entry->d_name))
        opening_.unrecorded.emplace_back(entry->d_name);
    }
    ::closedir(directory);
    std::sort(opening_.unrecorded.begin(), opening_.unrecorded.end());
    return {};
  }

  void Give(Job job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // A job that waits is written with the newest content: one write for all that wait.
      if (job.write) content_ = Content{records_, next_serial_};
      jobs_.push_back(std::move(job));
    }
    wake_.notify_one();
  }

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return ending_ || !jobs_.empty(); });
      // What was asked for before the end is done: an answer may have been promised.
      if (jobs_.empty()) return;
      std::vector<Job> jobs;
      jobs.swap(jobs_);
      std::optional<Content> content;
      content.swap(content_);
      lock.unlock();
      base::Result<void> written;
      for (Job& job : jobs) {
        if (!job.make_directory.empty()) job.result = MakeAllocationDirectory(job.make_directory);
        if (!job.remove_directory.empty())
          job.result = RemoveAllocationDirectory(job.remove_directory);
      }
      if (content.has_value())
        written =
            ReplaceFile(paths_.records_file, FormatRecords(content->records, content->next_serial));
      for (Job& job : jobs) {
        if (job.write && job.result.ok()) job.result = written;
        if (!job.done) continue;
        loop_->Post([alive = alive_, done = std::move(job.done), result = job.result] {
          if (*alive) done(result);
        });
      }
      lock.lock();
    }
  }

  base::EventLoop* loop_;
  const Paths paths_;
  Opening opening_;
  std::map<std::string, AllocationRecord> records_;
  std::set<std::string> releasing_;
  uint64_t next_serial_ = 1;
  std::shared_ptr<bool> alive_;  // Read and written on the loop's thread only.

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Job> jobs_;           // Guarded by mutex_.
  std::optional<Content> content_;  // Guarded by mutex_: what to write, if anything.
  bool ending_ = false;             // Guarded by mutex_.
};

}  // namespace

bool IsToken(const std::string& text) {
  return text.size() == kTokenCharacters && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

std::string FormatRecords(const std::map<std::string, AllocationRecord>& records,
                          uint64_t next_serial) {
  json allocations = json::array();
  for (const auto& [token, record] : records) {
    allocations.push_back(
        {{"token", token},
         {"serial", record.serial},
         {"slots", record.slots},
         {"gpus", record.gpus},
         {"vendor", record.vendor},
         {"slots_per_gpu", record.slots_per_gpu},
         {"created_unix_ms", static_cast<uint64_t>(std::max<int64_t>(0, record.created_unix_ms))},
         {"superseded", record.superseded},
         {"host_folders", record.host_folders}});
  }
  const json document = {
      {"version", kVersion}, {"next_serial", next_serial}, {"allocations", std::move(allocations)}};
  // Folders come from the configuration and need not be UTF-8.
  return document.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

base::Result<ParsedRecords> ParseRecords(const std::string& text) {
  const json document = json::parse(text, nullptr, false);
  if (document.is_discarded()) return Wrong("the file is no JSON");
  if (!document.is_object()) return Wrong("the file is no object");
  const auto version = document.find("version");
  if (version == document.end() || !version->is_number_unsigned())
    return Wrong("the file has no version");
  if (version->get<uint64_t>() != kVersion)
    return Wrong("the file has version " + version->dump() + ", this program reads " +
                 std::to_string(kVersion));
  const auto next_serial = document.find("next_serial");
  const auto allocations = document.find("allocations");
  if (next_serial == document.end() || !next_serial->is_number_unsigned() ||
      allocations == document.end() || !allocations->is_array())
    return Wrong("next_serial or allocations is missing");
  ParsedRecords parsed;
  parsed.next_serial = next_serial->get<uint64_t>();
  for (const json& item : *allocations) {
    auto record = ParseRecord(item);
    if (!record) return record.error();
    if (record->serial >= parsed.next_serial)
      return Wrong("allocation " + record->token + " is newer than the file");
    const std::string token = record->token;
    if (!parsed.records.emplace(token, std::move(*record)).second)
      return Wrong("allocation " + token + " is there twice");
  }
  return parsed;
}

base::Result<ParsedRecords> ReadRecordsFile(const std::string& path) {
  auto text = ReadWholeFile(path, kMostFileBytes);
  if (!text) return text.error();
  return ParseRecords(*text);
}

base::Result<std::unique_ptr<AllocationStore>> AllocationStore::Open(base::EventLoop* loop,
                                                                     const Paths& paths) {
  auto store = std::make_unique<DiskAllocationStore>(loop, paths);
  if (auto begun = store->Begin(); !begun) return begun.error();
  return std::unique_ptr<AllocationStore>(std::move(store));
}

}  // namespace rubato::deviceplugin
