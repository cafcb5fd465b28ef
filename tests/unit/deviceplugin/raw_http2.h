// One gRPC call written by hand, for what a proper client would not send: a path as :authority.
#pragma once

#include <string>

namespace rubato::deviceplugin {

struct RawAnswer {
  bool connected = false;
  bool ended = false;  // The server ended the stream in order.
  bool reset = false;  // It cut the stream or the connection off.
  std::string data;    // Of the answer's DATA frames: five bytes of length, and the message.
};

// Calls `method` ("/v1beta1.DevicePlugin/...") with an empty message. Waits half a minute at most.
RawAnswer RawCall(const std::string& socket_path, const std::string& method,
                  const std::string& authority);

}  // namespace rubato::deviceplugin
