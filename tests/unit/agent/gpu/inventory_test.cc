#include "agent/gpu/inventory.h"

#include <gtest/gtest.h>

namespace rubato::agent {
namespace {

using base::kSecond;
using base::Nanos;

class InventoryTest : public ::testing::Test {
 protected:
  InventoryTest() {
    rules_.ignored_xids = {13, 31};
    rules_.recovery_ns = 30 * kSecond;
    inventory_.SetRules(rules_);
    gpus_.resize(2);
    for (uint32_t i = 0; i < 2; ++i) {
      gpus_[i].index = i;
      gpus_[i].uuid = i == 0 ? "GPU-a" : "GPU-b";
      gpus_[i].total_bytes = 1000;
      gpus_[i].pci_bus_id = i == 0 ? "0000:3a:00.0" : "0000:3b:00.0";
    }
  }

  bool Read(std::vector<XidEvent> xids = {}) {
    GpuReport report;
    report.snapshot = GpuSnapshot{now_ns_, "NVML", "580", gpus_, std::move(xids)};
    return inventory_.Report(report, now_ns_);
  }
  bool Fail(const std::string& trouble, bool hung = false) {
    GpuReport report;
    report.trouble = trouble;
    report.hung = hung;
    return inventory_.Report(report, now_ns_);
  }
  const KnownGpu& Gpu(const std::string& uuid = "GPU-a") { return *inventory_.Find(uuid); }

  GpuInventory::Rules rules_;
  GpuInventory inventory_;
  std::vector<GpuReading> gpus_;
  Nanos now_ns_ = 1000 * kSecond;
};

TEST_F(InventoryTest, NothingIsKnownBeforeTheFirstAnswer) {
  EXPECT_FALSE(inventory_.ready());
  Fail("no driver");
  EXPECT_FALSE(inventory_.ready());
  EXPECT_EQ(inventory_.trouble(), "no driver");
  EXPECT_TRUE(Read());
  EXPECT_TRUE(inventory_.ready());
  ASSERT_EQ(inventory_.gpus().size(), 2u);
  EXPECT_TRUE(Gpu().healthy);
  EXPECT_FALSE(Gpu().withheld);
  EXPECT_FALSE(Read()) << "nothing new";
}

TEST_F(InventoryTest, IncludeAndExcludeByUuidOrIndex) {
  rules_.include = {"gpu-B"};
  inventory_.SetRules(rules_);
  Read();
  EXPECT_EQ(Gpu("GPU-a").withheld_reason, "not-included");
  EXPECT_FALSE(Gpu("GPU-b").withheld);
  rules_.include = {};
  rules_.exclude = {"1"};
  inventory_.SetRules(rules_);
  EXPECT_FALSE(Gpu("GPU-a").withheld);
  EXPECT_EQ(Gpu("GPU-b").withheld_reason, "excluded");
}

TEST_F(InventoryTest, MigIsWithheld) {
  gpus_[0].mig_enabled = true;
  Read();
  EXPECT_EQ(Gpu().withheld_reason, "mig");
  gpus_[0].mig_enabled = false;
  EXPECT_TRUE(Read());
  EXPECT_FALSE(Gpu().withheld);
}

TEST_F(InventoryTest, WhatAnotherPluginHandedOutIsWithheld) {
  Read();
  EXPECT_TRUE(inventory_.SetForeign({"GPU-a::3"}));
  EXPECT_EQ(Gpu("GPU-a").withheld_reason, "other-plugin");
  EXPECT_FALSE(Gpu("GPU-b").withheld);
  EXPECT_FALSE(inventory_.SetForeign({"GPU-a::3"}));
  EXPECT_TRUE(inventory_.SetForeign({"0000:3B:00.0"}));
  EXPECT_FALSE(Gpu("GPU-a").withheld);
  EXPECT_EQ(Gpu("GPU-b").withheld_reason, "other-plugin");
  inventory_.SetForeign({});
  EXPECT_FALSE(Gpu("GPU-b").withheld);
}

TEST_F(InventoryTest, AHungDriverMakesEveryGpuUnhealthyUntilItReturnsForAWhile) {
  Read();
  EXPECT_TRUE(Fail("the driver has not answered for 10s", true));
  EXPECT_EQ(Gpu("GPU-a").health_reason, "driver-hung");
  EXPECT_EQ(Gpu("GPU-b").health_reason, "driver-hung");
  EXPECT_TRUE(inventory_.hung());
  now_ns_ += kSecond;
  Read();
  EXPECT_FALSE(Gpu().healthy) << "one answer is no recovery";
  now_ns_ += 28 * kSecond;
  Read();
  EXPECT_FALSE(Gpu().healthy);
  now_ns_ += 2 * kSecond;
  EXPECT_TRUE(Read());
  EXPECT_TRUE(Gpu().healthy);
}

TEST_F(InventoryTest, ADriverThatIsAwayMakesGpusUnhealthyAndForgetsNone) {
  Read();
  EXPECT_TRUE(Fail("NVML finds no driver"));
  ASSERT_EQ(inventory_.gpus().size(), 2u);
  EXPECT_EQ(Gpu().health_reason, "driver-away");
  EXPECT_EQ(Gpu().reading.total_bytes, 1000u);
}

TEST_F(InventoryTest, ALostGpuIsUnhealthyAndItsNeighbourIsNot) {
  Read();
  gpus_[0].lost = "GPU is lost";
  gpus_[0].total_bytes = 0;
  Read();
  EXPECT_EQ(Gpu("GPU-a").health_reason, "lost");
  EXPECT_EQ(Gpu("GPU-a").reading.total_bytes, 1000u) << "shares of it are still known";
  EXPECT_TRUE(Gpu("GPU-b").healthy);
}

TEST_F(InventoryTest, AGpuThatVanishesIsUnhealthyAndMayComeBack) {
  Read();
  const std::vector<GpuReading> both = gpus_;
  gpus_.pop_back();
  EXPECT_TRUE(Read());
  EXPECT_EQ(Gpu("GPU-b").health_reason, "gone");
  gpus_ = both;
  Read();
  now_ns_ += 31 * kSecond;
  Read();
  EXPECT_TRUE(Gpu("GPU-b").healthy);
}

TEST_F(InventoryTest, AnXidMakesItsGpuUnhealthyForAWhile) {
  Read();
  Read({{"GPU-a", 56}});
  EXPECT_EQ(Gpu("GPU-a").health_reason, "xid-56");
  EXPECT_TRUE(Gpu("GPU-b").healthy);
  now_ns_ += 29 * kSecond;
  Read({{"GPU-a", 56}});
  now_ns_ += 29 * kSecond;
  Read();
  EXPECT_FALSE(Gpu("GPU-a").healthy) << "the quiet time starts anew";
  now_ns_ += 2 * kSecond;
  Read();
  EXPECT_TRUE(Gpu("GPU-a").healthy);
  EXPECT_EQ(Gpu("GPU-a").xids_total.at(56), 2u);
}

TEST_F(InventoryTest, AnXidOfAProgramIsCountedAndNoMore) {
  Read();
  Read({{"GPU-a", 31}});
  EXPECT_TRUE(Gpu("GPU-a").healthy);
  EXPECT_EQ(Gpu("GPU-a").xids_total.at(31), 1u);
}

TEST_F(InventoryTest, AnXidThatNamesNoGpuMayBeOfAny) {
  Read();
  Read({{"", 56}});
  EXPECT_FALSE(Gpu("GPU-a").healthy);
  EXPECT_FALSE(Gpu("GPU-b").healthy);
}

TEST_F(InventoryTest, AnXidThatNeedsAResetHealsByThatAlone) {
  Read();
  Read({{"GPU-a", 79}});
  now_ns_ += 3600 * kSecond;
  Read();
  EXPECT_EQ(Gpu("GPU-a").health_reason, "xid-79");
  gpus_[0].lost = "GPU is lost";
  Read();
  EXPECT_EQ(Gpu("GPU-a").health_reason, "lost");
  gpus_[0].lost = "";
  Read();
  now_ns_ += 31 * kSecond;
  Read();
  EXPECT_TRUE(Gpu("GPU-a").healthy);
}

TEST_F(InventoryTest, TimeAloneHealsThroughTick) {
  Read();
  Fail("away");
  Read();
  EXPECT_FALSE(Gpu().healthy);
  EXPECT_TRUE(inventory_.Tick(now_ns_ + 31 * kSecond));
  EXPECT_TRUE(Gpu().healthy);
}

}  // namespace
}  // namespace rubato::agent
