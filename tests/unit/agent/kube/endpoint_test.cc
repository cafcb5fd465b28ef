#include "agent/kube/endpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "agent/kube/api_transport.h"

namespace rubato::kube {
namespace {

class EndpointTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/endpoint.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    Write("ca.crt", "certificate");
    Write("token", "secret-1\n");
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ + "/" + name, std::ios::binary) << text;
  }
  base::Result<ApiEndpoint> InCluster(const std::map<std::string, std::string>& variables) {
    return InClusterEndpoint(
        [&](const std::string& name) -> std::optional<std::string> {
          const auto found = variables.find(name);
          if (found == variables.end()) return std::nullopt;
          return found->second;
        },
        directory_);
  }

  std::string directory_;
};

TEST_F(EndpointTest, ReadsThePodsEnvironment) {
  const auto v4 =
      InCluster({{"KUBERNETES_SERVICE_HOST", "10.96.0.1"}, {"KUBERNETES_SERVICE_PORT", "443"}});
  ASSERT_TRUE(v4.ok()) << v4.error().message;
  EXPECT_EQ(v4->url, "https://10.96.0.1:443");
  EXPECT_EQ(v4->ca_file, directory_ + "/ca.crt");
  EXPECT_EQ(v4->token_file, directory_ + "/token");
  const auto v6 =
      InCluster({{"KUBERNETES_SERVICE_HOST", "fd00::1"}, {"KUBERNETES_SERVICE_PORT", "6443"}});
  ASSERT_TRUE(v6.ok());
  EXPECT_EQ(v6->url, "https://[fd00::1]:6443");
  EXPECT_EQ(
      InCluster({{"KUBERNETES_SERVICE_HOST", "[fd00::1]"}, {"KUBERNETES_SERVICE_PORT", "6443"}})
          ->url,
      "https://[fd00::1]:6443");
}

TEST_F(EndpointTest, SaysWhatIsMissing) {
  EXPECT_FALSE(InCluster({}).ok());
  EXPECT_FALSE(InCluster({{"KUBERNETES_SERVICE_HOST", "10.96.0.1"}}).ok());
  EXPECT_FALSE(
      InCluster({{"KUBERNETES_SERVICE_HOST", "10.96.0.1"}, {"KUBERNETES_SERVICE_PORT", "x"}}).ok());
  EXPECT_FALSE(
      InCluster({{"KUBERNETES_SERVICE_HOST", "a b"}, {"KUBERNETES_SERVICE_PORT", "443"}}).ok());
  std::filesystem::remove(directory_ + "/token");
  const auto missing =
      InCluster({{"KUBERNETES_SERVICE_HOST", "10.96.0.1"}, {"KUBERNETES_SERVICE_PORT", "443"}});
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find(directory_ + "/token"), std::string::npos);
}

TEST_F(EndpointTest, ChecksAnAddressThatIsGiven) {
  EXPECT_EQ(CheckEndpoint({.url = "http://127.0.0.1:8080/"})->url, "http://127.0.0.1:8080");
  EXPECT_TRUE(CheckEndpoint({.url = "https://[::1]:1", .ca_file = "x"}).ok());
  for (const char* url :
       {"", "127.0.0.1:80", "ftp://x", "file:///etc/passwd", "http://", "http://user@host",
        "http://host?x", "http://host#x", "http://ho st", "http://host\r\nX: y"}) {
    EXPECT_FALSE(CheckEndpoint({.url = url}).ok()) << url;
  }
  EXPECT_FALSE(CheckEndpoint({.url = "https://127.0.0.1"}).ok());  // Nobody to trust.
}

TEST_F(EndpointTest, ReadsTheTokenAgainWhenItChanges) {
  TokenFile token(directory_ + "/token");
  EXPECT_EQ(*token.Token(), "secret-1");
  // As the kubelet does it: another file takes the name.
  Write("token.new", "secret-2");
  std::filesystem::rename(directory_ + "/token.new", directory_ + "/token");
  EXPECT_EQ(*token.Token(), "secret-2");
  EXPECT_FALSE(token.Refresh());
  // Changed in place with the old times: only a refusal makes us look.
  struct stat before {};
  ASSERT_EQ(::stat((directory_ + "/token").c_str(), &before), 0);
  Write("token", "secret-3");
  const timespec times[2] = {before.st_atim, before.st_mtim};
  ASSERT_EQ(::utimensat(AT_FDCWD, (directory_ + "/token").c_str(), times, 0), 0);
  EXPECT_EQ(*token.Token(), "secret-2");
  EXPECT_TRUE(token.Refresh());
  EXPECT_EQ(*token.Token(), "secret-3");
}

TEST_F(EndpointTest, RefusesWhatIsNoToken) {
  TokenFile token(directory_ + "/token");
  for (const std::string& text :
       {std::string(), std::string("\n"), std::string("a\nX-Header: b"), std::string("a b"),
        std::string("a\0b", 3), std::string(70000, 'x')}) {
    Write("token", text);
    EXPECT_FALSE(token.Token().ok()) << text.substr(0, 20);
  }
  std::filesystem::remove(directory_ + "/token");
  EXPECT_FALSE(token.Token().ok());
  std::filesystem::create_directory(directory_ + "/token");
  EXPECT_FALSE(token.Token().ok());
  EXPECT_FALSE(token.Refresh());
  std::filesystem::remove(directory_ + "/token");
  Write("token", "good");
  EXPECT_EQ(*token.Token(), "good");
  EXPECT_EQ(*TokenFile("").Token(), "");
}

TEST(UrlEscapeTest, EscapesAllButPlainCharacters) {
  EXPECT_EQ(UrlEscape("aZ09-._~"), "aZ09-._~");
  EXPECT_EQ(UrlEscape("spec.nodeName=a/b c%\xff"), "spec.nodeName%3Da%2Fb%20c%25%FF");
}

}  // namespace
}  // namespace rubato::kube
