#include "agent/kube/events.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/unit/agent/kube/fake_timers.h"
#include "tests/unit/agent/kube/fake_transport.h"

namespace rubato::kube {
namespace {

using base::kSecond;
using nlohmann::json;

PodEvent Event(const std::string& message, const std::string& uid = "u-1") {
  return {.name_space = "team",
          .pod = "render-" + uid,
          .pod_uid = uid,
          .container = "main",
          .type = PodEvent::Type::kWarning,
          .reason = "RealtimeRefused",
          .message = message};
}

class EventsTest : public testing::Test {
 protected:
  json Body() { return json::parse(transport_.request().body); }

  FakeTimers timers_;
  FakeTransport transport_;
  EventRecorder recorder_{&transport_,
                          &timers_,
                          {.node_name = "node-1",
                           .per_pod = {.burst = 3, .interval_ns = 60 * kSecond},
                           .in_all = {.burst = 5, .interval_ns = 10 * kSecond},
                           .repeat_window_ns = 600 * kSecond,
                           .repeat_interval_ns = 30 * kSecond,
                           .queue_limit = 8,
                           .known_limit = 16}};
};

TEST_F(EventsTest, SendsAnEventThatDescribeShows) {
  recorder_.Record(Event("does not fit: 812 of 700 permille"));
  ASSERT_EQ(transport_.open(), 1u);
  EXPECT_FALSE(recorder_.idle());
  const ApiRequest& request = transport_.request();
  EXPECT_EQ(request.method, Method::kPost);
  EXPECT_EQ(request.path, "/api/v1/namespaces/team/events");
  EXPECT_EQ(request.content_type, "application/json");
  const json body = Body();
  const std::string name = body["metadata"]["name"];
  EXPECT_EQ(name.rfind("render-u-1.", 0), 0u);
  EXPECT_EQ(body["metadata"]["namespace"], "team");
  EXPECT_EQ(body["involvedObject"], (json{{"apiVersion", "v1"},
                                          {"kind", "Pod"},
                                          {"namespace", "team"},
                                          {"name", "render-u-1"},
                                          {"uid", "u-1"},
                                          {"fieldPath", "spec.containers{main}"}}));
  EXPECT_EQ(body["type"], "Warning");
  EXPECT_EQ(body["reason"], "RealtimeRefused");
  EXPECT_EQ(body["message"], "does not fit: 812 of 700 permille");
  EXPECT_EQ(body["count"], 1);
  EXPECT_EQ(body["firstTimestamp"], "2026-01-01T00:16:40Z");
  EXPECT_EQ(body["lastTimestamp"], body["firstTimestamp"]);
  EXPECT_EQ(body["source"], (json{{"component", "rubato-agent"}, {"host", "node-1"}}));
  transport_.AnswerStatus(201, "{}");
  EXPECT_TRUE(recorder_.idle());
  EXPECT_EQ(recorder_.counts().sent, 1u);
  EXPECT_EQ(timers_.pending(), 0u);
}

TEST_F(EventsTest, SendsOneAfterAnotherInOrder) {
  recorder_.Record(Event("a"));
  recorder_.Record(Event("b"));
  recorder_.Record(Event("c"));
  std::string names;
  for (const char* expected : {"a", "b", "c"}) {
    ASSERT_EQ(transport_.open(), 1u);
    EXPECT_EQ(Body()["message"], expected);
    const std::string name = Body()["metadata"]["name"];
    EXPECT_EQ(names.find(name), std::string::npos);
    names += name + " ";
    transport_.AnswerStatus(201);
  }
  EXPECT_TRUE(recorder_.idle());
}

TEST_F(EventsTest, RepetitionsRaiseTheCountOfOneObject) {
  recorder_.Record(Event("late"));
  const std::string name = Body()["metadata"]["name"];
  recorder_.Record(Event("late"));  // While the first is under way.
  transport_.AnswerStatus(201);
  for (int i = 0; i < 100; ++i) {
    timers_.Advance(kSecond / 10);
    recorder_.Record(Event("late"));
  }
  // Not before the interval is over, and then all at once.
  EXPECT_EQ(transport_.open(), 0u);
  timers_.Advance(20 * kSecond - 1);
  EXPECT_EQ(transport_.open(), 0u);
  timers_.Advance(1);
  ASSERT_EQ(transport_.open(), 1u);
  EXPECT_EQ(transport_.request().method, Method::kPatch);
  EXPECT_EQ(transport_.request().path, "/api/v1/namespaces/team/events/" + name);
  EXPECT_EQ(transport_.request().content_type, "application/merge-patch+json");
  EXPECT_EQ(Body(), (json{{"count", 102}, {"lastTimestamp", "2026-01-01T00:16:50Z"}}));
  transport_.AnswerStatus(200);
  timers_.Advance(100 * kSecond);
  EXPECT_EQ(transport_.started(), 2u);
  EXPECT_EQ(recorder_.counts().repeated, 101u);
  EXPECT_EQ(recorder_.counts().patched, 1u);
  EXPECT_EQ(recorder_.counts().lost(), 0u);
}

TEST_F(EventsTest, AfterTheWindowItIsNews) {
  recorder_.Record(Event("late"));
  transport_.AnswerStatus(201);
  timers_.Advance(601 * kSecond);
  recorder_.Record(Event("late"));
  ASSERT_EQ(transport_.open(), 1u);
  EXPECT_EQ(transport_.request().method, Method::kPost);
  EXPECT_EQ(Body()["count"], 1);
}

TEST_F(EventsTest, AnEventThatTheServerForgotIsSentAnew) {
  recorder_.Record(Event("late"));
  transport_.AnswerStatus(201);
  recorder_.Record(Event("late"));
  timers_.Advance(30 * kSecond);
  ASSERT_EQ(transport_.request().method, Method::kPatch);
  transport_.AnswerStatus(404);
  ASSERT_EQ(transport_.open(), 1u);
  EXPECT_EQ(transport_.request().method, Method::kPost);
  EXPECT_EQ(Body()["count"], 1);
  transport_.AnswerStatus(201);
  EXPECT_EQ(recorder_.counts().lost(), 0u);
  EXPECT_TRUE(recorder_.idle());
}

TEST_F(EventsTest, OnePodsRateDoesNotTouchAnothers) {
  for (int i = 0; i < 10; ++i) recorder_.Record(Event("m" + std::to_string(i), "noisy"));
  EXPECT_EQ(recorder_.counts().lost_rate, 7u);
  recorder_.Record(Event("m", "quiet"));
  EXPECT_EQ(recorder_.counts().lost_rate, 7u);
  timers_.Advance(60 * kSecond);
  recorder_.Record(Event("later", "noisy"));
  EXPECT_EQ(recorder_.counts().lost_rate, 7u);
  recorder_.Record(Event("and more", "noisy"));
  EXPECT_EQ(recorder_.counts().lost_rate, 8u);
}

TEST_F(EventsTest, TheRateInAllDelaysAndTheQueueIsBounded) {
  for (int i = 0; i < 20; ++i) recorder_.Record(Event("m", "pod-" + std::to_string(i)));
  // One is under way, eight wait.
  EXPECT_EQ(recorder_.counts().lost_queue, 11u);
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(transport_.open(), 1u) << i;
    transport_.AnswerStatus(201);
  }
  EXPECT_EQ(transport_.open(), 0u);
  EXPECT_FALSE(recorder_.idle());
  timers_.Advance(10 * kSecond - 1);
  EXPECT_EQ(transport_.open(), 0u);
  timers_.Advance(1);
  EXPECT_EQ(transport_.open(), 1u);
  for (int i = 0; i < 4; ++i) {
    transport_.AnswerStatus(201);
    timers_.Advance(10 * kSecond);
  }
  EXPECT_TRUE(recorder_.idle());
  EXPECT_EQ(recorder_.counts().sent, 9u);
}

TEST_F(EventsTest, WhatTheServerRefusesIsCountedAndForgotten) {
  recorder_.Record(Event("a"));
  recorder_.Record(Event("a"));
  transport_.AnswerStatus(403);
  EXPECT_EQ(recorder_.counts().lost_server, 2u);
  EXPECT_TRUE(recorder_.idle());
  recorder_.Record(Event("a"));
  ASSERT_EQ(transport_.open(), 1u);
  EXPECT_EQ(Body()["count"], 1);
  transport_.CutOff();
  EXPECT_EQ(recorder_.counts().lost_server, 3u);
}

TEST_F(EventsTest, AnEventThatExistsAlreadyWasAccepted) {
  recorder_.Record(Event("a"));
  transport_.AnswerStatus(409);
  EXPECT_EQ(recorder_.counts().sent, 1u);
  EXPECT_EQ(recorder_.counts().lost(), 0u);
}

TEST_F(EventsTest, TextIsMadeFitForTheServer) {
  PodEvent event = Event("line\nbreak \x01 " + std::string(2000, 'x'));
  event.pod = std::string(251, 'a') + ".b";
  recorder_.Record(event);
  const json body = Body();
  EXPECT_EQ(body["message"].get<std::string>().size(), 1024u);
  EXPECT_EQ(body["message"].get<std::string>().substr(0, 14), "line break   x");
  const std::string name = body["metadata"]["name"];
  EXPECT_LE(name.size(), 253u);
  transport_.AnswerStatus(201);
  // Cut between characters, and mended where it is no UTF-8.
  recorder_.Record(Event(std::string(1023, 'x') + "\xc3\xa9"));
  EXPECT_EQ(Body()["message"].get<std::string>(), std::string(1023, 'x'));
  transport_.AnswerStatus(201);
  recorder_.Record(Event("bad \xff byte"));
  EXPECT_EQ(Body()["message"].get<std::string>(), "bad \xef\xbf\xbd byte");
}

TEST_F(EventsTest, RemembersBoundedlyMany) {
  for (int i = 0; i < 1000; ++i) {
    recorder_.Record(Event("m", "pod-" + std::to_string(i)));
    if (transport_.open() > 0) transport_.AnswerStatus(201);
    timers_.Advance(10 * kSecond);
  }
  EXPECT_EQ(recorder_.counts().sent, 1000u);
  // The first has long been forgotten, the last has not.
  recorder_.Record(Event("m", "pod-999"));
  EXPECT_EQ(recorder_.counts().repeated, 1u);
}

TEST_F(EventsTest, EndsWithWorkUnderWay) {
  auto recorder = std::make_unique<EventRecorder>(&transport_, &timers_, EventRecorder::Options{});
  recorder->Record(Event("a"));
  recorder->Record(Event("b"));
  recorder.reset();
  EXPECT_EQ(transport_.open(), 0u);
  EXPECT_EQ(timers_.pending(), 0u);
}

}  // namespace
}  // namespace rubato::kube
