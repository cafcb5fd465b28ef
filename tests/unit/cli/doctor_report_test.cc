#include "cli/doctor_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace rubato::cli {
namespace {

const std::vector<Finding> kFindings = {
    {"kernel", Verdict::kOk, "works", ""},
    {"mps", Verdict::kNote, "not found", ""},
    {"metrics-port", Verdict::kWarning, "in use", "choose another"},
};

TEST(DoctorReport, OnlyWhatIsMissingMakesItIll) {
  EXPECT_TRUE(Healthy({}));
  EXPECT_TRUE(Healthy(kFindings));
  std::vector<Finding> ill = kFindings;
  ill.push_back({"gpus", Verdict::kMissing, "no GPU", "buy one"});
  EXPECT_FALSE(Healthy(ill));
  EXPECT_NE(DoctorTable(ill).find("1 requirement is missing"), std::string::npos);
}

TEST(DoctorReport, TableHasALineForEachAndTheCureBelow) {
  EXPECT_EQ(DoctorTable(kFindings),
            "ok       kernel        works\n"
            "note     mps           not found\n"
            "warning  metrics-port  in use\n"
            "                       -> choose another\n"
            "nothing that is required is missing\n");
}

TEST(DoctorReport, JsonHasTheDocumentedKeys) {
  const nlohmann::json json = nlohmann::json::parse(DoctorJson(kFindings));
  EXPECT_EQ(json.at("schema"), 1);
  EXPECT_EQ(json.at("ok"), true);
  ASSERT_EQ(json.at("checks").size(), 3u);
  EXPECT_EQ(json["checks"][2], (nlohmann::json{{"check", "metrics-port"},
                                               {"verdict", "warning"},
                                               {"detail", "in use"},
                                               {"cure", "choose another"}}));
}

}  // namespace
}  // namespace rubato::cli
