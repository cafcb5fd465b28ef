// The folder of the attach sockets: <root>/<token>/attach.sock, one folder per tenant, so that a
// container is given its own socket and sees no other, and finds the next scheduler's socket in the
// same place.
//
// A folder may be somebody else's (Kubernetes mounts it into a container before the tenant is
// registered): it is used as it is, and outlives the socket. One that is not there is made, and
// goes with the tenant. Nobody but us may write in any of them: all paths below are trusted after
// that check. The root is locked, since a second scheduler would take the first one's sockets away.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace rubato::sched {

class AttachDirectory {
 public:
  struct Place {
    base::UniqueFd listener;
    std::string path;   // Of the socket.
    bool made = false;  // The folder is ours to remove.
  };

  // `shared`: others make folders in it too, so it may be open to other users, and what a scheduler
  // that was killed has left behind is swept up but for the folders. Otherwise it is private.
  static base::Result<AttachDirectory> Open(const std::string& root, bool shared);

  // Listens for any user's processes (a container's), or for those of our own user.
  base::Result<Place> Listen(const std::string& token, bool any_user) const;
  // Removes the socket, and the folder if it is ours.
  void Remove(const std::string& token, bool made) const;

  const std::string& root() const { return root_; }

  // Empty, or what is wrong with a root of this path, and the cure.
  static std::string Complaint(const std::string& root);

 private:
  AttachDirectory(std::string root, base::UniqueFd lock)
      : root_(std::move(root)), lock_(std::move(lock)) {}

  std::string root_;
  base::UniqueFd lock_;
};

// 32 lower-case hexadecimal digits.
bool IsAttachToken(const std::string& text);

}  // namespace rubato::sched
