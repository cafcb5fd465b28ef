#include "base/time.h"

#include <array>

namespace rubato::base {
namespace {

struct Unit {
  std::string_view name;
  Nanos scale;
};
constexpr std::array<Unit, 4> kUnits = {
    {{"s", kSecond}, {"ms", kMillisecond}, {"us", kMicrosecond}, {"ns", 1}}};
constexpr Nanos kLongest = 1'000'000'000'000'000;

Error BadDuration(std::string_view text) {
  return Error{ErrorCode::kInvalid, "'" + std::string(text.substr(0, 64)) +
                                        "' is not a duration; write a number and ns, us, ms or s, "
                                        "for example 10ms"};
}

}  // namespace

Result<Nanos> ParseDuration(std::string_view text) {
  size_t at = 0;
  int64_t whole = 0;
  int64_t billionths = 0;  // The digits after the point; those beyond the ninth are dropped.
  int64_t place = kSecond / 10;
  bool any = false;
  bool fraction = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '.' && !fraction) {
      fraction = true;
      continue;
    }
    if (c < '0' || c > '9') break;
    any = true;
    if (fraction) {
      billionths += (c - '0') * place;
      place /= 10;
    } else {
      whole = whole * 10 + (c - '0');
      if (whole > kLongest) return BadDuration(text);
    }
  }
  if (!any) return BadDuration(text);
  for (const Unit& unit : kUnits) {
    if (text.substr(at) != unit.name) continue;
    if (whole > kLongest / unit.scale) return BadDuration(text);
    return whole * unit.scale + billionths * unit.scale / kSecond;
  }
  return BadDuration(text);
}

std::string FormatDuration(Nanos duration_ns) {
  if (duration_ns == 0) return "0s";
  const bool negative = duration_ns < 0;
  const uint64_t magnitude =
      negative ? ~static_cast<uint64_t>(duration_ns) + 1 : static_cast<uint64_t>(duration_ns);
  size_t chosen = kUnits.size() - 1;
  for (size_t i = 0; i < kUnits.size(); ++i) {
    if (magnitude >= static_cast<uint64_t>(kUnits[i].scale)) {
      chosen = i;
      break;
    }
  }
  const auto scale = static_cast<uint64_t>(kUnits[chosen].scale);
  uint64_t whole = magnitude / scale;
  uint64_t thousandths = scale == 1 ? 0 : (magnitude % scale + scale / 2000) / (scale / 1000);
  if (thousandths == 1000) {
    ++whole;
    thousandths = 0;
    if (whole == 1000 && chosen > 0) {
      whole = 1;
      --chosen;
    }
  }
  std::string out = negative ? "-" : "";
  out += std::to_string(whole);
  if (thousandths != 0) {
    std::string decimals = std::to_string(thousandths);
    decimals.insert(0, 3 - decimals.size(), '0');
    while (decimals.back() == '0') decimals.pop_back();
    out += "." + decimals;
  }
  out += kUnits[chosen].name;
  return out;
}

}  // namespace rubato::base
