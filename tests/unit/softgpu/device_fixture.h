// Process tests of the software GPU: a device process of the test's own and programs that use it.
//
// The driver's state is one per process, so each program of a test is a forked child that has not
// touched a GPU before; its failed expectations become its exit status. The device dies with the
// test.
#ifndef TESTS_UNIT_SOFTGPU_DEVICE_FIXTURE_H_
#define TESTS_UNIT_SOFTGPU_DEVICE_FIXTURE_H_

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace rubato::softgpu {

// Polls; only a hang reaches the deadline.
template <typename F>
bool Eventually(F condition) {
  for (int i = 0; i < 60'000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/rbt-softgpu-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    dir_ = name;
    setenv("RUBATO_SOFTGPU_DIR", (dir_ + "/gpu").c_str(), 1);
    setenv("RUBATO_SOFTGPU_LOG", log_path().c_str(), 1);
    setenv("CUDA_MPS_PIPE_DIRECTORY", (dir_ + "/mps").c_str(), 1);
    setenv("RUBATO_SOFTGPU_BIN", RUBATO_BUILD_DIR "/bin/rubato-softgpu", 1);
  }

  void TearDown() override {
    for (pid_t pid : children_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
    StopDevice();
    for (const std::string& name : set_) unsetenv(name.c_str());
    std::filesystem::remove_all(dir_);
  }

  // For the device and all programs started afterwards; `name` without RUBATO_SOFTGPU_.
  void Set(const std::string& name, const std::string& value) {
    set_.push_back("RUBATO_SOFTGPU_" + name);
    setenv(set_.back().c_str(), value.c_str(), 1);
  }

  void StartDevice() {
    device_ = fork();
    ASSERT_GE(device_, 0);
    if (device_ == 0) {
      execl(RUBATO_BUILD_DIR "/bin/rubato-softgpu", "rubato-softgpu", "--with-parent", nullptr);
      _exit(127);
    }
    ASSERT_TRUE(Eventually([&] { return Listens(); }));
  }

  bool Listens() const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/gpu/device.sock", dir_.c_str());
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    const bool good = connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    close(fd);
    return good;
  }

  // Ends the device, after which its log is complete.
  void StopDevice() {
    if (device_ <= 0) return;
    kill(device_, SIGTERM);
    waitpid(device_, nullptr, 0);
    device_ = -1;
  }

  pid_t Start(const std::function<void()>& program) {
    fflush(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
      program();
      fflush(nullptr);
      _exit(testing::Test::HasFailure() ? 1 : 0);
    }
    children_.push_back(pid);
    return pid;
  }

  int Wait(pid_t pid) {
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    std::erase(children_, pid);
    return status;
  }

  // A whole program: it must end well.
  void Run(const std::function<void()>& program) { EXPECT_EQ(Wait(Start(program)), 0); }

  struct LogLine {
    std::string text;
    std::string kind, type, name;
    long long pid = 0, context = 0, stream = 0, first_sm = 0, last_sm = 0, from = 0, to = 0,
              node = -1, seq = 0;
  };

  std::vector<LogLine> ReadLog() {
    StopDevice();
    std::vector<LogLine> lines;
    std::ifstream file(log_path());
    const auto text_of = [](const std::string& line, const std::string& key) -> std::string {
      const size_t at = line.find("\"" + key + "\":");
      if (at == std::string::npos) return "";
      size_t begin = at + key.size() + 3;
      if (line[begin] == '"') {
        ++begin;
        return line.substr(begin, line.find('"', begin) - begin);
      }
      return line.substr(begin, line.find_first_of(",}", begin) - begin);
    };
    for (std::string line; std::getline(file, line);) {
      LogLine out;
      out.text = line;
      out.kind = text_of(line, "kind");
      out.type = text_of(line, "type");
      out.name = text_of(line, "name");
      out.pid = atoll(text_of(line, "pid").c_str());
      out.context = atoll(text_of(line, "context").c_str());
      out.stream = atoll(text_of(line, "stream").c_str());
      out.seq = atoll(text_of(line, "seq").c_str());
      out.node = atoll(text_of(line, "node").c_str());
      out.first_sm = atoll(text_of(line, "first_sm").c_str());
      out.last_sm = atoll(text_of(line, "last_sm").c_str());
      out.from = atoll(text_of(line, "model_from_ns").c_str());
      out.to = atoll(text_of(line, "model_to_ns").c_str());
      lines.push_back(out);
    }
    return lines;
  }

  std::string log_path() const { return dir_ + "/log.jsonl"; }

  std::string dir_;
  pid_t device_ = -1;
  std::vector<pid_t> children_;
  std::vector<std::string> set_;
};

}  // namespace rubato::softgpu

#endif  // TESTS_UNIT_SOFTGPU_DEVICE_FIXTURE_H_
