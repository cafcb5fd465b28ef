#include "agent/health/health_service.h"

#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "proto/health/v1/health.grpc.pb.h"

namespace rubato::agent {
namespace {

namespace health = grpc::health::v1;
using Answer = health::HealthCheckResponse;

constexpr const char kServiceName[] = "rubato.agent";

bool IsKnown(const std::string& service) {
  return service.empty() || service == kServiceName;
}

class Service final : public health::Health::CallbackService {
 public:
  void Set(bool serving) {
    const std::lock_guard lock(mutex_);
    if (serving_ == serving) return;
    serving_ = serving;
    for (Watcher* watcher : watchers_) watcher->Say(Status());
  }
  // Watches never end by themselves; a server that shuts down waits for them.
  void End() {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    for (Watcher* watcher : watchers_) watcher->End();
  }

 private:
  class Watcher final : public grpc::ServerWriteReactor<Answer> {
   public:
    Watcher(Service* service, Answer::ServingStatus status) : service_(service) { Say(status); }

    void Say(Answer::ServingStatus status) {
      const std::lock_guard lock(mutex_);
      if (finished_) return;
      next_ = status;
      if (!writing_) Write();
    }
    void End() {
      const std::lock_guard lock(mutex_);
      if (finished_) return;
      finished_ = true;
      Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the agent ends"));
    }

   private:
    void OnWriteDone(bool ok) override {
      const std::lock_guard lock(mutex_);
      writing_ = false;
      if (finished_) return;
      if (!ok) {
        finished_ = true;
        Finish(grpc::Status::CANCELLED);
      } else if (next_ != said_) {
        Write();
      }
    }
    void OnCancel() override {
      const std::lock_guard lock(mutex_);
      if (finished_) return;
      finished_ = true;
      Finish(grpc::Status::CANCELLED);
    }
    void OnDone() override {
      service_->Forget(this);
      delete this;
    }
    void Write() {
      said_ = next_;
      writing_ = true;
      answer_.set_status(said_);
      StartWrite(&answer_);
    }

    Service* const service_;
    std::mutex mutex_;
    Answer answer_;
    Answer::ServingStatus next_ = Answer::UNKNOWN;
    Answer::ServingStatus said_ = Answer::UNKNOWN;
    bool writing_ = false;
    bool finished_ = false;
  };

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const health::HealthCheckRequest* request,
                                  Answer* answer) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    if (!IsKnown(request->service())) {
      reactor->Finish(grpc::Status(grpc::StatusCode::NOT_FOUND,
                                   "there is no such service; ask for '' or rubato.agent"));
      return reactor;
    }
    const std::lock_guard lock(mutex_);
    answer->set_status(Status());
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerWriteReactor<Answer>* Watch(grpc::CallbackServerContext*,
                                          const health::HealthCheckRequest* request) override {
    const bool known = IsKnown(request->service());
    const std::lock_guard lock(mutex_);
    auto* watcher = new Watcher(this, known ? Status() : Answer::SERVICE_UNKNOWN);
    if (ending_) {
      watcher->End();
    } else if (known) {
      watchers_.insert(watcher);
    }
    return watcher;
  }

  void Forget(Watcher* watcher) {
    const std::lock_guard lock(mutex_);
    watchers_.erase(watcher);
  }

  Answer::ServingStatus Status() const { return serving_ ? Answer::SERVING : Answer::NOT_SERVING; }

  std::mutex mutex_;  // Taken before a watcher's.
  bool serving_ = false;
  bool ending_ = false;
  std::set<Watcher*> watchers_;
};

class GrpcHealthService final : public HealthService {
 public:
  base::Result<void> Begin(const std::string& path) {
    path_ = path;
    ::unlink(path.c_str());
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr)
      return base::Error{base::ErrorCode::kSystem,
                         "cannot listen at " + path + "; choose another health.socket"};
    ::chmod(path.c_str(), 0660);
    return {};
  }
  ~GrpcHealthService() override {
    if (server_ == nullptr) return;
    service_.End();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    server_->Wait();
    ::unlink(path_.c_str());
  }
  void SetServing(bool serving) override { service_.Set(serving); }

 private:
  Service service_;
  std::unique_ptr<grpc::Server> server_;
  std::string path_;
};

}  // namespace

base::Result<std::unique_ptr<HealthService>> HealthService::Start(const std::string& socket_path) {
  auto service = std::make_unique<GrpcHealthService>();
  if (auto begun = service->Begin(socket_path); !begun) return begun.error();
  return std::unique_ptr<HealthService>(std::move(service));
}

}  // namespace rubato::agent
