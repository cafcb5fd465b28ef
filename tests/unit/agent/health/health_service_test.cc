#include "agent/health/health_service.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "proto/health/v1/health.grpc.pb.h"

namespace rubato::agent {
namespace {

namespace health = grpc::health::v1;
using Answer = health::HealthCheckResponse;

class HealthServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = "/tmp/rbt-health-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    auto service = HealthService::Start(folder_ + "/health.sock");
    ASSERT_TRUE(service.ok()) << service.error().message;
    service_ = std::move(*service);
    stub_ = health::Health::NewStub(grpc::CreateChannel("unix:" + folder_ + "/health.sock",
                                                        grpc::InsecureChannelCredentials()));
  }
  void TearDown() override {
    service_.reset();
    std::filesystem::remove_all(folder_);
  }

  static void Limit(grpc::ClientContext* context) {
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  }
  grpc::Status Check(const std::string& service, Answer* answer) {
    grpc::ClientContext context;
    Limit(&context);
    health::HealthCheckRequest request;
    request.set_service(service);
    return stub_->Check(&context, request, answer);
  }

  std::string folder_;
  std::unique_ptr<HealthService> service_;
  std::unique_ptr<health::Health::Stub> stub_;
};

TEST_F(HealthServiceTest, CheckSaysWhatWasSet) {
  Answer answer;
  ASSERT_TRUE(Check("", &answer).ok());
  EXPECT_EQ(answer.status(), Answer::NOT_SERVING);
  service_->SetServing(true);
  ASSERT_TRUE(Check("rubato.agent", &answer).ok());
  EXPECT_EQ(answer.status(), Answer::SERVING);
  EXPECT_EQ(Check("other", &answer).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(HealthServiceTest, WatchFollowsAndEndsWithTheAgent) {
  grpc::ClientContext context;
  Limit(&context);
  const auto reader = stub_->Watch(&context, health::HealthCheckRequest());
  Answer answer;
  ASSERT_TRUE(reader->Read(&answer));
  EXPECT_EQ(answer.status(), Answer::NOT_SERVING);
  service_->SetServing(true);
  ASSERT_TRUE(reader->Read(&answer));
  EXPECT_EQ(answer.status(), Answer::SERVING);
  service_.reset();
  EXPECT_FALSE(reader->Read(&answer));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(HealthServiceTest, AWatchOfAnUnknownServiceSaysSo) {
  grpc::ClientContext context;
  Limit(&context);
  health::HealthCheckRequest request;
  request.set_service("other");
  const auto reader = stub_->Watch(&context, request);
  Answer answer;
  ASSERT_TRUE(reader->Read(&answer));
  EXPECT_EQ(answer.status(), Answer::SERVICE_UNKNOWN);
  context.TryCancel();
}

TEST_F(HealthServiceTest, AFolderThatIsNotThereIsAnError) {
  EXPECT_FALSE(HealthService::Start(folder_ + "/no/health.sock").ok());
}

}  // namespace
}  // namespace rubato::agent
