#include "cli/byte_size.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdio>

namespace rubato::cli {
namespace {

struct Unit {
  std::string_view name;  // Lower case.
  uint64_t bytes;
};

constexpr std::array kUnits = {
    Unit{"", 1},
    Unit{"b", 1},
    Unit{"kib", uint64_t{1} << 10},
    Unit{"mib", uint64_t{1} << 20},
    Unit{"gib", uint64_t{1} << 30},
    Unit{"tib", uint64_t{1} << 40},
    Unit{"kb", 1'000},
    Unit{"mb", 1'000'000},
    Unit{"gb", 1'000'000'000},
    Unit{"tb", 1'000'000'000'000},
};

// Nine decimals are more than anybody writes; more digits would only overflow the arithmetic.
constexpr int kMaxDecimals = 9;

base::Error Bad(std::string_view text) {
  return base::Error{
      base::ErrorCode::kInvalid,
      "'" + std::string(text) + "' is not a size; write for example 20GiB or 512MiB"};
}

}  // namespace

base::Result<uint64_t> ParseByteSize(std::string_view text) {
  __extension__ using Wide = unsigned __int128;
  size_t at = 0;
  Wide digits = 0;
  Wide divisor = 1;
  int decimals = -1;  // -1: before the point.
  bool any = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '.' && decimals < 0) {
      decimals = 0;
      continue;
    }
    if (c < '0' || c > '9') break;
    any = true;
    digits = digits * 10 + static_cast<unsigned>(c - '0');
    if (digits > (Wide{1} << 80)) return Bad(text);
    if (decimals >= 0) {
      if (++decimals > kMaxDecimals) return Bad(text);
      divisor *= 10;
    }
  }
  if (!any) return Bad(text);
  while (at < text.size() && text[at] == ' ') ++at;
  std::string unit(text.substr(at));
  std::transform(unit.begin(), unit.end(), unit.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const auto found = std::find_if(kUnits.begin(), kUnits.end(),
                                  [&unit](const Unit& known) { return known.name == unit; });
  if (found == kUnits.end()) return Bad(text);
  // digits < 2^81 and bytes <= 10^12 < 2^41: the product fits.
  const Wide bytes = digits * found->bytes / divisor;
  if (bytes == 0 || bytes >= (Wide{1} << 63)) return Bad(text);
  return static_cast<uint64_t>(bytes);
}

std::string FormatByteSize(uint64_t bytes) {
  static constexpr std::array<const char*, 5> kNames = {"B", "KiB", "MiB", "GiB", "TiB"};
  double amount = static_cast<double>(bytes);
  size_t unit = 0;
  while (amount >= 1024 && unit + 1 < kNames.size()) {
    amount /= 1024;
    ++unit;
  }
  const int decimals = unit == 0 || amount >= 100 || amount == std::floor(amount) ? 0 : 1;
  char text[48];
  std::snprintf(text, sizeof(text), "%.*f %s", decimals, amount, kNames[unit]);
  return text;
}

}  // namespace rubato::cli
