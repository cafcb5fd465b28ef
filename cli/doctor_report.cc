#include "cli/doctor_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/log.h"

namespace rubato::cli {
namespace {

constexpr int kDoctorSchema = 1;

const char* NameOf(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kNote:
      return "note";
    case Verdict::kWarning:
      return "warning";
    case Verdict::kMissing:
      return "missing";
  }
  return "unknown";
}

}  // namespace

bool Healthy(const std::vector<Finding>& findings) {
  return std::none_of(findings.begin(), findings.end(),
                      [](const Finding& finding) { return finding.verdict == Verdict::kMissing; });
}

std::string DoctorTable(const std::vector<Finding>& findings) {
  size_t width = 0;
  for (const Finding& finding : findings) width = std::max(width, finding.check.size());
  std::string text;
  for (const Finding& finding : findings) {
    std::string verdict = NameOf(finding.verdict);
    verdict.resize(std::string("warning").size(), ' ');
    std::string check = finding.check;
    check.resize(width, ' ');
    text += verdict + "  " + check + "  " + base::Printable(finding.detail, 1000) + "\n";
    if (!finding.cure.empty()) {
      text += std::string(verdict.size() + width + 4, ' ') + "-> " +
              base::Printable(finding.cure, 1000) + "\n";
    }
  }
  const auto missing = std::count_if(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.verdict == Verdict::kMissing;
  });
  if (missing == 0) return text + "nothing that is required is missing\n";
  return text + std::to_string(missing) + (missing == 1 ? " requirement is" : " requirements are") +
         " missing\n";
}

std::string DoctorJson(const std::vector<Finding>& findings) {
  using Json = nlohmann::ordered_json;
  Json checks = Json::array();
  for (const Finding& finding : findings) {
    checks.push_back(Json{{"check", finding.check},
                          {"verdict", NameOf(finding.verdict)},
                          {"detail", finding.detail},
                          {"cure", finding.cure}});
  }
  const Json document = {{"schema", kDoctorSchema}, {"ok", Healthy(findings)}, {"checks", checks}};
  return document.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

}  // namespace rubato::cli
