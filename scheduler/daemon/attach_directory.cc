#include "scheduler/daemon/attach_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "base/unix_socket.h"

namespace rubato::sched {

using base::Error;
using base::ErrorCode;

namespace {

constexpr size_t kTokenDigits = 32;
constexpr const char kSocketName[] = "attach.sock";
// A processes' address holds the path with its end: "/", the token, "/attach.sock".
constexpr size_t kLongestRoot =
    sizeof(sockaddr_un::sun_path) - 1 - (1 + kTokenDigits + 1 + sizeof(kSocketName) - 1);

struct Folder {
  base::UniqueFd fd;
  bool made = false;
};

// Makes the folder with this mode or opens the one that is there, which must be ours and closed to
// other writers.
base::Result<Folder> OpenFolder(const std::string& path, mode_t mode) {
  Folder folder;
  folder.made = ::mkdir(path.c_str(), 0700) == 0;
  if (!folder.made && errno != EEXIST)
    return base::SystemError("cannot make the directory " + path);
  folder.fd = base::UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder.fd.valid()) return base::SystemError("cannot open the directory " + path);
  // Set apart from mkdir, whose mode the process's mask would cut.
  if (folder.made && ::fchmod(folder.fd.get(), mode) != 0)
    return base::SystemError("cannot set the mode of " + path);
  struct stat info {};
  if (::fstat(folder.fd.get(), &info) != 0) return base::SystemError("cannot look at " + path);
  if (info.st_uid != ::geteuid())
    return Error{ErrorCode::kNotAllowed, path + " belongs to another user; let user " +
                                             std::to_string(::geteuid()) +
                                             " own it, or choose another --attach-directory"};
  if ((info.st_mode & 022) != 0)
    return Error{ErrorCode::kNotAllowed,
                 path + " can be written by other users; run chmod go-w " + path};
  return folder;
}

}  // namespace

bool IsAttachToken(const std::string& text) {
  if (text.size() != kTokenDigits) return false;
  for (const char c : text) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

std::string AttachDirectory::Complaint(const std::string& root) {
  if (root.empty() || root.front() != '/')
    return "--attach-directory must be an absolute path, not " + root;
  if (root.size() > kLongestRoot) {
    return "the attach directory " + root + " is " + std::to_string(root.size()) +
           " characters long, and the sockets below it leave room for " +
           std::to_string(kLongestRoot) + "; choose a shorter --attach-directory or --runtime-dir";
  }
  return "";
}

base::Result<AttachDirectory> AttachDirectory::Open(const std::string& root, bool shared) {
  if (std::string complaint = Complaint(root); !complaint.empty())
    return Error{ErrorCode::kInvalid, std::move(complaint)};
  auto folder = OpenFolder(root, shared ? 0755 : 0700);
  if (!folder) return folder.error();
  if (::flock(folder->fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return Error{ErrorCode::kExists,
                 "another scheduler uses the attach directory " + root + "; choose another one"};
  AttachDirectory directory(root, std::move(folder->fd));
  // Sockets that a scheduler which was killed has left behind. The lock is held: nobody uses them.
  DIR* entries = ::opendir(root.c_str());
  if (entries == nullptr) return base::SystemError("cannot read " + root);
  std::vector<std::string> tokens;
  while (const dirent* entry = ::readdir(entries)) {
    if (IsAttachToken(entry->d_name)) tokens.emplace_back(entry->d_name);
  }
  ::closedir(entries);
  for (const std::string& token : tokens) directory.Remove(token, !shared);
  return directory;
}

base::Result<AttachDirectory::Place> AttachDirectory::Listen(const std::string& token,
                                                             bool any_user) const {
  Place place;
  auto folder = OpenFolder(root_ + "/" + token, any_user ? 0755 : 0700);
  if (!folder) return folder.error();
  place.made = folder->made;
  place.path = root_ + "/" + token + "/" + kSocketName;
  auto listener = base::ListenUnix(place.path, SOCK_SEQPACKET, any_user ? 0666 : 0600, 64);
  if (!listener) {
    if (place.made) Remove(token, true);
    return listener.error();
  }
  place.listener = std::move(*listener);
  return place;
}

void AttachDirectory::Remove(const std::string& token, bool made) const {
  const std::string folder = root_ + "/" + token;
  ::unlink((folder + "/" + kSocketName).c_str());
  if (made) ::rmdir(folder.c_str());
}

}  // namespace rubato::sched
