#include "softgpu/device/mps_control.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>

namespace rubato::softgpu {

namespace {

bool AddressOf(const std::string& directory, sockaddr_un* address) {
  const std::string path = directory + "/control";
  *address = {};
  address->sun_family = AF_UNIX;
  if (path.size() >= sizeof address->sun_path) return false;
  std::memcpy(address->sun_path, path.c_str(), path.size() + 1);
  return true;
}

int Connect(const std::string& directory) {
  sockaddr_un address;
  if (!AddressOf(directory, &address)) return -1;
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  timeval patience{5, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return fd;
  close(fd);
  return -1;
}

// One command, one answer; empty if nobody answers.
std::string Ask(const std::string& directory, const std::string& command) {
  const int fd = Connect(directory);
  if (fd < 0) return "";
  char answer[256];
  ssize_t n = -1;
  if (send(fd, command.data(), command.size(), MSG_NOSIGNAL) ==
      static_cast<ssize_t>(command.size())) {
    n = recv(fd, answer, sizeof answer, 0);
  }
  close(fd);
  return n > 0 ? std::string(answer, static_cast<size_t>(n)) : "";
}

int Serve(const std::string& directory, int listener, int ready_fd) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  const int stop = signalfd(-1, &signals, SFD_CLOEXEC);
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  // Names this server for as long as it lives; another start is another server.
  const uint64_t number =
      (static_cast<uint64_t>(getpid()) << 32 | static_cast<uint32_t>(t.tv_nsec)) | 1;
  const std::string pid_file = directory + "/nvidia-cuda-mps-control.pid";
  if (FILE* f = fopen(pid_file.c_str(), "we")) {
    fprintf(f, "%d\n", static_cast<int>(getpid()));
    fclose(f);
  }
  if (ready_fd >= 0) {
    if (write(ready_fd, "r", 1) != 1) return 1;
    close(ready_fd);
  }
  bool quit = false;
  while (!quit) {
    pollfd fds[2] = {{listener, POLLIN, 0}, {stop, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) break;
    if (fds[1].revents != 0) break;
    if (fds[0].revents == 0) continue;
    const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    timeval patience{1, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    char command[256];
    const ssize_t n = recv(fd, command, sizeof command, 0);
    const std::string text(command, n > 0 ? static_cast<size_t>(n) : 0);
    std::string answer = "unknown command";
    if (text == "server") answer = std::to_string(number);
    if (text == "get_server_list") answer = std::to_string(getpid());
    if (text.rfind("quit", 0) == 0) {
      answer = "ok";
      quit = true;
      // Nobody may find the directory in use once `quit` has returned.
      unlink((directory + "/control").c_str());
      unlink(pid_file.c_str());
    }
    if (send(fd, answer.data(), answer.size(), MSG_NOSIGNAL) < 0) answer.clear();
    close(fd);
  }
  unlink((directory + "/control").c_str());
  unlink(pid_file.c_str());
  return 0;
}

int StartDaemon(const std::string& directory, bool foreground) {
  if (mkdir(directory.c_str(), 0755) != 0 && errno != EEXIST) {
    fprintf(stderr,
            "mps-control: cannot make %s: %s; set CUDA_MPS_PIPE_DIRECTORY to a directory you may "
            "write\n",
            directory.c_str(), strerror(errno));
    return 1;
  }
  if (FindMpsServer(directory) != 0) {
    fprintf(stderr, "An instance of this daemon is already running\n");
    return 1;
  }
  sockaddr_un address;
  if (!AddressOf(directory, &address)) {
    fprintf(stderr, "mps-control: %s is too long for a socket; use a shorter directory\n",
            directory.c_str());
    return 1;
  }
  unlink(address.sun_path);
  const int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(listener, 64) != 0) {
    fprintf(stderr, "mps-control: cannot listen on %s: %s\n", address.sun_path, strerror(errno));
    return 1;
  }
  if (foreground) return Serve(directory, listener, -1);
  int ready[2];
  if (pipe2(ready, O_CLOEXEC) != 0) return 1;
  const pid_t child = fork();
  if (child < 0) return 1;
  if (child > 0) {
    close(ready[1]);
    char byte;
    return read(ready[0], &byte, 1) == 1 ? 0 : 1;
  }
  close(ready[0]);
  setsid();
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int i = 0; i < 3; ++i) dup2(null, i);
  if (chdir("/") != 0) return 1;
  return Serve(directory, listener, ready[1]);
}

}  // namespace

std::string MpsPipeDirectory() {
  const char* directory = getenv("CUDA_MPS_PIPE_DIRECTORY");
  return directory != nullptr && *directory != '\0' ? directory : "/tmp/nvidia-mps";
}

uint64_t FindMpsServer(const std::string& directory) {
  const std::string answer = Ask(directory, "server");
  return answer.empty() ? 0 : strtoull(answer.c_str(), nullptr, 10);
}

int MpsControlMain(int argc, char** argv) {
  bool daemon = false, foreground = false;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--mps-control") continue;
    if (arg == "-d") {
      daemon = true;
    } else if (arg == "-f") {
      foreground = true;
    } else {
      fprintf(stderr, "mps-control: unknown option %s; use -d, -f, or commands on standard input\n",
              argv[i]);
      return 2;
    }
  }
  const std::string directory = MpsPipeDirectory();
  if (daemon || foreground) return StartDaemon(directory, foreground);
  int status = 0;
  for (std::string line; std::getline(std::cin, line);) {
    if (line.empty()) continue;
    const std::string answer = Ask(directory, line);
    if (answer.empty()) {
      fprintf(stderr, "Cannot find MPS control daemon process\n");
      status = 1;
    } else if (answer != "ok") {
      printf("%s\n", answer.c_str());
    }
    if (line.rfind("quit", 0) == 0) break;
  }
  return status;
}

}  // namespace rubato::softgpu
