// Result<T>: a value, or an error that says what is wrong and what to do.
//
// The daemons and the command line report what can fail by value; exceptions are thrown only by
// libraries and caught in the adapter that calls them. An Error has one line of text for people,
// with no full stop, and a code for callers that act on it.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace rubato::base {

enum class ErrorCode : uint8_t {
  kInvalid,      // The caller's input is wrong; the same call fails again.
  kNotFound,     // What was named does not exist.
  kExists,       // What was to be made is there already.
  kFull,         // A limit is reached.
  kNotAllowed,   // The peer or the user may not do this.
  kUnavailable,  // Not now: the other side is absent or ending.
  kSystem,       // The operating system refused; `source` is errno.
};

struct Error {
  ErrorCode code = ErrorCode::kInvalid;
  std::string message;
  int source = 0;  // errno, where one was the cause; otherwise 0.
};

// An error of the operating system: "<what>: <text of errno>".
inline Error SystemError(std::string_view what, int error_number = errno) {
  return Error{ErrorCode::kSystem, std::string(what) + ": " + std::strerror(error_number),
               error_number};
}

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::in_place_index<0>, std::move(value)) {}      // NOLINT
  Result(Error error) : content_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool ok() const { return content_.index() == 0; }
  explicit operator bool() const { return ok(); }

  // Precondition: ok().
  T& value() & { return *std::get_if<0>(&content_); }
  const T& value() const& { return *std::get_if<0>(&content_); }
  T&& value() && { return std::move(*std::get_if<0>(&content_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // Precondition: !ok().
  const Error& error() const { return *std::get_if<1>(&content_); }

 private:
  std::variant<T, Error> content_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

}  // namespace rubato::base
