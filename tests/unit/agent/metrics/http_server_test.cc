#include "agent/metrics/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

#include "base/unique_fd.h"

namespace rubato::agent {
namespace {

// The whole answer to one GET.
std::string Get(const std::string& address, const std::string& path) {
  const base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::atoi(address.c_str() + address.rfind(':') + 1)));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) return "no answer";
  const std::string request =
      "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  if (::write(fd.get(), request.data(), request.size()) < 0) return "no answer";
  std::string out;
  char buffer[4096];
  for (ssize_t got; (got = ::read(fd.get(), buffer, sizeof(buffer))) > 0;)
    out.append(buffer, static_cast<size_t>(got));
  return out;
}

TEST(HttpServerTest, ServesItsPagesAndNothingElse) {
  std::atomic<bool> ready{false};
  std::vector<HttpServer::Page> pages;
  pages.push_back({"/metrics", [] { return HttpAnswer{200, "text/plain", "a 1\n"}; }});
  pages.push_back({"/readyz", [&ready] {
                     return ready ? HttpAnswer{200, "text/plain", "ready\n"}
                                  : HttpAnswer{503, "text/plain", "not ready\n- kubelet\n"};
                   }});
  pages.push_back({"/throws", []() -> HttpAnswer { throw std::runtime_error("oh"); }});
  auto server = HttpServer::Start("127.0.0.1:0", std::move(pages));
  ASSERT_TRUE(server.ok()) << server.error().message;
  const std::string address = (*server)->address();
  EXPECT_NE(address, "127.0.0.1:0");
  const std::string metrics = Get(address, "/metrics");
  EXPECT_TRUE(metrics.starts_with("HTTP/1.1 200 OK\r\n")) << metrics;
  EXPECT_TRUE(metrics.ends_with("\r\n\r\na 1\n")) << metrics;
  EXPECT_TRUE(Get(address, "/readyz").starts_with("HTTP/1.1 503 "));
  ready = true;
  EXPECT_TRUE(Get(address, "/readyz").starts_with("HTTP/1.1 200 "));
  EXPECT_TRUE(Get(address, "/throws").starts_with("HTTP/1.1 500 "));
  EXPECT_NE(Get(address, "/etc/passwd").find(" 404 "), std::string::npos);
  EXPECT_NE(Get(address, "/").find(" 404 "), std::string::npos);
}

TEST(HttpServerTest, APortThatIsTakenIsAnError) {
  auto first = HttpServer::Start("127.0.0.1:0", {});
  ASSERT_TRUE(first.ok());
  const auto second = HttpServer::Start((*first)->address(), {});
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("metrics.address"), std::string::npos);
}

}  // namespace
}  // namespace rubato::agent
