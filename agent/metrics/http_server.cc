#include "agent/metrics/http_server.h"

#include <CivetServer.h>
#include <netdb.h>
#include <sys/socket.h>

#include <chrono>
#include <exception>
#include <future>
#include <thread>
#include <utility>

#include "base/unique_fd.h"

namespace rubato::agent {
namespace {

const char* StatusText(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 503:
      return "Service Unavailable";
    default:
      return "Internal Server Error";
  }
}

class PageHandler final : public CivetHandler {
 public:
  explicit PageHandler(std::function<HttpAnswer()> answer) : answer_(std::move(answer)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    HttpAnswer answer;
    try {
      answer = answer_();
    } catch (const std::exception& error) {
      answer = {500, "text/plain; charset=utf-8", std::string(error.what()) + "\n"};
    }
    mg_printf(connection,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
              "Cache-Control: no-store\r\n\r\n",
              answer.status, StatusText(answer.status), answer.content_type.c_str(),
              answer.body.size());
    mg_write(connection, answer.body.data(), answer.body.size());
    return true;
  }

 private:
  const std::function<HttpAnswer()> answer_;
};

class CivetHttpServer final : public HttpServer {
 public:
  CivetHttpServer(const std::string& address, std::vector<Page> pages)
      : server_(std::make_unique<CivetServer>(std::vector<std::string>{
            "listening_ports", address, "num_threads", "2", "request_timeout_ms", "10000",
            "keep_alive_timeout_ms", "1000", "enable_directory_listing", "no"})) {
    for (Page& page : pages) {
      handlers_.push_back(std::make_unique<PageHandler>(std::move(page.answer)));
      server_->addHandler(page.path, handlers_.back().get());
    }
    const std::vector<int> ports = server_->getListeningPorts();
    address_ = address.substr(0, address.rfind(':')) + ":" +
               std::to_string(ports.empty() ? 0 : ports.front());
  }

  // The server's accepting thread looks at its stop flag when a connection comes, or every two
  // seconds: so connections come until it has ended.
  ~CivetHttpServer() override {
    std::promise<void> done;
    std::future<void> ended = done.get_future();
    std::thread ending([this, &done] {
      server_.reset();
      done.set_value();
    });
    do {
      Knock();
    } while (ended.wait_for(std::chrono::milliseconds(10)) != std::future_status::ready);
    ending.join();
  }

  const std::string& address() const override { return address_; }

 private:
  void Knock() const {
    const size_t colon = address_.rfind(':');
    std::string host = address_.substr(0, colon);
    if (host.empty() || host == "0.0.0.0") host = "127.0.0.1";
    if (host.size() > 1 && host.front() == '[') host = host.substr(1, host.size() - 2);
    if (host == "::") host = "::1";
    addrinfo hints{};
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (::getaddrinfo(host.c_str(), address_.c_str() + colon + 1, &hints, &found) != 0) return;
    const base::UniqueFd fd(
        ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd.valid()) (void)::connect(fd.get(), found->ai_addr, found->ai_addrlen);
    ::freeaddrinfo(found);
  }

  std::vector<std::unique_ptr<PageHandler>> handlers_;
  std::unique_ptr<CivetServer> server_;
  std::string address_;
};

}  // namespace

base::Result<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address,
                                                            std::vector<Page> pages) {
  try {
    return std::unique_ptr<HttpServer>(
        std::make_unique<CivetHttpServer>(address, std::move(pages)));
  } catch (const std::exception&) {
    return base::Error{
        base::ErrorCode::kSystem,
        "cannot serve metrics at " + address + "; choose another metrics.address, port 0, or none"};
  }
}

}  // namespace rubato::agent
