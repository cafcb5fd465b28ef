// A scheduler's state with sessions made by hand, and time in the test's hand.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "scheduler/daemon/scheduler.h"

namespace rubato::sched::testing {

inline constexpr Nanos kStart = 1000 * base::kSecond;
inline constexpr Nanos kPeriod = 10 * base::kMillisecond;

class SchedulerFixture : public ::testing::Test {
 protected:
  // A session as a process has it: its own mapping of the slot, the pages read-only.
  struct Process {
    OpenedSession opened;
    base::Mapping slot_mapping;
    base::Mapping page_mapping;
    base::Mapping profile_mapping;
    abi::SlotRegion* slot() { return slot_mapping.as<abi::SlotRegion>(); }
    const abi::DeviceRegion* page() { return page_mapping.as<const abi::DeviceRegion>(); }
    const abi::ProfileRegion* profile() { return profile_mapping.as<const abi::ProfileRegion>(); }

    void Job(uint64_t first_op_ns, uint64_t end_ns) {
      abi::JobRecord record{};
      record.first_op_ns = first_op_ns;
      record.end_ns = end_ns;
      slot()->jobs[slot()->heads.job_head % abi::kJobRing] = record;
      ++slot()->heads.job_head;
      slot()->job.first_op_ns = first_op_ns;
      slot()->job.last_end_ns = end_ns;
    }
    void Sample(uint64_t key, uint32_t duration_ns) {
      slot()->samples[slot()->heads.sample_head % abi::kSampleRing] =
          abi::SampleRecord{key, key, duration_ns, 1000, 0, 0};
      ++slot()->heads.sample_head;
    }
  };

  TenantId Add(core::TenantClass tenant_class, const char* name, Nanos period_ns = kPeriod) {
    core::TenantSpec spec;
    spec.name = name;
    spec.tenant_class = tenant_class;
    spec.limit_bytes = 1 << 20;
    if (tenant_class == core::TenantClass::kRealtime) spec.period_ns = period_ns;
    return *scheduler_.AddTenant(spec, kStart);
  }

  // The UUID of a device that Open opens.
  static std::string Uuid(uint8_t device = 1) {
    core::DeviceUuid uuid;
    uuid.bytes[0] = device;
    return core::FormatUuid(uuid);
  }

  Process Open(TenantId tenant, uint8_t device = 1, const ProcessInfo& info = {}) {
    abi::OpenDeviceMessage request{};
    request.uuid[0] = device;
    request.sm_count = 132;
    Process process;
    EXPECT_EQ(scheduler_.OpenDevice(tenant, info, request, std::nullopt, now_ns_, &process.opened),
              abi::Status::kOk);
    process.slot_mapping =
        *base::Mapping::Writable(process.opened.slot_fd, sizeof(abi::SlotRegion));
    process.page_mapping =
        *base::Mapping::ReadOnly(process.opened.page_fd, sizeof(abi::DeviceRegion));
    process.profile_mapping =
        *base::Mapping::ReadOnly(process.opened.profile_fd, sizeof(abi::ProfileRegion));
    EXPECT_TRUE(scheduler_.GoLive(process.opened.id).ok());
    return process;
  }

  void RunJobs(Process* process, int count, Nanos job_ns = base::kMillisecond) {
    for (int i = 0; i < count; ++i) {
      now_ns_ += kPeriod;
      process->Job(static_cast<uint64_t>(now_ns_), static_cast<uint64_t>(now_ns_ + job_ns));
      scheduler_.Poll(now_ns_ + job_ns + base::kMillisecond);
    }
  }

  Scheduler scheduler_{SchedulerOptions{}, kStart};
  Nanos now_ns_ = kStart;
};

}  // namespace rubato::sched::testing
