#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>

namespace rubato::base {

Result<void> StartLog(std::string_view program, std::string_view level) {
  spdlog::level::level_enum chosen;
  if (level == "debug") {
    chosen = spdlog::level::debug;
  } else if (level == "info") {
    chosen = spdlog::level::info;
  } else if (level == "warning") {
    chosen = spdlog::level::warn;
  } else if (level == "error") {
    chosen = spdlog::level::err;
  } else {
    return Error{ErrorCode::kInvalid,
                 "unknown log level '" + Printable(level) + "'; use debug, info, warning or error"};
  }
  const std::string name(program);
  spdlog::drop(name);
  auto logger = spdlog::stderr_logger_mt(name);
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %n %l %v");
  logger->set_level(chosen);
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));
  return {};
}

std::string Printable(std::string_view text, size_t limit) {
  std::string out;
  out.reserve(text.size() < limit ? text.size() : limit);
  for (const char c : text) {
    if (out.size() == limit) break;
    out.push_back(c >= 0x20 && c < 0x7f ? c : '?');
  }
  return out;
}

}  // namespace rubato::base
