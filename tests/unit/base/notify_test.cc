#include "base/notify.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>

#include "base/unique_fd.h"

namespace rubato::base {
namespace {

std::string ReadAll(int fd) {
  std::string text;
  char buffer[256];
  for (ssize_t n; (n = ::read(fd, buffer, sizeof(buffer))) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  return text;
}

TEST(NotifyTest, TellsOnceAndCloses) {
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  const UniqueFd reader(fds[0]);
  ::setenv("RUBATO_NOTIFY_FD", std::to_string(fds[1]).c_str(), 1);
  NotifyReady();
  NotifyReady();
  EXPECT_EQ(ReadAll(reader.get()), "READY=1\n") << "and the end, since the writer is closed";
  EXPECT_EQ(::getenv("RUBATO_NOTIFY_FD"), nullptr) << "children inherit nothing";
}

TEST(NotifyTest, TellsWhyItFailed) {
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  const UniqueFd reader(fds[0]);
  ::setenv("RUBATO_NOTIFY_FD", std::to_string(fds[1]).c_str(), 1);
  NotifyFailed("no room");
  EXPECT_EQ(ReadAll(reader.get()), "ERROR=no room\n");
}

TEST(NotifyTest, NonsenseIsIgnored) {
  for (const char* bad : {"", "x", "-1", "0", "2", "3x", "99999999999"}) {
    ::setenv("RUBATO_NOTIFY_FD", bad, 1);
    NotifyReady();
  }
  ::unsetenv("RUBATO_NOTIFY_FD");
  EXPECT_GE(::write(2, "", 0), 0) << "standard error is still open";
}

}  // namespace
}  // namespace rubato::base
