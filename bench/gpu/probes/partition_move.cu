// What it costs to move a chain of kernels between two partitions (green contexts) at every step,
// with each return code checked and the order of the steps proven.
//
// A way of ordering two streams is timed with empty kernels. Then the same way runs a chain in
// which step i must find i in a word and leaves i + 1, after a delay on one of the two streams: a
// step that overtakes its predecessor is counted. The way "unordered" is the control: it must show
// errors, or the test proves nothing.

#include <cstring>
#include <string>

#include "probe.h"

namespace {

constexpr int kTimedSteps = 4000;
constexpr int kOrderedSteps = 1000;

__global__ void Empty() {}

__global__ void Step(volatile unsigned* word, unsigned expected, unsigned long long delay_ns,
                     unsigned* errors) {
  unsigned long long start, now;
  unsigned seen = *word;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now < start + delay_ns);
  if (seen != expected) atomicAdd(errors, 1);
  *word = expected + 1;
}

enum class Order { kSameStream, kEvents, kGreenEvents, kMemoryOps, kNone };

struct Side {
  CUcontext context = nullptr;  // the context that the stream's events belong to
  CUgreenCtx green = nullptr;
  CUstream stream = nullptr;
  CUevent event = nullptr;
  int sms = 0;
};

// The first refused call of a way: its name and code, kept instead of ending the program.
struct Refusal {
  std::string call;
  CUresult code = CUDA_SUCCESS;
  bool Keep(CUresult result, const char* name) {
    if (result == CUDA_SUCCESS) return true;
    if (code == CUDA_SUCCESS) {
      call = name;
      code = result;
    }
    return false;
  }
};

class Chain {
 public:
  Chain(Order order, Side* sides) : order_(order), sides_(sides) {
    PROBE_CHECK(cuMemAlloc(&word_, 4));
    PROBE_CHECK(cuMemAlloc(&errors_, 4));
    PROBE_CHECK(cuMemAlloc(&ticket_, 4));
    cudaFunction_t f;
    PROBE_CHECK(cudaGetFuncBySymbol(&f, reinterpret_cast<const void*>(Empty)));
    empty_ = reinterpret_cast<CUfunction>(f);
    PROBE_CHECK(cudaGetFuncBySymbol(&f, reinterpret_cast<const void*>(Step)));
    step_ = reinterpret_cast<CUfunction>(f);
  }

  // Runs `steps` steps; false at the first refused call.
  bool Run(int steps, bool check_order, Refusal* refusal) {
    PROBE_CHECK(cuMemsetD32(word_, 0, 1));
    PROBE_CHECK(cuMemsetD32(errors_, 0, 1));
    PROBE_CHECK(cuMemsetD32(ticket_, 0, 1));
    PROBE_CHECK(cuCtxSynchronize());
    int64_t begin = probe::NowNs();
    bool ok = true;
    for (int i = 0; ok && i < steps; ++i) {
      Side& side = sides_[order_ == Order::kSameStream ? 0 : i % 2];
      Side& before = sides_[order_ == Order::kSameStream ? 0 : (i + 1) % 2];
      if (i > 0) ok = WaitFor(before, side, i, refusal);
      ok = ok && Launch(side, i, check_order, refusal);
      ok = ok && Mark(side, i + 1, refusal);
    }
    issued_us_ = (probe::NowNs() - begin) / 1e3 / steps;
    if (ok) {
      for (int i = 0; i < 2; ++i) {
        ok = refusal->Keep(cuStreamSynchronize(sides_[i].stream), "cuStreamSynchronize") && ok;
      }
    }
    step_us_ = (probe::NowNs() - begin) / 1e3 / steps;
    return ok;
  }

  unsigned Errors() {
    unsigned errors = 0;
    PROBE_CHECK(cuMemcpyDtoH(&errors, errors_, 4));
    return errors;
  }
  double step_us() const { return step_us_; }
  double issued_us() const { return issued_us_; }

 private:
  bool Launch(Side& side, int i, bool check_order, Refusal* refusal) {
    if (!check_order) {
      return refusal->Keep(
          cuLaunchKernel(empty_, 1, 1, 1, 32, 1, 1, 0, side.stream, nullptr, nullptr),
          "cuLaunchKernel");
    }
    unsigned expected = i;
    unsigned long long delay_ns = i % 2 == 0 ? 20000 : 0;
    void* params[] = {&word_, &expected, &delay_ns, &errors_};
    return refusal->Keep(cuLaunchKernel(step_, 1, 1, 1, 1, 1, 1, 0, side.stream, params, nullptr),
                         "cuLaunchKernel");
  }

  bool Mark(Side& side, unsigned value, Refusal* refusal) {
    switch (order_) {
      case Order::kEvents:
        return refusal->Keep(cuEventRecord(side.event, side.stream), "cuEventRecord");
      case Order::kGreenEvents:
        return refusal->Keep(cuGreenCtxRecordEvent(side.green, side.event),
                             "cuGreenCtxRecordEvent");
      case Order::kMemoryOps:
        return refusal->Keep(
            cuStreamWriteValue32(side.stream, ticket_, value, CU_STREAM_WRITE_VALUE_DEFAULT),
            "cuStreamWriteValue32");
      default:
        return true;
    }
  }

  bool WaitFor(Side& before, Side& side, unsigned value, Refusal* refusal) {
    switch (order_) {
      case Order::kEvents:
        return refusal->Keep(cuStreamWaitEvent(side.stream, before.event, 0), "cuStreamWaitEvent");
      case Order::kGreenEvents:
        return refusal->Keep(cuGreenCtxWaitEvent(side.green, before.event), "cuGreenCtxWaitEvent");
      case Order::kMemoryOps:
        return refusal->Keep(
            cuStreamWaitValue32(side.stream, ticket_, value, CU_STREAM_WAIT_VALUE_GEQ),
            "cuStreamWaitValue32");
      default:
        return true;
    }
  }

  Order order_;
  Side* sides_;
  CUdeviceptr word_ = 0, errors_ = 0, ticket_ = 0;
  CUfunction empty_ = nullptr, step_ = nullptr;
  double step_us_ = 0, issued_us_ = 0;
};

void Report(const char* name, Order order, Side* sides, bool last) {
  Chain chain(order, sides);
  Refusal refusal;
  double step_us = 0, issued_us = 0;
  int errors = -1;
  if (chain.Run(200, false, &refusal) && chain.Run(kTimedSteps, false, &refusal)) {
    step_us = chain.step_us();
    issued_us = chain.issued_us();
    if (chain.Run(kOrderedSteps, true, &refusal)) errors = static_cast<int>(chain.Errors());
  }
  const char* code_name = nullptr;
  if (refusal.code != CUDA_SUCCESS) {
    // What was issued before the refusal may still run.
    cuCtxSynchronize();
    cuGetErrorName(refusal.code, &code_name);
  }
  std::printf(
      "{\"way\": \"%s\", \"step_us\": %.3f, \"issue_us\": %.3f, \"steps\": %d, "
      "\"order_errors\": %d, \"order_steps\": %d, \"refused\": ",
      name, step_us, issued_us, kTimedSteps, errors, kOrderedSteps);
  if (code_name) {
    std::printf("\"%s: %s\"}", refusal.call.c_str(), code_name);
  } else {
    std::printf("null}");
  }
  std::printf("%s", last ? "" : ", ");
}

}  // namespace

int main() {
  PROBE_CHECK(cudaFree(nullptr));
  CUdevice device;
  CUcontext primary;
  PROBE_CHECK(cuDeviceGet(&device, 0));
  PROBE_CHECK(cuCtxGetCurrent(&primary));

  Side plain[2], green[2];
  for (Side& side : plain) {
    side.context = primary;
    PROBE_CHECK(cuStreamCreate(&side.stream, CU_STREAM_NON_BLOCKING));
    PROBE_CHECK(cuEventCreate(&side.event, CU_EVENT_DISABLE_TIMING));
  }

  CUdevResource all, rest, groups[2];
  PROBE_CHECK(cuDeviceGetDevResource(device, &all, CU_DEV_RESOURCE_TYPE_SM));
  unsigned count = 2;
  unsigned half = all.sm.smCount / 2 / 8 * 8;
  PROBE_CHECK(cuDevSmResourceSplitByCount(groups, &count, &all, &rest, 0, half));
  if (count < 2) {
    std::fprintf(stderr, "the device splits into %u group(s) of %u SMs only\n", count, half);
    return 1;
  }
  double create_ms[2];
  for (int i = 0; i < 2; ++i) {
    CUdevResourceDesc desc;
    PROBE_CHECK(cuDevResourceGenerateDesc(&desc, &groups[i], 1));
    int64_t begin = probe::NowNs();
    PROBE_CHECK(cuGreenCtxCreate(&green[i].green, desc, device, CU_GREEN_CTX_DEFAULT_STREAM));
    create_ms[i] = (probe::NowNs() - begin) / 1e6;
    PROBE_CHECK(
        cuGreenCtxStreamCreate(&green[i].stream, green[i].green, CU_STREAM_NON_BLOCKING, 0));
    PROBE_CHECK(cuCtxFromGreenCtx(&green[i].context, green[i].green));
    green[i].sms = groups[i].sm.smCount;
    // An event belongs to the context that is current at its creation; recording it into a stream
    // of another one is refused.
    PROBE_CHECK(cuCtxPushCurrent(green[i].context));
    PROBE_CHECK(cuEventCreate(&green[i].event, CU_EVENT_DISABLE_TIMING));
    PROBE_CHECK(cuCtxPopCurrent(nullptr));
  }
  // The mistake to look for in older measurements: events of the primary context on green streams.
  Side foreign[2] = {green[0], green[1]};
  for (int i = 0; i < 2; ++i) foreign[i].event = plain[i].event;

  std::printf("{\"sms\": [%d, %d], \"create_ms\": [%.3f, %.3f], \"ways\": [", green[0].sms,
              green[1].sms, create_ms[0], create_ms[1]);
  Report("one stream", Order::kSameStream, plain, false);
  Report("two streams, events", Order::kEvents, plain, false);
  Report("two streams, memory operations", Order::kMemoryOps, plain, false);
  Report("two streams, unordered", Order::kNone, plain, false);
  Report("one green stream", Order::kSameStream, green, false);
  Report("two partitions, events of each", Order::kEvents, green, false);
  Report("two partitions, events of the primary context", Order::kEvents, foreign, false);
  Report("two partitions, green context events", Order::kGreenEvents, green, false);
  Report("two partitions, memory operations", Order::kMemoryOps, green, false);
  Report("two partitions, unordered", Order::kNone, green, true);
  std::printf("]}\n");
  return 0;
}
