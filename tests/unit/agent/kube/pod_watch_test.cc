#include "agent/kube/pod_watch.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/unit/agent/kube/fake_timers.h"
#include "tests/unit/agent/kube/fake_transport.h"
#include "tests/unit/agent/kube/pod_json.h"

namespace rubato::kube {
namespace {

using base::kMillisecond;
using base::kSecond;

std::string ListJson(const std::vector<PodText>& pods, const std::string& version,
                     const std::string& next = {}) {
  std::string text =
      R"({"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":")" + version + "\"";
  if (!next.empty()) text += R"(,"continue":")" + next + R"(","remainingItemCount":1)";
  text += R"(},"items":[)";
  for (size_t i = 0; i < pods.size(); ++i) text += (i > 0 ? "," : "") + PodJson(pods[i]);
  return text + "]}\n";
}

std::string Bookmark(uint64_t version) {
  return R"({"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":")" +
         std::to_string(version) + "\"}}}\n";
}

std::string ErrorEvent(int code, const std::string& reason) {
  return R"({"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"m","reason":")" +
         reason + R"(","code":)" + std::to_string(code) + "}}\n";
}

class PodWatchTest : public testing::Test {
 protected:
  void Start() {
    watch_.Start();
    timers_.Advance(0);
  }
  // A watch that has begun at version 10 with these pods.
  void StartSynced(const std::vector<PodText>& pods) {
    Start();
    ASSERT_EQ(transport_.open(), 1u);
    transport_.AnswerData(ListJson(pods, "10"));
    ASSERT_EQ(transport_.open(), 1u);
    ASSERT_TRUE(Watching("10"));
    changes_.clear();
  }
  bool Listing() {
    return transport_.open() == 1 && transport_.request().path.find("watch=1") == std::string::npos;
  }
  bool Watching(const std::string& version) {
    return transport_.open() == 1 &&
           transport_.request().path.find("watch=1") != std::string::npos &&
           transport_.request().path.find("&resourceVersion=" + version + "&") != std::string::npos;
  }
  std::vector<std::string> Take() { return std::exchange(changes_, {}); }

  FakeTimers timers_;
  FakeTransport transport_;
  std::vector<std::string> changes_;
  int synced_calls_ = 0;
  PodWatch watch_{&transport_,
                  &timers_,
                  [] { return uint64_t{0}; },
                  {.node_name = "node-1",
                   .page_limit = 2,
                   .backoff = {.first_ns = 2 * kSecond, .longest_ns = 16 * kSecond},
                   .max_object_bytes = 20000},
                  [this](PodWatch::Change change, const Pod& pod) {
                    static constexpr const char* kNames[] = {"+", "~", "-"};
                    changes_.push_back(kNames[static_cast<int>(change)] + pod.name + "/" + pod.uid);
                  },
                  [this] { ++synced_calls_; }};
};

TEST_F(PodWatchTest, ListsInPagesAndThenWatches) {
  Start();
  ASSERT_EQ(transport_.open(), 1u);
  EXPECT_EQ(transport_.request().path,
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1&resourceVersion=0&limit=2");
  transport_.AnswerData(
      ListJson({{.name = "a", .uid = "1"}, {.name = "b", .uid = "2", .slots = 0}}, "8", "to/ken="));
  EXPECT_FALSE(watch_.synced());
  EXPECT_TRUE(changes_.empty());  // Half a list is none.
  ASSERT_EQ(transport_.open(), 1u);
  EXPECT_EQ(transport_.request().path,
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1&limit=2&continue=to%2Fken%3D");
  transport_.AnswerData(ListJson({{.name = "c", .uid = "3", .slots = 2}}, "8"));
  EXPECT_TRUE(watch_.synced());
  EXPECT_EQ(synced_calls_, 1);
  EXPECT_EQ(Take(), (std::vector<std::string>{"+a/1", "+c/3"}));
  EXPECT_EQ(watch_.pods().size(), 2u);
  EXPECT_EQ(watch_.counts().other_pods, 1u);
  EXPECT_EQ(watch_.counts().lists, 1u);
  EXPECT_EQ(watch_.heard_ns(), timers_.NowNs());
  ASSERT_TRUE(Watching("8"));
  EXPECT_EQ(transport_.request().path,
            "/api/v1/pods?watch=1&allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dnode-1"
            "&resourceVersion=8&timeoutSeconds=300");
  EXPECT_GT(transport_.request().timeout_ns, 300 * kSecond);
}

TEST_F(PodWatchTest, FollowsEvents) {
  StartSynced({{.name = "a", .uid = "1"}});
  transport_.Data(EventJson("ADDED", {.name = "b", .uid = "2", .version = 11}));
  EXPECT_EQ(Take(), (std::vector<std::string>{"+b/2"}));
  // What changes nothing that we keep is no change.
  transport_.Data(EventJson("MODIFIED", {.name = "a", .uid = "1", .version = 12, .bytes = 9000}));
  EXPECT_TRUE(changes_.empty());
  transport_.Data(EventJson(
      "MODIFIED",
      {.name = "a", .uid = "1", .version = 13, .annotations = {{"rubato.dev/period", "5ms"}}}));
  EXPECT_EQ(Take(), (std::vector<std::string>{"~a/1"}));
  EXPECT_EQ(watch_.Find("default", "a")->annotations.at("rubato.dev/period"), "5ms");
  transport_.Data(EventJson("DELETED", {.name = "a", .uid = "1", .version = 14}));
  EXPECT_EQ(Take(), (std::vector<std::string>{"-a/1"}));
  EXPECT_EQ(watch_.Find("default", "a"), nullptr);
  EXPECT_EQ(watch_.FindUid("2")->name, "b");
  EXPECT_EQ(watch_.FindUid("1"), nullptr);
  EXPECT_EQ(watch_.FindUid(""), nullptr);
  EXPECT_EQ(watch_.counts().events, 4u);
}

TEST_F(PodWatchTest, CountsPodsThatDoNotAsk) {
  StartSynced({{.name = "x", .slots = 0}});
  EXPECT_EQ(watch_.counts().other_pods, 1u);
  transport_.Data(EventJson("ADDED", {.name = "y", .version = 11, .slots = 0}));
  transport_.Data(EventJson("MODIFIED", {.name = "y", .version = 12, .slots = 0}));
  EXPECT_EQ(watch_.counts().other_pods, 2u);
  transport_.Data(EventJson("DELETED", {.name = "x", .version = 13, .slots = 0}));
  EXPECT_EQ(watch_.counts().other_pods, 1u);
  EXPECT_TRUE(changes_.empty());
}

TEST_F(PodWatchTest, AnotherPodOfTheSameNameIsAnotherPod) {
  StartSynced({{.name = "a", .uid = "1"}});
  transport_.Data(EventJson("MODIFIED", {.name = "a", .uid = "2", .version = 11}));
  EXPECT_EQ(Take(), (std::vector<std::string>{"-a/1", "+a/2"}));
  // A late word about the former one.
  transport_.Data(EventJson("DELETED", {.name = "a", .uid = "1", .version = 12}));
  EXPECT_TRUE(changes_.empty());
  EXPECT_EQ(watch_.FindUid("2")->name, "a");
}

TEST_F(PodWatchTest, ResumesWhereTheWatchWasCut) {
  StartSynced({});
  transport_.Data(EventJson("ADDED", {.name = "a", .uid = "1", .version = 11}));
  transport_.Data(Bookmark(40));
  EXPECT_EQ(watch_.counts().bookmarks, 1u);
  // In the middle of a line, which therefore never was.
  const std::string next = EventJson("ADDED", {.name = "b", .uid = "2", .version = 41});
  transport_.Data(std::string_view(next).substr(0, next.size() / 2));
  transport_.CutOff(200);
  EXPECT_EQ(watch_.counts().disconnects, 1u);
  EXPECT_NE(watch_.trouble(), "");
  EXPECT_EQ(transport_.open(), 0u);
  timers_.Advance(kSecond);
  ASSERT_TRUE(Watching("40"));
  transport_.Data(next);
  EXPECT_EQ(Take(), (std::vector<std::string>{"+a/1", "+b/2"}));
  EXPECT_EQ(watch_.trouble(), "");
  EXPECT_EQ(watch_.counts().lists, 1u);
}

TEST_F(PodWatchTest, AWatchThatEndsInPeaceGoesOnAtOnce) {
  StartSynced({});
  transport_.Data(Bookmark(20));
  timers_.Advance(300 * kSecond);
  transport_.AnswerStatus(200);
  timers_.Advance(0);
  EXPECT_TRUE(Watching("20"));
  // But not one that ends before it began.
  transport_.AnswerStatus(200);
  timers_.Advance(0);
  EXPECT_EQ(transport_.open(), 0u);
  timers_.Advance(kSecond);
  EXPECT_TRUE(Watching("20"));
}

TEST_F(PodWatchTest, WaitsLongerAndLongerForADeadServer) {
  Start();
  for (const base::Nanos wait_ns : {1, 2, 4, 8, 8}) {
    transport_.CutOff();
    timers_.Advance(wait_ns * kSecond - 1);
    ASSERT_EQ(transport_.open(), 0u);
    timers_.Advance(1);
    ASSERT_TRUE(Listing());
  }
  transport_.Answer({.end = ApiAnswer::End::kAnswered,
                     .status = 503,
                     .body = R"({"kind":"Status","message":"starting"})",
                     .retry_after_ns = 60 * kSecond});
  EXPECT_EQ(watch_.trouble(), "cannot list the node's pods: HTTP status 503: starting");
  timers_.Advance(60 * kSecond - 1);
  ASSERT_EQ(transport_.open(), 0u);
  timers_.Advance(1);
  ASSERT_TRUE(Listing());
  transport_.AnswerData(ListJson({}, "5"));
  EXPECT_TRUE(watch_.synced());
}

TEST_F(PodWatchTest, ListsAgainWhenTheVersionIsGone) {
  for (const bool in_stream : {true, false}) {
    SCOPED_TRACE(in_stream);
    if (in_stream) {
      StartSynced({{.name = "a", .uid = "1"}, {.name = "b", .uid = "2"}});
      transport_.Data(ErrorEvent(410, "Expired"));
    } else {
      transport_.AnswerStatus(410);
    }
    timers_.Advance(2 * kSecond);
    ASSERT_TRUE(Listing());
    // Not from the cache: it must not be older than what was known.
    EXPECT_EQ(transport_.request().path.find("resourceVersion"), std::string::npos);
    if (in_stream) {
      EXPECT_EQ(watch_.pods().size(), 2u);  // Until a new list says otherwise.
      transport_.AnswerData(ListJson({{.name = "b", .uid = "2", .phase = "Failed"}}, "90"));
      EXPECT_EQ(Take(), (std::vector<std::string>{"-a/1", "~b/2"}));
    } else {
      transport_.AnswerData(ListJson({{.name = "b", .uid = "3"}}, "90"));
      EXPECT_EQ(Take(), (std::vector<std::string>{"-b/2", "+b/3"}));
    }
    ASSERT_TRUE(Watching("90"));
    timers_.Advance(5 * kSecond);
  }
  EXPECT_EQ(watch_.counts().expired, 2u);
  EXPECT_EQ(synced_calls_, 1);
}

TEST_F(PodWatchTest, BeginsAPagedListAgainWhenItsTokenIsGone) {
  Start();
  for (int round = 0; round < 2; ++round) {
    transport_.AnswerData(ListJson({{.name = "a", .uid = "1"}}, "8", "token"));
    transport_.AnswerStatus(410);
    timers_.Advance(10 * kSecond);
    ASSERT_TRUE(Listing());
  }
  // Twice is enough: in one piece now.
  EXPECT_EQ(transport_.request().path, "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1");
  transport_.AnswerData(ListJson({{.name = "b", .uid = "2"}}, "9"));
  EXPECT_EQ(Take(), (std::vector<std::string>{"+b/2"}));
}

TEST_F(PodWatchTest, PassesOverObjectsThatAreTooLong) {
  StartSynced({});
  transport_.Data(EventJson("ADDED", {.name = "a", .uid = "1", .version = 11, .bytes = 30000}) +
                  EventJson("ADDED", {.name = "b", .uid = "2", .version = 12, .bytes = 10000}));
  EXPECT_EQ(Take(), (std::vector<std::string>{"+b/2"}));
  timers_.Advance(10 * kSecond);
  transport_.AnswerStatus(200);
  EXPECT_EQ(watch_.counts().oversize_objects, 1u);
  timers_.Advance(0);
  EXPECT_TRUE(Watching("12"));
}

TEST_F(PodWatchTest, AListWithUnreadableObjectsRemovesNobody) {
  StartSynced({{.name = "a", .uid = "1"}, {.name = "b", .uid = "2"}});
  transport_.Data(ErrorEvent(410, "Expired"));
  timers_.Advance(kSecond);
  ASSERT_TRUE(Listing());
  transport_.AnswerData(
      ListJson({{.name = "a", .uid = "1", .bytes = 30000}, {.name = "c", .uid = "3"}}, "20"));
  EXPECT_EQ(Take(), (std::vector<std::string>{"+c/3"}));
  EXPECT_EQ(watch_.pods().size(), 3u);
  EXPECT_EQ(watch_.counts().oversize_objects, 1u);
}

TEST_F(PodWatchTest, GarbageEndsTheWatchAndAfterAWhileTheVersion) {
  StartSynced({});
  transport_.Data(EventJson("ADDED", {.name = "a", .uid = "1", .version = 11}));
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(Watching(i == 0 ? "10" : "11")) << i;
    EXPECT_FALSE(transport_.Data("<html>gateway</html>\n"));
    timers_.Advance(20 * kSecond);
  }
  // The first of them had brought something good before.
  ASSERT_TRUE(Watching("11"));
  EXPECT_FALSE(transport_.Data("{}\n"));
  timers_.Advance(20 * kSecond);
  ASSERT_TRUE(Listing());
  EXPECT_EQ(watch_.counts().malformed_objects, 6u);
  EXPECT_EQ(watch_.pods().size(), 1u);
}

TEST_F(PodWatchTest, ARefusedWatchListsAgainAfterAWhileADeadServerDoesNot) {
  StartSynced({});
  for (int i = 0; i < 20; ++i) {
    transport_.CutOff();
    timers_.Advance(20 * kSecond);
    ASSERT_TRUE(Watching("10")) << i;
  }
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(Watching("10")) << i;
    transport_.AnswerStatus(504, R"({"message":"Too large resource version"})");
    timers_.Advance(20 * kSecond);
  }
  EXPECT_TRUE(Listing());
}

TEST_F(PodWatchTest, RefusesListsThatAreNone) {
  Start();
  for (const char* body : {"<html>", "{}", "[]", R"({"metadata":{}})", R"({"items":[]})",
                           R"({"metadata":{"resourceVersion":7},"items":[]})",
                           R"({"metadata":{"resourceVersion":"7"},"items":[)"}) {
    ASSERT_TRUE(Listing()) << body;
    transport_.AnswerData(body);
    EXPECT_FALSE(watch_.synced()) << body;
    EXPECT_NE(watch_.trouble(), "");
    timers_.Advance(20 * kSecond);
  }
  transport_.AnswerStatus(403, R"({"message":"pods is forbidden"})");
  EXPECT_EQ(watch_.trouble(), "cannot list the node's pods: HTTP status 403: pods is forbidden");
}

TEST_F(PodWatchTest, LeavesPodsOfOtherNodesAlone) {
  StartSynced({{.name = "a", .node = "node-2"}});
  EXPECT_TRUE(watch_.pods().empty());
  transport_.Data(EventJson("ADDED", {.name = "b", .node = "node-2", .version = 11}));
  EXPECT_TRUE(watch_.pods().empty());
}

TEST_F(PodWatchTest, StopsAndStartsAgain) {
  StartSynced({{.name = "a", .uid = "1"}});
  watch_.Stop();
  EXPECT_EQ(transport_.open(), 0u);
  EXPECT_EQ(timers_.pending(), 0u);
  EXPECT_EQ(watch_.pods().size(), 1u);
  Start();
  EXPECT_TRUE(Watching("10"));
}

}  // namespace
}  // namespace rubato::kube
