// Puts the pieces of one session's jobs together.
//
// A session closes a job whenever a synchronising call returns with nothing outstanding; an op that
// follows within the think time goes on with it, as a new piece that says so. This makes whole jobs
// of the pieces, tells how long the gaps between them were (the think time is learnt from that),
// and how long the session was open in all. Pure; one per session.
#pragma once

#include <optional>
#include <vector>

#include "scheduler/core/job.h"
#include "scheduler/core/slot_reader.h"

namespace rubato::core {

struct JobGap {
  base::Nanos gap_ns;  // From a piece's end to the next piece's first op,
  base::Nanos at_ns;   // which is at this time.
};

struct AssembledJobs {
  std::vector<Job> jobs;     // Complete, in order.
  std::vector<JobGap> gaps;  // In order.
  base::Nanos open_ns = 0;   // Open time of the pieces, without the gaps.
};

class JobAssembler {
 public:
  // Takes new pieces. A job is complete when another one has begun, or `think_ns` after its last
  // end if no op has followed by `now_ns`. `open_first_op_ns` is the beginning of the job that is
  // open now, or 0. `out` is overwritten.
  void Take(const std::vector<JobPiece>& pieces, base::Nanos open_first_op_ns, base::Nanos think_ns,
            base::Nanos now_ns, AssembledJobs* out);

 private:
  std::optional<Job> pending_;
  std::optional<JobPiece> last_;
};

}  // namespace rubato::core
