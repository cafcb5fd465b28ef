// A folder of the test's own and an event loop on a thread of its own: the stand-in kubelet's calls
// wait for answers that the loop gives.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/event_loop.h"

namespace rubato::deviceplugin {

class LoopFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/rubato-plugin-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    StartLoop();
  }
  void TearDown() override {
    StopLoop();
    std::filesystem::remove_all(directory_);
  }
  void StartLoop() {
    auto loop = base::EventLoop::Make();
    ASSERT_TRUE(loop.ok());
    loop_ = std::move(*loop);
    thread_ = std::thread([this] { loop_->Run(); });
  }
  // Whatever lives on the loop must have ended.
  void StopLoop() {
    if (!thread_.joinable()) return;
    loop_->Post([this] { loop_->Stop(); });
    thread_.join();
    loop_.reset();
  }

  // Runs `work` on the loop's thread and waits for it.
  void OnLoop(const std::function<void()>& work) {
    std::promise<void> done;
    loop_->Post([&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  }

  // Asks on the loop's thread until it is so; false after half a minute.
  bool Eventually(const std::function<bool()>& so) {
    const base::Nanos until_ns = base::MonotonicNow() + 30 * base::kSecond;
    while (base::MonotonicNow() < until_ns) {
      bool is = false;
      OnLoop([&] { is = so(); });
      if (is) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return false;
  }

  std::string directory_;
  std::unique_ptr<base::EventLoop> loop_;
  std::thread thread_;
};

}  // namespace rubato::deviceplugin
