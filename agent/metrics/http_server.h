// The agent's HTTP server: /metrics, /healthz and /readyz on one port.
//
// Made of CivetServer, the web server inside of prometheus-cpp's pull library, and not of its
// Exposer: that serves metrics alone. Requests run on the server's threads; the sources given here
// must be safe to call from there (they ask the loop and wait).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace rubato::agent {

struct HttpAnswer {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

class HttpServer {
 public:
  virtual ~HttpServer() = default;
  // "host:port" with the port that was bound.
  virtual const std::string& address() const = 0;

  struct Page {
    std::string path;
    std::function<HttpAnswer()> answer;
  };
  static base::Result<std::unique_ptr<HttpServer>> Start(const std::string& address,
                                                         std::vector<Page> pages);
};

}  // namespace rubato::agent
