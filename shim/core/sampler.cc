#include "shim/core/sampler.h"

#include "shim/core/attach.h"
#include "shim/core/gate.h"
#include "shim/core/sys.h"

namespace rubato::shim {

Sampler* NewSampler() {
  return static_cast<Sampler*>(MapZeroed(sizeof(Sampler)));
}

namespace {

// An op of this length counts as two towards the next sample, one twice as long as three.
constexpr uint64_t kSampleWorkNs = 100'000;

int TakePair(Sampler* sampler) {
  for (int i = 0; i < kSamplePairs; ++i) {
    uint32_t idle = 0;
    if (__atomic_compare_exchange_n(&sampler->pairs[i].state, &idle, 1u, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_RELAXED)) {
      return i;
    }
  }
  return -1;
}

bool MakeEvents(const Driver& driver, SamplePair* pair) {
  if (pair->begin == 0 && driver.event_create(&pair->begin) != 0) pair->begin = 0;
  if (pair->end == 0 && driver.event_create(&pair->end) != 0) pair->end = 0;
  return pair->begin != 0 && pair->end != 0;
}

}  // namespace

bool SampleDue(DeviceSession* session, StreamState* stream, uint64_t expected_ns) {
  const uint64_t weight = 1 + expected_ns / kSampleWorkNs;
  const uint32_t left = abi::LoadRelaxed(stream->until_sample);
  if (left > weight) {
    abi::StoreRelaxed(stream->until_sample, static_cast<uint32_t>(left - weight));
    return false;
  }
  const uint32_t every =
      abi::LoadRelaxed(abi::LoadAcquire(session->view)->page->constants.sample_every);
  if (every == 0) return false;
  // xorshift32; from a half to one and a half intervals.
  uint32_t random = abi::LoadRelaxed(stream->random);
  if (random == 0) random = 0x9e3779b9u;
  random ^= random << 13;
  random ^= random >> 17;
  random ^= random << 5;
  abi::StoreRelaxed(stream->random, random);
  abi::StoreRelaxed(stream->until_sample, every / 2 + random % every + 1);
  return true;
}

int BeginSample(const Driver& driver, DeviceSession* session, Handle stream, abi::OpKind kind,
                uint64_t key, uint64_t base_key, uint64_t expected_ns) {
  Sampler* sampler = session->sampler;
  if (sampler == nullptr || abi::LoadRelaxed(sampler->failed) != 0) return -1;
  if (abi::LoadRelaxed(g_state.active_captures) != 0 || driver.event_create == nullptr ||
      driver.event_record == nullptr || driver.event_elapsed_us == nullptr) {
    return -1;
  }
  const int index = TakePair(sampler);
  if (index < 0) return -1;
  SamplePair* pair = &sampler->pairs[index];
  if (!MakeEvents(driver, pair)) {
    abi::StoreRelaxed(sampler->failed, 1u);
    abi::StoreRelease(pair->state, 0u);
    return -1;
  }
  pair->kind = static_cast<uint32_t>(kind);
  pair->key = key;
  pair->base_key = base_key;
  pair->expected_ns = expected_ns;
  pair->submitted_ns = NowNs();
  if (driver.event_record(pair->begin, stream) != 0) {
    // A stream of another context, say: this op cannot be measured with these events.
    abi::StoreRelease(pair->state, 0u);
    return -1;
  }
  return index;
}

void EndSample(const Driver& driver, DeviceSession* session, int index, Handle stream, bool ok) {
  if (index < 0 || index >= kSamplePairs) return;
  Sampler* sampler = session->sampler;
  SamplePair* pair = &sampler->pairs[index];
  if (!ok || driver.event_record(pair->end, stream) != 0) {
    abi::StoreRelease(pair->state, 0u);
    return;
  }
  const GateView view = ReadNeighbours(*session, NowNs());
  pair->clean_until_ns = view.closed || view.others_ns != 0 ? 0 : view.until_ns;
  __atomic_fetch_add(&sampler->pending, 1u, __ATOMIC_RELAXED);
  abi::StoreRelease(pair->state, 2u);
}

void CollectSamples(const Driver& driver, DeviceSession* session, int most) {
  Sampler* sampler = session->sampler;
  if (sampler == nullptr || abi::LoadRelaxed(sampler->pending) == 0) return;
  if (abi::LoadRelaxed(g_state.active_captures) != 0) return;
  uint32_t idle = 0;
  if (!__atomic_compare_exchange_n(&sampler->collecting, &idle, 1u, false, __ATOMIC_ACQUIRE,
                                   __ATOMIC_RELAXED)) {
    return;
  }
  for (int i = 0; i < kSamplePairs && most > 0; ++i) {
    SamplePair* pair = &sampler->pairs[i];
    if (abi::LoadAcquire(pair->state) != 2) continue;
    --most;
    const int ready = driver.event_query(pair->end);
    if (ready == kNotReady) continue;
    if (ready != 0) pair->begin = pair->end = 0;  // Their context is gone.
    double microseconds = 0;
    const bool measured = ready == 0 &&
                          driver.event_elapsed_us(pair->begin, pair->end, &microseconds) == 0 &&
                          microseconds >= 0 && microseconds < 1e9;
    if (measured) {
      const double nanoseconds = microseconds * 1e3;
      abi::SampleRecord record{};
      record.key = pair->key;
      record.base_key = pair->base_key;
      record.duration_ns =
          nanoseconds >= 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(nanoseconds);
      record.sm_permille = 1000;
      record.kind = pair->kind;
      // Seen done only after a neighbour may have begun, and longer than expected: it may have
      // waited for that neighbour in the middle.
      const bool late = NowNs() > pair->clean_until_ns;
      if (pair->clean_until_ns == 0 ||
          (late && nanoseconds > 1.25 * static_cast<double>(pair->expected_ns))) {
        record.flags |= abi::kSampleDisturbed;
        Count(session, abi::Counter::kSamplesDiscarded);
      }
      abi::SlotRegion& slot = *session->slot;
      const uint64_t head = abi::LoadRelaxed(slot.heads.sample_head);
      slot.samples[head % abi::kSampleRing] = record;
      abi::StoreRelease(slot.heads.sample_head, head + 1);
      Count(session, abi::Counter::kSamples);
    }
    __atomic_fetch_sub(&sampler->pending, 1u, __ATOMIC_RELAXED);
    abi::StoreRelease(pair->state, 0u);
  }
  abi::StoreRelease(sampler->collecting, 0u);
}

void DropEvents(Sampler* sampler) {
  for (SamplePair& pair : sampler->pairs) {
    // A pair that another thread has open or collects is left to it: its next driver call fails,
    // and it is dropped then.
    const uint32_t state = abi::LoadAcquire(pair.state);
    if (state == 2) __atomic_fetch_sub(&sampler->pending, 1u, __ATOMIC_RELAXED);
    pair.begin = 0;
    pair.end = 0;
    abi::StoreRelease(pair.state, 0u);
  }
}

void AnnounceName(DeviceSession* session, uint64_t name_hash, const char* name) {
  Sampler* sampler = session->sampler;
  if (sampler == nullptr) return;
  // Names are announced once each, off the launch path: worth a short wait, not a long one.
  uint32_t idle = 0;
  for (int attempt = 0; !__atomic_compare_exchange_n(&sampler->announcing, &idle, 1u, false,
                                                     __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
       ++attempt) {
    if (attempt == 1000) return;
    idle = 0;
    CpuRelax();
  }
  abi::SlotRegion& slot = *session->slot;
  const uint64_t head = abi::LoadRelaxed(slot.heads.name_head);
  abi::NameRecord& record = slot.names[head % abi::kNameRing];
  abi::StoreRelaxed(record.name_hash, name_hash);
  unsigned i = 0;
  for (; i + 1 < sizeof(record.name) && name[i] != '\0'; ++i) record.name[i] = name[i];
  record.name[i] = '\0';
  abi::StoreRelease(slot.heads.name_head, head + 1);
  abi::StoreRelease(sampler->announcing, 0u);
}

}  // namespace rubato::shim
