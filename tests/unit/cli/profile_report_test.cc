#include "cli/profile_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace rubato::cli {
namespace {

control::ListProfilesResponse Profiles() {
  control::ListProfilesResponse profiles;
  control::Profile* row = profiles.add_profiles();
  row->set_device_name("Some GPU");
  row->set_sm_count(132);
  row->set_key(0xabcu);
  row->set_kind("kernel");
  row->set_name("gemm\x1b[31m");
  row->set_duration_ns(1'650'000);
  row->set_max_ns(1'700'000);
  row->set_spread_ns(12'000);
  row->set_samples(42);
  row->set_last_seen_s(1000);
  profiles.mutable_store()->set_path("/s/profiles.sqlite");
  profiles.mutable_store()->set_usable(true);
  profiles.mutable_store()->set_entries(1);
  return profiles;
}

TEST(ProfileReport, TheTableNamesEverything) {
  const std::string table = ProfileTable(Profiles(), 1000 + 7200);
  for (const char* part : {"Some GPU", "0000000000000abc", "kernel", "1.65ms", "1.7ms", "12us",
                           "42", "2 h", "gemm?[31m", "/s/profiles.sqlite: 1 entry\n"}) {
    EXPECT_NE(table.find(part), std::string::npos) << part << "\n" << table;
  }
}

TEST(ProfileReport, AnEmptyStoreAndNone) {
  control::ListProfilesResponse profiles;
  EXPECT_NE(ProfileTable(profiles, 0).find("no profile store"), std::string::npos);
  profiles.mutable_store()->set_path("/s");
  EXPECT_NE(ProfileTable(profiles, 0).find("not usable"), std::string::npos);
  EXPECT_NE(ProfileTable(profiles, 0).find("nothing is known yet"), std::string::npos);
}

TEST(ProfileReport, JsonHasTheSame) {
  const auto json = nlohmann::json::parse(ProfileJson(Profiles()));
  EXPECT_EQ(json["store"]["entries"], 1);
  EXPECT_EQ(json["store"]["usable"], true);
  ASSERT_EQ(json["profiles"].size(), 1u);
  EXPECT_EQ(json["profiles"][0]["key"], "0000000000000abc");
  EXPECT_EQ(json["profiles"][0]["duration_ns"], 1'650'000);
  EXPECT_EQ(json["profiles"][0]["samples"], 42);
}

TEST(ProfileReport, TheSummaryIsOfTheOneTenant) {
  control::GetStatusResponse status;
  for (const char* socket : {"/a", "/b"}) {
    control::TenantStatus* tenant = status.add_tenants();
    tenant->set_attach_socket_path(socket);
    control::TenantDeviceStatus* device = tenant->add_devices();
    device->set_profiled_ops(socket[1] == 'a' ? 9 : 5);
    device->set_profiled_new_ops(4);
    device->set_samples_total(77);
  }
  status.mutable_profile_store()->set_path("/s");
  status.mutable_profile_store()->set_usable(true);
  EXPECT_EQ(ProfileSummary(status, "/b"),
            "77 measurements of 5 operations, 4 of them new; kept in /s");
  status.mutable_profile_store()->set_usable(false);
  EXPECT_NE(ProfileSummary(status, "/b").find("until the scheduler ends"), std::string::npos);
  EXPECT_NE(ProfileSummary(status, "/c").find("no operation"), std::string::npos);
}

TEST(ProfileReport, WhoRunsIsNamed) {
  control::GetStatusResponse status;
  EXPECT_EQ(ProgramsOn(status), "");
  control::TenantStatus* tenant = status.add_tenants();
  tenant->mutable_spec()->set_name("camera");
  EXPECT_EQ(ProgramsOn(status), "");
  tenant->set_sessions(1);
  EXPECT_EQ(ProgramsOn(status), "tenant camera");
}

}  // namespace
}  // namespace rubato::cli
