#include "agent/kube/object_splitter.h"

#include <cstring>

namespace rubato::kube {
namespace {

// Kind, version, resource version and the token of the next page.
constexpr size_t kMaxFrameBytes = size_t{64} << 10;
// What a buffer that grew for one large object may keep.
constexpr size_t kKeptBytes = size_t{64} << 10;
constexpr std::string_view kItems = "items";

bool IsBlank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

}  // namespace

void ObjectSplitter::Start(Shape shape, OnObject on_object) {
  const size_t limit = max_object_bytes_;
  *this = ObjectSplitter(limit);
  shape_ = shape;
  on_object_ = std::move(on_object);
}

bool ObjectSplitter::Feed(std::string_view bytes) {
  return shape_ == Shape::kLines ? FeedLines(bytes) : FeedItems(bytes);
}

// The end of an object: `json` is its last part, or all of it.
bool ObjectSplitter::Emit(std::string_view json) {
  if (skipping_ || object_.size() + json.size() > max_object_bytes_) {
    skipping_ = false;
    object_.clear();
    ++oversize_;
    return true;
  }
  if (object_.empty()) return on_object_(json);
  object_.append(json);
  const bool go_on = on_object_(object_);
  if (object_.capacity() > kKeptBytes) {
    object_ = std::string();
  } else {
    object_.clear();
  }
  return go_on;
}

bool ObjectSplitter::FeedLines(std::string_view bytes) {
  while (!bytes.empty()) {
    if (object_.empty() && !skipping_) {
      const size_t text = bytes.find_first_not_of(" \t\r");
      if (text == std::string_view::npos) return true;
      bytes.remove_prefix(text);
    }
    const void* newline = std::memchr(bytes.data(), '\n', bytes.size());
    if (newline == nullptr) {
      if (skipping_ || object_.size() + bytes.size() > max_object_bytes_) {
        skipping_ = true;
        object_ = std::string();
      } else {
        object_.append(bytes);
      }
      return true;
    }
    const auto length = static_cast<size_t>(static_cast<const char*>(newline) - bytes.data());
    const std::string_view line = bytes.substr(0, length);
    bytes.remove_prefix(length + 1);
    if (line.empty() && object_.empty() && !skipping_) continue;
    if (!Emit(line)) return false;
  }
  return true;
}

bool ObjectSplitter::FeedItems(std::string_view bytes) {
  size_t begin = 0;  // Of the part of the object under way that lies in `bytes`.
  for (size_t at = 0; at < bytes.size(); ++at) {
    const char c = bytes[at];
    const bool in_object = in_items_ && depth_ > 2;
    if (!in_items_) {
      if (complete_) continue;
      if (depth_ == 0) {
        if (IsBlank(c)) continue;
        if (c != '{') return false;
      }
      if (frame_.size() >= kMaxFrameBytes) return false;
      frame_.push_back(c);
    }
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        in_string_ = false;
      }
      // One character more than the name that matters, so that a longer one is not taken for it.
      if (in_string_ && depth_ == 1 && last_string_.size() <= kItems.size())
        last_string_.push_back(c);
      continue;
    }
    switch (c) {
      case '"':
        if (in_items_ && !in_object) return false;
        in_string_ = true;
        if (depth_ == 1) last_string_.clear();
        break;
      case '{':
      case '[':
        if (in_items_ && !in_object) {
          if (c != '{') return false;
          begin = at;
        }
        if (!in_items_ && depth_ == 1 && c == '[' && key_is_items_) in_items_ = true;
        ++depth_;
        break;
      case '}':
      case ']':
        if (in_items_ && !in_object) {
          if (c != ']') return false;
          in_items_ = false;
          frame_.push_back(c);
        }
        --depth_;
        if (in_items_ && depth_ == 2 && !Emit(bytes.substr(begin, at + 1 - begin))) return false;
        if (depth_ == 0) complete_ = true;
        break;
      case ':':
        if (depth_ == 1) key_is_items_ = last_string_ == kItems;
        break;
      case ',':
        if (depth_ == 1) key_is_items_ = false;
        break;
      default:
        if (in_items_ && !in_object && !IsBlank(c)) return false;
        break;
    }
  }
  if (in_items_ && depth_ > 2) {
    const std::string_view part = bytes.substr(begin);
    if (skipping_ || object_.size() + part.size() > max_object_bytes_) {
      skipping_ = true;
      object_ = std::string();
    } else {
      object_.append(part);
    }
  }
  return true;
}

}  // namespace rubato::kube
