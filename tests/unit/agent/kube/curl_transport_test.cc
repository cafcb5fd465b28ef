// The real carrier against a server over real sockets, and the watch, the events and the labels on
// top of it. Waits are for conditions; only deadlines are in seconds.

#include "agent/kube/curl_transport.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>

#include "agent/kube/api_client.h"
#include "agent/kube/events.h"
#include "agent/kube/node_labels.h"
#include "agent/kube/pod_watch.h"
#include "base/clock.h"
#include "tests/fakes/apiserver.h"
#include "tests/fakes/apiserver_ca.h"
#include "tests/unit/agent/kube/pod_json.h"

namespace rubato::kube {
namespace {

using base::kMillisecond;
using base::kSecond;
using nlohmann::json;
using testing::ApiServer;

constexpr base::Nanos kPatience = 60 * kSecond;

json PodOf(const PodText& text) {
  json pod = json::parse(PodJson(text));
  pod["metadata"].erase("resourceVersion");
  return pod;
}

class CurlTransportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/kube.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    auto loop = base::EventLoop::Make();
    ASSERT_TRUE(loop.ok());
    loop_ = std::move(*loop);
    timers_ = std::make_unique<LoopTimers>(loop_.get());
  }
  void TearDown() override {
    watch_.reset();
    client_.reset();
    transport_.reset();
    server_.reset();
    std::filesystem::remove_all(directory_);
  }

  void StartServer(const ApiServer::Options& options = {}) {
    auto server = ApiServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
  }
  void StartTls(std::string address = "127.0.0.1") {
    auto made = testing::MakeTestCertificates(directory_);
    ASSERT_TRUE(made.ok()) << made.error().message;
    certificates_ = *made;
    StartServer({.address = std::move(address),
                 .certificate_file = made->certificate_file,
                 .key_file = made->key_file});
  }
  void Connect(ApiEndpoint endpoint) {
    auto transport = CurlTransport::Make(loop_.get(), std::move(endpoint), "test/1");
    ASSERT_TRUE(transport.ok()) << transport.error().message;
    transport_ = std::move(*transport);
  }
  void Connect() { Connect({.url = server_->url(), .ca_file = certificates_.ca_file}); }
  void StartWatch(PodWatch::Options options = {}) {
    options.node_name = "node-1";
    options.backoff = {.first_ns = 10 * kMillisecond, .longest_ns = 100 * kMillisecond};
    watch_ = std::make_unique<PodWatch>(transport_.get(), timers_.get(), Random(), options,
                                        [this](PodWatch::Change, const Pod&) { ++changes_; });
    watch_->Start();
  }
  RandomSource Random() {
    return [this] { return generator_(); };
  }

  template <typename Condition>
  bool RunUntil(Condition condition) {
    const base::Nanos end_ns = base::MonotonicNow() + kPatience;
    while (!condition()) {
      const base::Nanos now_ns = base::MonotonicNow();
      if (now_ns >= end_ns) return false;
      // Conditions that lie on the server's side do not wake this loop.
      loop_->RunOnce(std::min(end_ns, now_ns + 10 * kMillisecond));
    }
    return true;
  }
  ApiAnswer Ask(ApiRequest request) {
    std::optional<ApiAnswer> answer;
    transport_->Start(std::move(request), [&](ApiAnswer given) { answer = std::move(given); });
    EXPECT_FALSE(answer.has_value());
    EXPECT_TRUE(RunUntil([&] { return answer.has_value(); }));
    return answer.value_or(ApiAnswer{});
  }
  bool Has(const std::string& name) { return watch_->Find("default", name) != nullptr; }

  std::string directory_;
  testing::TestCertificates certificates_;
  std::mt19937_64 generator_{7};
  std::unique_ptr<base::EventLoop> loop_;
  std::unique_ptr<LoopTimers> timers_;
  std::unique_ptr<ApiServer> server_;
  std::unique_ptr<CurlTransport> transport_;
  std::unique_ptr<ApiClient> client_;
  std::unique_ptr<PodWatch> watch_;
  int changes_ = 0;
};

TEST_F(CurlTransportTest, AsksAndIsAnswered) {
  StartServer();
  Connect();
  const ApiAnswer answer = Ask({.path = "/healthz"});
  EXPECT_TRUE(answer.ok());
  EXPECT_EQ(answer.body, "ok");
  EXPECT_EQ(Ask({.path = "/nowhere"}).status, 404);
  ASSERT_EQ(server_->requests().size(), 2u);
  EXPECT_EQ(server_->requests()[0].user_agent, "test/1");
  EXPECT_EQ(server_->requests()[0].authorization, "");
  EXPECT_EQ(server_->connections(), 1u);  // Kept open in between.
}

TEST_F(CurlTransportTest, TrustsItsOwnCaAlone) {
  StartTls();
  Connect();
  EXPECT_TRUE(Ask({.path = "/healthz"}).ok());
  transport_.reset();
  const std::string other = directory_ + "/other";
  std::filesystem::create_directory(other);
  auto stranger = testing::MakeTestCertificates(other);
  ASSERT_TRUE(stranger.ok());
  Connect({.url = server_->url(), .ca_file = stranger->ca_file});
  const ApiAnswer answer = Ask({.path = "/healthz"});
  EXPECT_EQ(answer.end, ApiAnswer::End::kNoAnswer);
  EXPECT_EQ(answer.status, 0);
  EXPECT_NE(answer.error.find("certificate"), std::string::npos) << answer.error;
  EXPECT_EQ(server_->requests().size(), 1u);
}

TEST_F(CurlTransportTest, RefusesACertificateForAnotherName) {
  auto made = testing::MakeTestCertificates(directory_, {"kubernetes.default", "10.96.0.1"});
  ASSERT_TRUE(made.ok());
  StartServer({.certificate_file = made->certificate_file, .key_file = made->key_file});
  Connect({.url = server_->url(), .ca_file = made->ca_file});
  const ApiAnswer answer = Ask({.path = "/healthz"});
  EXPECT_EQ(answer.end, ApiAnswer::End::kNoAnswer);
  EXPECT_TRUE(server_->requests().empty());
}

TEST_F(CurlTransportTest, SpeaksIpv6WhereThereIsOne) {
  auto made = testing::MakeTestCertificates(directory_);
  ASSERT_TRUE(made.ok());
  auto server = ApiServer::Start(
      {.address = "::1", .certificate_file = made->certificate_file, .key_file = made->key_file});
  if (!server) GTEST_SKIP() << server.error().message;
  server_ = std::move(*server);
  std::ofstream(directory_ + "/token") << "t";
  auto endpoint = InClusterEndpoint(
      [&](const std::string& name) -> std::optional<std::string> {
        return name == "KUBERNETES_SERVICE_HOST" ? "::1" : std::to_string(server_->port());
      },
      directory_);
  ASSERT_TRUE(endpoint.ok()) << endpoint.error().message;
  Connect(*endpoint);
  EXPECT_TRUE(Ask({.path = "/healthz"}).ok());
  EXPECT_EQ(server_->requests()[0].authorization, "Bearer t");
}

TEST_F(CurlTransportTest, ReadsTheTokenAgainAfterARefusal) {
  const std::string token = directory_ + "/token";
  std::ofstream(token) << "old\n";
  StartServer({.token = "old"});
  Connect({.url = server_->url(), .token_file = token});
  EXPECT_TRUE(Ask({.path = "/healthz"}).ok());
  // The server's first answer to the next request comes while the file is being replaced.
  server_->SetToken("new");
  const std::filesystem::file_time_type time = std::filesystem::last_write_time(token);
  std::ofstream(token) << "new\n";
  std::filesystem::last_write_time(token, time);
  EXPECT_TRUE(Ask({.path = "/healthz"}).ok());
  EXPECT_EQ(transport_->counts().unauthorized, 1u);
  EXPECT_EQ(server_->requests().size(), 3u);
  // One that stays refused is an answer.
  server_->SetToken("another");
  EXPECT_EQ(Ask({.path = "/healthz"}).status, 401);
  EXPECT_EQ(server_->requests().size(), 4u);
  // And without a token nothing is asked at all.
  std::filesystem::remove(token);
  const ApiAnswer none = Ask({.path = "/healthz"});
  EXPECT_EQ(none.end, ApiAnswer::End::kNoAnswer);
  EXPECT_NE(none.error.find(token), std::string::npos);
  EXPECT_EQ(server_->requests().size(), 4u);
}

TEST_F(CurlTransportTest, TellsWhatTheServerAsksFor) {
  StartServer();
  Connect();
  server_->AddFault({.status = 429, .body = "slow down", .retry_after_s = 7});
  const ApiAnswer answer = Ask({.path = "/healthz"});
  EXPECT_EQ(answer.status, 429);
  EXPECT_EQ(answer.body, "slow down");
  EXPECT_EQ(answer.retry_after_ns, 7 * kSecond);
}

TEST_F(CurlTransportTest, EndsWithoutAnAnswerInEveryWay) {
  StartServer();
  Connect();
  server_->AddFault({.drop = true});
  EXPECT_EQ(Ask({.path = "/healthz"}).end, ApiAnswer::End::kNoAnswer);
  server_->AddFault({.cut = true});
  EXPECT_EQ(Ask({.path = "/healthz"}).end, ApiAnswer::End::kNoAnswer);
  server_->AddFault({.hang = true});
  const ApiAnswer late = Ask({.path = "/healthz", .timeout_ns = 50 * kMillisecond});
  EXPECT_EQ(late.end, ApiAnswer::End::kNoAnswer);
  EXPECT_NE(late.error.find(server_->url()), std::string::npos);
  const uint16_t port = server_->port();
  server_.reset();
  EXPECT_EQ(Ask({.path = "/healthz"}).end, ApiAnswer::End::kNoAnswer);
  EXPECT_EQ(transport_->counts().no_answers, 4u);
  // Once it is back, so is everything.
  StartServer({.port = port});
  EXPECT_TRUE(Ask({.path = "/healthz"}).ok());
}

TEST_F(CurlTransportTest, BoundsAnAnswer) {
  StartServer();
  Connect();
  for (int i = 0; i < 10; ++i) server_->PutPod(PodOf({.name = "p" + std::to_string(i)}));
  const ApiAnswer answer = Ask({.path = "/api/v1/pods", .max_answer_bytes = 4096});
  EXPECT_EQ(answer.end, ApiAnswer::End::kTooLong);
  EXPECT_LE(answer.body.size(), 4096u);
  ApiRequest stopped{.path = "/api/v1/pods"};
  stopped.on_data = [](std::string_view) { return false; };
  EXPECT_EQ(Ask(std::move(stopped)).end, ApiAnswer::End::kStopped);
  ApiRequest thrown{.path = "/api/v1/pods"};
  thrown.on_data = [](std::string_view) -> bool { throw std::runtime_error("no memory"); };
  EXPECT_EQ(Ask(std::move(thrown)).error, "no memory");
}

TEST_F(CurlTransportTest, StartsAndCancelsFromWithinItsCallbacks) {
  StartServer();
  Connect();
  server_->PutPod(PodOf({}));
  server_->AddFault({.path_prefix = "/hang", .hang = true});
  int answered = 0;
  const auto hanging =
      transport_->Start({.path = "/hang"}, [](const ApiAnswer&) { FAIL() << "was cancelled"; });
  ASSERT_TRUE(RunUntil([&] { return server_->requests().size() == 1; }));
  ApiTransport::RequestId self = 0;
  ApiRequest request{.path = "/api/v1/pods"};
  request.on_data = [&](std::string_view) {
    transport_->Cancel(hanging);
    transport_->Start({.path = "/healthz"}, [&](const ApiAnswer& answer) {
      EXPECT_TRUE(answer.ok());
      ++answered;
      transport_->Start({.path = "/version"}, [&](const ApiAnswer&) { ++answered; });
    });
    transport_->Cancel(self);
    return true;
  };
  self = transport_->Start(std::move(request),
                           [](const ApiAnswer&) { FAIL() << "has cancelled itself"; });
  EXPECT_TRUE(RunUntil([&] { return answered == 2; }));
  // With a request under way it ends quietly.
  transport_->Start({.path = "/healthz"}, [](const ApiAnswer&) { FAIL(); });
  transport_.reset();
}

TEST_F(CurlTransportTest, TheWatchFollowsPods) {
  StartTls();
  Connect();
  for (int i = 0; i < 5; ++i)
    server_->PutPod(PodOf({.name = "p" + std::to_string(i), .uid = std::to_string(i)}));
  server_->PutPod(PodOf({.name = "elsewhere", .node = "node-2"}));
  server_->PutPod(PodOf({.name = "other", .slots = 0}));
  StartWatch({.page_limit = 2});
  ASSERT_TRUE(RunUntil([&] { return watch_->synced(); }));
  EXPECT_EQ(watch_->pods().size(), 5u);
  EXPECT_EQ(watch_->counts().other_pods, 1u);
  server_->PutPod(PodOf({.name = "new"}));
  server_->DeletePod("default", "p0");
  server_->PatchPod("default", "p1",
                    {{"metadata", {{"annotations", {{"rubato.dev/class", "realtime"}}}}}});
  ASSERT_TRUE(RunUntil([&] { return Has("new") && !Has("p0") && changes_ == 8; }));
  EXPECT_EQ(watch_->Find("default", "p1")->annotations.at("rubato.dev/class"), "realtime");
  // One that the scheduler places here only now.
  server_->PutPod(PodOf({.name = "placed", .node = ""}));
  server_->PatchPod("default", "placed", {{"spec", {{"nodeName", "node-1"}}}});
  ASSERT_TRUE(RunUntil([&] { return Has("placed"); }));
  EXPECT_EQ(watch_->counts().disconnects, 0u);
}

TEST_F(CurlTransportTest, TheWatchSurvivesABadDay) {
  StartTls();
  Connect();
  server_->PutPod(PodOf({.name = "a"}));
  server_->AddFault({.path_prefix = "/api/v1/pods", .count = 2, .status = 503});
  server_->AddFault({.path_prefix = "/api/v1/pods", .drop = true});
  server_->AddFault({.path_prefix = "/api/v1/pods", .cut = true});
  server_->AddFault({.path_prefix = "/api/v1/pods", .status = 200, .body = "<html>\n"});
  StartWatch();
  ASSERT_TRUE(RunUntil([&] { return watch_->synced() && server_->open_watches() == 1; }));
  int number = 0;
  const auto next = [&] {
    const std::string name = "n" + std::to_string(number++);
    server_->PutPod(PodOf({.name = name}));
    EXPECT_TRUE(RunUntil([&] { return Has(name) && server_->open_watches() == 1; })) << name;
  };
  next();
  server_->DropWatches();
  next();
  server_->DropWatchesMidLine();
  next();
  server_->EndWatches();
  next();
  server_->SendRaw("\x01\x02 garbage \xff\n");
  next();
  server_->SendRaw("{\"type\":\"ADDED\",\"object\":{}}\n");
  next();
  EXPECT_EQ(watch_->counts().lists, 1u);
  server_->ExpireWatches();
  next();
  EXPECT_EQ(watch_->counts().lists, 2u);
  // Both at once: away, and the version gone when it is back.
  server_->AddFault({.path_prefix = "/api/v1/pods?watch", .count = 3, .status = 500});
  server_->DropWatches();
  server_->DeletePod("default", "n0");
  server_->Compact();
  next();
  EXPECT_FALSE(Has("n0"));
  EXPECT_EQ(watch_->counts().lists, 3u);
  EXPECT_EQ(watch_->counts().expired, 2u);
  server_->AddFault({.path_prefix = "/api/v1/pods?watch", .status = 401});
  server_->DropWatches();
  next();
  server_->AddFault({.path_prefix = "/api/v1/pods?watch", .status = 410});
  server_->DropWatches();
  next();
  EXPECT_EQ(watch_->counts().lists, 4u);
  EXPECT_EQ(watch_->pods().size(), static_cast<size_t>(number));
}

TEST_F(CurlTransportTest, TheWatchReadsPiecesOfAnySize) {
  for (const bool tls : {false, true}) {
    watch_.reset();
    transport_.reset();
    certificates_ = {};
    if (tls) {
      StartTls();
    } else {
      StartServer();
    }
    Connect();
    server_->SetChunkBytes(1);
    server_->PutPod(PodOf({.name = "a"}));
    server_->PutPod(PodOf({.name = "b"}));
    StartWatch();
    ASSERT_TRUE(RunUntil([&] { return watch_->synced() && server_->open_watches() == 1; }));
    EXPECT_EQ(watch_->pods().size(), 2u);
    int number = 0;
    for (const size_t bytes : {1, 2, 3, 7, 64, 1000, 100000}) {
      server_->SetChunkBytes(bytes);
      const std::string name = "n" + std::to_string(number++);
      server_->PutPod(PodOf({.name = name}));
      server_->Bookmark();
      ASSERT_TRUE(RunUntil([&] {
        return Has(name) && watch_->counts().bookmarks == static_cast<uint64_t>(number);
      })) << bytes;
    }
    EXPECT_EQ(watch_->counts().disconnects, 0u);
    EXPECT_EQ(watch_->counts().malformed_objects, 0u);
  }
}

TEST_F(CurlTransportTest, ManyPodsComeInPages) {
  StartServer();
  Connect();
  for (int i = 0; i < 200; ++i)
    server_->PutPod(PodOf({.name = "p" + std::to_string(i),
                           .uid = std::to_string(i),
                           .slots = i % 10 == 0 ? 1u : 0u,
                           .bytes = 10000}));
  StartWatch({.page_limit = 30});
  ASSERT_TRUE(RunUntil([&] { return watch_->synced(); }));
  EXPECT_EQ(watch_->pods().size(), 20u);
  EXPECT_EQ(watch_->counts().other_pods, 180u);
  const auto requests = server_->requests();
  EXPECT_EQ(std::count_if(requests.begin(), requests.end(),
                          [](const ApiServer::Request& request) {
                            return request.target.find("watch") == std::string::npos;
                          }),
            7);
}

TEST_F(CurlTransportTest, EventsAndLabelsArrive) {
  StartTls();
  Connect();
  server_->PutNode("node-1");
  client_ = std::make_unique<ApiClient>(
      transport_.get(), timers_.get(), Random(),
      ApiClient::Limits{.backoff = {.first_ns = 10 * kMillisecond, .longest_ns = kSecond},
                        .deadline_ns = kPatience});
  EventRecorder recorder(client_.get(), timers_.get(),
                         {.node_name = "node-1", .repeat_interval_ns = kMillisecond});
  NodeLabels labels(client_.get(), timers_.get(), "node-1");
  server_->AddFault({.method = "POST", .count = 2, .status = 500});
  server_->AddFault({.method = "POST", .cut = true});  // Accepted, and its answer lost.
  const PodEvent event{.name_space = "team",
                       .pod = "render",
                       .pod_uid = "u",
                       .reason = "BestEffort",
                       .message = "does not fit"};
  recorder.Record(event);
  labels.Set({{"rubato.dev/gpu.slots", "10"}, {"kubernetes.io/hostname", std::nullopt}});
  ASSERT_TRUE(RunUntil([&] { return recorder.idle() && labels.current(); }));
  ASSERT_EQ(server_->events().size(), 1u);
  EXPECT_EQ(server_->events()[0]["message"], "does not fit");
  EXPECT_EQ(recorder.counts().sent, 1u);
  recorder.Record(event);
  recorder.Record(event);
  ASSERT_TRUE(RunUntil([&] { return server_->events()[0]["count"] == 3; }));
  EXPECT_EQ(server_->events().size(), 1u);
  EXPECT_EQ(server_->node("node-1")["metadata"]["labels"], (json{{"rubato.dev/gpu.slots", "10"}}));
  EXPECT_EQ(recorder.counts().lost(), 0u);
}

}  // namespace
}  // namespace rubato::kube
