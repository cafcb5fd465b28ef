// What a container is given with its slots: shim, socket directory, devices, environment.
//
// The kubelet keeps this answer and uses it at every restart of the container, so it names nothing
// that is used up. All host paths are the node's, as its container runtime sees them. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "deviceplugin/allocation.h"
#include "deviceplugin/gpu.h"

namespace rubato::deviceplugin {

// How NVIDIA's container toolkit learns which GPUs to bring in. (AMD needs no toolkit.)
enum class DeviceInjection : uint8_t {
  kEnvvar,          // NVIDIA_VISIBLE_DEVICES: the runtime class or default runtime is NVIDIA's.
  kCdiAnnotations,  // cdi.k8s.io/...: container runtimes older than the field.
  kCdi,             // The CDI field of the answer: Kubernetes 1.29, containerd 1.7.2 or CRI-O 1.28.
};

// How the shim gets into every process of the container.
enum class ShimInjection : uint8_t {
  kPreloadFile,  // /etc/ld.so.preload.
  kEnv,          // LD_PRELOAD, which a pod's own LD_PRELOAD replaces.
};

struct AnswerOptions {
  DeviceInjection device_injection = DeviceInjection::kEnvvar;
  ShimInjection shim_injection = ShimInjection::kPreloadFile;

  // Folder on the host with librubato-{cuda,hip}.so and ld.so.preload.{cuda,hip}, named by their
  // content. Empty: none is installed, and every allocation is refused.
  std::string shim_directory;

  // NVIDIA: the value of NVIDIA_DRIVER_CAPABILITIES. Empty: left to the image.
  std::string driver_capabilities = "compute,utility";
  // NVIDIA: name the device nodes as well, so that a reload of systemd keeps them accessible and
  // no privileged runtime hook is needed for the device cgroup.
  bool pass_device_nodes = false;
  std::string cdi_kind = "nvidia.com/gpu";
  std::string cdi_annotation_prefix = "cdi.k8s.io/";

  // Software GPU: folder on the host with its stand-ins for the vendors' libraries, and folder with
  // the socket of its device process. Both empty on real GPUs.
  std::string software_library_directory;
  std::string software_device_directory;

  // NVIDIA and software GPU, modes hybrid and mps: pipe directory of the MPS control daemon, seen
  // by containers at the same path, and the folder they see as /dev/shm. Empty: no mount.
  std::string mps_pipe_directory;
  std::string mps_shm_directory;

  bool operator==(const AnswerOptions&) const = default;
};

struct AnswerMount {
  std::string container_path;
  std::string host_path;
  bool read_only = true;
  bool operator==(const AnswerMount&) const = default;
};

struct Answer {
  std::map<std::string, std::string> environment;
  std::vector<AnswerMount> mounts;
  std::vector<std::string> device_nodes;  // At the same path in the container, read and write.
  std::map<std::string, std::string> annotations;
  std::vector<std::string> cdi_devices;
};

// Where containers see things.
inline constexpr const char kContainerSocketDirectory[] = "/run/rubato";
inline constexpr const char kContainerShimDirectory[] = "/usr/local/lib/rubato";
inline constexpr const char kContainerPreloadFile[] = "/etc/ld.so.preload";
inline constexpr const char kContainerSoftwareLibraries[] = "/usr/local/lib/rubato/softgpu";
inline constexpr const char kContainerSoftwareDevice[] = "/run/rubato-softgpu";

// File names inside of AnswerOptions::shim_directory.
const char* ShimFileName(DriverApi api);
const char* PreloadFileName(DriverApi api);
// The content of a preload file: the shim's path in containers, and a newline.
std::string PreloadFileText(DriverApi api);

// Preconditions: `grant` comes from JudgeAllocation, options.shim_directory is not empty,
// `socket_directory` is that of the allocation `token`.
Answer BuildAnswer(const Grant& grant, const std::string& token,
                   const std::string& socket_directory, const AnswerOptions& options);

}  // namespace rubato::deviceplugin
