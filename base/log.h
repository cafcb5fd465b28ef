// The log of a daemon: one line per event on standard error, through spdlog.
//
// Only main programs and the code that owns a connection log; libraries return errors. Keys in the
// text are the labels of the metrics (tenant=, device=, session=). Text from peers is passed
// through Printable() before it is logged.
#pragma once

#include <spdlog/spdlog.h>

#include <string>
#include <string_view>

#include "base/result.h"

namespace rubato::base {

// Sets format and level ("debug", "info", "warning", "error"). Called once, from main.
Result<void> StartLog(std::string_view program, std::string_view level);

// `text` with everything that is not printable ASCII replaced by '?', cut at `limit` characters.
std::string Printable(std::string_view text, size_t limit = 256);

template <typename... Args>
void LogDebug(spdlog::format_string_t<Args...> format, Args&&... args) {
  spdlog::debug(format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogInfo(spdlog::format_string_t<Args...> format, Args&&... args) {
  spdlog::info(format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogWarning(spdlog::format_string_t<Args...> format, Args&&... args) {
  spdlog::warn(format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogError(spdlog::format_string_t<Args...> format, Args&&... args) {
  spdlog::error(format, std::forward<Args>(args)...);
}

}  // namespace rubato::base
