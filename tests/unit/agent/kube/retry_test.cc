// What waits and what limits: back-off, token bucket, and the client that repeats.

#include <gtest/gtest.h>

#include <optional>
#include <random>

#include "agent/kube/api_client.h"
#include "agent/kube/backoff.h"
#include "agent/kube/token_bucket.h"
#include "tests/unit/agent/kube/fake_timers.h"
#include "tests/unit/agent/kube/fake_transport.h"

namespace rubato::kube {
namespace {

using base::kMillisecond;
using base::kSecond;

RandomSource Constant(uint64_t value) {
  return [value] { return value; };
}

TEST(BackoffTest, DoublesUpToALimitWithJitterOfAHalf) {
  constexpr Backoff::Limits kLimits{.first_ns = 100, .longest_ns = 1000};
  Backoff least(kLimits, Constant(0));
  for (const base::Nanos expected : {50, 100, 200, 400, 500, 500})
    EXPECT_EQ(least.Next(), expected);
  // 51 and 501 values are possible: this draws the greatest.
  Backoff most(kLimits, [] { return uint64_t{51} * 101 * 201 * 401 * 501 - 1; });
  for (const base::Nanos expected : {100, 200, 400, 800, 1000, 1000})
    EXPECT_EQ(most.Next(), expected);
  most.Reset();
  EXPECT_EQ(most.Next(), 100);

  std::mt19937_64 generator(1);
  Backoff any(kLimits, [&] { return generator(); });
  bool different = false;
  for (int i = 0; i < 100; ++i) {
    any.Reset();
    const base::Nanos wait_ns = any.Next();
    EXPECT_GE(wait_ns, 50);
    EXPECT_LE(wait_ns, 100);
    different = different || wait_ns != 50;
  }
  EXPECT_TRUE(different);
}

TEST(BackoffTest, WaitsAtLeastAsLongAsTheServerAsks) {
  constexpr Backoff::Limits kLimits{.first_ns = kSecond, .longest_ns = 10 * kSecond};
  Backoff backoff(kLimits, Constant(0));
  EXPECT_EQ(backoff.Next(7 * kSecond), 7 * kSecond);
  EXPECT_EQ(backoff.Next(0), kSecond);
  EXPECT_EQ(backoff.Next(86400 * kSecond), 300 * kSecond);
  EXPECT_EQ(backoff.Next(-5), 4 * kSecond);
}

TEST(TokenBucketTest, GivesABurstAndThenARate) {
  TokenBucket bucket({.burst = 3, .interval_ns = 10});
  base::Nanos now_ns = 1000;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(bucket.Take(now_ns));
  EXPECT_FALSE(bucket.Take(now_ns));
  EXPECT_EQ(bucket.NextNs(now_ns), 1010);
  EXPECT_FALSE(bucket.Take(1009));
  EXPECT_TRUE(bucket.Take(1010));
  EXPECT_FALSE(bucket.Take(1019));
  EXPECT_FALSE(bucket.full(1039));
  EXPECT_TRUE(bucket.full(1040));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(bucket.Take(1000000));
  EXPECT_FALSE(bucket.Take(1000000));
}

class ApiClientTest : public testing::Test {
 protected:
  ApiTransport::RequestId Start(ApiRequest request = {.path = "/x"}) {
    return client_.Start(std::move(request), [this](ApiAnswer answer) { answer_ = answer; });
  }

  FakeTimers timers_;
  FakeTransport transport_;
  ApiClient client_{&transport_,
                    &timers_,
                    Constant(0),
                    {.backoff = {.first_ns = 2 * kSecond, .longest_ns = 16 * kSecond},
                     .deadline_ns = 60 * kSecond}};
  std::optional<ApiAnswer> answer_;
};

TEST_F(ApiClientTest, RepeatsWhatMayPass) {
  Start();
  transport_.CutOff();
  EXPECT_FALSE(answer_.has_value());
  EXPECT_EQ(transport_.open(), 0u);
  timers_.Advance(kSecond - 1);
  EXPECT_EQ(transport_.open(), 0u);
  timers_.Advance(1);
  ASSERT_EQ(transport_.open(), 1u);
  transport_.AnswerStatus(500);
  timers_.Advance(2 * kSecond);
  transport_.AnswerStatus(429);
  timers_.Advance(4 * kSecond);
  transport_.AnswerStatus(200, "body");
  ASSERT_TRUE(answer_.has_value());
  EXPECT_TRUE(answer_->ok());
  EXPECT_EQ(answer_->body, "body");
  EXPECT_EQ(client_.repeated(), 3u);
  EXPECT_EQ(timers_.pending(), 0u);
}

TEST_F(ApiClientTest, WaitsForRetryAfter) {
  Start();
  transport_.Answer(
      {.end = ApiAnswer::End::kAnswered, .status = 429, .retry_after_ns = 9 * kSecond});
  timers_.Advance(9 * kSecond - 1);
  EXPECT_EQ(transport_.open(), 0u);
  timers_.Advance(1);
  EXPECT_EQ(transport_.open(), 1u);
}

TEST_F(ApiClientTest, PassesOtherAnswersThrough) {
  for (const int status : {200, 201, 400, 401, 403, 404, 409, 410, 422}) {
    answer_.reset();
    Start();
    transport_.AnswerStatus(status);
    ASSERT_TRUE(answer_.has_value()) << status;
    EXPECT_EQ(answer_->status, status);
  }
  Start();
  answer_.reset();
  transport_.Answer({.end = ApiAnswer::End::kTooLong, .status = 200});
  EXPECT_EQ(answer_->end, ApiAnswer::End::kTooLong);
  EXPECT_EQ(client_.repeated(), 0u);
}

TEST_F(ApiClientTest, GivesUpAtTheDeadlineWithTheLastAnswer) {
  Start();
  const base::Nanos begin_ns = timers_.NowNs();
  while (!answer_.has_value()) {
    if (transport_.open() > 0) {
      EXPECT_LE(transport_.request().timeout_ns, begin_ns + 60 * kSecond - timers_.NowNs());
      transport_.AnswerStatus(503);
    } else {
      timers_.Advance(kSecond);
    }
    ASSERT_LE(timers_.NowNs(), begin_ns + 61 * kSecond);
  }
  EXPECT_EQ(answer_->status, 503);
  // After 1, 2, 4 and 8 s, and each 8 s from there: 0 1 3 7 15 23 31 39 47 55.
  EXPECT_EQ(transport_.started(), 10u);
}

TEST_F(ApiClientTest, StartsStreamsOnce) {
  ApiRequest request{.path = "/x"};
  request.on_data = [](std::string_view) { return true; };
  Start(std::move(request));
  transport_.CutOff();
  EXPECT_TRUE(answer_.has_value());
}

TEST_F(ApiClientTest, CancelsAtEveryStage) {
  const auto under_way = Start();
  client_.Cancel(under_way);
  EXPECT_EQ(transport_.open(), 0u);
  const auto waiting = Start();
  transport_.CutOff();
  client_.Cancel(waiting);
  timers_.Advance(100 * kSecond);
  EXPECT_EQ(transport_.open(), 0u);
  EXPECT_FALSE(answer_.has_value());
  client_.Cancel(waiting);
  client_.Cancel(0);
}

}  // namespace
}  // namespace rubato::kube
