// Memory that is shared by descriptor: memfds with seals, and mappings that unmap themselves.
//
// A region is made here by the scheduler and passed over a socket; no path names it.
#pragma once

#include <cstddef>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace rubato::base {

// A MAP_SHARED mapping with one owner. Empty after a move.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  static Result<Mapping> ReadOnly(int fd, size_t bytes);
  static Result<Mapping> Writable(int fd, size_t bytes);

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool valid() const { return data_ != nullptr; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  static Result<Mapping> Map(int fd, size_t bytes, int protection);

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// A zero-filled memfd of `bytes` that can be sealed and is closed by exec.
Result<UniqueFd> MakeMemfd(const std::string& name, size_t bytes);

// The seals of region.h in two steps: the size at creation; future writers (and further seals) once
// the writer has mapped it.
Result<void> SealSize(int fd);
Result<void> SealAgainstWriters(int fd);

// True if `fd` is a memfd of exactly `bytes` whose size is sealed; so it cannot be cut short under
// a mapping.
bool SizeIsSealed(int fd, size_t bytes);
// True if, in addition, nobody can map it for writing any more.
bool WritersAreSealed(int fd);

}  // namespace rubato::base
