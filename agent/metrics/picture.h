// Everything that the agent's metrics and its readiness are made of, copied on the loop's thread
// for a scrape. Plain values, so that the text can be tested without an agent.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "agent/gpu/inventory.h"
#include "agent/kube/events.h"
#include "agent/kube/pod_watch.h"
#include "agent/tenants/reconciler.h"
#include "base/time.h"
#include "deviceplugin/plugin.h"

namespace rubato::agent {

struct Readiness {
  bool alive = true;                 // The loop turns.
  std::vector<std::string> missing;  // What is not there yet, one line each. Ready: none.
  bool ready() const { return missing.empty(); }
};

struct GpuPicture {
  KnownGpu gpu;
  uint32_t slots = 0;  // Offered; 0: withheld.
  uint32_t slots_allocated = 0;
  uint64_t tenants_bytes = 0;              // What attached processes say they have allocated.
  bool tenants_known = false;              // The scheduler answers.
  std::map<std::string, uint32_t> bypass;  // Processes that are not attached; by reason. Census.
};

struct AgentPicture {
  std::string version;
  std::string resource_name;
  base::Nanos now_ns = 0;
  base::Nanos started_ns = 0;
  Readiness readiness;

  std::string gpu_library;
  std::string driver_version;
  bool gpu_library_answers = false;
  bool gpu_library_hung = false;
  base::Nanos gpu_read_ns = 0;
  std::vector<GpuPicture> gpus;
  bool census = false;

  deviceplugin::PluginState plugin;
  size_t allocations = 0;  // Recorded.
  std::map<std::string, uint64_t> allocation_states;
  std::map<std::string, uint64_t> prestart_open_total;
  uint64_t released_total = 0;
  uint64_t unrecorded_directories = 0;

  bool has_pods = false;  // There is an API server.
  bool pods_synced = false;
  base::Nanos pods_heard_ns = 0;
  uint64_t pods = 0;
  kube::PodWatch::Counts watch;
  kube::EventRecorder::Counts events;
  uint64_t pod_resources_lists_total = 0;
  uint64_t pod_resources_failed_total = 0;

  bool scheduler_connected = false;
  std::string scheduler_version;
  Reconciler::Counts reconciler;
  std::vector<Reconciler::View> tenants;

  bool config_valid = true;
  bool config_restart_pending = false;
  std::map<std::string, uint64_t> config_reloads_total;  // By result.
  uint64_t bypass_suspected_total = 0;
};

// The text of /metrics.
std::string MetricsText(const AgentPicture& picture);

}  // namespace rubato::agent
