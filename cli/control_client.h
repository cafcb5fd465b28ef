// The command line's end of the control API (proto/control/v1/control.proto).
//
// The only file of cli/ that knows gRPC, behind which threads appear: whoever forks does so before
// the first client is made. Errors are the scheduler's own words where it answered.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/time.h"
#include "cli/runtime_dir.h"
#include "proto/control/v1/control.pb.h"

namespace rubato::cli {

namespace control = rubato::control::v1;

// True if somebody listens at the control socket. Makes no thread.
bool SchedulerListens(const RuntimeDir& directory);

// A tenant that exists for as long as this object does: also across a restart of the scheduler, to
// which it registers again at the same attach socket. Owns a thread.
class TenantHold {
 public:
  virtual ~TenantHold() = default;
  virtual const std::string& attach_socket_path() const = 0;
  // What the scheduler decided at the first registration.
  virtual const control::AdmissionDecision& admission() const = 0;
};

class ControlClient {
 public:
  // Each call ends with an error after `time_limit` if the scheduler does not answer.
  static std::unique_ptr<ControlClient> Make(const RuntimeDir& directory,
                                             base::Nanos time_limit = 10 * base::kSecond);
  virtual ~ControlClient() = default;

  virtual base::Result<control::GetVersionResponse> GetVersion() = 0;
  virtual base::Result<control::GetStatusResponse> GetStatus() = 0;
  virtual base::Result<control::ListProfilesResponse> ListProfiles(uint32_t limit) = 0;
  virtual base::Result<control::ClearProfilesResponse> ClearProfiles() = 0;
  virtual base::Result<control::ShutdownResponse> Shutdown() = 0;
  // Waits until the tenant is registered and its attach socket listens. With `require_class` it is
  // an error if the class that the spec asks for is not granted.
  virtual base::Result<std::unique_ptr<TenantHold>> HoldTenant(const control::TenantSpec& spec,
                                                               bool require_class = false) = 0;
};

}  // namespace rubato::cli
