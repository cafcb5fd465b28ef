#include "agent/kube/object_splitter.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace rubato::kube {
namespace {

struct Split {
  std::vector<std::string> objects;
  std::string frame;
  bool complete = false;
  bool fed = true;
  uint64_t oversize = 0;

  bool operator==(const Split&) const = default;
};

// Feeds `text` in pieces of `piece` bytes.
Split SplitAll(ObjectSplitter::Shape shape, const std::string& text, size_t piece,
               size_t limit = 1000) {
  Split split;
  ObjectSplitter splitter(limit);
  splitter.Start(shape, [&](std::string_view json) {
    split.objects.emplace_back(json);
    return true;
  });
  for (size_t at = 0; at < text.size() && split.fed; at += piece)
    split.fed = splitter.Feed(std::string_view(text).substr(at, piece));
  split.frame = splitter.frame();
  split.complete = splitter.complete();
  split.oversize = splitter.oversize();
  return split;
}

TEST(ObjectSplitterTest, CutsLinesWhereverPiecesEnd) {
  const std::string text = "{\"a\":1}\n\n{\"b\":\"x\\n\"}\r\n  \n{\"c\":3}\nunfinished";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    const Split split = SplitAll(ObjectSplitter::Shape::kLines, text, piece);
    EXPECT_EQ(split.objects,
              (std::vector<std::string>{"{\"a\":1}", "{\"b\":\"x\\n\"}\r", "{\"c\":3}"}))
        << piece;
  }
}

TEST(ObjectSplitterTest, PassesOverLongLines) {
  const std::string text = "short\n" + std::string(101, 'x') + "\n" + std::string(100, 'y') + "\n" +
                           std::string(500, 'z') + "\nlast\n";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    const Split split = SplitAll(ObjectSplitter::Shape::kLines, text, piece, 100);
    EXPECT_EQ(split.objects, (std::vector<std::string>{"short", std::string(100, 'y'), "last"}))
        << piece;
    EXPECT_EQ(split.oversize, 2u);
  }
}

TEST(ObjectSplitterTest, CutsItemsWhereverPiecesEnd) {
  const std::string text =
      R"( {"kind":"PodList","items2":[{"no":1}],"metadata":{"items":[1,{"no":2}],"resourceVersion":"7"},
 "items":[{"a":"]}\"\\"}, {"b":[{"items":[]}]}
,{}],"x":"items","tail":[{"no":3}]} )";
  const std::vector<std::string> expected = {R"({"a":"]}\"\\"})", R"({"b":[{"items":[]}]})", "{}"};
  const std::string frame =
      R"({"kind":"PodList","items2":[{"no":1}],"metadata":{"items":[1,{"no":2}],"resourceVersion":"7"},
 "items":[],"x":"items","tail":[{"no":3}]})";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    const Split split = SplitAll(ObjectSplitter::Shape::kItems, text, piece);
    EXPECT_TRUE(split.fed);
    EXPECT_EQ(split.objects, expected) << piece;
    EXPECT_EQ(split.frame, frame) << piece;
    EXPECT_TRUE(split.complete);
  }
}

TEST(ObjectSplitterTest, PassesOverLongItems) {
  const std::string text = R"({"items":[{"a":")" + std::string(200, 'x') + R"("},{"b":1},{"c":")" +
                           std::string(200, 'x') + R"("}]})";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    const Split split = SplitAll(ObjectSplitter::Shape::kItems, text, piece, 100);
    EXPECT_EQ(split.objects, (std::vector<std::string>{R"({"b":1})"})) << piece;
    EXPECT_EQ(split.oversize, 2u);
    EXPECT_TRUE(split.complete);
  }
}

TEST(ObjectSplitterTest, KnowsAListWithoutItems) {
  for (const char* text : {R"({"items":null})", R"({"items":[]})", "{}", R"({"metadata":{}})"}) {
    const Split split = SplitAll(ObjectSplitter::Shape::kItems, text, 3);
    EXPECT_TRUE(split.objects.empty());
    EXPECT_TRUE(split.complete) << text;
    EXPECT_EQ(split.frame, text);
  }
}

TEST(ObjectSplitterTest, AnUnfinishedListIsNotComplete) {
  const std::string text = R"({"items":[{"a":1}],"m":{"n":"}"}})";
  for (size_t length = 0; length < text.size(); ++length)
    EXPECT_FALSE(SplitAll(ObjectSplitter::Shape::kItems, text.substr(0, length), 1).complete)
        << length;
}

TEST(ObjectSplitterTest, RefusesWhatIsNoList) {
  for (const char* text : {"x", "[{}]", "<html>", R"({"items":["a"]})", R"({"items":[1]})",
                           R"({"items":[[]]})", R"({"items":[}]})"}) {
    EXPECT_FALSE(SplitAll(ObjectSplitter::Shape::kItems, text, 1).fed) << text;
  }
  // A frame without an end.
  EXPECT_FALSE(
      SplitAll(ObjectSplitter::Shape::kItems, "{\"a\":\"" + std::string(100000, 'x'), 4096).fed);
}

TEST(ObjectSplitterTest, StopsWhenToldTo) {
  ObjectSplitter splitter(100);
  int seen = 0;
  splitter.Start(ObjectSplitter::Shape::kLines, [&](std::string_view) { return ++seen < 2; });
  EXPECT_FALSE(splitter.Feed("a\nb\nc\n"));
  EXPECT_EQ(seen, 2);
  seen = 0;
  splitter.Start(ObjectSplitter::Shape::kItems, [&](std::string_view) { return ++seen < 2; });
  EXPECT_FALSE(splitter.Feed(R"({"items":[{},{},{}]})"));
  EXPECT_EQ(seen, 2);
}

}  // namespace
}  // namespace rubato::kube
