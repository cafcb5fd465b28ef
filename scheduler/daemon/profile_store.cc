#include "scheduler/daemon/profile_store.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/log.h"

namespace rubato::sched {

struct ProfileStore::Shared {
  std::string path;
  std::function<void()> loaded;

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by the mutex, all of them.
  bool store_gone = false;  // Nobody may be told any more.
  bool end = false;
  bool ended = false;
  bool read = false;
  bool usable = false;
  bool clear = false;  // To be done before `waiting` is written.
  std::vector<ProfileRow> found;
  std::map<RowId, ProfileRow> waiting;  // Bounded as the library is.
  uint64_t errors = 0;
  uint64_t written = 0;
  ProfileStore* store = nullptr;  // For the loop's thread.
};

namespace {

// After an error the disk is left alone for so long, unless the end comes.
constexpr auto kPause = std::chrono::seconds(5);

}  // namespace

ProfileStore::ProfileStore(std::string path, Opener open, Post post, std::function<void()> loaded)
    : shared_(std::make_shared<Shared>()) {
  shared_->path = std::move(path);
  shared_->loaded = std::move(loaded);
  shared_->store = this;
  thread_ = std::thread([shared = shared_, open = std::move(open), post = std::move(post)] {
    Work(shared, open, post);
  });
}

ProfileStore::~ProfileStore() {
  if (!closed_) Close(0);
}

void ProfileStore::Close(base::Nanos limit_ns) {
  closed_ = true;
  std::unique_lock<std::mutex> lock(shared_->mutex);
  shared_->store_gone = true;
  shared_->end = true;
  shared_->changed.notify_all();
  const bool ended = shared_->changed.wait_for(lock, std::chrono::nanoseconds(limit_ns),
                                               [this] { return shared_->ended; });
  lock.unlock();
  if (ended) {
    thread_.join();
    return;
  }
  if (limit_ns != 0)
    base::LogWarning("the disk of {} does not answer; what was learnt last is lost", shared_->path);
  thread_.detach();
}

void ProfileStore::Work(const std::shared_ptr<Shared>& shared, const Opener& open,
                        const Post& post) {
  bool said = false;
  const auto complain = [&](const std::string& message) {
    if (!said) base::LogWarning("profiles: {}; the scheduler goes on without", message);
    said = true;
    const std::lock_guard<std::mutex> lock(shared->mutex);
    ++shared->errors;
  };
  auto opened = open();
  std::unique_ptr<ProfileDatabase> database;
  std::vector<ProfileRow> found;
  if (!opened) {
    complain(opened.error().message);
  } else {
    if (!opened->warning.empty()) {
      base::LogWarning("profiles: {}", opened->warning);
      const std::lock_guard<std::mutex> lock(shared->mutex);
      ++shared->errors;
    }
    database = std::move(opened->database);
    auto rows = database->ReadAll(kMostProfiles);
    if (rows) {
      found = std::move(*rows);
    } else {
      complain(rows.error().message);
    }
  }
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->found = std::move(found);
  shared->read = true;
  shared->usable = database != nullptr;
  shared->changed.notify_all();
  if (!shared->store_gone) {
    post([shared] {
      // The store lives on the loop's thread, where this runs.
      if (!shared->store_gone && !shared->store->loaded_) shared->store->TakeLoaded();
    });
  }
  while (true) {
    shared->changed.wait(lock,
                         [&] { return shared->end || shared->clear || !shared->waiting.empty(); });
    if (database == nullptr) {
      shared->waiting.clear();
      shared->clear = false;
      if (shared->end) break;
      continue;
    }
    const bool clear = std::exchange(shared->clear, false);
    std::map<RowId, ProfileRow> batch = std::exchange(shared->waiting, {});
    const bool last = shared->end;
    lock.unlock();
    base::Result<void> done = clear ? database->Clear() : base::Result<void>();
    if (done && !batch.empty()) {
      std::vector<ProfileRow> rows;
      rows.reserve(batch.size());
      for (const auto& [id, row] : batch) rows.push_back(row);
      done = database->Write(rows);
    }
    if (!done) complain(done.error().message);
    lock.lock();
    if (done) shared->written += batch.size();
    if (last) break;
    if (done) continue;
    // Once more, with what has come since; that is newer. A Clear that came since undoes it.
    if (!shared->clear) {
      shared->clear = clear;
      shared->waiting.merge(batch);
    }
    shared->changed.wait_for(lock, kPause, [&] { return shared->end; });
  }
  lock.unlock();
  database.reset();  // Its log goes into the file now.
  lock.lock();
  shared->ended = true;
  shared->changed.notify_all();
}

bool ProfileStore::WaitLoaded(base::Nanos limit_ns) {
  std::unique_lock<std::mutex> lock(shared_->mutex);
  if (!shared_->changed.wait_for(lock, std::chrono::nanoseconds(limit_ns),
                                 [this] { return shared_->read; })) {
    return false;
  }
  lock.unlock();
  if (!loaded_) TakeLoaded();
  return true;
}

void ProfileStore::TakeLoaded() {
  std::vector<ProfileRow> found;
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    found = std::exchange(shared_->found, {});
  }
  loaded_ = true;
  if (!cleared_) {
    for (ProfileRow& row : found) {
      if (library_.size() >= kMostProfiles) break;
      // What this run has learnt meanwhile is newer.
      library_.emplace(IdOf(row), std::move(row));
    }
  }
  shared_->loaded();
}

void ProfileStore::Learn(std::vector<ProfileRow> rows) {
  for (ProfileRow& row : rows) {
    auto [found, is_new] = library_.try_emplace(IdOf(row), row);
    if (is_new) continue;
    if (row.name.empty()) row.name = found->second.name;
    found->second = row;
  }
  if (library_.size() > kMostProfiles) {
    // A sixteenth at once, so that this is seldom.
    std::vector<std::pair<int64_t, RowId>> by_age;
    by_age.reserve(library_.size());
    for (const auto& [id, row] : library_) by_age.emplace_back(row.last_seen_s, id);
    const size_t surplus =
        std::min(by_age.size(), library_.size() - kMostProfiles + kMostProfiles / 16);
    std::partial_sort(by_age.begin(), by_age.begin() + static_cast<std::ptrdiff_t>(surplus),
                      by_age.end());
    for (size_t i = 0; i < surplus; ++i) library_.erase(by_age[i].second);
  }
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  if (shared_->read && !shared_->usable) return;
  for (ProfileRow& row : rows) {
    // Where the disk does not follow, the newest keys stay behind: what it has is known already.
    if (shared_->waiting.size() >= kMostProfiles && !shared_->waiting.contains(IdOf(row))) continue;
    RowId id = IdOf(row);
    shared_->waiting.insert_or_assign(std::move(id), std::move(row));
  }
  shared_->changed.notify_all();
}

std::vector<ProfileRow> ProfileStore::Of(const DeviceModel& model, size_t limit) const {
  std::vector<ProfileRow> rows;
  for (auto at = library_.lower_bound({model, 0, 0});
       at != library_.end() && at->second.model == model; ++at) {
    rows.push_back(at->second);
  }
  std::stable_sort(rows.begin(), rows.end(), [](const ProfileRow& a, const ProfileRow& b) {
    return a.last_seen_s > b.last_seen_s;
  });
  if (rows.size() > limit) rows.resize(limit);
  return rows;
}

std::vector<ProfileRow> ProfileStore::Longest(size_t limit) const {
  std::vector<const ProfileRow*> all;
  all.reserve(library_.size());
  for (const auto& [id, row] : library_) all.push_back(&row);
  limit = std::min(limit, all.size());
  std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(limit), all.end(),
                    [](const ProfileRow* a, const ProfileRow* b) {
                      return std::tie(b->duration_ns, a->model, a->key) <
                             std::tie(a->duration_ns, b->model, b->key);
                    });
  std::vector<ProfileRow> rows;
  rows.reserve(limit);
  for (size_t i = 0; i < limit; ++i) rows.push_back(*all[i]);
  return rows;
}

void ProfileStore::Clear() {
  library_.clear();
  cleared_ = !loaded_;
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  shared_->waiting.clear();
  shared_->clear = true;
  shared_->changed.notify_all();
}

ProfileStoreStatus ProfileStore::Status() const {
  ProfileStoreStatus status;
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  status.path = shared_->path;
  status.reading = !shared_->read;
  status.usable = shared_->usable;
  status.rows = library_.size();
  status.errors = shared_->errors;
  status.written = shared_->written;
  return status;
}

}  // namespace rubato::sched
