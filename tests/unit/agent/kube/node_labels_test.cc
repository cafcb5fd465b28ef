#include "agent/kube/node_labels.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/unit/agent/kube/fake_timers.h"
#include "tests/unit/agent/kube/fake_transport.h"

namespace rubato::kube {
namespace {

using base::kSecond;
using nlohmann::json;

TEST(LabelValueTest, MakesValuesThatTheServerTakes) {
  EXPECT_EQ(LabelValue("NVIDIA H200"), "NVIDIA-H200");
  EXPECT_EQ(LabelValue("  (Tesla) T4!  "), "Tesla--T4");
  EXPECT_EQ(LabelValue("a_b.c-d"), "a_b.c-d");
  EXPECT_EQ(LabelValue("..."), "");
  EXPECT_EQ(LabelValue(""), "");
  EXPECT_EQ(LabelValue("\xc3\xa9"
                       "x"),
            "x");
  EXPECT_EQ(LabelValue(std::string(100, 'x')), std::string(63, 'x'));
  EXPECT_EQ(LabelValue(std::string(62, 'x') + "--yy"), std::string(62, 'x'));
}

class NodeLabelsTest : public testing::Test {
 protected:
  FakeTimers timers_;
  FakeTransport transport_;
  NodeLabels labels_{&transport_, &timers_, "node-1", 300 * kSecond};
};

TEST_F(NodeLabelsTest, PatchesItsOwnLabelsAlone) {
  labels_.Set({{"rubato.dev/gpu.model", "NVIDIA-H200"}, {"rubato.dev/old", std::nullopt}});
  ASSERT_EQ(transport_.open(), 1u);
  const ApiRequest& request = transport_.request();
  EXPECT_EQ(request.method, Method::kPatch);
  EXPECT_EQ(request.path, "/api/v1/nodes/node-1");
  EXPECT_EQ(request.content_type, "application/merge-patch+json");
  EXPECT_EQ(json::parse(request.body),
            json::parse(R"({"metadata":{"labels":{"rubato.dev/gpu.model":"NVIDIA-H200",
                                                  "rubato.dev/old":null}}})"));
  EXPECT_FALSE(labels_.current());
  transport_.AnswerStatus(200);
  EXPECT_TRUE(labels_.current());
  // The same again is nothing to do.
  labels_.Set({{"rubato.dev/gpu.model", "NVIDIA-H200"}, {"rubato.dev/old", std::nullopt}});
  EXPECT_EQ(transport_.open(), 0u);
}

TEST_F(NodeLabelsTest, TheLastWordCounts) {
  labels_.Set({{"a", "1"}});
  labels_.Set({{"a", "2"}});
  labels_.Set({{"a", "3"}});
  transport_.AnswerStatus(200);
  ASSERT_EQ(transport_.open(), 1u);
  EXPECT_EQ(json::parse(transport_.request().body)["metadata"]["labels"]["a"], "3");
  transport_.AnswerStatus(200);
  EXPECT_TRUE(labels_.current());
  EXPECT_EQ(transport_.started(), 2u);
}

TEST_F(NodeLabelsTest, ARefusalIsToldAndTriedAgainLater) {
  labels_.Set({{"a", "1"}});
  transport_.AnswerStatus(403);
  EXPECT_NE(labels_.trouble().find("the right to patch nodes is missing"), std::string::npos);
  labels_.Set({{"a", "2"}});
  timers_.Advance(300 * kSecond - 1);
  EXPECT_EQ(transport_.open(), 0u);
  timers_.Advance(1);
  ASSERT_EQ(transport_.open(), 1u);
  transport_.AnswerStatus(200);
  EXPECT_EQ(labels_.trouble(), "");
  EXPECT_TRUE(labels_.current());
}

}  // namespace
}  // namespace rubato::kube
