// The device plugin: offers slots to the kubelet, answers its calls, and stays registered whatever
// the kubelet does.
//
// Serve first, prove it by a call to itself, then register; again after the kubelet's restart,
// after the loss of its socket or of the kubelet's stream, and when the kubelet's own count of our
// slots is not ours. All state belongs to the loop's thread; gRPC's threads only parse and post.
// Knows neither pods nor scheduler: it calls the agent back. Trusts the kubelet's user (root or its
// own) but checks every request.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/result.h"
#include "base/time.h"
#include "deviceplugin/allocation.h"
#include "deviceplugin/allocation_store.h"
#include "deviceplugin/answer.h"
#include "deviceplugin/gpu.h"
#include "deviceplugin/pod_resources.h"
#include "deviceplugin/preference.h"

namespace rubato::deviceplugin {

// What can change while the plugin runs.
struct PluginOptions {
  uint32_t slots_per_gpu = 10;  // 1 to kMostSlotsPerGpu.
  Packing packing = Packing::kPacked;
  AnswerOptions answer;
  // Tell the kubelet the GPUs' NUMA nodes. (A topology policy of single-numa-node then refuses pods
  // that it would otherwise admit.)
  bool numa_topology = true;
  // How often the kubelet's count of our slots is compared with ours; 0: never.
  base::Nanos self_check_interval_ns = 30 * base::kSecond;
  // How long PreStartContainer waits for the agent before it lets the container start.
  base::Nanos pre_start_budget_ns = base::kSecond;
  // How long Allocate waits for the disk before it refuses.
  base::Nanos allocate_budget_ns = 5 * base::kSecond;
};

// What cannot.
struct PluginPlaces {
  std::string resource_name = "rubato.dev/gpu";
  std::string kubelet_directory = "/var/lib/kubelet/device-plugins";
  std::string socket_name = "rubato-gpu.sock";  // In the kubelet's directory.
  std::string pod_resources_socket = "/var/lib/kubelet/pod-resources/kubelet.sock";
  AllocationStore::Paths allocations;
};

struct PreStartVerdict {
  bool refuse = false;
  std::string message;  // Why, for the pod's event.
};

// Before a container starts: the records of exactly its slots, the newest first. The first is
// almost always the container's; others belong to pods that have gone, or to a later container of
// the same pod that takes over an init container's slots.
// `reply` is called once, from the loop's thread, now or later; too late is no harm, it is ignored.
using PreStartCallback = std::function<void(const std::vector<AllocationRecord>& records,
                                            std::function<void(PreStartVerdict)> reply)>;

struct PluginCallbacks {
  PreStartCallback pre_start;                              // Unset: every container may start.
  std::function<void(const AllocationRecord&)> allocated;  // Recorded, and about to be answered.
  std::function<void()> changed;  // `registered` or the reason for its absence changed.
};

enum class PreStartOutcome : uint8_t {
  kStarted,  // The agent agreed.
  kRefused,
  kTimeout,  // The agent did not answer in time: started.
  kUnknown,  // No record of these slots: started.
};
const char* PreStartOutcomeName(PreStartOutcome outcome);  // "started", ...

// Why the plugin registered, or registered again: labels of a metric.
enum class RegisterCause : uint8_t {
  kFirst,       // The plugin's start.
  kKubelet,     // A new kubelet.sock.
  kSocketLost,  // Our socket was deleted.
  kStreamLost,  // The kubelet ended its stream.
  kSelfCheck,   // The kubelet's count of our slots was not ours.
};
const char* RegisterCauseName(RegisterCause cause);  // "first", "kubelet", ...

// For metrics and readiness. Totals since the plugin's start.
struct PluginState {
  // The kubelet has accepted us and reads our list.
  bool registered = false;
  std::string detail;  // What the plugin waits for or what failed last; empty when registered.
  base::Nanos registered_since_ns = 0;  // CLOCK_MONOTONIC; 0: not now.
  std::map<RegisterCause, uint64_t> registrations_total;
  uint64_t registrations_failed_total = 0;
  uint64_t lists_sent_total = 0;
  uint64_t allocations_total = 0;  // Containers that were given slots.
  std::map<RejectReason, uint64_t> allocations_rejected_total;
  std::map<PreStartOutcome, uint64_t> pre_starts_total;
  uint64_t self_checks_failed_total = 0;  // Mismatches that led to a registration.
  uint64_t self_checks_unanswered_total = 0;
  uint64_t peers_refused_total = 0;  // Connections of other users.
  uint32_t slots_listed = 0;
  uint32_t slots_healthy = 0;
  // Of the newest Allocate that was answered: from its arrival to its answer, and how much of that
  // was waiting for the disk.
  base::Nanos last_allocate_ns = 0;
  base::Nanos last_allocate_disk_ns = 0;
};

enum class StopKind : uint8_t {
  kRestart,    // Another plugin will come: the kubelet keeps the capacity for five minutes.
  kUninstall,  // An empty list first, so that the capacity is gone at once.
};

class DevicePlugin {
 public:
  // Opens the records, and begins to serve and register as soon as SetGpus() has named a GPU.
  // `loop` outlives the plugin. Errors: invalid options or places, records that cannot be kept. A
  // kubelet that is not there is no error: the plugin waits for it.
  static base::Result<std::unique_ptr<DevicePlugin>> Start(base::EventLoop* loop,
                                                           const PluginPlaces& places,
                                                           const PluginOptions& options,
                                                           PluginCallbacks callbacks);
  // Without Stop() before: ends at once, waiting for gRPC's threads.
  virtual ~DevicePlugin() = default;

  // All GPUs of the node, healthy or not, withheld ones too. A GPU that was listed and is missing
  // now stays in the list as unhealthy ("gone") until it is back, withheld, or the plugin restarts:
  // an inventory that fails must not look like the loss of all GPUs. Error: a UUID that slots
  // cannot be named after, or the same twice; then nothing changes.
  virtual base::Result<void> SetGpus(std::vector<Gpu> gpus) = 0;

  // Takes effect at once, without losing the registration. Error: invalid; then nothing changes.
  virtual base::Result<void> SetOptions(const PluginOptions& options) = 0;

  virtual const PluginState& state() const = 0;

  // GPUs as they are offered, those that are gone included.
  virtual const std::vector<Gpu>& gpus() const = 0;

  virtual AllocationStore& allocations() = 0;
  virtual PodResources& pod_resources() = 0;

  // Answers what has been asked, accepts nothing more and ends; `done` is called from the loop,
  // which must go on running until then. At most about two seconds.
  virtual void Stop(StopKind kind, std::function<void()> done) = 0;
};

}  // namespace rubato::deviceplugin
