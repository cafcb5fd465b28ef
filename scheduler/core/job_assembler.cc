#include "scheduler/core/job_assembler.h"

#include <algorithm>
#include <limits>

namespace rubato::core {

void JobAssembler::Take(const std::vector<JobPiece>& pieces, base::Nanos open_first_op_ns,
                        base::Nanos think_ns, base::Nanos now_ns, AssembledJobs* out) {
  out->jobs.clear();
  out->gaps.clear();
  out->open_ns = 0;
  for (const JobPiece& piece : pieces) {
    // Pieces of one session follow each other. One that begins before its predecessor ended is a
    // lie or a torn record, and would let open time be counted twice.
    if (last_.has_value() && piece.first_op_ns < last_->end_ns) continue;
    out->open_ns += piece.end_ns - piece.first_op_ns;
    bool continues = false;
    if (last_.has_value()) {
      const base::Nanos gap_ns = piece.first_op_ns - last_->end_ns;
      out->gaps.push_back(JobGap{gap_ns, piece.first_op_ns});
      continues = pending_.has_value() && (piece.continued || gap_ns < think_ns);
    }
    last_ = piece;
    if (continues) {
      pending_->end_ns = piece.end_ns;
      const uint32_t room = std::numeric_limits<uint32_t>::max() - pending_->op_count;
      pending_->op_count += std::min(room, piece.op_count);
      ++pending_->pieces;
      continue;
    }
    if (pending_.has_value()) out->jobs.push_back(*pending_);
    pending_ = Job{piece.first_op_ns, piece.end_ns, piece.op_count, 1};
  }
  if (!pending_.has_value()) return;
  const base::Nanos next_ns = open_first_op_ns != 0 ? open_first_op_ns : now_ns;
  if (next_ns - pending_->end_ns < think_ns) return;
  out->jobs.push_back(*pending_);
  pending_.reset();
}

}  // namespace rubato::core
