#include "deviceplugin/answer.h"

#include <algorithm>

namespace rubato::deviceplugin {
namespace {

std::string Joined(const std::vector<Gpu>& gpus, const std::string& prefix) {
  std::string text;
  for (const Gpu& gpu : gpus) {
    if (!text.empty()) text += ',';
    text += prefix + gpu.uuid;
  }
  return text;
}

void AddDeviceNodes(const std::vector<Gpu>& gpus, Answer* answer) {
  for (const Gpu& gpu : gpus) {
    for (const std::string& node : gpu.device_nodes) {
      auto& nodes = answer->device_nodes;
      if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) nodes.push_back(node);
    }
  }
}

void AddNvidia(const Grant& grant, const std::string& token, const AnswerOptions& options,
               Answer* answer) {
  switch (options.device_injection) {
    case DeviceInjection::kEnvvar:
      answer->environment["NVIDIA_VISIBLE_DEVICES"] = Joined(grant.gpus, "");
      break;
    case DeviceInjection::kCdiAnnotations:
      // The name of a CDI annotation: the plugin's name, '_', and something unique to the
      // container.
      answer->annotations[options.cdi_annotation_prefix + "rubato-device-plugin_" + token] =
          Joined(grant.gpus, options.cdi_kind + "=");
      break;
    case DeviceInjection::kCdi:
      for (const Gpu& gpu : grant.gpus)
        answer->cdi_devices.push_back(options.cdi_kind + "=" + gpu.uuid);
      break;
  }
  // Images often ask for all GPUs in their own environment, and a runtime class that listens to
  // the variable would add those to what CDI brings.
  if (options.device_injection != DeviceInjection::kEnvvar)
    answer->environment["NVIDIA_VISIBLE_DEVICES"] = "void";
  if (!options.driver_capabilities.empty())
    answer->environment["NVIDIA_DRIVER_CAPABILITIES"] = options.driver_capabilities;
  if (options.pass_device_nodes) AddDeviceNodes(grant.gpus, answer);
}

void AddSoftware(const Grant& grant, const AnswerOptions& options, Answer* answer) {
  if (!options.software_library_directory.empty()) {
    answer->mounts.push_back(
        {kContainerSoftwareLibraries, options.software_library_directory, true});
    answer->environment["LD_LIBRARY_PATH"] = kContainerSoftwareLibraries;
  }
  if (!options.software_device_directory.empty()) {
    answer->mounts.push_back({kContainerSoftwareDevice, options.software_device_directory, true});
    answer->environment["RUBATO_SOFTGPU_DIR"] = kContainerSoftwareDevice;
  }
  // The stand-ins reach the device process and with it all of its GPUs.
  answer->environment[ApiOf(grant.gpus.front()) == DriverApi::kCuda ? "CUDA_VISIBLE_DEVICES"
                                                                    : "HIP_VISIBLE_DEVICES"] =
      Joined(grant.gpus, "");
}

}  // namespace

const char* ShimFileName(DriverApi api) {
  return api == DriverApi::kCuda ? "librubato-cuda.so" : "librubato-hip.so";
}

const char* PreloadFileName(DriverApi api) {
  return api == DriverApi::kCuda ? "ld.so.preload.cuda" : "ld.so.preload.hip";
}

std::string PreloadFileText(DriverApi api) {
  return std::string(kContainerShimDirectory) + "/" + ShimFileName(api) + "\n";
}

Answer BuildAnswer(const Grant& grant, const std::string& token,
                   const std::string& socket_directory, const AnswerOptions& options) {
  const Gpu& first = grant.gpus.front();
  const DriverApi api = ApiOf(first);
  Answer answer;
  // The socket may be used on a read-only mount: connecting writes to no file system.
  answer.mounts.push_back({kContainerSocketDirectory, socket_directory, true});
  const std::string shim = std::string(kContainerShimDirectory) + "/" + ShimFileName(api);
  answer.mounts.push_back({shim, options.shim_directory + "/" + ShimFileName(api), true});
  switch (options.shim_injection) {
    case ShimInjection::kPreloadFile:
      answer.mounts.push_back(
          {kContainerPreloadFile, options.shim_directory + "/" + PreloadFileName(api), true});
      break;
    case ShimInjection::kEnv:
      answer.environment["LD_PRELOAD"] = shim;
      break;
  }

  switch (first.vendor) {
    case Vendor::kNvidia:
      AddNvidia(grant, token, options, &answer);
      break;
    case Vendor::kAmd:
      // No toolkit: the device nodes are all there is to it.
      AddDeviceNodes(grant.gpus, &answer);
      break;
    case Vendor::kSoftware:
      AddSoftware(grant, options, &answer);
      break;
  }
  if (first.vendor != Vendor::kAmd) {
    // Writable: clients of MPS make files of their own beside its pipes.
    if (!options.mps_pipe_directory.empty())
      answer.mounts.push_back({options.mps_pipe_directory, options.mps_pipe_directory, false});
    if (!options.mps_shm_directory.empty())
      answer.mounts.push_back({"/dev/shm", options.mps_shm_directory, false});
  }
  return answer;
}

}  // namespace rubato::deviceplugin
