// What comes from the API server, in pieces of any size: lines of a watch, a list, a pod, and what
// the annotations of that pod promise.
//
// Input: a byte that says how long pieces are, then the bytes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "agent/kube/object_splitter.h"
#include "agent/kube/pod.h"
#include "agent/kube/promise.h"

namespace {

using namespace rubato::kube;  // NOLINT: a fuzz target is a program of one file.

constexpr size_t kMaxObject = 4096;

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

bool Printable(const std::string& text) {
  for (const char c : text) {
    if (c < ' ' || c > '~') return false;
  }
  return true;
}

void Check(const PodObject& object, const PodSelection& selection) {
  const Pod& pod = object.pod;
  Require(pod.name.size() <= 253 && pod.name_space.size() <= 253 && pod.uid.size() <= 128,
          "names are bounded");
  Require(pod.containers.size() <= 512 && pod.annotations.size() <= 512, "counts are bounded");
  for (const auto& [key, value] : pod.annotations) {
    Require(value.size() <= kMaxAnnotationBytes + 1, "values are bounded");
    Require(key.find(selection.annotation_domain) != std::string::npos, "only ours are kept");
  }
  const PodPromises promises = ReadPromises(pod, selection);
  Require(promises.containers.size() <= pod.containers.size(), "one promise per container");
  for (const auto& [name, promise] : promises.containers) {
    const bool realtime = promise.tenant_class == PromisedClass::kRealtime;
    Require(promise.period_ns >= 0 && promise.period_ns <= 60 * rubato::base::kSecond,
            "periods are bounded");
    Require(promise.deadline_ns >= 0 && promise.deadline_ns <= 60 * rubato::base::kSecond,
            "deadlines are bounded");
    Require(realtime || (promise.period_ns == 0 && promise.deadline_ns == 0),
            "best-effort has neither");
    Require(!promise.memory_bytes || *promise.memory_bytes > 0, "no limit of nothing");
    Require(!promise.overhead_budget_permille || (*promise.overhead_budget_permille > 0 &&
                                                  *promise.overhead_budget_permille <= 1000),
            "budgets are bounded");
  }
  Require(promises.complaints.size() <= 64, "complaints are bounded");
  for (const Complaint& complaint : promises.complaints) {
    Require(Printable(complaint.key) && Printable(complaint.message), "complaints are printable");
    Require(complaint.message.size() <= 512, "complaints are short");
  }
}

std::vector<std::string> Split(ObjectSplitter::Shape shape, std::string_view bytes, size_t piece,
                               bool* fed, bool* complete) {
  std::vector<std::string> objects;
  ObjectSplitter splitter(kMaxObject);
  splitter.Start(shape, [&](std::string_view json) {
    Require(json.size() <= kMaxObject, "objects are bounded");
    objects.emplace_back(json);
    return true;
  });
  *fed = true;
  while (!bytes.empty() && *fed) {
    *fed = splitter.Feed(bytes.substr(0, piece));
    bytes.remove_prefix(std::min(piece, bytes.size()));
  }
  *complete = splitter.complete();
  return objects;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const size_t piece = data[0] + size_t{1};
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const PodSelection selection;
  for (const auto shape : {ObjectSplitter::Shape::kLines, ObjectSplitter::Shape::kItems}) {
    bool fed = false;
    bool complete = false;
    bool fed_whole = false;
    bool complete_whole = false;
    const auto objects = Split(shape, bytes, piece, &fed, &complete);
    const auto whole = Split(shape, bytes, bytes.size() + 1, &fed_whole, &complete_whole);
    Require(objects == whole && fed == fed_whole && complete == complete_whole,
            "pieces make no difference");
    for (const std::string& object : objects) {
      if (const auto event = ReadWatchEvent(object, selection)) Check(*event, selection);
      if (const auto pod = ReadPod(object, selection)) Check(*pod, selection);
    }
  }
  if (const auto event = ReadWatchEvent(bytes, selection)) Check(*event, selection);
  if (const auto pod = ReadPod(bytes, selection)) Check(*pod, selection);
  return 0;
}
