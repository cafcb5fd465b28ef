#include "proto/abi/handshake.h"

#include <gtest/gtest.h>

namespace rubato::abi {
namespace {

TEST(HandshakeTest, OnlyTheRightMessageIsAccepted) {
  const MessageHeader header = MakeHeader(MessageType::kHello, sizeof(HelloMessage));
  EXPECT_EQ(header.major, kMajor);
  EXPECT_EQ(header.status, static_cast<uint32_t>(Status::kOk));
  EXPECT_TRUE(
      MessageAccepted(header, MessageType::kHello, sizeof(HelloMessage), sizeof(HelloMessage)));
  EXPECT_FALSE(
      MessageAccepted(header, MessageType::kWelcome, sizeof(HelloMessage), sizeof(HelloMessage)));
  EXPECT_FALSE(
      MessageAccepted(header, MessageType::kHello, sizeof(HelloMessage), sizeof(HelloMessage) + 1));
  EXPECT_FALSE(MessageAccepted(header, MessageType::kHello, sizeof(HelloMessage) - 8,
                               sizeof(HelloMessage) - 8));
  MessageHeader other = header;
  other.magic = 0;
  EXPECT_FALSE(
      MessageAccepted(other, MessageType::kHello, sizeof(HelloMessage), sizeof(HelloMessage)));
}

TEST(HandshakeTest, EveryMessageFitsAPacket) {
  EXPECT_LE(sizeof(HelloMessage), kMaxMessageBytes);
  EXPECT_LE(sizeof(WelcomeMessage), kMaxMessageBytes);
  EXPECT_LE(sizeof(OpenDeviceMessage), kMaxMessageBytes);
  EXPECT_LE(sizeof(PeersMessage), kMaxMessageBytes);
}

}  // namespace
}  // namespace rubato::abi
