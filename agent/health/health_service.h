// grpc.health.v1 on a unix socket of the agent's own, for probes that speak gRPC. Its answer is set
// from the loop's thread; Check and Watch run on gRPC's.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"

namespace rubato::agent {

class HealthService {
 public:
  virtual ~HealthService() = default;
  virtual void SetServing(bool serving) = 0;

  // Services "" and "rubato.agent". The socket's mode is 0660; its folder must exist.
  static base::Result<std::unique_ptr<HealthService>> Start(const std::string& socket_path);
};

}  // namespace rubato::agent
