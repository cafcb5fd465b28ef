#include "base/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <utility>

#ifndef F_SEAL_FUTURE_WRITE  // glibc before 2.32 does not name it; the kernel has it since 5.1.
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace rubato::base {

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this == &other) return *this;
  if (data_ != nullptr) ::munmap(data_, bytes_);
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

Result<Mapping> Mapping::Map(int fd, size_t bytes, int protection) {
  void* data = ::mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return SystemError("cannot map shared memory");
  Mapping mapping;
  mapping.data_ = data;
  mapping.bytes_ = bytes;
  return mapping;
}

Result<Mapping> Mapping::ReadOnly(int fd, size_t bytes) {
  return Map(fd, bytes, PROT_READ);
}

Result<Mapping> Mapping::Writable(int fd, size_t bytes) {
  return Map(fd, bytes, PROT_READ | PROT_WRITE);
}

Result<UniqueFd> MakeMemfd(const std::string& name, size_t bytes) {
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return SystemError("cannot make a memfd");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return SystemError("cannot size a memfd");
  return fd;
}

Result<void> SealSize(int fd) {
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    return SystemError("cannot seal the size of a memfd");
  return {};
}

Result<void> SealAgainstWriters(int fd) {
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0)
    return SystemError("cannot seal a memfd against writers (the kernel must be 5.1 or later)");
  return {};
}

bool SizeIsSealed(int fd, size_t bytes) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || (seals & F_SEAL_GROW) == 0) return false;
  struct stat info {};
  return ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size >= 0 &&
         static_cast<size_t>(info.st_size) == bytes;
}

bool WritersAreSealed(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & F_SEAL_FUTURE_WRITE) != 0 && (seals & F_SEAL_SEAL) != 0;
}

}  // namespace rubato::base
