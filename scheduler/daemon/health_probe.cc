#include "scheduler/daemon/health_probe.h"

#include <grpcpp/grpcpp.h>

#include <chrono>

#include "proto/health/v1/health.grpc.pb.h"

namespace rubato::sched {

namespace health = grpc::health::v1;

base::Result<void> ProbeHealth(const std::string& socket_path, bool drains_too,
                               base::Nanos time_limit) {
  grpc::ChannelArguments arguments;
  // No proxy of the environment stands between us and a socket of ours.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const auto stub = health::Health::NewStub(grpc::CreateCustomChannel(
      "unix:" + socket_path, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::nanoseconds(time_limit));
  health::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, health::HealthCheckRequest(), &response);
  if (!status.ok()) {
    const char* what = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED
                           ? "the scheduler does not answer at "
                           : "no scheduler serves at ";
    return base::Error{base::ErrorCode::kUnavailable, what + socket_path + "; look at its log"};
  }
  if (!drains_too && response.status() != health::HealthCheckResponse::SERVING) {
    return base::Error{base::ErrorCode::kUnavailable,
                       "the scheduler at " + socket_path +
                           " takes no new tenants: it drains, and is to be replaced or ended"};
  }
  return {};
}

}  // namespace rubato::sched
