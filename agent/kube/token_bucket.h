// A rate with a burst: so many at once, then one per interval. Pure; time is an argument.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/time.h"

namespace rubato::kube {

class TokenBucket {
 public:
  struct Rate {
    uint32_t burst = 1;
    base::Nanos interval_ns = base::kSecond;  // For one more token.
  };

  explicit TokenBucket(Rate rate) : rate_(rate), tokens_(rate.burst) {}

  bool Take(base::Nanos now_ns) {
    Fill(now_ns);
    if (tokens_ == 0) return false;
    --tokens_;
    return true;
  }
  // When the next token is there; `now_ns` if one is.
  base::Nanos NextNs(base::Nanos now_ns) {
    Fill(now_ns);
    return tokens_ > 0 ? now_ns : filled_ns_ + rate_.interval_ns;
  }
  bool full(base::Nanos now_ns) const {
    TokenBucket later = *this;
    later.Fill(now_ns);
    return later.tokens_ == rate_.burst;
  }

 private:
  void Fill(base::Nanos now_ns) {
    if (filled_ns_ == 0 || now_ns < filled_ns_) filled_ns_ = now_ns;
    const int64_t more = (now_ns - filled_ns_) / rate_.interval_ns;
    if (more >= static_cast<int64_t>(rate_.burst - tokens_)) {
      tokens_ = rate_.burst;
      filled_ns_ = now_ns;
    } else {
      tokens_ += static_cast<uint32_t>(more);
      filled_ns_ += more * rate_.interval_ns;
    }
  }

  Rate rate_;
  uint32_t tokens_;
  base::Nanos filled_ns_ = 0;  // 0: not used yet.
};

}  // namespace rubato::kube
