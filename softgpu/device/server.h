// The device process: it joins the model to real time, to the programs that use it and to their
// memory.
//
// One thread does everything: it takes what clients have queued in the order of their clocks, lets
// the model advance to the present, carries out what the model says has happened, wakes who waits,
// and sleeps until the next event or bell. Model time is real time divided by the dilation; an
// operation counts from the moment its program queued it, so a late wake-up here delays what
// programs see but not the model.
#ifndef SOFTGPU_DEVICE_SERVER_H_
#define SOFTGPU_DEVICE_SERVER_H_

#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "softgpu/device/settings.h"
#include "softgpu/device/vram.h"
#include "softgpu/device/wire.h"
#include "softgpu/model/gpu.h"

namespace rubato::softgpu {

class Server {
 public:
  // `listener` is a listening SOCK_SEQPACKET socket; `stop_fd` becomes readable when the process
  // shall end.
  Server(const Settings& settings, int listener, int stop_fd);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  bool ok() const { return ok_; }
  // Until stop_fd, or until there has been no client for the time in the settings.
  // `before_idle_exit` is called then and says whether the end may happen now (it removes the
  // socket under the start-up lock).
  void Run(bool (*before_idle_exit)(void*), void* argument);

 private:
  struct Client;
  struct Graph;
  struct LiveRecord;
  struct Context;
  struct Stream;
  class Device;

  int64_t RealNow() const;
  int64_t ToModel(int64_t real_ns) const;
  int64_t ToReal(int64_t model_ns) const;

  void Accept();
  void ServeRequests(Client* client);
  void Answer(Client* client, const wire::Request& request, int fd);
  bool Hello(Client* client, const wire::Request& request);
  void Lose(Client* client);
  void Bury(Client* client);

  bool TakeRings(int64_t real_ns);
  bool RingEmpty(const Client& client) const;
  void Take(Client* client, const std::vector<unsigned char>& bytes, int64_t model_ns);
  Op BuildOp(Client* client, const LiveRecord& record, std::vector<OpId> after) const;
  void DefineGraphNode(Client* client, const wire::Record& record, const unsigned char* body,
                       size_t bytes);
  void AdvanceAll(int64_t model_ns);
  void CheckWaits(int64_t model_ns);
  void LandLateWrites(int64_t model_ns);

  // From the devices' listeners.
  void Started(Device* device, const OpRef& op, int64_t at_ns);
  void Finished(Device* device, const OpRef& op, int64_t at_ns, bool cancelled);
  void CarryOut(Client* client, const LiveRecord& record, const LiveRecord& whole, int64_t at_ns);
  void Fail(Client* client, uint32_t context_slot);
  void Log(const char* format, ...) __attribute__((format(printf, 2, 3)));
  const char* NameOf(const Client& client, const LiveRecord& record) const;

  Settings settings_;
  int listener_;
  int stop_fd_;
  int doorbell_ = -1;
  bool ok_ = false;
  int64_t base_ns_ = 0;
  int64_t model_now_ns_ = 0;
  FILE* log_ = nullptr;

  std::vector<std::unique_ptr<Device>> devices_;
  std::map<uint64_t, std::unique_ptr<Client>> clients_;
  uint64_t next_client_ = 1;
  int64_t no_client_since_ns_ = 0;

  struct Wait {
    uint64_t client;
    OpId op;
    uint32_t node;
    uint32_t device;
    wire::WordBody word;
  };
  std::vector<Wait> waits_;
  bool memory_written_ = false;

  struct LateWrite {
    int64_t at_ns;
    uint64_t order;
    uint64_t client;
    wire::WordBody word;
    bool operator>(const LateWrite& o) const {
      return at_ns != o.at_ns ? at_ns > o.at_ns : order > o.order;
    }
  };
  std::priority_queue<LateWrite, std::vector<LateWrite>, std::greater<LateWrite>> late_writes_;
  uint64_t late_order_ = 0;
  std::unordered_map<uint64_t, int64_t> last_late_write_;  // By client and stream.
  std::mt19937_64 random_{20240607};
};

}  // namespace rubato::softgpu

#endif  // SOFTGPU_DEVICE_SERVER_H_
