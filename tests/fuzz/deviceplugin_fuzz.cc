// What the device plugin reads from its records file and from the kubelet: any text as records, as
// one slot, and as the slots of a request, one per line.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "deviceplugin/allocation.h"
#include "deviceplugin/allocation_store.h"
#include "deviceplugin/preference.h"
#include "deviceplugin/slot.h"

namespace {

using namespace rubato::deviceplugin;  // NOLINT: a fuzz target is a program of one file.

constexpr uint32_t kSlots = 4;

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

std::vector<Gpu> MakeGpus() {
  std::vector<Gpu> gpus(3);
  for (uint32_t i = 0; i < gpus.size(); ++i) {
    gpus[i].uuid = std::string(1, static_cast<char>('a' + i));
    gpus[i].index = i;
  }
  gpus[2].healthy = false;
  return gpus;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);

  if (auto parsed = ParseRecords(text); parsed.ok()) {
    auto again = ParseRecords(FormatRecords(parsed->records, parsed->next_serial));
    Require(again.ok(), "what was read can be written and read again");
    Require(again->records == parsed->records, "it says the same");
    for (const auto& [token, record] : parsed->records)
      Require(IsToken(token) && !record.slots.empty(), "a record is whole");
  }

  if (auto slot = ParseSlotId(text); slot.ok())
    Require(FormatSlotId(slot->uuid, slot->number) == text, "a slot has one name");

  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  const std::vector<Gpu> gpus = MakeGpus();
  const auto judged = JudgeAllocation(lines, gpus, kSlots);
  if (const auto* grant = std::get_if<Grant>(&judged)) {
    Require(grant->slots.size() == lines.size(), "all of it is granted");
    for (const Gpu& gpu : grant->gpus) Require(gpu.healthy, "a healthy GPU is granted");
    if (grant->gpus.size() > 1)
      Require(grant->slots.size() == grant->gpus.size() * kSlots, "several GPUs are whole");
  }
  const auto half = static_cast<std::ptrdiff_t>(lines.size() / 2);
  const std::vector<std::string> must(lines.begin(), lines.begin() + half);
  const auto wanted = static_cast<int32_t>(size % 16);
  for (const Packing packing : {Packing::kPacked, Packing::kSpread}) {
    const auto advice = PreferSlots(gpus, kSlots, packing, {lines, must, wanted});
    if (advice.empty()) continue;
    Require(advice.size() == static_cast<size_t>(wanted), "advice has the size asked for");
    Require(std::holds_alternative<Grant>(JudgeAllocation(advice, gpus, kSlots)),
            "advice would be granted");
  }
  return 0;
}
