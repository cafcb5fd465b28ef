#include "scheduler/daemon/mps_watch.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/log.h"

extern char** environ;

namespace rubato::sched {
namespace {

constexpr Nanos kAskEveryNs = 5 * base::kSecond;
constexpr Nanos kAnswerLimitNs = 3 * base::kSecond;
constexpr size_t kMostAnswer = 4096;
constexpr char kQuestion[] = "get_server_list\n";

}  // namespace

std::vector<std::string> MpsControlCommand(const std::string& runtime_dir) {
  std::vector<std::string> command;
  if (const char* own = std::getenv("RUBATO_MPS_CONTROL"); own != nullptr && *own != '\0') {
    std::istringstream words(own);
    for (std::string word; words >> word;) command.push_back(word);
  }
  if (command.empty()) {
    std::ifstream record(runtime_dir + "/mps-control");
    for (std::string word; std::getline(record, word);) command.push_back(word);
  }
  if (command.empty()) command.push_back("nvidia-cuda-mps-control");
  return command;
}

MpsWatch::MpsWatch(base::EventLoop* loop, const base::Clock* clock,
                   std::vector<std::string> command, std::string pipe_directory)
    : loop_(loop),
      clock_(clock),
      command_(std::move(command)),
      pipe_directory_(std::move(pipe_directory)) {
  health_.wanted = true;
  health_.detail = "not asked yet";
}

MpsWatch::~MpsWatch() {
  loop_->RemoveTimer(timer_);
  if (output_.valid()) loop_->RemoveFd(output_.get());
  if (child_ != 0) {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }
}

void MpsWatch::Start() {
  Ask();
}

void MpsWatch::Ask() {
  timer_ = 0;
  int question[2];
  int answer[2];
  if (::pipe2(question, O_CLOEXEC) != 0) return Conclude(false, "no pipe could be made");
  base::UniqueFd question_read(question[0]);
  base::UniqueFd question_write(question[1]);
  if (::pipe2(answer, O_CLOEXEC) != 0) return Conclude(false, "no pipe could be made");
  output_ = base::UniqueFd(answer[0]);
  const base::UniqueFd answer_write(answer[1]);
  ::fcntl(output_.get(), F_SETFL, O_NONBLOCK);

  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, "CUDA_MPS_PIPE_DIRECTORY=", 24) != 0 &&
        std::strncmp(*entry, "LD_PRELOAD=", 11) != 0)
      environment.emplace_back(*entry);
  }
  environment.push_back("CUDA_MPS_PIPE_DIRECTORY=" + pipe_directory_);
  std::vector<char*> arguments;
  arguments.reserve(command_.size() + 1);
  for (std::string& word : command_) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::vector<char*> variables;
  variables.reserve(environment.size() + 1);
  for (std::string& entry : environment) variables.push_back(entry.data());
  variables.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, question_read.get(), 0);
  posix_spawn_file_actions_adddup2(&actions, answer_write.get(), 1);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  const int error = ::posix_spawnp(&child_, arguments[0], &actions, &attributes, arguments.data(),
                                   variables.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    child_ = 0;
    output_.Reset();
    return Conclude(false, command_[0] + ": " + std::strerror(error));
  }
  (void)!::write(question_write.get(), kQuestion, sizeof(kQuestion) - 1);
  answer_.clear();
  output_ended_ = timed_out_ = false;
  if (!loop_->AddFd(output_.get(), EPOLLIN, [this](uint32_t) { Read(); })) output_.Reset();
  timer_ = loop_->AddTimer(clock_->NowNs() + kAnswerLimitNs, [this] {
    timer_ = 0;
    timed_out_ = true;
    if (child_ != 0) ::kill(child_, SIGKILL);
  });
}

void MpsWatch::Read() {
  std::array<char, 512> buffer;
  const ssize_t length = ::read(output_.get(), buffer.data(), buffer.size());
  if (length < 0) return;
  if (length == 0) {
    loop_->RemoveFd(output_.get());
    output_.Reset();
    return;
  }
  if (answer_.size() < kMostAnswer) answer_.append(buffer.data(), static_cast<size_t>(length));
}

void MpsWatch::ReapChild() {
  if (child_ == 0) return;
  int status = 0;
  if (::waitpid(child_, &status, WNOHANG) != child_) return;
  child_ = 0;
  loop_->RemoveTimer(timer_);
  while (output_.valid()) {
    const size_t before = answer_.size();
    Read();
    if (output_.valid() && answer_.size() == before) {
      // A grandchild holds the pipe; what the child said is here.
      loop_->RemoveFd(output_.get());
      output_.Reset();
    }
  }
  if (timed_out_) {
    Conclude(false,
             "the MPS control daemon does not answer; restart it with `rubato down` and "
             "`rubato up`");
  } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    Conclude(false, "no MPS control daemon answers in " + pipe_directory_ +
                        "; start one with `rubato up`");
  } else {
    std::istringstream words(answer_);
    std::string servers;
    for (std::string word; words >> word;) servers += (servers.empty() ? "" : " ") + word;
    Conclude(true, servers.empty() ? "no server yet" : "servers: " + base::Printable(servers));
  }
}

void MpsWatch::Conclude(bool healthy, std::string detail) {
  if (healthy != health_.healthy || (!healthy && detail != health_.detail)) {
    if (healthy) {
      base::LogInfo("MPS control daemon answers: {}", detail);
    } else {
      base::LogWarning("MPS: {}", detail);
    }
  }
  health_.healthy = healthy;
  health_.detail = std::move(detail);
  timer_ = loop_->AddTimer(clock_->NowNs() + kAskEveryNs, [this] { Ask(); });
}

}  // namespace rubato::sched
