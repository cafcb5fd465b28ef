// A steady tenant: 2 ms of short kernels at a time, a line "round N" about every 50 ms, until its
// stdin ends. A wrong value or an error ends it with a code other than 0.
//
// usage: worker [PERIOD_US]     with a period: one batch per period; without: one after another

#include <poll.h>
#include <unistd.h>

#include "check.h"

namespace {

__global__ void Add(unsigned* word, unsigned long long ns) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now < start + ns);
  *word += 1;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t period_ns = argc > 1 ? std::atoll(argv[1]) * 1000 : 0;
  unsigned* word;
  MUST(cudaMalloc(&word, 4));
  MUST(cudaMemset(word, 0, 4));
  unsigned expected = 0;
  int64_t release = check::NowNs();
  for (int round = 0;; ++round) {
    int64_t until = check::NowNs() + 50'000'000;
    while (check::NowNs() < until) {
      if (period_ns > 0) {
        release += period_ns;
        const timespec t = {release / 1'000'000'000, release % 1'000'000'000};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr);
      }
      for (int i = 0; i < 20; ++i) Add<<<1, 1>>>(word, 100'000);
      expected += 20;
      MUST(cudaDeviceSynchronize());
    }
    unsigned value = 0;
    MUST(cudaMemcpy(&value, word, 4, cudaMemcpyDeviceToHost));
    if (value != expected) {
      std::fprintf(stderr, "round %d: %u instead of %u\n", round, value, expected);
      return 1;
    }
    std::printf("round %d\n", round);
    std::fflush(stdout);
    pollfd in = {STDIN_FILENO, POLLIN, 0};
    if (poll(&in, 1, 0) > 0) {
      char c;
      if (read(STDIN_FILENO, &c, 1) <= 0) break;
    }
  }
  return 0;
}
