#include "base/notify.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/unique_fd.h"

namespace rubato::base {
namespace {

void WriteLine(const std::string& line) {
  const char* text = std::getenv("RUBATO_NOTIFY_FD");
  if (text == nullptr || *text == '\0') return;
  char* end = nullptr;
  const long number = std::strtol(text, &end, 10);
  if (*end != '\0' || number < 3 || number > 1'000'000) return;
  // Whoever set the variable left the descriptor open for us alone; it ends here.
  UniqueFd fd(static_cast<int>(number));
  ::unsetenv("RUBATO_NOTIFY_FD");
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t wrote = ::write(fd.get(), line.data() + done, line.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return;
    done += static_cast<size_t>(wrote);
  }
}

void TellSystemd(std::string_view state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr || (path[0] != '/' && path[0] != '@')) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if (length >= sizeof(address.sun_path)) return;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return;
  (void)::sendto(fd.get(), state.data(), state.size(), MSG_NOSIGNAL,
                 reinterpret_cast<const sockaddr*>(&address),
                 static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
}

}  // namespace

void NotifyReady() {
  WriteLine("READY=1\n");
  TellSystemd("READY=1");
}

void NotifyFailed(std::string_view line) {
  WriteLine("ERROR=" + std::string(line) + "\n");
}

void NotifyStopping() {
  TellSystemd("STOPPING=1");
}

}  // namespace rubato::base
