// Where vendors' libraries lie below a driver's root, and what the kernel says of a PCI device.
#include <algorithm>
#include <fstream>

#include "agent/gpu/gpu_library.h"

namespace rubato::agent {

const char* GpuVendorName(GpuVendor vendor) {
  switch (vendor) {
    case GpuVendor::kNvidia:
      return "nvidia";
    case GpuVendor::kAmd:
      return "amd";
    case GpuVendor::kSoftware:
      return "software";
  }
  return "";
}

std::vector<std::string> LibraryCandidates(const std::string& driver_root, const char* name) {
  const std::string root = driver_root == "/" ? "" : driver_root;
  std::vector<std::string> out;
  for (const char* folder :
       {"/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64",
        "/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/local/nvidia/lib64",
        "/opt/rocm/lib"}) {
    out.push_back(root + folder + "/" + name);
  }
  // The loader knows what an administrator or a container runtime has put elsewhere.
  if (root.empty()) out.emplace_back(name);
  return out;
}

int NumaNodeOf(const std::string& pci_bus_id) {
  if (pci_bus_id.empty() || pci_bus_id.find('/') != std::string::npos) return -1;
  std::ifstream file("/sys/bus/pci/devices/" + pci_bus_id + "/numa_node");
  int node = -1;
  if (!(file >> node) || node < 0) return -1;
  return node;
}

}  // namespace rubato::agent
