// Cuts bytes that arrive in any pieces into JSON objects, each of bounded length.
//
// Two shapes: lines (a watch) and the elements of the top-level array "items" (a list). What lies
// around the items is kept, bounded, for the list's own metadata. Only brackets and strings are
// followed: whether an object is JSON is for its reader to find out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace rubato::kube {

class ObjectSplitter {
 public:
  enum class Shape : uint8_t { kLines, kItems };
  // Returns false to be fed no more.
  using OnObject = std::function<bool(std::string_view json)>;

  explicit ObjectSplitter(size_t max_object_bytes) : max_object_bytes_(max_object_bytes) {}

  // Forgets everything. `on_object` is called from Feed() with views that live as long as the call.
  void Start(Shape shape, OnObject on_object);

  // False: on_object said so, or the bytes are no list at all.
  bool Feed(std::string_view bytes);

  // Objects that were longer than the limit, and therefore passed over, since Start().
  uint64_t oversize() const { return oversize_; }
  // kItems: the document with an empty array in the place of the items; complete() once its last
  // bracket was read.
  const std::string& frame() const { return frame_; }
  bool complete() const { return complete_; }

 private:
  bool FeedLines(std::string_view bytes);
  bool FeedItems(std::string_view bytes);
  bool Emit(std::string_view json);

  size_t max_object_bytes_;
  Shape shape_ = Shape::kLines;
  OnObject on_object_;
  std::string object_;     // The beginning of an object whose end has not arrived.
  bool skipping_ = false;  // The object under way is too long.
  uint64_t oversize_ = 0;

  std::string frame_;
  bool complete_ = false;
  uint32_t depth_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
  bool in_items_ = false;
  std::string last_string_;  // The newest string at depth 1, cut at a few characters.
  bool key_is_items_ = false;
};

}  // namespace rubato::kube
