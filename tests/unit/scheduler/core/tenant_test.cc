#include "scheduler/core/tenant.h"

#include <gtest/gtest.h>

#include <functional>

#include "scheduler/core/device_uuid.h"

namespace rubato::core {
namespace {

TenantSpec Realtime() {
  TenantSpec spec;
  spec.name = "camera";
  spec.tenant_class = TenantClass::kRealtime;
  spec.period_ns = 10 * base::kMillisecond;
  return spec;
}

TenantSpec BestEffort() {
  TenantSpec spec;
  spec.name = "training";
  spec.tenant_class = TenantClass::kBestEffort;
  return spec;
}

TEST(TenantTest, GoodSpecsPass) {
  EXPECT_TRUE(ValidateSpec(Realtime()).ok());
  EXPECT_TRUE(ValidateSpec(BestEffort()).ok());
  TenantSpec aperiodic = Realtime();
  aperiodic.period_ns = 0;
  EXPECT_TRUE(ValidateSpec(aperiodic).ok());
  TenantSpec slots = Realtime();
  slots.share_permille = 300;
  slots.device_uuids = {"GPU-00112233-4455-6677-8899-aabbccddeeff"};
  slots.weight = 3;  // Its share should it become best-effort.
  EXPECT_TRUE(ValidateSpec(slots).ok());
  slots.refusal_reason = "not-allowed";
  slots.refusal_detail = "namespace shop may not ask for real-time";
  EXPECT_TRUE(ValidateSpec(slots).ok());
}

TEST(TenantTest, BadSpecsAreNamed) {
  struct Case {
    const char* field;
    std::function<void(TenantSpec*)> spoil;
    bool realtime;
  };
  const Case cases[] = {
      {"name", [](TenantSpec* s) { s->name.clear(); }, true},
      {"name", [](TenantSpec* s) { s->name = std::string(129, 'x'); }, true},
      {"name", [](TenantSpec* s) { s->name = "a\nb"; }, true},
      {"pod", [](TenantSpec* s) { s->pod = std::string(300, 'x'); }, true},
      {"tenant_class", [](TenantSpec* s) { s->tenant_class = TenantClass::kFree; }, true},
      {"period_ns", [](TenantSpec* s) { s->period_ns = 1; }, true},
      {"period_ns", [](TenantSpec* s) { s->period_ns = -5; }, true},
      {"period_ns", [](TenantSpec* s) { s->period_ns = 100 * base::kSecond; }, true},
      {"period_ns", [](TenantSpec* s) { s->period_ns = base::kSecond; }, false},
      {"deadline_ns", [](TenantSpec* s) { s->deadline_ns = -1; }, true},
      {"deadline_ns", [](TenantSpec* s) { s->deadline_ns = base::kSecond; }, false},
      {"limit_bytes", [](TenantSpec* s) { s->limit_bytes = ~uint64_t{0}; }, true},
      {"weight", [](TenantSpec* s) { s->weight = 1001; }, true},
      {"weight", [](TenantSpec* s) { s->weight = 1001; }, false},
      {"priority", [](TenantSpec* s) { s->priority = 2; }, false},
      {"overhead_budget_permille", [](TenantSpec* s) { s->overhead_budget_permille = 1001; }, true},
      {"share_permille", [](TenantSpec* s) { s->share_permille = 1001; }, true},
      {"device_uuids", [](TenantSpec* s) { s->device_uuids.assign(17, "GPU-1"); }, true},
      {"device_uuids", [](TenantSpec* s) { s->device_uuids = {""}; }, false},
      {"device_uuids", [](TenantSpec* s) { s->device_uuids = {"GPU\n"}; }, true},
      {"refusal_reason", [](TenantSpec* s) { s->refusal_reason = "Not allowed"; }, true},
      {"refusal_reason", [](TenantSpec* s) { s->refusal_reason = "not-allowed"; }, false},
      {"refusal_reason", [](TenantSpec* s) { s->refusal_reason = std::string(65, 'x'); }, true},
      {"refusal_detail", [](TenantSpec* s) { s->refusal_detail = "alone"; }, true},
  };
  for (const Case& c : cases) {
    TenantSpec spec = c.realtime ? Realtime() : BestEffort();
    c.spoil(&spec);
    const auto result = ValidateSpec(spec);
    ASSERT_FALSE(result.ok()) << c.field;
    EXPECT_NE(result.error().message.find(c.field), std::string::npos) << result.error().message;
    EXPECT_EQ(result.error().code, base::ErrorCode::kInvalid);
  }
}

TEST(TenantTest, TheDeadlineDefaultsToThePeriod) {
  TenantSpec spec = Realtime();
  EXPECT_EQ(EffectiveDeadline(spec), spec.period_ns);
  spec.deadline_ns = 5;
  EXPECT_EQ(EffectiveDeadline(spec), 5);
}

TEST(TenantTest, Uuid) {
  DeviceUuid uuid;
  for (size_t i = 0; i < 16; ++i) uuid.bytes[i] = static_cast<uint8_t>(i * 17);
  EXPECT_EQ(FormatUuid(uuid), "GPU-00112233-4455-6677-8899-aabbccddeeff");
}

}  // namespace
}  // namespace rubato::core
