#include "agent/kube/endpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/time.h"
#include "base/unique_fd.h"

namespace rubato::kube {
namespace {

constexpr size_t kMaxTokenBytes = size_t{64} << 10;

base::Error Bad(std::string message) {
  return base::Error{base::ErrorCode::kInvalid, std::move(message)};
}

bool IsPort(const std::string& text) {
  return !text.empty() && text.size() <= 5 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

base::Result<void> CheckReadable(const std::string& path, const char* what) {
  if (::access(path.c_str(), R_OK) == 0) return {};
  return base::SystemError(std::string("cannot read the ") + what + " " + path);
}

}  // namespace

base::Result<ApiEndpoint> InClusterEndpoint(const Environment& environment,
                                            const std::string& directory) {
  const std::optional<std::string> host = environment("KUBERNETES_SERVICE_HOST");
  const std::optional<std::string> port = environment("KUBERNETES_SERVICE_PORT");
  if (!host || host->empty() || !port || port->empty())
    return Bad(
        "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod; name the "
        "API server in the configuration");
  if (!IsPort(*port)) return Bad("KUBERNETES_SERVICE_PORT is no port number: " + *port);
  const bool v6 = host->find(':') != std::string::npos && host->front() != '[';
  ApiEndpoint endpoint;
  endpoint.url = "https://" + (v6 ? "[" + *host + "]" : *host) + ":" + *port;
  endpoint.ca_file = directory + "/ca.crt";
  endpoint.token_file = directory + "/token";
  auto checked = CheckEndpoint(std::move(endpoint));
  if (!checked) return checked;
  for (const auto& [path, what] : {std::pair(&checked->ca_file, "cluster's certificates"),
                                   std::pair(&checked->token_file, "service account's token")}) {
    if (auto readable = CheckReadable(*path, what); !readable) return readable.error();
  }
  return checked;
}

base::Result<ApiEndpoint> CheckEndpoint(ApiEndpoint endpoint) {
  while (endpoint.url.ends_with('/')) endpoint.url.pop_back();
  const bool tls = endpoint.url.starts_with("https://");
  const bool plain = endpoint.url.starts_with("http://");
  if (!tls && !plain)
    return Bad("the API server's address must begin with https:// or http://, not '" +
               endpoint.url.substr(0, 64) + "'");
  const std::string host = endpoint.url.substr(tls ? 8 : 7);
  if (host.empty() || std::any_of(host.begin(), host.end(), [](char c) {
        return c <= ' ' || c > '~' || c == '@' || c == '?' || c == '#' || c == '\\';
      }))
    return Bad("the API server's address must be a host and a port, without user or query: '" +
               endpoint.url.substr(0, 64) + "'");
  if (tls && endpoint.ca_file.empty())
    return Bad("the API server is asked by https, so the file of its CA must be given");
  return endpoint;
}

base::Result<std::string> TokenFile::Token() {
  if (path_.empty()) return std::string();
  struct stat status {};
  if (::stat(path_.c_str(), &status) != 0) {
    stamp_ = {};
    return base::SystemError("cannot read the token " + path_);
  }
  const Stamp now{
      static_cast<uint64_t>(status.st_dev), static_cast<uint64_t>(status.st_ino),
      static_cast<int64_t>(status.st_size),
      static_cast<int64_t>(status.st_mtim.tv_sec) * base::kSecond + status.st_mtim.tv_nsec};
  if (!(now == stamp_)) {
    if (auto read = Read(); !read) return read.error();
  }
  return token_;
}

bool TokenFile::Refresh() {
  if (path_.empty()) return false;
  const std::string before = token_;
  stamp_ = {};
  return Read().ok() && token_ != before;
}

base::Result<void> TokenFile::Read() {
  stamp_ = {};
  const base::UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!file.valid()) return base::SystemError("cannot read the token " + path_);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return base::SystemError("cannot read the token " + path_);
  if (!S_ISREG(status.st_mode)) return Bad("the token " + path_ + " is no file");
  std::string token(kMaxTokenBytes + 1, '\0');
  size_t length = 0;
  while (length < token.size()) {
    const ssize_t count = ::read(file.get(), token.data() + length, token.size() - length);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return base::SystemError("cannot read the token " + path_);
    if (count == 0) break;
    length += static_cast<size_t>(count);
  }
  if (length > kMaxTokenBytes) return Bad("the token " + path_ + " is too long");
  token.resize(length);
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r' || token.back() == ' '))
    token.pop_back();
  if (token.empty()) return Bad("the token " + path_ + " is empty");
  // It becomes a header line.
  if (std::any_of(token.begin(), token.end(), [](char c) { return c <= ' ' || c > '~'; }))
    return Bad("the token " + path_ + " holds other characters than a token has");
  token_ = std::move(token);
  stamp_ = {static_cast<uint64_t>(status.st_dev), static_cast<uint64_t>(status.st_ino),
            static_cast<int64_t>(status.st_size),
            static_cast<int64_t>(status.st_mtim.tv_sec) * base::kSecond + status.st_mtim.tv_nsec};
  return {};
}

}  // namespace rubato::kube
