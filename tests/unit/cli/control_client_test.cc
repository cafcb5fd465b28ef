// The control client against a service of the test's own on a real socket: errors become words for
// people, and a held tenant outlasts its scheduler.
#include "cli/control_client.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <vector>

#include "proto/control/v1/control.grpc.pb.h"

namespace rubato::cli {
namespace {

constexpr base::Nanos kGenerous = 60 * base::kSecond;

class FakeScheduler final : public control::Control::Service {
 public:
  // Listens at once. Destroying it is the end of the scheduler.
  FakeScheduler(const RuntimeDir& directory, grpc::Status answer) : answer_(std::move(answer)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + directory.control_socket(),
                             grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeScheduler() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  grpc::Status GetVersion(grpc::ServerContext*, const control::GetVersionRequest*,
                          control::GetVersionResponse* response) override {
    response->set_version("1.2.3");
    return answer_;
  }

  grpc::Status HoldTenant(grpc::ServerContext* context,
                          const control::RegisterTenantRequest* request,
                          grpc::ServerWriter<control::HoldTenantEvent>* writer) override {
    if (!answer_.ok()) return answer_;
    std::unique_lock lock(mutex_);
    tokens_.push_back(request->attach_token());
    const std::string token = request->attach_token().empty() ? "abc" : request->attach_token();
    control::HoldTenantEvent event;
    event.mutable_registered()->set_tenant_id(7);
    event.mutable_registered()->set_attach_token(token);
    event.mutable_registered()->mutable_admission()->set_reason("demand");
    required_.push_back(request->require_class());
    event.mutable_registered()->set_attach_socket_path("/run/attach/" + token + "/attach.sock");
    writer->Write(event);
    ++held_;
    changed_.notify_all();
    while (!unregistered_ && !context->IsCancelled()) {
      changed_.wait_for(lock, std::chrono::milliseconds(10));
    }
    --held_;
    changed_.notify_all();
    return grpc::Status::OK;
  }

  grpc::Status UnregisterTenant(grpc::ServerContext*,
                                const control::UnregisterTenantRequest* request,
                                control::UnregisterTenantResponse*) override {
    const std::lock_guard lock(mutex_);
    unregistered_ = request->tenant_id() == 7;
    changed_.notify_all();
    return grpc::Status::OK;
  }

  bool WaitHeld(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::nanoseconds(kGenerous),
                             [&] { return held_ == count; });
  }
  std::vector<std::string> tokens() {
    const std::lock_guard lock(mutex_);
    return tokens_;
  }
  std::vector<bool> required() {
    const std::lock_guard lock(mutex_);
    return required_;
  }
  bool unregistered() {
    const std::lock_guard lock(mutex_);
    return unregistered_;
  }

 private:
  const grpc::Status answer_;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> tokens_;
  std::vector<bool> required_;  // The class that was asked for.
  int held_ = 0;
  bool unregistered_ = false;
};

class ControlClientTest : public testing::Test {
 protected:
  ControlClientTest() : directory_(*RuntimeDir::At(MakeRoot())) {}
  ~ControlClientTest() override { std::filesystem::remove_all(directory_.path()); }

  static std::string MakeRoot() {
    char name[] = "/tmp/rubato-cli-test-XXXXXX";
    return mkdtemp(name);
  }

  const RuntimeDir directory_;
};

TEST_F(ControlClientTest, KnowsWhetherSomebodyListens) {
  EXPECT_FALSE(SchedulerListens(directory_));
  {
    FakeScheduler scheduler(directory_, grpc::Status::OK);
    EXPECT_TRUE(SchedulerListens(directory_));
    const auto version = ControlClient::Make(directory_)->GetVersion();
    ASSERT_TRUE(version.ok()) << version.error().message;
    EXPECT_EQ(version->version(), "1.2.3");
  }
  EXPECT_FALSE(SchedulerListens(directory_));
}

TEST_F(ControlClientTest, ErrorsNameTheCure) {
  const auto nobody = ControlClient::Make(directory_)->GetVersion();
  ASSERT_FALSE(nobody.ok());
  EXPECT_NE(nobody.error().message.find("rubato up"), std::string::npos);

  FakeScheduler scheduler(
      directory_, grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "period_ns is 3; use 100us"));
  const std::unique_ptr<ControlClient> client = ControlClient::Make(directory_);
  const auto refused = client->HoldTenant(control::TenantSpec());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, base::ErrorCode::kInvalid);
  EXPECT_EQ(refused.error().message, "period_ns is 3; use 100us");
  // A call that this scheduler does not know.
  const auto unknown = client->GetStatus();
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message.find("another version"), std::string::npos);
}

TEST_F(ControlClientTest, AHeldTenantIsUnregisteredAtTheEnd) {
  FakeScheduler scheduler(directory_, grpc::Status::OK);
  const std::unique_ptr<ControlClient> client = ControlClient::Make(directory_);
  auto hold = client->HoldTenant(control::TenantSpec());
  ASSERT_TRUE(hold.ok()) << hold.error().message;
  EXPECT_EQ((*hold)->attach_socket_path(), "/run/attach/abc/attach.sock");
  EXPECT_EQ((*hold)->admission().reason(), "demand");
  EXPECT_TRUE(scheduler.WaitHeld(1));
  hold->reset();
  EXPECT_TRUE(scheduler.unregistered());
  EXPECT_TRUE(scheduler.WaitHeld(0));
}

TEST_F(ControlClientTest, AHeldTenantReturnsToTheNextSchedulerAtTheSameSocket) {
  auto first = std::make_unique<FakeScheduler>(directory_, grpc::Status::OK);
  const std::unique_ptr<ControlClient> client = ControlClient::Make(directory_);
  const auto hold = client->HoldTenant(control::TenantSpec(), true);
  ASSERT_TRUE(hold.ok()) << hold.error().message;
  EXPECT_EQ(first->required(), (std::vector<bool>{true}));
  first.reset();
  FakeScheduler second(directory_, grpc::Status::OK);
  ASSERT_TRUE(second.WaitHeld(1));
  EXPECT_EQ(second.tokens(), (std::vector<std::string>{"abc"}));
  EXPECT_EQ(second.required(), (std::vector<bool>{false})) << "the program runs already";
  EXPECT_EQ((*hold)->attach_socket_path(), "/run/attach/abc/attach.sock");
}

TEST_F(ControlClientTest, AHeldTenantEndsWithoutAScheduler) {
  auto scheduler = std::make_unique<FakeScheduler>(directory_, grpc::Status::OK);
  const std::unique_ptr<ControlClient> client = ControlClient::Make(directory_);
  auto hold = client->HoldTenant(control::TenantSpec());
  ASSERT_TRUE(hold.ok()) << hold.error().message;
  scheduler.reset();
  hold->reset();
}

}  // namespace
}  // namespace rubato::cli
