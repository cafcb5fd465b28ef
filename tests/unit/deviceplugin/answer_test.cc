#include "deviceplugin/answer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/unit/deviceplugin/gpus.h"

namespace rubato::deviceplugin {
namespace {

constexpr char kToken[] = "0123456789abcdef0123456789abcdef";
const std::string kSocketDirectory = std::string("/var/lib/rubato/alloc/") + kToken;

AnswerOptions Options() {
  AnswerOptions options;
  options.shim_directory = "/var/lib/rubato/shim/0011223344556677";
  return options;
}

Grant GrantOf(std::vector<Gpu> gpus) {
  return {{gpus[0].uuid + "::0"}, gpus};
}

Answer Build(const std::vector<Gpu>& gpus, const AnswerOptions& options) {
  return BuildAnswer(GrantOf(gpus), kToken, kSocketDirectory, options);
}

const AnswerMount* MountAt(const Answer& answer, const std::string& path) {
  const auto found =
      std::find_if(answer.mounts.begin(), answer.mounts.end(),
                   [&](const AnswerMount& mount) { return mount.container_path == path; });
  return found == answer.mounts.end() ? nullptr : &*found;
}

TEST(AnswerTest, NvidiaByEnvironment) {
  const Answer answer = Build({MakeGpu(0)}, Options());
  EXPECT_EQ(
      answer.mounts,
      (std::vector<AnswerMount>{
          {"/run/rubato", kSocketDirectory, true},
          {"/usr/local/lib/rubato/librubato-cuda.so",
           "/var/lib/rubato/shim/0011223344556677/librubato-cuda.so", true},
          {"/etc/ld.so.preload", "/var/lib/rubato/shim/0011223344556677/ld.so.preload.cuda", true},
      }));
  EXPECT_EQ(answer.environment, (std::map<std::string, std::string>{
                                    {"NVIDIA_VISIBLE_DEVICES", "GPU-0"},
                                    {"NVIDIA_DRIVER_CAPABILITIES", "compute,utility"}}));
  EXPECT_TRUE(answer.device_nodes.empty());
  EXPECT_TRUE(answer.annotations.empty());
  EXPECT_TRUE(answer.cdi_devices.empty());
}

TEST(AnswerTest, NothingInItIsUsedUp) {
  // The kubelet uses an answer again at each restart of the container.
  const Answer first = Build({MakeGpu(0)}, Options());
  const Answer second = Build({MakeGpu(0)}, Options());
  EXPECT_EQ(first.environment, second.environment);
  for (const auto& [name, value] : first.environment)
    EXPECT_EQ(value.find(kToken), std::string::npos) << name;
}

TEST(AnswerTest, NvidiaByCdi) {
  AnswerOptions options = Options();
  options.device_injection = DeviceInjection::kCdi;
  const Answer answer = Build({MakeGpu(0), MakeGpu(3)}, options);
  EXPECT_EQ(answer.cdi_devices,
            (std::vector<std::string>{"nvidia.com/gpu=GPU-0", "nvidia.com/gpu=GPU-3"}));
  EXPECT_TRUE(answer.annotations.empty());
  // An image that asks for all GPUs in its own environment gets none by that.
  EXPECT_EQ(answer.environment.at("NVIDIA_VISIBLE_DEVICES"), "void");
}

TEST(AnswerTest, NvidiaByCdiAnnotations) {
  AnswerOptions options = Options();
  options.device_injection = DeviceInjection::kCdiAnnotations;
  options.cdi_kind = "example.com/gpu";
  const Answer answer = Build({MakeGpu(0), MakeGpu(3)}, options);
  ASSERT_EQ(answer.annotations.size(), 1u);
  const auto& [name, value] = *answer.annotations.begin();
  EXPECT_EQ(name, std::string("cdi.k8s.io/rubato-device-plugin_") + kToken);
  EXPECT_EQ(value, "example.com/gpu=GPU-0,example.com/gpu=GPU-3");
  // The part after the prefix must be a label's name.
  EXPECT_LE(name.size() - std::string("cdi.k8s.io/").size(), 63u);
  EXPECT_TRUE(answer.cdi_devices.empty());
  EXPECT_EQ(answer.environment.at("NVIDIA_VISIBLE_DEVICES"), "void");
}

TEST(AnswerTest, NvidiaDeviceNodesOnceEach) {
  AnswerOptions options = Options();
  options.pass_device_nodes = true;
  options.driver_capabilities = "";
  const Answer answer = Build({MakeGpu(0), MakeGpu(1)}, options);
  EXPECT_EQ(answer.device_nodes,
            (std::vector<std::string>{"/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia1"}));
  EXPECT_EQ(answer.environment.at("NVIDIA_VISIBLE_DEVICES"), "GPU-0,GPU-1");
  EXPECT_FALSE(answer.environment.contains("NVIDIA_DRIVER_CAPABILITIES"));
}

TEST(AnswerTest, ShimByEnvironment) {
  AnswerOptions options = Options();
  options.shim_injection = ShimInjection::kEnv;
  const Answer answer = Build({MakeGpu(0)}, options);
  EXPECT_EQ(answer.environment.at("LD_PRELOAD"), "/usr/local/lib/rubato/librubato-cuda.so");
  EXPECT_EQ(MountAt(answer, "/etc/ld.so.preload"), nullptr);
  EXPECT_NE(MountAt(answer, "/usr/local/lib/rubato/librubato-cuda.so"), nullptr);
}

TEST(AnswerTest, Amd) {
  Gpu gpu = MakeGpu(0);
  gpu.vendor = Vendor::kAmd;
  gpu.device_nodes = {"/dev/kfd", "/dev/dri/renderD128"};
  AnswerOptions options = Options();
  options.mps_pipe_directory = "/var/lib/rubato/mps/pipe";
  const Answer answer = Build({gpu}, options);
  EXPECT_EQ(answer.device_nodes, (std::vector<std::string>{"/dev/kfd", "/dev/dri/renderD128"}));
  EXPECT_TRUE(answer.environment.empty());
  EXPECT_EQ(MountAt(answer, "/usr/local/lib/rubato/librubato-hip.so")->host_path,
            "/var/lib/rubato/shim/0011223344556677/librubato-hip.so");
  EXPECT_EQ(MountAt(answer, "/etc/ld.so.preload")->host_path,
            "/var/lib/rubato/shim/0011223344556677/ld.so.preload.hip");
  EXPECT_EQ(MountAt(answer, "/var/lib/rubato/mps/pipe"), nullptr);
}

TEST(AnswerTest, Software) {
  Gpu gpu = MakeGpu(1);
  gpu.vendor = Vendor::kSoftware;
  AnswerOptions options = Options();
  options.software_library_directory = "/var/lib/rubato/softgpu/aa";
  options.software_device_directory = "/var/lib/rubato/softgpu/run";
  Answer answer = Build({gpu}, options);
  EXPECT_EQ(*MountAt(answer, "/usr/local/lib/rubato/softgpu"),
            (AnswerMount{"/usr/local/lib/rubato/softgpu", "/var/lib/rubato/softgpu/aa", true}));
  EXPECT_EQ(*MountAt(answer, "/run/rubato-softgpu"),
            (AnswerMount{"/run/rubato-softgpu", "/var/lib/rubato/softgpu/run", true}));
  EXPECT_EQ(answer.environment, (std::map<std::string, std::string>{
                                    {"LD_LIBRARY_PATH", "/usr/local/lib/rubato/softgpu"},
                                    {"RUBATO_SOFTGPU_DIR", "/run/rubato-softgpu"},
                                    {"CUDA_VISIBLE_DEVICES", "GPU-1"}}));
  EXPECT_TRUE(answer.device_nodes.empty());
  gpu.software_api = DriverApi::kHip;
  answer = Build({gpu}, options);
  EXPECT_NE(MountAt(answer, "/usr/local/lib/rubato/librubato-hip.so"), nullptr);
  EXPECT_EQ(answer.environment.at("HIP_VISIBLE_DEVICES"), "GPU-1");
}

TEST(AnswerTest, MpsDirectories) {
  AnswerOptions options = Options();
  options.mps_pipe_directory = "/var/lib/rubato/mps/pipe";
  options.mps_shm_directory = "/dev/shm/rubato-mps";
  const Answer answer = Build({MakeGpu(0)}, options);
  EXPECT_EQ(*MountAt(answer, "/var/lib/rubato/mps/pipe"),
            (AnswerMount{"/var/lib/rubato/mps/pipe", "/var/lib/rubato/mps/pipe", false}));
  EXPECT_EQ(*MountAt(answer, "/dev/shm"), (AnswerMount{"/dev/shm", "/dev/shm/rubato-mps", false}));
}

TEST(AnswerTest, EverythingButMpsIsReadOnly) {
  AnswerOptions options = Options();
  options.software_library_directory = "/a";
  options.software_device_directory = "/b";
  for (const Vendor vendor : {Vendor::kNvidia, Vendor::kAmd, Vendor::kSoftware}) {
    Gpu gpu = MakeGpu(0);
    gpu.vendor = vendor;
    for (const AnswerMount& mount : Build({gpu}, options).mounts)
      EXPECT_TRUE(mount.read_only) << mount.container_path;
  }
}

TEST(AnswerTest, PreloadFilesNameTheShim) {
  EXPECT_EQ(PreloadFileText(DriverApi::kCuda), "/usr/local/lib/rubato/librubato-cuda.so\n");
  EXPECT_EQ(PreloadFileText(DriverApi::kHip), "/usr/local/lib/rubato/librubato-hip.so\n");
}

}  // namespace
}  // namespace rubato::deviceplugin
