#include "tests/unit/deviceplugin/raw_http2.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/unique_fd.h"

namespace rubato::deviceplugin {
namespace {

enum FrameType : uint8_t {
  kData = 0,
  kHeaders = 1,
  kReset = 3,
  kSettings = 4,
  kPing = 6,
  kGoAway = 7
};
constexpr uint8_t kEndStream = 1;
constexpr uint8_t kEndHeaders = 4;
constexpr uint8_t kAck = 1;

std::string Frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
  std::string frame;
  for (int shift : {16, 8, 0}) frame += static_cast<char>((payload.size() >> shift) & 255);
  frame += static_cast<char>(type);
  frame += static_cast<char>(flags);
  for (int shift : {24, 16, 8, 0}) frame += static_cast<char>((stream >> shift) & 255);
  return frame + payload;
}

// HPACK without tables and without Huffman's code. Texts of at least 127 bytes take a second byte.
std::string Text(const std::string& text) {
  std::string out;
  if (text.size() < 127) {
    out += static_cast<char>(text.size());
  } else {
    out += static_cast<char>(127);
    size_t rest = text.size() - 127;
    for (; rest >= 128; rest /= 128) out += static_cast<char>(128 + rest % 128);
    out += static_cast<char>(rest);
  }
  return out + text;
}
std::string Header(const std::string& name, const std::string& value) {
  return std::string(1, '\0') + Text(name) + Text(value);
}

}  // namespace

RawAnswer RawCall(const std::string& socket_path, const std::string& method,
                  const std::string& authority) {
  RawAnswer answer;
  const base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, socket_path.c_str(),
              std::min(socket_path.size(), sizeof(address.sun_path) - 1));
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
    return answer;
  answer.connected = true;
  const std::string headers = Header(":method", "POST") + Header(":scheme", "http") +
                              Header(":path", method) + Header(":authority", authority) +
                              Header("content-type", "application/grpc") + Header("te", "trailers");
  const std::string sent = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(kSettings, 0, 0, "") +
                           Frame(kHeaders, kEndHeaders, 1, headers) +
                           Frame(kData, kEndStream, 1, std::string(5, '\0'));
  if (::send(fd.get(), sent.data(), sent.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(sent.size()))
    return answer;

  std::string received;
  for (;;) {
    pollfd ready{fd.get(), POLLIN, 0};
    if (::poll(&ready, 1, 30'000) != 1) return answer;
    char buffer[4096];
    const ssize_t n = ::recv(fd.get(), buffer, sizeof(buffer), 0);
    if (n <= 0) {
      answer.reset = true;
      return answer;
    }
    received.append(buffer, static_cast<size_t>(n));
    while (received.size() >= 9) {
      const auto byte = [&](size_t at) { return static_cast<uint8_t>(received[at]); };
      const size_t length = (size_t{byte(0)} << 16) + (size_t{byte(1)} << 8) + byte(2);
      if (received.size() < 9 + length) break;
      const uint8_t type = byte(3), flags = byte(4);
      const uint32_t stream = (uint32_t{byte(7)} << 8) + byte(8);
      const std::string payload = received.substr(9, length);
      received.erase(0, 9 + length);
      std::string reply;
      if (type == kSettings && (flags & kAck) == 0) reply = Frame(kSettings, kAck, 0, "");
      if (type == kPing && (flags & kAck) == 0) reply = Frame(kPing, kAck, 0, payload);
      if (!reply.empty()) (void)!::send(fd.get(), reply.data(), reply.size(), MSG_NOSIGNAL);
      if (type == kGoAway || (type == kReset && stream == 1)) {
        answer.reset = true;
        return answer;
      }
      if (stream != 1) continue;
      if (type == kData) answer.data += payload;
      if ((type == kData || type == kHeaders) && (flags & kEndStream) != 0) {
        answer.ended = true;
        return answer;
      }
    }
  }
}

}  // namespace rubato::deviceplugin
