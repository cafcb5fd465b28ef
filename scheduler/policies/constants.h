// Every constant of the policies, in one place, each with its reason.
//
// Times of the GPU are for a real one; on the software GPU, which runs slower by a factor, they are
// multiplied by it (Dilated). Times of the host (waking a thread, restarting a daemon) are not.
// Numbers called measured are from docs/gpu-facts.md.
#pragma once

#include <cstdint>

#include "base/time.h"
#include "proto/abi/device.h"

namespace rubato::policies {

using base::kMicrosecond;
using base::kMillisecond;
using base::kSecond;
using base::Nanos;

struct Constants {
  // ---- GPU times.
  // Best-effort work ends this long before the earliest release: durations are predicted to about
  // 5 %, and a late marker costs another 10 us. Measured: p99 the same with 90 and 120 us.
  Nanos margin_ns = 90 * kMicrosecond;
  // The pre-touch kernel is submitted this long before the earliest release. The context switch it
  // pays takes 140 us; measured: 200 us before suffice, 60 us do not. The rest is for the thread to
  // wake up.
  Nanos touch_lead_ns = 220 * kMicrosecond;
  // Best-effort work in flight against a real-time tenant that nobody can predict: its job waits
  // for at most this, and 300 us keep a GPU busy through a host's usual hiccups.
  Nanos bound_ns = 300 * kMicrosecond;
  // After the scheduler is lost and no model is valid: nobody learns any more, so there is less
  // to protect, and more to lose in throughput.
  Nanos fallback_bound_ns = 2 * kMillisecond;
  // Assumed for an op that was never measured: most kernels are shorter.
  Nanos unknown_op_ns = 500 * kMicrosecond;
  // A marker costs the host 1 to 2 us and tells the neighbours how far a stream has come: after
  // this much work, or this many ops. Measured: every eighth launch is not noticeable.
  Nanos marker_work_ns = 100 * kMicrosecond;
  uint32_t marker_ops = 8;
  // A pair of timing events costs about 2 us: on one op in 64 it is lost in the noise, and a
  // program of 10,000 launches a second still gives 150 samples.
  uint32_t sample_every = 64;
  // An open job holds the others for at most max(4 MRET, a period, this), and never longer than
  // the limit: four times what its jobs take is no slow job but a stuck one.
  uint32_t hold_mret_factor = 4;
  Nanos hold_floor_ns = 50 * kMillisecond;
  Nanos hold_limit_ns = kSecond;
  // A think time is at most this, or an eighth of the period: it is time that nobody uses.
  Nanos think_limit_ns = 2 * kMillisecond;
  // Where releases are not predicted nobody can tell a pause inside a job from one between jobs
  // for sure, so less is at stake.
  Nanos blind_think_limit_ns = 100 * kMicrosecond;
  // What is added to the gaps seen, at least.
  Nanos think_guard_ns = 10 * kMicrosecond;
  // A wait at the gate ends after this many times the op's predicted duration, but not before the
  // floor: at least one period of most real-time tenants.
  uint64_t expire_factor = 3;
  Nanos expire_floor_ns = 30 * kMillisecond;
  // While a job of at most this length drains, best-effort work may be queued behind it, so that
  // the GPU does not wait for a host that must first fill an empty queue. The job is safe because
  // contexts take turns of 2 ms (measured) and a job's turn begins with its pre-touch or its first
  // kernel; the rest of the turn is for jobs that are longer than usual.
  Nanos queue_behind_ns = 1300 * kMicrosecond;
  // A long copy goes in parts, so that it fills what is left of a window and never runs into a
  // release: about 125 us of an H200's device memory (measured: 1.0 ms for 2 GiB), 320 us of its
  // host link.
  uint64_t copy_part_device_bytes = uint64_t{256} << 20;
  uint64_t copy_part_host_bytes = uint64_t{16} << 20;
  // Work in flight allowed while no real-time tenant is attached; 0: no limit.
  Nanos depth_ns = 0;
  // What the release model adds to an observed spread, at least.
  Nanos jitter_guard_ns = 20 * kMicrosecond;
  // Windows over which a tenant's use is compared with what it declared.
  Nanos hold_window_ns = 2 * kSecond;

  // Blocked by a context switch of the GPU between two processes. Measured: 140 us.
  Nanos switch_ns = 140 * kMicrosecond;
  // Of a device that several real-time tenants share, this much is promised to none of them:
  // between their jobs lie switches that no job's length shows (two are a tenth of a job of 2.8
  // ms), and what is left keeps best-effort tenants alive. A real-time tenant by itself may have it
  // all.
  uint32_t admission_reserve_permille = 100;

  // ---- Host times.
  // A sleeping thread is woken up to 50 us late by its timer's slack, and on an idle core as much
  // later again; it spins for the rest.
  Nanos spin_ns = 120 * kMicrosecond;
  // To sleep and be woken costs about this: shorter waits are spun.
  Nanos sleep_floor_ns = 80 * kMicrosecond;
  // Restarting a daemon and the re-attach of its tenants, who try once a second.
  Nanos lease_ns = 2 * kSecond;
  // How long an op that nobody has run again counts as one that best-effort tenants run.
  Nanos recent_op_ns = 60 * kSecond;
  // A confirmed release model is good for this long, or for 64 periods if that is longer, up to
  // the limit: what best-effort tenants go by after the scheduler has died.
  Nanos validity_floor_ns = 2 * kSecond;
  Nanos validity_limit_ns = 10 * kSecond;

  // The same with all times of the GPU multiplied by `factor` (at least 1).
  Constants Dilated(uint32_t factor) const;
};

// What the device page tells the shims. The UUID and the number of SMs are filled in by the caller.
abi::DeviceConstants ToDeviceConstants(const Constants& constants, abi::Mode mode);

}  // namespace rubato::policies
