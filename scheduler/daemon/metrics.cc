#include "scheduler/daemon/metrics.h"

#include <netdb.h>
#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <future>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"

namespace rubato::sched {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

double Seconds(Nanos nanos) {
  return static_cast<double>(nanos) / 1e9;
}
double Number(uint64_t value) {
  return static_cast<double>(value);
}

class Families {
 public:
  MetricFamily& Add(const char* name, const char* help, MetricType type) {
    families_.push_back(MetricFamily{name, help, type, {}});
    return families_.back();
  }
  // A series of the family that was added last.
  ClientMetric& Series(Labels labels) {
    ClientMetric& metric = families_.back().metric.emplace_back();
    metric.label = std::move(labels);
    return metric;
  }
  void Value(Labels labels, double value) {
    ClientMetric& metric = Series(std::move(labels));
    if (families_.back().type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
  }
  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  std::vector<MetricFamily> families_;
};

Labels ToLabels(const TenantLabels& labels) {
  return {
      {"tenant", labels.tenant},       {"namespace", labels.name_space}, {"pod", labels.pod},
      {"container", labels.container}, {"class", labels.tenant_class},   {"device", labels.device}};
}

Labels With(Labels labels, const char* name, const char* value) {
  labels.push_back({name, value});
  return labels;
}

double Ratio(uint32_t permille) {
  return permille / 1000.0;
}

struct Live {  // Gauges of one label set; several tenants may share one.
  uint32_t sessions = 0;
  uint64_t used_bytes = 0;
  uint64_t peak_bytes = 0;
  uint64_t limit_bytes = 0;
  uint32_t share_permille = 0;
  bool realtime = false;
  bool locked = false;
  Nanos period_ns = 0;
  Nanos deadline_ns = 0;
  Nanos job_ns = 0;
  uint32_t budget_permille = 0;
  bool revoked = false;
};

// What is promised to a tenant of this class, whether or not a process of it has come.
void SetPromise(const TenantStatus& tenant, core::TenantClass tenant_class, Live* gauges) {
  gauges->limit_bytes = tenant.spec.limit_bytes;
  gauges->share_permille = tenant.spec.share_permille;
  gauges->realtime = tenant_class == core::TenantClass::kRealtime;
  if (!gauges->realtime) return;
  gauges->period_ns = tenant.spec.period_ns;
  gauges->deadline_ns = core::EffectiveDeadline(tenant.spec);
  gauges->budget_permille = tenant.spec.overhead_budget_permille != 0
                                ? tenant.spec.overhead_budget_permille
                                : core::kDefaultBudgetPermille;
}

// The devices of which a tenant has a row from its registration on: those of its slots, or one
// without a name as long as none is known.
std::vector<std::string> ExpectedDevices(const TenantStatus& tenant) {
  if (!tenant.spec.device_uuids.empty()) return tenant.spec.device_uuids;
  std::vector<std::string> uuids;
  for (const TenantDeviceStatus& device : tenant.devices) uuids.push_back(device.device_uuid);
  if (uuids.empty()) uuids.emplace_back();
  return uuids;
}

// By labels without a device: tenants that are alike in them are one series, of the one that came
// last.
std::map<TenantLabels, AdmissionDecision> AdmissionsOf(const SchedulerStatus& status) {
  std::map<TenantLabels, AdmissionDecision> series;
  for (const TenantStatus& tenant : status.tenants)
    series[LabelsOf(tenant.spec, tenant.admission.granted, "")] = tenant.admission;
  return series;
}

std::vector<MetricFamily> Collect(const SchedulerStatus& status, const MetricsInfo& info) {
  const std::string realtime_name = core::ClassName(core::TenantClass::kRealtime);
  std::map<TenantLabels, TenantTotals> totals = status.retired;
  std::map<TenantLabels, Live> live;
  for (const TenantStatus& tenant : status.tenants) {
    // From the registration on, with zeros: what is not there cannot be told from what is broken.
    for (const std::string& uuid : ExpectedDevices(tenant)) {
      const TenantLabels labels = LabelsOf(tenant.spec, tenant.admission.granted, uuid);
      totals[labels];
      SetPromise(tenant, tenant.admission.granted, &live[labels]);
    }
    for (const TenantDeviceStatus& device : tenant.devices) {
      const TenantLabels labels = LabelsOf(tenant.spec, device.tenant_class, device.device_uuid);
      totals[labels].Add(device.totals);
      Live& gauges = live[labels];
      SetPromise(tenant, device.tenant_class, &gauges);
      gauges.sessions += device.sessions;
      gauges.used_bytes += device.memory_used_bytes;
      gauges.peak_bytes += device.memory_peak_bytes;
      gauges.locked = device.prediction.kind == policies::ReleaseKind::kLocked;
      if (device.prediction.period_ns != 0) gauges.period_ns = device.prediction.period_ns;
      gauges.job_ns = device.jobs.mret_ns;
      gauges.revoked = device.hold_revoked;
    }
  }

  Families out;
  using abi::Counter;
  out.Add("rubato_build_info", "Constant 1; the labels say what runs.", MetricType::Gauge);
  out.Value({{"version", info.version}, {"abi", info.abi}, {"mode", info.mode}}, 1);
  out.Add("rubato_scheduler_uptime_seconds", "Time since the scheduler started.",
          MetricType::Gauge);
  out.Value({}, Seconds(status.now_ns - status.started_ns));
  out.Add("rubato_scheduler_draining", "1 while no new tenants and sessions are taken.",
          MetricType::Gauge);
  out.Value({}, status.draining ? 1 : 0);

  out.Add("rubato_tenant_admission",
          "Constant 1; the labels say which class a tenant asked for, which one its processes get, "
          "and why.",
          MetricType::Gauge);
  for (const auto& [labels, decision] : AdmissionsOf(status)) {
    Labels all = ToLabels(labels);
    all.pop_back();  // The device: the decision is one for all.
    all.push_back({"asked", core::ClassName(decision.asked)});
    all.push_back({"reason", decision.reason});
    out.Value(std::move(all), 1);
  }
  out.Add("rubato_admissions_total", "Decisions about the class of a tenant.", MetricType::Counter);
  for (const auto& [kind, count] : status.admissions) {
    out.Value({{"asked", core::ClassName(kind.asked)},
               {"class", core::ClassName(kind.granted)},
               {"reason", kind.reason}},
              Number(count));
  }

  out.Add("rubato_sessions", "Attached processes, each counted on each device it uses.",
          MetricType::Gauge);
  for (const auto& [labels, gauges] : live) out.Value(ToLabels(labels), gauges.sessions);
  out.Add("rubato_memory_used_bytes", "Device memory allocated and reserved by attached processes.",
          MetricType::Gauge);
  for (const auto& [labels, gauges] : live) out.Value(ToLabels(labels), Number(gauges.used_bytes));
  out.Add("rubato_memory_peak_bytes", "The most device memory that was in use at once.",
          MetricType::Gauge);
  for (const auto& [labels, gauges] : live) out.Value(ToLabels(labels), Number(gauges.peak_bytes));
  out.Add("rubato_memory_limit_bytes", "Device memory limit of the tenant; 0 means none.",
          MetricType::Gauge);
  for (const auto& [labels, gauges] : live) out.Value(ToLabels(labels), Number(gauges.limit_bytes));
  out.Add("rubato_share_ratio", "Slots held, as a share of the device; 0 outside Kubernetes.",
          MetricType::Gauge);
  for (const auto& [labels, gauges] : live)
    out.Value(ToLabels(labels), Ratio(gauges.share_permille));
  const auto realtime_gauge = [&](const char* name, const char* help, auto value) {
    out.Add(name, help, MetricType::Gauge);
    for (const auto& [labels, gauges] : live) {
      if (gauges.realtime) out.Value(ToLabels(labels), value(gauges));
    }
  };
  realtime_gauge("rubato_deadline_seconds",
                 "Time after its release by which a job must have ended; 0: none was declared.",
                 [](const Live& g) { return Seconds(g.deadline_ns); });
  realtime_gauge("rubato_overhead_budget_ratio",
                 "Share by which a real-time tenant's jobs may be longer than alone on the device.",
                 [](const Live& g) { return Ratio(g.budget_permille); });
  realtime_gauge("rubato_job_length_seconds",
                 "Longest of the last five jobs, from first operation to end; 0: none yet.",
                 [](const Live& g) { return Seconds(g.job_ns); });
  out.Add("rubato_release_locked",
          "1 while the releases of a real-time tenant are predicted; 0: the bound holds instead.",
          MetricType::Gauge);
  for (const auto& [labels, gauges] : live) {
    if (gauges.realtime) out.Value(ToLabels(labels), gauges.locked ? 1 : 0);
  }
  out.Add("rubato_release_period_seconds",
          "Period of a real-time tenant, declared or learnt; 0: not known.", MetricType::Gauge);
  for (const auto& [labels, gauges] : live) {
    if (gauges.realtime) out.Value(ToLabels(labels), Seconds(gauges.period_ns));
  }
  out.Add("rubato_hold_revoked",
          "1 while a real-time tenant's jobs do not hold others, because it used more than it "
          "declared.",
          MetricType::Gauge);
  for (const auto& [labels, gauges] : live) {
    if (gauges.realtime) out.Value(ToLabels(labels), gauges.revoked ? 1 : 0);
  }

  // Counters, of tenants that live and of those that are gone.
  const auto realtime_counter = [&](const char* name, const char* help, auto value) {
    out.Add(name, help, MetricType::Counter);
    for (const auto& [labels, total] : totals) {
      if (labels.tenant_class == realtime_name) out.Value(ToLabels(labels), value(total));
    }
  };
  const auto besteffort_counter = [&](const char* name, const char* help, auto value) {
    out.Add(name, help, MetricType::Counter);
    for (const auto& [labels, total] : totals) {
      if (labels.tenant_class != realtime_name) out.Value(ToLabels(labels), value(total));
    }
  };
  const auto any_counter = [&](const char* name, const char* help, auto value) {
    out.Add(name, help, MetricType::Counter);
    for (const auto& [labels, total] : totals) out.Value(ToLabels(labels), value(total));
  };

  realtime_counter("rubato_jobs_total", "Jobs that real-time tenants have completed.",
                   [](const TenantTotals& t) { return Number(t.jobs.jobs); });
  realtime_counter("rubato_deadline_misses_total",
                   "Jobs that ended later after their release than the deadline allows.",
                   [](const TenantTotals& t) { return Number(t.jobs.deadline_misses); });
  realtime_counter("rubato_tardiness_seconds_total",
                   "Time by which jobs ended after their deadline, summed up.",
                   [](const TenantTotals& t) { return Seconds(t.jobs.tardiness_ns); });
  realtime_counter("rubato_job_busy_seconds_total",
                   "Length of the jobs of real-time tenants, first operation to end, summed up.",
                   [](const TenantTotals& t) { return Seconds(t.jobs.busy_ns); });
  out.Add("rubato_job_response_seconds",
          "From a job's release to its end. Jobs before the first release could be predicted, and "
          "those "
          "between releases, are left out; jobs of aperiodic tenants count from their first "
          "operation.",
          MetricType::Histogram);
  for (const auto& [labels, total] : totals) {
    if (labels.tenant_class != realtime_name) continue;
    ClientMetric& metric = out.Series(ToLabels(labels));
    metric.histogram.sample_count = total.jobs.responses;
    metric.histogram.sample_sum = Seconds(total.jobs.response_sum_ns);
    uint64_t cumulative = 0;
    for (size_t i = 0; i < total.jobs.buckets.size(); ++i) {
      cumulative += total.jobs.buckets[i];
      const double bound = i < core::kResponseBounds.size()
                               ? Seconds(core::kResponseBounds[i])
                               : std::numeric_limits<double>::infinity();
      metric.histogram.bucket.push_back({cumulative, bound});
    }
  }
  out.Add("rubato_touches_total",
          "Pre-touch kernels of real-time tenants: ok, late (after the release), wasted (no job "
          "came).",
          MetricType::Counter);
  for (const auto& [labels, total] : totals) {
    if (labels.tenant_class != realtime_name) continue;
    const uint64_t touches = total.counter(Counter::kTouches);
    const uint64_t wasted = std::min(touches, total.counter(Counter::kTouchesWasted));
    out.Value(With(ToLabels(labels), "result", "ok"), Number(touches - wasted));
    out.Value(With(ToLabels(labels), "result", "late"),
              Number(total.counter(Counter::kTouchesLate)));
    out.Value(With(ToLabels(labels), "result", "wasted"), Number(wasted));
  }
  realtime_counter("rubato_release_relocks_total", "Times that a release model found a new phase.",
                   [](const TenantTotals& t) { return Number(t.relocks); });
  realtime_counter("rubato_holds_revoked_total",
                   "Times that a tenant lost the right to hold others with its jobs.",
                   [](const TenantTotals& t) { return Number(t.holds_revoked); });

  besteffort_counter("rubato_besteffort_launches_total",
                     "Launches, graphs, copies and memsets of best-effort tenants.",
                     [](const TenantTotals& t) { return Number(t.counter(Counter::kOps)); });
  besteffort_counter("rubato_gate_waits_total", "Best-effort operations that had to wait.",
                     [](const TenantTotals& t) { return Number(t.counter(Counter::kGateWaits)); });
  besteffort_counter("rubato_gate_wait_seconds_total", "Time that best-effort operations waited.",
                     [](const TenantTotals& t) {
                       return Seconds(static_cast<Nanos>(t.counter(Counter::kGateWaitNs)));
                     });
  besteffort_counter(
      "rubato_gate_expired_total",
      "Waits that ended because the operation could not be fitted into any window in time.",
      [](const TenantTotals& t) { return Number(t.counter(Counter::kGateExpired)); });
  besteffort_counter("rubato_unknown_ops_total",
                     "Best-effort operations admitted without a known duration.",
                     [](const TenantTotals& t) { return Number(t.counter(Counter::kUnknownOps)); });
  besteffort_counter(
      "rubato_uncut_graphs_total", "Graphs launched whole although longer than the bound.",
      [](const TenantTotals& t) { return Number(t.counter(Counter::kUncutGraphs)); });
  besteffort_counter("rubato_gpu_busy_seconds_total",
                     "Predicted GPU time of the best-effort operations admitted.",
                     [](const TenantTotals& t) {
                       return Seconds(static_cast<Nanos>(t.counter(Counter::kGateBusyNs)));
                     });
  besteffort_counter(
      "rubato_holds_ignored_total",
      "Open jobs of others that were passed over because they held for longer than allowed.",
      [](const TenantTotals& t) { return Number(t.counter(Counter::kHoldsIgnored)); });

  any_counter("rubato_launches_total",
              "Launches, graphs, copies and memsets of tenants of both classes.",
              [](const TenantTotals& t) { return Number(t.counter(Counter::kOps)); });
  any_counter("rubato_memory_refused_total",
              "Allocations answered with out-of-memory because of the tenant's limit.",
              [](const TenantTotals& t) { return Number(t.memory_refused); });
  any_counter("rubato_unknown_symbols_total",
              "Driver symbols that a program asked for and the shim does not know.",
              [](const TenantTotals& t) { return Number(t.counter(Counter::kUnknownSymbols)); });
  any_counter("rubato_marker_failures_total",
              "Stream memory operations that the driver refused; completion fell back to the host.",
              [](const TenantTotals& t) { return Number(t.counter(Counter::kMarkerFailures)); });
  any_counter("rubato_unlined_ops_total", "Operations on streams beyond those that have a word.",
              [](const TenantTotals& t) { return Number(t.counter(Counter::kUnlinedOps)); });
  any_counter("rubato_capture_ops_total", "Operations inside a stream capture, which pass ungated.",
              [](const TenantTotals& t) { return Number(t.counter(Counter::kCaptureOps)); });
  any_counter("rubato_records_rejected_total",
              "Records of sessions that could not be true, and were left out.",
              [](const TenantTotals& t) { return Number(t.records_rejected); });
  any_counter("rubato_records_lost_total", "Records overwritten before the scheduler read them.",
              [](const TenantTotals& t) { return Number(t.records_lost); });
  out.Add("rubato_samples_total", "Durations measured, by what became of them.",
          MetricType::Counter);
  for (const auto& [labels, total] : totals) {
    out.Value(With(ToLabels(labels), "result", "measured"),
              Number(total.counter(Counter::kSamples)));
    out.Value(With(ToLabels(labels), "result", "disturbed"),
              Number(total.counter(Counter::kSamplesDiscarded)));
    out.Value(With(ToLabels(labels), "result", "lost"),
              Number(total.counter(Counter::kSamplesLost)));
  }

  out.Add("rubato_device_sessions", "Live sessions in the directory of a device.",
          MetricType::Gauge);
  for (const DeviceStatus& device : status.devices)
    out.Value({{"device", device.uuid}}, device.sessions);
  out.Add("rubato_device_realtime_demand_ratio",
          "What real-time tenants ask of a device together, as far as it is known.",
          MetricType::Gauge);
  for (const DeviceDemand& demand : status.demands)
    out.Value({{"device", demand.uuid}}, Ratio(demand.demand_permille));
  out.Add("rubato_device_realtime_capacity_ratio",
          "What can be promised to the real-time tenants of a device together.", MetricType::Gauge);
  for (const DeviceDemand& demand : status.demands)
    out.Value({{"device", demand.uuid}}, Ratio(demand.capacity_permille));
  out.Add("rubato_device_realtime_tenants",
          "Tenants that are real-time on a device, or have the right to be.", MetricType::Gauge);
  for (const DeviceDemand& demand : status.demands)
    out.Value({{"device", demand.uuid}}, demand.tenants);
  out.Add("rubato_profile_entries", "Operation keys whose duration is known on a device.",
          MetricType::Gauge);
  for (const DeviceStatus& device : status.devices)
    out.Value({{"device", device.uuid}}, device.profile_entries);
  out.Add("rubato_profile_store_usable",
          "1 if durations are kept for the next start; 0: there is no store, or it failed.",
          MetricType::Gauge);
  out.Value({}, status.profiles.usable ? 1 : 0);
  out.Add("rubato_profile_store_entries", "Operation keys of all devices that the store knows.",
          MetricType::Gauge);
  out.Value({}, Number(status.profiles.rows));
  out.Add("rubato_profile_store_errors_total",
          "Times that the profile store could not be used as it was, read or written.",
          MetricType::Counter);
  out.Value({}, Number(status.profiles.errors));
  out.Add("rubato_profile_store_written_total", "Entries written to the profile store.",
          MetricType::Counter);
  out.Value({}, Number(status.profiles.written));
  out.Add("rubato_sessions_attached_total", "Sessions that became live since the start.",
          MetricType::Counter);
  out.Value({}, Number(status.sessions_total));
  out.Add("rubato_sessions_detached_total",
          "Processes that run on without the scheduler, by reason, as far as it learnt of them.",
          MetricType::Counter);
  for (const auto& [reason, count] : status.sessions_detached)
    out.Value({{"reason", reason}}, Number(count));
  out.Add("rubato_handshakes_refused_total", "Attach connections that were refused, by reason.",
          MetricType::Counter);
  for (const char* reason :
       {"bad_message", "bad_slot", "clock", "full", "not_allowed", "unknown_device", "version"}) {
    const auto found = status.handshakes_refused.find(reason);
    out.Value({{"reason", reason}},
              found == status.handshakes_refused.end() ? 0 : Number(found->second));
  }
  if (status.mps.wanted) {
    out.Add("rubato_mps_healthy", "1 while the MPS control daemon answers.", MetricType::Gauge);
    out.Value({}, status.mps.healthy ? 1 : 0);
  }
  return out.Take();
}

class PictureCollectable final : public prometheus::Collectable {
 public:
  PictureCollectable(MetricsInfo info, MetricsServer::Source source)
      : info_(std::move(info)), source_(std::move(source)) {}

  std::vector<MetricFamily> Collect() const override {
    const std::optional<SchedulerStatus> status = source_();
    if (!status.has_value()) return {};
    return sched::Collect(*status, info_);
  }

 private:
  MetricsInfo info_;
  MetricsServer::Source source_;
};

class ExposerServer final : public MetricsServer {
 public:
  ExposerServer(const std::string& address, MetricsInfo info, Source source)
      : collectable_(std::make_shared<PictureCollectable>(std::move(info), std::move(source))),
        exposer_(std::make_unique<prometheus::Exposer>(address, 2)) {
    exposer_->RegisterCollectable(collectable_);
    const std::string host = address.substr(0, address.rfind(':'));
    const std::vector<int> ports = exposer_->GetListeningPorts();
    address_ = host + ":" + std::to_string(ports.empty() ? 0 : ports.front());
  }
  // The library's accepting thread looks at its stop flag when a connection comes, or every two
  // seconds: so connections come until it has ended.
  ~ExposerServer() override {
    std::thread ending([this] {
      exposer_.reset();
      ended_.set_value();
    });
    std::future<void> ended = ended_.get_future();
    do {
      Knock();
    } while (ended.wait_for(std::chrono::milliseconds(10)) != std::future_status::ready);
    ending.join();
  }

  const std::string& address() const override { return address_; }

 private:
  // Connects to the server and hangs up.
  void Knock() const {
    const size_t colon = address_.rfind(':');
    std::string host = address_.substr(0, colon);
    if (host.empty() || host == "0.0.0.0") host = "127.0.0.1";
    if (host.size() > 1 && host.front() == '[') host = host.substr(1, host.size() - 2);
    if (host == "::") host = "::1";
    addrinfo hints{};
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (::getaddrinfo(host.c_str(), address_.c_str() + colon + 1, &hints, &found) != 0) return;
    const base::UniqueFd fd(
        ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd.valid()) (void)::connect(fd.get(), found->ai_addr, found->ai_addrlen);
    ::freeaddrinfo(found);
  }

  std::shared_ptr<PictureCollectable> collectable_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string address_;
  std::promise<void> ended_;
};

}  // namespace

std::string MetricsText(const SchedulerStatus& status, const MetricsInfo& info) {
  return prometheus::TextSerializer().Serialize(Collect(status, info));
}

base::Result<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address,
                                                                  MetricsInfo info, Source source) {
  try {
    return std::unique_ptr<MetricsServer>(
        std::make_unique<ExposerServer>(address, std::move(info), std::move(source)));
  } catch (const std::exception& error) {
    return base::Error{base::ErrorCode::kSystem,
                       "cannot serve metrics at " + address +
                           "; choose another --metrics-address, port 0, or none"};
  }
}

}  // namespace rubato::sched
