#include "agent/install/shim_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <system_error>
#include <utility>

#include "agent/install/content_hash.h"
#include "base/unique_fd.h"
#include "deviceplugin/answer.h"

namespace rubato::agent {
namespace {

namespace fs = std::filesystem;
using base::Error;
using base::ErrorCode;
using base::Result;

constexpr size_t kHashDigits = 16;

struct Content {
  std::string bytes;
  std::string link;  // A symbolic link to a name in the same folder; `bytes` is empty then.
  bool executable = false;
};
using Folder = std::map<std::string, Content>;

Result<std::string> ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return base::SystemError("cannot read " + path.string());
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) return base::SystemError("cannot read " + path.string());
  return bytes;
}

std::string HashOf(const Folder& folder) {
  ContentHash sum;
  for (const auto& [name, content] : folder) {
    // Lengths in between, so that no two folders give the same bytes.
    sum.Add(std::to_string(name.size()) + ":" + name + (content.link.empty() ? "f" : "l") +
            std::to_string(content.bytes.size() + content.link.size()) + ":");
    sum.Add(content.bytes);
    sum.Add(content.link);
  }
  return sum.Hex().substr(0, kHashDigits);
}

Result<void> WriteFile(const fs::path& path, const Content& content) {
  const base::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) return base::SystemError("cannot write " + path.string());
  size_t done = 0;
  while (done < content.bytes.size()) {
    const ssize_t wrote =
        ::write(fd.get(), content.bytes.data() + done, content.bytes.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return base::SystemError("cannot write " + path.string());
    done += static_cast<size_t>(wrote);
  }
  // Readable by every user of a container, whatever the umask.
  if (::fchmod(fd.get(), content.executable ? 0755 : 0644) != 0 || ::fsync(fd.get()) != 0)
    return base::SystemError("cannot write " + path.string());
  return {};
}

Result<void> SyncFolder(const fs::path& path) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || ::fsync(fd.get()) != 0)
    return base::SystemError("cannot write " + path.string());
  return {};
}

Result<void> MakeFolder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error)
    return Error{ErrorCode::kSystem, "cannot make " + path.string() + ": " + error.message()};
  return {};
}

// True if it was written, false if it was there.
Result<bool> Put(const fs::path& parent, const std::string& hash, const Folder& folder) {
  const fs::path place = parent / hash;
  std::error_code error;
  if (fs::is_directory(place, error)) return false;
  const fs::path temporary = parent / (".new-" + std::to_string(::getpid()));
  fs::remove_all(temporary, error);
  if (auto made = MakeFolder(temporary); !made) return made.error();
  for (const auto& [name, content] : folder) {
    if (!content.link.empty()) {
      if (::symlink(content.link.c_str(), (temporary / name).c_str()) != 0)
        return base::SystemError("cannot make " + (temporary / name).string());
    } else if (auto written = WriteFile(temporary / name, content); !written) {
      return written.error();
    }
  }
  if (::chmod(temporary.c_str(), 0755) != 0)
    return base::SystemError("cannot open " + temporary.string() + " to others");
  if (auto synced = SyncFolder(temporary); !synced) return synced.error();
  if (::rename(temporary.c_str(), place.c_str()) != 0) {
    const int why = errno;
    fs::remove_all(temporary, error);
    // Another installer was faster, with the same content.
    if (why == EEXIST || why == ENOTEMPTY) return false;
    return base::SystemError("cannot make " + place.string(), why);
  }
  if (auto synced = SyncFolder(parent); !synced) return synced.error();
  return true;
}

Result<void> SwitchCurrent(const fs::path& parent, const std::string& hash) {
  const fs::path temporary = parent / (".current-" + std::to_string(::getpid()));
  ::unlink(temporary.c_str());
  if (::symlink(hash.c_str(), temporary.c_str()) != 0 ||
      ::rename(temporary.c_str(), (parent / "current").c_str()) != 0)
    return base::SystemError("cannot set " + (parent / "current").string());
  return SyncFolder(parent);
}

bool IsHash(const std::string& name) {
  return name.size() == kHashDigits && std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

void RemoveOld(const fs::path& parent, const std::string& current,
               const std::set<std::string>& in_use, InstallReport* report) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(parent, error)) {
    const std::string name = entry.path().filename().string();
    const bool left_over = name.starts_with(".new-") || name.starts_with(".current-");
    if (!left_over && (!IsHash(name) || name == current)) continue;
    if (!left_over && in_use.contains(entry.path().string())) {
      report->kept.push_back(entry.path().string());
      continue;
    }
    std::error_code ignored;
    fs::remove_all(entry.path(), ignored);
    if (!left_over) report->removed.push_back(entry.path().string());
  }
}

Result<Folder> ReadShims(const fs::path& source) {
  using deviceplugin::DriverApi;
  Folder folder;
  for (const DriverApi api : {DriverApi::kCuda, DriverApi::kHip}) {
    const std::string name = deviceplugin::ShimFileName(api);
    auto bytes = ReadFile(source / name);
    if (!bytes) return bytes.error();
    folder[name] = Content{std::move(*bytes), "", true};
    folder[deviceplugin::PreloadFileName(api)] =
        Content{deviceplugin::PreloadFileText(api), "", false};
  }
  return folder;
}

// The stand-ins; the programs in bin/ stay where they are.
Result<Folder> ReadSoftwareGpu(const fs::path& source) {
  Folder folder;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(source, error)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_symlink()) {
      const fs::path target = fs::read_symlink(entry.path(), error);
      if (!error && !target.has_parent_path()) folder[name] = Content{"", target.string(), false};
    } else if (entry.is_regular_file()) {
      auto bytes = ReadFile(entry.path());
      if (!bytes) return bytes.error();
      folder[name] = Content{std::move(*bytes), "", true};
    }
  }
  return folder;
}

}  // namespace

Result<InstallReport> InstallShims(const std::string& source, const std::string& root,
                                   const std::set<std::string>& in_use) {
  InstallReport report;
  std::vector<std::pair<std::string, Folder>> kinds;
  auto shims = ReadShims(source);
  if (!shims) return shims.error();
  kinds.emplace_back("shim", std::move(*shims));
  std::error_code error;
  if (fs::is_directory(fs::path(source) / "softgpu", error)) {
    auto softgpu = ReadSoftwareGpu(fs::path(source) / "softgpu");
    if (!softgpu) return softgpu.error();
    if (!softgpu->empty()) kinds.emplace_back("softgpu", std::move(*softgpu));
  }
  std::map<std::string, std::string> hashes;
  for (const auto& [kind, folder] : kinds) {
    const fs::path parent = fs::path(root) / kind;
    if (auto made = MakeFolder(parent); !made) return made.error();
    const std::string hash = HashOf(folder);
    if (hash.size() != kHashDigits)
      return Error{ErrorCode::kSystem,
                   "cannot compute a hash; is OpenSSL's SHA-256 disabled here?"};
    auto put = Put(parent, hash, folder);
    if (!put) return put.error();
    const std::string place = (parent / hash).string();
    if (*put) report.added.push_back(place);
    hashes[kind] = hash;
    (kind == "shim" ? report.shim_folder : report.softgpu_folder) = place;
  }
  for (const auto& [kind, hash] : hashes) {
    const fs::path parent = fs::path(root) / kind;
    if (auto switched = SwitchCurrent(parent, hash); !switched) return switched.error();
    RemoveOld(parent, hash, in_use, &report);
  }
  return report;
}

std::string CurrentFolder(const std::string& root, const std::string& kind) {
  const fs::path parent = fs::path(root) / kind;
  std::error_code error;
  const fs::path target = fs::read_symlink(parent / "current", error);
  if (error || !IsHash(target.string())) return "";
  const fs::path place = parent / target;
  return fs::is_directory(place, error) ? place.string() : "";
}

}  // namespace rubato::agent
