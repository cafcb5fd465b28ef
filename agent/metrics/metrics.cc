// The text of /metrics: one function per group of families, in the order of docs/agent.md.
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <utility>

#include "agent/metrics/picture.h"

namespace rubato::agent {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

double Seconds(base::Nanos nanos) {
  return static_cast<double>(nanos) / 1e9;
}
double Number(uint64_t value) {
  return static_cast<double>(value);
}

class Families {
 public:
  void Gauge(const char* name, const char* help) { Add(name, help, MetricType::Gauge); }
  void Counter(const char* name, const char* help) { Add(name, help, MetricType::Counter); }
  // Of the family that was added last.
  void Value(Labels labels, double value) {
    ClientMetric& metric = families_.back().metric.emplace_back();
    metric.label = std::move(labels);
    if (families_.back().type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
  }
  void Gauge(const char* name, const char* help, double value) {
    Gauge(name, help);
    Value({}, value);
  }
  void Counter(const char* name, const char* help, double value) {
    Counter(name, help);
    Value({}, value);
  }
  const std::vector<MetricFamily>& all() const { return families_; }

 private:
  void Add(const char* name, const char* help, MetricType type) {
    families_.push_back(MetricFamily{name, help, type, {}});
  }
  std::vector<MetricFamily> families_;
};

void AddGpus(const AgentPicture& picture, Families* out) {
  const auto device = [](const GpuPicture& gpu) -> ClientMetric::Label {
    return {"device", gpu.gpu.reading.uuid};
  };
  const auto each = [&](const char* name, const char* help, auto value) {
    out->Gauge(name, help);
    for (const GpuPicture& gpu : picture.gpus) {
      const std::optional<double> number = value(gpu);
      if (number.has_value()) out->Value({device(gpu)}, *number);
    }
  };
  using Optional = std::optional<double>;
  out->Gauge("rubato_gpu_info", "Constant 1; the labels say which GPU this is.");
  for (const GpuPicture& gpu : picture.gpus) {
    const GpuReading& reading = gpu.gpu.reading;
    out->Value({device(gpu),
                {"index", std::to_string(reading.index)},
                {"vendor", GpuVendorName(reading.vendor)},
                {"model", reading.name},
                {"pci", reading.pci_bus_id},
                {"source", picture.gpu_library},
                {"driver", picture.driver_version}},
               1);
  }
  each("rubato_gpu_healthy", "1 while the GPU is in order and can be given to containers.",
       [](const GpuPicture& g) -> Optional { return g.gpu.healthy ? 1 : 0; });
  out->Gauge("rubato_gpu_unhealthy",
             "1 for the reason why a GPU is unhealthy: driver-hung, driver-away, gone, lost, "
             "xid-<n>. No series: healthy.");
  for (const GpuPicture& gpu : picture.gpus) {
    if (!gpu.gpu.healthy) out->Value({device(gpu), {"reason", gpu.gpu.health_reason}}, 1);
  }
  out->Gauge("rubato_gpu_withheld",
             "1 for the reason why a GPU is not offered: excluded, not-included, mig, "
             "other-plugin. No series: it is offered.");
  for (const GpuPicture& gpu : picture.gpus) {
    if (gpu.gpu.withheld) out->Value({device(gpu), {"reason", gpu.gpu.withheld_reason}}, 1);
  }
  each("rubato_slots", "Slots that the GPU is offered as; 0: it is withheld.",
       [](const GpuPicture& g) -> Optional { return g.slots; });
  each("rubato_slots_allocated", "Slots that live containers hold.",
       [](const GpuPicture& g) -> Optional { return g.slots_allocated; });
  each("rubato_gpu_memory_total_bytes", "Device memory.",
       [](const GpuPicture& g) -> Optional { return Number(g.gpu.reading.total_bytes); });
  each("rubato_gpu_memory_used_bytes", "Device memory in use by anybody, as the driver says.",
       [](const GpuPicture& g) -> Optional { return Number(g.gpu.reading.used_bytes); });
  each("rubato_gpu_unexplained_memory_bytes",
       "Device memory in use beyond what attached processes have allocated: contexts and modules "
       "of attached processes, and everything of processes that are not attached.",
       [](const GpuPicture& g) -> Optional {
         if (!g.tenants_known) return std::nullopt;
         const uint64_t used = g.gpu.reading.used_bytes;
         return Number(used - std::min(used, g.tenants_bytes));
       });
  each("rubato_gpu_sm_clock_hertz", "Clock of the SMs (AMD: of the shader engines).",
       [](const GpuPicture& g) { return g.gpu.reading.sm_clock_hz; });
  each("rubato_gpu_memory_clock_hertz", "Clock of the device memory.",
       [](const GpuPicture& g) { return g.gpu.reading.memory_clock_hz; });
  each("rubato_gpu_power_watts", "Power that the GPU draws.",
       [](const GpuPicture& g) { return g.gpu.reading.power_watts; });
  each("rubato_gpu_temperature_celsius", "Temperature of the GPU.",
       [](const GpuPicture& g) { return g.gpu.reading.temperature_celsius; });
  each("rubato_gpu_utilization_ratio",
       "Share of the last sample, 0 to 1, in which some kernel ran; says nothing about how many "
       "SMs it used.",
       [](const GpuPicture& g) { return g.gpu.reading.utilization_ratio; });
  out->Counter("rubato_gpu_xid_errors_total", "Errors that NVIDIA's driver reported, by number.");
  for (const GpuPicture& gpu : picture.gpus) {
    for (const auto& [xid, count] : gpu.gpu.xids_total)
      out->Value({device(gpu), {"xid", std::to_string(xid)}}, Number(count));
  }
  if (picture.census) {
    out->Gauge("rubato_bypass_suspected",
               "Processes that use the GPU without being attached: of containers with slots "
               "(reason slots), of other containers (no-slots), of no container (host).");
    for (const GpuPicture& gpu : picture.gpus) {
      for (const char* reason : {"slots", "no-slots", "host"}) {
        const auto found = gpu.bypass.find(reason);
        out->Value({device(gpu), {"reason", reason}},
                   found == gpu.bypass.end() ? 0 : found->second);
      }
    }
  }
  out->Gauge("rubato_gpu_library_up", "1 while the vendor's library answers.",
             picture.gpu_library_answers ? 1 : 0);
  out->Gauge("rubato_gpu_library_hung", "1 while a call of the vendor's library hangs.",
             picture.gpu_library_hung ? 1 : 0);
  out->Gauge("rubato_gpu_library_read_seconds", "How long its last complete answer took.",
             Seconds(picture.gpu_read_ns));
}

void AddPlugin(const AgentPicture& picture, Families* out) {
  const deviceplugin::PluginState& plugin = picture.plugin;
  out->Gauge("rubato_kubelet_registered",
             "1 while the kubelet has accepted the device plugin and reads its list.");
  out->Value({{"resource", picture.resource_name}}, plugin.registered ? 1 : 0);
  out->Counter("rubato_kubelet_registrations_total",
               "Registrations with the kubelet, by cause: first, kubelet (a new one), socket-lost, "
               "stream-lost, self-check.");
  for (const auto cause :
       {deviceplugin::RegisterCause::kFirst, deviceplugin::RegisterCause::kKubelet,
        deviceplugin::RegisterCause::kSocketLost, deviceplugin::RegisterCause::kStreamLost,
        deviceplugin::RegisterCause::kSelfCheck}) {
    const auto found = plugin.registrations_total.find(cause);
    out->Value({{"cause", deviceplugin::RegisterCauseName(cause)}},
               found == plugin.registrations_total.end() ? 0 : Number(found->second));
  }
  out->Counter("rubato_kubelet_registrations_failed_total", "Registrations that failed.",
               Number(plugin.registrations_failed_total));
  out->Counter("rubato_kubelet_lists_sent_total", "Lists of slots sent to the kubelet.",
               Number(plugin.lists_sent_total));
  out->Counter("rubato_kubelet_self_checks_failed_total",
               "Times that the kubelet's count of our slots was not ours.",
               Number(plugin.self_checks_failed_total));
  out->Counter("rubato_kubelet_peers_refused_total",
               "Connections to the plugin's socket by users other than the kubelet's.",
               Number(plugin.peers_refused_total));
  out->Gauge("rubato_kubelet_slots", "Slots in the list that the kubelet has.",
             plugin.slots_listed);
  out->Gauge("rubato_kubelet_slots_healthy", "Those of healthy GPUs.", plugin.slots_healthy);
  out->Counter("rubato_allocations_total", "Containers that were given slots.",
               Number(plugin.allocations_total));
  out->Counter("rubato_allocation_rejected_total", "Allocations that were refused, by reason.");
  for (const deviceplugin::RejectReason reason : deviceplugin::kAllRejectReasons) {
    const auto found = plugin.allocations_rejected_total.find(reason);
    out->Value({{"reason", deviceplugin::RejectReasonName(reason)}},
               found == plugin.allocations_rejected_total.end() ? 0 : Number(found->second));
  }
  out->Gauge("rubato_allocate_last_seconds", "How long the last allocation took, with the disk.",
             Seconds(plugin.last_allocate_ns));
  out->Gauge("rubato_allocate_last_disk_seconds", "The disk's part of it.",
             Seconds(plugin.last_allocate_disk_ns));
  out->Counter("rubato_prestart_total",
               "Containers that the kubelet was about to start, by what it was told: started, "
               "refused, timeout, unknown.");
  for (const auto outcome :
       {deviceplugin::PreStartOutcome::kStarted, deviceplugin::PreStartOutcome::kRefused,
        deviceplugin::PreStartOutcome::kTimeout, deviceplugin::PreStartOutcome::kUnknown}) {
    const auto found = plugin.pre_starts_total.find(outcome);
    out->Value({{"outcome", deviceplugin::PreStartOutcomeName(outcome)}},
               found == plugin.pre_starts_total.end() ? 0 : Number(found->second));
  }
  out->Counter("rubato_agent_prestart_open_total",
               "Containers that were let start before their tenant was known to be as it should, "
               "by reason.");
  for (const char* reason : {"no-record", "pod-resources", "pod-unknown", "scheduler-away"}) {
    const auto found = picture.prestart_open_total.find(reason);
    out->Value({{"reason", reason}},
               found == picture.prestart_open_total.end() ? 0 : Number(found->second));
  }
  out->Gauge("rubato_allocations", "Allocations on record, by state.");
  for (const char* state : {"waiting", "live", "ended", "releasable"}) {
    const auto found = picture.allocation_states.find(state);
    out->Value({{"state", state}},
               found == picture.allocation_states.end() ? 0 : Number(found->second));
  }
  out->Counter("rubato_allocations_released_total",
               "Allocations whose directory was removed because no pod can mount it any more.",
               Number(picture.released_total));
  out->Gauge("rubato_allocation_directories_unrecorded",
             "Directories found at the start that no record names.",
             Number(picture.unrecorded_directories));
}

void AddCluster(const AgentPicture& picture, Families* out) {
  out->Counter("rubato_pod_resources_lists_total", "Answers of the kubelet's PodResources.",
               Number(picture.pod_resources_lists_total));
  out->Counter("rubato_pod_resources_failed_total", "Questions to it that failed.",
               Number(picture.pod_resources_failed_total));
  if (picture.has_pods) {
    out->Gauge("rubato_agent_pods_synced", "1 once the pods of this node are known.",
               picture.pods_synced ? 1 : 0);
    out->Gauge("rubato_pod_watch_age_seconds", "Time since the API server was last heard.");
    if (picture.pods_heard_ns != 0) out->Value({}, Seconds(picture.now_ns - picture.pods_heard_ns));
    out->Gauge("rubato_pod_watch_pods", "Pods of this node that ask for slots.",
               Number(picture.pods));
    out->Counter("rubato_pod_watch_lists_total", "Complete lists of pods.",
                 Number(picture.watch.lists));
    out->Counter("rubato_pod_watch_watches_total", "Watches begun.", Number(picture.watch.watches));
    out->Counter("rubato_pod_watch_events_total", "Changes of pods that the watch brought.",
                 Number(picture.watch.events));
    out->Counter("rubato_pod_watch_expired_total", "Times that the server said 410 Gone.",
                 Number(picture.watch.expired));
    out->Counter("rubato_pod_watch_disconnects_total", "Watches and lists that were cut off.",
                 Number(picture.watch.disconnects));
    out->Counter("rubato_pod_watch_received_bytes_total", "Bytes read.",
                 Number(picture.watch.bytes));
    out->Counter("rubato_pod_watch_objects_skipped_total",
                 "Objects that were too large or made no sense.");
    out->Value({{"reason", "oversize"}}, Number(picture.watch.oversize_objects));
    out->Value({{"reason", "malformed"}}, Number(picture.watch.malformed_objects));
    out->Counter("rubato_events_recorded_total",
                 "Kubernetes events that the agent wanted to write.",
                 Number(picture.events.recorded));
    out->Counter("rubato_events_sent_total", "Events that the API server took.",
                 Number(picture.events.sent));
    out->Counter("rubato_events_lost_total", "Events that were not written, by reason.");
    out->Value({{"reason", "rate"}}, Number(picture.events.lost_rate));
    out->Value({{"reason", "queue"}}, Number(picture.events.lost_queue));
    out->Value({{"reason", "server"}}, Number(picture.events.lost_server));
  }
  out->Gauge("rubato_agent_scheduler_connected", "1 while rubato-scheduler answers.",
             picture.scheduler_connected ? 1 : 0);
  out->Counter("rubato_agent_schedulers_met_total", "Runs of rubato-scheduler that were met.",
               Number(picture.reconciler.schedulers_total));
  out->Counter("rubato_agent_tenant_calls_total", "Changes made at the scheduler, by kind.");
  out->Value({{"call", "register"}}, Number(picture.reconciler.registered_total));
  out->Value({{"call", "update"}}, Number(picture.reconciler.updated_total));
  out->Value({{"call", "unregister"}}, Number(picture.reconciler.unregistered_total));
  out->Counter("rubato_agent_tenant_calls_failed_total", "Those that failed, by kind.");
  for (const char* call : {"register", "update", "unregister"}) {
    const auto found = picture.reconciler.failed_total.find(call);
    out->Value({{"call", call}},
               found == picture.reconciler.failed_total.end() ? 0 : Number(found->second));
  }
  out->Gauge("rubato_container_class",
             "1 for each container that holds slots: the class it asks for, the class it is "
             "granted (empty: not decided yet) and why.");
  for (const Reconciler::View& view : picture.tenants) {
    out->Value({{"namespace", view.pod.name_space},
                {"pod", view.pod.pod},
                {"container", view.pod.container},
                {"asked", view.asked},
                {"class", view.granted},
                {"reason", view.reason}},
               1);
  }
  out->Gauge("rubato_container_tenant_registered",
             "1 while the container is a tenant of the scheduler that runs.");
  for (const Reconciler::View& view : picture.tenants) {
    out->Value({{"namespace", view.pod.name_space},
                {"pod", view.pod.pod},
                {"container", view.pod.container}},
               view.registered ? 1 : 0);
  }
  out->Counter("rubato_bypass_suspected_total",
               "Processes of containers with slots that use a GPU without being attached (census).",
               Number(picture.bypass_suspected_total));
}

}  // namespace

std::string MetricsText(const AgentPicture& picture) {
  Families out;
  out.Gauge("rubato_agent_build_info", "Constant 1; the label says what runs.");
  out.Value({{"version", picture.version}}, 1);
  out.Gauge("rubato_agent_uptime_seconds", "Time since the agent started.",
            Seconds(picture.now_ns - picture.started_ns));
  out.Gauge("rubato_agent_ready", "What /readyz says.", picture.readiness.ready() ? 1 : 0);
  AddGpus(picture, &out);
  AddPlugin(picture, &out);
  AddCluster(picture, &out);
  out.Gauge("rubato_agent_config_valid", "0 while the configuration file on disk has an error.",
            picture.config_valid ? 1 : 0);
  out.Gauge("rubato_agent_config_restart_pending",
            "1 while the file says something that takes effect at the next start only.",
            picture.config_restart_pending ? 1 : 0);
  out.Counter("rubato_agent_config_reloads_total", "Reloads of the configuration, by result.");
  for (const char* result : {"applied", "unchanged", "rejected"}) {
    const auto found = picture.config_reloads_total.find(result);
    out.Value({{"result", result}},
              found == picture.config_reloads_total.end() ? 0 : Number(found->second));
  }
  return prometheus::TextSerializer().Serialize(out.all());
}

}  // namespace rubato::agent
