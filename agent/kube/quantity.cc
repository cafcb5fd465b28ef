#include "agent/kube/quantity.h"

#include <array>
#include <limits>
#include <string>

namespace rubato::kube {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr uint64_t kLargest = std::numeric_limits<int64_t>::max();
// Enough for every amount that somebody means; 128 bits hold them.
constexpr int kMaxDigits = 30;

struct Suffix {
  std::string_view name;
  int power10;
  int power2;
};
constexpr std::array<Suffix, 16> kSuffixes = {{{"", 0, 0},
                                               {"n", -9, 0},
                                               {"u", -6, 0},
                                               {"m", -3, 0},
                                               {"k", 3, 0},
                                               {"M", 6, 0},
                                               {"G", 9, 0},
                                               {"T", 12, 0},
                                               {"P", 15, 0},
                                               {"E", 18, 0},
                                               {"Ki", 0, 10},
                                               {"Mi", 0, 20},
                                               {"Gi", 0, 30},
                                               {"Ti", 0, 40},
                                               {"Pi", 0, 50},
                                               {"Ei", 0, 60}}};

base::Error Bad(std::string_view text) {
  std::string shown(text.substr(0, 64));
  for (char& c : shown) {
    if (c < ' ' || c > '~') c = '?';
  }
  return base::Error{base::ErrorCode::kInvalid,
                     "'" + shown + "' is not an amount; write for example 8Gi, 512Mi or 1500M"};
}

// The decimal exponent of "e3", "E-2", "e+05"; false if that is no exponent.
bool ReadExponent(std::string_view text, int* exponent) {
  if (text.size() < 2 || (text[0] != 'e' && text[0] != 'E')) return false;
  size_t at = 1;
  bool negative = false;
  if (text[at] == '+' || text[at] == '-') negative = text[at++] == '-';
  if (at == text.size()) return false;
  int value = 0;
  for (; at < text.size(); ++at) {
    if (text[at] < '0' || text[at] > '9') return false;
    if (value < 1000) value = value * 10 + (text[at] - '0');
  }
  *exponent = negative ? -value : value;
  return true;
}

}  // namespace

base::Result<uint64_t> ParseQuantity(std::string_view text) {
  size_t at = 0;
  if (at < text.size() && text[at] == '+') ++at;
  Wide digits = 0;
  int significant = 0;
  int power10 = 0;
  bool any = false;
  bool point = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '.' && !point) {
      point = true;
      continue;
    }
    if (c < '0' || c > '9') break;
    any = true;
    if (point && power10 > -1000) --power10;
    if (significant > 0 || c != '0') ++significant;
    if (significant > kMaxDigits) return Bad(text);
    digits = digits * 10 + static_cast<unsigned>(c - '0');
  }
  if (!any) return Bad(text);
  const std::string_view rest = text.substr(at);
  int power2 = 0;
  int exponent = 0;
  bool known = false;
  for (const Suffix& suffix : kSuffixes) {
    if (rest != suffix.name) continue;
    power10 += suffix.power10;
    power2 = suffix.power2;
    known = true;
  }
  if (!known && ReadExponent(rest, &exponent)) {
    power10 += exponent;
    known = true;
  }
  if (!known) return Bad(text);
  if (digits == 0) return uint64_t{0};
  while (digits % 10 == 0) {
    digits /= 10;
    ++power10;
  }
  if (digits >> 64 != 0) return Bad(text);
  for (; power10 > 0; --power10) {
    digits *= 10;
    if (digits > kLargest) return Bad(text);
  }
  // Below 2^64 times at most 2^60. The division comes last, so that nothing is lost before it.
  digits <<= power2;
  bool remainder = false;
  for (; power10 < 0 && digits > 0; ++power10) {
    remainder = remainder || digits % 10 != 0;
    digits /= 10;
  }
  if (remainder) ++digits;
  if (digits > kLargest) return Bad(text);
  return static_cast<uint64_t>(digits);
}

}  // namespace rubato::kube
