#include "base/runtime_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "base/unique_fd.h"

namespace rubato::base {

std::string DefaultRuntimeDir() {
  if (const char* own = std::getenv("RUBATO_RUNTIME_DIR"); own != nullptr && *own != '\0')
    return own;
  if (const char* xdg = std::getenv("XDG_RUNTIME_DIR"); xdg != nullptr && *xdg != '\0')
    return std::string(xdg) + "/rubato";
  const std::string uid = std::to_string(::geteuid());
  const std::string user_dir = "/run/user/" + uid;
  struct stat info {};
  if (::stat(user_dir.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return user_dir + "/rubato";
  return "/tmp/rubato-" + uid;
}

Result<void> PrepareRuntimeDir(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    return SystemError("cannot make the directory " + path);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return SystemError("cannot open the directory " + path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return SystemError("cannot look at " + path);
  if (info.st_uid != ::geteuid())
    return Error{ErrorCode::kNotAllowed,
                 path + " belongs to another user; choose another --runtime-dir"};
  if ((info.st_mode & 077) != 0)
    return Error{ErrorCode::kNotAllowed, path + " is open to other users; run chmod 0700 " + path};
  return {};
}

}  // namespace rubato::base
