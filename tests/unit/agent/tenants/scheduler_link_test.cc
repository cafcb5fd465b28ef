#include "agent/tenants/scheduler_link.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <optional>

#include "base/clock.h"
#include "proto/control/v1/control.grpc.pb.h"

namespace rubato::agent {
namespace {

using base::Nanos;

// A scheduler that answers as it is told.
class FakeScheduler final : public control::Control::Service {
 public:
  explicit FakeScheduler(const std::string& path) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeScheduler() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
      changed_.notify_all();
    }
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }
  void Hold(bool hold) {
    const std::lock_guard lock(mutex_);
    hold_ = hold;
    changed_.notify_all();
  }

 private:
  grpc::Status WatchStatus(grpc::ServerContext* context, const control::WatchStatusRequest*,
                           grpc::ServerWriter<control::GetStatusResponse>* writer) override {
    control::GetStatusResponse status;
    status.mutable_scheduler()->set_epoch(7);
    writer->Write(status);
    std::unique_lock lock(mutex_);
    while (!ending_ && !context->IsCancelled())
      changed_.wait_for(lock, std::chrono::milliseconds(5));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "it ends");
  }
  grpc::Status RegisterTenant(grpc::ServerContext* context,
                              const control::RegisterTenantRequest* request,
                              control::RegisterTenantResponse* response) override {
    {
      std::unique_lock lock(mutex_);
      while (hold_ && !ending_ && !context->IsCancelled())
        changed_.wait_for(lock, std::chrono::milliseconds(5));
    }
    if (request->spec().name() == "exists")
      return grpc::Status(grpc::StatusCode::ALREADY_EXISTS, "the token is in use");
    control::AdmissionDecision decision;
    decision.set_detail("demand 1100 of 900");
    if (request->require_class()) {
      return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "it does not fit",
                          decision.SerializeAsString());
    }
    response->set_tenant_id(42);
    *response->mutable_admission() = decision;
    return grpc::Status::OK;
  }
  grpc::Status UpdateTenant(grpc::ServerContext*, const control::UpdateTenantRequest* request,
                            control::UpdateTenantResponse* response) override {
    if (request->tenant_id() != 42) return grpc::Status(grpc::StatusCode::NOT_FOUND, "none");
    response->mutable_admission()->set_reason("admitted");
    return grpc::Status::OK;
  }
  grpc::Status UnregisterTenant(grpc::ServerContext*,
                                const control::UnregisterTenantRequest* request,
                                control::UnregisterTenantResponse*) override {
    return request->tenant_id() == 42 ? grpc::Status::OK
                                      : grpc::Status(grpc::StatusCode::NOT_FOUND, "none");
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;
  bool hold_ = false;
  std::unique_ptr<grpc::Server> server_;
};

class SchedulerLinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = "/tmp/rbt-link-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    loop_ = std::move(*base::EventLoop::Make());
    link_ = SchedulerLink::Make(loop_.get(), path(), base::kSecond);
  }
  void TearDown() override {
    link_.reset();
    scheduler_.reset();
    std::filesystem::remove_all(folder_);
  }
  std::string path() const { return folder_ + "/control.sock"; }
  void StartScheduler() { scheduler_ = std::make_unique<FakeScheduler>(path()); }
  void StartLink() {
    link_->Start({[this](const control::GetStatusResponse& status) {
                    ++statuses_;
                    epoch_ = status.scheduler().epoch();
                  },
                  [this](const std::string&) { ++losses_; }});
  }
  template <typename Condition>
  bool Until(Condition condition) {
    const Nanos end_ns = base::MonotonicNow() + 60 * base::kSecond;
    while (!condition() && base::MonotonicNow() < end_ns) loop_->RunOnce(end_ns);
    return condition();
  }

  std::string folder_;
  std::unique_ptr<base::EventLoop> loop_;
  std::unique_ptr<FakeScheduler> scheduler_;
  std::unique_ptr<SchedulerLink> link_;
  int statuses_ = 0;
  int losses_ = 0;
  uint64_t epoch_ = 0;
};

TEST_F(SchedulerLinkTest, WaitsForASchedulerAndFindsTheNext) {
  StartLink();
  StartScheduler();
  ASSERT_TRUE(Until([&] { return statuses_ == 1; }));
  EXPECT_EQ(epoch_, 7u);
  scheduler_.reset();
  ASSERT_TRUE(Until([&] { return losses_ == 1; }));
  StartScheduler();
  ASSERT_TRUE(Until([&] { return statuses_ == 2; }));
}

TEST_F(SchedulerLinkTest, CallsAndTheirErrors) {
  StartScheduler();
  StartLink();
  ASSERT_TRUE(Until([&] { return statuses_ == 1; }));
  int answers = 0;
  control::TenantSpec spec;
  link_->Register("t", spec, false, [&](base::Result<RegisterAnswer> answer) {
    ++answers;
    ASSERT_TRUE(answer.ok());
    EXPECT_EQ(answer->tenant_id, 42u);
    EXPECT_FALSE(answer->class_refused);
  });
  link_->Register("t", spec, true, [&](base::Result<RegisterAnswer> answer) {
    ++answers;
    ASSERT_TRUE(answer.ok());
    EXPECT_TRUE(answer->class_refused);
    EXPECT_EQ(answer->decision.detail(), "demand 1100 of 900");
  });
  spec.set_name("exists");
  link_->Register("t", spec, false, [&](base::Result<RegisterAnswer> answer) {
    ++answers;
    ASSERT_FALSE(answer.ok());
    EXPECT_EQ(answer.error().code, base::ErrorCode::kExists);
  });
  link_->Update(42, spec, [&](base::Result<control::AdmissionDecision> decision) {
    ++answers;
    ASSERT_TRUE(decision.ok());
    EXPECT_EQ(decision->reason(), "admitted");
  });
  link_->Update(1, spec, [&](base::Result<control::AdmissionDecision> decision) {
    ++answers;
    ASSERT_FALSE(decision.ok());
    EXPECT_EQ(decision.error().code, base::ErrorCode::kNotFound);
  });
  link_->Unregister(42, [&](base::Result<void> done) {
    ++answers;
    EXPECT_TRUE(done.ok());
  });
  EXPECT_TRUE(Until([&] { return answers == 6; }));
}

TEST_F(SchedulerLinkTest, WithoutASchedulerCallsFail) {
  bool failed = false;
  link_->Unregister(1, [&](base::Result<void> done) { failed = !done.ok(); });
  EXPECT_TRUE(Until([&] { return failed; }));
}

TEST_F(SchedulerLinkTest, NothingIsCalledBackAfterItsEnd) {
  StartScheduler();
  StartLink();
  ASSERT_TRUE(Until([&] { return statuses_ == 1; }));
  scheduler_->Hold(true);
  bool answered = false;
  link_->Register("t", {}, false, [&](base::Result<RegisterAnswer>) { answered = true; });
  link_.reset();
  scheduler_.reset();
  loop_->RunOnce(base::MonotonicNow());
  EXPECT_FALSE(answered);
  EXPECT_EQ(losses_, 0);
}

}  // namespace
}  // namespace rubato::agent
