// What was ever learnt about durations: a library in memory, and a thread that keeps a disk up to
// date with it.
//
// The library belongs to the loop's thread, which never waits for a disk: it is filled once, when
// the thread has read the file, and from then on grows with what this run learns; batches go to the
// thread. Whatever the disk does, the scheduler goes on: errors are counted, the first is logged,
// and a batch that could not be written is tried again with the next one. What is lost at a sudden
// end is the last batch.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "scheduler/daemon/profile_database.h"

namespace rubato::sched {

// In the library and in the file: a few megabytes, and three times what one device's table holds.
inline constexpr size_t kMostProfiles = 50'000;

struct ProfileStoreStatus {
  std::string path;      // Empty: there is none.
  bool reading = false;  // The file has not been read yet.
  bool usable = false;   // It could be opened.
  uint64_t rows = 0;     // In the library.
  uint64_t errors = 0;   // Times that something could not be read or written.
  uint64_t written = 0;  // Rows written since the start.
};

class ProfileStore {
 public:
  using Opener = std::function<base::Result<OpenedDatabase>()>;
  using Post = std::function<void(std::function<void()>)>;  // To the loop's thread; from any.

  // Starts the thread, which calls `open`. `loaded` is called once on the loop's thread after the
  // library was filled, also when there was nothing to fill it with.
  ProfileStore(std::string path, Opener open, Post post, std::function<void()> loaded);
  // Waits for what was learnt to be written, but for a disk that hangs no longer than `limit_ns`.
  void Close(base::Nanos limit_ns);
  // As Close(0), unless that was called.
  ~ProfileStore();
  ProfileStore(const ProfileStore&) = delete;
  ProfileStore& operator=(const ProfileStore&) = delete;

  // Waits until the file was read, at most `limit_ns`, and takes what was read: for the start,
  // before anybody is served. False: `loaded` will be called when it has been.
  bool WaitLoaded(base::Nanos limit_ns);

  // ---- The loop's thread.
  // Takes what was learnt, and hands it to the thread. Rows of a key that is known keep its name if
  // they have none.
  void Learn(std::vector<ProfileRow> rows);
  // Rows of this model, the one seen last first.
  std::vector<ProfileRow> Of(const DeviceModel& model, size_t limit) const;
  // All rows, longest first.
  std::vector<ProfileRow> Longest(size_t limit) const;
  void Clear();
  ProfileStoreStatus Status() const;

 private:
  using RowId = std::tuple<DeviceModel, uint64_t, uint64_t>;  // Model, module, key.
  // Outlives the store if a disk hangs.
  struct Shared;

  static RowId IdOf(const ProfileRow& row) { return {row.model, row.module_hash, row.key}; }
  static void Work(const std::shared_ptr<Shared>& shared, const Opener& open, const Post& post);
  void TakeLoaded();

  std::map<RowId, ProfileRow> library_;
  bool loaded_ = false;
  bool cleared_ = false;  // Before the file was read: what is in it does not count.
  bool closed_ = false;
  std::shared_ptr<Shared> shared_;
  std::thread thread_;
};

}  // namespace rubato::sched
