#include "base/unix_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>

namespace rubato::base {
namespace {

size_t OpenDescriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++count;
  return count;
}

class UnixSocketTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/rubato-socket-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    auto listener = ListenUnix(directory_ + "/s", SOCK_SEQPACKET, 0600, 4);
    ASSERT_TRUE(listener.ok());
    listener_ = std::move(*listener);
    auto client = ConnectUnix(directory_ + "/s", SOCK_SEQPACKET);
    ASSERT_TRUE(client.ok());
    client_ = std::move(*client);
    auto accepted = AcceptUnix(listener_.get());
    ASSERT_TRUE(accepted.ok() && accepted->has_value());
    server_ = std::move(**accepted);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  static std::span<const std::byte> Bytes(const std::string& text) {
    return std::as_bytes(std::span(text.data(), text.size()));
  }
  std::string directory_;
  UniqueFd listener_;
  UniqueFd client_;
  UniqueFd server_;
};

TEST_F(UnixSocketTest, NobodyWaits) {
  auto accepted = AcceptUnix(listener_.get());
  ASSERT_TRUE(accepted.ok());
  EXPECT_FALSE(accepted->has_value());
}

TEST_F(UnixSocketTest, PacketsKeepTheirBounds) {
  ASSERT_TRUE(SendPacket(client_.get(), Bytes("one")).ok());
  ASSERT_TRUE(SendPacket(client_.get(), Bytes("second")).ok());
  std::array<std::byte, 64> buffer;
  EXPECT_EQ(ReceivePacket(server_.get(), buffer).packet.bytes, 3u);
  EXPECT_EQ(ReceivePacket(server_.get(), buffer).packet.bytes, 6u);
  EXPECT_EQ(ReceivePacket(server_.get(), buffer).state, PacketState::kNothing);
  client_.Reset();
  EXPECT_EQ(ReceivePacket(server_.get(), buffer).state, PacketState::kEnd);
}

TEST_F(UnixSocketTest, ALongPacketIsSeenAsSuch) {
  ASSERT_TRUE(SendPacket(client_.get(), Bytes(std::string(100, 'x'))).ok());
  std::array<std::byte, 64> buffer;
  const Received received = ReceivePacket(server_.get(), buffer);
  EXPECT_TRUE(received.packet.cut);
  EXPECT_EQ(received.packet.bytes, 100u);
}

TEST_F(UnixSocketTest, DescriptorsComeAlongAndNoneIsLost) {
  const size_t before = OpenDescriptors();
  {
    const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    const std::vector<int> fds(5, null.get());
    ASSERT_TRUE(SendPacket(client_.get(), Bytes("x"), fds).ok());
    std::array<std::byte, 64> buffer;
    const Received received = ReceivePacket(server_.get(), buffer);
    ASSERT_EQ(received.packet.fds.size(), 5u);
    for (const UniqueFd& fd : received.packet.fds)
      EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(UnixSocketTest, MoreDescriptorsThanExpectedLeakNone) {
  const size_t before = OpenDescriptors();
  {
    // As a hostile peer would: straight through sendmsg.
    constexpr size_t kMany = 200;
    const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    std::vector<char> control(CMSG_SPACE(sizeof(int) * kMany));
    char byte = 'x';
    iovec part{&byte, 1};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * kMany);
    for (size_t i = 0; i < kMany; ++i) {
      const int fd = null.get();
      __builtin_memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(fd));
    }
    ASSERT_EQ(::sendmsg(client_.get(), &message, 0), 1);
    std::array<std::byte, 64> buffer;
    const Received received = ReceivePacket(server_.get(), buffer);
    EXPECT_TRUE(received.packet.cut);
    EXPECT_LE(received.packet.fds.size(), kMaxPacketFds + 1);
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(UnixSocketTest, ThePeerIsKnown) {
  const auto peer = PeerOf(server_.get());
  ASSERT_TRUE(peer.ok());
  EXPECT_EQ(peer->pid, ::getpid());
  EXPECT_EQ(peer->uid, ::geteuid());
}

TEST_F(UnixSocketTest, AReaderThatIsGoneOrFullIsUnavailable) {
  const std::string large(1000, 'x');
  Result<void> sent;
  for (int i = 0; i < 100000 && sent.ok(); ++i) sent = SendPacket(client_.get(), Bytes(large));
  ASSERT_FALSE(sent.ok());
  EXPECT_EQ(sent.error().code, ErrorCode::kUnavailable);
  server_.Reset();
  const auto gone = SendPacket(client_.get(), Bytes("x"));
  ASSERT_FALSE(gone.ok());
  EXPECT_EQ(gone.error().code, ErrorCode::kUnavailable);
}

TEST_F(UnixSocketTest, PathsThatAreTooLongAreNamed) {
  const auto listener = ListenUnix("/tmp/" + std::string(200, 'x'), SOCK_STREAM, 0600, 1);
  ASSERT_FALSE(listener.ok());
  EXPECT_NE(listener.error().message.find("shorter"), std::string::npos);
}

}  // namespace
}  // namespace rubato::base
