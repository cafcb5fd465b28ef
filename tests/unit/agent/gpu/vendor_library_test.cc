#include <dlfcn.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "agent/gpu/gpu_library.h"
#include "agent/gpu/software_gpu.h"
#include "tests/unit/agent/gpu/fake_vendor_library.h"

namespace rubato::agent {
namespace {

namespace fs = std::filesystem;

constexpr const char kFakeLibrary[] = RUBATO_BUILD_DIR "/lib/tests/libfake-vendor.so";

class FakeVendorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    void* library = ::dlopen(kFakeLibrary, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library, nullptr) << ::dlerror();
    vendor_ = static_cast<FakeVendor*>(::dlsym(library, "fake_vendor"));
    ASSERT_NE(vendor_, nullptr);
    *vendor_ = {};
    vendor_->count = 2;
    std::string name = ::testing::TempDir() + "/driver-root-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { fs::remove_all(root_); }

  // As a driver container has it.
  void Install(const char* name) {
    fs::create_directories(root_ / "usr/lib64");
    fs::create_symlink(kFakeLibrary, root_ / "usr/lib64" / name);
  }
  std::unique_ptr<GpuLibrary> Nvml() {
    auto library = OpenNvmlFile(kFakeLibrary, GpuVendor::kNvidia);
    EXPECT_TRUE(library.ok()) << library.error().message;
    return std::move(*library);
  }

  FakeVendor* vendor_ = nullptr;
  fs::path root_;
};

TEST_F(FakeVendorTest, NvmlIsFoundBelowTheDriverRoot) {
  const auto missing = OpenNvml(root_.string());
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, base::ErrorCode::kNotFound);
  Install("libnvidia-ml.so.1");
  EXPECT_TRUE(OpenNvml(root_.string()).ok());
}

TEST_F(FakeVendorTest, ALibraryThatIsNoneIsRefused) {
  fs::create_directories(root_ / "usr/lib64");
  std::ofstream(root_ / "usr/lib64/libnvidia-ml.so.1") << "not a library";
  const auto opened = OpenNvml(root_.string());
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.error().message.find("cannot load NVML"), std::string::npos);
}

TEST_F(FakeVendorTest, ALibraryWithoutADriverSaysSo) {
  vendor_->init_status = 9;
  const auto opened = OpenNvmlFile(kFakeLibrary, GpuVendor::kNvidia);
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, base::ErrorCode::kUnavailable);
  EXPECT_EQ(vendor_->shutdowns, 0);
}

TEST_F(FakeVendorTest, NvmlReadsGpusInOurUnits) {
  auto nvml = Nvml();
  const auto snapshot = nvml->Read();
  ASSERT_TRUE(snapshot.ok()) << snapshot.error().message;
  EXPECT_EQ(snapshot->library, "NVML 13.1");
  EXPECT_EQ(snapshot->driver_version, "580.1");
  ASSERT_EQ(snapshot->gpus.size(), 2u);
  const GpuReading& gpu = snapshot->gpus[1];
  EXPECT_EQ(gpu.uuid, "GPU-1");
  EXPECT_EQ(gpu.index, 1u);
  EXPECT_EQ(gpu.name, "Fake H200");
  EXPECT_EQ(gpu.pci_bus_id, "0000:3b:00.0");
  EXPECT_EQ(gpu.device_nodes, std::vector<std::string>{"/dev/nvidia5"});
  EXPECT_EQ(gpu.total_bytes, 1000u);
  EXPECT_EQ(gpu.used_bytes, 600u);
  EXPECT_EQ(gpu.sm_clock_hz, 1980e6);
  EXPECT_EQ(gpu.memory_clock_hz, 3201e6);
  EXPECT_EQ(gpu.power_watts, 350.5);
  EXPECT_EQ(gpu.utilization_ratio, 0.5);
  EXPECT_EQ(gpu.temperature_celsius, std::nullopt) << "this library has no such call";
  EXPECT_FALSE(gpu.mig_enabled);
  nvml.reset();
  EXPECT_EQ(vendor_->shutdowns, 1);
}

TEST_F(FakeVendorTest, NvmlSeesMig) {
  vendor_->gpus[0].mig = 1;
  auto nvml = Nvml();
  const auto snapshot = nvml->Read();
  EXPECT_TRUE(snapshot->gpus[0].mig_enabled);
  EXPECT_FALSE(snapshot->gpus[1].mig_enabled);
}

TEST_F(FakeVendorTest, NvmlListsMoreProcessesThanItFirstHasRoomFor) {
  vendor_->gpus[0].processes = 150;
  auto nvml = Nvml();
  const auto snapshot = nvml->Read();
  const GpuReading& gpu = snapshot->gpus[0];
  ASSERT_EQ(gpu.processes.size(), 150u);
  EXPECT_TRUE(gpu.processes_known);
  EXPECT_EQ(gpu.processes[3].pid, 103);
  EXPECT_EQ(gpu.processes[3].used_bytes, 13u);
  EXPECT_EQ(gpu.processes[149].used_bytes, 0u) << "not known";
}

TEST_F(FakeVendorTest, NvmlTellsXidsOfTheirGpu) {
  auto nvml = Nvml();
  ASSERT_TRUE(nvml->Read().ok());
  vendor_->xids = 2;
  vendor_->xid[0] = {-1, 62};
  vendor_->xid[1] = {1, 79};
  const auto snapshot = nvml->Read();
  ASSERT_EQ(snapshot->xids.size(), 2u);
  EXPECT_EQ(snapshot->xids[0].uuid, "GPU-1");
  EXPECT_EQ(snapshot->xids[0].xid, 79u);
  EXPECT_EQ(snapshot->xids[1].uuid, "");
  EXPECT_TRUE(nvml->Read()->xids.empty());
}

TEST_F(FakeVendorTest, ALostGpuKeepsItsName) {
  auto nvml = Nvml();
  ASSERT_TRUE(nvml->Read().ok());
  vendor_->gpus[1].status = 15;
  const auto snapshot = nvml->Read();
  ASSERT_TRUE(snapshot.ok());
  ASSERT_EQ(snapshot->gpus.size(), 2u);
  EXPECT_EQ(snapshot->gpus[1].uuid, "GPU-1");
  EXPECT_EQ(snapshot->gpus[1].lost, "GPU is lost");
  EXPECT_EQ(snapshot->gpus[1].total_bytes, 1000u);
  EXPECT_EQ(snapshot->gpus[0].lost, "");
}

TEST_F(FakeVendorTest, AllGpusLostIsAnEndOfTheLibrary) {
  auto nvml = Nvml();
  ASSERT_TRUE(nvml->Read().ok());
  vendor_->gpus[0].status = vendor_->gpus[1].status = 15;
  EXPECT_FALSE(nvml->Read().ok());
}

TEST_F(FakeVendorTest, RocmSmiReadsGpusAsHipNamesThem) {
  Install("librocm_smi64.so.6");
  vendor_->gpus[0].unique_id = 0;  // Integrated graphics.
  vendor_->gpus[1].unique_id = 0xbd7a3ed1c4a6f2e8;
  auto library = OpenRocmSmi(root_.string());
  ASSERT_TRUE(library.ok()) << library.error().message;
  const auto snapshot = (*library)->Read();
  ASSERT_TRUE(snapshot.ok());
  EXPECT_EQ(snapshot->driver_version, "6.8.5");
  ASSERT_EQ(snapshot->gpus.size(), 1u);
  const GpuReading& gpu = snapshot->gpus[0];
  EXPECT_EQ(gpu.vendor, GpuVendor::kAmd);
  EXPECT_EQ(gpu.index, 1u);
  // The sixteen characters "bd7a3ed1c4a6f2e8" as bytes.
  EXPECT_EQ(gpu.uuid, "GPU-62643761-3365-6431-6334-613666326538");
  EXPECT_EQ(gpu.name, "Fake MI300X");
  EXPECT_EQ(gpu.pci_bus_id, "0001:c1:02.1");
  EXPECT_EQ(gpu.device_nodes, (std::vector<std::string>{"/dev/kfd", "/dev/dri/renderD129"}));
  EXPECT_EQ(gpu.total_bytes, 2000u);
  EXPECT_EQ(gpu.used_bytes, 500u);
  EXPECT_EQ(gpu.utilization_ratio, 0.25);
  EXPECT_EQ(gpu.power_watts, 400.0);
}

TEST_F(FakeVendorTest, RocmSmiThatIsNowhereIsNotFound) {
  const auto opened = OpenRocmSmi(root_.string());
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, base::ErrorCode::kNotFound);
}

// The real stand-in, with a device process of the test's own. In a process of its own, since the
// stand-in reads the environment once.
TEST(SoftwareGpuTest, IsReadThroughItsStandInAndOpenToContainers) {
  std::string folder = "/tmp/rbt-gpu-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  EXPECT_EXIT(
      {
        SoftwareGpuPlaces places;
        places.socket_dir = folder + "/run";
        places.library_dir = RUBATO_BUILD_DIR "/lib/softgpu";
        places.devices = 2;
        ::setenv("RUBATO_SOFTGPU_BIN", RUBATO_BUILD_DIR "/bin/rubato-softgpu", 1);
        ::setenv("RUBATO_SOFTGPU_IDLE_EXIT_MS", "100", 1);
        if (!PrepareSoftwareGpu(places)) _exit(1);
        auto library = OpenSoftwareGpu(places);
        if (!library) _exit(2);
        const auto snapshot = (*library)->Read();
        if (!snapshot || snapshot->gpus.size() != 2) _exit(3);
        if (snapshot->gpus[0].vendor != GpuVendor::kSoftware) _exit(4);
        if (snapshot->gpus[0].total_bytes == 0 || !snapshot->gpus[0].lost.empty()) _exit(5);
        struct stat info {};
        if (::stat((places.socket_dir + "/device.sock").c_str(), &info) != 0) _exit(6);
        if ((info.st_mode & 0777) != 0666) _exit(7);
        library->reset();
        _exit(0);
      },
      ::testing::ExitedWithCode(0), "");
  fs::remove_all(folder);
}

TEST(SoftwareGpuTest, InAPodNoDeviceIsStarted) {
  std::string folder = "/tmp/rbt-gpu-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  EXPECT_EXIT(
      {
        SoftwareGpuPlaces places;
        places.socket_dir = folder + "/run";
        places.library_dir = RUBATO_BUILD_DIR "/lib/softgpu";
        places.may_start = false;
        if (!PrepareSoftwareGpu(places)) _exit(1);
        const auto library = OpenSoftwareGpu(places);
        _exit(!library && library.error().code == base::ErrorCode::kUnavailable ? 0 : 2);
      },
      ::testing::ExitedWithCode(0), "");
  fs::remove_all(folder);
}

}  // namespace
}  // namespace rubato::agent
