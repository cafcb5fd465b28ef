// The findings of `rubato doctor` and how they are shown. Pure.
#pragma once

#include <string>
#include <vector>

namespace rubato::cli {

enum class Verdict {
  kOk,
  kNote,     // Nothing to do, worth knowing.
  kWarning,  // Works, but not as it should.
  kMissing,  // Rubato cannot work without it.
};

struct Finding {
  std::string check;  // A stable key: "cuda-driver".
  Verdict verdict = Verdict::kOk;
  std::string detail;
  std::string cure;  // Empty if there is nothing to do.
};

// True if nothing that is required is missing.
bool Healthy(const std::vector<Finding>& findings);

std::string DoctorTable(const std::vector<Finding>& findings);
// Documented in docs/cli.md. Ends with a newline.
std::string DoctorJson(const std::vector<Finding>& findings);

}  // namespace rubato::cli
