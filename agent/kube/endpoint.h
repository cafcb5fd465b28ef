// Where the API server is and what the agent shows it: the pod's service account, or an address
// given for tests and for use outside a pod.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "base/result.h"

namespace rubato::kube {

inline constexpr const char kServiceAccountDirectory[] =
    "/var/run/secrets/kubernetes.io/serviceaccount";

struct ApiEndpoint {
  std::string url;         // "https://10.0.0.1:443", without a slash at the end.
  std::string ca_file;     // PEM; the only certificates that are trusted. Empty for http://.
  std::string token_file;  // Sent as bearer token, read again when it changes. Empty: none.
};

// Reads KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT through `environment` (nullopt: not
// set); IPv6 addresses get their brackets. The files must exist.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;
base::Result<ApiEndpoint> InClusterEndpoint(
    const Environment& environment, const std::string& directory = kServiceAccountDirectory);

// Refuses anything but http:// and https://, user names in the address, and https without a CA.
base::Result<ApiEndpoint> CheckEndpoint(ApiEndpoint endpoint);

// A bearer token in a file that somebody else replaces (the kubelet does before it expires).
class TokenFile {
 public:
  explicit TokenFile(std::string path) : path_(std::move(path)) {}

  // The token now: the file is read again if it is another one than last time (its inode, size or
  // time of change). Without a path: empty. What is longer than 64 KiB or holds control characters
  // is refused; after an error the next call tries again.
  base::Result<std::string> Token();
  // The server refused the token: read the file again even if it looks the same. True if another
  // token came out.
  bool Refresh();

 private:
  struct Stamp {
    uint64_t device = 0;
    uint64_t inode = 0;
    int64_t bytes = -1;
    int64_t changed_ns = 0;
    bool operator==(const Stamp&) const = default;
  };
  base::Result<void> Read();

  std::string path_;
  std::string token_;
  Stamp stamp_;
};

}  // namespace rubato::kube
