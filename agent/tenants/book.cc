#include "agent/tenants/book.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

namespace rubato::agent {
namespace {

using base::Nanos;
using deviceplugin::AllocationRecord;

std::vector<std::string> Sorted(std::vector<std::string> slots) {
  std::sort(slots.begin(), slots.end());
  return slots;
}

const kube::Pod* FindPod(const kube::PodWatch::Pods* pods, const std::string& name_space,
                         const std::string& name) {
  if (pods == nullptr) return nullptr;
  const auto found = pods->find(std::pair(name_space, name));
  return found == pods->end() ? nullptr : &found->second;
}

bool AsksAt(const kube::PodContainer& container) {
  return container.slots > 0;
}

}  // namespace

TenantBook::TenantBook(Options options, TenantPolicy policy)
    : options_(std::move(options)), policy_(std::move(policy)) {}

void TenantBook::Wake(Nanos at_ns) {
  if (next_change_ns_ == 0 || at_ns < next_change_ns_) next_change_ns_ = at_ns;
}

const kube::PodPromises& TenantBook::PromisesOf(const kube::Pod& pod) {
  Promises& kept = promises_[pod.uid];
  if (kept.pod.uid.empty() || !(kept.pod.annotations == pod.annotations) ||
      !(kept.pod.containers == pod.containers)) {
    kept.pod = pod;
    kept.promises = kube::ReadPromises(pod, options_.selection);
  }
  return kept.promises;
}

void TenantBook::Bind(const std::string& token, const Holder& holder, bool init) {
  Entry& entry = entries_[token];
  const std::string uid = holder.known == nullptr ? "" : holder.known->uid;
  if (entry.bound.has_value()) {
    PodRef& bound = *entry.bound;
    const bool same_name = bound.name_space == *holder.name_space && bound.pod == *holder.pod &&
                           bound.container == *holder.container;
    // A pod of the same name is another pod: it has, or will have, an allocation of its own.
    if (!same_name || (!bound.uid.empty() && !uid.empty() && bound.uid != uid)) return;
    if (bound.uid.empty()) bound.uid = uid;
  } else {
    entry.bound = PodRef{*holder.name_space, *holder.pod, uid, *holder.container};
    entry.init = init;
  }
  matched_[token] = true;
}

// Containers that PodResources names: the newest allocation of exactly their slots.
void TenantBook::Match(const Facts& facts) {
  std::map<std::vector<std::string>, std::vector<const AllocationRecord*>> by_slots;
  for (const auto& [token, record] : *facts.records)
    by_slots[Sorted(record.slots)].push_back(&record);
  for (auto& [slots, records] : by_slots) {
    std::sort(records.begin(), records.end(),
              [](const auto* a, const auto* b) { return a->serial > b->serial; });
  }
  std::map<std::vector<std::string>, std::vector<Holder>> holders;
  for (const deviceplugin::PodDevicesHeld& pod : *facts.held) {
    const kube::Pod* known = FindPod(facts.pods, pod.name_space, pod.pod);
    for (const deviceplugin::ContainerDevicesHeld& container : pod.containers) {
      std::vector<std::string> slots;
      for (const deviceplugin::HeldDevices& devices : container.devices) {
        if (devices.resource_name == options_.resource_name)
          slots.insert(slots.end(), devices.ids.begin(), devices.ids.end());
      }
      if (slots.empty()) continue;
      holders[Sorted(std::move(slots))].push_back(
          Holder{&pod.name_space, &pod.pod, &container.container, known});
    }
  }
  for (auto& [slots, who] : holders) {
    const auto found = by_slots.find(slots);
    if (found == by_slots.end()) continue;
    // Where a pod that is over still shows beside the one that has its slots now, the latter has
    // the newer allocation.
    const auto rank = [](const Holder& holder) {
      if (holder.known == nullptr) return 1;
      return holder.known->finished() ? 2 : 0;
    };
    std::stable_sort(who.begin(), who.end(),
                     [&](const Holder& a, const Holder& b) { return rank(a) < rank(b); });
    size_t next = 0;
    for (const Holder& holder : who) {
      if (next == found->second.size()) break;
      Bind(found->second[next]->token, holder, false);
      ++next;
    }
  }
}

// Init containers: the kubelet allocates for the containers of a pod in their order and without
// others in between, so an init container's allocation comes right before that of the container
// after it.
void TenantBook::MatchInit(const Facts& facts) {
  std::map<uint64_t, const AllocationRecord*> by_serial;
  for (const auto& [token, record] : *facts.records) by_serial[record.serial] = &record;
  std::map<std::pair<std::string, std::string>, uint64_t> serials;  // Pod UID and container.
  for (const auto& [token, matched] : matched_) {
    const Entry& entry = entries_[token];
    if (!entry.bound.has_value() || entry.bound->uid.empty()) continue;
    serials[{entry.bound->uid, entry.bound->container}] = facts.records->at(token).serial;
  }
  if (facts.pods == nullptr) return;
  for (const auto& [name, pod] : *facts.pods) {
    uint64_t next_serial = 0;  // Of the container after; 0: not known.
    for (auto container = pod.containers.rbegin(); container != pod.containers.rend();
         ++container) {
      if (!AsksAt(*container)) continue;
      if (const auto known = serials.find({pod.uid, container->name}); known != serials.end()) {
        next_serial = known->second;
        continue;
      }
      const auto record = next_serial == 0 ? by_serial.end() : by_serial.find(next_serial - 1);
      next_serial = 0;
      if (container->kind != kube::ContainerKind::kInit || record == by_serial.end()) continue;
      const AllocationRecord& candidate = *record->second;
      if (candidate.slots.size() != container->slots || matched_.contains(candidate.token))
        continue;
      Bind(candidate.token, Holder{&pod.name_space, &pod.name, &container->name, &pod}, true);
      if (matched_.contains(candidate.token)) next_serial = candidate.serial;
    }
  }
}

void TenantBook::Judge(const Facts& facts, const AllocationRecord& record, Entry* entry,
                       bool needed, Nanos now_ns, AllocationPlan* plan) {
  const bool matched = matched_.contains(record.token);
  if (matched) {
    entry->unmatched_ns = 0;
  } else if (entry->unmatched_ns == 0 && facts.held != nullptr &&
             record.serial <= facts.held_serial) {
    entry->unmatched_ns = now_ns;
  }
  const auto say = [&](AllocationState state, const char* why) {
    plan->state = state;
    plan->why = why;
  };
  // Nobody holds it, the pods are known and none of them may still turn out to: it can go.
  const auto over = [&](const char* why, Nanos delay_ns) {
    say(AllocationState::kEnded, why);
    if (matched || needed || entry->unmatched_ns == 0) return;
    if (!facts.pods_synced && !options_.without_pods) return;
    const Nanos at_ns = entry->unmatched_ns + delay_ns;
    if (now_ns >= at_ns) {
      plan->state = AllocationState::kReleasable;
    } else {
      Wake(at_ns);
    }
  };

  if (!entry->bound.has_value()) {
    if (entry->unmatched_ns == 0) return say(AllocationState::kWaiting, "no-pod");
    // Allocated, and never seen in a container: the pod was refused after all, or it is an init
    // container's whose pod the watch does not know yet.
    const Nanos grace_ns = entry->unmatched_ns + options_.unknown_pod_limit_ns;
    if (now_ns < grace_ns && !record.superseded) {
      Wake(grace_ns);
      return say(AllocationState::kWaiting, "no-pod");
    }
    return over("no-pod", options_.orphan_delay_ns);
  }

  const PodRef& bound = *entry->bound;
  plan->pod = bound;
  if (options_.without_pods) {
    if (!matched) return over("pod-gone", options_.release_delay_ns);
    plan->complete = true;
    return say(AllocationState::kLive, "pod");
  }
  const kube::Pod* pod = FindPod(facts.pods, bound.name_space, bound.pod);
  if (pod != nullptr && !bound.uid.empty() && pod->uid != bound.uid) pod = nullptr;
  if (pod != nullptr) {
    entry->seen_pod = true;
    entry->missing_ns = 0;
    if (pod->finished()) return over("finished", options_.release_delay_ns);
    const kube::PodContainer* container = pod->Find(bound.container);
    plan->complete = true;
    plan->started = container != nullptr && !container->container_id.empty();
    return say(AllocationState::kLive, "pod");
  }
  if (!facts.pods_synced) {
    // The API server has not been heard: what the kubelet shows runs, what it does not may.
    return say(AllocationState::kLive, "pods-unknown");
  }
  if (entry->missing_ns == 0) entry->missing_ns = now_ns;
  const Nanos limit_ns = entry->missing_ns + options_.unknown_pod_limit_ns;
  if (!entry->seen_pod && matched && now_ns < limit_ns) {
    // The kubelet was faster than the watch; or it is a static pod without its mirror yet.
    Wake(limit_ns);
    return say(AllocationState::kLive, "pod-unknown");
  }
  return over("pod-gone", options_.release_delay_ns);
}

Plan TenantBook::Join(const Facts& facts, Nanos now_ns) {
  next_change_ns_ = 0;
  matched_.clear();
  std::erase_if(entries_, [&](const auto& entry) { return !facts.records->contains(entry.first); });
  if (facts.held != nullptr) {
    Match(facts);
    MatchInit(facts);
  }

  // Numbers of slots that containers of live pods ask for and have no allocation of: an unbound
  // allocation of as many may be theirs.
  std::set<uint64_t> open_asks;
  std::set<std::string> live_uids;
  if (facts.pods != nullptr) {
    std::set<std::pair<std::string, std::string>> bound;
    for (const auto& [token, entry] : entries_) {
      if (entry.bound.has_value()) bound.insert({entry.bound->uid, entry.bound->container});
    }
    for (const auto& [name, pod] : *facts.pods) {
      live_uids.insert(pod.uid);
      if (pod.finished()) continue;
      for (const kube::PodContainer& container : pod.containers) {
        if (AsksAt(container) && !bound.contains({pod.uid, container.name}))
          open_asks.insert(container.slots);
      }
    }
  }
  std::erase_if(promises_, [&](const auto& kept) { return !live_uids.contains(kept.first); });

  Plan plan;
  std::map<std::tuple<std::string, std::string, std::string, std::string>, std::string> newest;
  for (const auto& [token, record] : *facts.records) {
    AllocationPlan& entry_plan = plan[token];
    Entry& entry = entries_[token];
    entry_plan.serial = record.serial;
    const bool needed = !entry.bound.has_value() && open_asks.contains(record.slots.size());
    Judge(facts, record, &entry, needed, now_ns, &entry_plan);
    if (entry_plan.state != AllocationState::kLive) continue;
    // A kubelet that lost its notes allocates again for a container that has an allocation: the
    // newest is what the container's next start uses.
    const PodRef& pod = entry_plan.pod;
    const auto [other, first] =
        newest.try_emplace({pod.name_space, pod.pod, pod.uid, pod.container}, token);
    if (first) continue;
    std::string& kept = other->second;
    const bool newer = entry_plan.serial > plan[kept].serial;
    AllocationPlan& replaced = newer ? plan[kept] : entry_plan;
    replaced.state = AllocationState::kEnded;
    replaced.why = "replaced";
    if (newer) kept = token;
  }
  std::vector<MemoryAsk> asks;
  for (auto& [token, entry_plan] : plan) {
    const AllocationRecord& record = facts.records->at(token);
    const Entry& entry = entries_[token];
    if (entry_plan.state != AllocationState::kLive && entry_plan.state != AllocationState::kWaiting)
      continue;
    entry_plan.spec = SpecOfSlots(record, entry_plan.pod);
    MemoryAsk ask;
    ask.token = token;
    ask.serial = record.serial;
    ask.gpus = record.gpus;
    ask.share_permille = entry_plan.spec.share_permille();
    ask.init = entry.init || entry_plan.state == AllocationState::kWaiting;
    const kube::Pod* pod = entry_plan.complete
                               ? FindPod(facts.pods, entry_plan.pod.name_space, entry_plan.pod.pod)
                               : nullptr;
    if (pod != nullptr) {
      const kube::PodPromises& promises = PromisesOf(*pod);
      const auto promise = promises.containers.find(entry_plan.pod.container);
      if (promise != promises.containers.end()) {
        ApplyPromise(promise->second, policy_, entry.init, &entry_plan.spec, &entry_plan.notices);
        ask.asked_bytes = promise->second.memory_bytes;
        ask.may_exceed_share =
            NamespaceAllowed(policy_.memory_namespaces, entry_plan.pod.name_space);
      }
      for (const kube::Complaint& complaint : promises.complaints) {
        if (!complaint.container.empty() && complaint.container != entry_plan.pod.container)
          continue;
        entry_plan.notices.push_back(
            Notice{true, "BadAnnotation", "annotation " + complaint.key + " " + complaint.message});
      }
    }
    asks.push_back(std::move(ask));
  }
  for (auto& [token, grant] : ShareMemory(asks, facts.gpu_bytes, policy_)) {
    AllocationPlan& entry_plan = plan[token];
    entry_plan.spec.set_limit_bytes(grant.limit_bytes);
    if (grant.notice.has_value()) {
      grant.notice->message =
          "container " + entry_plan.pod.container + ": " + grant.notice->message;
      entry_plan.notices.push_back(std::move(*grant.notice));
    }
  }
  return plan;
}

}  // namespace rubato::agent
