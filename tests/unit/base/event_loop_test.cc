#include "base/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <thread>

#include "base/clock.h"

namespace rubato::base {
namespace {

std::unique_ptr<EventLoop> MakeLoop() {
  auto loop = EventLoop::Make();
  EXPECT_TRUE(loop.ok());
  return std::move(*loop);
}

struct Pipe {
  Pipe() {
    int fds[2];
    EXPECT_EQ(::pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    reader = UniqueFd(fds[0]);
    writer = UniqueFd(fds[1]);
  }
  UniqueFd reader;
  UniqueFd writer;
};

TEST(EventLoopTest, TimersRunInOrder) {
  auto loop = MakeLoop();
  std::vector<int> order;
  const Nanos now_ns = MonotonicNow();
  loop->AddTimer(now_ns + 3 * kMillisecond, [&] {
    order.push_back(3);
    loop->Stop();
  });
  loop->AddTimer(now_ns + kMillisecond, [&] { order.push_back(1); });
  loop->AddTimer(now_ns + kMillisecond, [&] { order.push_back(2); });
  const EventLoop::TimerId removed = loop->AddTimer(now_ns, [&] { order.push_back(99); });
  loop->RemoveTimer(removed);
  loop->RemoveTimer(removed);
  loop->RemoveTimer(0);
  loop->Run();
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
  EXPECT_GE(MonotonicNow(), now_ns + 3 * kMillisecond) << "not before its time";
}

TEST(EventLoopTest, ATimerThatAddsItselfStarvesNobody) {
  auto loop = MakeLoop();
  Pipe pipe;
  int runs = 0;
  std::function<void()> again = [&] {
    ++runs;
    loop->AddTimer(0, again);
  };
  loop->AddTimer(0, again);
  ASSERT_TRUE(loop->AddFd(pipe.reader.get(), EPOLLIN, [&](uint32_t) { loop->Stop(); }).ok());
  ASSERT_EQ(::write(pipe.writer.get(), "x", 1), 1);
  loop->Run();
  EXPECT_LE(runs, 2);
}

TEST(EventLoopTest, ACallbackMayRemoveItselfAndOthers) {
  auto loop = MakeLoop();
  Pipe one;
  Pipe two;
  int calls = 0;
  const auto callback = [&](uint32_t) {
    ++calls;
    loop->RemoveFd(one.reader.get());
    loop->RemoveFd(two.reader.get());
  };
  ASSERT_TRUE(loop->AddFd(one.reader.get(), EPOLLIN, callback).ok());
  ASSERT_TRUE(loop->AddFd(two.reader.get(), EPOLLIN, callback).ok());
  ASSERT_EQ(::write(one.writer.get(), "x", 1), 1);
  ASSERT_EQ(::write(two.writer.get(), "x", 1), 1);
  loop->RunOnce(MonotonicNow());
  loop->RunOnce(MonotonicNow());
  EXPECT_EQ(calls, 1);
}

TEST(EventLoopTest, ADescriptorThatTookAnothersNumberGetsNoneOfItsEvents) {
  auto loop = MakeLoop();
  Pipe first;
  auto second = std::make_unique<Pipe>();
  Pipe third;
  int wrong = 0;
  const int number = second->reader.get();
  ASSERT_TRUE(loop->AddFd(first.reader.get(), EPOLLIN,
                          [&](uint32_t) {
                            loop->RemoveFd(first.reader.get());
                            loop->RemoveFd(number);
                            second.reset();
                            ASSERT_EQ(::dup2(third.reader.get(), number), number);
                            ASSERT_TRUE(
                                loop->AddFd(number, EPOLLIN, [&](uint32_t) { ++wrong; }).ok());
                          })
                  .ok());
  ASSERT_TRUE(loop->AddFd(number, EPOLLIN, [&](uint32_t) {}).ok());
  ASSERT_EQ(::write(second->writer.get(), "x", 1), 1);
  ASSERT_EQ(::write(first.writer.get(), "x", 1), 1);
  loop->RunOnce(MonotonicNow());
  loop->RunOnce(MonotonicNow());
  EXPECT_EQ(wrong, 0);
  loop->RemoveFd(number);
  ::close(number);
}

TEST(EventLoopTest, WorkIsPostedFromOtherThreads) {
  auto loop = MakeLoop();
  int sum = 0;
  std::thread poster([&] {
    for (int i = 1; i <= 1000; ++i) loop->Post([&sum, i] { sum += i; });
    loop->Post([&] { loop->Stop(); });
  });
  loop->Run();
  poster.join();
  EXPECT_EQ(sum, 500500);
}

TEST(EventLoopTest, SignalsAreCalls) {
  auto loop = MakeLoop();
  int signals = 0;
  sigset_t before;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &before);
  ASSERT_TRUE(loop->AddSignal(SIGUSR2,
                              [&] {
                                ++signals;
                                loop->Stop();
                              })
                  .ok());
  ::kill(::getpid(), SIGUSR2);
  loop->Run();
  EXPECT_EQ(signals, 1);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace
}  // namespace rubato::base
