// The whole daemon in this process: the control API over its socket, attaching, metrics, the end.

#include "scheduler/daemon/daemon.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "base/unique_fd.h"
#include "proto/control/v1/control.grpc.pb.h"
#include "proto/health/v1/health.grpc.pb.h"
#include "scheduler/daemon/health_probe.h"
#include "tests/unit/scheduler/daemon/shim_stand_in.h"

namespace rubato::sched {
namespace {

namespace v1 = rubato::control::v1;
using testing::ShimStandIn;

class DaemonTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/rubato-daemon-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    Start();
  }
  void TearDown() override {
    Stop();
    std::filesystem::remove_all(directory_);
  }
  void Start(const std::string& attach_directory = "") {
    Options options;
    options.runtime_dir = directory_ + "/r";
    options.attach_directory = attach_directory;
    options.attach_shared = !attach_directory.empty();
    options.metrics_address = "127.0.0.1:0";
    auto daemon = Daemon::Start(options);
    ASSERT_TRUE(daemon.ok()) << daemon.error().message;
    daemon_ = std::move(*daemon);
    metrics_address_ = daemon_->metrics_address();
    thread_ = std::thread([this] { daemon_->Run(); });
  }
  void Stop() {
    if (!thread_.joinable()) return;
    grpc::ClientContext context;
    v1::ShutdownResponse response;
    const grpc::Status status = Stub()->Shutdown(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    thread_.join();
    daemon_.reset();
  }
  std::shared_ptr<grpc::Channel> Channel() {
    return grpc::CreateChannel("unix:" + directory_ + "/r/control.sock",
                               grpc::InsecureChannelCredentials());
  }
  std::unique_ptr<v1::Control::Stub> Stub() { return v1::Control::NewStub(Channel()); }
  static v1::RegisterTenantRequest Slots(const char* name, uint32_t permille) {
    v1::RegisterTenantRequest request = Request(name);
    request.mutable_spec()->set_share_permille(permille);
    request.mutable_spec()->add_device_uuids("GPU-1");
    return request;
  }
  static v1::RegisterTenantRequest Request(const char* name = "camera") {
    v1::RegisterTenantRequest request;
    request.mutable_spec()->set_name(name);
    request.mutable_spec()->set_tenant_class(v1::TENANT_CLASS_REALTIME);
    request.mutable_spec()->set_period_ns(100'000'000);
    return request;
  }
  v1::GetStatusResponse Status() {
    grpc::ClientContext context;
    v1::GetStatusResponse response;
    EXPECT_TRUE(Stub()->GetStatus(&context, {}, &response).ok());
    return response;
  }
  // Asks for the status until `done` says so; false after a generous while.
  bool Eventually(const std::function<bool(const v1::GetStatusResponse&)>& done) {
    const Nanos until_ns = base::MonotonicNow() + 30 * base::kSecond;
    while (base::MonotonicNow() < until_ns) {
      if (done(Status())) return true;
    }
    return false;
  }
  std::string Scrape() {
    const int port = std::atoi(metrics_address_.substr(metrics_address_.find(':') + 1).c_str());
    const base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return "";
    const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
    (void)!::write(fd.get(), request.data(), request.size());
    std::string text;
    char buffer[4096];
    for (ssize_t n; (n = ::read(fd.get(), buffer, sizeof(buffer))) > 0;)
      text.append(buffer, static_cast<size_t>(n));
    return text;
  }

  std::string directory_;
  std::string metrics_address_;
  std::unique_ptr<Daemon> daemon_;
  std::thread thread_;
};

TEST_F(DaemonTest, SaysWhatItIs) {
  grpc::ClientContext context;
  v1::GetVersionResponse response;
  ASSERT_TRUE(Stub()->GetVersion(&context, {}, &response).ok());
  EXPECT_EQ(response.version(), RUBATO_VERSION);
  EXPECT_EQ(response.abi_major(), abi::kMajor);
  EXPECT_EQ(response.pid(), ::getpid());
  EXPECT_EQ(response.mode(), v1::MODE_TIMESLICE);
  EXPECT_NE(response.epoch(), 0u);
  EXPECT_EQ(response.metrics_address(), metrics_address_);
  EXPECT_EQ(response.runtime_directory(), directory_ + "/r");
}

TEST_F(DaemonTest, SocketsArePrivate) {
  struct stat info {};
  ASSERT_EQ(::stat((directory_ + "/r").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  ASSERT_EQ(::stat((directory_ + "/r/control.sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(DaemonTest, ASecondSchedulerIsToldAboutTheFirst) {
  Options options;
  options.runtime_dir = directory_ + "/r";
  options.metrics_address.clear();
  const auto second = Daemon::Start(options);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("already runs"), std::string::npos);
  EXPECT_NE(second.error().message.find(std::to_string(::getpid())), std::string::npos);
  grpc::ClientContext context;
  v1::GetVersionResponse response;
  EXPECT_TRUE(Stub()->GetVersion(&context, {}, &response).ok()) << "and harms it not";
}

TEST_F(DaemonTest, ATenantFromRegistrationToEnd) {
  v1::RegisterTenantResponse registered;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(Stub()->RegisterTenant(&context, Request(), &registered).ok());
  }
  ShimStandIn shim([] {});
  ASSERT_TRUE(shim.Attach(registered.attach_socket_path()));
  v1::GetStatusResponse status = Status();
  ASSERT_EQ(status.tenants_size(), 1);
  EXPECT_EQ(status.tenants(0).sessions(), 1u);
  EXPECT_EQ(status.tenants(0).session_list(0).pid(), ::getpid());
  EXPECT_EQ(status.tenants(0).session_list(0).program(), "stand-in");
  EXPECT_EQ(status.devices_size(), 1);

  // Jobs on a grid of 100 ms, the last ones a little before now. The first let it be seen; how the
  // later ones keep it is what is promised.
  const auto now_ns = static_cast<uint64_t>(base::MonotonicNow());
  const auto record = [&](uint64_t from, uint64_t to) {
    for (uint64_t i = from; i > to; --i)
      shim.RecordJob(now_ns - i * 100'000'000, now_ns - i * 100'000'000 + 1'000'000);
  };
  record(20, 10);
  shim.RecordSample(42, 42, 1'650'000);
  ASSERT_TRUE(Eventually([](const v1::GetStatusResponse& s) {
    return s.tenants(0).devices(0).jobs_total() == 10 && s.devices(0).profile_entries() == 1;
  }));
  record(10, 0);
  ASSERT_TRUE(Eventually(
      [](const v1::GetStatusResponse& s) { return s.tenants(0).devices(0).jobs_total() == 20; }));
  status = Status();
  EXPECT_EQ(status.tenants(0).devices(0).response_p50_ns(), 1'000'000u);
  EXPECT_EQ(status.tenants(0).devices(0).deadline_misses_total(), 0u);
  EXPECT_EQ(status.tenants(0).devices(0).release().kind(), v1::ReleaseModel::KIND_LOCKED);
  EXPECT_EQ(status.tenants(0).devices(0).release().period_ns(), 100'000'000u);

  const std::string text = Scrape();
  EXPECT_NE(text.find("rubato_jobs_total{tenant=\"camera\""), std::string::npos) << text;

  grpc::ClientContext context;
  v1::UnregisterTenantRequest request;
  request.set_tenant_id(registered.tenant_id());
  v1::UnregisterTenantResponse response;
  ASSERT_TRUE(Stub()->UnregisterTenant(&context, request, &response).ok());
  EXPECT_TRUE(shim.IsClosed());
  EXPECT_EQ(Status().tenants_size(), 0);
  EXPECT_NE(Scrape().find("rubato_jobs_total{tenant=\"camera\""), std::string::npos)
      << "what it did is not forgotten";
}

TEST_F(DaemonTest, ErrorsHaveTheirCodes) {
  grpc::ClientContext bad_context;
  v1::RegisterTenantResponse registered;
  v1::RegisterTenantRequest bad = Request();
  bad.mutable_spec()->set_period_ns(1);
  const grpc::Status refused = Stub()->RegisterTenant(&bad_context, bad, &registered);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_NE(refused.error_message().find("period_ns"), std::string::npos);

  grpc::ClientContext missing_context;
  v1::UnregisterTenantRequest missing;
  missing.set_tenant_id(99);
  v1::UnregisterTenantResponse response;
  EXPECT_EQ(Stub()->UnregisterTenant(&missing_context, missing, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);

  grpc::ClientContext token_context;
  v1::RegisterTenantRequest token = Request();
  token.set_attach_token("../evil");
  EXPECT_EQ(Stub()->RegisterTenant(&token_context, token, &registered).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Status().tenants_size(), 0);
}

TEST_F(DaemonTest, AdmissionIsAnswered) {
  auto stub = Stub();
  v1::RegisterTenantResponse first;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub->RegisterTenant(&context, Slots("first", 600), &first).ok());
  }
  EXPECT_EQ(first.admission().granted(), v1::TENANT_CLASS_REALTIME);
  EXPECT_EQ(first.admission().demand_permille(), 600u);
  EXPECT_EQ(first.admission().capacity_permille(), 1000u);
  EXPECT_EQ(first.admission().deadline_ns(), 100'000'000u);
  EXPECT_GT(first.admission().blocking_ns(), 0u);

  v1::CheckAdmissionRequest check;
  *check.mutable_spec() = Slots("second", 400).spec();
  v1::AdmissionDecision decision;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub->CheckAdmission(&context, check, &decision).ok());
  }
  EXPECT_EQ(decision.asked(), v1::TENANT_CLASS_REALTIME);
  EXPECT_EQ(decision.granted(), v1::TENANT_CLASS_BEST_EFFORT);
  EXPECT_EQ(decision.reason(), "demand");
  EXPECT_EQ(decision.device_uuid(), "GPU-1");

  // The class or nothing: the same decision comes with the refusal.
  v1::RegisterTenantRequest strict = Slots("second", 400);
  strict.set_require_class(true);
  v1::RegisterTenantResponse second;
  {
    grpc::ClientContext context;
    const grpc::Status refused = stub->RegisterTenant(&context, strict, &second);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_EQ(refused.error_message(), decision.detail());
    v1::AdmissionDecision details;
    ASSERT_TRUE(details.ParseFromString(refused.error_details()));
    EXPECT_EQ(details.demand_permille(), 1000u);
    EXPECT_EQ(details.capacity_permille(), 900u);
  }
  {
    grpc::ClientContext context;
    auto reader = stub->HoldTenant(&context, strict);
    v1::HoldTenantEvent event;
    EXPECT_FALSE(reader->Read(&event));
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  }
  EXPECT_EQ(Status().tenants_size(), 1);
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub->RegisterTenant(&context, Slots("second", 400), &second).ok());
  }
  EXPECT_EQ(second.admission().granted(), v1::TENANT_CLASS_BEST_EFFORT);

  v1::UpdateTenantRequest update;
  update.set_tenant_id(second.tenant_id());
  *update.mutable_spec() = Slots("second", 300).spec();
  v1::UpdateTenantResponse updated;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub->UpdateTenant(&context, update, &updated).ok());
  }
  EXPECT_EQ(updated.admission().granted(), v1::TENANT_CLASS_REALTIME);
  const v1::GetStatusResponse status = Status();
  ASSERT_EQ(status.tenants_size(), 2);
  EXPECT_EQ(status.tenants(1).admission().granted(), v1::TENANT_CLASS_REALTIME);
  EXPECT_EQ(status.tenants(1).spec().share_permille(), 300u);
  EXPECT_EQ(status.tenants(1).spec().device_uuids(0), "GPU-1");
  EXPECT_EQ(status.tenants(1).attach_token(), second.attach_token());
  EXPECT_NE(Scrape().find("rubato_tenant_admission{tenant=\"second\""), std::string::npos);
}

TEST_F(DaemonTest, HealthFollowsTheDrain) {
  namespace health = grpc::health::v1;
  auto stub = health::Health::NewStub(Channel());
  health::HealthCheckRequest request;
  health::HealthCheckResponse response;
  for (const char* service : {"", "rubato.control.v1.Control"}) {
    grpc::ClientContext context;
    request.set_service(service);
    ASSERT_TRUE(stub->Check(&context, request, &response).ok());
    EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);
  }
  request.set_service("other");
  {
    grpc::ClientContext context;
    EXPECT_EQ(stub->Check(&context, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  }
  grpc::ClientContext other_context;
  auto other = stub->Watch(&other_context, request);
  ASSERT_TRUE(other->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVICE_UNKNOWN);
  other_context.TryCancel();
  (void)other->Finish();

  EXPECT_TRUE(ProbeHealth(directory_ + "/r/control.sock", false).ok());
  EXPECT_FALSE(ProbeHealth(directory_ + "/r/nobody.sock", true, base::kSecond).ok());
  request.set_service("");
  grpc::ClientContext watch_context;
  auto watch = stub->Watch(&watch_context, request);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);
  grpc::ClientContext drain_context;
  v1::DrainResponse drained;
  ASSERT_TRUE(Stub()->Drain(&drain_context, {}, &drained).ok());
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
  const auto serves = ProbeHealth(directory_ + "/r/control.sock", false);
  ASSERT_FALSE(serves.ok());
  EXPECT_NE(serves.error().message.find("drains"), std::string::npos);
  EXPECT_TRUE(ProbeHealth(directory_ + "/r/control.sock", true).ok());
  Stop();
  while (watch->Read(&response)) {
  }
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(DaemonTest, AContainersFolderStaysWhereItIs) {
  Stop();
  const std::string root = directory_ + "/alloc";
  const std::string token = "00112233445566778899aabbccddeeff";
  std::filesystem::create_directories(root + "/" + token);
  ::chmod(root.c_str(), 0755);
  ::chmod((root + "/" + token).c_str(), 0755);
  for (int i = 0; i < 2; ++i) {
    Start(root);
    v1::RegisterTenantRequest request = Request();
    request.set_attach_token(token);
    request.mutable_spec()->set_any_user(true);
    v1::RegisterTenantResponse registered;
    grpc::ClientContext context;
    ASSERT_TRUE(Stub()->RegisterTenant(&context, request, &registered).ok());
    EXPECT_EQ(registered.attach_socket_path(), root + "/" + token + "/attach.sock");
    ShimStandIn shim([] {});
    EXPECT_TRUE(shim.Attach(registered.attach_socket_path()));
    Stop();
    EXPECT_FALSE(std::filesystem::exists(registered.attach_socket_path()));
    EXPECT_TRUE(std::filesystem::exists(root + "/" + token));
  }
  Start();
}

TEST_F(DaemonTest, AHeldTenantLivesAsLongAsTheCall) {
  auto stub = Stub();
  grpc::ClientContext context;
  auto reader = stub->HoldTenant(&context, Request());
  v1::HoldTenantEvent event;
  ASSERT_TRUE(reader->Read(&event));
  ASSERT_TRUE(event.has_registered());
  ShimStandIn shim([] {});
  ASSERT_TRUE(shim.Attach(event.registered().attach_socket_path()));
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.sessions(), 1u);
  EXPECT_EQ(Status().tenants_size(), 1);
  context.TryCancel();
  EXPECT_TRUE(Eventually([](const v1::GetStatusResponse& s) { return s.tenants_size() == 0; }));
  EXPECT_TRUE(shim.IsClosed());
  (void)reader->Finish();
}

TEST_F(DaemonTest, UnregisteringEndsTheHold) {
  auto stub = Stub();
  grpc::ClientContext context;
  auto reader = stub->HoldTenant(&context, Request());
  v1::HoldTenantEvent event;
  ASSERT_TRUE(reader->Read(&event));
  v1::UnregisterTenantRequest request;
  request.set_tenant_id(event.registered().tenant_id());
  v1::UnregisterTenantResponse response;
  grpc::ClientContext unregister_context;
  ASSERT_TRUE(Stub()->UnregisterTenant(&unregister_context, request, &response).ok());
  while (reader->Read(&event)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(DaemonTest, ABadHoldEndsWithItsError) {
  grpc::ClientContext context;
  auto stub = Stub();
  v1::RegisterTenantRequest bad = Request("");
  auto reader = stub->HoldTenant(&context, bad);
  v1::HoldTenantEvent event;
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(DaemonTest, ARestartFindsTheTenantAtItsPath) {
  std::string token;
  std::string path;
  {
    auto stub = Stub();
    grpc::ClientContext context;
    auto reader = stub->HoldTenant(&context, Request());
    v1::HoldTenantEvent event;
    ASSERT_TRUE(reader->Read(&event));
    token = event.registered().attach_token();
    path = event.registered().attach_socket_path();
    std::thread stopper([this] { Stop(); });
    while (reader->Read(&event)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
    stopper.join();
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  Start();
  auto stub = Stub();
  grpc::ClientContext context;
  v1::RegisterTenantRequest request = Request();
  request.set_attach_token(token);
  auto reader = stub->HoldTenant(&context, request);
  v1::HoldTenantEvent event;
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.registered().attach_socket_path(), path);
  context.TryCancel();
  (void)reader->Finish();
}

TEST_F(DaemonTest, ACleanEndTakesNoProtectionAway) {
  auto stub = Stub();
  grpc::ClientContext hold_context;
  auto reader = stub->HoldTenant(&hold_context, Request("held"));
  v1::HoldTenantEvent event;
  ASSERT_TRUE(reader->Read(&event));
  v1::RegisterTenantResponse registered;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub->RegisterTenant(&context, Request("registered"), &registered).ok());
  }
  ShimStandIn held([] {});
  ASSERT_TRUE(held.Attach(event.registered().attach_socket_path()));
  ShimStandIn other([] {});
  ASSERT_TRUE(other.Attach(registered.attach_socket_path()));
  std::thread stopper([this] { Stop(); });
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  stopper.join();
  EXPECT_TRUE(held.IsClosed());
  EXPECT_EQ(held.page()->state.realtime_sessions, 2u);
  for (ShimStandIn* shim : {&held, &other}) {
    EXPECT_EQ(shim->page()->sessions[shim->opened.session].generation % 2, 1u);
    EXPECT_NE(shim->page()->sessions[shim->opened.session].flags & abi::kSessionMayHold, 0u);
    EXPECT_NE(shim->page()->tenants[shim->opened.tenant].tenant.max_hold_ns, 0u);
  }
}

TEST_F(DaemonTest, WatchersSeeChanges) {
  auto stub = Stub();
  grpc::ClientContext context;
  v1::WatchStatusRequest request;
  request.set_interval_ns(50'000'000);
  auto reader = stub->WatchStatus(&context, request);
  v1::GetStatusResponse status;
  ASSERT_TRUE(reader->Read(&status));
  EXPECT_EQ(status.tenants_size(), 0);
  grpc::ClientContext register_context;
  v1::RegisterTenantResponse registered;
  ASSERT_TRUE(Stub()->RegisterTenant(&register_context, Request(), &registered).ok());
  bool seen = false;
  for (int i = 0; i < 100 && !seen && reader->Read(&status); ++i) seen = status.tenants_size() == 1;
  EXPECT_TRUE(seen);
  context.TryCancel();
  (void)reader->Finish();
}

TEST_F(DaemonTest, DrainingTakesNoNewTenants) {
  grpc::ClientContext context;
  v1::DrainResponse drained;
  ASSERT_TRUE(Stub()->Drain(&context, {}, &drained).ok());
  grpc::ClientContext register_context;
  v1::RegisterTenantResponse registered;
  EXPECT_EQ(Stub()->RegisterTenant(&register_context, Request(), &registered).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Status().scheduler().draining());
}

TEST_F(DaemonTest, TheEndLeavesNoSockets) {
  grpc::ClientContext context;
  v1::RegisterTenantResponse registered;
  ASSERT_TRUE(Stub()->RegisterTenant(&context, Request(), &registered).ok());
  Stop();
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/r/control.sock"));
  EXPECT_TRUE(std::filesystem::is_empty(directory_ + "/r/attach"));
}

TEST_F(DaemonTest, SocketsOfAKilledSchedulerAreSweptUp) {
  Stop();
  const std::string folder = directory_ + "/r/attach/00112233445566778899aabbccddeeff";
  std::filesystem::create_directory(folder);
  auto listener = base::ListenUnix(folder + "/attach.sock", SOCK_SEQPACKET, 0600, 1);
  ASSERT_TRUE(listener.ok());
  Start();
  EXPECT_FALSE(std::filesystem::exists(folder));
}

}  // namespace
}  // namespace rubato::sched
