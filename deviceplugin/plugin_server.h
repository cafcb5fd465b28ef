// The DevicePlugin service on its unix socket: connections, calls and streams, without a policy.
//
// gRPC's threads only parse; every call is posted to the loop's thread, where the handler answers
// it at once or later. The server accepts connections itself, so that a socket that the kubelet
// deletes can be made anew while the service goes on, and turns other users away. The authority
// that a peer names is not looked at: kubelets before 1.26 give a path there.
#pragma once

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/event_loop.h"
#include "base/result.h"
#include "proto/kubelet/deviceplugin_v1beta1.pb.h"

namespace rubato::deviceplugin {

// Tells one file from another that later has the same name.
struct FileIdentity {
  dev_t device = 0;
  ino_t inode = 0;
  int64_t changed_ns = 0;
  bool operator==(const FileIdentity&) const = default;
};
// nullopt: there is no socket at `path`.
std::optional<FileIdentity> SocketIdentity(const std::string& path);

// One call that waits for its answer. Loop's thread.
template <typename Request, typename Response>
class UnaryCall {
 public:
  virtual ~UnaryCall() = default;
  // Until Finish().
  virtual const Request& request() const = 0;
  virtual Response* response() = 0;
  virtual bool finished() const = 0;
  // The first one counts. A call that is dropped unfinished ends with the server.
  virtual void Finish(const grpc::Status& status) = 0;
};
using PreferredCall =
    UnaryCall<::v1beta1::PreferredAllocationRequest, ::v1beta1::PreferredAllocationResponse>;
using AllocateCall = UnaryCall<::v1beta1::AllocateRequest, ::v1beta1::AllocateResponse>;
using PreStartCall =
    UnaryCall<::v1beta1::PreStartContainerRequest, ::v1beta1::PreStartContainerResponse>;

// All calls come on the loop's thread.
class PluginServerHandler {
 public:
  virtual ~PluginServerHandler() = default;
  virtual void GetPreferredAllocation(std::shared_ptr<PreferredCall> call) = 0;
  virtual void Allocate(std::shared_ptr<AllocateCall> call) = 0;
  virtual void PreStartContainer(std::shared_ptr<PreStartCall> call) = 0;
  // A kubelet reads the list: it was sent the one of the last SetList().
  virtual void StreamOpened() = 0;
  // A kubelet has ended its stream, or is gone. `left`: streams that are still open.
  virtual void StreamLost(size_t left) = 0;
};

class PluginServer {
 public:
  // Nothing is listened to yet. `loop` and `handler` outlive the server.
  static base::Result<std::unique_ptr<PluginServer>> Make(base::EventLoop* loop,
                                                          PluginServerHandler* handler);
  // Ends all calls and waits for gRPC's threads.
  virtual ~PluginServer() = default;

  // Listens at `path` (mode 0600), in place of where it listened before.
  virtual base::Result<void> Listen(const std::string& path) = 0;
  virtual void StopListening() = 0;
  // The socket of Listen() is still the file at its path.
  virtual bool SocketInPlace() const = 0;

  // What every stream says from now on; the kubelet replaces all it had.
  virtual void SetList(const ::v1beta1::ListAndWatchResponse& list) = 0;
  // Ends the streams after what they have to send.
  virtual void EndStreams() = 0;
  virtual size_t streams() const = 0;
  virtual uint64_t lists_sent_total() const = 0;
  virtual uint64_t peers_refused_total() const = 0;

  // Ends the streams and the server; calls that are unfinished shortly after are cut off. `done` is
  // posted to the loop, which must go on running until then.
  virtual void Shutdown(std::function<void()> done) = 0;
};

}  // namespace rubato::deviceplugin
