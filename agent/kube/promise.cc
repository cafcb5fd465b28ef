#include "agent/kube/promise.h"

#include <algorithm>
#include <array>

#include "agent/kube/quantity.h"

namespace rubato::kube {
namespace {

// What the scheduler accepts of a tenant.
constexpr base::Nanos kShortestPeriod = 100 * base::kMicrosecond;
constexpr base::Nanos kLongestTime = 60 * base::kSecond;
constexpr uint64_t kMostMemory = uint64_t{1} << 50;
constexpr size_t kMaxComplaints = 64;

enum class Key : uint8_t { kClass, kPeriod, kDeadline, kPriority, kMemory, kOverheadBudget };
constexpr size_t kKeys = 6;
constexpr std::array<std::string_view, kKeys> kKeyNames = {"class",    "period", "deadline",
                                                           "priority", "memory", "overhead-budget"};
constexpr std::string_view kKeyList = "class, period, deadline, priority, memory, overhead-budget";

bool RealtimeOnly(Key key) {
  return key != Key::kClass && key != Key::kMemory;
}

std::string Shown(std::string_view text, size_t limit) {
  std::string shown(text.substr(0, limit));
  for (char& c : shown) {
    if (c < ' ' || c > '~') c = '?';
  }
  return shown;
}

// Kubernetes leaves blanks in values as they are; people put them there.
std::string_view Trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

// "2%", "0.5%" in thousandths; nullopt: no such number, nothing, or finer than a thousandth.
std::optional<uint32_t> ReadPermille(std::string_view text) {
  if (!text.ends_with('%')) return std::nullopt;
  text = Trim(text.substr(0, text.size() - 1));
  uint32_t permille = 0;
  bool any = false;
  int decimals = -1;
  for (const char c : text) {
    if (c == '.' && decimals < 0) {
      decimals = 0;
      continue;
    }
    if (c < '0' || c > '9') return std::nullopt;
    any = true;
    if (decimals >= 0 && ++decimals > 1) {
      if (c != '0') return std::nullopt;
      continue;
    }
    permille = permille * 10 + static_cast<uint32_t>(c - '0');
    if (permille > 1000) return std::nullopt;
  }
  if (!any) return std::nullopt;
  if (decimals <= 0) permille *= 10;
  if (permille == 0 || permille > 1000) return std::nullopt;
  return permille;
}

// One value, where it is written.
struct Place {
  const std::string* annotation = nullptr;  // The key.
  const std::string* value = nullptr;
  bool of_container = false;
};

class Reader {
 public:
  Reader(const Pod& pod, const PodSelection& selection) : pod_(pod), selection_(selection) {}

  PodPromises Read() {
    for (const auto& [annotation, value] : pod_.annotations) FindUnknown(annotation);
    for (const PodContainer& container : pod_.containers) {
      if (container.slots == 0) continue;
      promises_.containers.insert_or_assign(container.name, ReadContainer(container.name));
    }
    return std::move(promises_);
  }

 private:
  // Complaints about keys that no container reads.
  void FindUnknown(const std::string& annotation) {
    const size_t slash = annotation.find('/');
    if (slash == std::string::npos) return;
    std::string_view prefix = std::string_view(annotation).substr(0, slash);
    const std::string_view name = std::string_view(annotation).substr(slash + 1);
    if (!prefix.ends_with(selection_.annotation_domain)) return;
    prefix.remove_suffix(selection_.annotation_domain.size());
    std::string container;
    if (!prefix.empty()) {
      if (prefix.back() != '.') return;  // Another domain that ends alike.
      prefix.remove_suffix(1);
      container = Shown(prefix, 63);
      const PodContainer* found = pod_.Find(prefix);
      if (found == nullptr) {
        Complain(annotation, {}, "the pod has no container '" + container + "'");
        return;
      }
      if (found->slots == 0) {
        Complain(annotation, container,
                 "container '" + container + "' asks for no " + selection_.resource);
        return;
      }
    }
    if (std::find(kKeyNames.begin(), kKeyNames.end(), name) == kKeyNames.end()) {
      Complain(annotation, container, "unknown annotation; known are " + std::string(kKeyList));
    }
  }

  Place Find(Key key, const std::string& container) const {
    const std::string name =
        selection_.annotation_domain + "/" + std::string(kKeyNames[static_cast<size_t>(key)]);
    if (const auto own = pod_.annotations.find(container + "." + name);
        own != pod_.annotations.end())
      return {&own->first, &own->second, true};
    if (const auto shared = pod_.annotations.find(name); shared != pod_.annotations.end())
      return {&shared->first, &shared->second, false};
    return {};
  }

  Promise ReadContainer(const std::string& container) {
    Promise promise;
    std::array<Place, kKeys> places;
    for (size_t i = 0; i < kKeys; ++i) places[i] = Find(static_cast<Key>(i), container);

    const Place& class_place = places[static_cast<size_t>(Key::kClass)];
    bool class_is_good = true;
    if (class_place.value != nullptr) {
      const std::string_view value = Trim(*class_place.value);
      if (value == "realtime") {
        promise.tenant_class = PromisedClass::kRealtime;
      } else if (value != "best-effort") {
        class_is_good = false;
        Bad(class_place, container, "write realtime or best-effort; runs as best-effort");
      }
    }
    const bool realtime = promise.tenant_class == PromisedClass::kRealtime;
    for (size_t i = 1; i < kKeys; ++i) {
      const Place& place = places[i];
      if (place.value == nullptr) continue;
      const Key key = static_cast<Key>(i);
      if (RealtimeOnly(key) && !realtime) {
        // A pod's value may be meant for its other containers, and a class that was misspelt has
        // its complaint already.
        const bool meant = place.of_container || !class_place.of_container;
        if (meant && class_is_good) {
          Complain(*place.annotation, place.of_container ? container : std::string(),
                   "has an effect on real-time containers only; add " +
                       selection_.annotation_domain + "/class: realtime or remove it");
        }
        continue;
      }
      ReadValue(key, place, container, &promise);
    }
    return promise;
  }

  void ReadValue(Key key, const Place& place, const std::string& container, Promise* promise) {
    const std::string_view value = Trim(*place.value);
    switch (key) {
      case Key::kClass:
        return;
      case Key::kPeriod: {
        const auto period = base::ParseDuration(value);
        if (!period || *period < kShortestPeriod || *period > kLongestTime) {
          Bad(place, container, "write a duration from 100us to 60s, for example 10ms");
          return;
        }
        promise->period_ns = *period;
        return;
      }
      case Key::kDeadline: {
        const auto deadline = base::ParseDuration(value);
        if (!deadline || *deadline <= 0 || *deadline > kLongestTime) {
          Bad(place, container, "write a duration up to 60s, for example 8ms");
          return;
        }
        promise->deadline_ns = *deadline;
        return;
      }
      case Key::kPriority:
        if (value == "high") {
          promise->priority = PromisedPriority::kHigh;
        } else if (value == "low") {
          promise->priority = PromisedPriority::kLow;
        } else {
          Bad(place, container, "write high or low");
        }
        return;
      case Key::kMemory: {
        const auto bytes = ParseQuantity(value);
        if (!bytes || *bytes == 0 || *bytes > kMostMemory) {
          Bad(place, container, "write an amount of bytes above 0, for example 8Gi or 512Mi");
          return;
        }
        promise->memory_bytes = *bytes;
        return;
      }
      case Key::kOverheadBudget: {
        const auto permille = ReadPermille(value);
        if (!permille) {
          Bad(place, container,
              "write a percentage from 0.1% to 100% in steps of 0.1%, for example 2%");
          return;
        }
        promise->overhead_budget_permille = *permille;
        return;
      }
    }
  }

  void Bad(const Place& place, const std::string& container, const std::string& cure) {
    Complain(*place.annotation, place.of_container ? container : std::string(),
             "'" + Shown(*place.value, 64) + "' is not understood: " + cure);
  }

  void Complain(const std::string& annotation, std::string container, std::string message) {
    // A pod's own value is read once per container.
    Complaint complaint{Shown(annotation, 128), std::move(container), std::move(message)};
    auto& complaints = promises_.complaints;
    if (complaints.size() >= kMaxComplaints ||
        std::find(complaints.begin(), complaints.end(), complaint) != complaints.end())
      return;
    complaints.push_back(std::move(complaint));
  }

  const Pod& pod_;
  const PodSelection& selection_;
  PodPromises promises_;
};

}  // namespace

PodPromises ReadPromises(const Pod& pod, const PodSelection& selection) {
  return Reader(pod, selection).Read();
}

}  // namespace rubato::kube
