#include "agent/gpu/software_gpu.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

namespace rubato::agent {
namespace {

using base::Error;
using base::ErrorCode;
using base::Result;

constexpr const char kLibraryName[] = "libnvidia-ml.so.1";

// Opens folder and socket to containers' users, as often as the device process may make them anew.
class OpenToAll final : public GpuLibrary {
 public:
  OpenToAll(std::unique_ptr<GpuLibrary> library, std::string socket_dir)
      : library_(std::move(library)), socket_dir_(std::move(socket_dir)) {}

  Result<GpuSnapshot> Read() override {
    (void)::chmod(socket_dir_.c_str(), 0755);
    (void)::chmod((socket_dir_ + "/device.sock").c_str(), 0666);
    return library_->Read();
  }

 private:
  const std::unique_ptr<GpuLibrary> library_;
  const std::string socket_dir_;
};

std::string FolderOfProgram() {
  std::array<char, 4096> path;
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length <= 0 || static_cast<size_t>(length) == path.size()) return "";
  const std::string text(path.data(), static_cast<size_t>(length));
  return text.substr(0, text.rfind('/'));
}

}  // namespace

std::string FindSoftwareGpuLibraries() {
  const std::string folder = FolderOfProgram();
  for (const char* below : {"/../lib/softgpu", "/../lib/rubato/softgpu"}) {
    std::error_code error;
    const std::filesystem::path path = std::filesystem::canonical(folder + below, error);
    if (!error && ::access((path / kLibraryName).c_str(), R_OK) == 0) return path.string();
  }
  return "";
}

Result<void> PrepareSoftwareGpu(const SoftwareGpuPlaces& places) {
  std::error_code error;
  std::filesystem::create_directories(places.socket_dir, error);
  if (error)
    return Error{ErrorCode::kSystem, "cannot make " + places.socket_dir + ": " + error.message()};
  ::setenv("RUBATO_SOFTGPU_DIR", places.socket_dir.c_str(), 1);
  ::setenv("RUBATO_SOFTGPU_DEVICES", std::to_string(places.devices).c_str(), 0);
  // It is this node's GPU: it does not leave when its last program has.
  ::setenv("RUBATO_SOFTGPU_IDLE_EXIT_MS", "0", 0);
  if (!places.may_start) {
    ::setenv("RUBATO_SOFTGPU_BIN", "/nonexistent", 1);
  } else if (const std::string program = FolderOfProgram() + "/rubato-softgpu";
             ::access(program.c_str(), X_OK) == 0)
    ::setenv("RUBATO_SOFTGPU_BIN", program.c_str(), 0);
  return {};
}

Result<std::unique_ptr<GpuLibrary>> OpenSoftwareGpu(const SoftwareGpuPlaces& places) {
  if (places.library_dir.empty()) {
    return Error{ErrorCode::kNotFound,
                 "the software GPU's libraries are not beside this program; set "
                 "softwareGpu.libraryDirectory"};
  }
  auto library = OpenNvmlFile(places.library_dir + "/" + kLibraryName, GpuVendor::kSoftware);
  if (!library) {
    if (library.error().code != ErrorCode::kUnavailable) return library.error();
    return Error{ErrorCode::kUnavailable, "the software GPU's device process does not answer in " +
                                              places.socket_dir + "; start rubato-softgpu there"};
  }
  return std::unique_ptr<GpuLibrary>(
      std::make_unique<OpenToAll>(std::move(*library), places.socket_dir));
}

}  // namespace rubato::agent
