#include "cli/runtime_dir.h"

#include <errno.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace rubato::cli {
namespace {

// Room for what goes below the folder, with its end: "/attach/<32 digits>/attach.sock".
constexpr size_t kLongestSocketBelow = 53;

}  // namespace

base::Result<RuntimeDir> RuntimeDir::At(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.empty() || path.front() != '/') {
    return base::Error{base::ErrorCode::kInvalid, "the runtime directory '" + path +
                                                      "' is not an absolute path; set "
                                                      "XDG_RUNTIME_DIR to one"};
  }
  if (path.size() + kLongestSocketBelow > sizeof(sockaddr_un::sun_path)) {
    return base::Error{base::ErrorCode::kInvalid,
                       "the runtime directory " + path +
                           " is too long a path for sockets; set XDG_RUNTIME_DIR to a shorter one"};
  }
  return RuntimeDir(std::move(path));
}

base::Result<RuntimeDir> RuntimeDir::Locate() {
  return At(base::DefaultRuntimeDir());
}

base::Result<void> RuntimeDir::Create() const {
  const std::string parent = path_.substr(0, path_.rfind('/'));
  if (!parent.empty() && mkdir(parent.c_str(), 0700) != 0 && errno != EEXIST) {
    return base::SystemError("cannot make the directory " + parent);
  }
  return base::PrepareRuntimeDir(path_);
}

bool RuntimeDir::Exists() const {
  struct stat info;
  return lstat(path_.c_str(), &info) == 0;
}

}  // namespace rubato::cli
