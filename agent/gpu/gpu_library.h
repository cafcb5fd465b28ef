// A vendor's management library, loaded when it is there: NVML, ROCm SMI, or the software GPU's
// stand-in for NVML.
//
// All calls block and may hang with the driver, so they are made on the thread of GpuWatch alone.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "agent/gpu/snapshot.h"
#include "base/result.h"

namespace rubato::agent {

class GpuLibrary {
 public:
  virtual ~GpuLibrary() = default;
  // An error means that the library as a whole does not answer (no driver, another version of it):
  // it is closed and opened again. A single GPU that is lost is part of the snapshot.
  virtual base::Result<GpuSnapshot> Read() = 0;
};

using GpuLibraryOpener = std::function<base::Result<std::unique_ptr<GpuLibrary>>()>;

// The first of `names` in the usual library folders below `driver_root`, and for "/" wherever the
// loader finds it. kNotFound: it is nowhere; kUnavailable: it is there but has no driver.
base::Result<std::unique_ptr<GpuLibrary>> OpenNvml(const std::string& driver_root);
base::Result<std::unique_ptr<GpuLibrary>> OpenNvmlFile(const std::string& path, GpuVendor vendor);
base::Result<std::unique_ptr<GpuLibrary>> OpenRocmSmi(const std::string& driver_root);

// What OpenNvml and OpenRocmSmi look through, in order; the last entry is the bare name for "/".
std::vector<std::string> LibraryCandidates(const std::string& driver_root, const char* name);

// The NUMA node that the kernel names for a PCI device; -1: none.
int NumaNodeOf(const std::string& pci_bus_id);

}  // namespace rubato::agent
