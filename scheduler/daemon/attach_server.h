// The attach sockets: one listening SEQPACKET socket per tenant, so that the socket says who a
// process belongs to.
//
// Owns sockets and connections, on the loop's thread. Nothing here waits: a peer that is silent
// before its Hello is dropped after a while, one that does not read its answers at once. Limits per
// tenant, per user and in all keep one tenant from using up the descriptors.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "base/clock.h"
#include "base/event_loop.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "scheduler/daemon/attach_directory.h"
#include "scheduler/daemon/attach_protocol.h"
#include "scheduler/daemon/scheduler.h"

namespace rubato::sched {

struct AttachLimits {
  size_t connections = 4096;
  size_t per_tenant = 256;
  size_t per_user = 512;  // Not counted at sockets for any user: there a user says nothing.
  Nanos hello_ns = 5 * base::kSecond;  // A connection without a Hello lives this long.
};

class AttachServer {
 public:
  // All pointers outlive this.
  AttachServer(base::EventLoop* loop, const base::Clock* clock, Scheduler* scheduler,
               AttachDirectory directory, AttachLimits limits = {});
  // Hangs up. The sessions are not ended: what the shared pages say of them is what their processes
  // go by until the next scheduler, as if this one had crashed.
  ~AttachServer();
  AttachServer(const AttachServer&) = delete;
  AttachServer& operator=(const AttachServer&) = delete;

  // Listens for a tenant. An empty token is drawn at random; otherwise it is 32 lower-case
  // hexadecimal digits that are not in use. Returns the token.
  base::Result<std::string> Open(TenantId tenant, const std::string& token);
  // Ends the socket, all connections and all sessions of a tenant.
  void Close(TenantId tenant);
  // Removes all sockets, so that whoever comes finds no scheduler instead of one that ends.
  // Processes that have greeted stay.
  void StopListening();
  std::string PathOf(TenantId tenant) const;  // Empty: no socket.
  std::string TokenOf(TenantId tenant) const;

  // Called after a connection did something that may make polling necessary.
  void OnActivity(std::function<void()> callback) { activity_ = std::move(callback); }

  size_t connection_count() const { return connections_.size(); }

 private:
  struct Listener;
  struct Connection;

  void StopListening(Listener* listener);
  void Accept(TenantId tenant);
  void Read(int fd);
  void Drop(int fd);

  base::EventLoop* loop_;
  const base::Clock* clock_;
  Scheduler* scheduler_;
  AttachDirectory directory_;
  AttachLimits limits_;
  std::map<TenantId, std::unique_ptr<Listener>> listeners_;
  std::unordered_map<int, std::unique_ptr<Connection>> connections_;  // By descriptor.
  std::unordered_map<uid_t, size_t> per_user_;
  std::function<void()> activity_;
};

}  // namespace rubato::sched
