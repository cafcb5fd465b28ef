// rubato-softgpu: the process in which the software GPU lives.
//
// Usually started by the first program that loads a stand-in (--daemon), ended by itself when the
// last has been gone for a while. Tests start it in the foreground with --with-parent, so that it
// cannot outlive them. Under the name nvidia-cuda-mps-control, or with --mps-control, it is the
// stand-in for that program instead.
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>

#include "softgpu/device/mps_control.h"
#include "softgpu/device/server.h"
#include "softgpu/device/settings.h"

namespace rubato::softgpu {
namespace {

struct Home {
  std::string directory;
  std::string socket_path;
  std::string lock_path;
};

// Removes the socket while nobody can be starting another device. A program that connected in the
// meantime finds the connection closed and starts anew.
bool LeaveHome(void* argument) {
  const Home* home = static_cast<const Home*>(argument);
  const int lock = open(home->lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock < 0) return true;
  const bool free = flock(lock, LOCK_EX | LOCK_NB) == 0;
  if (free) unlink(home->socket_path.c_str());
  close(lock);
  return free;
}

int Listen(const Home& home) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (home.socket_path.size() >= sizeof address.sun_path) {
    fprintf(
        stderr,
        "rubato-softgpu: %s is too long for a socket; set RUBATO_SOFTGPU_DIR to a shorter one\n",
        home.directory.c_str());
    return -1;
  }
  std::memcpy(address.sun_path, home.socket_path.c_str(), home.socket_path.size() + 1);
  const int probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (probe >= 0 && connect(probe, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    close(probe);
    fprintf(stderr,
            "rubato-softgpu: one is already running in %s; stop it or set RUBATO_SOFTGPU_DIR\n",
            home.directory.c_str());
    return -1;
  }
  if (probe >= 0) close(probe);
  unlink(home.socket_path.c_str());
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(fd, 128) != 0) {
    fprintf(stderr, "rubato-softgpu: cannot listen on %s: %s\n", home.socket_path.c_str(),
            strerror(errno));
    if (fd >= 0) close(fd);
    return -1;
  }
  return fd;
}

int Main(int argc, char** argv) {
  Home home;
  bool daemon = false, with_parent = false;
  const option options[] = {{"dir", required_argument, nullptr, 'd'},
                            {"daemon", no_argument, nullptr, 'b'},
                            {"with-parent", no_argument, nullptr, 'p'},
                            {"help", no_argument, nullptr, 'h'},
                            {nullptr, 0, nullptr, 0}};
  home.directory = DefaultDirectory();
  for (int c; (c = getopt_long(argc, argv, "", options, nullptr)) != -1;) {
    switch (c) {
      case 'd':
        home.directory = optarg;
        break;
      case 'b':
        daemon = true;
        break;
      case 'p':
        with_parent = true;
        break;
      case 'h':
        printf(
            "usage: rubato-softgpu [--dir DIRECTORY] [--daemon | --with-parent]\n"
            "       rubato-softgpu --mps-control [-d | -f]     (commands on standard input)\n"
            "The software GPU; settings come from RUBATO_SOFTGPU_* variables.\n");
        return 0;
      default:
        return 2;
    }
  }
  // The daemon leaves the directory it was started in.
  home.directory = std::filesystem::absolute(home.directory).string();
  Settings settings = ReadSettings();
  if (!daemon) settings.idle_exit_ns = 0;  // Whoever started it in the foreground ends it.
  if (!settings.log_path.empty()) {
    settings.log_path = std::filesystem::absolute(settings.log_path).string();
  }
  home.socket_path = home.directory + "/device.sock";
  home.lock_path = home.directory + "/device.lock";
  if (mkdir(home.directory.c_str(), 0700) != 0 && errno != EEXIST) {
    fprintf(stderr, "rubato-softgpu: cannot make %s: %s; set RUBATO_SOFTGPU_DIR\n",
            home.directory.c_str(), strerror(errno));
    return 1;
  }
  if (with_parent) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() == 1) return 1;
  }
  int ready[2] = {-1, -1};
  if (daemon) {
    // The descriptors of whatever program needed a GPU first are none of ours.
    syscall(SYS_close_range, 3u, ~0u, 0u);
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
  }
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const int stop = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  const int listener = Listen(home);
  if (listener < 0 || stop < 0) return 1;
  int status = 0;
  {
    Server server(settings, listener, stop);
    if (server.ok()) {
      if (daemon) {
        if (write(ready[1], "r", 1) != 1) return 1;
        close(ready[1]);
      }
      server.Run(LeaveHome, &home);
    } else {
      fprintf(
          stderr,
          "rubato-softgpu: cannot make the device's memory; lower RUBATO_SOFTGPU_MEMORY_BYTES\n");
      status = 1;
    }
  }
  // After a stop by signal; after an idle end the path may already be a successor's.
  signalfd_siginfo info;
  if (read(stop, &info, sizeof info) == static_cast<ssize_t>(sizeof info))
    unlink(home.socket_path.c_str());
  close(listener);
  return status;
}

}  // namespace
}  // namespace rubato::softgpu

int main(int argc, char** argv) {
  const std::string name = argc > 0 ? argv[0] : "";
  const bool as_control =
      name.size() >= 23 && name.compare(name.size() - 23, 23, "nvidia-cuda-mps-control") == 0;
  if (as_control || (argc > 1 && std::string(argv[1]) == "--mps-control")) {
    return rubato::softgpu::MpsControlMain(argc, argv);
  }
  return rubato::softgpu::Main(argc, argv);
}
