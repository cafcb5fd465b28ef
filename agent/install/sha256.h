// SHA-256 (FIPS 180-4), for naming shims by their content. Pure.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace rubato::agent {

class Sha256 {
 public:
  void Add(std::string_view bytes);
  // 64 hexadecimal digits. Ends the sum.
  std::string Hex();

 private:
  void Block(const uint8_t* bytes);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> rest_{};
  size_t rest_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

}  // namespace rubato::agent
