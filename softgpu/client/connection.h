// A program's line to the device process: started on demand, one per process, shared by the
// stand-ins' calls.
//
// Push writes into the shared ring (no system call unless the device sleeps); Call asks on the
// socket and waits. Both need the caller to hold one lock of its own: the order of pushes and calls
// is the order the device sees. The waits need no lock. The device is trusted; its death shows as
// `lost()`.
#ifndef SOFTGPU_CLIENT_CONNECTION_H_
#define SOFTGPU_CLIENT_CONNECTION_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "softgpu/device/wire.h"

namespace rubato::softgpu {

class Connection {
 public:
  // Connects to the device of this user, starting it if there is none. Null if that fails.
  // `observe`: without MPS and contexts, for libraries that only ask.
  static std::unique_ptr<Connection> Open(bool observe);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  const wire::HelloReply& hello() const { return hello_; }
  wire::Shared* shared() const { return shared_; }
  int vram_fd(uint32_t device) const { return vram_fds_[device]; }
  uint64_t client() const { return hello_.client; }
  bool under_mps() const { return mps_server_ != 0; }
  bool lost() const { return lost_.load(std::memory_order_relaxed); }

  // Queues a record and gives its sequence number.
  uint64_t Push(wire::RecordType type, uint32_t stream, uint32_t extra, const void* body = nullptr,
                size_t body_bytes = 0, const void* tail = nullptr, size_t tail_bytes = 0);
  // The sequence number that the next Push will give.
  uint64_t next_seq() const { return next_seq_; }

  wire::Reply Call(wire::RequestType type, uint32_t device,
                   std::initializer_list<uint64_t> arguments, int fd = -1);

  bool Done(uint32_t stream, uint64_t seq) const {
    return shared_->streams[stream].completed_seq.load(std::memory_order_acquire) >= seq;
  }
  // Blocks until `done()`; looks again whenever the device has made progress. False if the device
  // died.
  template <typename F>
  bool WaitUntil(F done) {
    for (int i = 0; i < kSpins; ++i) {
      if (done()) return true;
      __builtin_ia32_pause();
    }
    for (;;) {
      const uint32_t seen = shared_->progress.load();
      shared_->waiters.fetch_add(1);
      const bool now = done();
      if (!now) Sleep(seen);
      shared_->waiters.fetch_sub(1);
      if (now || done()) return true;
      if (lost_.load() || !Alive()) return false;
    }
  }

  // After fork the child has no GPU: forgets the device without saying a word to it.
  void AbandonInChild();

 private:
  static constexpr int kSpins = 300;
  Connection() = default;
  bool Greet(bool observe);
  void Sleep(uint32_t seen_progress);
  bool Alive();
  unsigned char* Reserve(size_t bytes);
  void Ring();

  wire::HelloReply hello_{};
  wire::Shared* shared_ = nullptr;
  int socket_ = -1;
  int doorbell_ = -1;
  int vram_fds_[wire::kMaxDevices];
  uint64_t mps_server_ = 0;
  uint64_t next_seq_ = 1;
  uint64_t tail_ = 0;
  std::atomic<bool> lost_{false};
};

}  // namespace rubato::softgpu

#endif  // SOFTGPU_CLIENT_CONNECTION_H_
