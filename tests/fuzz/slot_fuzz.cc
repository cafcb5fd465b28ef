// A slot page with any content, read again and again while it changes, through all that is learnt
// from it.
//
// Input: records of {offset (3 bytes), value (8 bytes)} that are stored into the slot, eight before
// each reading.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "proto/abi/window.h"
#include "scheduler/core/slot_reader.h"
#include "scheduler/policies/profile_learning.h"
#include "scheduler/policies/realtime_task.h"

namespace {

using namespace rubato;  // NOLINT: a fuzz target is a program of one file.

constexpr base::Nanos kStart = 1000 * base::kSecond;

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

void Check(const policies::RealtimeTask& task, base::Nanos now_ns) {
  const abi::ReleaseLine release = task.release_line();
  if ((release.flags & abi::kReleaseValid) != 0 &&
      release.valid_until_ns > static_cast<uint64_t>(now_ns)) {
    Require(abi::ReleaseUsable(release, static_cast<uint64_t>(now_ns)), "a valid line is usable");
    Require(release.touch_lead_ns < release.period_ns, "a touch lies within the period");
    Require(release.early_ns + release.margin_ns < release.period_ns, "others have a window");
  }
  const abi::TenantLine tenant = task.tenant_line();
  Require(tenant.max_hold_ns <= static_cast<uint64_t>(policies::Constants{}.hold_limit_ns),
          "holds are limited");
  Require(tenant.think_ns <= static_cast<uint64_t>(policies::Constants{}.think_limit_ns),
          "think times are limited");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto slot = std::make_unique<abi::SlotRegion>();
  static const auto region = std::make_unique<abi::ProfileRegion>();
  std::memset(slot.get(), 0, sizeof(*slot));
  std::memset(region.get(), 0, sizeof(*region));
  core::TenantSpec spec;
  spec.name = "fuzz";
  spec.tenant_class = core::TenantClass::kRealtime;
  if (size > 0 && (data[0] & 1) != 0) spec.period_ns = 10 * base::kMillisecond;
  policies::RealtimeTask task(spec, core::Mode::kTimeslice, policies::Constants{});
  core::ProfileTable table(region.get());
  core::SlotReader reader(slot.get(), false);
  core::SlotReading reading;
  base::Nanos now_ns = kStart;
  size_t at = 1;
  while (at + 11 <= size) {
    for (int i = 0; i < 8 && at + 11 <= size; ++i, at += 11) {
      size_t offset = data[at] | (static_cast<size_t>(data[at + 1]) << 8) |
                      (static_cast<size_t>(data[at + 2]) << 16);
      offset = offset % (sizeof(abi::SlotRegion) / 8) * 8;
      uint64_t value;
      std::memcpy(&value, data + at + 3, sizeof(value));
      // Half of the values are times around now: anything else is thrown away at the door.
      if ((data[at + 2] & 0x80) != 0) value = static_cast<uint64_t>(now_ns) - value % 100'000'000;
      std::memcpy(reinterpret_cast<std::byte*>(slot.get()) + offset, &value, sizeof(value));
    }
    now_ns += 7 * base::kMillisecond;
    reader.Read(now_ns, &reading);
    Require(reading.jobs.size() <= abi::kJobRing, "no more jobs than the ring holds");
    Require(reading.samples.size() <= abi::kSampleRing, "no more samples than the ring holds");
    Require(reading.used_bytes <= core::kMostBytes, "memory is limited");
    for (const core::JobPiece& job : reading.jobs)
      Require(job.first_op_ns > 0 && job.first_op_ns <= job.end_ns && job.end_ns <= now_ns,
              "jobs lie in the past");
    for (const core::Sample& sample : reading.samples)
      policies::LearnSample(sample, now_ns, &table);
    task.OnReading(1, reading, now_ns);
    task.Update(now_ns);
    Check(task, now_ns);
    Require(table.size() <= abi::kProfileEntries, "the table has its size");
  }
  return 0;
}
