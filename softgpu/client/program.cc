#include "softgpu/client/program.h"

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <map>

namespace rubato::softgpu {

namespace {

using Options = std::map<std::string, std::string>;

Options ParseOptions(std::string_view line) {
  Options options;
  while (!line.empty()) {
    const size_t start = line.find_first_not_of(" \t\r");
    if (start == std::string_view::npos) break;
    line.remove_prefix(start);
    const size_t end = std::min(line.find_first_of(" \t\r"), line.size());
    const std::string_view word = line.substr(0, end);
    line.remove_prefix(end);
    const size_t equals = word.find('=');
    if (equals != std::string_view::npos) {
      options[std::string(word.substr(0, equals))] = std::string(word.substr(equals + 1));
    }
  }
  return options;
}

Operand ParseOperand(const Options& options, const char* name, Operand fallback) {
  auto it = options.find(name);
  if (it == options.end() || it->second.empty()) return fallback;
  const std::string& text = it->second;
  if (text[0] == 'p' && text.size() > 1 && std::isdigit(static_cast<unsigned char>(text[1]))) {
    return {atoi(text.c_str() + 1), 0};
  }
  return {-1, strtoll(text.c_str(), nullptr, 0)};
}

double ParseNumber(const Options& options, const char* name, double fallback) {
  auto it = options.find(name);
  return it == options.end() ? fallback : strtod(it->second.c_str(), nullptr);
}

wire::Effect ParseEffect(const Options& options) {
  auto it = options.find("op");
  if (it == options.end()) return wire::Effect::kNone;
  if (it->second == "hash") return wire::Effect::kHash;
  if (it->second == "copy") return wire::Effect::kCopy;
  if (it->second == "axpy") return wire::Effect::kAxpy;
  if (it->second == "store") return wire::Effect::kStore;
  if (it->second == "add") return wire::Effect::kAdd;
  if (it->second == "wait") return wire::Effect::kWait;
  return wire::Effect::kNone;
}

bool IsName(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '.';
}

std::string_view NextToken(std::string_view* text) {
  const size_t start = text->find_first_not_of(" \t\r\n,");
  if (start == std::string_view::npos) {
    *text = {};
    return {};
  }
  text->remove_prefix(start);
  size_t n = 0;
  while (n < text->size() && IsName((*text)[n])) ++n;
  if (n == 0) n = 1;
  const std::string_view token = text->substr(0, n);
  text->remove_prefix(n);
  return token;
}

size_t TypeBytes(std::string_view type) {
  if (type.size() < 2) return 0;
  const std::string digits(type.substr(2));
  if (type == ".pred") return 1;
  const int bits = atoi(digits.c_str());
  return bits >= 8 && bits <= 64 ? static_cast<size_t>(bits) / 8 : 0;
}

// `.param .u64 a, .param .align 8 .b8 b[16]`
void ParseParams(std::string_view text, KernelText* kernel) {
  size_t offset = 0;
  while (!text.empty()) {
    std::string_view token = NextToken(&text);
    if (token != ".param") continue;
    size_t bytes = 0, align = 0, count = 1;
    for (;;) {
      token = NextToken(&text);
      if (token.empty()) break;
      if (token == ".align") {
        align = static_cast<size_t>(atoi(std::string(NextToken(&text)).c_str()));
      } else if (token == ".ptr" || token == ".global" || token == ".const" || token == ".shared") {
        continue;
      } else if (token[0] == '.') {
        bytes = TypeBytes(token);
      } else {
        break;  // The name.
      }
    }
    if (!text.empty() && text[0] == '[') {
      text.remove_prefix(1);
      count = static_cast<size_t>(atoll(std::string(NextToken(&text)).c_str()));
    }
    if (bytes == 0 || count == 0 || count > 65536) continue;
    if (align == 0) align = bytes;
    offset = (offset + align - 1) / align * align;
    kernel->params.push_back({offset, bytes * count});
    offset += bytes * count;
  }
  kernel->param_bytes = offset;
}

}  // namespace

uint64_t KernelText::Value(const Operand& operand, void* const* values) const {
  if (operand.param < 0) return static_cast<uint64_t>(operand.value);
  if (static_cast<size_t>(operand.param) >= params.size()) return 0;
  const KernelParam& param = params[static_cast<size_t>(operand.param)];
  uint64_t value = 0;
  std::memcpy(&value, values[operand.param], std::min(param.bytes, sizeof value));
  return value;
}

bool ParseProgram(std::string_view text, ProgramText* out) {
  if (text.find(".version") == std::string_view::npos ||
      text.find(".target") == std::string_view::npos)
    return false;
  std::map<std::string, Options> notes;
  size_t at = 0;
  constexpr std::string_view kMark = "//softgpu ";
  while ((at = text.find(kMark, at)) != std::string_view::npos) {
    at += kMark.size();
    const size_t end = std::min(text.find('\n', at), text.size());
    const Options options = ParseOptions(text.substr(at, end - at));
    if (auto it = options.find("kernel"); it != options.end()) notes[it->second] = options;
    if (auto it = options.find("global"); it != options.end()) {
      out->globals.push_back({it->second, static_cast<uint64_t>(ParseNumber(options, "bytes", 4))});
    }
  }
  constexpr std::string_view kEntry = ".entry";
  at = 0;
  while ((at = text.find(kEntry, at)) != std::string_view::npos) {
    at += kEntry.size();
    std::string_view rest = text.substr(at);
    KernelText kernel;
    kernel.name = std::string(NextToken(&rest));
    const size_t open = rest.find_first_not_of(" \t\r\n");
    if (open != std::string_view::npos && rest[open] == '(') {
      const size_t close = rest.find(')', open);
      if (close == std::string_view::npos) return false;
      ParseParams(rest.substr(open + 1, close - open - 1), &kernel);
    }
    if (auto it = notes.find(kernel.name); it != notes.end()) {
      const Options& o = it->second;
      kernel.effect = ParseEffect(o);
      kernel.out = ParseOperand(o, "out", {-1, 0});
      kernel.in = ParseOperand(o, "in", kernel.out);
      kernel.count = ParseOperand(o, "count", {-1, 1});
      kernel.key = ParseOperand(o, "key", {-1, 0});
      kernel.block_ns = ParseOperand(o, "block_ns", kernel.block_ns);
      kernel.registers = static_cast<uint32_t>(ParseNumber(o, "regs", kernel.registers));
      kernel.shared_bytes = static_cast<uint32_t>(ParseNumber(o, "smem", kernel.shared_bytes));
      kernel.watts = static_cast<float>(ParseNumber(o, "watts", 0));
      kernel.bytes_per_ns = static_cast<float>(ParseNumber(o, "bytes_per_ns", 0));
    }
    out->kernels.push_back(std::move(kernel));
  }
  return true;
}

}  // namespace rubato::softgpu
