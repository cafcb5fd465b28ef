// The agent: inventory, device plugin, pod watch, tenants, events and metrics put together around
// one event loop.
//
// It holds no promise itself. What it knows it reads again after a restart (records on disk, the
// kubelet, the API server, the scheduler), so it may be killed at any time: tenants stay attached
// to the scheduler, and only containers that start meanwhile are late.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "agent/census/census.h"
#include "agent/config/config.h"
#include "agent/config/file_watch.h"
#include "agent/config/load.h"
#include "agent/gpu/gpu_watch.h"
#include "agent/gpu/inventory.h"
#include "agent/health/health_service.h"
#include "agent/kube/api_client.h"
#include "agent/kube/curl_transport.h"
#include "agent/kube/events.h"
#include "agent/kube/node_labels.h"
#include "agent/kube/pod_watch.h"
#include "agent/metrics/http_server.h"
#include "agent/metrics/picture.h"
#include "agent/tenants/book.h"
#include "agent/tenants/reconciler.h"
#include "agent/tenants/scheduler_link.h"
#include "base/event_loop.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "deviceplugin/plugin.h"

namespace rubato::agent {

class Agent {
 public:
  // `sources` are read again at each reload.
  static base::Result<std::unique_ptr<Agent>> Start(const Config& config, ConfigSources sources);
  ~Agent();

  // Until SIGTERM or SIGINT.
  void Run();

 private:
  Agent(const Config& config, ConfigSources sources);
  base::Result<void> Begin();
  base::Result<void> BeginGpus();
  base::Result<void> BeginPlugin();
  base::Result<void> BeginKube();
  void BeginTenants();
  base::Result<void> BeginServers();

  // GPUs.
  void OnGpuReport(const GpuReport& report);
  void OfferGpus();
  void LogGpuChanges();

  // Who holds what.
  void RefreshHeld();
  void OnHeld(base::Result<std::vector<deviceplugin::PodDevicesHeld>> held, uint64_t serial);
  void OnPodChange(kube::PodWatch::Change change, const kube::Pod& pod);
  void LogWatchTrouble();
  void ScheduleJoin();
  void Join();
  void Release(const std::string& token);

  // Containers that are about to start.
  struct PreStart;
  void OnPreStart(const std::vector<deviceplugin::AllocationRecord>& records,
                  std::function<void(deviceplugin::PreStartVerdict)> reply);
  void TryPreStart(uint64_t id);
  void EndPreStart(uint64_t id, const deviceplugin::PreStartVerdict& verdict, const char* open);

  void Tell(const PodRef& pod, const Notice& notice);
  void OnSchedulerStatus(const control::GetStatusResponse& status);
  void TakeCensus(const control::GetStatusResponse& status);
  void Reload(const char* cause);
  deviceplugin::PluginOptions MakePluginOptions() const;
  Readiness GetReadiness() const;
  AgentPicture Picture() const;
  // For the server's threads; nullopt: the loop does not turn.
  std::optional<AgentPicture> PictureFromOtherThread();
  void RefreshHealth();
  void End();

  Config config_;
  Config start_config_;  // As it was at the start, for what a reload cannot change.
  const ConfigSources sources_;
  base::Nanos started_ns_ = 0;
  base::UniqueFd lock_;
  std::unique_ptr<base::EventLoop> loop_;
  std::unique_ptr<FileWatch> file_watch_;

  GpuInventory inventory_;
  std::unique_ptr<GpuWatch> gpu_watch_;
  base::Nanos gpu_read_ns_ = 0;
  std::map<std::string, std::string> gpu_logged_;

  std::unique_ptr<deviceplugin::DevicePlugin> plugin_;
  deviceplugin::PluginOptions plugin_options_;  // As the plugin has them.
  std::optional<std::vector<deviceplugin::PodDevicesHeld>> held_;
  uint64_t held_serial_ = 0;
  bool held_asking_ = false;
  bool held_ask_again_ = false;
  bool held_failed_ = false;  // The last question.
  uint64_t held_answers_ = 0;
  uint64_t held_failures_ = 0;
  base::EventLoop::TimerId held_timer_ = 0;

  std::unique_ptr<kube::LoopTimers> timers_;
  std::unique_ptr<kube::CurlTransport> transport_;
  std::unique_ptr<kube::ApiClient> client_;
  std::unique_ptr<kube::PodWatch> pods_;
  std::unique_ptr<kube::EventRecorder> events_;
  std::unique_ptr<kube::NodeLabels> labels_;

  std::unique_ptr<TenantBook> book_;
  std::unique_ptr<SchedulerLink> link_;
  std::unique_ptr<Reconciler> reconciler_;
  std::map<std::string, AllocationState> states_;  // By token, of the last join.
  Plan plan_;
  std::string watch_trouble_;  // As it was logged last.
  base::EventLoop::TimerId join_timer_ = 0;
  base::EventLoop::TimerId book_timer_ = 0;
  base::EventLoop::TimerId pump_timer_ = 0;
  base::Nanos joined_ns_ = 0;
  std::map<std::string, bool> releasing_;
  uint64_t released_total_ = 0;

  std::map<uint64_t, std::unique_ptr<PreStart>> pre_starts_;
  uint64_t next_pre_start_ = 1;
  std::map<std::string, uint64_t> prestart_open_total_;

  Census census_;
  Census::Result census_result_;
  uint64_t bypass_total_ = 0;

  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<HealthService> health_;
  std::string http_address_;
  bool ready_logged_ = false;
  bool config_valid_ = true;
  bool config_restart_pending_ = false;
  std::map<std::string, uint64_t> config_reloads_total_;
  bool ending_ = false;
};

}  // namespace rubato::agent
