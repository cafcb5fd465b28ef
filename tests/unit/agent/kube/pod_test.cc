#include "agent/kube/pod.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/unit/agent/kube/pod_json.h"

namespace rubato::kube {
namespace {

const PodSelection kSelection;

TEST(PodTest, ReadsWhatTheAgentNeeds) {
  const auto read = ReadPod(PodJson({.name = "render-1",
                                     .name_space = "team",
                                     .uid = "u-1",
                                     .node = "node-7",
                                     .phase = "Pending",
                                     .version = 812,
                                     .slots = 3,
                                     .annotations = {{"rubato.dev/class", "realtime"},
                                                     {"main.rubato.dev/period", "10ms"},
                                                     {"notrubato.dev/class", "x"},
                                                     {"rubato.dev", "x"},
                                                     {"other/rubato.dev", "x"}},
                                     .deleting = true,
                                     .container_id = "abc"}),
                            kSelection);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->type, PodObject::Type::kAdded);
  EXPECT_EQ(read->resource_version, "812");
  const Pod& pod = read->pod;
  EXPECT_EQ(pod.name, "render-1");
  EXPECT_EQ(pod.name_space, "team");
  EXPECT_EQ(pod.uid, "u-1");
  EXPECT_EQ(pod.static_uid, "");
  EXPECT_EQ(pod.node, "node-7");
  EXPECT_EQ(pod.phase, PodPhase::kPending);
  EXPECT_FALSE(pod.finished());
  EXPECT_TRUE(pod.deleting);
  EXPECT_EQ(pod.owner, (PodOwner{"ReplicaSet", "pod-7d9c"}));
  EXPECT_EQ(pod.annotations, (Pod::Annotations{{"rubato.dev/class", "realtime"},
                                               {"main.rubato.dev/period", "10ms"}}));
  ASSERT_EQ(pod.containers.size(), 1u);
  EXPECT_EQ(pod.containers[0], (PodContainer{"main", ContainerKind::kMain, 3, "abc"}));
}

TEST(PodTest, KnowsKindsOfContainers) {
  const auto read = ReadPod(R"({"metadata":{"name":"p","namespace":"n","uid":"u"},
    "spec":{"containers":[{"name":"main","resources":{"limits":{"rubato.dev/gpu":2}}},
                          {"resources":{"limits":{"rubato.dev/gpu":"1k"}},"name":"second"}],
            "initContainers":[{"name":"init","resources":{"limits":{"rubato.dev/gpu":"1"}}},
                              {"name":"side","restartPolicy":"Always"}],
            "restartPolicy":"Always"},
    "status":{"initContainerStatuses":[{"name":"side","containerID":"cri-o://s"}],
              "containerStatuses":[{"containerID":"docker://m","name":"main"},
                                   {"name":"stranger","containerID":"x"}]}})",
                            kSelection);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->pod.containers,
            (std::vector<PodContainer>{{"init", ContainerKind::kInit, 1, ""},
                                       {"side", ContainerKind::kSidecar, 0, "s"},
                                       {"main", ContainerKind::kMain, 2, "m"},
                                       {"second", ContainerKind::kMain, 1000, ""}}));
  EXPECT_EQ(read->pod.Find("second")->slots, 1000u);
  EXPECT_EQ(read->pod.Find("none"), nullptr);
}

TEST(PodTest, KnowsAStaticPodsOwnUid) {
  const auto read = ReadPod(
      PodJson({.annotations = {{"kubernetes.io/config.hash", "5d41402abc4b2a76b9719d911017c592"},
                               {"kubernetes.io/config.mirror", "5d41402abc4b2a76b9719d911017c592"},
                               {"kubernetes.io/config.source", "file"}}}),
      kSelection);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->pod.static_uid, "5d41402abc4b2a76b9719d911017c592");
  EXPECT_TRUE(read->pod.annotations.empty());
}

TEST(PodTest, ReadsEvents) {
  const auto modified = ReadWatchEvent(EventJson("MODIFIED", {.version = 5}), kSelection);
  ASSERT_TRUE(modified.ok());
  EXPECT_EQ(modified->type, PodObject::Type::kModified);
  EXPECT_TRUE(modified->pod.asks());

  const auto bookmark = ReadWatchEvent(
      R"({"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{
          "resourceVersion":"77","creationTimestamp":null},"spec":{"containers":null},"status":{}}})",
      kSelection);
  ASSERT_TRUE(bookmark.ok()) << bookmark.error().message;
  EXPECT_EQ(bookmark->type, PodObject::Type::kBookmark);
  EXPECT_EQ(bookmark->resource_version, "77");

  const auto error = ReadWatchEvent(
      R"({"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},
          "status":"Failure","message":"too old resource version","reason":"Expired",
          "code":410}})",
      kSelection);
  ASSERT_TRUE(error.ok()) << error.error().message;
  EXPECT_EQ(error->type, PodObject::Type::kError);
  EXPECT_EQ(error->error_code, 410);
  EXPECT_EQ(error->error_reason, "Expired");
}

TEST(PodTest, DoesNotReadTheRestOfAPodThatAsksForNothing) {
  // What follows is no JSON at all: nobody looks.
  const std::string line = EventJson("ADDED", {.version = 9, .slots = 0});
  const size_t status = line.find("\"status\":{\"phase\"");
  ASSERT_NE(status, std::string::npos);
  const auto read = ReadWatchEvent(line.substr(0, status) + "]]]", kSelection);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_FALSE(read->pod.asks());
  EXPECT_EQ(read->pod.name, "pod");
  EXPECT_EQ(read->resource_version, "9");
  // Of one that does ask, everything counts.
  const std::string ours = EventJson("ADDED", {.slots = 1});
  EXPECT_FALSE(
      ReadWatchEvent(ours.substr(0, ours.find("\"status\":{\"phase\"")) + "]]]", kSelection).ok());
}

TEST(PodTest, TheOrderOfFieldsDoesNotMatter) {
  const auto read = ReadWatchEvent(
      R"({"object":{"status":{"containerStatuses":[{"containerID":"r://id","name":"c"}],
                              "phase":"Failed"},
                    "spec":{"nodeName":"n","containers":[
                       {"resources":{"limits":{"rubato.dev/gpu":"1"}},"name":"c"}]},
                    "metadata":{"uid":"u","namespace":"s","name":"p","resourceVersion":"3"}},
          "type":"DELETED"})",
      kSelection);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->type, PodObject::Type::kDeleted);
  EXPECT_EQ(read->pod.containers,
            (std::vector<PodContainer>{{"c", ContainerKind::kMain, 1, "id"}}));
  EXPECT_TRUE(read->pod.finished());
}

TEST(PodTest, PassesOverShapesThatItDoesNotExpect) {
  const auto read = ReadPod(R"({"metadata":{"name":"p","namespace":"n","uid":"u",
      "annotations":[["rubato.dev/class","realtime"]],"ownerReferences":{"kind":"X"},
      "labels":{"name":"not-the-name","uid":{"name":"nor-this"}}},
    "spec":{"containers":{"name":"x"},"initContainers":[["x"],"y",null,1,
        {"name":"c","resources":{"limits":[{"rubato.dev/gpu":"5"}]}}],
        "nodeName":{"name":"x"}},
    "status":["phase","Running"]})",
                            kSelection);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->pod.name, "p");
  EXPECT_FALSE(read->pod.asks());
  EXPECT_TRUE(read->pod.annotations.empty());
}

TEST(PodTest, BoundsWhatItKeeps) {
  const auto read =
      ReadPod(PodJson({.annotations = {{"rubato.dev/class", std::string(5000, 'x')}}}), kSelection);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->pod.annotations.at("rubato.dev/class").size(), kMaxAnnotationBytes + 1);

  PodText many;
  for (int i = 0; i < 2000; ++i) many.annotations["rubato.dev/" + std::to_string(i)] = "x";
  const auto flooded = ReadPod(PodJson(many), kSelection);
  ASSERT_TRUE(flooded.ok());
  EXPECT_LE(flooded->pod.annotations.size(), 512u);
}

TEST(PodTest, RefusesWhatIsNoPod) {
  const std::string deep =
      R"({"metadata":{"x":)" + std::string(200, '[') + std::string(200, ']') + "}}";
  std::string containers =
      R"({"metadata":{"name":"p","namespace":"n","uid":"u"},"spec":{"containers":[)";
  for (int i = 0; i < 600; ++i) containers += R"({"name":"c"},)";
  containers += "{}]}}";
  for (const std::string& json : std::vector<std::string>{
           "", " ", "{", "[]", "null", "17", "\"pod\"", "{}", "{}{}",
           R"({"metadata":{"name":"p","namespace":"n"}})",
           R"({"metadata":{"name":")" + std::string(300, 'x') + R"(","namespace":"n","uid":"u"}})",
           "{\"metadata\":{\"name\":\"\xff\",\"namespace\":\"n\",\"uid\":\"u\"}}",
           R"({"metadata":{"name":"p","namespace":"n","uid":"u"},"spec":{"containers":[
               {"name":"c","resources":{"limits":{"rubato.dev/gpu":"many"}}}]}})",
           deep, containers, std::string(100000, '{'), std::string(100000, '[')}) {
    EXPECT_FALSE(ReadPod(json, kSelection).ok()) << json.substr(0, 100);
  }
  EXPECT_FALSE(ReadWatchEvent("[]", kSelection).ok());
  EXPECT_FALSE(ReadWatchEvent(R"({"type":"ADDED"})", kSelection).ok());
  EXPECT_FALSE(ReadWatchEvent(R"({"type":"ADDED","object":null})", kSelection).ok());
}

}  // namespace
}  // namespace rubato::kube
