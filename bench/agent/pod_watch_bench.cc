// What following a node's pods costs, in processor time of the thread that does it.
//
// The load that the agent must bear on 5 % of a core: 200 pods, 10,000 watch events of 10 KiB a
// minute. `core_percent` is that share, if the events came spread over a minute; `grown_mib` is by
// how much the process has grown meanwhile (with the server in it, where there is one).

#include <benchmark/benchmark.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "agent/kube/curl_transport.h"
#include "agent/kube/pod_watch.h"
#include "base/clock.h"
#include "base/event_loop.h"
#include "tests/fakes/apiserver.h"
#include "tests/fakes/apiserver_ca.h"
#include "tests/unit/agent/kube/pod_json.h"

namespace {

using namespace rubato;        // NOLINT: a benchmark is a program of one file.
using namespace rubato::kube;  // NOLINT

constexpr uint64_t kPods = 200;
constexpr uint64_t kOurs = 20;  // Of them, pods that ask for the resource.
constexpr uint64_t kEvents = 10'000;
constexpr size_t kEventBytes = 10 * 1024;
constexpr size_t kPieceBytes = 16 * 1024;  // A record of TLS.

double ResidentMib() {
  std::ifstream statm("/proc/self/statm");
  uint64_t size = 0;
  uint64_t resident = 0;
  statm >> size >> resident;
  return static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

PodText PodOf(uint64_t number, uint64_t version) {
  PodText pod;
  pod.name = "pod-" + std::to_string(number);
  pod.uid = "7a3bd1f2-0c4e-4a5b-9d6f-" + std::to_string(100'000'000'000 + number);
  pod.version = version;
  pod.slots = number < kOurs ? 1 : 0;
  // Changes with each of its events; what pods of others change is not even looked at.
  pod.annotations = {{"rubato.dev/class", "realtime"},
                     {"rubato.dev/period", std::to_string(10 + version / kPods % 2) + "ms"}};
  pod.bytes = kEventBytes;
  return pod;
}

std::string List() {
  std::string items;
  for (uint64_t i = 0; i < kPods; ++i) items += (i > 0 ? "," : "") + PodJson(PodOf(i, 1));
  return R"({"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[)" + items + "]}";
}

// All events of a minute, one string of lines.
const std::string& Events() {
  static const std::string lines = [] {
    std::string text;
    for (uint64_t i = 0; i < kEvents; ++i) text += EventJson("MODIFIED", PodOf(i % kPods, i + 2));
    return text;
  }();
  return lines;
}

void ReadEvent(benchmark::State& state) {
  PodText pod = PodOf(1, 1);
  pod.slots = state.range(0) != 0 ? 1 : 0;
  const std::string line = EventJson("MODIFIED", pod);
  const PodSelection selection;
  for (auto _ : state) {
    auto read = ReadWatchEvent(line, selection);
    benchmark::DoNotOptimize(read);
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * line.size()));
}
BENCHMARK(ReadEvent)->ArgName("asks")->Arg(0)->Arg(1);

class StillTimers final : public Timers {
 public:
  base::Nanos NowNs() const override { return base::MonotonicNow(); }
  base::Nanos UnixNs() const override { return 0; }
  TimerId AddTimer(base::Nanos, std::function<void()> callback) override {
    pending_ = std::move(callback);
    return 1;
  }
  void RemoveTimer(TimerId) override { pending_ = nullptr; }
  void Fire() { std::exchange(pending_, nullptr)(); }

 private:
  std::function<void()> pending_;
};

class HandFedTransport final : public ApiTransport {
 public:
  RequestId Start(ApiRequest request, OnDone on_done) override {
    request_ = std::move(request);
    on_done_ = std::move(on_done);
    return 1;
  }
  void Cancel(RequestId) override {}
  void Feed(std::string_view bytes) {
    const auto on_data = request_.on_data;
    for (; !bytes.empty(); bytes.remove_prefix(std::min(bytes.size(), kPieceBytes)))
      on_data(bytes.substr(0, kPieceBytes));
  }
  void End() {
    std::exchange(on_done_, nullptr)({.end = ApiAnswer::End::kAnswered, .status = 200});
  }

 private:
  ApiRequest request_;
  OnDone on_done_;
};

void Report(benchmark::State& state, uint64_t changes, double mib_before) {
  // Seconds of processor time per iteration, in hundredths of 60 s: an inverted rate of 0.6.
  state.counters["core_percent"] = benchmark::Counter(
      0.6, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["grown_mib"] = ResidentMib() - mib_before;
  state.counters["changes"] = static_cast<double>(changes);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * Events().size()));
}

// Without a socket: cutting, reading, keeping.
void MinuteOfEvents(benchmark::State& state) {
  const std::string& events = Events();
  const double mib_before = ResidentMib();
  HandFedTransport transport;
  StillTimers timers;
  uint64_t changes = 0;
  PodWatch watch(
      &transport, &timers, [] { return uint64_t{0}; }, {.node_name = "node-1"},
      [&](PodWatch::Change, const Pod&) { ++changes; });
  watch.Start();
  timers.Fire();
  transport.Feed(List());
  transport.End();
  if (watch.pods().size() != kOurs) state.SkipWithError("the list was not understood");
  for (auto _ : state) transport.Feed(events);
  if (watch.counts().events != kEvents * state.iterations())
    state.SkipWithError("events are missing");
  Report(state, changes, mib_before);
}
BENCHMARK(MinuteOfEvents)->Unit(benchmark::kMillisecond);

// A watch through libcurl and TLS, from a server in another thread (whose time is not counted).
class TlsRig {
 public:
  TlsRig() : directory_(std::filesystem::temp_directory_path() / "pod_watch_bench.XXXXXX") {
    if (::mkdtemp(directory_.data()) == nullptr) return;
    auto certificates = rubato::testing::MakeTestCertificates(directory_);
    auto loop = base::EventLoop::Make();
    if (!certificates || !loop) return;
    auto server = rubato::testing::ApiServer::Start(
        {.certificate_file = certificates->certificate_file, .key_file = certificates->key_file});
    if (!server) return;
    server_ = std::move(*server);
    loop_ = std::move(*loop);
    auto transport = CurlTransport::Make(
        loop_.get(), {.url = server_->url(), .ca_file = certificates->ca_file}, "bench");
    if (!transport) return;
    transport_ = std::move(*transport);
    timers_ = std::make_unique<LoopTimers>(loop_.get());
    PodWatch::Options options;
    options.node_name = "node-1";
    watch_ = std::make_unique<PodWatch>(
        transport_.get(), timers_.get(), [] { return uint64_t{0}; }, options,
        [this](PodWatch::Change, const Pod&) { ++changes_; });
    watch_->Start();
    const base::Nanos end_ns = base::MonotonicNow() + 60 * base::kSecond;
    while (!ready() && base::MonotonicNow() < end_ns)
      loop_->RunOnce(base::MonotonicNow() + base::kMillisecond);
  }
  ~TlsRig() {
    watch_.reset();
    transport_.reset();
    std::filesystem::remove_all(directory_);
  }
  TlsRig(const TlsRig&) = delete;
  TlsRig& operator=(const TlsRig&) = delete;

  bool ready() const { return server_ != nullptr && server_->open_watches() > 0; }
  rubato::testing::ApiServer& server() { return *server_; }
  uint64_t changes() const { return changes_; }
  // False: the watch was cut off, or this takes forever.
  bool RunUntil(uint64_t events) {
    const base::Nanos end_ns = base::MonotonicNow() + 60 * base::kSecond;
    while (watch_->counts().events < events && watch_->counts().watches == 1 &&
           base::MonotonicNow() < end_ns)
      loop_->RunOnce(base::MonotonicNow() + base::kSecond);
    return watch_->counts().events >= events;
  }

 private:
  std::string directory_;
  std::unique_ptr<rubato::testing::ApiServer> server_;
  std::unique_ptr<base::EventLoop> loop_;
  std::unique_ptr<CurlTransport> transport_;
  std::unique_ptr<LoopTimers> timers_;
  std::unique_ptr<PodWatch> watch_;
  uint64_t changes_ = 0;
};

// Calls `take` with `parts` parts of all events, whole lines each, and how many lines were taken
// with it.
template <typename Take>
void InParts(uint64_t parts, Take take) {
  std::string_view rest = Events();
  uint64_t taken = 0;
  for (uint64_t left = parts; left > 0; --left) {
    const size_t length = left == 1 ? rest.size() : rest.find('\n', rest.size() / left) + 1;
    const std::string lines(rest.substr(0, length));
    rest.remove_prefix(length);
    taken += static_cast<uint64_t>(std::count(lines.begin(), lines.end(), '\n'));
    take(lines, taken);
  }
}

// As fast as they can be read.
void MinuteOfEventsByTls(benchmark::State& state) {
  (void)Events();  // Made before time is taken.
  const double mib_before = ResidentMib();
  TlsRig rig;
  if (!rig.ready()) return state.SkipWithError("no server");
  uint64_t before = 0;
  for (auto _ : state) {
    // In parts, so that the server does not hold all of them at once.
    InParts(20, [&](const std::string& lines, uint64_t taken) {
      rig.server().SendRaw(lines);
      if (!rig.RunUntil(before + taken)) state.SkipWithError("the watch was cut off");
      rig.server().Forget();
    });
    before += kEvents;
  }
  Report(state, rig.changes(), mib_before);
}
BENCHMARK(MinuteOfEventsByTls)->Unit(benchmark::kMillisecond);

// One by one at their pace, so that each wakes the loop; a tenth of a minute.
void PacedEventsByTls(benchmark::State& state) {
  (void)Events();
  const double mib_before = ResidentMib();
  TlsRig rig;
  if (!rig.ready()) return state.SkipWithError("no server");
  constexpr uint64_t kTenth = kEvents / 10;
  for (auto _ : state) {
    std::thread sender([&] {
      std::string_view rest = Events();
      base::Nanos due_ns = base::MonotonicNow();
      for (uint64_t sent = 1; sent <= kTenth; ++sent) {
        const std::string_view line = rest.substr(0, rest.find('\n') + 1);
        rest.remove_prefix(line.size());
        const timespec due{due_ns / base::kSecond, due_ns % base::kSecond};
        ::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, nullptr);
        due_ns += 60 * base::kSecond / static_cast<base::Nanos>(kEvents);
        rig.server().SendRaw(std::string(line));
      }
    });
    if (!rig.RunUntil(kTenth)) state.SkipWithError("the watch was cut off");
    sender.join();
  }
  Report(state, rig.changes(), mib_before);
  state.counters["core_percent"] = benchmark::Counter(
      0.06, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.SetBytesProcessed(static_cast<int64_t>(Events().size() / 10));
}
BENCHMARK(PacedEventsByTls)->Unit(benchmark::kMillisecond)->Iterations(1);

}  // namespace

BENCHMARK_MAIN();
