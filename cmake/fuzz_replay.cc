// The main of a fuzz target in builds without libFuzzer: feeds every file of the folders and files
// named on the command line, and a few inputs made up from nothing, to LLVMFuzzerTestOneInput.
// A crash or a sanitizer's report is the failure; there is nothing else to check here.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int __attribute__((weak)) LLVMFuzzerInitialize(int* argc, char*** argv);

namespace {

bool Replay(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) {
    std::fprintf(stderr, "cannot read %s\n", file.c_str());
    return false;
  }
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in),
                                std::istreambuf_iterator<char>()};
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  return true;
}

// Sizes around powers of two, filled with patterns that are often boundary values. Allocated to
// the exact size, so that an overread is seen by the address sanitizer.
void ReplayMadeUp() {
  constexpr size_t kSizes[] = {0, 1, 7, 8, 15, 16, 63, 64, 65, 255, 256, 4095, 4096, 4097, 65536};
  constexpr uint8_t kFills[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
  for (const size_t size : kSizes) {
    for (const uint8_t fill : kFills) {
      const std::vector<uint8_t> bytes(size, fill);
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    std::vector<uint8_t> bytes(size);
    uint32_t state = 2463534242u;
    for (uint8_t& byte : bytes) {
      state ^= state << 13;
      state ^= state >> 17;
      state ^= state << 5;
      byte = static_cast<uint8_t>(state);
    }
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (LLVMFuzzerInitialize != nullptr) LLVMFuzzerInitialize(&argc, &argv);
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    const std::filesystem::path path = argv[i];
    if (!std::filesystem::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    if (!Replay(file)) return 1;
  }
  ReplayMadeUp();
  std::printf("replayed %zu files and the made-up inputs\n", files.size());
  return 0;
}
