#include "deviceplugin/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "base/unique_fd.h"

namespace rubato::deviceplugin {
namespace {

base::Result<void> WriteAll(int fd, const std::string& text, const std::string& path) {
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t n = ::write(fd, text.data() + written, text.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::SystemError("cannot write " + path);
    written += static_cast<size_t>(n);
  }
  return {};
}

}  // namespace

base::Result<std::string> ReadWholeFile(const std::string& path, size_t most_bytes) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) {
    if (errno == ENOENT)
      return base::Error{base::ErrorCode::kNotFound, path + " does not exist", ENOENT};
    return base::SystemError("cannot open " + path);
  }
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::SystemError("cannot read " + path);
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > most_bytes)
      return base::Error{base::ErrorCode::kFull,
                         path + " has more than " + std::to_string(most_bytes) + " bytes"};
  }
}

base::Result<void> ReplaceFile(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  {
    const base::UniqueFd fd(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd.valid()) return base::SystemError("cannot make " + temporary);
    if (auto written = WriteAll(fd.get(), text, temporary); !written) return written;
    if (::fsync(fd.get()) != 0) return base::SystemError("cannot write " + temporary + " to disk");
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0)
    return base::SystemError("cannot replace " + path);
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const base::UniqueFd directory(
      ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return base::SystemError("cannot open " + parent);
  if (::fsync(directory.get()) != 0)
    return base::SystemError("cannot write " + parent + " to disk");
  return {};
}

base::Result<void> MakeDirectories(const std::string& path, unsigned mode) {
  std::filesystem::path so_far;
  for (const std::filesystem::path& part : std::filesystem::path(path)) {
    so_far /= part;
    if (::mkdir(so_far.c_str(), mode) == 0) {
      if (::chmod(so_far.c_str(), mode) != 0)
        return base::SystemError("cannot set the mode of " + so_far.string());
      continue;
    }
    // Some file systems refuse before they look whether it exists.
    struct stat status {};
    const int error = errno;
    if (::stat(so_far.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) continue;
    return base::SystemError("cannot make the directory " + so_far.string(), error);
  }
  return {};
}

}  // namespace rubato::deviceplugin
