#include "deploy/selftest/http_get.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace rubato::selftest {
namespace {

constexpr size_t kMostBytes = 16u << 20;

int ConnectTo(const std::string& host, const std::string& port, std::string* fault) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    *fault = host + ": " + ::gai_strerror(error);
    return -1;
  }
  int fd = -1;
  for (const addrinfo* at = found; at != nullptr && fd < 0; at = at->ai_next) {
    fd = ::socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);
    if (fd < 0) continue;
    const timeval limit{5, 0};
    (void)::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    (void)::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (::connect(fd, at->ai_addr, at->ai_addrlen) != 0) {
      *fault = host + " port " + port + ": " + std::strerror(errno);
      ::close(fd);
      fd = -1;
    }
  }
  ::freeaddrinfo(found);
  return fd;
}

}  // namespace

std::optional<std::string> HttpGet(const std::string& host, const std::string& port,
                                   const std::string& path, std::string* fault) {
  const int fd = ConnectTo(host, port, fault);
  if (fd < 0) return std::nullopt;
  const std::string request =
      "GET " + path + " HTTP/1.0\r\nHost: " + host + "\r\nConnection: close\r\n\r\n";
  std::string answer;
  bool complete = ::send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
                  static_cast<ssize_t>(request.size());
  while (complete && answer.size() < kMostBytes) {
    char buffer[16384];
    const ssize_t got = ::recv(fd, buffer, sizeof buffer, 0);
    if (got == 0) break;
    if (got < 0 && errno == EINTR) continue;
    complete = got > 0;
    if (complete) answer.append(buffer, static_cast<size_t>(got));
  }
  ::close(fd);
  const size_t body = answer.find("\r\n\r\n");
  const size_t status = answer.find(" 200 ");
  if (!complete || body == std::string::npos || status == std::string::npos || status > 10) {
    *fault = host + " port " + port + " gave no page of metrics: " +
             (answer.empty() ? "no answer" : answer.substr(0, answer.find('\r')));
    return std::nullopt;
  }
  return answer.substr(body + 4);
}

}  // namespace rubato::selftest
